"""What is written down of an encoded item: which parts of which chunks its columns show, and its trajectory verbatim.

A record is a sequence of int32 and the trajectory, padded to a multiple of 4 bytes: the trajectory's size, the number
of slices of each column, and per slice (position among the item's chunks, offset, length, tensor).
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.runs import Rows, Runs, join
from reverb_async.core.variable import VariableRows

Columns = tuple[tuple[tuple[int, int, int, int], ...], ...]

_SLICE = np.arange(4)
_SIZE = Struct("i")
_MAX_REMEMBERED_BYTES = 2048
"""Of trajectories, which grow with the columns and slices that are remembered: hostile items have thousands."""


@dataclass(slots=True)
class EncodedItem:
    """An item as it is sent.

    Attributes:
        chunks: distinct rows of the chunk store, in any order.
        columns: per column its slices, one at least: position in `chunks`, first row, number of rows, and which of the
            chunk's tensors; the same as of other items, mostly.
        trajectory: kept verbatim for readers of the same protocol.
        nbytes: decoded bytes of what the item shows.
    """

    chunks: Rows
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
    rows = np.concatenate([item.chunks for item in items])
    ends = np.cumsum(counts)
    steps = rows[1:] - rows[:-1]
    steps[ends[:-1] - 1] = 1  # from one item to the next
    if bool((steps == 1).all()):  # as it is as long as nobody else stores chunks
        return [_record(item.columns, item.trajectory) for item in items], Runs(rows[ends - counts], counts)
    written = [write_record(item) for item in items]
    return [record for record, _ in written], join([chunks for _, chunks in written])


def write_record(item: EncodedItem) -> tuple[bytes, Rows]:
    """Return an item's record, and its chunks in ascending order."""
    chunks, columns = item.chunks, item.columns
    if len(chunks) > 1 and not bool((chunks[1:] > chunks[:-1]).all()):
        order = np.argsort(chunks)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        places = rank.tolist()
        columns = tuple([tuple([(places[part[0]], *part[1:]) for part in slices]) for slices in columns])
        chunks = chunks[order]
    return _record(columns, item.trajectory), chunks


def _record(columns: Columns, trajectory: bytes) -> bytes:
    size = len(trajectory)
    words = _remembered_words(columns) if size <= _MAX_REMEMBERED_BYTES else _words(columns)
    return b"".join((_SIZE.pack(size), words, trajectory, bytes(-size % 4)))


def _words(columns: Columns) -> bytes:
    words = array("i", map(len, columns))
    for slices in columns:
        for part in slices:
            words.extend(part)
    return words.tobytes()


_remembered_words = lru_cache(maxsize=1024)(_words)


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
