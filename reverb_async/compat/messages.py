"""What the frequent messages of DeepMind's protocol say, once read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.scanning import Data
from reverb_async.compat.tensors import TensorHead
from reverb_async.core.encoded import Columns

Slice = tuple[int, int, int, int]
"""Chunk key, offset, length, and which of the chunk's tensors; as they came, unchecked against any chunk."""


class ChunkView(NamedTuple):
    """One chunk of a message.

    Attributes:
        key: any uint64.
        episode_id: any uint64.
        raw: the serialized `ChunkData`, a view of the message it came in or a copy.
        tensors: dtype and shape of each; the leading axis are the rows.
    """

    key: int
    episode_id: int
    raw: Data
    tensors: tuple[TensorHead, ...]


class ColumnView(NamedTuple):
    """One column of an item: slices of chunks end to end; squeezed: shown without the leading axis."""

    slices: list[Slice]
    squeeze: bool


class Shape:
    """What columns show, whichever chunks they show it of: many items have the same.

    Attributes:
        columns: per column its slices: position of the chunk among the item's, offset, length, which of its tensors.
        squeezed: of each column whether it is shown without the leading axis.
        num_slices: a column without slices counts as one.
    """

    __slots__ = ("_hash", "columns", "num_slices", "squeezed")

    def __init__(self, columns: Columns, squeezed: tuple[bool, ...]) -> None:
        self.columns = columns
        self.squeezed = squeezed
        self.num_slices = sum([len(slices) or 1 for slices in columns])
        self._hash = hash((columns, squeezed))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shape) and (self.columns, self.squeezed) == (other.columns, other.squeezed)


class ItemView(NamedTuple):
    """One item of a message.

    Attributes:
        key: any uint64.
        table: a table's name, perhaps of none.
        priority: any double.
        times_sampled: how often the item was sampled, this time included.
        trajectory: the serialized `FlatTrajectory`.
        shape: what it says, but for the chunks.
        chunk_keys: the keys of these, each once.
    """

    key: int
    table: str
    priority: float
    times_sampled: int
    trajectory: bytes
    shape: Shape
    chunk_keys: list[int]

    @property
    def columns(self) -> list[ColumnView]:
        """What the trajectory says."""
        keys = self.chunk_keys
        return [
            ColumnView([(keys[at], offset, length, index) for at, offset, length, index in slices], squeeze)
            for slices, squeeze in zip(self.shape.columns, self.shape.squeezed, strict=True)
        ]


def shape_of(columns: Sequence[ColumnView]) -> tuple[Shape, list[int]]:
    """Return columns as `ItemView` has them: their shape, and the keys of the chunks they show."""
    positions: dict[int, int] = {}
    place = positions.setdefault
    shown = tuple(
        [
            tuple([(place(key, len(positions)), offset, count, index) for key, offset, count, index in slices])
            for slices, _ in columns
        ]
    )
    return Shape(shown, tuple([squeeze for _, squeeze in columns])), list(positions)


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
