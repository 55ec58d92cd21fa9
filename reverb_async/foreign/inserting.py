"""An Insert stream to a genuine dm-reverb server."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.messages import ColumnView
from reverb_async.compat.reading import read_insert_response
from reverb_async.compat.writing import write_insert_request, write_item, write_trajectory
from reverb_async.core.info import TableInfo
from reverb_async.core.spec import Signature
from reverb_async.errors import InvalidArgument, ReplayError, Unavailable
from reverb_async.foreign.call import ForeignCall
from reverb_async.foreign.steps import Chunk, Slice, StepChunks, row_chunk
from reverb_async.protocol.inserting import (
    InsertRequestReader,
    InsertResponse,
    Items,
    Layout,
    Refusal,
    take_column,
)
from reverb_async.protocol.message import Duplex
from reverb_async.protocol.rows import RecordFormat, RowBlock
from reverb_async.service.tasks import first_error
from reverb_async.sessions import Session, Sessions

REQUEST_BYTES = 40 << 20
"""A request is cut once it is longer, as dm-reverb's own clients do."""

_UNTIMED = (
    "a dm-reverb server cannot take back an insert: over reverb:// pass timeout=None, and put the call into "
    "asyncio.timeout() to stop waiting for it"
)


Entry = tuple[NDArray[np.uint64], NDArray[np.float64], list[list[Slice]], list[bool]]
"""An item: keys and priorities by table, and per column its rows and whether it has no time axis."""


class ForeignInsert:
    """One stream of one writer's session.

    Items are told apart by the keys that DeepMind's protocol confirms. The server knows no sessions: what it confirmed
    is remembered here, so that a writer that reconnects sends the rest only; an item whose confirmation was lost comes
    twice under one key, of which the second only sets the priority again.

    Args:
        duplex: the writer's stream.
        open_call: opens a call of a method.
        table: describes one of the server's tables.
        sessions: of the transport.
        highest: the highest priority given to any item so far, by table; shared by the transport's streams.
    """

    def __init__(
        self,
        duplex: Duplex,
        open_call: Callable[[str], Awaitable[ForeignCall]],
        table: Callable[[str], Awaitable[TableInfo]],
        sessions: Sessions,
        highest: dict[str, float],
    ) -> None:
        self._duplex = duplex
        self._open_call = open_call
        self._table = table
        self._sessions = sessions
        self._highest = highest
        self._groups: dict[int, StepChunks] = {}
        self._layouts: dict[int, Layout] = {}
        self._queued: deque[tuple[bytes, list[Chunk]]] = deque()
        self._pending: dict[int, deque[int]] = {}
        """By key: the items that wait for its confirmation."""
        self._missing: dict[int, int] = {}
        """By item: tables that have not confirmed it."""
        self._task: asyncio.Task[None] | None = None
        self._superseded = False
        self._ended = asyncio.Event()
        self._session: Session
        self._call: ForeignCall

    async def run(self) -> None:
        """Serve the stream until its writer ends it and all is confirmed, or the server is lost."""
        self._task = asyncio.current_task()
        message = await self._duplex.receive()
        if message is None:
            return
        identity = InsertRequestReader(message).session()
        if identity is None:
            raise InvalidArgument("the first message of an Insert stream must name the session")
        self._session = session = await self._sessions.attach(identity, self)
        try:
            greeting = InsertResponse(session.applied_through, session.beyond(), refused=list(session.refusals))
            await self._duplex.send(greeting.to_message())
            self._call = await self._open_call("InsertStream")
            try:
                async with asyncio.TaskGroup() as tasks:
                    confirming = tasks.create_task(self._confirm())
                    while (message := await self._duplex.receive()) is not None:
                        await self._work_off(InsertRequestReader(message))
                    await self._call.end()
                    await confirming
            finally:
                self._call.abort()
        except (asyncio.CancelledError, BaseExceptionGroup) as error:
            if self._superseded and self._task is not None and self._task.uncancel() == 0:
                raise Unavailable("its session was opened on another stream") from None
            if isinstance(error, BaseExceptionGroup):
                raise first_error(error) from None
            raise
        finally:
            self._sessions.detach(session)
            self._ended.set()

    async def withdraw(self) -> None:
        """End the stream, because its session opens another one."""
        assert self._task is not None
        if not self._superseded:
            self._superseded = True
            self._task.cancel()
        await self._ended.wait()

    async def _work_off(self, request: InsertRequestReader) -> None:
        """Do what a message asks for, but for withdrawals: what a dm-reverb server has it keeps."""
        for group in request.groups():
            self._groups[group.id] = StepChunks(group.columns)
        for layout in request.layouts():
            self._layouts[layout.id] = layout
        for steps in request.steps():
            chunks = self._groups[steps.group]
            columns = [take_column(request.buffers, spec, steps.count) for spec in chunks.specs]
            chunks.add(steps.first, steps.count, columns)
        for items in request.items():
            await self._take(items.seq, items.keys.shape[1], items.tables, items.timeout, self._items(items))
        for rows in request.rows():
            await self._take(rows.seq, rows.count, rows.tables, rows.timeout, self._rows(rows))
        await self._send_queued()
        for group_id, step in request.release():
            self._groups[group_id].release(step)

    async def _take(
        self,
        seq: int,
        count: int,
        tables: tuple[str, ...],
        timeout: float | None,
        entries: Iterator[Entry],
    ) -> None:
        """Queue items, or refuse those from the first on that is wrong."""
        queued = 0
        try:
            if timeout is not None:
                raise InvalidArgument(_UNTIMED)
            signatures = [Signature.of((await self._table(name)).signature) for name in tables]
            for keys, priorities, columns, squeezed in entries:
                for name, signature in zip(tables, signatures, strict=True):
                    if signature is not None and len(signature.specs) != len(columns):
                        raise InvalidArgument(
                            f"table {name!r} has a signature of {len(signature.specs)} columns, "
                            f"the item has {len(columns)}"
                        )
                self._queue(seq + queued, tables, keys, priorities, columns, squeezed)
                queued += 1
                if sum(len(message) for message, _ in self._queued) > REQUEST_BYTES:
                    await self._send_queued()
        except Unavailable:
            raise
        except ReplayError as error:
            await self._refuse(range(seq + queued, seq + count), error)

    def _queue(
        self,
        seq: int,
        tables: tuple[str, ...],
        keys: NDArray[np.uint64],
        priorities: NDArray[np.float64],
        columns: list[list[Slice]],
        squeezed: list[bool],
    ) -> None:
        trajectory = write_trajectory(
            [
                ColumnView([(each.chunk.key, each.offset, each.length, each.tensor) for each in slices], squeeze)
                for slices, squeeze in zip(columns, squeezed, strict=True)
            ]
        )
        chunks = list(dict.fromkeys(each.chunk for slices in columns for each in slices))
        self._missing[seq] = len(tables)
        for name, key, priority in zip(tables, keys.tolist(), priorities.tolist(), strict=True):
            if math.isnan(priority):
                priority = self._highest.get(name, 1.0)
            self._highest[name] = max(self._highest.get(name, 0.0), priority)
            self._pending.setdefault(key, deque()).append(seq)
            self._queued.append((write_item(key, name, priority, trajectory), chunks))

    def _items(self, items: Items) -> Iterator[Entry]:
        layout = self._layouts[items.layout]
        count, starts = items.keys.shape[1], list[list[int]]()
        for segments in items.views:
            counts = np.ones(count, np.int64) if segments.counts is None else segments.counts
            starts.append([0, *np.cumsum(counts).tolist()])
        for at in range(count):
            # dm-reverb keeps the time axis of what was inserted on its own.
            is_own_episode = items.episodes is None
            episode = secrets.randbits(63)
            if items.episodes is not None:
                episode = (self._session.number << 32) + int(items.episodes[at, 0])
            columns = []
            for view, column, _ in layout.leaves:
                group, segments = self._groups[layout.views[view]], items.views[view]
                ranges = slice(starts[view][at], starts[view][at + 1])
                columns.append(
                    [
                        each
                        for first, length in zip(segments.first[ranges], segments.length[ranges], strict=True)
                        for each in group.find(column, int(first), int(length), episode)
                    ]
                )
            squeezed = [squeeze and not is_own_episode for _, _, squeeze in layout.leaves]
            yield items.keys[:, at], items.priorities[:, at], columns, squeezed

    def _rows(self, rows: RowBlock) -> Iterator[Entry]:
        layout = self._layouts[rows.layout]
        form = RecordFormat(self._groups[layout.views[0]].specs, len(rows.tables))
        records = rows.records.view(form.dtype)
        for at in range(rows.count):
            record = records[at : at + 1]
            chunk = row_chunk([record[form.columns[column]] for _, column, _ in layout.leaves])
            columns = [[Slice(chunk, 0, 1, tensor)] for tensor in range(len(layout.leaves))]
            yield record["key"][0], record["priority"][0], columns, [False] * len(columns)

    async def _send_queued(self) -> None:
        """Send what is queued with the chunks the server lacks; it keeps those of steps that can still be named."""
        while self._queued:
            messages, chunks, size = [], dict[Chunk, None](), 0
            while self._queued and size < REQUEST_BYTES:
                message, needed = self._queued.popleft()
                messages.append(message)
                new = [chunk for chunk in needed if not chunk.is_sent and chunk not in chunks]
                chunks.update(dict.fromkeys(new))
                size += len(message) + sum(len(chunk.message) for chunk in new)
            kept = {chunk for group in self._groups.values() for chunk in group.chunks()}
            later = {chunk for _, needed in self._queued for chunk in needed}
            keep = np.array([chunk.key for chunk in kept | later if chunk.is_sent or chunk in chunks], np.uint64)
            for chunk in chunks:
                chunk.is_sent = True
            await self._call.send(write_insert_request([chunk.message for chunk in chunks], messages, keep))

    async def _confirm(self) -> None:
        """Pass on what the server confirms; its error is that of all items it has not confirmed."""
        while True:
            try:
                body = await self._call.receive()
            except Unavailable:
                raise
            except ReplayError as error:
                await self._refuse(sorted(self._missing), error)
                raise Unavailable(f"the server ended the stream: {error}") from error
            if body is None:
                if self._missing:
                    raise Unavailable(f"the server ended the stream without confirming {len(self._missing)} items")
                return
            answer = InsertResponse()
            for key in read_insert_response(body).tolist():
                self._confirmed(key, answer)
            if answer:
                await self._duplex.send(answer.to_message())

    def _confirmed(self, key: int, answer: InsertResponse) -> None:
        waiting = self._pending.get(key)
        if not waiting:
            return
        seq = waiting.popleft()
        if not waiting:
            del self._pending[key]
        self._missing[seq] -= 1
        if not self._missing[seq]:
            del self._missing[seq]
            self._session.settle(seq, 1)
            answer.acks.append((seq, 1))

    async def _refuse(self, items: Iterable[int], error: ReplayError) -> None:
        answer = InsertResponse()
        for seq in items:
            self._missing.pop(seq, None)
            refusal = Refusal(seq, 1, error.to_map())
            self._session.refuse(refusal)
            answer.refused.append(refusal)
        if answer:
            await self._duplex.send(answer.to_message())
