"""What one Sample stream lends to a client on the server's host."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass

from reverb_async.core.draw import Draw
from reverb_async.core.encoded import EncodedLayout
from reverb_async.core.gather import GatherPlan
from reverb_async.core.item import ItemLayout
from reverb_async.core.storage import RowStore
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.lending import MAX_LENT_BYTES, Lending, LentBatch, LentStore, Place, Places, Returned, Rows
from reverb_async.protocol.sampled import SampledBatch, SampledLayout, SampledPiece
from reverb_async.service.leases import Lease, Leases
from reverb_async.service.sample_answers import MAX_INLINE_GATHER_BYTES

MIN_LENT_BYTES = 256 << 10
"""Batches with fewer bytes in fixed columns travel in the message: pins, lease and row numbers cost about as much CPU
as sending so many bytes does (both sides, wire and lent: 493 and 533 us for 128 KiB, 664 and 641 for 256, 1191 and 810
for 512)."""

Declared = tuple[SampledLayout, list[int]]
"""The stream's name for a layout, and which of its leaves are wanted."""


class Lender:
    """Lends batches on one stream, and remembers what its client was told and has not returned.

    Args:
        leases: the server's.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._is_trusted = False
        self._over_wire = 0
        """So many batches must travel in messages, in place of those that were lost: else they might be lost again."""
        self._lent: deque[tuple[int, Lease]] = deque()
        self._stores: dict[RowStore, int] = {}
        self._layouts: dict[int, _Layout] = {}
        """By the stream's number."""

    def heed(self, returned: Returned) -> list[int]:
        """Work off what a client says; return the numbers of batches that go back to the table.

        Raises:
            InvalidArgument: one of them was not lent, or they do not ascend.
        """
        if returned.secret is not None:
            self._is_trusted = self._leases.is_secret(returned.secret)
        if returned.lost:
            lent = {seq for seq, _ in self._lent if seq <= returned.copied}
            for seq in returned.lost:
                if seq not in lent:
                    raise InvalidArgument(f"batch {seq} is not lent: it cannot get lost")
                lent.remove(seq)
        self.end_through(returned.copied)
        self._over_wire += len(returned.lost)
        if returned.stop:
            self._is_trusted = False
        return list(returned.lost)

    def end_through(self, seq: int) -> None:
        """End the leases of batches up to this number."""
        while self._lent and self._lent[0][0] <= seq:
            self._leases.end(self._lent.popleft()[1])

    def wants(self, nbytes: int) -> bool:
        """Whether a batch of about so many bytes should be drawn for itself, because it will probably be lent."""
        return self._is_trusted and not self._over_wire and nbytes >= MIN_LENT_BYTES

    def lend(self, seq: int, draw: Draw, plan: GatherPlan, declared: list[Declared]) -> Lending | None:
        """Lend a fresh draw's rows; None if they must be gathered here.

        Args:
            seq: the batch's number.
            draw: what was drawn.
            plan: its rows; call this in the step that drew.
            declared: for each layout of `plan`.
        """
        if not self._is_trusted:
            return None
        if self._over_wire:
            self._over_wire -= 1
            return None
        if plan.nbytes < MIN_LENT_BYTES:  # at most so much would be copied; a single item shall not pay for more
            return None
        if any(isinstance(layout, EncodedLayout) for layout in plan.layouts):
            return None
        layouts = [
            self._layouts.get(sampled.id) or _Layout.of(layout, sampled, leaves)
            for layout, (sampled, leaves) in zip(plan.layouts, declared, strict=True)
        ]
        nbytes = sum(layout.nbytes(rows) for layout, rows in zip(layouts, plan.rows, strict=True))
        if not MIN_LENT_BYTES <= nbytes <= MAX_LENT_BYTES or not all(layout.is_lendable for layout in layouts):
            return None
        if plan.nbytes - nbytes > MAX_INLINE_GATHER_BYTES and any(layout.variable for layout in layouts):
            return None  # Much of it would have to be gathered here nevertheless: in a thread, so as to stall nobody.
        lease = self._leases.grant(plan, plan.nbytes)
        if lease is None:
            return None
        self._lent.append((seq, lease))
        lending = self._declaration(layouts)
        gathered = plan.run([layout.variable for layout in layouts])
        pieces = [SampledPiece.of(layout.sampled, piece) for layout, piece in zip(layouts, gathered, strict=True)]
        batch = SampledBatch.of(seq, draw, pieces)
        rows = [layout.needed(rows) for layout, rows in zip(layouts, plan.rows, strict=True)]
        lending.batches = [LentBatch(batch, rows, lease.slot, lease.id)]
        return lending

    def _declaration(self, layouts: list[_Layout]) -> Lending:
        """Return what the client must know of layouts it was not told about yet."""
        stores, places = [], {}
        for layout in layouts:
            if layout.sampled.id in self._layouts:
                continue
            self._layouts[layout.sampled.id] = layout
            for store in layout.stores:
                if store not in self._stores:
                    self._stores[store] = len(self._stores)
                    stores.append(_declared(self._stores[store], store))
            places[layout.sampled.id] = layout.places(self._stores)
        return Lending(stores, places)

    def close(self) -> None:
        """End all leases of the stream."""
        while self._lent:
            self._leases.end(self._lent.popleft()[1])


@dataclass(slots=True)
class _Layout:
    """What matters of a layout here.

    Attributes:
        sampled: the stream's name for it.
        columns: (store, column) of each wanted leaf, None for those of variable size.
        variable: which leaves of the item layout are wanted and of variable size.
        used: per view, whether the client needs its rows.
        widths: per view, bytes of a row in all wanted fixed columns.
        stores: those the client is to read.
        is_lendable: other processes can map them.
    """

    sampled: SampledLayout
    columns: list[tuple[RowStore, int] | None]
    variable: list[int]
    used: list[bool]
    widths: list[int]
    stores: list[RowStore]
    is_lendable: bool

    @classmethod
    def of(cls, layout: ItemLayout, sampled: SampledLayout, leaves: list[int]) -> _Layout:
        """Return what matters of the wanted `leaves` of a layout."""
        columns: list[tuple[RowStore, int] | None] = []
        variable = []
        used, widths = [False] * len(layout.stores), [0] * len(layout.stores)
        for at in leaves:
            leaf = layout.leaves[at]
            store, spec = layout.stores[leaf.view], layout.row_spec(leaf)
            if spec.is_variable:
                columns.append(None)
                variable.append(at)
            else:
                columns.append((store, leaf.column))
                used[leaf.view] = True
                widths[leaf.view] += spec.row_bytes
        stores = list(dict.fromkeys(column[0] for column in columns if column is not None))
        is_lendable = all(store.backing.fd is not None for store in stores)
        return cls(sampled, columns, variable, used, widths, stores, is_lendable)

    def nbytes(self, rows: list[Rows]) -> int:
        """Return the bytes the client would read, given the rows of each view."""
        return sum(len(mine) * width for mine, width in zip(rows, self.widths, strict=True))

    def needed(self, rows: list[Rows]) -> list[Rows | None]:
        """Return the rows of the views that the client needs."""
        return [mine if used else None for mine, used in zip(rows, self.used, strict=True)]

    def places(self, stores: dict[RowStore, int]) -> Places:
        """Return where the wanted leaves lie."""
        return tuple(
            None if column is None else Place(stores[column[0]], column[0].offsets[column[1]], column[0].capacity)
            for column in self.columns
        )


def _declared(id: int, store: RowStore) -> LentStore:
    fd = store.backing.fd
    assert fd is not None
    return LentStore(id, fd, os.fstat(fd).st_ino, store.backing.array.nbytes)
