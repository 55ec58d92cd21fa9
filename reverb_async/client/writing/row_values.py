"""What rows on their way to the server consist of, and how it is put into messages: as records, or column by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.writing.copies import MAX_COPY_BYTES
from reverb_async.client.writing.outgoing import Outgoing, RowGroup, SentLayout, stack_rows
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows
from reverb_async.protocol.inserting import Column, Items
from reverb_async.protocol.rows import RecordFormat, Records, RowBlock

Tables = tuple[str, ...]

_FIRST_ROWS = 4


class RowLayout:
    """How rows of one kind are sent; replaced by another one when a column's extents begin to differ.

    Attributes:
        sent: one view of one group, every leaf without a time axis.
    """

    __slots__ = ("_formats", "group", "sent", "specs")

    def __init__(self, sent: SentLayout, group: RowGroup) -> None:
        self.sent = sent
        self.group = group
        self.specs = group.specs
        self._formats: dict[int, RecordFormat | None] = {}

    def format(self, num_tables: int) -> RecordFormat | None:
        """Return how rows for so many tables look as records; None if they go as steps and items."""
        if num_tables not in self._formats:
            self._formats[num_tables] = RecordFormat.of(self.specs, num_tables)
        return self._formats[num_tables]

    def send(
        self, out: Outgoing, seq: int, tables: Tables, timeout: float | None, keys: NDArray[np.uint64],
        priorities: NDArray[np.float64], columns: list[Column],
    ) -> None:  # fmt: skip
        """Add rows to a message: keys and priorities ``[tables, n]``, columns of n rows."""
        self.sent.declare(out)
        segments = self.group.send(out, keys.shape[1], columns)
        out.add_items(Items(seq, self.sent.id, tables, keys, priorities, [segments], None, timeout))

    def send_records(self, out: Outgoing, seq: int, tables: Tables, timeout: float | None, records: Records) -> None:
        """Add rows to a message, keys and priorities being in the records."""
        self.sent.declare(out)
        out.add_rows(RowBlock(self.sent.id, seq, len(records), tables, timeout, records.view(np.uint8)))


class RowValues(Protocol):
    """Values of rows, with a key and a priority per table."""

    def write(self, out: Outgoing, seq: int, tables: Tables, timeout: float | None, start: int, stop: int) -> None:
        """Add the rows ``[start:stop]`` to a message."""


class SingleValues(RowValues, Protocol):
    """Values that come row by row. A row taken out of one is only put into another that was made like it."""

    def add(self, row: Sequence[Any], keys: Sequence[int], priorities: Sequence[float]) -> int:
        """Add a row, and return its size in bytes."""

    def row(self, at: int) -> object:
        """Return a row."""

    def put(self, row: Any) -> int:
        """Add a row that another one returned, and return its size in bytes."""

    def remove(self, at: int) -> None:
        """Take out a row."""


def single_values(layout: RowLayout, num_tables: int) -> SingleValues:
    """Return what keeps rows that come one by one."""
    form = layout.format(num_tables)
    return SingleColumns(layout) if form is None else SingleRecords(layout, form)


class SingleRecords:
    """Rows that are copied into records at once."""

    __slots__ = ("_count", "_fields", "_layout", "_records")

    def __init__(self, layout: RowLayout, form: RecordFormat) -> None:
        self._layout = layout
        self._count = 0
        self._use(np.zeros(_FIRST_ROWS, form.dtype))

    def _use(self, records: Records) -> None:
        self._records = records
        self._fields = [records[name] for name in records.dtype.names or ()]

    def _next(self) -> int:
        at = self._count
        if at == len(self._records):
            grown = np.zeros(4 * at, self._records.dtype)
            grown[:at] = self._records
            self._use(grown)
        self._count += 1
        return at

    def add(self, row: Sequence[Any], keys: Sequence[int], priorities: Sequence[float]) -> int:
        """Copy a row, which has the columns' dtypes and shapes, and return its size in bytes."""
        at = self._next()
        for field, value in zip(self._fields, (keys, priorities, *row), strict=True):
            field[at] = value
        return self._records.itemsize

    def row(self, at: int) -> object:
        """Return a record."""
        return self._records[at : at + 1]

    def put(self, row: Records) -> int:
        """Copy a record, and return its size in bytes."""
        at = self._next()
        self._records[at : at + 1] = row
        return self._records.itemsize

    def remove(self, at: int) -> None:
        """Take out a row."""
        self._records[at : self._count - 1] = self._records[at + 1 : self._count]
        self._count -= 1

    def write(self, out: Outgoing, seq: int, tables: Tables, timeout: float | None, start: int, stop: int) -> None:
        """Add rows to a message; none may be added afterwards."""
        self._layout.send_records(out, seq, tables, timeout, self._records[start:stop])


class SingleColumns:
    """Rows whose columns are put together when they are sent; their values must not change until then."""

    __slots__ = ("_layout", "_rows")

    def __init__(self, layout: RowLayout) -> None:
        self._layout = layout
        self._rows: list[tuple[Sequence[Any], Sequence[int], Sequence[float]]] = []

    def add(self, row: Sequence[Any], keys: Sequence[int], priorities: Sequence[float]) -> int:
        """Keep a row, and return its size in bytes."""
        return self.put((row, keys, priorities))

    def row(self, at: int) -> object:
        """Return a row."""
        return self._rows[at]

    def put(self, row: tuple[Sequence[Any], Sequence[int], Sequence[float]]) -> int:
        """Keep a row, and return its size in bytes."""
        self._rows.append(row)
        return sum(leaf.nbytes if isinstance(leaf, np.ndarray) else len(leaf) for leaf in row[0])

    def remove(self, at: int) -> None:
        """Take out a row."""
        del self._rows[at]

    def write(self, out: Outgoing, seq: int, tables: Tables, timeout: float | None, start: int, stop: int) -> None:
        """Add rows to a message."""
        rows, keys, priorities = zip(*self._rows[start:stop], strict=True)
        columns = [
            stack_rows(values, spec) for values, spec in zip(zip(*rows, strict=True), self._layout.specs, strict=True)
        ]
        keys_by_table = np.ascontiguousarray(np.array(keys, np.uint64).T)
        priorities_by_table = np.ascontiguousarray(np.array(priorities, np.float64).T)
        self._layout.send(out, seq, tables, timeout, keys_by_table, priorities_by_table, columns)


class BatchRecords:
    """A batch's rows as records: made at once or, if they are many, when they are sent.

    Args:
        layout: theirs.
        form: of the records.
        keys: uint64 ``[tables, n]``.
        priorities: float64 ``[tables, n]``.
        columns: ``[n, *row_shape]`` each, in any memory layout; with more than 4 MB of rows, they must not change.
    """

    def __init__(
        self, layout: RowLayout, form: RecordFormat, keys: NDArray[np.uint64], priorities: NDArray[np.float64],
        columns: Sequence[Column],
    ) -> None:  # fmt: skip
        self._layout = layout
        self._form = form
        self._parts = (keys.T, priorities.T, *columns)
        count = keys.shape[1]
        self.nbytes = count * form.dtype.itemsize
        """Size of all rows."""
        self._records = self._make(0, count) if self.nbytes <= MAX_COPY_BYTES else None

    def _make(self, start: int, stop: int) -> Records:
        records = np.zeros(stop - start, self._form.dtype)
        for name, part in zip(("key", "priority", *self._form.columns), self._parts, strict=True):
            assert isinstance(part, np.ndarray), "records have no columns of varying size"
            records[name] = part[start:stop]
        return records

    def write(self, out: Outgoing, seq: int, tables: Tables, timeout: float | None, start: int, stop: int) -> None:
        """Add rows to a message."""
        records = self._make(start, stop) if self._records is None else self._records[start:stop]
        self._layout.send_records(out, seq, tables, timeout, records)


class BatchValues:
    """A batch's rows as columns of n rows each. Arguments as for `BatchRecords`; the columns do not change any more."""

    def __init__(
        self, layout: RowLayout, keys: NDArray[np.uint64], priorities: NDArray[np.float64], columns: list[Column]
    ) -> None:
        self._layout = layout
        self._keys = keys
        self._priorities = priorities
        self._columns = columns

    @property
    def nbytes(self) -> int:
        """Size of all rows."""
        return sum(one.data.nbytes if isinstance(one, VariableRows) else one.nbytes for one in self._columns)

    def write(self, out: Outgoing, seq: int, tables: Tables, timeout: float | None, start: int, stop: int) -> None:
        """Add rows to a message."""
        self._layout.send(
            out,
            seq,
            tables,
            timeout,
            np.ascontiguousarray(self._keys[:, start:stop]),
            np.ascontiguousarray(self._priorities[:, start:stop]),
            [_part_of(column, start, stop) for column in self._columns],
        )


def _part_of(column: Column, start: int, stop: int) -> Column:
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
    return VariableRows(bytes_of(column), np.full(count, size, np.int64), shapes)


def ragged_rows(values: NDArray[Any], lengths: NDArray[np.int64]) -> VariableRows:
    """Return the elements of a `Ragged` as rows, values copied."""
    row_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
    shapes = np.empty((len(lengths), values.ndim), np.int32)
    shapes[:, 0] = lengths
    shapes[:, 1:] = values.shape[1:]
    return VariableRows(bytes_of(np.array(values, order="C")), lengths * row_bytes, shapes)


def bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of a C-contiguous array, uint8 ``[n]``; a view."""
    return array.reshape(-1).view(np.uint8)
