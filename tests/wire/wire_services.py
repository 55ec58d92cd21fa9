"""Servers to talk to."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpclib.server
import pytest
from grpclib.const import Cardinality, Handler

from reverb_async.errors import TableNotFound
from reverb_async.protocol.message import Duplex, Message
from reverb_async.wire.duplex import GrpcServerDuplex
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.http2 import ReplayChannel, ReplayServer
from reverb_async.wire.status import errors_as_status

LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if sys.platform != "win32":
    import uvloop

    LOOPS.append(pytest.param(uvloop.new_event_loop, id="uvloop"))

SERVICE = "/reverb_async.v1.Replay"
INSERT, HELLO = f"{SERVICE}/Insert", f"{SERVICE}/Hello"


class Service:
    """Serves streams with functions of a `Duplex`, and unary calls with functions of a request."""

    def __init__(self, **methods: Callable[[Any], Awaitable[Any]]) -> None:
        self.methods = methods
        self.cancelled = asyncio.Event()

    def __mapping__(self) -> dict[str, Handler]:
        unary = {
            "Hello": (v1.HelloRequest, v1.HelloResponse),
            "MutatePriorities": (v1.MutatePrioritiesRequest, v1.MutatePrioritiesResponse),
            "Reset": (v1.ResetRequest, v1.ResetResponse),
            "ServerInfo": (v1.ServerInfoRequest, v1.ServerInfoResponse),
            "Checkpoint": (v1.CheckpointRequest, v1.CheckpointResponse),
        }
        mapping = {}
        for name, serve in self.methods.items():
            if name in unary:
                handler = Handler(self._unary(serve), Cardinality.UNARY_UNARY, *unary[name])
            else:
                handler = Handler(self._stream(serve), Cardinality.STREAM_STREAM, v1.Frame, v1.Frame)
            mapping[f"{SERVICE}/{name}"] = handler
        return mapping

    def _unary(self, serve: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[None]]:
        async def handle(stream: grpclib.server.Stream[Any, Any]) -> None:
            with errors_as_status():
                request = await stream.recv_message()
                await stream.send_message(await serve(request))

        return handle

    def _stream(self, serve: Callable[[Duplex], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        async def handle(stream: grpclib.server.Stream[Any, Any]) -> None:
            try:
                with errors_as_status():
                    await serve(GrpcServerDuplex(stream))
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

        return handle


class StockService(Service):
    """Serves the same with nothing but grpclib under a stream: what comes on one is sent back."""

    def _stream(self, serve: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        async def handle(stream: grpclib.server.Stream[Any, Any]) -> None:
            async for message in stream:
                await stream.send_message(message)

        return handle


async def echo(duplex: Duplex) -> None:
    """Send back what comes; a header ``{"fail": True}`` ends the call with an error."""
    while (message := await duplex.receive()) is not None:
        if message.header.get("fail"):
            raise TableNotFound("x", ["a", "b"])
        await duplex.send(message)


async def ignore(duplex: Duplex) -> None:
    """Receive nothing, for ever."""
    await asyncio.Event().wait()


async def hello(request: v1.HelloRequest) -> v1.HelloResponse:
    """Answer with what was asked."""
    return v1.HelloResponse(
        protocol_version=1,
        features=request.features,
        server_epoch=request.client_name.encode().ljust(16, b"."),
        key_block=5 << 20,
        max_message_bytes=64 << 20,
    )


async def no_table(request: v1.ResetRequest) -> v1.ResetResponse:
    """Know no table."""
    raise TableNotFound(request.table, ["a", "b"])


@asynccontextmanager
async def serving(service: Any, *, path: str | None = None, **options: Any) -> AsyncIterator[tuple[ReplayServer, str]]:
    """Yield a running server and its address."""
    server = ReplayServer([service], **options)
    if path is None:
        await server.start("127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    else:
        await server.start(path=path)
        address = f"unix://{path}"
    try:
        yield server, address
    finally:
        server.close()
        async with asyncio.timeout(5):
            await server.wait_closed()


async def settle(turns: int = 20) -> None:
    """Let everything run that can."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, at most 5 s."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for knows no events
            await asyncio.sleep(0.001)


def echoed(message: Message) -> tuple[dict[str, Any], list[bytes]]:
    """Return a message's content in a form that compares."""
    return message.header, [buffer.tobytes() for buffer in message.buffers]


def channel_to(address: str, **options: Any) -> ReplayChannel:
    """Return a channel of our own to an address of `serving`."""
    host, port = address.split(":")
    return ReplayChannel(host, int(port), **options)


async def say_hello(channel: ReplayChannel) -> v1.HelloResponse:
    """Make a unary call."""
    async with asyncio.timeout(5):
        return await v1.ReplayStub(channel).hello(v1.HelloRequest(client_name="me"))
