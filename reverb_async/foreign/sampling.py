"""A Sample stream from a genuine dm-reverb server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from reverb_async.compat.reading import read_sample_response
from reverb_async.compat.writing import write_sample_request
from reverb_async.core.info import TableInfo
from reverb_async.core.spec import Signature
from reverb_async.errors import InvalidArgument, RateLimiterTimeout, Unavailable
from reverb_async.foreign.batches import BatchMaker, ForeignItem, ItemReader
from reverb_async.foreign.call import ForeignCall
from reverb_async.foreign.updating import Call, mutate
from reverb_async.protocol.message import Duplex
from reverb_async.protocol.sampling import SampleRequest, SampleResponse, Subscription
from reverb_async.service.tasks import first_error
from reverb_async.waiting import FIRST_WARNING_S

MAX_OWED = 65_536
"""Samples asked for in one request: DeepMind's protocol takes the next request when all of one have come."""


class ForeignSample:
    """One learner's stream from one table.

    What the server has sent is sampled: what the learner does not take is not handed back.

    Args:
        duplex: the learner's stream.
        open_call: opens a call of a method.
        call: makes a unary call.
        table: describes one of the server's tables.
    """

    def __init__(
        self,
        duplex: Duplex,
        open_call: Callable[[str], Awaitable[ForeignCall]],
        call: Call,
        table: Callable[[str], Awaitable[TableInfo]],
    ) -> None:
        self._duplex = duplex
        self._open_call = open_call
        self._call = call
        self._table = table
        self._credits = 0
        self._seq = 0
        self._withdrawn = 0
        self._ending = False
        self._owed = 0
        self._ready: deque[ForeignItem] = deque()
        self._changed = asyncio.Event()
        self._wanted: Subscription
        self._maker: BatchMaker

    async def run(self) -> None:
        """Serve the stream until the learner ends it, or the server is lost."""
        message = await self._duplex.receive()
        if message is None:
            return
        request = SampleRequest.from_message(message)
        if request.subscribe is None:
            raise InvalidArgument("the first message of a Sample stream must subscribe to a table")
        self._wanted = wanted = request.subscribe
        table = await self._table(wanted.table)
        self._maker = BatchMaker(Signature.of(table.signature), wanted.columns)
        stream = await self._open_call("SampleStream")
        try:
            async with asyncio.TaskGroup() as tasks:
                others = [tasks.create_task(self._receive(stream)), tasks.create_task(self._answer(stream))]
                while True:
                    await self._work_off(request)
                    message = None if self._ending else await self._duplex.receive()
                    if message is None:
                        break
                    request = SampleRequest.from_message(message)
                for task in others:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            stream.abort()

    async def _work_off(self, request: SampleRequest) -> None:
        """Do what one message asks for: updates before anything that is asked of the server later."""
        if request.keys is not None and request.priorities is not None:
            await mutate(self._call, self._wanted.table, request.keys, request.priorities, request.keys[:0])
        self._withdrawn = max(self._withdrawn, request.withdraw)
        self._credits += request.credits
        self._ending = request.end
        self._changed.set()

    async def _receive(self, stream: ForeignCall) -> None:
        reader = ItemReader()
        while (body := await stream.receive()) is not None:
            for entry in read_sample_response(body):
                item = reader.feed(entry)
                if item is not None:
                    self._ready.append(item)
                    self._owed -= 1
            self._changed.set()
        raise Unavailable("the server ended the stream")

    async def _answer(self, stream: ForeignCall) -> None:
        """Answer credits in order, and ask the server for what they need."""
        size = self._wanted.batch_size
        while True:
            while self._credits and len(self._ready) >= size:
                await self._send(size)
            while self._credits and self._seq < self._withdrawn:
                if self._wanted.partial and self._ready:
                    await self._send(len(self._ready))
                else:
                    self._credits -= 1
                    self._seq += 1
                    error = RateLimiterTimeout(self._missing())
                    await self._duplex.send(SampleResponse(failed=[(self._seq, error.to_map())]).to_message())
            needed = min(self._credits * size - len(self._ready), MAX_OWED)
            if needed > 0 and not self._owed:
                self._owed = needed
                await stream.send(write_sample_request(self._wanted.table, needed, None))
            await self._woken()

    async def _send(self, size: int) -> None:
        self._credits -= 1
        self._seq += 1
        batch = self._maker.batch(self._seq, [self._ready.popleft() for _ in range(size)])
        await self._duplex.send(SampleResponse(self._maker.declarations(), [batch]).to_message())

    async def _woken(self) -> None:
        """Wait until something has changed; say what is missing when that takes long."""
        patience = FIRST_WARNING_S
        while True:
            try:
                async with asyncio.timeout(patience if self._credits else None):
                    await self._changed.wait()
            except TimeoutError:
                await self._duplex.send(SampleResponse(waiting=self._missing()).to_message())
                patience *= 2
            else:
                self._changed.clear()
                return

    def _missing(self) -> str:
        missing = self._wanted.batch_size - len(self._ready)
        return (
            f"table {self._wanted.table!r} of the dm-reverb server has not sent {missing} of the "
            f"{self._wanted.batch_size} items; why, it does not say"
        )
