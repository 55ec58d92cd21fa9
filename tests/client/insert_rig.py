"""A server in this process whose connections break on demand, and one that is only played."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
from helpers import settle
from numpy.typing import NDArray

from reverb_async.client.client import Client
from reverb_async.client.connector import Connector
from reverb_async.client.events import Event
from reverb_async.client.transport import StreamKind
from reverb_async.client.writing.rows import RowInserter
from reverb_async.client.writing.writer import TrajectoryWriter
from reverb_async.core.info import TableInfo
from reverb_async.errors import ReplayError, TableClosed, Unavailable
from reverb_async.inprocess import InProcessTransport
from reverb_async.logs import Repeats
from reverb_async.protocol.inserting import InsertRequestReader, InsertResponse, Items
from reverb_async.protocol.message import Duplex, Message
from reverb_async.replay import Replay
from reverb_async.service.service import ReplayService
from reverb_async.table import Table

Cut = tuple[str, int]
"""Where a stream breaks. ("unsent", n): the n-th message is lost; ("sent", n): it breaks behind it; ("unheard", n): the
n-th answer is lost."""


class FlakyDuplex(Duplex):
    """One end of a stream that breaks where `cut` says."""

    def __init__(self, inner: Duplex, cut: Cut | None, transport: FlakyTransport) -> None:
        self._inner = inner
        self._cut = cut
        self._transport = transport
        self._sent = 0
        self._received = 0

    async def send(self, message: Message) -> None:
        self._sent += 1
        if self._cut == ("unsent", self._sent):
            await asyncio.sleep(0)
            self._break()
        await self._inner.send(message)
        self._transport.messages.append(message)
        if self._cut == ("sent", self._sent):
            for _ in range(10):  # long enough for the server to work it off
                await asyncio.sleep(0)
            self._break()

    def try_send(self, message: Message) -> bool:
        return False

    async def receive(self) -> Message | None:
        message = await self._inner.receive()
        self._received += 1
        if self._cut == ("unheard", self._received):
            self._break()
        return message

    def _break(self) -> None:
        self._inner.abort()
        raise Unavailable("cut for the test")

    async def end(self) -> None:
        await self._inner.end()

    def abort(self) -> None:
        self._inner.abort()


class FlakyTransport(InProcessTransport):
    """Streams break as `cuts` say, one entry per insert stream; while `is_down` none can be opened."""

    def __init__(self, service: ReplayService) -> None:
        super().__init__(service, "test:1")
        self.cuts: deque[Cut | None] = deque()
        self.is_down = False
        self.opened = 0
        self.messages: list[Message] = []
        """What was sent on insert streams."""
        self.duplexes: list[Duplex] = []

    async def open(self, kind: StreamKind) -> Duplex:
        if self.is_down:
            raise Unavailable("the server is down for the test")
        duplex = await super().open(kind)
        if kind != "insert":
            return duplex
        self.opened += 1
        flaky = FlakyDuplex(duplex, self.cuts.popleft() if self.cuts else None, self)
        self.duplexes.append(flaky)
        return flaky

    def break_streams(self) -> None:
        """Break all insert streams now."""
        for duplex in self.duplexes:
            duplex.abort()
        self.duplexes.clear()


class Rig:
    """Tables behind a service, and clients with a flaky connection to them."""

    def __init__(self, *tables: Table, connect_timeout: float = 5.0) -> None:
        self.tables = tables
        self.service = ReplayService(Replay(list(tables)), 1 << 26)
        self.transport = FlakyTransport(self.service)
        self.connector = Connector(self.transport, connect_timeout)
        self.rows = RowInserter(self.connector)
        self._before: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Rig:
        self._before = asyncio.all_tasks()
        for table in self.tables:
            table.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.rows.close()
        await self.connector.close()
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - self._before - {asyncio.current_task()}
        assert not left, f"tasks are left: {left}"

    def writer(self, keep: int = 5, **options: Any) -> TrajectoryWriter:
        return TrajectoryWriter(self.connector, keep, **options)

    def restart(self) -> None:
        """Replace the server by a new process with the same tables, emptied of sessions and steps."""
        self.service = ReplayService(Replay(list(self.tables)), 1 << 26)
        self.transport._service = self.service
        self.transport.break_streams()

    async def read(self, table: str, count: int) -> list[Any]:
        """Sample `count` items, their data and keys."""
        async with Client._over(InProcessTransport(self.service, "test:2")) as client:
            samples = [sample async for sample in client.sample(table, num_samples=count, timeout=5)]
        return samples

    async def data(self, table: str, count: int) -> list[Any]:
        return [sample.data for sample in await self.read(table, count)]

    def sent_bytes(self) -> int:
        """Bytes of all buffers sent on insert streams."""
        return sum(message.nbytes for message in self.transport.messages)


class PlayedStream(Duplex):
    """The client's end of a stream whose server is the test."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.is_ended = False
        self.is_aborted = False
        self._answers: asyncio.Queue[Message | ReplayError | None] = asyncio.Queue()

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def try_send(self, message: Message) -> bool:
        return False

    async def receive(self) -> Message | None:
        answer = await self._answers.get()
        if isinstance(answer, ReplayError):
            raise answer
        return answer

    async def end(self) -> None:
        self.is_ended = True
        self._answers.put_nowait(None)

    def abort(self) -> None:
        self.is_aborted = True

    def answer(self, response: InsertResponse | ReplayError | None) -> None:
        self._answers.put_nowait(response.to_message() if isinstance(response, InsertResponse) else response)

    def greet(self, applied_through: int = 0, applied: Sequence[tuple[int, int]] = (), **more: Any) -> None:
        self.answer(InsertResponse(applied_through=applied_through, applied=list(applied), **more))

    @property
    def session(self) -> bytes:
        identity = InsertRequestReader(self.sent[0]).session()
        assert identity is not None
        return identity

    def items(self) -> list[Items]:
        """What items came, message after message; steps must be of one int64 column per group."""
        blocks = []
        for message in self.sent[1:]:
            reader = InsertRequestReader(message)
            for steps in reader.steps():
                reader.buffers.array(np.int64, (steps.count,))
            blocks += reader.items()
        return blocks

    def sequences(self) -> list[tuple[int, int]]:
        """(seq, count) of the blocks that came."""
        return [(items.seq, items.keys.shape[1]) for items in self.items()]


class PlayedServer:
    """A `Connection` whose streams are played: `stream(n)` is the n-th."""

    address = "played:1"

    def __init__(self) -> None:
        self.repeats = Repeats(logging.getLogger("reverb_async"))
        self.streams: list[PlayedStream] = []
        self.refusals: deque[ReplayError] = deque()
        self.losses: list[Unavailable] = []
        self.events: list[Event] = []
        self._opened = asyncio.Event()
        self._next_key = 1000

    async def open(self, kind: str) -> Duplex:
        if self.refusals:
            raise self.refusals.popleft()
        self.streams.append(PlayedStream())
        self._opened.set()
        return self.streams[-1]

    async def opened(self, count: int) -> None:
        """Wait until so many streams were opened, and the client waits for the last one's greeting."""
        while len(self.streams) < count:
            self._opened.clear()
            await self._opened.wait()
        await settle()

    def lost(self, error: Unavailable, since: float) -> None:
        self.losses.append(error)

    def gives_up(self, error: Unavailable) -> bool:
        return isinstance(error, TableClosed)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def tables(self, refresh: bool = False) -> dict[str, TableInfo]:
        return {}

    def try_next_keys(self, n: int) -> NDArray[np.uint64]:
        first, self._next_key = self._next_key, self._next_key + n
        return np.arange(first, first + n, dtype=np.uint64)

    async def next_keys(self, n: int) -> NDArray[np.uint64]:
        return self.try_next_keys(n)

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(coro, name=name)
