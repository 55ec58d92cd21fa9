"""Which rows of a store are free."""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

_PAGE_ROWS = 4096
"""A page of one-byte rows has this many: pages are never shared by rows further apart."""
_WINDOW = 4096
"""Extents looked at in one go when searching."""
_TRIM_WINDOWS = 16
_TRIM_RUNS = 128
"""What one call of `surplus` searches and returns at most: to give back many small runs takes longer than a few."""


class Extents:
    """Hands out rows by extents, runs of `size` consecutive rows, and knows which extents are free or have holes.

    Wholly free extents are handed out lowest address first, so that the upper ones can be given back to the system.
    Rows freed singly (holes) are handed out before them once they add up to more than 1/16 of the rows in use: until
    then long runs are worth more than the memory.

    Which rows are in use is the caller's to know (`holds`, zero when free); only rows per extent are counted here.

    Attributes:
        size: rows per extent, a power of two up to 64.
        capacity: rows in all, a multiple of `size`.
        used_rows: rows handed out and not yet freed.
        idle_rows: rows of free extents that may have pages in memory.
    """

    def __init__(self, size: int, capacity: int) -> None:
        assert size & (size - 1) == 0
        assert 1 <= size <= 64
        self.size = size
        self.capacity = 0
        self.used_rows = 0
        self.idle_rows = 0
        self._shift = size.bit_length() - 1
        self._ramp: Rows = np.arange(size)
        self._empty: list[int] = []  # free extents below the frontier: a heap
        self._frontier = 0  # extents handed out so far
        self._used = np.zeros(0, np.uint8)
        self._touched = np.zeros(0, np.bool_)
        self._hole_hand = 0
        self._trim_hand = 0
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        """Add rows at the end, up to `capacity` in all."""
        used, touched = self._used[: self._frontier], self._touched[: self._frontier]
        self.capacity = capacity
        self._used = np.zeros(capacity >> self._shift, np.uint8)
        self._touched = np.zeros(capacity >> self._shift, np.bool_)
        self._used[: self._frontier] = used
        self._touched[: self._frontier] = touched

    def adopt(self, holds: NDArray[np.int64]) -> None:
        """Let the first rows be in use where `holds` is not zero; int64 ``[n]``. Nothing was claimed before."""
        self._frontier = -(-len(holds) >> self._shift)
        whole = np.zeros(self._frontier << self._shift, np.bool_)
        np.not_equal(holds, 0, out=whole[: len(holds)])
        used = np.count_nonzero(whole.reshape(-1, self.size), axis=1)
        self._used[: self._frontier] = used
        self._touched[: self._frontier] = used > 0
        self._empty = np.flatnonzero(used == 0).tolist()
        self.used_rows = int(used.sum())

    @property
    def reached_rows(self) -> int:
        """Rows below the highest one ever handed out."""
        return self._frontier << self._shift

    @property
    def hole_rows(self) -> int:
        """Free rows in extents that are partly in use."""
        return ((self._frontier - len(self._empty)) << self._shift) - self.used_rows

    def claim(self, n: int, holds: NDArray[np.int64], *, whole: bool = False) -> Rows:
        """Take `n` free rows, at most ``capacity - used_rows``; the caller marks them in `holds` before the next call.

        Args:
            n: how many.
            holds: int64 ``[capacity]``, zero for free rows.
            whole: leave no part of an extent behind but return all of it, hence `n` rows or more.

        Returns:
            Row numbers, ascending within extents.
        """
        parts = []
        holes = self.hole_rows
        if holes >= self.size and holes > self.used_rows >> 4:
            parts.append(self._claim_holes(min(max(n, self.size) if whole else n, holes), holds))
            n -= len(parts[0])
        if n > 0:
            free = len(self._empty) + len(self._used) - self._frontier
            lacking = n - (free << self._shift)
            if lacking > 0:
                parts.append(self._claim_holes(lacking, holds))
                n -= lacking
            if n > 0:
                parts.append(self._claim_extents(n, whole))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _claim_extents(self, n: int, whole: bool) -> Rows:
        count = -(-n >> self._shift)
        taken = [heappop(self._empty) for _ in range(min(count, len(self._empty)))]
        fresh = count - len(taken)
        self._frontier += fresh
        first = taken[0] if taken else self._frontier - fresh
        if taken:
            self.idle_rows -= int(np.count_nonzero(self._touched[taken])) << self._shift
        taken.extend(range(self._frontier - fresh, self._frontier))
        if taken[-1] - first == count - 1:
            self._used[first : first + count] = self.size
            self._touched[first : first + count] = True
            rows: Rows = np.arange(first << self._shift, (first + count) << self._shift)
        else:
            extents = np.array(taken)
            self._used[extents] = self.size
            self._touched[extents] = True
            rows = ((extents << self._shift)[:, None] + self._ramp).reshape(-1)
        if not whole:
            self._used[taken[-1]] -= len(rows) - n
            rows = rows[:n]
        self.used_rows += len(rows)
        return rows

    def _claim_holes(self, n: int, holds: NDArray[np.int64]) -> Rows:
        """Take `n` rows from extents partly in use; there are that many."""
        parts = []
        by_extent = holds.reshape(-1, self.size)
        while n > 0:
            if self._hole_hand >= self._frontier:
                self._hole_hand = 0
            start = self._hole_hand
            used = self._used[start : min(start + _WINDOW, self._frontier)]
            partly = np.flatnonzero(used - np.uint8(1) < self.size - 1)  # 0 wraps to 255
            if len(partly) == 0:
                self._hole_hand += len(used)
                continue
            enough = int(np.searchsorted(np.cumsum(self.size - used[partly].astype(np.int64)), n)) + 1
            self._hole_hand = start + (len(used) if enough > len(partly) else int(partly[enough - 1]))
            partly = partly[:enough] + start
            places = np.flatnonzero(by_extent.take(partly, axis=0) == 0)[:n]
            extents = partly[places >> self._shift]
            np.add.at(self._used, extents, np.uint8(1))
            parts.append((extents << self._shift) + (places & (self.size - 1)))
            n -= len(places)
            self.used_rows += len(places)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def free_run(self, first: int, n: int) -> None:
        """Take back the rows ``[first, first + n)``."""
        shift, stop = self._shift, first + n
        for extent in range(first >> shift, ((stop - 1) >> shift) + 1):
            start = extent << shift
            left = self._used.item(extent) - min(stop, start + self.size) + max(first, start)
            self._used[extent] = left
            if left == 0:
                self._empty_now(extent)
        self.used_rows -= n

    def free(self, rows: Rows) -> None:
        """Take back `rows`, which are distinct."""
        extents = rows >> self._shift
        np.subtract.at(self._used, extents, np.uint8(1))
        self.used_rows -= len(rows)
        for extent in dict.fromkeys(extents[self._used.take(extents) == 0].tolist()):
            self._empty_now(extent)

    def _empty_now(self, extent: int) -> None:
        heappush(self._empty, extent)
        self.idle_rows += self.size

    def surplus(self, n: int) -> list[tuple[int, int, int, int]]:
        """Choose about `n` idle rows (whole extents, at least one) to be given back, highest first.

        A call does a bounded amount of work, so it may return fewer.

        Returns:
            Runs (first, stop, low, high): the rows ``[first, stop)`` are no longer idle; all of ``[low, high)``, as far
            around them as pages reach, is free.
        """
        runs: list[tuple[int, int, int, int]] = []
        extents = max(n >> self._shift, 1)
        for _ in range(_TRIM_WINDOWS):
            if extents <= 0 or self.idle_rows == 0 or len(runs) == _TRIM_RUNS:
                break
            if not 0 < self._trim_hand <= self._frontier:
                self._trim_hand = self._frontier
            start = max(self._trim_hand - _WINDOW, 0)
            idle = (
                np.flatnonzero(self._touched[start : self._trim_hand] & (self._used[start : self._trim_hand] == 0))
                + start
            )
            self._trim_hand = start
            if len(idle) == 0:
                continue
            chosen = idle[-extents:]
            firsts, lasts = (ends[len(runs) - _TRIM_RUNS :] for ends in _runs_of(chosen))
            chosen = chosen[np.searchsorted(chosen, firsts[0]) :]
            if len(chosen) < len(idle):
                self._trim_hand = firsts[0]
            self._touched[chosen] = False
            self.idle_rows -= len(chosen) << self._shift
            extents -= len(chosen)
            runs.extend(map(self._with_free_around, firsts, lasts))
        return runs

    def _with_free_around(self, first: int, last: int) -> tuple[int, int, int, int]:
        reach, shift, stop = _PAGE_ROWS >> self._shift, self._shift, last + 1
        below = np.flatnonzero(self._used[max(first - reach, 0) : first])
        above = np.flatnonzero(self._used[stop : stop + reach])
        low = max(first - reach, 0) + int(below[-1]) + 1 if len(below) else max(first - reach, 0)
        high = stop + int(above[0]) if len(above) else min(stop + reach, len(self._used))
        return first << shift, stop << shift, low << shift, high << shift


def _runs_of(ascending: NDArray[np.intp]) -> tuple[list[int], list[int]]:
    """Return the first and the last number of each run of consecutive numbers."""
    breaks = np.flatnonzero(ascending[1:] - ascending[:-1] != 1)
    firsts = ascending[np.concatenate(([0], breaks + 1))]
    lasts = ascending[np.concatenate((breaks, [len(ascending) - 1]))]
    return firsts.tolist(), lasts.tolist()
