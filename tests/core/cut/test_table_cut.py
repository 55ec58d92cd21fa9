from __future__ import annotations

import numpy as np
import pytest
from helpers import Items, keys, make_state, no_keys

from reverb_async.core import selectors
from reverb_async.core.cut.image import ArrayBlock
from reverb_async.core.cut.table_cut import MAX_BLOCK_BYTES, TableCut
from reverb_async.core.slots import FREE, LIVE, OUT
from reverb_async.core.table_state import TableState


class Rig:
    """A table, and cuts of it."""

    def __init__(self, **more: object) -> None:
        self.items = Items()
        self.state = make_state(**more)  # type: ignore[arg-type]

    def put(self, *names: int, priorities: object = 1.0) -> None:
        self.items.put(self.state, names, priorities)  # type: ignore[arg-type]

    def cut(self, *, full: bool = False) -> TableCut:
        return self.state.cut(full=full, stores={self.items.store: 0})

    def committed(self) -> None:
        cut = self.cut()
        rest(cut)
        end(cut)


def rest(cut: TableCut, max_slots: int = 100) -> list[ArrayBlock]:
    blocks = []
    while (block := cut.next_block(max_slots)) is not None:
        blocks.append(block)
    return blocks


def end(cut: TableCut, committed: bool = True) -> None:
    while cut.finish(committed):
        pass


def saved(blocks: list[ArrayBlock]) -> dict[int, tuple[int, float, int]]:
    """Return key, priority and state by slot."""
    return {
        slot: (int(image["key"]), float(image["priority"]), int(image["state"]))
        for block in blocks
        for slot, image in zip(block.ids.tolist(), block.values, strict=True)
    }


def set_priority(state: TableState, key: int, priority: float) -> None:
    state.mutate(keys(key), np.array([priority]), no_keys())


def test_the_first_cut_is_full_whatever_was_asked_for() -> None:
    rig = Rig()
    rig.put(1, 2, 3)
    cut = rig.cut(full=False)
    assert cut.full
    assert saved(rest(cut)) == {0: (1, 1.0, LIVE), 1: (2, 1.0, LIVE), 2: (3, 1.0, LIVE)}


def test_the_next_cut_has_what_changed_and_what_left() -> None:
    rig = Rig()
    rig.put(1, 2, 3, 4)
    rig.committed()
    set_priority(rig.state, 2, 7.0)
    rig.state.mutate(no_keys(), np.zeros(0), keys(4))
    rig.put(5, 6)
    cut = rig.cut()
    assert not cut.full
    assert saved(rest(cut)) == {1: (2, 7.0, LIVE), 3: (5, 1.0, LIVE), 4: (6, 1.0, LIVE)}
    end(cut)
    rig.state.mutate(no_keys(), np.zeros(0), keys(5))
    moved = {4: (6, 1.0, LIVE)}  # to the place in the sampler's order that became free
    assert saved(rest(rig.cut())) == {3: (5, 1.0, FREE), **moved}


def test_a_cut_that_was_given_up_leaves_its_changes_to_the_next() -> None:
    rig = Rig()
    rig.put(1, 2, 3)
    rig.committed()
    set_priority(rig.state, 1, 2.0)
    cut = rig.cut()
    cut.next_block(1)
    set_priority(rig.state, 2, 3.0)
    end(cut, committed=False)
    assert saved(rest(rig.cut())) == {0: (1, 2.0, LIVE), 1: (2, 3.0, LIVE)}


def test_what_changes_before_it_is_passed_comes_as_it_was_and_again_in_the_next_cut() -> None:
    rig = Rig()
    rig.put(1, 2, 3)
    cut = rig.cut()
    first = cut.next_block(1)
    assert first is not None
    for key in (1, 3):
        set_priority(rig.state, key, 9.0)
    rig.state.mutate(no_keys(), np.zeros(0), keys(2))
    rig.put(4)
    assert saved([first, *rest(cut, 1)]) == {0: (1, 1.0, LIVE), 1: (2, 1.0, LIVE), 2: (3, 1.0, LIVE)}
    end(cut)
    assert saved(rest(rig.cut())) == {0: (1, 9.0, LIVE), 1: (4, 1.0, LIVE), 2: (3, 9.0, LIVE)}


def test_each_slot_is_kept_once_and_only_until_the_cut_has_passed_it() -> None:
    rig = Rig()
    rig.put(*range(10))
    cut = rig.cut()
    for _ in range(3):
        set_priority(rig.state, 7, 2.0)
        rig.state.draw(50)
    assert cut.num_undone <= 10
    rest(cut)
    before = cut.num_undone
    set_priority(rig.state, 7, 2.0)
    rig.put(11)
    assert cut.num_undone == before


def test_a_cut_goes_on_after_a_reset_and_the_next_one_is_full() -> None:
    rig = Rig()
    rig.put(1, 2, 3)
    rig.committed()
    cut = rig.cut(full=True)
    rig.state.reset()
    rig.put(8)
    while rig.state.dismantle(1):
        pass
    assert saved(rest(cut, 1)) == {0: (1, 1.0, LIVE), 1: (2, 1.0, LIVE), 2: (3, 1.0, LIVE)}
    end(cut)
    after = rig.cut()
    assert after.full
    assert saved(rest(after)) == {0: (8, 1.0, LIVE)}


def test_a_sampled_out_item_is_saved_with_its_unsettled_draws_and_counted_as_not_drawn() -> None:
    rig = Rig(max_times_sampled=1, sampler=selectors.Fifo())
    rig.put(1, 2)
    rig.state.draw(1)
    cut = rig.cut()
    (block,) = rest(cut)
    assert block.values["state"].tolist() == [OUT, LIVE]
    assert block.values["unsettled"].tolist() == [1, 0]
    assert cut.state["limiter"] == [2, 0, 1]


def test_draws_and_their_return_are_changes() -> None:
    rig = Rig(sampler=selectors.Fifo())
    rig.put(1, 2)
    rig.committed()
    draw = rig.state.draw(2)
    cut = rig.cut()
    rig.state.hand_back(draw)
    assert [block.values["times_sampled"].tolist() for block in rest(cut)] == [[2]]
    end(cut)
    assert [block.values["times_sampled"].tolist() for block in rest(rig.cut())] == [[0]]


def test_reserved_samples_are_not_counted() -> None:
    rig = Rig()
    rig.put(1)
    rig.state.draw(2)
    rig.state.reserve_samples(3)
    assert rig.cut().state["limiter"] == [1, 2, 0]


@pytest.mark.parametrize("sampler", [selectors.Uniform(), selectors.Prioritized(1.0)])
def test_free_slots_come_in_the_order_they_will_be_taken_if_draws_depend_on_it(sampler: selectors.Selector) -> None:
    rig = Rig(sampler=sampler)
    rig.put(1, 2, 3, 4)
    for key in (2, 4, 1):
        rig.state.mutate(no_keys(), np.zeros(0), keys(key))
    cut = rig.cut()
    rig.put(5)
    rig.state.mutate(no_keys(), np.zeros(0), keys(3))
    blocks = rest(cut, 1)
    order = [int(slot) for block in blocks for slot in block.ids if block.values["state"][0] == FREE]
    assert order == ([1, 3, 0] if isinstance(sampler, selectors.Prioritized) else [])


def test_no_block_is_larger_than_4_mb_and_no_call_looks_at_more_than_a_quarter_of_a_million_slots() -> None:
    rig = Rig(max_size=600_000)
    rig.put(*range(300_000))
    rig.state.mutate(no_keys(), np.zeros(0), np.arange(299_000, dtype=np.uint64))
    cut = rig.cut()
    blocks = rest(cut, 1 << 30)
    assert [len(block) for block in blocks] == [0, 1000]
    rig.put(*range(300_000, 400_000))
    end(cut)
    blocks = rest(rig.cut(full=True), 1 << 30)
    assert max(block.values.nbytes for block in blocks) <= MAX_BLOCK_BYTES
    assert sum(len(block) for block in blocks) == 101_000
