"""A client notices that its server is gone, and only then."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from grpclib.exceptions import StreamTerminatedError
from wire_services import INSERT, Service, channel_to, hello, ignore, say_hello, serving

from reverb_async.wire.duplex import open_duplex
from reverb_async.wire.http2 import ReplayChannel
from reverb_async.wire.status import Silence, from_grpc_error

SILENCE_S = 0.2


@pytest.fixture
async def silent():
    """A server that accepts connections and says nothing."""
    accepted = []
    server = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()
    for writer in accepted:
        writer.transport.abort()
    server.close()


async def test_a_server_that_says_nothing_is_given_up_in_time(silent, data_path):
    channel = ReplayChannel(*silent, silence_s=SILENCE_S)
    call = await channel.open_call(INSERT)
    started = time.monotonic()
    with pytest.raises(StreamTerminatedError, match=r"nothing was heard of it for 0\.2 s") as caught:
        await call.receive_body()
    assert SILENCE_S * 0.8 < time.monotonic() - started < SILENCE_S * 2
    error = from_grpc_error(caught.value, "here")
    assert error.after_silence
    assert str(error) == "the connection to here was lost: nothing was heard of it for 0.2 s"
    assert not channel._endpoint.connections
    channel.close()


async def test_a_call_that_cannot_even_be_sent_ends_too(silent):
    channel = ReplayChannel(*silent, silence_s=SILENCE_S)
    (await channel.__connect__()).connection.write_ready.clear()
    with pytest.raises(StreamTerminatedError) as caught:
        await channel.open_call(INSERT)
    assert isinstance(caught.value.args[0], Silence)
    channel.close()


async def test_a_server_that_answers_pings_lives_however_long_a_call_takes(data_path):
    async with serving(Service(Sample=ignore, Hello=hello)) as (server, address):
        channel = channel_to(address, silence_s=SILENCE_S)
        duplex = await open_duplex(channel, "/reverb_async.v1.Replay/Sample", address)
        receiving = asyncio.create_task(duplex.receive())
        await asyncio.sleep(3 * SILENCE_S)
        assert not receiving.done()
        assert server.num_connections == 1
        await say_hello(channel)
        receiving.cancel()
        duplex.abort()
        channel.close()


async def test_a_client_whose_loop_was_blocked_does_not_take_its_server_for_dead():
    async with serving(Service(Hello=hello)) as (server, address):
        channel = channel_to(address, silence_s=SILENCE_S)
        await say_hello(channel)
        for _ in range(3):
            time.sleep(2 * SILENCE_S)  # noqa: ASYNC251 - a training step
            await asyncio.sleep(0)
        await say_hello(channel)
        assert server.num_connections == 1
        channel.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux")
async def test_the_system_gives_up_data_that_nobody_acknowledges():
    async with serving(Service(Hello=hello)) as (_, address):
        channel = channel_to(address, silence_s=20.0)
        await say_hello(channel)
        sock = (await channel.__connect__())._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        channel.close()


async def test_a_channel_that_is_not_told_to_asks_nothing(silent):
    channel = ReplayChannel(*silent)
    protocol = await channel.__connect__()
    assert protocol._keepalive is None
    channel.close()
