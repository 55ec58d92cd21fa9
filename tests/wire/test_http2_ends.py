"""The HTTP/2 path: how connections end, and stock grpclib peers."""

from __future__ import annotations

import asyncio
import gc

import grpclib.client
import grpclib.server
import numpy as np
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.settings import SettingCodes
from wire_services import (
    HELLO,
    INSERT,
    LOOPS,
    Service,
    StockService,
    channel_to,
    echo,
    echoed,
    hello,
    ignore,
    no_table,
    say_hello,
    serving,
    settle,
    until,
)

from reverb_async.protocol.message import Message
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.grpc_codec import GrpcCodec
from reverb_async.wire.http2 import ReplayChannel, ReplayServer

pytestmark = pytest.mark.usefixtures("data_path")


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_server_closes_at_once_although_clients_are_connected(loop_factory):
    async def scenario():
        service = Service(Insert=ignore)
        async with serving(service) as (server, address):
            channels = [channel_to(address) for _ in range(3)]
            calls = [await channel.open_call(INSERT) for channel in channels]
            sending = asyncio.create_task(calls[0].send(Message({}, [np.zeros(1 << 20, np.uint8)]), v1.Frame))
            await until(lambda: server.num_connections == 3)
            await settle()
        assert server.num_connections == 0
        for call in calls:
            with pytest.raises((StreamTerminatedError, GRPCError)):
                await call.receive(v1.Frame)
            call.abort()
        with pytest.raises((StreamTerminatedError, GRPCError)):
            await sending
        for channel in channels:
            channel.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


async def test_a_server_that_stops_accepting_keeps_its_connections():
    async with serving(Service(Hello=hello)) as (server, address):
        channel, late = channel_to(address), channel_to(address)
        await say_hello(channel)
        server.stop_accepting()
        await settle()
        await say_hello(channel)
        with pytest.raises(OSError, match=r"refused|failed"):
            await say_hello(late)
        channel.close()


async def test_a_channel_connects_again_after_its_server_came_back(tmp_path):
    path = str(tmp_path / "socket")
    channel = ReplayChannel(path=path)
    for _ in range(2):
        async with serving(Service(Hello=hello), path=path):
            await say_hello(channel)
        await settle()
    channel.close()


async def test_a_connection_that_cannot_get_rid_of_its_data_is_aborted(monkeypatch):
    monkeypatch.setattr("reverb_async.wire.http2.connection.CLOSE_GRACE", 0.01)
    accepted = asyncio.Queue()
    silent = await asyncio.start_server(lambda reader, writer: accepted.put_nowait(writer), "127.0.0.1", 0)
    channel = ReplayChannel(*silent.sockets[0].getsockname())
    protocol = await channel.__connect__()
    writer = await accepted.get()
    writer.transport.pause_reading()
    protocol._transport.write(bytes(64 << 20))
    channel.close()
    assert channel._endpoint.connections, "it tries to send at first"
    await until(lambda: not channel._endpoint.connections)
    writer.transport.abort()
    silent.close()


async def test_waiting_for_a_place_among_the_streams_ends_with_the_connection():
    async with serving(Service(Insert=ignore)) as (server, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        protocol = await channel.__connect__()
        await until(lambda: SettingCodes.MAX_CONCURRENT_STREAMS in protocol.connection._connection.remote_settings)
        protocol.connection._connection.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1
        protocol.connection._connection.remote_settings.acknowledge()
        opening = asyncio.create_task(channel.open_call(INSERT))
        await settle()
        assert not opening.done()
        server.abort_all()
        with pytest.raises(StreamTerminatedError):
            await opening
        call.abort()
        channel.close()


async def test_an_attempt_to_connect_is_given_up_in_time():
    class Stuck(ReplayChannel):
        async def _create_connection(self):
            await asyncio.Event().wait()

    with pytest.raises(ConnectionError, match=r"no connection within 0\.01 s"):
        await Stuck("127.0.0.1", 1, connect_timeout=0.01).open_call(HELLO)


@pytest.mark.parametrize("ours", ["client", "server", "both"])
async def test_stock_grpclib_peers_are_served(ours):
    methods = {"Insert": echo, "Hello": hello, "Reset": no_table}
    codec = GrpcCodec()
    if ours == "client":
        server = grpclib.server.Server([StockService(**methods)], codec=codec)
    else:
        server = ReplayServer([Service(**methods)])
    await server.start("127.0.0.1", 0)
    port = server._server.sockets[0].getsockname()[1]
    make = grpclib.client.Channel if ours == "server" else ReplayChannel
    async with make("127.0.0.1", port, codec=codec) as channel:
        stub = v1.ReplayStub(channel)
        assert (await stub.hello(v1.HelloRequest(client_name="me"))).server_epoch == b"me" + b"." * 14
        messages = [Message({"n": n}, [np.zeros(n, np.uint8)]) for n in (0, 1, 100_000, 5_000_000)]
        received = [echoed(message) async for message in stub.insert(messages)]
        assert received == [echoed(message) for message in messages]
        with pytest.raises(GRPCError, match="no table named 'x'") as caught:
            await stub.reset(v1.ResetRequest(table="x"))
        assert caught.value.status is Status.NOT_FOUND
    server.close()
    await server.wait_closed()
    gc.collect()
