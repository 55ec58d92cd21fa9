"""Which rows of a store were live at one moment, read in slices, and where they are on disk."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.cut.image import RowBlock
from reverb_async.core.runs import Rows, as_run
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage.backing import sparse_zeros

if TYPE_CHECKING:
    from reverb_async.core.storage.row_store import RowStore

BLOCK_ROWS = 16_384
"""To free as many, with values of variable size, takes a few milliseconds."""
MAX_BLOCK_ROWS = 65_536

_FRESH, _KEPT, _PINNED = 1, 2, 4
"""Marks of rows a cut has not passed: claimed since it was made; pinned by it because items let go of them. Of those it
has passed: pinned because they are being written."""


class RowWatch:
    """Where the rows of a store are on disk.

    Attributes:
        segments: int32 ``[capacity]``, the segment that holds each row; 0: none.
        marks: uint8 ``[capacity]``, what the cut knows of each.
        cut: the cut that still has to pass some rows, or None.
        logged: int32 ``[capacity]``, the file of the log that has each row, None without a log; see `take_unlogged`.
    """

    __slots__ = ("cut", "logged", "marks", "segments")

    def __init__(self, capacity: int) -> None:
        self.segments, self.marks = _arrays(capacity)
        self.cut: StoreCut | None = None
        self.logged: NDArray[np.int32] | None = None

    def take_unlogged(self, rows: Rows, number: int) -> Rows:
        """Return those of distinct `rows` that file `number` of a log does not have yet, and note that it has them."""
        if self.logged is None:
            self.logged = _numbers(len(self.segments))
        at = as_run(rows) or rows
        is_fresh = self.logged[at] != number
        if np.count_nonzero(is_fresh) == len(rows):
            self.logged[at] = number
            return rows
        fresh: Rows = rows[is_fresh]
        self.logged[fresh] = number
        return fresh

    def grow(self, capacity: int) -> None:
        """Follow the store."""
        if (logged := self.logged) is not None:
            self.logged = _numbers(capacity)
            self.logged[: len(logged)] = logged
        old = self.segments, self.marks
        self.segments, self.marks = _arrays(capacity)
        self.segments[: len(old[0])], self.marks[: len(old[1])] = old


def _arrays(capacity: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    # A store has room for far more rows than it has, and a server for many stores.
    return _numbers(capacity), sparse_zeros((capacity,), np.dtype(np.uint8))


def _numbers(capacity: int) -> NDArray[np.int32]:
    return sparse_zeros((capacity,), np.dtype(np.int32))


class StoreCut:
    """The rows of one store that items referred to when `cut` was called.

    Rows that lose a reference before the cut has passed them are pinned until then; rows claimed since are not. So what
    the cut keeps from being reused is bounded by what was live.

    A step handles at most 64k rows. Whoever writes asks for `next_rows`, copies `RowBlock.unsaved` in a thread
    (`store.gather`, `store.gather_variable`), in as many parts as it likes, and tells `done` of each.

    Attributes:
        store: to gather from.
        rewrite: segments whose live rows are to be written again; set it before the first block.
    """

    def __init__(self, store: RowStore, watch: RowWatch) -> None:
        assert watch.cut is None, "the last cut is not finished"
        self.store = store
        self.rewrite: Collection[int] = ()
        self._watch = watch
        self._end = store.reached_rows
        self._position = 0
        self._finished = 0
        self._segments: set[int] = set()
        watch.cut = self

    @property
    def specs(self) -> tuple[ArraySpec, ...]:
        """What the store's columns hold."""
        return self.store.specs

    @property
    def num_rows(self) -> int:
        """All rows are below this number."""
        return self._end

    def keep(self, rows: Rows) -> None:
        """Pin rows that are about to lose a reference, unless they were passed, are new, or are pinned already."""
        rows = rows[(rows >= self._position) & (rows < self._end)]
        if not len(rows):
            return
        marks = self._watch.marks
        rows = rows[marks.take(rows) == 0]
        if len(rows) > 1:
            rows = np.unique(rows)
        if len(rows):
            marks[rows] = _KEPT
            self.store.pin(rows)

    def note_claimed(self, rows: Rows) -> None:
        """Rows that were free are in use again, which is of no interest."""
        self._watch.marks[rows[(rows >= self._position) & (rows < self._end)]] = _FRESH

    def next_rows(self, max_rows: int = BLOCK_ROWS) -> RowBlock | None:
        """Return the live ones among the next rows, maybe none; None at the end.

        Those on no segment are pinned until `done`. A row that was only staged at the time of the cut may come too.
        """
        start = self._position
        if start >= self._end:
            return None
        stop = min(start + min(max_rows, MAX_BLOCK_ROWS), self._end)
        marks = self._watch.marks[start:stop]
        is_kept = marks == _KEPT
        rows = np.flatnonzero((self.store.is_referenced(slice(start, stop)) & (marks != _FRESH)) | is_kept) + start
        kept = np.flatnonzero(is_kept) + start
        segments = self._watch.segments[rows]
        if self.rewrite:
            segments[np.isin(segments, list(self.rewrite))] = 0
        block = RowBlock(rows, segments)
        unsaved = block.unsaved
        marks[:] = 0
        if len(unsaved):
            self.store.pin(unsaved)
            self._watch.marks[unsaved] = _PINNED
        self._position = stop
        if len(kept):
            self.store.unpin(kept)
        return block

    def done(self, rows: Rows, segment: int) -> None:
        """Unpin rows that `next_rows` returned, all or some of a block.

        Args:
            rows: int64 ``[n]``, distinct.
            segment: which holds them now, 1 to 2**31 - 1; 0: they were not written.
        """
        watch = self._watch
        assert bool((watch.marks[rows] == _PINNED).all()), "rows that the cut did not pin"
        watch.marks[rows] = 0
        if segment:
            watch.segments[rows] = segment
            self._segments.add(segment)
        self.store.unpin(rows)

    def finish(self, committed: bool, max_rows: int = BLOCK_ROWS) -> bool:
        """Let go of all rows; if the cut is not kept, forget its segments. Nobody may read its rows any more.

        Returns:
            Whether there is more to do: call it again.
        """
        self._position = self._end
        watch, start = self._watch, self._finished
        stop = self._finished = min(start + max_rows, self._end)
        marks = watch.marks[start:stop]
        pinned = np.flatnonzero(marks & (_KEPT | _PINNED)) + start
        marks[:] = 0
        if not committed and self._segments:
            segments = watch.segments[start:stop]
            segments[np.isin(segments, list(self._segments))] = 0
        if len(pinned):
            self.store.unpin(pinned)
        if stop < self._end:
            return True
        if watch.cut is self:
            watch.cut = None
        return False
