"""Rows of one kind, shared by all tables: a struct of arrays whose rows are counted one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.cut.store_cut import RowWatch, StoreCut
from reverb_async.core.runs import as_run
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage.account import Account
from reverb_async.core.storage.backing import Backing, PlatformBacking, aligned_empty
from reverb_async.core.storage.columns import Column, Columns
from reverb_async.core.storage.extents import Extents
from reverb_async.core.storage.holds import REFERENCES, Holds, Rows
from reverb_async.core.storage.usage import StoreUsage
from reverb_async.core.variable import VariableRows

Handles = NDArray[np.uint64]

SLACK_BYTES = 4 << 20
_TRIM_ROWS = 1 << 16
_TRIM_BYTES = 32 << 20
"""Giving back this much takes the system a few milliseconds."""


class Blobs(Protocol):
    """What a store needs of the place where values of variable size are kept."""

    def put(self, rows: VariableRows) -> Handles:
        """Store rows; each has one count."""

    def make_room(self, nbytes: int) -> Handles:
        """Store one row of bytes whose content the caller writes."""

    def get(self, handles: Handles, rank: int) -> VariableRows:
        """Copy rows out."""

    def views(self, handles: Handles) -> list[memoryview]:
        """Return the bytes of each where they lie."""

    def release(self, handles: Handles) -> None:
        """Take a count from each."""

    def sizes(self, handles: Handles) -> NDArray[np.int64]:
        """Return the bytes of each."""

    @property
    def largest_bytes(self) -> int:
        """No value is larger than this."""


class RowStore:
    """A column group: one array per column, one row per step, references and pins per row.

    A row is leased (pinned for the caller), written, retained by the items that show it, and unpinned. It is free again
    when nothing refers to it and nothing pins it; until then it is neither reused nor moved.
    Rows are passed as int64 arrays; a row that stands there twice counts twice.

    Items release their rows before the last reference to a store goes; then its memory goes too.

    Args:
        specs: one per column.
        blobs: keeps the values of variable columns; needed if there are any.
        reserve_bytes: address space to reserve, and thereby the limit; by default twice the machine's memory.
        backing: the kind of memory.
        slack_bytes: free memory kept for reuse at least.
        account: where rows in use are counted.

    Attributes:
        specs: one per column.
        row_bytes: bytes of a row in this store; 8 for each variable column.
        width: what a row takes in all, its counts included.
        is_variable: whether there are any.
        columns: ``[capacity, *row_shape]`` each; for variable columns uint64 handles ``[capacity]``, 0 for no value.
            Not to be kept: where memory is not sparse they are replaced as the store grows.
        reserved_rows: rows that cursors keep for their next calls.
        watch: knows which rows are on disk, if checkpoints are made.
    """

    def __init__(
        self,
        specs: Sequence[ArraySpec],
        blobs: Blobs | None = None,
        *,
        reserve_bytes: int | None = None,
        backing: type[Backing] = PlatformBacking,
        slack_bytes: int = SLACK_BYTES,
        account: Account | None = None,
    ) -> None:
        self.account = account or Account()
        self.specs = tuple(specs)
        self._variable = [column for column, spec in enumerate(self.specs) if spec.is_variable]
        assert blobs is not None or not self._variable, "variable columns need a blob store"
        self._blobs = blobs
        self._memory = memory = Columns(self.specs, reserve_bytes, backing)
        self._extents = Extents(memory.extent, memory.capacity)
        self._holds = Holds(memory.counts)
        self._slack_rows = slack_bytes // memory.width
        self._trim_rows = max(1, min(_TRIM_ROWS, _TRIM_BYTES // memory.width))
        self.row_bytes = memory.row_bytes
        self.width = memory.width
        self.is_variable = bool(self._variable)
        self.columns = memory.arrays
        self.reserved_rows = 0
        self.watch: RowWatch | None = None

    @property
    def capacity(self) -> int:
        """Rows there is room for now; only private memory grows."""
        return self._memory.capacity

    @property
    def reached_rows(self) -> int:
        """No row at or above this one was ever in use."""
        return self._extents.reached_rows

    @property
    def backing(self) -> Backing:
        """The memory the columns lie in."""
        return self._memory.backing

    @property
    def offsets(self) -> list[int]:
        """Where each column begins in the backing."""
        return self._memory.offsets

    def lease(self, n: int) -> Rows:
        """Take `n` free rows, each with a pin; int64 ``[n]``, ascending within extents. A stream uses a `RowCursor`.

        Raises:
            ResourceExhausted: the store is full.
        """
        if n <= 0:
            return np.empty(0, np.int64)
        rows = self.claim(n)
        self.account.used += n * self.width
        return rows

    def claim(self, n: int, *, whole: bool = False) -> Rows:
        """Take `n` > 0 free rows, or `n` and the rest of their extent, each with a pin; whoever calls counts them."""
        needed = self._extents.used_rows + n
        if needed > self._memory.capacity:
            self._grow(needed)
        rows = self._extents.claim(n, self._holds.counts, whole=whole)
        self._holds.stage(rows)
        if self.watch is not None and self.watch.cut is not None:
            self.watch.cut.note_claimed(rows)
        return rows

    def _grow(self, needed: int) -> None:
        self._memory.grow(needed, self._extents.reached_rows)
        self._extents.grow(self._memory.capacity)
        self._holds.counts = self._memory.counts
        self.columns = self._memory.arrays
        if self.watch is not None:
            self.watch.grow(self._memory.capacity)

    def write(self, column: int, rows: Rows, values: NDArray[np.generic] | VariableRows) -> None:
        """Fill one column of rows the caller leased; `values` are ``[len(rows), *row_shape]`` of the column's dtype.

        Raises:
            ResourceExhausted: there is no room for values of variable size; nothing was written.
        """
        target = self.columns[column]
        at = as_run(rows) or rows
        if isinstance(values, VariableRows):
            assert self._blobs is not None
            assert len(values.sizes) == len(rows)
            handles = self._blobs.put(values)
            self._drop_blobs(column, at)
            target[at] = handles
        else:
            assert values.shape == (len(rows), *target.shape[1:])
            target[at] = values

    def make_room(self, column: int, row: Rows, nbytes: int) -> None:
        """Give a leased row bytes of a variable column, to be written through `views` before anybody reads them.

        Raises:
            InvalidArgument: they are more than 1 GiB.
            ResourceExhausted: there is no room; nothing was written.
        """
        assert self._blobs is not None
        handles = self._blobs.make_room(nbytes)
        self._drop_blobs(column, row)
        self.columns[column][row] = handles

    def write_all(self, rows: Rows, values: Sequence[NDArray[np.generic]]) -> None:
        """Fill all columns of rows the caller leased, none of them variable; see `write`."""
        at = as_run(rows) or rows
        for target, column in zip(self.columns, values, strict=True):
            assert column.shape == (len(rows), *target.shape[1:])
            target[at] = column

    def retain(self, rows: Rows) -> None:
        """Add a reference to each of `rows`."""
        self._holds.retain(rows)

    def settle(self, rows: Rows) -> None:
        """Turn the lease of `rows`, of which nobody else knows yet, into a reference to each."""
        self._holds.settle(rows)

    def release(self, rows: Rows) -> None:
        """Take a reference from each of `rows`; those without any hold left are free."""
        if self.watch is not None and self.watch.cut is not None:
            self.watch.cut.keep(rows)
        freed = self._holds.release(rows)
        if freed is not None:
            self._free(freed)

    def pin(self, rows: Rows) -> None:
        """Keep `rows` from being reused, written or moved until `unpin`."""
        self._holds.pin(rows)

    def unpin(self, rows: Rows) -> None:
        """Take a pin from each of `rows`; those without any hold left are free."""
        freed = self._holds.unpin(rows)
        if freed is not None:
            self._free(freed)

    def is_referenced(self, rows: slice) -> NDArray[np.bool_]:
        """Return which of `rows` items refer to."""
        return (self._holds.counts[rows] & REFERENCES) > 0

    def _free(self, rows: slice | Rows) -> None:
        if self.watch is not None:
            self.watch.segments[rows] = 0
            if self.watch.logged is not None:
                self.watch.logged[rows] = 0
        for column in self._variable:
            self._drop_blobs(column, rows)
        extents = self._extents
        if isinstance(rows, slice):
            n = rows.stop - rows.start
            extents.free_run(rows.start, n)
        else:
            n = len(rows)
            extents.free(rows)
        self.account.give_back(n * self.width)
        slack = max(extents.used_rows >> 3, self._slack_rows)
        step = (self._slack_rows >> 2) + extents.size
        if extents.idle_rows > slack + step:  # in steps: a system call for a few pages costs as much as one for many
            self._give_back(max(2 * n, 2 * step), slack)

    def _drop_blobs(self, column: int, rows: slice | Rows) -> None:
        handles = self.columns[column][rows]
        if not handles.any():
            return
        assert self._blobs is not None
        held = handles[handles != 0]
        self.columns[column][rows] = 0
        self._blobs.release(held)

    def cut(self) -> StoreCut:
        """Return which rows items refer to now, to be read in slices; the last cut must be finished."""
        assert self.watch is not None, "Storage.watch() was not called"
        return StoreCut(self, self.watch)

    def make_room_for(self, num_rows: int) -> None:
        """Let an empty store have room for the rows below `num_rows`, which `write` may fill before `adopt`.

        Raises:
            ResourceExhausted: it can never have.
        """
        if num_rows > self._memory.capacity:
            self._grow(num_rows)

    def adopt(self, references: NDArray[np.int64]) -> None:
        """Let the first rows have these references, and those without any be free; int64 ``[n]``; for empty stores."""
        self._holds.counts[: len(references)] = references
        self._extents.adopt(references)
        self.account.used += self._extents.used_rows * self.width

    def forget(self, rows: Rows) -> None:
        """Let go of the values of variable size in rows that nobody holds."""
        for column in self._variable:
            self._drop_blobs(column, rows)

    def trim(self, max_rows: int = _TRIM_ROWS) -> bool:
        """Give memory of free rows back, all but a slack of 1/8 of the rows in use (4 MB at least while any is).

        Cost is bounded: a call handles at most `max_rows`, 64k, or 32 MB. Freeing rows does the same little by little.

        Returns:
            Whether there is more to do.
        """
        return self._give_back(max_rows, self._slack())

    @property
    def surplus_rows(self) -> int:
        """Free rows whose memory `trim` would give back."""
        return max(self._extents.idle_rows - self._slack(), 0)

    def _slack(self) -> int:
        used = self._extents.used_rows - self.reserved_rows
        return max(used >> 3, self._slack_rows) if used else 0

    def _give_back(self, max_rows: int, slack: int) -> bool:
        surplus = self._extents.idle_rows - slack
        if surplus <= 0:
            return False
        for run in self._extents.surplus(min(surplus, max_rows, self._trim_rows)):
            self._memory.give_back(*run)
        return self._extents.idle_rows > slack

    def gather(self, column: int, rows: Rows | slice, out: Column | None = None) -> Column:
        """Copy `rows` of a column of fixed size into `out`, by default a new 64-byte aligned array.

        Who gathers several columns asks for `as_run` once, and passes the slice if it is one.

        Returns:
            The copies, ``[len(rows), *row_shape]``.

        Safe in a thread while the caller's pins hold the rows.
        """
        source = self.columns[column]
        place = rows if isinstance(rows, slice) else as_run(rows) or rows
        if isinstance(place, slice):
            taken = source[place]
            if out is None:
                out = aligned_empty(taken.shape, source.dtype)
            out[...] = taken
        else:
            if out is None:
                out = aligned_empty((len(place), *source.shape[1:]), source.dtype)
            source.take(place, 0, out, "clip")  # "raise" would copy through a buffer
        return out

    def gather_variable(self, column: int, rows: Rows) -> VariableRows:
        """Copy `rows` of a variable column. Safe in a thread while the caller's pins hold the rows."""
        assert self._blobs is not None
        handles: Handles = self.columns[column][as_run(rows) or rows]  # type: ignore[assignment]  # variable: uint64
        return self._blobs.get(handles, len(self.specs[column].shape))

    def views(self, column: int, rows: Rows) -> list[memoryview]:
        """Return the bytes of `rows` of a variable column where they lie; valid while the caller holds the rows."""
        assert self._blobs is not None
        handles: Handles = self.columns[column][as_run(rows) or rows]  # type: ignore[assignment]  # variable: uint64
        return self._blobs.views(handles)

    def bytes_of(self, rows: Rows) -> NDArray[np.int64]:
        """Return the bytes of the values in each row, those of variable columns included; int64 ``[n]``."""
        nbytes = np.full(len(rows), self.row_bytes)
        for column in self._variable:
            assert self._blobs is not None
            nbytes += self._blobs.sizes(self.columns[column][rows]) - 8  # type: ignore[arg-type]  # variable: uint64
        return nbytes

    @property
    def is_empty(self) -> bool:
        """Whether no row is in use."""
        return self._extents.used_rows == self.reserved_rows

    @property
    def largest_bytes(self) -> int:
        """No row has more bytes than this, as `bytes_of` counts them."""
        largest = 0 if self._blobs is None else self._blobs.largest_bytes
        return self.row_bytes + len(self._variable) * (largest - 8)

    def usage(self) -> StoreUsage:
        """Return how rows and memory are used. Rows a cursor keeps for later are free."""
        used = self._extents.used_rows - self.reserved_rows
        staged = self._holds.staged_rows - self.reserved_rows
        return StoreUsage(
            live_rows=used - staged,
            staged_rows=staged,
            pinned_rows=self._holds.pinned_rows - self.reserved_rows,
            free_rows=self.capacity - used,
            used_bytes=used * self.row_bytes,
            resident_bytes=self.backing.resident_bytes(),
        )
