"""Streams over a real connection."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from wire_services import LOOPS, Service, echo, echoed, hello, ignore, serving, until

from reverb_async.errors import InvalidArgument, ResourceExhausted, TableNotFound, Unavailable
from reverb_async.protocol.message import Message
from reverb_async.wire.duplex import GrpcServerDuplex
from reverb_async.wire.parts import PART_BYTES, split
from reverb_async.wire.transport import GrpcTransport

pytestmark = pytest.mark.usefixtures("data_path")


def bytes_of(size: int) -> np.ndarray:
    return np.resize(np.arange(251, dtype=np.uint8), size)


@pytest.mark.parametrize("loop_factory", LOOPS)
@pytest.mark.parametrize("unix", [False, True])
def test_messages_of_all_sizes_go_both_ways(loop_factory, unix, tmp_path):
    async def scenario():
        path = str(tmp_path / "socket") if unix else None
        async with serving(Service(Insert=echo, Hello=hello), path=path) as (_, address):
            transport = GrpcTransport(address)
            assert transport.name == ("unix" if unix else "tcp")
            assert (await transport.hello(client_name="me")).server_epoch == b"me" + b"." * 14
            duplex = await transport.open("insert")
            for size in (0, 1, 63, 64, 65, 1000, 65_535, 65_536, 1 << 20, 5_000_000, 2 * PART_BYTES + 77):
                message = Message({"size": size}, [bytes_of(size), np.arange(3.0)])
                await duplex.send(message)
                assert echoed(await duplex.receive()) == echoed(message)
            await duplex.end()
            assert await duplex.receive() is None
            duplex.abort()
            await transport.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


async def test_received_buffers_are_owned_by_the_client_and_views_on_the_server():
    seen = []

    async def serve(duplex):
        while (message := await duplex.receive()) is not None:
            seen.extend(buffer.flags.writeable for buffer in message.buffers)
            await duplex.send(message)

    async with serving(Service(Sample=serve)) as (_, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("sample")
        for size in (100, PART_BYTES + 1):
            await duplex.send(Message({}, [bytes_of(size)]))
            (buffer,) = (await duplex.receive()).buffers
            assert buffer.flags.writeable
            assert buffer.flags.c_contiguous
            assert buffer.ctypes.data % 64 == 0
        assert seen == [False, True]
        duplex.abort()
        await transport.close()


async def test_both_ends_know_whether_more_was_sent_than_they_received():
    async def take_two(duplex):
        for number in range(2):
            await until(lambda: duplex.has_unread)
            assert (await duplex.receive()).header == {"n": number}
        assert not duplex.has_unread

    async def serve(duplex):
        await take_two(duplex)
        for number in range(2):
            await duplex.send(Message({"n": number}))
        assert await duplex.receive() is None

    async with serving(Service(Sample=serve)) as (_, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("sample")
        assert not duplex.has_unread
        for number in range(2):
            await duplex.send(Message({"n": number}))
        await take_two(duplex)
        await duplex.end()
        assert await duplex.receive() is None
        duplex.abort()
        await transport.close()


async def test_many_streams_share_a_connection():
    async with serving(Service(Update=echo)) as (server, address):
        transport = GrpcTransport(address)
        duplexes = [await transport.open("update") for _ in range(300)]
        for number, duplex in enumerate(duplexes):
            await duplex.send(Message({"n": number}))
        assert [(await duplex.receive()).header["n"] for duplex in duplexes] == list(range(300))
        assert server.num_connections == 1
        for duplex in duplexes:
            duplex.abort()
        await transport.close()


async def test_an_error_of_the_server_comes_after_all_it_sent_before():
    async def serve(duplex):
        for number in range(5):
            await duplex.send(Message({"n": number}))
        raise TableNotFound("x", ["a"])

    async with serving(Service(Sample=serve)) as (_, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("sample")
        await until(lambda: duplex._call._stream.terminated is not None)
        assert [(await duplex.receive()).header["n"] for _ in range(5)] == list(range(5))
        for _ in range(2):
            with pytest.raises(TableNotFound) as caught:
                await duplex.receive()
            assert caught.value.tables == ["a"]
        with pytest.raises(TableNotFound):
            await duplex.send(Message({}))
        with pytest.raises(TableNotFound):
            await duplex.end()
        duplex.abort()
        await transport.close()


async def test_a_sender_that_waits_for_the_window_learns_that_the_server_failed():
    go_on = asyncio.Event()

    async def serve(duplex):
        await go_on.wait()
        raise InvalidArgument("no more")

    async with serving(Service(Insert=serve)) as (_, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("insert")
        sending = asyncio.create_task(duplex.send(Message({}, [bytes_of(1 << 20)])))
        await asyncio.wait([sending], timeout=0.05)
        assert not sending.done()
        go_on.set()
        with pytest.raises(InvalidArgument, match="no more"):
            await sending
        duplex.abort()
        await transport.close()


async def test_a_vanished_server_is_unavailable_for_all_who_wait():
    async with serving(Service(Insert=ignore)) as (server, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("insert")
        receiving = asyncio.create_task(duplex.receive())
        sending = asyncio.create_task(duplex.send(Message({}, [bytes_of(1 << 20)])))
        await asyncio.wait([receiving, sending], timeout=0.05)
        server.abort_all()
        for waiting in (receiving, sending):
            with pytest.raises(Unavailable, match=address):
                await waiting
        with pytest.raises(Unavailable):
            await duplex.send(Message({}))
        with pytest.raises(Unavailable):
            await duplex.end()
        duplex.abort()
        await transport.close()


async def test_a_client_that_aborts_cancels_the_handler_and_wakes_its_own_waiters():
    service = Service(Insert=ignore)
    async with serving(service) as (server, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("insert")
        receiving = asyncio.create_task(duplex.receive())
        await asyncio.wait([receiving], timeout=0.02)
        duplex.abort()
        duplex.abort()
        with pytest.raises(Unavailable, match="aborted"):
            await receiving
        for call in (duplex.receive(), duplex.send(Message({})), duplex.end()):
            with pytest.raises(Unavailable, match="aborted"):
                await call
        async with asyncio.timeout(5):
            await service.cancelled.wait()
        assert server.num_connections == 1
        await transport.close()


async def test_a_client_that_leaves_cancels_the_handler():
    service = Service(Insert=ignore)
    async with serving(service) as (server, address):
        transport = GrpcTransport(address)
        await transport.open("insert")
        await transport.close()
        async with asyncio.timeout(5):
            await service.cancelled.wait()
        await until(lambda: server.num_connections == 0)


async def test_a_server_can_abort_and_end():
    async def aborting(duplex):
        await duplex.receive()
        receiving = asyncio.create_task(duplex.receive())
        await asyncio.sleep(0)
        duplex.abort()
        with pytest.raises(Unavailable, match="aborted"):
            await receiving
        with pytest.raises(Unavailable, match="aborted"):
            await duplex.send(Message({}))

    async def ending(duplex):
        await duplex.send(Message({"last": True}))
        await duplex.end()

    async with serving(Service(Insert=aborting, Sample=ending)) as (_, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("insert")
        await duplex.send(Message({}))
        with pytest.raises(Unavailable, match="reset"):
            await duplex.receive()
        duplex.abort()
        duplex = await transport.open("sample")
        assert (await duplex.receive()).header == {"last": True}
        assert await duplex.receive() is None
        duplex.abort()
        await transport.close()


async def test_a_cancelled_receive_loses_nothing():
    numbers = asyncio.Queue()

    async def serve(duplex):
        while True:
            await duplex.send(Message({"n": await numbers.get()}, [bytes_of(3_000_000)]))

    async with serving(Service(Sample=serve)) as (_, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("sample")
        cancellations = 0
        for number in range(3):
            numbers.put_nowait(number)
            while True:
                receiving = asyncio.create_task(duplex.receive())
                await asyncio.sleep(0)  # one turn: far too short for three megabytes
                if receiving.cancel():
                    cancellations += 1
                try:
                    message = await receiving
                except asyncio.CancelledError:
                    continue
                break
            assert echoed(message) == echoed(Message({"n": number}, [bytes_of(3_000_000)]))
        assert cancellations > 3
        duplex.abort()
        await transport.close()


async def test_lying_parts_fail_the_stream_with_a_status():
    async with serving(Service(Insert=echo)) as (_, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("insert")
        lie = Message({"part": 1, "parts": 2, "pieces": []})
        await duplex._call.send(lie, None)
        with pytest.raises(InvalidArgument, match="sizes"):
            await duplex.receive()
        duplex.abort()
        await transport.close()


async def test_a_unit_above_the_limit_is_refused():
    async def serve(duplex):
        await echo(GrpcServerDuplex(duplex._stream, max_unit_bytes=PART_BYTES + 10))

    async with serving(Service(Insert=serve)) as (_, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("insert")
        sending = asyncio.create_task(duplex.send(Message({}, [bytes_of(PART_BYTES + 11)])))
        with pytest.raises(ResourceExhausted, match="exceeds the limit"):
            await duplex.receive()
        await asyncio.wait([sending])
        assert isinstance(sending.exception(), ResourceExhausted | None)
        duplex.abort()
        await transport.close()


@pytest.mark.parametrize("how", ["lost", "aborted"])
async def test_a_message_in_parts_goes_with_its_stream(how):
    async def serve(duplex):
        await duplex.receive()
        await duplex._send_part(next(split(Message({}, [bytes_of(PART_BYTES + 10)]))))
        await asyncio.Event().wait()

    async with serving(Service(Sample=serve)) as (server, address):
        transport = GrpcTransport(address)
        duplex = await transport.open("sample")
        await duplex.send(Message({}))
        receiving = asyncio.create_task(duplex.receive())
        await until(lambda: duplex._assembler._unit is not None)
        if how == "lost":
            server.abort_all()
        else:
            duplex.abort()
        with pytest.raises(Unavailable):
            await receiving
        assert duplex._assembler._unit is None
        duplex.abort()
        await transport.close()
