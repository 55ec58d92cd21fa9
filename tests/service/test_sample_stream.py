"""The server's end of a Sample stream, message by message: when it answers, in which order, what goes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.core.buffer_pool import BufferPool
from reverb_async.errors import RateLimiterTimeout, from_map
from reverb_async.protocol.message import Message
from reverb_async.protocol.sampling import SampleRequest, SampleResponse, SampleResponseReader, Subscription
from reverb_async.service import sample_answers
from reverb_async.service.sample_stream import SampleStream
from reverb_async.testing import settle, until


class Line:
    """The stream between a `SampleStream` and the test; it can be told to take nothing.

    Attributes:
        taken: what was sent, and by which task.
        refused: called when `try_send` takes nothing.
    """

    peer = ""

    def __init__(self, log: list[Line]) -> None:
        self.taken: list[tuple[SampleResponse, asyncio.Task[Any] | None]] = []
        self.refused: Callable[[], None] = lambda: None
        self._log = log
        self._reader = SampleResponseReader()
        self._requests: asyncio.Queue[Message | None] = asyncio.Queue()
        self._free = asyncio.Event()
        self._free.set()

    def ask(self, **request: Any) -> None:
        self._requests.put_nowait(SampleRequest(**request).to_message())

    def leave(self) -> None:
        self._requests.put_nowait(None)

    def block(self) -> None:
        self._free.clear()

    def unblock(self) -> None:
        self._free.set()

    def seqs(self) -> list[int]:
        return [batch.seq for response, _ in self.taken for batch in response.batches]

    # -- what the stream calls ----------------------------------------------------------------------------------------

    @property
    def has_unread(self) -> bool:
        return not self._requests.empty()

    async def receive(self) -> Message | None:
        return await self._requests.get()

    def try_send(self, message: Message) -> bool:
        if self._free.is_set():
            self.taken.append((self._reader.read(message), asyncio.current_task()))
            self._log.append(self)
        else:
            self.refused()
        return self._free.is_set()

    async def send(self, message: Message) -> None:
        await self._free.wait()
        assert self.try_send(message)

    async def end(self) -> None:
        raise AssertionError("who runs the stream ends it")

    def abort(self) -> None:
        raise AssertionError("the stream never breaks it off")


class Rig:
    """A server's tables, and streams from table ``t``."""

    def __init__(self, server: ra.Server) -> None:
        self.client = server.client()
        self.table = server.tables["t"]
        self.log: list[Line] = []
        self._replay = server._replay
        self._pool = BufferPool()

    def open(self, *, together: int = 1, **request: Any) -> tuple[Line, asyncio.Task[None]]:
        """Open a stream of batches of one."""
        line = Line(self.log)
        line.ask(subscribe=Subscription("t", 1, together=together), **request)
        return line, asyncio.create_task(SampleStream(self._replay, line, pool=self._pool).run())

    @property
    def samples(self) -> int:
        return self.table.info.rate_limiter_info.sample_stats.completed


@asynccontextmanager
async def serving(items: int = 10, **options: Any) -> AsyncIterator[Rig]:
    async with ra.Server([ra.Table("t", max_size=100, **options)], port=None) as server:
        rig = Rig(server)
        if items:
            await rig.client.insert_batch({"x": np.arange(items)}, {"t": np.ones(items)})
        yield rig


@pytest.mark.parametrize("together", [0, 1])
async def test_a_request_is_answered_by_the_task_that_reads_it(together: int) -> None:
    async with serving() as rig:
        line, stream = rig.open(together=together)
        for seq in range(1, 4):
            line.ask(credits=1, consumed=seq - 1)
            await settle()
            assert line.seqs() == list(range(1, seq + 1))
            assert line.taken[-1][1] is stream
        line.ask(consumed=3, end=True)
        await stream
        assert rig.samples == 3


async def test_several_credits_are_answered_in_order_whoever_answers_them() -> None:
    async with serving() as rig:
        line, stream = rig.open(together=2, credits=5)
        line.ask(credits=2)
        line.ask(credits=1)
        await settle()
        assert line.seqs() == [1, 2, 3, 4, 5, 6, 7, 8]
        line.ask(credits=1)
        await settle()
        assert line.seqs()[8:] == [9]
        line.leave()
        await stream


async def test_a_peer_that_takes_nothing_gets_one_draw_ahead_and_then_all_in_order() -> None:
    async with serving() as rig:
        line, stream = rig.open()
        await settle()
        line.block()
        for _ in range(5):
            line.ask(credits=1)
            await settle()
        assert rig.samples == 1
        line.unblock()
        await settle()
        assert line.seqs() == [1, 2, 3, 4, 5]
        line.ask(credits=1)
        await settle()
        assert line.seqs()[5:] == [6]
        assert line.taken[-1][1] is stream
        line.leave()
        await stream
        assert rig.samples == 0, "nothing was acknowledged"


async def test_what_was_drawn_and_not_taken_goes_back_when_the_client_leaves() -> None:
    async with serving(max_times_sampled=1) as rig:
        line, stream = rig.open()
        await settle()
        line.block()
        seen: list[tuple[int, int]] = []

        def leave() -> None:
            seen.append((rig.samples, rig.table.info.current_size))
            line.leave()

        line.refused = leave
        line.ask(credits=1)
        await stream
        assert (seen, line.seqs()) == ([(1, 9)], [])
        assert (rig.samples, rig.table.info.current_size) == (0, 10)


async def test_what_was_drawn_and_not_taken_goes_back_when_the_stream_is_cancelled() -> None:
    async with serving(max_times_sampled=1) as rig:
        line, stream = rig.open(credits=1)
        await settle()
        line.block()
        line.ask(credits=3, consumed=1)
        await settle()
        assert (rig.samples, rig.table.info.current_size) == (2, 8)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
        assert (rig.samples, rig.table.info.current_size) == (1, 9)


async def test_after_a_batch_that_was_withdrawn_requests_are_answered_at_once_again() -> None:
    async with serving(items=0) as rig:
        line, stream = rig.open(credits=1)
        await settle()
        line.ask(withdraw=1)
        await settle()
        ((seq, refusal),) = line.taken[-1][0].failed
        assert (seq, type(from_map(refusal))) == (1, RateLimiterTimeout)
        await rig.client.insert({"x": 1}, {"t": 1.0})
        line.ask(credits=1)
        await settle()
        assert line.seqs() == [2]
        assert line.taken[-1][1] is stream
        line.leave()
        await stream


async def test_a_request_that_comes_while_another_waits_for_items_is_answered_after_it() -> None:
    async with serving(items=0, sampler=ra.selectors.Fifo(), max_times_sampled=1) as rig:
        line, stream = rig.open(credits=1)
        await settle()
        line.ask(credits=1)
        await settle()
        assert line.seqs() == []
        await rig.client.insert_batch({"x": np.arange(2)}, {"t": np.ones(2)})
        await settle()
        assert line.seqs() == [1, 2]
        columns = [batch.pieces[0].columns[0] for response, _ in line.taken for batch in response.batches]
        assert [column.item(0) for column in columns if isinstance(column, np.ndarray)] == [0, 1]
        line.leave()
        await stream


async def test_a_stream_with_many_requests_at_once_does_not_keep_another_waiting() -> None:
    async with serving() as rig:
        fast, fast_stream = rig.open()
        slow, slow_stream = rig.open()
        await settle()
        for _ in range(1000):
            fast.ask(credits=1)  # Together 1: a message each.
        slow.ask(credits=1)
        slow.ask(credits=1)
        await until(lambda: len(rig.log) == 1002)
        assert all(line is slow for line in rig.log[1:4:2]), "they take turns"
        for line, stream in ((fast, fast_stream), (slow, slow_stream)):
            line.leave()
            await stream


async def test_rows_that_a_thread_gathers_are_answered_in_order_and_held_while_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sample_answers, "MAX_INLINE_GATHER_BYTES", 0)
    async with serving() as rig:
        line, stream = rig.open(credits=2)
        line.ask(credits=1)
        await until(lambda: line.seqs() == [1, 2, 3])
        line.ask(credits=1)
        await settle(1)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
        await until(lambda: all(store.usage().pinned_rows == 0 for store in stores(rig)))
        assert rig.samples == 0


def stores(rig: Rig) -> list[Any]:
    return [store for layout in rig.table.state.slots.layouts if layout is not None for store in layout.stores]
