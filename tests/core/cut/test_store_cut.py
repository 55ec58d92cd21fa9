from __future__ import annotations

import numpy as np
import pytest

from reverb_async.core.cut.store_cut import StoreCut
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import RowStore, Storage
from reverb_async.core.storage.backing import PrivateBacking
from reverb_async.core.variable import encode_rows

TEXT = (ArraySpec((), np.int64), ArraySpec((), bytes))


class Rig:
    """A store whose row i holds i and i bytes; items are references."""

    def __init__(self, storage: Storage | None = None) -> None:
        self.storage = storage or Storage(reserve_bytes=1 << 24)
        self.storage.watch()
        self.store: RowStore = self.storage.group(TEXT)

    def insert(self, n: int) -> np.ndarray:
        rows = self.store.lease(n)
        self.store.write(0, rows, rows.copy())
        self.store.write(1, rows, encode_rows([b"x" * (row % 7) for row in rows.tolist()], TEXT[1]))
        self.store.retain(rows)
        self.store.unpin(rows)
        return rows

    def save(self, segment: int, *, rewrite: tuple[int, ...] = ()) -> dict[int, int]:
        cut = self.store.cut()
        cut.rewrite = rewrite
        found = through(cut, segment)
        end(cut)
        return found

    def pinned(self) -> int:
        return self.store.usage().pinned_rows


def through(cut: StoreCut, segment: int, max_rows: int = 10) -> dict[int, int]:
    """Write all rows to a segment; return the segments of live rows, 0 for those that were written now."""
    found = {}
    while (block := cut.next_rows(max_rows)) is not None:
        found.update(zip(block.rows.tolist(), block.segments.tolist(), strict=True))
        cut.done(block.unsaved, segment)
    return found


def end(cut: StoreCut, committed: bool = True) -> None:
    while cut.finish(committed, 7):
        pass


def test_rows_are_written_once_and_their_segments_remembered() -> None:
    rig = Rig()
    rows = rig.insert(20)
    assert rig.save(1) == dict.fromkeys(range(20), 0)
    more = rig.insert(3)
    assert rig.save(2) == {**dict.fromkeys(rows.tolist(), 1), **dict.fromkeys(more.tolist(), 0)}
    rig.store.release(rows[:5])
    assert rig.save(3) == {**dict.fromkeys(rows[5:].tolist(), 1), **dict.fromkeys(more.tolist(), 2)}
    assert rig.pinned() == 0


def test_a_row_that_was_freed_and_used_again_is_on_no_segment() -> None:
    rig = Rig()
    rows = rig.insert(64)
    rig.save(1)
    rig.store.release(rows)
    assert rig.insert(10).tolist() == list(range(10))
    assert rig.save(2) == dict.fromkeys(range(10), 0)


def test_rows_that_items_let_go_of_keep_their_data_until_they_were_written() -> None:
    rig = Rig()
    rows = rig.insert(20)
    cut = rig.store.cut()
    first = cut.next_rows(10)
    assert first is not None
    rig.store.release(rows)
    assert rig.store.usage().live_rows + rig.store.usage().staged_rows == 20
    cut.done(first.unsaved, 1)
    assert rig.store.usage().live_rows + rig.store.usage().staged_rows == 10
    second = cut.next_rows(10)
    assert second is not None
    assert rig.store.gather(0, second.unsaved).tolist() == list(range(10, 20))
    assert rig.store.gather_variable(1, second.unsaved).sizes.tolist() == [row % 7 for row in range(10, 20)]
    cut.done(second.unsaved, 1)
    usage = rig.storage.usage()
    assert (usage.live_rows, usage.staged_rows) == (0, 0)


def test_only_what_was_live_is_kept_so_that_a_busy_store_does_not_grow_during_a_cut() -> None:
    rig = Rig()
    rig.insert(100)
    cut = rig.store.cut()
    for _ in range(1000):
        rig.store.release(rig.insert(10))
    assert rig.pinned() == 0
    assert rig.store.reached_rows <= 256
    assert len(through(cut, 1)) == 100


def test_rows_that_were_only_staged_are_not_written() -> None:
    rig = Rig()
    rig.insert(5)
    staged = rig.store.lease(5)
    cut = rig.store.cut()
    assert len(through(cut, 1)) == 5
    rig.store.unpin(staged)
    end(cut)


def test_giving_up_lets_go_of_all_rows_and_forgets_the_segments_of_this_cut() -> None:
    rig = Rig()
    rows = rig.insert(30)
    rig.save(1)
    more = rig.insert(30)
    cut = rig.store.cut()
    for _ in range(5):
        block = cut.next_rows(10)
    assert block is not None
    cut.done(block.unsaved[:3], 2)
    rig.store.release(rows[25:])
    rig.store.release(more[25:])
    end(cut, committed=False)
    assert rig.pinned() == 0
    found = rig.save(3)
    assert sorted(set(found.values())) == [0, 1]
    assert [row for row, segment in found.items() if segment == 1] == rows[:25].tolist()


def test_rows_of_segments_that_are_mostly_dead_can_be_written_again() -> None:
    rig = Rig()
    rig.insert(4)
    rig.save(1)
    rig.insert(4)
    assert sorted(rig.save(2, rewrite=(1,)).values()) == [0] * 8
    assert set(rig.save(3).values()) == {2}


def test_rows_that_could_not_be_written_are_asked_for_again() -> None:
    rig = Rig()
    rig.insert(4)
    rig.save(0)
    assert rig.save(1) == dict.fromkeys(range(4), 0)


def test_a_store_that_moves_to_larger_memory_keeps_what_it_knows() -> None:
    rig = Rig(Storage(reserve_bytes=1 << 24, backing=PrivateBacking))
    rows = rig.insert(10)
    rig.save(1)
    cut = rig.store.cut()
    rig.store.release(rows[:5])
    rig.insert(10_000)
    found = through(cut, 2)
    assert [found[row] for row in range(10)] == [1] * 10
    end(cut)
    assert rig.pinned() == 0


def test_two_cuts_of_a_store_at_once_are_a_mistake() -> None:
    rig = Rig()
    rig.insert(1)
    rig.store.cut()
    with pytest.raises(AssertionError, match="not finished"):
        rig.store.cut()
