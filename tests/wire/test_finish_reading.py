"""A server's stream comes to its end for its handler before its client ends it."""

from __future__ import annotations

import asyncio
import struct

import pytest
from wire_services import INSERT, Service, channel_to, serving, settle, until

from reverb_async.protocol.message import Message
from reverb_async.wire.codec import encode
from reverb_async.wire.http2.message_buffer import MAX_UNREAD


class Collector:
    """Serves streams: takes messages, as many at once as `gate` lets it."""

    def __init__(self, *, listens: bool = False) -> None:
        self.taken: list[int] = []
        self.cut_short: bool | None = None
        self.gate = asyncio.Event()
        self._listens = listens

    async def serve(self, duplex) -> None:
        if self._listens:
            duplex.listen(lambda message: self.taken.append(message.header["n"]) or True)
        await self.gate.wait()
        while (message := await duplex.receive()) is not None:
            self.taken.append(message.header["n"])
        self.cut_short = duplex.is_cut_short


def whole(n: int, size: int = 0) -> bytes:
    body = encode(Message({"n": n, "pad": bytes(size)})).join()
    return struct.pack(">BI", 0, len(body)) + body


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("at", [0, 3, 40, 5000])
async def test_what_has_begun_to_arrive_is_taken_what_comes_behind_it_is_not(data_path, listens, at):
    collector = Collector(listens=listens)
    async with serving(Service(Insert=collector.serve)) as (server, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        collector.gate.set()
        stream, half = call._stream, whole(2, 10_000)
        await stream.send_data(whole(0) + whole(1) + half[:at])
        await until(lambda: collector.taken == [0, 1])
        await settle()
        (connection,) = server._endpoint.connections
        (theirs,) = connection.processor.streams.values()
        if at and data_path == "fast":
            await until(lambda: theirs.buffer._size >= 0 or theirs.buffer._prefix)
        theirs.finish_reading()
        if at:
            await settle()
            assert collector.cut_short is None
            await stream.send_data(half[at:] + whole(3))
            await until(lambda: collector.taken[2:3] == [2])
        await until(lambda: collector.cut_short is not None)
        if data_path == "fast":  # h2's own path reads what arrives together with the rest
            assert collector.taken == ([0, 1, 2] if at else [0, 1])
        assert collector.cut_short
        call.abort()
        channel.close()


async def test_what_is_not_taken_any_more_holds_nobody_up(data_path):
    """The sender gets its credit back, and writes on."""
    collector = Collector()
    async with serving(Service(Insert=collector.serve)) as (server, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        await until(lambda: server.num_calls == 1)
        (connection,) = server._endpoint.connections
        (theirs,) = connection.processor.streams.values()
        if data_path == "fast":
            theirs.finish_reading()
            async with asyncio.timeout(5):
                for n in range(64):
                    await call._stream.send_data(whole(n, 1 << 16))
        collector.gate.set()
        theirs.finish_reading()
        await until(lambda: collector.cut_short is not None)
        assert collector.taken == []
        call.abort()
        channel.close()


async def test_many_unread_messages_are_taken_all(data_path):
    collector = Collector()
    count = 3 * MAX_UNREAD
    async with serving(Service(Insert=collector.serve)) as (server, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        sent = b"".join(whole(n) for n in range(count))
        await call._stream.send_data(sent)
        await until(lambda: server.num_calls == 1)
        (connection,) = server._endpoint.connections
        (theirs,) = connection.processor.streams.values()
        await until(lambda: connection.connection.data_received == len(sent))
        theirs.finish_reading()
        collector.gate.set()
        await until(lambda: collector.cut_short is not None)
        assert collector.taken == list(range(count))
        assert collector.cut_short
        call.abort()
        channel.close()


async def test_a_stream_that_its_client_has_ended_is_not_cut_short(data_path):
    collector = Collector()
    async with serving(Service(Insert=collector.serve)) as (server, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        await call._stream.send_data(whole(0))
        await call.end()
        await until(lambda: server.num_calls == 1)
        (connection,) = server._endpoint.connections
        (theirs,) = connection.processor.streams.values()
        await until(lambda: theirs.buffer._ended)
        theirs.finish_reading()
        collector.gate.set()
        await until(lambda: collector.cut_short is not None)
        assert (collector.taken, collector.cut_short) == ([0], False)
        call.abort()
        channel.close()
