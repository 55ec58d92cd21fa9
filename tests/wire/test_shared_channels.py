"""Connections that the clients of one event loop share."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from wire_services import Service, echo, hello, serving, until

from reverb_async.errors import Closed, Unavailable
from reverb_async.protocol.message import Message
from reverb_async.wire.shared_channels import shared_channel
from reverb_async.wire.transport import GrpcTransport

pytestmark = pytest.mark.usefixtures("data_path")


async def says(duplex, number):
    """Check that a stream to `echo` works."""
    await duplex.send(Message({"number": number}))
    assert (await duplex.receive()).header == {"number": number}


async def test_the_clients_of_a_loop_insert_over_one_connection():
    async with serving(Service(Insert=echo)) as (server, address):
        transports = [GrpcTransport(address) for _ in range(3)]
        duplexes = await asyncio.gather(*(transport.open("insert") for transport in transports))
        await asyncio.gather(*(says(duplex, number) for number, duplex in enumerate(duplexes)))
        assert server.num_connections == 1
        for transport in transports:
            await transport.close()
        await until(lambda: server.num_connections == 0)


async def test_closing_one_client_ends_its_streams_and_nobody_elses():
    async with serving(Service(Insert=echo)) as (server, address):
        gone, stays = GrpcTransport(address), GrpcTransport(address)
        lost, kept = await gone.open("insert"), await stays.open("insert")
        await says(lost, 1)
        receiving = asyncio.create_task(lost.receive())
        await asyncio.sleep(0)
        await gone.close()
        with pytest.raises(Unavailable):
            await receiving
        with pytest.raises(Closed, match=address):
            await gone.open("insert")
        await says(kept, 2)
        (connection,) = server._endpoint.connections
        await until(lambda: len(connection.processor.streams) == 1)
        await stays.close()
        again = GrpcTransport(address)
        await says(await again.open("insert"), 3)
        await again.close()


async def test_a_client_that_is_closed_while_it_opens_a_stream_gets_none():
    async with serving(Service(Insert=echo)) as (server, address):
        stays, gone = GrpcTransport(address), GrpcTransport(address)
        opening = [asyncio.create_task(transport.open("insert")) for transport in (stays, gone)]
        await asyncio.sleep(0)
        await gone.close()
        with pytest.raises(Closed, match=address):
            await opening[1]
        await says(await opening[0], 1)
        (connection,) = server._endpoint.connections
        await until(lambda: len(connection.processor.streams) == 1)
        await stays.close()


async def test_other_servers_and_patience_are_other_connections():
    async with serving(Service(Hello=hello)) as (_, address):
        host, _, port = address.rpartition(":")
        target = (host, int(port), None)
        channels = [shared_channel(*of) for of in ((target, 1.0), (target, 2.0), ((host, 1, None), 1.0), (target, 1.0))]
        assert channels[0] is channels[3]
        assert len(set(map(id, channels))) == 3
        for channel in channels:
            channel.leave()


def test_another_loop_has_connections_of_its_own():
    target = ("127.0.0.1", 1, None)

    async def join():
        return shared_channel(target, None)

    with asyncio.Runner() as first, asyncio.Runner() as second:
        one, other = first.run(join()), second.run(join())
        assert one is not other
        assert first.run(join()) is one
        for channel in (one, one, other):
            channel.leave()


def test_a_channel_that_nobody_left_goes_with_its_users():
    async def join():
        return shared_channel(("127.0.0.1", 1, None), 3.0)

    with asyncio.Runner() as runner:
        shared = runner.run(join())
        shared.channel.close()  # else it warns
        gone = weakref.ref(shared)
        del shared
    gc.collect()
    assert gone() is None
