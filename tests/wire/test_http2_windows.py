"""The HTTP/2 path: flow control."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from grpclib.exceptions import StreamTerminatedError
from wire_services import (
    INSERT,
    Service,
    channel_to,
    echoed,
    hello,
    ignore,
    say_hello,
    serving,
    settle,
    until,
)

from reverb_async.protocol.message import Message
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.grpc_codec import GrpcCodec
from reverb_async.wire.http2 import WindowBudget
from reverb_async.wire.http2.window import INITIAL_WINDOW, LARGEST_WINDOW, StreamWindow

pytestmark = pytest.mark.usefixtures("data_path")


def test_a_window_grows_with_the_messages_and_ends_with_the_stream():
    budget = WindowBudget(40 << 20)
    window = StreamWindow(budget)
    assert window.grow(1000) == 0
    assert window.grow(1 << 20) == (2 << 20) - INITIAL_WINDOW
    assert window.grow(1 << 20) == 0
    assert window.grow(64 << 20) == LARGEST_WINDOW - (2 << 20)
    other = [StreamWindow(budget) for _ in range(2)]
    assert [each.grow(64 << 20) for each in other] == [LARGEST_WINDOW - INITIAL_WINDOW, (8 << 20) + 2 * INITIAL_WINDOW]
    assert budget.reserved == budget.total
    assert StreamWindow(budget).grow(1 << 20) == 0
    for each in (window, window, *other):
        each.close()
    assert budget.reserved == 0


def test_a_stream_that_carries_much_gets_a_window_to_keep_it_busy():
    window = StreamWindow(WindowBudget(40 << 20))
    grown = [window.grow(1000) for _ in range(2000)]
    assert sorted(set(grown)) == [0, (1 << 20) - INITIAL_WINDOW]


@pytest.mark.parametrize("total", [0, 100_000, 256 << 20])
async def test_messages_larger_than_the_window_arrive_whatever_the_budget(total):
    reserved = []

    async def serve(duplex):
        while (message := await duplex.receive()) is not None:
            reserved.append(budget.reserved)
            await duplex.send(message)

    budget = WindowBudget(total)
    async with serving(Service(Insert=serve), window_budget=budget) as (_, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        message = Message({}, [np.arange(500_000)])
        await call.send(message, v1.Frame)
        assert echoed(await call.receive(v1.Frame)) == echoed(message)
        assert reserved == [min(total, 2 * (len(GrpcCodec().encode(message, v1.Frame))) - INITIAL_WINDOW)]
        call.abort()
        await until(lambda: budget.reserved == 0)
        channel.close()


async def test_streams_that_nobody_reads_do_not_hold_up_other_calls():
    async with serving(Service(Insert=ignore, Hello=hello)) as (server, address):
        channel = channel_to(address)
        stuffing = []
        for _ in range(50):
            call = await channel.open_call(INSERT)
            stuffing.append(
                (call, asyncio.create_task(call.send(Message({}, [np.zeros(1 << 20, np.uint8)]), v1.Frame)))
            )
        await settle()
        assert (await say_hello(channel)).protocol_version == 1
        assert not any(sending.done() for _, sending in stuffing)
        assert server.window_budget.reserved == 0, "what nobody reads reserves nothing"
        for call, sending in stuffing:
            call.abort()
            with pytest.raises(StreamTerminatedError):
                await sending
        assert (await say_hello(channel)).protocol_version == 1
        channel.close()


async def test_cancelled_uploads_leave_the_connection_usable():
    async with serving(Service(Insert=ignore, Hello=hello)) as (server, address):
        channel = channel_to(address)
        for _ in range(50):
            call = await channel.open_call(INSERT)
            sending = asyncio.create_task(call.send(Message({}, [np.zeros(1 << 20, np.uint8)]), v1.Frame))
            await asyncio.sleep(0)
            sending.cancel()
            call.abort()
            assert (await asyncio.gather(sending, return_exceptions=True))[0] is not None
        await say_hello(channel)
        (connection,) = server._endpoint.connections
        await until(lambda: not connection.processor.streams)
        channel.close()
