"""One sampled batch as it comes out of a message, whatever the message's form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.draw import Draw
from reverb_async.core.gather import Piece
from reverb_async.core.nest import Structure
from reverb_async.core.spec import ArraySpec
from reverb_async.protocol.inserting import Column

MAX_BATCH_SIZE = 65_536
"""Items in one batch: one synchronous step on the server."""

MAX_ITEM_ROWS = 1 << 31
"""Rows of one item in one view."""

INFO = tuple(np.dtype(kind) for kind in (np.uint64, np.float64, np.float64, np.int32, np.int64, np.float64))
"""What is known of the items, in this order: keys, probabilities, priorities, times sampled, table sizes, insertion
times."""


@dataclass(frozen=True, slots=True)
class SampledLayout:
    """How the data of some items look; sent once per stream, before the first batch with such items.

    Attributes:
        id: the stream's number for it.
        structure: the nest of each item's data.
        num_views: sequences of rows that leaves are cut from.
        leaves: (view, squeeze, row spec) per leaf of `structure`.
        is_fixed: there are no variable rows.
        is_plain: nor is there a time axis: each leaf of an item is one row.
    """

    id: int
    structure: Structure
    num_views: int
    leaves: tuple[tuple[int, bool, ArraySpec], ...]
    is_fixed: bool = field(init=False)
    is_plain: bool = field(init=False)

    def __post_init__(self) -> None:
        is_fixed = not any(spec.is_variable for _, _, spec in self.leaves)
        object.__setattr__(self, "is_fixed", is_fixed)
        object.__setattr__(self, "is_plain", is_fixed and all(squeeze for _, squeeze, _ in self.leaves))


@dataclass(slots=True)
class SampledPiece:
    """The items of one layout in a batch: see `core.gather.Piece`, whose fields these are."""

    layout: SampledLayout
    positions: NDArray[np.int64] | None
    lengths: list[int | NDArray[np.int64]]
    columns: list[Column]

    @classmethod
    def of(cls, layout: SampledLayout, piece: Piece) -> SampledPiece:
        """Return a gathered piece under the stream's name for its layout."""
        return cls(layout, piece.positions, piece.lengths, list(piece.columns))


@dataclass(slots=True)
class SampledBatch:
    """One batch.

    Attributes:
        seq: the batch's number.
        keys: uint64 ``[n]``.
        probabilities: float64 ``[n]``.
        priorities: float64 ``[n]``.
        times_sampled: int32 ``[n]``.
        table_sizes: int64 ``[n]``.
        inserted_at: float64 ``[n]``, seconds since the epoch.
        rate_limited: the batch had to wait for the rate limiter.
        pieces: the data, by layout.
    """

    seq: int
    keys: NDArray[np.uint64]
    probabilities: NDArray[np.float64]
    priorities: NDArray[np.float64]
    times_sampled: NDArray[np.int32]
    table_sizes: NDArray[np.int64]
    inserted_at: NDArray[np.float64]
    rate_limited: bool
    pieces: list[SampledPiece]

    @classmethod
    def of(cls, seq: int, draw: Draw, pieces: list[SampledPiece]) -> SampledBatch:
        """Return a draw under the stream's number for it."""
        return cls(
            seq,
            draw.keys,
            draw.probabilities,
            draw.priorities,
            draw.times_sampled,
            draw.table_sizes,
            draw.inserted_at,
            draw.rate_limited,
            pieces,
        )

    @property
    def info(self) -> tuple[NDArray[Any], ...]:
        """What `INFO` lists."""
        return (
            self.keys,
            self.probabilities,
            self.priorities,
            self.times_sampled,
            self.table_sizes,
            self.inserted_at,
        )
