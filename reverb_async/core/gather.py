"""From drawn slots to arrays: one gather per column, never a loop over items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.encoded.layout import EncodedLayout
from reverb_async.core.encoded.part import EncodedPart
from reverb_async.core.item import ItemLayout, Leaf
from reverb_async.core.runs import Rows, as_run
from reverb_async.core.slots import Slots
from reverb_async.core.storage.backing import ALIGNMENT, aligned_empty, round_up
from reverb_async.core.variable import VariableRows

_BYTE = np.dtype(np.uint8)
_SMALL = 8 << 10
"""Bytes: columns up to this size share memory."""


@dataclass(slots=True)
class Piece:
    """The items of one layout in a batch.

    Attributes:
        layout: their layout.
        positions: int64 ``[m]``, where they stand in the batch; None when they are the whole batch.
        lengths: per view, the rows of each item: one number for all, or int64 ``[m]``.
        columns: one per wanted leaf: ``[sum(length), *row_shape]`` (fixed rows) or `VariableRows` of as many rows.
    """

    layout: ItemLayout
    positions: Rows | None
    lengths: list[int | Rows]
    columns: list[NDArray[np.generic] | VariableRows]


@dataclass(slots=True)
class Part:
    """The rows of the items of one layout.

    Attributes:
        layout: their layout.
        count: how many items.
        positions: as in `Piece`.
        lengths: as in `Piece`.
        rows: int64 ``[sum(length)]``, per view.
    """

    layout: ItemLayout
    count: int
    positions: Rows | None
    lengths: list[int | Rows]
    rows: list[Rows]

    @property
    def totals(self) -> list[int]:
        """The rows of all items together, per view."""
        return [len(rows) for rows in self.rows]


class GatherPlan:
    """The rows a batch needs, found in one synchronous step; `run` copies them, in a thread if they are pinned.

    Attributes:
        parts: the rows, by layout.
        nbytes: what `run` copies at most, values of variable size included; what it decodes counts for as many bytes
            as could be copied meanwhile.
    """

    def __init__(self, slots: Slots, drawn: Rows) -> None:
        self.parts: list[Part | EncodedPart] = []
        self.nbytes = 0
        for layout_id, positions in slots.by_layout(drawn):
            layout = slots.layouts[layout_id]
            assert layout is not None
            mine = drawn if positions is None else drawn[positions]
            if isinstance(layout, EncodedLayout):
                part = EncodedPart(layout, positions, slots.runs(0, mine), slots.runs(1, mine), slots.nbytes[mine])
                self.parts.append(part)
                self.nbytes += part.nbytes
                continue
            records = slots.read_again(mine)
            lengths: list[int | Rows] = []
            rows = []
            nbytes = 0
            is_variable = False
            for view, store in enumerate(layout.stores):
                runs = slots.runs(view, mine, records)
                shared = runs.uniform_length()
                lengths.append(shared if shared >= 0 else runs.length)
                rows.append(runs.first if shared == 1 and not runs.pieces else runs.rows())
                nbytes += len(rows[-1]) * store.row_bytes
                is_variable |= store.is_variable
            # Rows know nothing of the size of variable values, items do.
            self.nbytes += max(nbytes, int(records["nbytes"].sum())) if is_variable else nbytes
            self.parts.append(Part(layout, len(mine), positions, lengths, rows))

    def pin(self) -> None:
        """Keep the rows from being reused until `unpin`."""
        for part in self.parts:
            for store, rows in zip(part.layout.stores, part.rows, strict=True):
                store.pin(rows)

    def unpin(self) -> None:
        """Let go of the rows."""
        for part in self.parts:
            for store, rows in zip(part.layout.stores, part.rows, strict=True):
                store.unpin(rows)

    def run(
        self,
        wanted: Sequence[Sequence[int] | None],
        outs: Sequence[Sequence[NDArray[np.generic] | None]] | None = None,
    ) -> list[Piece]:
        """Copy the rows out.

        Args:
            wanted: per layout of `layouts`, the leaves to gather; None: all.
            outs: per layout, an array to fill for each of these leaves, ``[sum(length), *row_shape]``; None where a new
                one is wanted, and for variable rows.

        Raises:
            DamagedChunks: encoded items cannot be decoded.
        """
        pieces = []
        for at, (part, leaves) in enumerate(zip(self.parts, wanted, strict=True)):
            if isinstance(part, EncodedPart):
                shown = part.gather(leaves, None if outs is None else outs[at])
                pieces.append(Piece(part.layout, part.positions, part.lengths, shown))
                continue
            layout = part.layout
            chosen = layout.leaves if leaves is None else [layout.leaves[leaf] for leaf in leaves]
            into = _room(part, chosen) if outs is None else outs[at]
            columns: list[NDArray[np.generic] | VariableRows] = []
            places = [as_run(rows) or rows for rows in part.rows]
            for leaf, out in zip(chosen, into, strict=True):
                store, rows = layout.stores[leaf.view], part.rows[leaf.view]
                if out is None and store.specs[leaf.column].is_variable:
                    columns.append(store.gather_variable(leaf.column, rows))
                else:
                    columns.append(store.gather(leaf.column, places[leaf.view], out))
            pieces.append(Piece(layout, part.positions, part.lengths, columns))
        return pieces

    @property
    def rows(self) -> list[list[Rows]]:
        """The row numbers of each view, per layout of `layouts`."""
        return [part.rows for part in self.parts]

    @property
    def layouts(self) -> list[ItemLayout]:
        """The layouts in the batch."""
        return [part.layout for part in self.parts]


def _room(part: Part, leaves: Sequence[Leaf]) -> Sequence[NDArray[np.generic] | None]:
    """Return an array for each small leaf of fixed size, 64-byte aligned; together, as memory is quicker to get so."""
    places: list[tuple[NDArray[np.generic], int, int] | None] = []
    end = 0
    for leaf in leaves:
        store, n = part.layout.stores[leaf.view], len(part.rows[leaf.view])
        column = store.columns[leaf.column]
        nbytes = n * column.strides[0]
        # Whoever keeps a small column must not keep large ones alive.
        if nbytes > _SMALL or store.specs[leaf.column].is_variable:
            places.append(None)
        else:
            places.append((column, n, end))
            end += round_up(nbytes, ALIGNMENT)
    if not end:
        return [None] * len(leaves)
    memory = aligned_empty((end,), _BYTE)
    return [place and np.ndarray((place[1], *place[0].shape[1:]), place[0].dtype, memory, place[2]) for place in places]
