"""The HTTP/2 path: bounds of messages, and peers that behave oddly."""

from __future__ import annotations

import asyncio
import logging

import hyperframe.frame
import numpy as np
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from h2.settings import SettingCodes
from wire_services import (
    HELLO,
    INSERT,
    SERVICE,
    Service,
    channel_to,
    echo,
    echoed,
    hello,
    ignore,
    say_hello,
    serving,
    until,
)

from reverb_async.protocol.message import Message
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.grpc_codec import GrpcCodec

pytestmark = pytest.mark.usefixtures("data_path")


def prefix(length: int, flag: int = 0) -> bytes:
    return bytes([flag]) + length.to_bytes(4, "big")


@pytest.mark.parametrize("sent_first", [0, 5000])
async def test_a_message_that_is_too_long_is_refused_before_it_is_read(sent_first):
    async with serving(Service(Insert=echo), max_message_bytes=1000) as (_, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        await call._stream.send_data(prefix(1 << 30) + bytes(sent_first))
        with pytest.raises(GRPCError) as caught:
            await call.receive(v1.Frame)
        assert caught.value.status is Status.RESOURCE_EXHAUSTED
        assert caught.value.message == "a message of 1073741824 bytes exceeds the limit of 1000 (max_message_bytes)"
        call.abort()
        channel.close()


async def test_services_can_have_limits_of_their_own():
    async with serving(
        Service(Insert=echo), max_message_bytes=10, message_limits={SERVICE[1:]: 5000, "other.Service": 3}
    ) as (_, address):
        channel = channel_to(address)
        for size, status in ((4000, None), (5000, Status.RESOURCE_EXHAUSTED)):
            call = await channel.open_call(INSERT)
            await call.send(Message({}, [np.zeros(size, np.uint8)]), v1.Frame)
            if status is None:
                assert (await call.receive(v1.Frame)).nbytes == size
            else:
                with pytest.raises(GRPCError) as caught:
                    await call.receive(v1.Frame)
                assert caught.value.status is status
            call.abort()
        channel.close()


async def test_methods_can_have_limits_of_their_own():
    async with serving(Service(Insert=echo), message_limits={SERVICE[1:]: 5000, INSERT: 100}) as (_, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        await call.send(Message({}, [np.zeros(1000, np.uint8)]), v1.Frame)
        with pytest.raises(GRPCError, match="exceeds the limit of 100"):
            await call.receive(v1.Frame)
        call.abort()
        channel.close()


async def test_a_client_refuses_messages_that_are_too_long():
    async with serving(Service(Insert=echo)) as (_, address):
        channel = channel_to(address, max_message_bytes=100)
        call = await channel.open_call(INSERT)
        await call.send(Message({}, [np.zeros(1000, np.uint8)]), v1.Frame)
        with pytest.raises(GRPCError, match="exceeds the limit of 100"):
            await call.receive(v1.Frame)
        call.abort()
        channel.close()


@pytest.mark.parametrize(
    "data",
    [
        prefix(3, flag=1) + b"abc",
        prefix(3, flag=7) + b"abc",
        prefix(3) + b"ab",
        b"\0\0",
        prefix(3) + b"\x0a\x05a",
        prefix(0),
    ],
    ids=["compressed", "unknown flag", "cut off in a message", "cut off in a prefix", "malformed", "empty"],
)
async def test_bad_framing_is_answered_with_a_status(data, caplog):
    async with serving(Service(Insert=echo, Hello=hello)) as (_, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        await call._stream.send_data(data, end_stream=True)
        with pytest.raises(GRPCError) as caught:
            await call.receive(v1.Frame)
        assert caught.value.status is Status.INVALID_ARGUMENT
        call.abort()
        await say_hello(channel)
        channel.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_messages_may_come_in_frames_of_any_size_even_empty_ones():
    async with serving(Service(Insert=echo)) as (_, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        message = Message({"a": 1}, [np.arange(5)])
        body = GrpcCodec().encode(message, v1.Frame)
        for byte in prefix(len(body)) + body:
            for data in (b"", bytes([byte])):
                call._stream._h2_connection.send_data(call._stream.id, data)
                call._stream.connection.flush()
        assert echoed(await call.receive(v1.Frame)) == echoed(message)
        call.abort()
        channel.close()


async def test_settings_are_what_large_messages_and_many_streams_need():
    async with serving(Service(Hello=hello)) as (_, address):
        channel = channel_to(address)
        await say_hello(channel)
        remote = (await channel.__connect__()).connection._connection.remote_settings
        assert remote[SettingCodes.MAX_FRAME_SIZE] == 1 << 20
        assert remote[SettingCodes.MAX_CONCURRENT_STREAMS] == 2048
        assert remote[SettingCodes.INITIAL_WINDOW_SIZE] == (1 << 16) - 1
        channel.close()


async def test_frames_are_not_printed(monkeypatch):
    def refuse(frame):
        raise AssertionError("a frame's body was formatted")

    monkeypatch.setattr(hyperframe.frame.DataFrame, "_body_repr", refuse)
    async with serving(Service(Insert=echo)) as (_, address):
        channel = channel_to(address)
        call = await channel.open_call(INSERT)
        await call.send(Message({}, [np.zeros(100_000, np.uint8)]), v1.Frame)
        assert (await call.receive(v1.Frame)).nbytes == 100_000
        call.abort()
        channel.close()


async def test_unknown_frame_types_are_ignored():
    async with serving(Service(Hello=hello)) as (_, address):
        channel = channel_to(address)
        protocol = await channel.__connect__()
        protocol._transport.write(b"\0\0\4\xee\0\0\0\0\0abcd")
        await say_hello(channel)
        assert await channel.__connect__() is protocol
        channel.close()


async def test_a_peer_that_breaks_the_protocol_is_told_so_and_dropped(caplog):
    async with serving(Service(Hello=hello)) as (server, address):
        good = channel_to(address)
        await say_hello(good)
        host, port = address.split(":")
        for garbage in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\0\0\0\0\0\0\0",  # DATA on stream 0
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + b"\0\0\0\4\0\0\0\0\0"
            + b"\0\0\2\1\5\0\0\0\1"
            + b"\xff\xff",  # headers that are no HPACK
        ):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            async with asyncio.timeout(5):
                answer = await reader.read()
            assert answer[3] == 4, "the server's settings come first"
            writer.close()
            await writer.wait_closed()
        await until(lambda: server.num_connections == 1)
        await say_hello(good)
        good.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("missing", "more"),
    [
        (":method", []),
        (":path", []),
        (None, [("name", b"\xff\xfe")]),
        (None, [(b"n\xc3\xa4me", "value")]),
        (None, [("data-bin", "a")]),
    ],
    ids=["no method", "no path", "a value that is not ASCII", "a name that is not ASCII", "no base64"],
)
async def test_a_request_with_bad_headers_is_reset_and_its_connection_lives(missing, more, caplog):
    async with serving(Service(Hello=hello)) as (server, address):
        channel = channel_to(address)
        protocol = await channel.__connect__()
        for _ in range(3):
            stream = protocol.connection.create_stream()
            headers = [(":method", "POST"), (":scheme", "http"), (":path", HELLO), (":authority", address), ("te", "x")]
            headers = [header for header in headers if header[0] != missing] + more
            release = await stream.send_request(headers, _processor=protocol.processor)
            assert await stream.recv_data(5) == b""
            assert "error_code: 1" in stream.terminated
            release()
        await say_hello(channel)
        assert server.num_connections == 1
        channel.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_streams_reset_before_their_handler_ran_are_forgotten():
    async with serving(Service(Insert=ignore, Hello=hello)) as (server, address):
        channel = channel_to(address)
        await say_hello(channel)
        for _ in range(100):
            (await channel.open_call(INSERT)).abort()
        await say_hello(channel)
        (connection,) = server._endpoint.connections
        assert not connection.processor.streams
        channel.close()
