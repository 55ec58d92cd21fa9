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
from reverb_async.core.cut.image import NO_MORE, OF_RECORD, ArrayBlock, RowValues, image_dtype
from reverb_async.core.runs import Rows, as_run
from reverb_async.core.slots import LIVE
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
        sampler, remover = table.places
        described = {
            "name": name,
            "reset": table.is_reset,
            "counters": table.counters,
            "layouts": changes.layouts.get(name),
            "ids": _put_numbers(table.ids, arrays),
            "freed": _put_numbers(table.freed, arrays),
            "sampler": _put_numbers(sampler, arrays),
            "remover": _put_numbers(remover, arrays),
            "state": table.state is not None,
            "unsettled": table.unsettled is not None,
            "views": len(table.views),
            "more": len(table.more),
        }
        arrays += [table.words, table.more, np.ascontiguousarray(table.versions, "<u4")]
        arrays += [np.ascontiguousarray(each, "<i4") for each in (table.state, table.unsettled) if each is not None]
        for first, length in table.views:
            arrays += [np.ascontiguousarray(first, "<i8"), np.ascontiguousarray(length, "<i4")]
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
        tables[str(table["name"])] = _read_table(table, buffers)
    rows = []
    for store, described in header["rows"]:
        numbers = _get_numbers(described, buffers)
        check_numbers(numbers)
        rows.append((store, RowValues(numbers, get_columns(buffers, specs[store], len(numbers)))))
    return Frame(tables, rows, list(header["sessions"]), dict(header["server"]))


def _read_table(table: Mapping[str, Any], buffers: Iterator[NDArray[np.uint8]]) -> TableFrame:
    ids, freed, sampler, remover = (
        _get_numbers(table[name], buffers) for name in ("ids", "freed", "sampler", "remover")
    )
    check_numbers(ids)
    check_numbers(freed)
    num_views = 1 + count_of(table["views"])
    if num_views > MAX_VIEWS:
        raise Malformed(f"items of {num_views} views")
    values = np.zeros(len(ids), image_dtype(num_views))
    values["state"] = LIVE
    values["sampler"], values["remover"] = sampler, remover
    words = as_array(next(buffers), "<u8", (len(ids), OF_RECORD))
    values.view(np.uint64).reshape(len(ids), values.dtype.itemsize // 8)[:, :OF_RECORD] = words
    more = as_array(next(buffers), "<i8", (count_of(table["more"]), 4))
    empty = np.zeros(len(freed), image_dtype(1))
    empty["version"] = as_array(next(buffers), "<u4", (len(freed),))
    for name in ("state", "unsettled"):
        if table[name]:
            values[name] = as_array(next(buffers), "<i4", (len(ids),))
    for number in range(1, num_views):
        values[f"first{number}"] = as_array(next(buffers), "<i8", (len(ids),))
        values[f"length{number}"] = as_array(next(buffers), "<i4", (len(ids),))
    return TableFrame(
        bool(table["reset"]),
        dict(table["counters"]),
        table["layouts"],
        ArrayBlock(ids, values, more),
        ArrayBlock(freed, empty, NO_MORE),
    )


def _put_numbers(numbers: Rows, arrays: list[NDArray[Any]]) -> Sequence[int]:
    """Return first and count of consecutive ascending numbers; else append them, and return -1 and their count."""
    n = len(numbers)
    if n == 0:
        return 0, 0
    run = as_run(numbers)
    if run is not None and run.start >= 0:
        return run.start, n
    arrays.append(np.ascontiguousarray(numbers, "<i8"))
    return -1, n


def _get_numbers(described: Any, buffers: Iterator[NDArray[np.uint8]]) -> Rows:
    first, n = described
    if first >= 0:
        numbers: Rows = np.arange(count_of(first), count_of(first) + count_of(n))
    else:
        numbers = as_array(next(buffers), "<i8", (count_of(n),))
    return numbers
