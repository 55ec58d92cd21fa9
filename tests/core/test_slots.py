from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from helpers import Items

from reverb_async.core.item import ItemBlock, ItemLayout, Layouts, Leaf
from reverb_async.core.nest import flatten
from reverb_async.core.runs import Runs, join
from reverb_async.core.slots import FREE, LIVE, Slots


@pytest.fixture
def items() -> Items:
    return Items()


def put(slots: Slots, block: ItemBlock) -> np.ndarray:
    return slots.put(block, block.priorities, 12.5)


def test_what_is_put_in_a_slot_is_found_there(items: Items) -> None:
    slots = Slots(10)
    taken = put(slots, items.block([5, 6], [0.5, 0.25], nbytes=3))
    assert taken.tolist() == [0, 1]
    assert slots.state[taken].tolist() == [LIVE, LIVE]
    assert {name: values.tolist() for name, values in slots.describe(taken).items()} == {
        "key": [5, 6],
        "priority": [0.5, 0.25],
        "times_sampled": [0, 0],
        "inserted_at": [12.5, 12.5],
        "nbytes": [3, 3],
    }


def test_freed_slots_are_taken_before_new_ones(items: Items) -> None:
    slots = Slots(10)
    put(slots, items.block(range(6)))
    slots.free(np.array([1, 4]))
    assert slots.num_free == 6
    assert set(put(slots, items.block(range(3))).tolist()) == {1, 4, 6}
    assert (slots.high_water, slots.num_free) == (7, 3)


def test_a_slot_taken_again_has_another_version(items: Items) -> None:
    slots = Slots(10)
    before = slots.version[put(slots, items.block([1]))].copy()
    slots.free(np.array([0]))
    assert slots.version[put(slots, items.block([1]))] != before


def test_references_follow_the_items(items: Items) -> None:
    slots = Slots(10)
    block = items.block([1, 2])
    put(slots, block)
    items.release(block)
    assert items.held() == (2, 0)
    slots.free(np.array([0]))
    assert items.held() == (1, 0)
    slots.dismantle(0, 10)
    assert items.held() == (0, 0)
    assert slots.state[:2].tolist() == [FREE, FREE]


def test_items_of_several_runs_and_layouts_live_side_by_side(items: Items) -> None:
    rows = items.store.lease(20)
    long = ItemLayout(flatten({"a": 0, "b": 0})[1], (items.store, items.store), (Leaf(0, 0, False), Leaf(1, 0, True)))
    block = ItemBlock(
        long,
        np.array([1, 2], np.uint64),
        np.ones(2),
        (join([rows[[0, 1, 5]], rows[2:6]]), Runs.of_rows(rows[10:12])),
        np.ones(2, np.int64),
    )
    slots = Slots(10)
    put(slots, block)
    put(slots, items.block([3]))
    assert slots.runs(0, np.array([1, 0])).rows().tolist() == [*rows[2:6], *rows[[0, 1, 5]]]
    assert slots.runs(1, np.array([0, 1])).rows().tolist() == rows[10:12].tolist()
    assert [
        (slots.layouts[layout_id], positions.tolist())  # type: ignore[union-attr]
        for layout_id, positions in slots.by_layout(np.array([2, 0, 2, 1]))
    ] == [(long, [1, 3]), (items.layout, [0, 2])]
    slots.free(np.array([0, 1]))
    put(slots, items.block([4, 5]))
    assert not slots._views[0].pieces
    assert slots.by_layout(np.array([0, 1, 2])) == [(1, None)]


def test_a_layout_is_forgotten_with_its_last_item(items: Items) -> None:
    slots = Slots(10)
    block = items.block([1, 2])
    alive = weakref.ref(items.layout)
    put(slots, block)
    del items.layout, block
    slots.free(np.array([1]))
    gc.collect()
    assert alive() is not None
    slots.free(np.array([0]))
    gc.collect()
    assert alive() is None


def test_equal_parts_give_the_same_layout_while_it_lives(items: Items) -> None:
    layouts = Layouts()
    structure, leaves = flatten({"a": 0})[1], (Leaf(0, 0, True),)
    layout = layouts.get(structure, (items.store,), leaves)
    assert layouts.get(flatten({"a": 1})[1], (items.store,), (Leaf(0, 0, True),)) is layout
    assert layouts.get(structure, (items.store,), (Leaf(0, 0, False),)) is not layout


def test_layouts_say_what_samples_look_like(items: Items) -> None:
    layout = ItemLayout(flatten({"a": 0, "b": 0})[1], (items.store,), (Leaf(0, 0, False), Leaf(0, 0, True)))
    assert [spec.shape for spec in layout.sampled_specs()] == [(None,), ()]


def test_items_tell_the_episodes_they_span(items: Items) -> None:
    slots = Slots(10)
    put(slots, items.block([1, 2, 3], episodes=[[4, 4], [4, 6], [6, 6]]))
    put(slots, items.block([4, 5]))
    assert slots.episodes_of(np.arange(5)) == ({4: 2, 5: 1, 6: 2}, 2)
    slots.free(np.array([1]))
    put(slots, items.block([6], episodes=[[9, 9]]))
    assert slots.episodes_of(np.array([1])) == ({9: 1}, 0)


def test_parts_of_blocks_keep_what_belongs_together(items: Items) -> None:
    block = items.block([1, 2, 3, 4], [1.0, 2.0, 3.0, 4.0], episodes=[[1, 1], [1, 2], [2, 2], [3, 3]])
    assert block.part(0, 4) is block
    part = block.part(1, 3)
    assert (len(part), part.keys.tolist(), part.priorities.tolist()) == (2, [2, 3], [2.0, 3.0])
    assert part.episodes is not None
    assert part.episodes.tolist() == [[1, 2], [2, 2]]
    assert part.views[0].rows().tolist() == block.views[0].rows()[1:3].tolist()


def test_records_read_again_are_those_of_the_items_there_now(items: Items) -> None:
    slots = Slots(10)
    first = put(slots, items.block([5, 6]))
    for read in (slots.read, slots.read_again):
        assert read(first)["key"].tolist() == [5, 6]
    assert slots.read_again(first) is slots.read_again(first)
    assert slots.read_again(first[::-1])["key"].tolist() == [6, 5]
    slots.free(first)
    assert sorted(put(slots, items.block([7, 8])).tolist()) == first.tolist()
    assert sorted(slots.read_again(first)["key"].tolist()) == [7, 8]
