"""What is saved of tables and stores, and what they are restored from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows

NO_MORE: NDArray[np.int64] = np.zeros((0, 4), np.int64)

OF_RECORD = 8
"""Words at the start of a slot's image: its `RECORD`."""

LAST_EPISODE = -1
"""Stands for the view in `ArrayBlock.more`."""


def image_dtype(num_views: int) -> np.dtype[np.void]:
    """Return the dtype of a slot's image in a table whose items have up to `num_views` views.

    All fields are little-endian, without padding, and a multiple of 8 bytes in all. ``key`` to ``version`` are
    `core.slots.RECORD`; ``state`` is `FREE`, `LIVE` or `OUT` (0 to 2: `GONE` items are saved as free slots);
    ``unsettled`` counts draws neither acknowledged nor handed back; ``sampler`` and ``remover`` are the places in the
    selectors' order; ``first1``, ``length1`` and so on are the further views. Fields added later come last.
    """
    fields: list[tuple[str, str]] = [
        ("key", "<u8"),
        ("priority", "<f8"),
        ("inserted_at", "<f8"),
        ("first", "<i8"),
        ("nbytes", "<i8"),
        ("episode", "<i8"),
        ("times_sampled", "<i4"),
        ("length", "<i4"),
        ("layout", "<i4"),
        ("version", "<u4"),
        ("state", "<i4"),
        ("unsettled", "<i4"),
        ("sampler", "<i8"),
        ("remover", "<i8"),
    ]
    for view in range(1, num_views):
        fields += [(f"first{view}", "<i8"), (f"length{view}", "<i8")]
    return np.dtype(fields)


@dataclass(frozen=True, slots=True)
class ArrayBlock:
    """Images of some slots.

    Most fields of a block mostly have one value throughout, or ascend.

    Attributes:
        ids: int64 ``[n]``, slots, distinct.
        values: `image_dtype` ``[n]``.
        more: int64 ``[m, 4]``, what few items have: (slot, view, first row, rows) of each run, in order, of views that
            are several runs; and (slot, -1, last episode, 0) of items that cross an episode's end.
    """

    ids: NDArray[np.int64]
    values: NDArray[np.void]
    more: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Rows that were live when the cut was made, and where they are on disk.

    Attributes:
        rows: int64 ``[n]``, ascending.
        segments: int32 ``[n]``, the segment that holds each; 0 for those still to be written.
    """

    rows: NDArray[np.int64]
    segments: NDArray[np.int32]

    @property
    def unsaved(self) -> NDArray[np.int64]:
        """The rows to be written; they are pinned until `StoreCut.done`."""
        unsaved: NDArray[np.int64] = self.rows[self.segments == 0]
        return unsaved


@dataclass(frozen=True, slots=True)
class RowValues:
    """Rows read back.

    Attributes:
        rows: int64 ``[n]``, distinct.
        columns: one per spec of the store, ``[n, *row_shape]`` or `VariableRows` of n rows.
        segment: the segment they were read from, which holds them for the next checkpoint too; 0: none does.
    """

    rows: NDArray[np.int64]
    columns: Sequence[NDArray[np.generic] | VariableRows]
    segment: int = 0


class TableImage(Protocol):
    """A table as it was saved."""

    @property
    def state(self) -> Mapping[str, Any]:
        """What `TableCut.state` was in the newest cut."""

    @property
    def unsaved(self) -> NDArray[np.int64] | None:
        """Slots that have changed since the last committed cut; None: all may have."""

    def blocks(self) -> Iterable[ArrayBlock]:
        """Yield the blocks of the newest full cut and of those after it, in that order: of a slot the last counts."""


class StoreImage(Protocol):
    """A store as it was saved; stores stand in the order of `ReplayCut.stores`."""

    @property
    def specs(self) -> Sequence[ArraySpec]:
        """What the columns held."""

    @property
    def num_rows(self) -> int:
        """What `StoreCut.num_rows` was."""

    def rows(self) -> Iterable[RowValues]:
        """Yield all rows that were live, each once; others may come too, and are left out."""
