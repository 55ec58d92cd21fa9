"""A server that goes away, as its clients see it."""

from __future__ import annotations

import asyncio
import struct

import pytest
from grpclib.exceptions import StreamTerminatedError
from wire_services import HELLO, INSERT, Service, channel_to, echo, hello, say_hello, serving, settle, until

from reverb_async.protocol.message import Message
from reverb_async.wire.duplex import GrpcClientDuplex
from reverb_async.wire.http2.goaway import goaway_frame


def connections(server):
    return list(server._endpoint.connections)


async def test_calls_that_run_come_to_their_end_and_new_ones_find_another_connection(data_path):
    async with serving(Service(Insert=echo, Hello=hello)) as (server, address):
        channel = channel_to(address)
        duplex = GrpcClientDuplex(await channel.open_call(INSERT), address)
        await duplex.send(Message({"n": 1}))
        assert (await duplex.receive()).header == {"n": 1}
        (first,) = connections(server)
        first.go_away()
        await until(lambda: not channel._connected)
        await say_hello(channel)
        assert server.num_connections == 2
        await duplex.send(Message({"n": 2}))
        assert (await duplex.receive()).header == {"n": 2}
        await duplex.end()
        assert await duplex.receive() is None
        duplex.abort()
        await until(lambda: connections(server) != [first] and first not in connections(server))
        assert server.num_connections == 1
        await say_hello(channel)
        channel.close()


async def test_a_connection_without_calls_is_left_at_once(data_path):
    async with serving(Service(Hello=hello)) as (server, address):
        channel = channel_to(address)
        await say_hello(channel)
        connections(server)[0].go_away()
        await until(lambda: not server.num_connections)
        await say_hello(channel)
        channel.close()


async def test_a_call_that_the_server_has_not_taken_ends_and_may_be_made_again():
    async with serving(Service(Insert=echo)) as (server, address):
        channel = channel_to(address)
        taken, late = await channel.open_call(INSERT), await channel.open_call(INSERT)
        await until(lambda: server.num_calls == 2)
        connections(server)[0].connection.write_now(goaway_frame(1))
        with pytest.raises(StreamTerminatedError, match="has not taken this call"):
            await late.receive_body()
        late.abort()
        stream = GrpcClientDuplex(taken, address)
        await stream.send(Message({"n": 1}))
        assert (await stream.receive()).header == {"n": 1}
        stream.abort()
        channel.close()


async def test_a_channel_that_is_closed_closes_connections_that_only_wait_for_their_calls():
    async with serving(Service(Insert=echo, Hello=hello)) as (server, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        connections(server)[0].go_away()
        await until(lambda: not channel._connected)
        await say_hello(channel)
        channel.close()
        with pytest.raises(StreamTerminatedError):
            await call.receive_body()
        await until(lambda: not server.num_connections)


async def test_a_goaway_with_an_error_ends_everything_at_once():
    async with serving(Service(Insert=echo)) as (server, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        await until(lambda: server.num_calls == 1)
        frame = bytearray(goaway_frame(1))
        frame[-4:] = struct.pack(">L", 11)
        connections(server)[0].connection.write_now(bytes(frame))
        with pytest.raises(StreamTerminatedError, match="GOAWAY"):
            await call.receive_body()
        channel.close()


async def test_a_call_that_waits_for_a_place_finds_that_the_server_goes_away():
    async with serving(Service(Insert=echo)) as (server, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        protocol = await channel.__connect__()
        protocol.connection.write_ready.clear()
        opening = asyncio.create_task(channel.open_call(HELLO))
        await settle()
        connections(server)[0].go_away()
        await until(lambda: not channel._connected)
        protocol.connection.write_ready.set()
        with pytest.raises(StreamTerminatedError, match="goes away"):
            await opening
        call.abort()
        channel.close()
