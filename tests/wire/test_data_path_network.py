"""Both DATA paths over real sockets, plain and with TLS, on both event loops."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import trustme
from wire_services import INSERT, LOOPS, Service, echo, echoed, hello, say_hello, settle, until

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.message import Message
from reverb_async.security import ClientTLS, ServerTLS
from reverb_async.wire.duplex import GrpcClientDuplex
from reverb_async.wire.http2 import ReplayChannel, ReplayServer
from reverb_async.wire.parts import PART_BYTES

pytestmark = pytest.mark.usefixtures("data_path")


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Return a server's TLS context, and what a client needs for it."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return ServerTLS(folder / "server.pem", folder / "server.pem").load(), ClientTLS(ca=folder / "ca.pem")


@pytest.fixture(params=["plain", "tls"])
def connected(request, ends):
    """Return a function that makes a channel, with and without TLS, to a service."""
    tls = ends if request.param == "tls" else (None, None)

    async def connect(service, **options):
        server = ReplayServer([service])
        await server.start("localhost", 0, ssl=tls[0])
        return server, ReplayChannel("localhost", server.sockets[0].getsockname()[1], tls=tls[1], **options)

    return connect


def run(loop_factory, scenario):
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario)


async def close(server, channel):
    channel.close()
    server.close()
    async with asyncio.timeout(5):
        await server.wait_closed()


def bytes_of(size):
    return np.resize(np.arange(251, dtype=np.uint8), size)


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_messages_of_all_sizes_and_errors_travel(connected, loop_factory):
    async def scenario():
        server, channel = await connected(Service(Insert=echo, Hello=hello))
        assert (await say_hello(channel)).protocol_version == 1
        duplex = GrpcClientDuplex(await channel.open_call(INSERT), "the server")
        for size in (0, 1, 16_000, 70_000, 1_100_000, 2 * PART_BYTES + 5):
            sent = Message({"size": size}, [bytes_of(size), np.arange(3.0)])
            await duplex.send(sent)
            received = await duplex.receive()
            assert echoed(received) == echoed(sent)
            assert all(buffer.flags.writeable and buffer.ctypes.data % 64 == 0 for buffer in received.buffers[1:])
        await duplex.send(Message({"pieces": "a"}, []))
        assert (await duplex.receive()).header == {"pieces": "a"}
        await duplex._call._stream.send_data(b"\2\0\0\0\0")
        with pytest.raises(InvalidArgument, match="begins with 2"):
            await duplex.receive()
        duplex.abort()
        await close(server, channel)

    run(loop_factory, scenario())


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_memory_is_used_again_only_when_the_transport_has_passed_it_on(connected, loop_factory):
    size, count = 300_000, 120
    pool = BufferPool(max_buffers=8)
    sent = 0

    async def serve(duplex):
        nonlocal sent
        await duplex.receive()
        for number in range(count):
            memory = pool.take(size)
            memory[:] = number
            message = Message({"n": number}, [memory])
            del memory
            await duplex.send(message)
            del message
            sent += 1
            for _ in range(3):  # others use the same pool
                pool.take(size)[:] = 255

    async def scenario():
        server, channel = await connected(Service(Insert=serve))
        duplex = GrpcClientDuplex(await channel.open_call(INSERT), "the server")
        transport = duplex._call._stream._transport
        await duplex.send(Message({}))
        kept = []
        for number in range(count):
            if number in (0, 20):  # a slow reader: the server's transport is full, and waits
                transport.pause_reading()
                before = -1
                while before != sent:
                    before = sent
                    await settle(50)
                assert sent < count, "everything fits into the buffers: nothing is tested"
                for _ in range(50):
                    pool.take(size)[:] = 255
                transport.resume_reading()
            message = await duplex.receive()
            assert message.header["n"] == number
            assert np.all(message.buffers[0] == number)
            if number % 10 == 0:
                kept.append((number, message))
        for number, message in kept:
            assert np.all(message.buffers[0] == number), "a message that is kept stays what it is"
        duplex.abort()
        await close(server, channel)

    run(loop_factory, scenario())


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_transport_holds_little_for_a_peer_that_does_not_read(connected, loop_factory):
    async def serve(duplex):
        await duplex.receive()
        await duplex.send(Message({}))
        while True:
            await duplex.send(Message({}, [np.zeros(1 << 20, np.uint8)]))

    async def scenario():
        server, channel = await connected(Service(Insert=serve))
        duplex = GrpcClientDuplex(await channel.open_call(INSERT), "the server")
        await duplex.send(Message({}))
        await duplex.receive()
        duplex._call._stream._transport.pause_reading()
        (connection,) = server._endpoint.connections
        await until(lambda: not connection.connection.write_ready.is_set())
        await settle(50)
        assert connection._transport.get_write_buffer_size() < 4 << 20
        duplex.abort()
        await close(server, channel)

    run(loop_factory, scenario())


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_streams_that_end_midway_do_no_harm_to_their_neighbours(connected, loop_factory):
    async def scenario():
        server, channel = await connected(Service(Insert=echo))
        duplexes = [GrpcClientDuplex(await channel.open_call(INSERT), "the server") for _ in range(50)]

        async def talk(number, duplex):
            for size in (number, 1000 * number, 100_000 * (number % 7)):
                sent = Message({"n": number}, [bytes_of(size)])
                await duplex.send(sent)
                assert echoed(await duplex.receive()) == echoed(sent)

        async def leave(duplex, turns):
            sending = asyncio.ensure_future(duplex.send(Message({}, [bytes_of(3_000_000)])))
            await settle(turns)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            duplex.abort()

        async with asyncio.timeout(30):
            await asyncio.gather(*(talk(n, duplex) if n % 2 else leave(duplex, n) for n, duplex in enumerate(duplexes)))
        for duplex in duplexes:
            duplex.abort()
        (connection,) = server._endpoint.connections
        await until(lambda: not connection.processor.streams)
        assert server.window_budget.reserved == 0
        ours = connection.connection._connection
        theirs = (await channel.__connect__()).connection._connection
        for one, other in ((ours, theirs), (theirs, ours)):
            manager = one._inbound_flow_control_window_manager
            await until(lambda one=one, other=other: _settled(one, other))
            assert manager._bytes_processed >= manager.max_window_size - manager.current_window_size
        await close(server, channel)

    run(loop_factory, scenario())


def _settled(one, other):
    return one._inbound_flow_control_window_manager.current_window_size == other.outbound_flow_control_window
