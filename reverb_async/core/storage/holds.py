"""Who holds each row: references of items and pins, counted together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.runs import as_run

Rows = NDArray[np.int64]

_PIN_BIT = 36
PIN = 1 << _PIN_BIT
"""One pin. References are counted in the bits below, pins in the 27 bits above: each reference or pin of a row costs
its holder at least eight bytes of memory, so neither count can run over."""
REFERENCES = PIN - 1


class Holds:
    """References and pins per row. A row with neither is free.

    Rows are passed as int64 arrays in any order; a row that stands there twice is counted twice. Consecutive rows and
    single rows take shorter ways. `release` and `unpin` return the rows they freed, each once: as a slice, as an array,
    or None.

    Attributes:
        counts: int64 ``[capacity]``, ``references + pins * PIN``; zero for free rows.
        staged_rows: rows with pins only.
        pinned_rows: rows with pins.
    """

    def __init__(self, counts: NDArray[np.int64]) -> None:
        self.counts = counts
        self.staged_rows = 0
        self.pinned_rows = 0

    def stage(self, rows: Rows) -> None:
        """Pin free rows, which are distinct."""
        self.counts[as_run(rows) or rows] = PIN
        self.staged_rows += len(rows)
        self.pinned_rows += len(rows)

    def settle(self, rows: Rows) -> None:
        """Turn the pin of each row that `stage` pinned, and nobody else holds, into a reference."""
        self.counts[as_run(rows) or rows] = 1
        self.staged_rows -= len(rows)
        self.pinned_rows -= len(rows)

    def retain(self, rows: Rows) -> None:
        """Add a reference to each of `rows`, none of which is free."""
        counts, n = self.counts, len(rows)
        run = as_run(rows)
        if run is None:
            before = counts.take(rows)
            assert _count(before) == n, "a reference to a free row"
            np.add.at(counts, rows, 1)
            fresh = rows[before & REFERENCES == 0]
            self.staged_rows -= _distinct(counts.take(fresh) & REFERENCES)
        elif n == 1:
            held = counts.item(run.start)
            assert held, "a reference to a free row"
            counts[run.start] = held + 1
            self.staged_rows -= not held & REFERENCES
        else:
            window = counts[run]
            assert _count(window) == n, "a reference to a free row"
            self.staged_rows -= n - _count(window & REFERENCES)
            window += 1

    def release(self, rows: Rows) -> slice | Rows | None:
        """Take a reference from each of `rows`; return those without any hold now."""
        counts, n = self.counts, len(rows)
        run = as_run(rows)
        if run is None:
            return self._release_scattered(rows)
        if n == 1:
            held = counts.item(run.start) - 1
            assert (held + 1) & REFERENCES, "a row released more often than retained"
            counts[run.start] = held
            self.staged_rows += bool(held) and not held & REFERENCES
            return None if held else run
        window = counts[run]
        assert _count(window & REFERENCES) == n, "a row released more often than retained"
        window -= 1
        unreferenced = n - _count(window & REFERENCES)
        if unreferenced == 0:
            return None
        freed = n - _count(window)
        self.staged_rows += unreferenced - freed
        return _free_in(window, run, freed)

    def _release_scattered(self, rows: Rows) -> Rows | None:
        counts = self.counts
        before = counts.take(rows)
        np.subtract.at(counts, rows, 1)
        after = counts.take(rows)
        assert (after & REFERENCES <= before & REFERENCES).all(), "a row released more often than retained"
        last = after & REFERENCES == 0
        unreferenced = _distinct(before[last] & REFERENCES)
        if unreferenced == 0:
            return None
        freed = self._once(rows[after == 0])
        self.staged_rows += unreferenced - len(freed)
        return freed if len(freed) else None

    def pin(self, rows: Rows) -> None:
        """Add a pin to each of `rows`, none of which is free."""
        counts, n = self.counts, len(rows)
        run = as_run(rows)
        if run is None:
            before = counts.take(rows)
            assert _count(before) == n, "a pin on a free row"
            np.add.at(counts, rows, PIN)
            fresh = rows[before < PIN]
            self.pinned_rows += _distinct(counts.take(fresh) >> _PIN_BIT)
        elif n == 1:
            held = counts.item(run.start)
            assert held, "a pin on a free row"
            counts[run.start] = held + PIN
            self.pinned_rows += held < PIN
        else:
            window = counts[run]
            assert _count(window) == n, "a pin on a free row"
            self.pinned_rows += _count(window < PIN)
            window += PIN

    def unpin(self, rows: Rows) -> slice | Rows | None:
        """Take a pin from each of `rows`; return those without any hold now."""
        counts, n = self.counts, len(rows)
        run = as_run(rows)
        if run is None:
            return self._unpin_scattered(rows)
        if n == 1:
            held = counts.item(run.start) - PIN
            assert held >= 0, "a row unpinned more often than pinned"
            counts[run.start] = held
            self.pinned_rows -= held < PIN
            self.staged_rows -= held == 0
            return None if held else run
        window = counts[run]
        assert _count(window >= PIN) == n, "a row unpinned more often than pinned"
        window -= PIN
        self.pinned_rows -= _count(window < PIN)
        freed = n - _count(window)
        self.staged_rows -= freed
        return _free_in(window, run, freed)

    def _unpin_scattered(self, rows: Rows) -> Rows | None:
        counts = self.counts
        before = counts.take(rows)
        np.subtract.at(counts, rows, PIN)
        after = counts.take(rows)
        assert (after >= 0).all(), "a row unpinned more often than pinned"
        self.pinned_rows -= _distinct(before[after < PIN] >> _PIN_BIT)
        freed = self._once(rows[after == 0])
        self.staged_rows -= len(freed)
        return freed if len(freed) else None

    def _once(self, rows: Rows) -> Rows:
        """Return free `rows` without repeats; without sorting, which costs a hundred times as much for 64k rows."""
        if len(rows) < 2:
            return rows
        order = np.arange(len(rows))
        self.counts[rows] = order  # of equal rows one wins
        won = self.counts.take(rows) == order
        self.counts[rows] = 0
        distinct: Rows = rows[won]
        return distinct


def _count(array: NDArray[np.generic]) -> int:
    return int(np.count_nonzero(array))


def _free_in(window: NDArray[np.int64], run: slice, freed: int) -> slice | Rows | None:
    if freed == 0:
        return None
    if freed == len(window):
        return run
    rows: Rows = np.flatnonzero(window == 0)
    return rows + np.int64(run.start)


def _distinct(multiplicities: NDArray[np.int64]) -> int:
    """Return how many distinct rows there are, given for each occurrence of a row how often that row occurs."""
    return round(float((1.0 / multiplicities).sum())) if len(multiplicities) else 0
