import numpy as np
from numpy.typing import NDArray

from reverb_async.core.storage.extents import Extents


class Ledger:
    """Extents together with the holds they look at."""

    def __init__(self, size: int = 64, capacity: int = 64 * 100) -> None:
        self.extents = Extents(size, capacity)
        self.holds = np.zeros(capacity, np.int64)

    def claim(self, n: int, *, whole: bool = False) -> NDArray[np.int64]:
        rows = self.extents.claim(n, self.holds, whole=whole)
        assert not self.holds[rows].any()
        self.holds[rows] = 1
        assert self.extents.used_rows == np.count_nonzero(self.holds)
        return rows

    def free(self, rows: NDArray[np.int64]) -> None:
        self.holds[rows] = 0
        self.extents.free(rows)
        assert self.extents.used_rows == np.count_nonzero(self.holds)


def test_rows_come_in_extents_lowest_address_first() -> None:
    ledger = Ledger()
    assert ledger.claim(128).tolist() == list(range(128))
    assert ledger.claim(256).tolist() == list(range(128, 384))
    ledger.free(np.arange(64, 192))
    ledger.free(np.arange(320, 384))
    assert ledger.claim(256).tolist() == [*range(64, 192), *range(320, 448)]


def test_the_unused_end_of_an_extent_becomes_a_hole() -> None:
    ledger = Ledger()
    ledger.claim(70)
    assert ledger.extents.hole_rows == 58
    assert ledger.extents.reached_rows == 128


def test_a_whole_claim_leaves_nothing_behind() -> None:
    ledger = Ledger()
    assert ledger.claim(70, whole=True).tolist() == list(range(128))
    assert ledger.extents.hole_rows == 0


def test_holes_wait_until_they_are_more_than_a_sixteenth_of_the_rows_in_use() -> None:
    ledger = Ledger()
    ledger.claim(64 * 64)
    ledger.free(np.arange(0, 64 * 64, 20))  # 205 holes among 3891 rows
    assert ledger.claim(64).tolist() == list(range(64 * 64, 65 * 64))
    ledger.free(np.arange(1, 64 * 64, 64))  # 64 more
    assert ledger.claim(3).tolist() == [0, 1, 20]


def test_a_few_holes_are_left_alone_in_a_small_store() -> None:
    ledger = Ledger()
    ledger.claim(64)
    ledger.free(np.arange(0, 60))
    assert ledger.claim(64).tolist() == list(range(64, 128))


def test_holes_are_used_when_nothing_else_is_left() -> None:
    ledger = Ledger(capacity=128)
    ledger.claim(128)
    ledger.free(np.arange(10, 120, 10))
    assert ledger.claim(11).tolist() == list(range(10, 120, 10))
    assert ledger.extents.used_rows == 128


def test_holes_and_extents_together_fill_the_last_rows() -> None:
    ledger = Ledger(capacity=192)
    ledger.claim(128)
    ledger.free(np.arange(5))
    assert sorted(ledger.claim(69).tolist()) == [*range(5), *range(128, 192)]
    assert ledger.extents.used_rows == 192


def test_holes_all_over_a_large_store_are_found_in_turn() -> None:
    ledger = Ledger(capacity=64 * 10_000)
    ledger.claim(64 * 10_000)
    holes = np.arange(17, 64 * 10_000, 40)
    ledger.free(holes)
    found = [ledger.claim(1000) for _ in range(len(holes) // 1000)]
    assert np.array_equal(np.sort(np.concatenate(found)), holes)


def test_extents_of_one_row_have_no_holes() -> None:
    ledger = Ledger(size=1, capacity=8)
    ledger.claim(8)
    ledger.free(np.array([6, 2]))
    assert ledger.extents.hole_rows == 0
    assert ledger.claim(2).tolist() == [2, 6]


def test_freeing_a_run_equals_freeing_its_rows() -> None:
    for first, n in ((0, 640), (3, 1), (60, 8), (1, 638), (64, 64)):
        one, other = Ledger(), Ledger()
        for ledger in (one, other):
            ledger.claim(640)
            ledger.holds[first : first + n] = 0
        one.extents.free_run(first, n)
        other.extents.free(np.arange(first, first + n))
        assert one.extents.used_rows == other.extents.used_rows
        assert one.extents.idle_rows == other.extents.idle_rows
        assert one.extents.hole_rows == other.extents.hole_rows
        assert one.claim(300).tolist() == other.claim(300).tolist()


def test_idle_rows_are_those_of_free_extents_that_were_used() -> None:
    ledger = Ledger()
    ledger.claim(640)
    assert ledger.extents.idle_rows == 0
    ledger.free(np.arange(32, 320))
    assert ledger.extents.idle_rows == 4 * 64
    ledger.claim(64)
    assert ledger.extents.idle_rows == 3 * 64


def test_the_surplus_is_taken_from_the_top_in_runs_with_the_free_rows_around() -> None:
    ledger = Ledger()
    ledger.claim(640)
    ledger.free(np.concatenate((np.arange(64, 256), np.arange(384, 640))))
    assert ledger.extents.surplus(128) == [(512, 640, 384, 640 + 4096)]
    assert ledger.extents.surplus(1) == [(448, 512, 384, 512 + 4096)]
    assert ledger.extents.surplus(10_000) == [(64, 256, 64, 256), (384, 448, 384, 448 + 4096)]
    assert ledger.extents.idle_rows == 0
    assert ledger.extents.surplus(10_000) == []


def test_many_small_runs_are_given_back_in_several_calls() -> None:
    ledger = Ledger(capacity=64 * 1000)
    ledger.claim(64 * 1000)
    for extent in range(0, 1000, 2):
        ledger.free(np.arange(extent * 64, extent * 64 + 64))
    calls = []
    while ledger.extents.idle_rows:
        calls.append(ledger.extents.surplus(64 * 1000))
    assert [len(runs) for runs in calls] == [128, 128, 128, 116]
    assert sorted(run[:2] for runs in calls for run in runs) == [(at, at + 64) for at in range(0, 64_000, 128)]


def test_rows_that_become_idle_behind_the_search_are_found_later() -> None:
    ledger = Ledger()
    ledger.claim(640)
    ledger.free(np.arange(0, 64))
    ledger.extents.surplus(64)
    ledger.free(np.arange(576, 640))
    assert [run[:2] for run in ledger.extents.surplus(64)] == [(576, 640)]


def test_more_rows_can_be_added() -> None:
    ledger = Ledger(capacity=128)
    ledger.claim(128)
    ledger.free(np.arange(64))
    ledger.extents.grow(256)
    ledger.holds = np.concatenate((ledger.holds, np.zeros(128, np.int64)))
    assert ledger.claim(192).tolist() == [*range(64), *range(128, 256)]
    assert ledger.extents.idle_rows == 0
