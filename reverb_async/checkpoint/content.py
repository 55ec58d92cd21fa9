"""What stands in the records of a checkpoint: images of slots, rows, the server's state."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.checkpoint.plain import pack, unpack
from reverb_async.checkpoint.records import Header, Record, RecordWriter
from reverb_async.core.cut.image import ArrayBlock, RowValues
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows

SLOTS, ROWS, STATE = "slots", "rows", "state"

ITEMS_FILE, ROWS_FILE = "items", "rows"
"""The two kinds of files: one with slots and state per checkpoint, and any number with rows."""

MAX_NUMBER = 2**40
"""Slots and rows have smaller numbers."""

_SCALAR = re.compile(r"<[iuf][1248]")


class Malformed(ValueError):
    """A record is whole, but not what it should be: it was written by something else than this."""


def write_slots(file: RecordWriter, table: str, block: ArrayBlock) -> None:
    """Append images of slots, column by column; columns with one value, or evenly spaced ones, take no room."""
    arrays: list[NDArray[Any]] = []
    header: Header = {
        "kind": SLOTS,
        "table": table,
        "n": len(block),
        "ids": _put_column(block.ids, arrays),
        "fields": [
            [name, field[0].str, _put_column(np.ascontiguousarray(block.values[name]), arrays)]
            for name, field in (block.values.dtype.fields or {}).items()
        ],
        "more": len(block.more),
    }
    arrays.append(np.ascontiguousarray(block.more, "<i8"))
    file.add(header, arrays)


def read_slots(record: Record) -> ArrayBlock:
    """Return what `write_slots` wrote.

    Raises:
        Malformed: it is something else.
    """
    header, buffers = record.header, iter(record.buffers)
    n = count_of(header["n"])
    ids = _get_column("<i8", header["ids"], n, buffers)
    check_numbers(ids)
    fields = [(str(name), _scalar(kind)) for name, kind, _ in header["fields"]]
    values = np.empty(n, np.dtype(fields))
    for name, kind, column in header["fields"]:
        values[name] = _get_column(kind, column, n, buffers)
    more = as_array(next(buffers), "<i8", (count_of(header["more"]), 4))
    return ArrayBlock(ids, values, more)


def write_rows(
    file: RecordWriter, store: str, rows: NDArray[np.int64], columns: Sequence[NDArray[Any] | VariableRows]
) -> None:
    """Append rows of a store."""
    arrays: list[NDArray[Any]] = []
    header: Header = {"kind": ROWS, "store": store, "n": len(rows), "rows": _put_column(rows, arrays)}
    put_columns(columns, arrays)
    file.add(header, arrays)


def put_columns(columns: Sequence[NDArray[Any] | VariableRows], arrays: list[NDArray[Any]]) -> None:
    """Append the columns of rows to `arrays`, for `get_columns`."""
    for column in columns:
        if isinstance(column, VariableRows):
            arrays += [column.data, np.ascontiguousarray(column.sizes), np.ascontiguousarray(column.shapes)]
        else:
            arrays.append(np.ascontiguousarray(column))


def read_row_numbers(record: Record) -> NDArray[np.int64]:
    """Return which rows a record of `write_rows` holds.

    Raises:
        Malformed: it is something else.
    """
    rows = _get_column("<i8", record.header["rows"], count_of(record.header["n"]), iter(record.buffers))
    check_numbers(rows)
    return rows


def read_rows(record: Record, specs: Sequence[ArraySpec], segment: int) -> RowValues:
    """Return what `write_rows` wrote; the arrays view the record's.

    Raises:
        Malformed: it is something else.
    """
    rows = read_row_numbers(record)
    n = len(rows)
    buffers = iter(record.buffers[1:] if record.header["rows"] is None else record.buffers)
    return RowValues(rows, get_columns(buffers, specs, n), segment)


def get_columns(
    buffers: Iterator[NDArray[np.uint8]], specs: Sequence[ArraySpec], n: int
) -> list[NDArray[Any] | VariableRows]:
    """Take the columns of `n` rows from buffers, which they view.

    Raises:
        Malformed: they are not there.
    """
    columns: list[NDArray[Any] | VariableRows] = []
    for spec in specs:
        if spec.is_variable:
            variable = VariableRows(
                next(buffers),
                as_array(next(buffers), "<i8", (n,)),
                as_array(next(buffers), "<i4", (n, len(spec.shape))),
            )
            if (n and int(variable.sizes.min()) < 0) or int(variable.sizes.sum()) != len(variable.data):
                raise Malformed(f"{n} sizes that add up to {int(variable.sizes.sum())}, not {len(variable.data)}")
            columns.append(variable)
        else:
            columns.append(as_array(next(buffers), spec.dtype, (n, *spec.fixed_shape)))
    return columns


def write_state(file: RecordWriter, state: Mapping[str, Any]) -> None:
    """Append the server's state."""
    file.add({"kind": STATE}, [np.frombuffer(pack(state), np.uint8)])


def read_state(record: Record) -> dict[str, Any]:
    """Return what `write_state` wrote.

    Raises:
        Malformed: it is something else.
    """
    state = unpack(record.buffers[0].tobytes())
    if not isinstance(state, dict):
        raise Malformed(f"the server's state is a {type(state).__name__}")
    return state


def _put_column(column: NDArray[Any], arrays: list[NDArray[Any]]) -> list[Any] | None:
    """Return first value and step of evenly spaced values; else append the column to `arrays` and return None."""
    if len(column) == 0:
        return [0, 0]
    bits = column.view(f"<i{column.itemsize}") if column.dtype.kind == "f" else column  # NaN and -0.0 are values too
    first = int(bits[0])
    step = int(bits[1]) - first if len(bits) > 1 and column.dtype.kind != "f" else 0
    if int(bits[-1]) == first + step * (len(bits) - 1) and bool((np.diff(bits) == _word(step, bits.dtype)).all()):
        return [first, step]
    arrays.append(column)
    return None


def _get_column(kind: str, column: list[Any] | None, n: int, buffers: Iterator[NDArray[np.uint8]]) -> NDArray[Any]:
    dtype = np.dtype(_scalar(kind))
    if column is None:
        return as_array(next(buffers), dtype, (n,))
    first, step = map(int, column)
    bits = np.dtype(f"<i{dtype.itemsize}") if dtype.kind == "f" else dtype
    limits = np.iinfo(bits)
    if n and not all(limits.min <= value <= limits.max for value in (first, first + step * (n - 1))):
        raise Malformed(f"{n} values from {first} in steps of {step} are no {dtype}")
    words = np.full(n, first % 2 ** (8 * dtype.itemsize), f"<u{dtype.itemsize}")
    if step:
        words += np.arange(n).astype(words.dtype) * _word(step, words.dtype)
    return words.view(dtype)


def _word(value: int, dtype: np.dtype[Any]) -> Any:
    """Return an integer in `dtype`, modulo its range: as differences come out."""
    return np.array(value % 2 ** (8 * dtype.itemsize), f"<u{dtype.itemsize}").view(dtype)


def as_array(buffer: NDArray[np.uint8], dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return bytes as an array; raises `Malformed` if they are not as many."""
    dtype = np.dtype(dtype)
    if math.prod(shape) * dtype.itemsize != len(buffer):
        raise Malformed(f"{len(buffer)} bytes for {dtype} {list(shape)}")
    array: NDArray[Any] = buffer.view(dtype).reshape(shape)
    return array


def _scalar(kind: object) -> str:
    if not isinstance(kind, str) or not _SCALAR.fullmatch(kind):
        raise Malformed(f"{kind!r:.30} is no dtype of a field")
    return kind


def count_of(n: object) -> int:
    """Return a count that was read; raises `Malformed` if it is none."""
    if not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < MAX_NUMBER:
        raise Malformed(f"a count of {n!r:.30}")
    return n


def check_numbers(numbers: NDArray[np.int64]) -> None:
    """Raise `Malformed` unless these can be numbers of slots or rows."""
    if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= MAX_NUMBER):
        raise Malformed(f"numbers from {int(numbers.min())} to {int(numbers.max())}")
