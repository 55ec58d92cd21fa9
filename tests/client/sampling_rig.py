"""Servers for the tests of sampling and of connections: one played by the test, and real ones whose streams break."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from reverb_async.client.connector import Connector
from reverb_async.client.transport import StreamKind
from reverb_async.core.info import RateLimiterInfo, TableInfo
from reverb_async.core.nest import flatten
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import ReplayError, Unavailable
from reverb_async.inprocess import InProcessTransport
from reverb_async.protocol.hello import PROTOCOL_VERSION, Hello
from reverb_async.protocol.message import Duplex, Message
from reverb_async.protocol.sampling import SampledBatch, SampledLayout, SampledPiece, SampleRequest, SampleResponse
from reverb_async.service.service import ReplayService

NUMBERS = SampledLayout(0, flatten({"x": 0})[1], 1, ((0, True, ArraySpec((), np.int64)),))


def describe_table(name: str, **sampler: Any) -> TableInfo:
    limits = RateLimiterInfo(samples_per_insert=1.0, min_size_to_sample=1, min_diff=-1e300, max_diff=1e300)
    return TableInfo(
        name=name,
        sampler_options=sampler or {"prioritized": {"priority_exponent": 1.0}},
        remover_options={"fifo": True},
        max_size=10,
        max_times_sampled=0,
        rate_limiter_info=limits,
    )


class PlayedStream:
    """The client's end of a stream whose other end is the test."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.sent: list[Message] = []
        self.ended = self.aborted = False
        self._answers: asyncio.Queue[Message | ReplayError | None] = asyncio.Queue()
        self._read = 0
        self._declared = False
        self._is_polite = False

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def try_send(self, message: Message) -> bool:
        self.sent.append(message)
        return True

    @property
    def has_unread(self) -> bool:
        return not self._answers.empty()

    async def receive(self) -> Message | None:
        answer = await self._answers.get()
        if isinstance(answer, ReplayError):
            raise answer
        return answer

    async def end(self) -> None:
        self.ended = True
        if self._is_polite:
            self.answer(None)

    def abort(self) -> None:
        self.aborted = True

    def say_goodbye(self) -> None:
        """End this side, too, once the client has ended."""
        self._is_polite = True
        if self.ended:
            self.answer(None)

    def answer(self, answer: Any) -> None:
        """Send a response, an error, or None: the end."""
        self._answers.put_nowait(answer.to_message() if hasattr(answer, "to_message") else answer)

    def requests(self) -> list[SampleRequest]:
        """Return what the client has sent on a Sample stream since the last call."""
        new, self._read = self.sent[self._read :], len(self.sent)
        return [SampleRequest.from_message(message) for message in new]

    def deliver(self, *seqs: int, size: int = 1) -> None:
        """Send batches of the items whose keys are their number; the layout goes with the first."""
        for seq in seqs:
            keys = np.full(size, seq, np.uint64)
            ones = np.ones(size)
            piece = SampledPiece(NUMBERS, None, [1], [keys.astype(np.int64)])
            batch = SampledBatch(
                seq, keys, ones, ones, np.ones(size, np.int32), np.ones(size, np.int64), ones, False, [piece]
            )
            self.answer(SampleResponse(() if self._declared else [NUMBERS], [batch]))
            self._declared = True

    def refuse(self, seq: int, error: ReplayError) -> None:
        self.answer(SampleResponse(failed=[(seq, error.to_map())]))


class PlayedServer:
    """A transport to a server that is played by the test.

    Attributes:
        down: why nothing answers now, if nothing does.
    """

    name = "played"
    address = "played:1"

    def __init__(self, *tables: TableInfo) -> None:
        self.infos = list(tables) or [describe_table("t")]
        self.down: ReplayError | None = None
        self.epoch = b"1" * 16
        self.streams: list[PlayedStream] = []
        self.attempts = self.hellos = self.descriptions = 0
        self.closed = False

    async def _answer(self) -> None:
        self.attempts += 1
        await asyncio.sleep(0)
        if self.down is not None:
            raise self.down

    async def hello(self) -> Hello:
        await self._answer()
        self.hellos += 1
        return Hello(PROTOCOL_VERSION, (), self.epoch, self.hellos << 20, 1 << 26)

    async def open(self, kind: StreamKind) -> Duplex:
        await self._answer()
        self.streams.append(PlayedStream(kind))
        return self.streams[-1]

    async def reset(self, table: str) -> None:
        await self._answer()

    async def server_info(self) -> list[TableInfo]:
        await self._answer()
        self.descriptions += 1
        return self.infos

    async def checkpoint(self) -> str:
        await self._answer()
        return "/checkpoints/1"

    async def close(self) -> None:
        self.closed = True

    def say_goodbye(self) -> None:
        """End every stream that the client ends."""
        for stream in self.streams:
            stream.say_goodbye()

    def connector(self, connect_timeout: float | None = 60.0) -> Connector:
        return Connector(self, connect_timeout)


class BreakableDuplex:
    """A stream that can be cut in the middle."""

    def __init__(self, inner: Duplex) -> None:
        self._inner = inner
        self.is_cut = False

    async def send(self, message: Message) -> None:
        self._check()
        await self._inner.send(message)

    def try_send(self, message: Message) -> bool:
        self._check()
        return self._inner.try_send(message)

    @property
    def has_unread(self) -> bool:
        return self._inner.has_unread

    async def receive(self) -> Message | None:
        message = await self._inner.receive()
        self._check()
        return message

    async def end(self) -> None:
        self._check()
        await self._inner.end()

    def abort(self) -> None:
        self._inner.abort()

    def cut(self) -> None:
        self.is_cut = True
        self._inner.abort()

    def _check(self) -> None:
        if self.is_cut:
            raise Unavailable("the connection was cut")


class BreakableTransport(InProcessTransport):
    """An in-process transport whose streams can be cut, and which can refuse to connect."""

    def __init__(self, service: ReplayService, address: str = "breakable") -> None:
        super().__init__(service, address)
        self.opened: list[BreakableDuplex] = []
        self.down = False

    async def hello(self) -> Hello:
        self._check_up()
        return await super().hello()

    async def open(self, kind: StreamKind) -> Duplex:
        self._check_up()
        self.opened.append(BreakableDuplex(await super().open(kind)))
        return self.opened[-1]

    def cut_all(self) -> None:
        for duplex in self.opened:
            duplex.cut()
        self.opened.clear()

    def _check_up(self) -> None:
        if self.down:
            raise Unavailable("nobody listens there")


def tasks_beside(baseline: Sequence[asyncio.Task[Any]]) -> list[str]:
    """Return the names of tasks that were not there before."""
    return sorted(task.get_name() for task in asyncio.all_tasks() - set(baseline))
