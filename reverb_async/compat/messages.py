"""What the frequent messages of DeepMind's protocol say, once read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.tensors import TensorHead

Slice = tuple[int, int, int, int]
"""Chunk key, offset, length, and which of the chunk's tensors; as they came, unchecked against any chunk."""


class ChunkView(NamedTuple):
    """One chunk of a message.

    Attributes:
        key: any uint64.
        episode_id: any uint64.
        start: number of the first step in its episode.
        end: number of the last.
        raw: the serialized `ChunkData`, a view of the message it came in.
        tensors: dtype and shape of each; the leading axis are the rows.
        delta_encoded: integer tensors of rank 2 and above hold differences between rows.
    """

    key: int
    episode_id: int
    start: int
    end: int
    raw: memoryview
    tensors: tuple[TensorHead, ...]
    delta_encoded: bool


class ColumnView(NamedTuple):
    """One column of an item: slices of chunks end to end; squeezed: shown without the leading axis."""

    slices: list[Slice]
    squeeze: bool


class ItemView(NamedTuple):
    """One item of a message.

    Attributes:
        key: any uint64.
        table: a table's name, perhaps of none.
        priority: any double.
        times_sampled: how often the item was sampled, this time included.
        trajectory: the serialized `FlatTrajectory`, a view of the message it came in.
        columns: what it says.
    """

    key: int
    table: str
    priority: float
    times_sampled: int
    trajectory: memoryview
    columns: list[ColumnView]


class InsertRequest(NamedTuple):
    """Chunks first, then the items that refer to them, then the keys of all chunks that later items may refer to."""

    chunks: list[ChunkView]
    items: list[ItemView]
    keep_chunk_keys: list[int]


class SampleRequest(NamedTuple):
    """How many samples of which table; `timeout_ms` is None when absent, and may be negative."""

    table: str
    num_samples: int
    timeout_ms: int | None


class MutateRequest(NamedTuple):
    """New priorities (uint64 ``[n]``, float64 ``[n]``) and keys to delete (uint64 ``[m]``) of one table."""

    table: str
    keys: NDArray[np.uint64]
    priorities: NDArray[np.float64]
    deletes: NDArray[np.uint64]


class SampleInfo(NamedTuple):
    """What a sample says beside its data: the item, and the table when it was drawn.

    `inserted_at` is in seconds since the epoch, by the server's clock.
    """

    item: ItemView
    probability: float
    table_size: int
    rate_limited: bool
    inserted_at: float


class SampleEntry(NamedTuple):
    """A sample or a part of one; `info` is in the first part, `end_of_sequence` marks the last."""

    info: SampleInfo | None
    chunks: list[ChunkView]
    end_of_sequence: bool
