"""The fast DATA path against stock grpclib and grpcio, in both roles, under grpclib's own handlers and stubs."""

from __future__ import annotations

import asyncio
import zlib
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import grpclib.client
import grpclib.server
import pytest
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from wire_services import until

from reverb_async.wire.http2 import ReplayChannel, ReplayServer

SIZES = (0, 1, 16_384, 70_000, 1 << 20, 20_000_000)
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
NAME = "a.Service"


class RawCodec(CodecBase):
    """Messages are bytes."""

    __content_subtype__ = "proto"  # the only one that grpcio takes

    def encode(self, message, message_type):
        assert type(message) is bytes
        return message

    def decode(self, data, message_type):
        assert type(data) is bytes, "codecs of others know nothing but bytes"
        return data


def body_of(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


class Service:
    """One method of each kind."""

    def __mapping__(self):
        methods = {
            "Echo": (self.echo, Cardinality.UNARY_UNARY),
            "Upload": (self.upload, Cardinality.STREAM_UNARY),
            "Download": (self.download, Cardinality.UNARY_STREAM),
            "EchoAll": (self.echo_all, Cardinality.STREAM_STREAM),
        }
        return {f"/{NAME}/{name}": Handler(*method, bytes, bytes) for name, method in methods.items()}

    async def echo(self, stream):
        await stream.send_message(await stream.recv_message())

    async def upload(self, stream):
        checksum = 0
        async for message in stream:
            checksum = zlib.crc32(message, checksum)
        await stream.send_message(str(checksum).encode())

    async def download(self, stream):
        size, count = map(int, (await stream.recv_message()).split())
        for _ in range(count):
            await stream.send_message(body_of(size))

    async def echo_all(self, stream):
        async for message in stream:
            await stream.send_message(message)


async def aio_download(request, context):
    size, count = map(int, request.split())
    for _ in range(count):
        yield body_of(size)


async def aio_echo(request, context):
    return request


async def aio_upload(requests, context):
    checksum = 0
    async for request in requests:
        checksum = zlib.crc32(request, checksum)
    return str(checksum).encode()


async def aio_echo_all(requests, context):
    async for request in requests:
        yield request


@asynccontextmanager
async def grpclib_server(make):
    server = make()
    await server.start("127.0.0.1", 0)
    yield server, server._server.sockets[0].getsockname()[1]
    server.close()
    async with asyncio.timeout(5):
        await server.wait_closed()


@asynccontextmanager
async def grpcio_server():
    server = grpc.aio.server(options=OPTIONS)
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(aio_echo),
        "Upload": grpc.stream_unary_rpc_method_handler(aio_upload),
        "Download": grpc.unary_stream_rpc_method_handler(aio_download),
        "EchoAll": grpc.stream_stream_rpc_method_handler(aio_echo_all),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield server, port
    await server.stop(None)


class GrpclibClient:
    """Calls through a channel of grpclib's kind."""

    def __init__(self, channel):
        self.channel = channel
        kinds = {
            "Echo": grpclib.client.UnaryUnaryMethod,
            "Upload": grpclib.client.StreamUnaryMethod,
            "Download": grpclib.client.UnaryStreamMethod,
            "EchoAll": grpclib.client.StreamStreamMethod,
        }
        self._methods = {name: kind(channel, f"/{NAME}/{name}", bytes, bytes) for name, kind in kinds.items()}

    async def echo(self, message):
        return await self._methods["Echo"](message)

    async def upload(self, messages):
        return await self._methods["Upload"](messages)

    async def download(self, request):
        return await self._methods["Download"](request)

    async def echo_all(self, messages):
        async with self._methods["EchoAll"].open() as stream:
            received = []
            for message in messages:
                await stream.send_message(message)
                received.append(await stream.recv_message())
            await stream.end()
            assert await stream.recv_message() is None
            return received

    async def leave(self, message):
        """Cancel a call while its message is on its way."""
        async with self._methods["EchoAll"].open() as stream:
            await stream.send_request()
            sending = asyncio.ensure_future(stream.send_message(message))
            await asyncio.sleep(0)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await stream.cancel()

    async def close(self):
        self.channel.close()


class GrpcioClient:
    """Calls through grpcio."""

    def __init__(self, port):
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)

    async def echo(self, message):
        return await self.channel.unary_unary(f"/{NAME}/Echo")(message)

    async def upload(self, messages):
        return await self.channel.stream_unary(f"/{NAME}/Upload")(iter(messages))

    async def download(self, request):
        return [message async for message in self.channel.unary_stream(f"/{NAME}/Download")(request)]

    async def echo_all(self, messages):
        call = self.channel.stream_stream(f"/{NAME}/EchoAll")()
        received = []
        for message in messages:
            await call.write(message)
            received.append(await call.read())
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        return received

    async def leave(self, message):
        """Cancel a call while its message is on its way."""
        call = self.channel.stream_stream(f"/{NAME}/EchoAll")()
        await call.write(message)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.read()

    async def close(self):
        await self.channel.close()


@asynccontextmanager
async def peers(server_kind, client_kind):
    """Yield a client that talks to a server, and the server if it is ours."""
    if server_kind == "grpcio":
        serving = grpcio_server()
    else:
        made = ReplayServer if server_kind == "ours" else grpclib.server.Server
        serving = grpclib_server(lambda: made([Service()], codec=RawCodec()))
    async with serving as (server, port):
        if client_kind == "grpcio":
            client = GrpcioClient(port)
        else:
            made = ReplayChannel if client_kind == "ours" else grpclib.client.Channel
            client = GrpclibClient(made("127.0.0.1", port, codec=RawCodec()))
        yield client, server
        await client.close()


PEERS = pytest.mark.parametrize(
    ("server_kind", "client_kind"),
    [("ours", "ours"), ("ours", "grpclib"), ("ours", "grpcio"), ("grpclib", "ours"), ("grpcio", "ours")],
)


@PEERS
async def test_calls_of_every_kind_carry_messages_of_every_size(server_kind, client_kind):
    messages = [body_of(size) for size in SIZES]
    checksum = 0
    for message in messages:
        checksum = zlib.crc32(message, checksum)
    async with peers(server_kind, client_kind) as (client, _), asyncio.timeout(60):
        for message in messages:
            assert await client.echo(message) == message
        assert await client.upload(messages) == str(checksum).encode()
        for message in messages:
            assert await client.download(b"%d 3" % len(message)) == [message] * 3
        assert await client.echo_all(messages) == messages


@PEERS
async def test_fifty_streams_at_once_some_of_which_are_cancelled(server_kind, client_kind):
    async with peers(server_kind, client_kind) as (client, server), asyncio.timeout(60):

        async def call(number):
            if number % 5 == 4:
                return await client.leave(body_of(3_000_000))
            messages = [body_of(number), body_of(7000 * number), body_of(number)]
            assert await client.echo_all(messages) == messages

        await asyncio.gather(*map(call, range(50)))
        assert await client.echo(b"and on") == b"and on"
        if server_kind == "ours":
            (connection,) = server._endpoint.connections
            await until(lambda: not connection.processor.streams)
            manager = connection.connection._connection._inbound_flow_control_window_manager
            assert manager._bytes_processed >= manager.max_window_size - manager.current_window_size
            assert server.window_budget.reserved == 0
