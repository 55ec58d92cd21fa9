"""What is written down of an encoded item: which parts of which chunks its columns show, and its trajectory verbatim.

A record is a sequence of int32 and the trajectory, padded to a multiple of 4 bytes: the trajectory's size, the number
of slices of each column, and per slice (position among the item's chunks, offset, length, tensor).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.runs import Rows
from reverb_async.core.variable import VariableRows

_SLICE = np.arange(4)


@dataclass(slots=True)
class EncodedItem:
    """An item as it is sent.

    Attributes:
        chunks: distinct rows of the chunk store, in any order.
        columns: per column its slices, one at least: position in `chunks`, first row, number of rows, and which of the
            chunk's tensors.
        trajectory: kept verbatim for readers of the same protocol.
        nbytes: decoded bytes of what the item shows.
    """

    chunks: Rows
    columns: Sequence[Sequence[tuple[int, int, int, int]]]
    trajectory: bytes
    nbytes: int


@dataclass(slots=True)
class Slices:
    """What the columns of some items show, item after item, column after column.

    Attributes:
        position: int64 ``[slices]``, of the chunk among those of the item.
        offset: int64 ``[slices]``, first row.
        length: int64 ``[slices]``, rows.
        tensor: int64 ``[slices]``, which of the chunk's tensors.
        counts: int64 ``[items, columns]``, slices of each.
    """

    position: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    tensor: NDArray[np.int64]
    counts: NDArray[np.int64]


def write_record(item: EncodedItem) -> tuple[bytes, Rows]:
    """Return an item's record, and its chunks in ascending order."""
    chunks, columns = item.chunks, item.columns
    words = array("i", [len(item.trajectory), *map(len, columns)])
    if len(chunks) == 1 or bool((chunks[1:] > chunks[:-1]).all()):
        for slices in columns:
            for part in slices:
                words.extend(part)
    else:
        order = np.argsort(chunks)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        places = rank.tolist()
        for slices in columns:
            for position, offset, length, tensor in slices:
                words.extend((places[position], offset, length, tensor))
        chunks = chunks[order]
    return b"".join((words.tobytes(), item.trajectory, bytes(-len(item.trajectory) % 4))), chunks


def read_slices(records: VariableRows, num_columns: int) -> Slices:
    """Return what the columns of the items with these records show."""
    words = records.data.view(np.int32)
    starts = records.offsets[:-1] >> 2
    counts = words[(starts + 1)[:, None] + np.arange(num_columns)].astype(np.int64)
    per_item = counts.sum(axis=1)
    ends = np.cumsum(per_item)
    first = starts + 1 + num_columns - 4 * (ends - per_item)  # to which 4 per slice of all items before is added
    places = np.repeat(first, per_item) + 4 * np.arange(int(ends[-1]) if len(ends) else 0)
    position, offset, length, tensor = words[places[:, None] + _SLICE].astype(np.int64).T
    return Slices(position, offset, length, tensor, counts)


def read_trajectories(records: VariableRows) -> list[memoryview]:
    """Return the trajectories in records."""
    ends = records.offsets
    sizes = records.data.view(np.int32)[ends[:-1] >> 2].astype(np.int64)
    stops = ends[1:] - (-sizes % 4)
    return _cut(records, stops - sizes, stops)


def split(rows: VariableRows) -> list[memoryview]:
    """Return the bytes of each row, as views."""
    ends = rows.offsets
    return _cut(rows, ends[:-1], ends[1:])


def _cut(rows: VariableRows, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> list[memoryview]:
    data = rows.data.data
    return [data[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
