"""Batches whose rows the server lends: copied here, out of its memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.shared_memory import SharedMemory
from reverb_async.core.buffer_pool import BufferPool
from reverb_async.core.spec import ArraySpec
from reverb_async.protocol.control_page import ControlView
from reverb_async.protocol.inserting import Column
from reverb_async.protocol.lending import LentBatch, Place, Returned, Rows
from reverb_async.protocol.lending_reader import LendingReader
from reverb_async.protocol.message import Message
from reverb_async.protocol.sampled import SampledBatch, SampledLayout

SLICE_BYTES = 4 << 20
"""Copied in one synchronous step, at most: 0.4 ms. A thread would cost 0.1 ms per batch, and a lock for the pool."""

Bytes = NDArray[np.uint8]


class Borrower:
    """The client's side of lending, for one connection of one Sample stream.

    Args:
        memory: the client's.
        page: the server's control page.
    """

    def __init__(self, memory: SharedMemory, page: ControlView) -> None:
        self._memory = memory
        self._page = page
        self._reader = LendingReader()
        self._mapped: dict[int, Bytes | None] = {}
        self._pending = Returned(secret=page.secret)
        memory.num_borrowers += 1

    def close(self) -> None:
        """Note that nothing more will be copied; the last of a client's streams lets go of the memory for it."""
        self._memory.num_borrowers -= 1
        if not self._memory.num_borrowers:
            self._memory.pool.clear()

    @property
    def has_news(self) -> bool:
        """Whether leases are to be given back."""
        pending = self._pending
        return bool(pending.copied or pending.stop)

    def report(self) -> dict[str, Any] | None:
        """Return what is to be said to the server now; it counts as said."""
        pending, self._pending = self._pending, Returned()
        return pending.to_wire() or None

    async def take(
        self, message: Message, layouts: Mapping[int, SampledLayout]
    ) -> list[tuple[int, SampledBatch | None]]:
        """Copy the lent batches of a message; return number and batch, None for what was revoked.

        Raises:
            InvalidArgument: the message is malformed.
        """
        taken = []
        for lent in self._reader.read(message, layouts):
            batch = await self._copy(lent)
            self._pending.copied = lent.batch.seq
            if batch is None:
                self._pending.lost = [*self._pending.lost, lent.batch.seq]
            taken.append((lent.batch.seq, batch))
        return taken

    async def _copy(self, lent: LentBatch) -> SampledBatch | None:
        if not self._page.holds(lent.slot, lent.lease):
            return None  # Revoked while this client was not looking: its rows may be without memory by now.
        batch, work = lent.batch, _Work()
        for piece, rows in zip(batch.pieces, lent.rows, strict=True):
            variable = iter(piece.columns)
            places = self._reader.places[piece.layout.id]
            columns: list[Column] = []
            for (view, _, spec), place in zip(piece.layout.leaves, places, strict=True):
                if place is None:
                    columns.append(next(variable))
                    continue
                mine, source = rows[view], self._source(spec, place)
                assert mine is not None
                if source is None:
                    self._pending.stop = True
                    return None
                columns.append(work.add(source, mine, spec, self._memory.pool))
            piece.columns = columns
        while work.step():
            await asyncio.sleep(0)
            if not self._page.holds(lent.slot, lent.lease):
                return None
        return batch if self._page.holds(lent.slot, lent.lease) else None

    def _source(self, spec: ArraySpec, place: Place) -> Bytes | None:
        """Return a column as bytes, ``[capacity, row_bytes]``; None if its store cannot be mapped."""
        if place.store not in self._mapped:
            self._mapped[place.store] = self._memory.map(self._reader.stores[place.store], self._page)
        store = self._mapped[place.store]
        return None if store is None else np.ndarray((place.capacity, spec.row_bytes), np.uint8, store, place.offset)


class _Work:
    """Rows to copy, in slices."""

    def __init__(self) -> None:
        self._columns: list[tuple[Bytes, Rows, Bytes]] = []
        self._column = self._row = self._byte = 0

    def add(self, source: Bytes, rows: Rows, spec: ArraySpec, pool: BufferPool) -> NDArray[Any]:
        """Note a column; return the array its rows will be in, ``[len(rows), *row_shape]``."""
        room = pool.take(len(rows) * source.shape[1])
        if room.size:
            self._columns.append((source, rows, room.reshape(len(rows), -1)))
        return room.view(spec.dtype).reshape(len(rows), *spec.fixed_shape)

    def step(self) -> bool:
        """Copy as much as a synchronous step may; return whether there is more."""
        left = SLICE_BYTES
        while self._column < len(self._columns):
            source, rows, out = self._columns[self._column]
            width = source.shape[1]
            if width > SLICE_BYTES:
                if left < SLICE_BYTES:
                    return True
                row, part = self._row, slice(self._byte, self._byte + SLICE_BYTES)
                copy_rows(source[:, part], rows[row : row + 1], out[row : row + 1, part])
                self._byte += SLICE_BYTES
                if self._byte >= width:
                    self._row, self._byte = row + 1, 0
                left = 0
            else:
                count = min(left // width, len(rows) - self._row)
                if count == 0:
                    return True
                part = slice(self._row, self._row + count)
                copy_rows(source, rows[part], out[part])
                self._row += count
                left -= count * width
            if self._row == len(rows):
                self._column, self._row = self._column + 1, 0
        return False


def copy_rows(source: Bytes, rows: Rows, out: Bytes) -> None:
    """Copy rows of the server's memory; whatever the row numbers are, nothing outside `source` is read."""
    if len(rows) == 1:
        np.copyto(out[0], source[min(max(int(rows[0]), 0), len(source) - 1)])
    else:
        source.take(rows, axis=0, out=out, mode="clip")
