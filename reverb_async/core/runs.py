"""Sequences of rows, kept as runs of consecutive ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(slots=True)
class Runs:
    """The rows of `n` sequences in one store.

    Nearly every sequence is one run of consecutive rows, so that is what the arrays hold; the few others have an entry
    of their own in `pieces`.

    Attributes:
        first: int64 ``[n]``, the first row of each sequence.
        length: int64 ``[n]``, how many rows each has, all runs together.
        pieces: for sequences of several runs, by position: int64 ``[runs, 2]`` of (first row, length).
    """

    first: Rows
    length: Rows
    pieces: dict[int, Rows] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, rows: Rows) -> Runs:
        """Return `n` sequences of one row each."""
        return cls(rows, np.ones(len(rows), np.int64))

    def __len__(self) -> int:
        return len(self.first)

    def part(self, start: int, stop: int) -> Runs:
        """Return the sequences ``[start:stop]``."""
        pieces = {at - start: runs for at, runs in self.pieces.items() if start <= at < stop} if self.pieces else {}
        return Runs(self.first[start:stop], self.length[start:stop], pieces)

    @classmethod
    def join(cls, parts: Sequence[Runs]) -> Runs:
        """Return the sequences of several, one after the other."""
        pieces: dict[int, Rows] = {}
        start = 0
        for part in parts:
            pieces.update({start + at: runs for at, runs in part.pieces.items()})
            start += len(part)
        return cls(
            np.concatenate([part.first for part in parts]), np.concatenate([part.length for part in parts]), pieces
        )

    def uniform_length(self) -> int:
        """Return the length all sequences share, or -1."""
        length = self.length
        if len(length) == 0:
            return -1
        shortest = int(length[0])
        return shortest if len(length) == 1 or np.count_nonzero(length == shortest) == len(length) else -1

    def rows(self) -> Rows:
        """Return all row numbers, sequence after sequence; int64 ``[sum(length)]``."""
        shared = self.uniform_length()
        if shared >= 0 and not self.pieces:
            if shared == 1:
                return self.first
            return (self.first[:, None] + np.arange(shared)).reshape(-1)
        ends = np.cumsum(self.length)
        total = int(ends[-1]) if len(ends) else 0
        flat = np.repeat(self.first - ends + self.length, self.length) + np.arange(total)
        for at, runs in self.pieces.items():
            stop = int(ends[at])
            flat[stop - int(self.length[at]) : stop] = expand(runs)
        return flat


def expand(runs: Rows) -> Rows:
    """Return the row numbers of ``[runs, 2]`` (first row, length) pairs."""
    return Runs(runs[:, 0], runs[:, 1]).rows()


def find_runs(rows: Rows) -> Rows:
    """Return the runs of consecutive numbers in `rows` as ``[runs, 2]`` of (first row, length)."""
    breaks = np.flatnonzero(rows[1:] - rows[:-1] != 1)
    if not len(breaks):
        return np.array([(rows[0], len(rows))], np.int64)
    starts = np.concatenate(([0], breaks + 1))
    return np.stack([rows[starts], np.diff(starts, append=len(rows))], axis=1)


def join(sequences: list[Rows]) -> Runs:
    """Return the `Runs` of sequences given as row numbers, each int64 ``[length >= 1]``."""
    first = np.array([rows[0] for rows in sequences], np.int64)
    length = np.array([len(rows) for rows in sequences], np.int64)
    pieces = {}
    for at, rows in enumerate(sequences):
        if len(rows) > 1 and len(runs := find_runs(rows)) > 1:
            pieces[at] = runs
    return Runs(first, length, pieces)


def as_run(rows: Rows) -> slice | None:
    """Return `rows` as a slice if they are consecutive and ascending (and at least one)."""
    n = len(rows)
    if n == 0:
        return None
    first: int = rows.item(0)
    if rows.item(n - 1) - first != n - 1:
        return None
    # Comparing bytes costs a third less than comparing numbers and counting.
    if n > 1 and rows.tobytes() != np.arange(first, first + n).tobytes():
        return None
    return slice(first, first + n)
