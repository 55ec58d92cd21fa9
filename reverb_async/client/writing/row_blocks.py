"""Rows on their way to the server: each an item of its own, inserted by `Client.insert` or `insert_batch`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.writing.outgoing import MAX_MESSAGE_BYTES, Block, Outgoing, RowGroup, SentLayout, stack_rows
from reverb_async.core.leaf import Leaf
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows
from reverb_async.errors import RateLimiterTimeout, ReplayError
from reverb_async.protocol.inserting import Column, Items

MAX_ROWS = 4096
"""Rows in one block."""


class Call:
    """A call that waits until each of its rows is in, or will not be.

    Attributes:
        future: done when all rows are settled.
        admitted: ranges (start, stop) of rows that are in.
        error: of the first row that is not.
    """

    __slots__ = ("admitted", "error", "future", "is_withdrawn", "unsettled")

    def __init__(self, count: int) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unsettled = count
        self.admitted: list[tuple[int, int]] = []
        self.error: ReplayError | None = None
        self.is_withdrawn = False

    def settled(self, start: int, stop: int, error: ReplayError | None) -> None:
        """Note what became of the rows ``[start:stop]``."""
        if error is None:
            self.admitted.append((start, stop))
        elif self.error is None:
            self.error = error
        self.unsettled -= stop - start
        if not self.unsettled and not self.future.done():
            self.future.set_result(None)


class RowLayout:
    """How rows of one kind are sent; replaced by another one when a column's extents begin to differ.

    Attributes:
        sent: one view of one group, every leaf without a time axis.
    """

    __slots__ = ("group", "sent", "specs")

    def __init__(self, sent: SentLayout, group: RowGroup) -> None:
        self.sent = sent
        self.group = group
        self.specs = group.specs

    def send(
        self, out: Outgoing, seq: int, tables: tuple[str, ...], timeout: float | None, keys: NDArray[np.uint64],
        priorities: NDArray[np.float64], columns: list[Column],
    ) -> None:  # fmt: skip
        """Add rows to a message: keys and priorities ``[tables, n]``, columns of n rows."""
        self.sent.declare(out)
        segments = self.group.send(out, keys.shape[1], columns)
        out.add_items(Items(seq, self.sent.id, tables, keys, priorities, [segments], None, timeout))


class SingleRows(Block):
    """Rows of calls that were made in the same turn; each can be withdrawn alone."""

    def __init__(
        self, layout: RowLayout, tables: tuple[str, ...], timeout: float | None,
        done: Callable[[Block], None], again: Callable[[SingleRows, int], None],
    ) -> None:  # fmt: skip
        self.layout = layout
        self.tables = tables
        self.calls: list[Call] = []
        self.rows: list[Sequence[Leaf]] = []
        self.keys: list[Sequence[int]] = []
        self.priorities: list[Sequence[float]] = []
        self.nbytes = 0
        self._deadline = Deadline(timeout)
        self._unsettled = 0
        self._done = done
        self._again = again

    def __len__(self) -> int:
        return len(self.calls)

    @property
    def is_full(self) -> bool:
        """Whether the next row needs another block."""
        return self.sealed or len(self.calls) >= MAX_ROWS or self.nbytes >= MAX_MESSAGE_BYTES

    def add(self, call: Call, row: Sequence[Leaf], keys: Sequence[int], priorities: Sequence[float]) -> None:
        """Add a row; one key and priority per table."""
        self.calls.append(call)
        self.rows.append(row)
        self.keys.append(keys)
        self.priorities.append(priorities)
        self.nbytes += sum(leaf.nbytes if isinstance(leaf, np.ndarray) else len(leaf) for leaf in row)
        self._unsettled += 1

    def remove(self, call: Call) -> None:
        """Take out a row that was not sent."""
        assert not self.sealed
        at = self.calls.index(call)
        for column in (self.calls, self.rows, self.keys, self.priorities):
            del column[at]
        self._unsettled -= 1

    def write(self, out: Outgoing, seq: int, start: int, stop: int) -> None:
        """Add rows to a message."""
        rows = self.rows[start:stop]
        columns = [
            stack_rows(values, spec) for values, spec in zip(zip(*rows, strict=True), self.layout.specs, strict=True)
        ]
        keys = np.ascontiguousarray(np.array(self.keys[start:stop], np.uint64).T)
        priorities = np.ascontiguousarray(np.array(self.priorities[start:stop], np.float64).T)
        self.layout.send(out, seq, self.tables, self._deadline.left(), keys, priorities, columns)

    def settled(self, start: int, stop: int, error: ReplayError | None) -> None:
        """Tell the calls; rows that were only refused because others of the block were withdrawn go out again."""
        withdrawing = isinstance(error, RateLimiterTimeout) and any(call.is_withdrawn for call in self.calls)
        self._unsettled -= stop - start
        if not self._unsettled:
            self._done(self)
        for at in range(start, stop):
            if withdrawing and not self.calls[at].is_withdrawn:
                self._again(self, at)
            else:
                self.calls[at].settled(0, 1, error)


class BatchRows(Block):
    """Some rows of one `insert_batch` call."""

    def __init__(
        self, layout: RowLayout, tables: tuple[str, ...], timeout: float | None, call: Call, first: int,
        keys: NDArray[np.uint64], priorities: NDArray[np.float64], columns: list[Column], done: Callable[[Block], None],
    ) -> None:  # fmt: skip
        self._layout = layout
        self._tables = tables
        self._deadline = Deadline(timeout)
        self._call = call
        self._first = first
        self._keys = keys
        self._priorities = priorities
        self._columns = columns
        self._unsettled = keys.shape[1]
        self._done = done

    def __len__(self) -> int:
        return int(self._keys.shape[1])

    def write(self, out: Outgoing, seq: int, start: int, stop: int) -> None:
        """Add rows to a message."""
        self._layout.send(
            out,
            seq,
            self._tables,
            self._deadline.left(),
            np.ascontiguousarray(self._keys[:, start:stop]),
            np.ascontiguousarray(self._priorities[:, start:stop]),
            [part_of(column, start, stop) for column in self._columns],
        )

    def settled(self, start: int, stop: int, error: ReplayError | None) -> None:
        """Tell the call."""
        self._unsettled -= stop - start
        if not self._unsettled:
            self._done(self)
        self._call.settled(self._first + start, self._first + stop, error)


class Deadline:
    """What is left of a timeout."""

    __slots__ = ("_at",)

    def __init__(self, timeout: float | None) -> None:
        self._at = None if timeout is None else asyncio.get_running_loop().time() + timeout

    def left(self) -> float | None:
        """Return the seconds left, at least 0; None if there is no end."""
        return None if self._at is None else max(0.0, self._at - asyncio.get_running_loop().time())


def part_of(column: Column, start: int, stop: int) -> Column:
    """Return some rows of a column; a view."""
    if not isinstance(column, VariableRows):
        return column[start:stop]
    offsets = column.offsets
    return VariableRows(
        column.data[int(offsets[start]) : int(offsets[stop])], column.sizes[start:stop], column.shapes[start:stop]
    )


def as_rows_of(column: Column, spec: ArraySpec) -> Column:
    """Return a column as rows of `spec`, which it fits: variable ones, or an array ``[n, *row_shape]``."""
    count = len(column)
    if isinstance(column, VariableRows):
        return column if spec.is_variable else column.data.view(spec.dtype).reshape(count, *spec.fixed_shape)
    if not spec.is_variable:
        return column
    size = column.nbytes // count
    shapes: NDArray[np.int32] = np.tile(np.array(column.shape[1:], np.int32), (count, 1))
    return VariableRows(_bytes(column), np.full(count, size, np.int64), shapes)


def ragged_rows(values: NDArray[Any], lengths: NDArray[np.int64]) -> VariableRows:
    """Return the elements of a `Ragged` as rows, values copied."""
    row_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    shapes = np.empty((len(lengths), values.ndim), np.int32)
    shapes[:, 0] = lengths
    shapes[:, 1:] = values.shape[1:]
    return VariableRows(_bytes(np.array(values, order="C")), lengths * row_bytes, shapes)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
