"""Servers restored from what others saved: definitions that differ, and images that are wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cut_rig import Disk, Image
from helpers import Items, keys_of, no_keys

from reverb_async import rate_limiters, selectors
from reverb_async.core.cut.image import ArrayBlock, RowValues
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument, TableNotFound
from reverb_async.protocol.hello import KEYS_PER_BLOCK
from reverb_async.protocol.inserting import Refusal
from reverb_async.replay import Replay
from reverb_async.sessions import Session
from reverb_async.table import Table


def saved(table: Table, *names: int, change: Callable[[Table], object] = lambda table: None) -> Disk:
    """Return a checkpoint of a table with these items, inserted one after the other."""
    replay = Replay([table])
    items = Items(replay.storage)
    for second, name in enumerate(names):
        block = items.block([name], float(name))
        table.state.insert(block, float(second))
        items.release(block)
    change(table)
    disk = Disk(replay)
    disk.save()
    return disk


def restored(disk: Disk, table: Table, **more: Any) -> Replay:
    replay = Replay([table])
    replay.restore(disk.image, **more)
    return replay


def test_items_beyond_a_smaller_max_size_leave_as_the_remover_decides() -> None:
    disk = saved(Table("a", max_size=10), 5, 1, 4, 2, 3)
    for remover, left in [
        (selectors.Fifo(), [2, 3, 4]),
        (selectors.MinHeap(), [3, 4, 5]),
        (selectors.Lifo(), [1, 4, 5]),
    ]:
        table = Table("a", max_size=3, remover=remover)
        replay = restored(disk, table)
        assert keys_of(table.state) == left
        assert replay.storage.usage().live_rows == 3
        assert table.state.limiter.deletes == 2


def test_a_table_with_fewer_slots_than_were_used_takes_what_it_has_room_for() -> None:
    names = range(70_000)
    replay = Replay([table := Table("a", max_size=70_000)])
    Items(replay.storage).put(table.state, names)
    table.state.mutate(no_keys(), np.zeros(0), np.arange(69_990, dtype=np.uint64))
    disk = Disk(replay)
    disk.save(block=100_000)
    small = Table("a", max_size=5)
    restored(disk, small)
    assert keys_of(small.state) == list(range(69_995, 70_000))


@pytest.mark.parametrize(
    "old", [selectors.Uniform(), selectors.Fifo(), selectors.MaxHeap(), selectors.Prioritized(1.0)]
)
@pytest.mark.parametrize("new", [selectors.Fifo(), selectors.Lifo(), selectors.MinHeap()])
def test_an_order_that_nobody_kept_is_that_of_the_items_age(old: selectors.Selector, new: selectors.Selector) -> None:
    def update(table: Table) -> None:
        table.state.mutate(np.arange(1, 6, dtype=np.uint64), np.ones(5), no_keys())

    disk = saved(Table("a", max_size=10, sampler=old), 5, 1, 4, 2, 3, change=update)
    table = Table("a", max_size=10, sampler=new)
    restored(disk, table)
    order = table.state.slots.key[table.state.sampler.first(5)].tolist()
    if isinstance(old, selectors.MaxHeap) and isinstance(new, selectors.MinHeap):
        assert order == [1, 2, 3, 4, 5]  # both kept when each was updated
    else:
        assert order == ([3, 2, 4, 1, 5] if isinstance(new, selectors.Lifo) else [5, 1, 4, 2, 3])


def test_items_that_were_sampled_as_often_as_the_new_definition_allows_leave() -> None:
    disk = saved(Table("a", max_size=10, sampler=selectors.Fifo()), 1, 2, 3, change=lambda table: table.state.draw(4))
    table = Table("a", max_size=10, sampler=selectors.Fifo(), max_times_sampled=2)
    restored(disk, table)
    assert keys_of(table.state) == [2, 3]


def test_draws_go_on_as_they_would_have_unless_the_seed_is_another() -> None:
    disk = saved(Table("a", max_size=10, seed=1), *range(10), change=lambda table: table.state.draw(7))
    first = disk.replay.tables["a"].state.draw(20).keys.tolist()
    alike, other = Table("a", max_size=10, seed=1), Table("a", max_size=10, seed=2)
    restored(disk, alike)
    restored(disk, other)
    assert alike.state.draw(20).keys.tolist() == first
    fresh = saved(Table("a", max_size=10, seed=2), *range(10)).replay.tables["a"]
    assert other.state.draw(20).keys.tolist() == fresh.state.draw(20).keys.tolist() != first


def test_priorities_that_the_new_selectors_refuse_are_refused() -> None:
    disk = saved(Table("a", max_size=10), 1, change=lambda table: table.mutate(_keys(1), np.array([-1.0]), no_keys()))
    with pytest.raises(InvalidArgument, match=r"priority -1\.0 at position 0 is negative"):
        restored(disk, Table("a", max_size=10, sampler=selectors.Prioritized(1.0)))


def test_a_table_can_be_filled_from_one_of_another_name_and_others_stay_empty() -> None:
    disk = saved(Table("old", max_size=10), 1, 2)
    replay = Replay([Table("new", max_size=10), Table("more", max_size=10)])
    replay.restore(disk.image, {"new": "old"})
    assert keys_of(replay.tables["new"].state) == [1, 2]
    assert keys_of(replay.tables["more"].state) == []
    with pytest.raises(TableNotFound, match="no table named 'other'; this server has: 'old'"):
        replay.restore(disk.image, {"more": "other"})


def test_sessions_are_remembered_with_all_they_settled() -> None:
    replay = Replay([Table("a", max_size=3)])
    session = Session(b"\x01\xff", 5)
    session.settle(1, 7)
    session.settle(12, 3)
    session.refuse(Refusal(9, 1, {"message": "no"}))
    replay.sessions.adopt((6, [session]))
    disk = Disk(replay)
    saving = disk.begin()
    session.settle(8, 1)
    saving.finish(True)
    again = restored(disk, Table("a", max_size=3))
    found = again.sessions.snapshot().describe()
    assert found == {"number": 6, "sessions": [["01ff", 5, 7, [[12, 3], [9, 1]], [[9, 1, {"message": "no"}]]]]}


def test_keys_and_episodes_that_were_handed_out_are_not_handed_out_again() -> None:
    disk = saved(Table("a", max_size=3))
    disk.replay.episodes.claim(100)
    first = disk.replay.grant_keys()
    disk.save()
    later = {disk.replay.grant_keys() for _ in range(1000)}
    again = restored(disk, Table("a", max_size=3))
    assert again.episodes.claim(1) == (1 << 62) + 100
    key = again.grant_keys()
    assert key not in later | {first}
    assert key % KEYS_PER_BLOCK == 0


def test_two_servers_restored_from_one_checkpoint_grant_different_keys() -> None:
    disk = saved(Table("a", max_size=10), 1)
    first, second = (restored(disk, Table("a", max_size=10)) for _ in range(2))
    assert not {first.grant_keys() for _ in range(10)} & {second.grant_keys() for _ in range(10)}


def test_the_next_cut_builds_on_what_was_restored() -> None:
    disk = saved(Table("a", max_size=10, sampler=selectors.Fifo()), 1, 2, 3)
    table = Table("a", max_size=10, sampler=selectors.Fifo())
    replay = restored(disk, table)
    cut = replay.cut(full=False)
    assert not cut.tables["a"].full
    block = cut.tables["a"].next_block()
    assert block is not None
    assert len(block) == 0
    rows = cut.stores[0].next_rows()
    assert rows is not None
    assert rows.segments.tolist() == [1, 1, 1]
    while cut.finish(True):
        pass
    assert Replay([Table("a", max_size=10)]).cut(full=False).tables["a"].full
    other = restored(disk, Table("a", max_size=10, sampler=selectors.MinHeap()))
    assert other.cut(full=False).tables["a"].full, "the items' places are others now"


def test_a_restored_table_is_what_its_info_says() -> None:
    disk = saved(Table("a", max_size=10), 1, 2, change=lambda table: table.state.draw(3))
    before = disk.replay.tables["a"].info
    table = Table("a", max_size=10)
    restored(disk, table)
    after = table.info
    for field in ("current_size", "num_episodes", "num_unique_samples", "rate_limiter_info", "stored_bytes"):
        assert getattr(after, field) == getattr(before, field)
    assert after.oldest_item_age - after.newest_item_age == pytest.approx(1.0, abs=0.1)


def test_a_definition_survives_being_written_down() -> None:
    table = Table(
        "a",
        max_size=10,
        sampler=selectors.Prioritized(0.6),
        remover=selectors.MinHeap(),
        rate_limiter=rate_limiters.RateLimiter(2.0, 3, float("-inf"), 7.5),
        max_times_sampled=4,
        max_bytes=1000,
        signature={"obs": ArraySpec((None, 4), np.float32), "text": ArraySpec((), str)},
        seed=9,
    )
    again = Table.from_definition(table.definition)
    assert again.definition == table.definition
    with pytest.raises(InvalidArgument, match="no definition of a table"):
        Table.from_definition({"name": "a"})


# -- images that are wrong ------------------------------------------------------------------------------------------


def _keys(*names: int) -> Any:
    return np.array(names, np.uint64)


def _values(image: Image, field: str, value: object) -> None:
    (table,) = image.tables.values()
    values = table.saved[0].values.copy()
    values[field][0] = value
    table.saved = [ArrayBlock(table.saved[0].ids, values, table.saved[0].more), *table.saved[1:]]


def _rows(image: Image, change: Callable[[list[RowValues]], list[RowValues]]) -> None:
    (store,) = image.stores
    rows = change(list(store.rows()))
    store.rows = lambda: rows  # type: ignore[method-assign,assignment,return-value]


WRONG: list[tuple[Callable[[Image], object], str]] = [
    (lambda image: image.tables["a"].state.pop("size"), "not whole"),
    (lambda image: image.state.pop("next_block"), "not whole"),
    (lambda image: image.state.update(sessions={"number": 1, "sessions": [["zz"]]}), "not whole"),
    (lambda image: image.tables["a"].state.update(size=4), "3 items of 24 bytes came, there were 4 of 24 bytes"),
    (lambda image: image.tables["a"].state.update(limiter=[9, 0, 0]), "9 inserts and 0 deletes"),
    (lambda image: image.tables["a"].state.update(layouts=[]), "items of layouts 0 to 0, 0 there are"),
    (lambda image: image.tables["a"].state.update(layouts=[None]), "items without a layout"),
    (lambda image: image.tables["a"].state.update(layouts=[["rows", 0, [7], [], []]]), "no layout of items"),
    (lambda image: image.tables["a"].state.update(high_water=2), "slots 0 to 2 of a table of 2"),
    (lambda image: image.tables["a"].state["rng"].update(bit_generator="MT19937"), "no state of a PCG64"),
    (lambda image: _values(image, "key", 2), "two items have the same key"),
    (lambda image: _values(image, "state", 3), "a state that there is not"),
    (lambda image: _values(image, "unsettled", 1), "drawn more often than it was sampled"),
    (lambda image: _values(image, "layout", -1), "items of layouts -1"),
    (lambda image: _values(image, "first", 1 << 40), "not among the 64 of their store"),
    (lambda image: _values(image, "first", 5), "items refer to 1 rows that were not saved, row 5 first"),
    (lambda image: _values(image, "length", 0), "not among"),
    (lambda image: _values(image, "remover", 1), "two slots have the same place"),
    (lambda image: _values(image, "remover", -5), "numbered from 0, one has -5"),
    (lambda image: _rows(image, lambda rows: rows[:0]), "items refer to 3 rows that were not saved"),
    (lambda image: _rows(image, lambda rows: rows * 2), "rows were saved twice"),
    (lambda image: _rows(image, lambda rows: [RowValues(rows[0].rows + 64, rows[0].columns)]), "of a store of 64"),
    (lambda image: _rows(image, lambda rows: [RowValues(rows[0].rows, [])]), "rows of 0 columns"),
    (
        lambda image: _rows(image, lambda rows: [RowValues(rows[0].rows, [np.zeros((3, 1), np.int64)])]),
        "where int64",
    ),
    (lambda image: image.stores.append(image.stores[0]), "two of the saved stores are of one kind"),
]


@pytest.mark.parametrize(("damage", "said"), WRONG)
def test_an_image_that_contradicts_itself_changes_nothing(damage: Callable[[Image], object], said: str) -> None:
    disk = saved(Table("a", max_size=10), 1, 2, 3)
    good = disk.image
    assert good is not None
    bad = copy.deepcopy(good)
    damage(bad)
    table = Table("a", max_size=10)
    replay = Replay([table])
    with pytest.raises(InvalidArgument, match=said):
        replay.restore(bad)
    assert table.state.size == 0
    usage = replay.storage.usage()
    assert (usage.live_rows, usage.staged_rows) == (0, 0)
    replay.restore(good)
    assert keys_of(table.state) == [1, 2, 3]
