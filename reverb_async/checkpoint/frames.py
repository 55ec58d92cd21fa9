"""Frames of the log: what changed between two moments, as one record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.capture import Changes
from reverb_async.checkpoint.content import Malformed, as_array, check_numbers, count_of, get_columns, put_columns
from reverb_async.checkpoint.log_file import FRAME
from reverb_async.checkpoint.records import Record, RecordWriter
from reverb_async.core.cut.image import NO_MORE, ArrayBlock, RowValues, image_dtype
from reverb_async.core.runs import Rows
from reverb_async.core.spec import ArraySpec

MAX_VIEWS = 1 << 16


def write_frame(file: RecordWriter, changes: Changes) -> None:
    """Append a frame.

    Raises:
        OSError: the disk does not take it.
    """
    arrays: list[NDArray[Any]] = []
    tables = []
    for name, table in changes.tables.items():
        block = table.block
        described = {
            "name": name,
            "reset": table.is_reset,
            "counters": table.counters,
            "layouts": changes.layouts.get(name),
            "ids": _put_numbers(block.ids, arrays),
            "fields": len(block.values.dtype.names or ()),
            "more": len(block.more),
            "freed": _put_numbers(table.freed, arrays),
        }
        arrays += [block.values, block.more, table.versions]
        tables.append(described)
    rows = []
    for store, numbers, columns in changes.rows:
        rows.append([store, _put_numbers(numbers, arrays)])
        put_columns(columns, arrays)
    file.add(
        {
            "kind": FRAME,
            "tables": tables,
            "stores": changes.stores,
            "rows": rows,
            "sessions": changes.sessions,
            "server": changes.server,
        },
        arrays,
    )


@dataclass(slots=True)
class TableFrame:
    """What a frame says of a table; see `TableChanges`."""

    is_reset: bool
    counters: Mapping[str, Any]
    layouts: list[Any] | None
    block: ArrayBlock
    freed: ArrayBlock


@dataclass(slots=True)
class Frame:
    """A frame as it was read.

    Attributes:
        tables: by name.
        rows: by the number of their store.
        sessions: see `Changes`.
        server: counters.
    """

    tables: dict[str, TableFrame]
    rows: list[tuple[int, RowValues]]
    sessions: list[list[Any]]
    server: Mapping[str, int]


def read_frame(record: Record, specs: dict[int, list[ArraySpec]]) -> Frame:
    """Return what `write_frame` wrote; arrays view the record's.

    Args:
        record: found whole.
        specs: of the stores that earlier frames of the file have named; those that this one names are added.

    Raises:
        Malformed: it is something else; other errors of values and lookups mean the same.
    """
    header, buffers = record.header, iter(record.buffers)
    for number, wire in header["stores"]:
        specs[count_of(number)] = [ArraySpec.from_wire(spec) for spec in wire]
    tables = {}
    for table in header["tables"]:
        ids = _get_numbers(table["ids"], buffers)
        freed = _get_numbers(table["freed"], buffers)
        dtype = _image_dtype(count_of(table["fields"]))
        values = as_array(next(buffers), dtype, (len(ids),))
        more = as_array(next(buffers), "<i8", (count_of(table["more"]), 4))
        empty = np.zeros(len(freed), image_dtype(1))
        empty["version"] = as_array(next(buffers), "<u4", (len(freed),))
        tables[str(table["name"])] = TableFrame(
            bool(table["reset"]),
            dict(table["counters"]),
            table["layouts"],
            ArrayBlock(ids, values, more),
            ArrayBlock(freed, empty, NO_MORE),
        )
    rows = []
    for store, described in header["rows"]:
        numbers = _get_numbers(described, buffers)
        rows.append((store, RowValues(numbers, get_columns(buffers, specs[store], len(numbers)))))
    return Frame(tables, rows, list(header["sessions"]), dict(header["server"]))


def _image_dtype(num_fields: int) -> np.dtype[np.void]:
    num_views = 1 + (num_fields - len(image_dtype(1).names or ())) // 2
    dtype = image_dtype(min(max(1, num_views), MAX_VIEWS))
    if len(dtype.names or ()) != num_fields:
        raise Malformed(f"images of {num_fields} fields")
    return dtype


def _put_numbers(numbers: Rows, arrays: list[NDArray[Any]]) -> Sequence[int]:
    """Return first and count of consecutive ascending numbers; else append them, and return -1 and their count."""
    n = len(numbers)
    if n == 0:
        return 0, 0
    first = int(numbers[0])
    if int(numbers[-1]) - first == n - 1 and np.count_nonzero(numbers[1:] <= numbers[:-1]) == 0:
        return first, n
    arrays.append(np.ascontiguousarray(numbers, "<i8"))
    return -1, n


def _get_numbers(described: Any, buffers: Iterator[NDArray[np.uint8]]) -> Rows:
    first, n = described
    if first >= 0:
        numbers: Rows = np.arange(count_of(first), count_of(first) + count_of(n))
    else:
        numbers = as_array(next(buffers), "<i8", (count_of(n),))
    check_numbers(numbers)
    return numbers
