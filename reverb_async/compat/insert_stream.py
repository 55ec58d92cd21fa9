"""The server's end of an InsertStream: store chunks, insert items or let them wait, confirm those that are in."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reverb_async.compat.incoming import MANY_CHUNKS, HeldChunks, IncomingItem
from reverb_async.compat.scanning import Data
from reverb_async.compat.statuses import check_priorities
from reverb_async.compat.table_inserts import TableInserts
from reverb_async.compat.wire_format import InsertRequest, read_insert_request, write_insert_response
from reverb_async.errors import InvalidArgument, ReplayError
from reverb_async.table import Table

if TYPE_CHECKING:
    from reverb_async.compat.bytes_stream import BytesStream
    from reverb_async.compat.service import DeepMindService

MAX_INLINE_BYTES = 128 << 10
"""Longer messages are read in a thread: they may have any number of parts. After so much others have a turn."""

MAX_TOGETHER = 128
MAX_TOGETHER_BYTES = 1 << 20
"""Short messages that are worked off in one go."""

MAX_STEP_PARTS = 8192
"""After so many slices of items others have a turn of the loop."""

_ITEM_PARTS = 8
"""An item takes as long as so many slices."""

MAX_UNCONFIRMED = 4096
"""A stream is read no further while its client does not take so many confirmations."""


class InsertStream:
    """One writer's stream.

    Messages are worked off one after the other. Items that have to wait stand in the queues of their tables, so that
    one table holds up neither others nor the withdrawal of the waiting items; but when too many of them wait for one
    table, the stream is read no further.
    """

    def __init__(self, service: DeepMindService, stream: BytesStream) -> None:
        self._service = service
        self._stream = stream
        self._memory = service.replay.memory
        self._chunks = HeldChunks(
            service.encoded, service.recipes, service.episodes.stream(), service.replay.limits.client_bytes
        )
        self._tables: dict[Table, TableInserts] = {}
        self._confirmed: list[int] = []
        self._sender: asyncio.Task[None] | None = None
        self._is_sending = False
        self._is_working = False
        self._room = asyncio.Event()
        self._error: ReplayError | None = None
        self._main: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve the stream until its client ends it or vanishes.

        Items that wait when the client ends its side stay in the queues; when it vanishes they are withdrawn.
        """
        self._main = asyncio.current_task()
        self._service.replay.count_writers(1)
        try:
            while bodies := await self._receive():
                self._is_working = True
                try:
                    await self._work_off(bodies)
                except ReplayError:
                    await self._finish_sending()
                    raise
                self._is_working = False
                bodies.clear()  # They may be large, and what follows may take long.
                await self._send_confirmations()
                await self._wait_for_room()
            await self._service.adopt([inserts for inserts in self._tables.values() if inserts.count])
            self._tables.clear()
            await self._finish_sending()
        except asyncio.CancelledError:
            if self._error is not None and self._main is not None and self._main.uncancel() == 0:
                raise self._error from None
            raise
        finally:
            self._main = self._error = None  # The error refers to this frame, and that to messages.
            self._service.replay.count_writers(-1)
            if self._sender is not None:
                self._sender.cancel()
            for inserts in self._tables.values():
                inserts.withdraw()
            self._chunks.close()

    def _fail(self, error: ReplayError) -> None:
        """End the stream, whatever it waits for."""
        if self._error is None and self._main is not None:
            self._error = error
            self._main.cancel()

    async def _receive(self) -> list[Data]:
        """Return the next message and the short ones that are here already, nothing at the end of the stream."""
        body = await self._stream.receive()
        if body is None:
            return []
        room = min([MAX_TOGETHER, *(inserts.room for inserts in self._tables.values())])
        return [body, *self._stream.ready(room - 1, MAX_TOGETHER_BYTES - len(body))]

    async def _work_off(self, bodies: Sequence[Data]) -> None:
        """Do what messages ask for, in their order; what can be done for all of them in one go is."""
        nbytes = sum(map(len, bodies))
        if self._memory.used + nbytes > self._memory.stage_below:
            await self._wait_for_memory(nbytes)
        try:
            requests = await _read_all(bodies)
            await self._chunks.store([view for request in requests for view in request.chunks])
        except ReplayError:
            if len(bodies) == 1:
                raise
            self._chunks.forget()
            for body in bodies:  # Something is wrong with one of them: find out which, so that those before it count.
                await self._work_off([body])
            return
        ready, parts = _Ready(self._insert), 0
        try:
            for request in requests:
                for start in range(0, len(request.chunks), MANY_CHUNKS):
                    if start:
                        await asyncio.sleep(0)
                    self._chunks.hold(request.chunks[start : start + MANY_CHUNKS])
                for view in request.items:
                    table = self._service.replay.table(view.table)
                    item = self._chunks.take(table, view)
                    _check(item)
                    ready.add(item)
                    parts += _ITEM_PARTS + view.shape.num_slices
                    if parts >= MAX_STEP_PARTS:
                        parts = 0
                        ready.flush()
                        await self._send_confirmations()
                        await asyncio.sleep(0)
                if request.items:
                    self._chunks.keep_only(request.keep_chunk_keys)
        finally:  # Items before a wrong one are inserted.
            ready.flush()
            self._chunks.release()

    async def _wait_for_memory(self, nbytes: int) -> None:
        """Wait until so much may be stored; confirmations go out meanwhile."""
        self._is_working = False
        await self._memory.wait(self._chunks.nbytes + sum(each.nbytes for each in self._tables.values()), nbytes)
        self._is_working = True

    def _insert(self, items: Sequence[IncomingItem]) -> None:
        """Insert items of one table and layout, or let them wait."""
        table, encoded = items[0].table, self._service.encoded
        inserts = self._tables.get(table)
        if inserts is None:
            inserts = self._tables[table] = TableInserts(
                table, self._service.replay, self._confirm, self._fail, self._stream.peer
            )
        _, keys, priorities, _, kept, episodes = zip(*items, strict=True)
        inserts.insert(
            encoded.block(
                items[0].fit.layout,
                np.array(keys, np.uint64),
                np.array(priorities, np.float64),
                kept,
                np.array(episodes, np.int64),
            )
        )

    # -- answers ------------------------------------------------------------------------------------------------------

    def _confirm(self, keys: list[int]) -> None:
        """Have keys sent: by whoever is working off a message, when that is done, or else soon."""
        if self._main is None:
            return
        self._confirmed += keys
        self._room.set()
        if not self._is_working and not self._is_sending and self._sender is None:
            self._sender = asyncio.create_task(self._send_later())

    async def _send_later(self) -> None:
        try:
            await self._send_confirmations()
        except ReplayError as error:
            self._fail(error)
        finally:
            self._sender = None

    async def _finish_sending(self) -> None:
        """Send all that is confirmed; a task that is at it would be cut off by the end of the stream."""
        if self._sender is not None:
            await asyncio.wait({self._sender})
        await self._send_confirmations()

    async def _send_confirmations(self) -> None:
        """Send what is confirmed, unless somebody is just at it, who then sends what came meanwhile as well."""
        if self._is_sending:
            return
        self._is_sending = True
        try:
            while self._confirmed:
                keys, self._confirmed = self._confirmed[:MAX_UNCONFIRMED], self._confirmed[MAX_UNCONFIRMED:]
                await self._service.replay.logged()
                await self._stream.send([write_insert_response(np.array(keys, np.uint64))])
                self._room.set()
        finally:
            self._is_sending = False

    async def _wait_for_room(self) -> None:
        """Stop reading while too many items wait for a table, or the client does not take its confirmations."""
        while len(self._confirmed) > MAX_UNCONFIRMED or any(inserts.room <= 0 for inserts in self._tables.values()):
            self._room.clear()
            if self._memory.is_full:  # More may wait when it is not.
                self._memory.call_when_less(self._room.set)
            await self._room.wait()


class _Ready:
    """Items about to be inserted: neighbours of one table and layout together."""

    def __init__(self, insert: Callable[[Sequence[IncomingItem]], None]) -> None:
        self._insert = insert
        self._items: list[IncomingItem] = []

    def add(self, item: IncomingItem) -> None:
        """Put an item behind the others."""
        items = self._items
        if items and (item.table is not items[0].table or item.fit.layout is not items[0].fit.layout):
            self.flush()
        self._items.append(item)

    def flush(self) -> None:
        """Insert what there is."""
        if self._items:
            items, self._items = self._items, []
            self._insert(items)


async def _read_all(bodies: Sequence[Data]) -> list[InsertRequest]:
    requests, nbytes = [], 0
    for body in bodies:
        if nbytes > MAX_INLINE_BYTES:
            nbytes = 0
            await asyncio.sleep(0)
        if len(body) > MAX_INLINE_BYTES:
            request = await asyncio.get_running_loop().run_in_executor(None, read_insert_request, body)
        else:
            request = read_insert_request(body)
        if not request.chunks and not request.items:
            raise InvalidArgument("ProcessIncomingRequest: Request lacks both chunks and item.  Request: ")
        requests.append(request)
        nbytes += len(body)
    return requests


def _check(item: IncomingItem) -> None:
    """Refuse an item that its table never takes, before anything is changed."""
    state = item.table.state
    if not 0 <= item.priority < math.inf:
        check_priorities(item.table, np.array([item.priority]))
    if state.max_bytes is not None and item.item.nbytes > state.max_bytes:
        raise InvalidArgument(
            f"an item shows {item.item.nbytes} bytes, the whole table may hold max_bytes={state.max_bytes}"
        )
