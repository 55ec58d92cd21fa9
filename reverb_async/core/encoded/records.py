"""What is written down of an encoded item: which parts of which chunks its columns show, and its trajectory verbatim.

A record is a sequence of int32 and the trajectory, padded to a multiple of 4 bytes: the trajectory's size, the number
of slices of each column, and per slice (position among the item's chunks, offset, length, tensor).
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.runs import Rows, Runs, join
from reverb_async.core.variable import VariableRows

Columns = tuple[tuple[tuple[int, int, int, int], ...], ...]

_SLICE = np.arange(4)
_SIZE = Struct("i")


class EncodedItem(NamedTuple):
    """An item as it is sent.

    Attributes:
        chunks: distinct rows of the chunk store, in any order.
        columns: per column its slices, one at least: position in `chunks`, first row, number of rows, and which of the
            chunk's tensors; the same as of other items, mostly.
        trajectory: kept verbatim for readers of the same protocol.
        nbytes: decoded bytes of what the item shows.
    """

    chunks: Sequence[int]
    columns: Columns
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


def write_records(items: Sequence[EncodedItem]) -> tuple[list[bytes], Runs]:
    """Return the items' records, and their chunks in ascending order."""
    counts = np.array([len(item.chunks) for item in items], np.int64)
    rows = np.array([row for item in items for row in item.chunks], np.int64)
    ends = np.cumsum(counts)
    steps = rows[1:] - rows[:-1]
    steps[ends[:-1] - 1] = 1  # from one item to the next
    if bool((steps == 1).all()):  # as it is as long as nobody else stores chunks
        return _records(items), Runs(rows[ends - counts], counts)
    ordered = [_in_order(item) for item in items]
    return _records([item for item, _ in ordered]), join([chunks for _, chunks in ordered])


def _records(items: Sequence[EncodedItem]) -> list[bytes]:
    known: dict[int, bytes] = {}  # by identity: to compare what an item's columns show takes as long as all the rest
    records = []
    for _, columns, trajectory, _ in items:
        words = known.get(id(columns))
        if words is None:
            words = known[id(columns)] = _words(columns)
        size = len(trajectory)
        records.append(b"".join((_SIZE.pack(size), words, trajectory, bytes(-size % 4))))
    return records


def write_record(item: EncodedItem) -> tuple[bytes, Rows]:
    """Return an item's record, and its chunks in ascending order."""
    item, chunks = _in_order(item)
    return _records([item])[0], chunks


def _in_order(item: EncodedItem) -> tuple[EncodedItem, Rows]:
    """Return an item whose chunks are in ascending order, and these."""
    chunks = np.array(item.chunks, np.int64)
    if len(chunks) == 1 or bool((chunks[1:] > chunks[:-1]).all()):
        return item, chunks
    order = np.argsort(chunks)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    places = rank.tolist()
    columns = tuple([tuple([(places[part[0]], *part[1:]) for part in slices]) for slices in item.columns])
    return item._replace(columns=columns), chunks[order]


def _words(columns: Columns) -> bytes:
    words = array("i", map(len, columns))
    for slices in columns:
        for part in slices:
            words.extend(part)
    return words.tobytes()


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


def read_trajectories(records: Sequence[memoryview]) -> list[memoryview]:
    """Return the trajectories in records, as views."""
    trajectories = []
    for record in records:
        (size,) = _SIZE.unpack_from(record)
        stop = len(record) - -size % 4
        trajectories.append(record[stop - size : stop])
    return trajectories


def split(rows: VariableRows) -> list[memoryview]:
    """Return the bytes of each row, as views."""
    data, ends = rows.data.data, rows.offsets.tolist()
    return [data[start:stop] for start, stop in itertools.pairwise(ends)]
