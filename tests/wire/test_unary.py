"""Unary calls of bytes: what a client sees is the same whoever answers, grpclib or `CallHandler`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpclib.const import Cardinality, Handler, Status
from grpclib.events import RecvRequest, listen
from grpclib.exceptions import GRPCError

from reverb_async.wire.http2 import BytesCall, ReplayServer, transport_of

METHOD = "/a.Service/Method"
BOTH_WAYS = pytest.mark.parametrize("timeout", [None, 20.0], ids=["plain", "with a deadline"])
"""Calls with a deadline are grpclib's."""


class Service:
    """Answers with a function; counts what grpclib serves."""

    def __init__(self, answer: Callable[[bytes | None], Awaitable[bytes]]) -> None:
        self.answer = answer
        self.through_grpclib = 0

    def __mapping__(self) -> dict[str, Handler]:
        return {METHOD: Handler(BytesCall(self._answer, self._serve), Cardinality.UNARY_UNARY, bytes, bytes)}

    async def _answer(self, body: Any) -> bytes:
        return await self.answer(None if body is None else bytes(body))

    async def _serve(self, stream: Any) -> None:
        self.through_grpclib += 1
        answer = await self._answer(await transport_of(stream).receive())
        await stream.send_initial_metadata()
        await transport_of(stream).send_data(b"\0" + len(answer).to_bytes(4, "big") + answer)
        stream._send_message_done = True


async def echo(body: bytes | None) -> bytes:
    return b"nothing" if body is None else body


@asynccontextmanager
async def served(
    answer: Callable[[bytes | None], Awaitable[bytes]],
) -> AsyncIterator[tuple[Service, Any, ReplayServer]]:
    service = Service(answer)
    server = ReplayServer([service])
    await server.start("127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    unlimited = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=unlimited) as channel:
        yield service, channel.unary_unary(METHOD), server
    server.close()
    await server.wait_closed()


@BOTH_WAYS
@pytest.mark.parametrize("size", [0, 1, 5000, 3 << 20])
async def test_a_call_is_answered(data_path: str, timeout: float | None, size: int) -> None:
    async with served(echo) as (service, method, _):
        call = method(bytes(size), timeout=timeout)
        assert await call == bytes(size)
        assert await call.code() is grpc.StatusCode.OK
        assert list(await call.initial_metadata()) == []
        assert list(await call.trailing_metadata()) == []
    assert service.through_grpclib == (timeout is not None)


@BOTH_WAYS
async def test_refusals_and_bugs_are_told(timeout: float | None, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(body: bytes | None) -> bytes:
        if body == b"bug":
            raise ValueError("a secret")
        if body == b"bare":
            raise GRPCError(Status.INTERNAL)
        raise GRPCError(Status.NOT_FOUND, "no 100 % Käse\n")

    async with served(fail) as (_, method, _):
        for request, told in (
            (b"", ("NOT_FOUND", "no 100 % Käse\n")),
            (b"bare", ("INTERNAL", "")),
            (b"bug", ("UNKNOWN", "Internal Server Error")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(request, timeout=timeout)
            assert (caught.value.code().name, caught.value.details()) == told
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == ["Application error"]


async def test_calls_in_flight_do_not_wait_for_each_other() -> None:
    gate, waiting = asyncio.Event(), 0

    async def hold(body: bytes | None) -> bytes:
        nonlocal waiting
        waiting += 1
        if waiting == 100:
            gate.set()
        await gate.wait()
        return body or b""

    async with served(hold) as (_, method, _):
        calls = [method(bytes([number])) for number in range(100)]
        assert await asyncio.gather(*calls) == [bytes([number]) for number in range(100)]


async def test_a_client_that_leaves_cancels_its_call_and_no_other() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(body: bytes | None) -> bytes:
        if body == b"quick":
            return body
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return b""

    async with served(wait) as (_, method, server), asyncio.timeout(20):
        call = method(b"slow")
        await started.wait()
        call.cancel()
        await cancelled.wait()
        assert await method(b"quick") == b"quick"
        (handler,) = server._handlers
        handler.__gc_collect__()
        assert not handler._tasks


async def test_a_deadline_ends_the_call() -> None:
    async def wait(body: bytes | None) -> bytes:
        await asyncio.Event().wait()
        return b""

    async with served(wait) as (_, method, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"", timeout=0.05)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_who_listens_to_requests_sees_them_all() -> None:
    seen = []

    async def see(event: RecvRequest) -> None:
        seen.append(event.metadata.get("token"))

    async with served(echo) as (service, method, server):
        assert await method(b"a", metadata=[("token", "x")]) == b"a"
        listen(server, RecvRequest, see)
        assert await method(b"b", metadata=[("token", "y")]) == b"b"
    assert (seen, service.through_grpclib) == (["y"], 1)


async def test_closing_the_server_ends_calls() -> None:
    started = asyncio.Event()

    async def wait(body: bytes | None) -> bytes:
        started.set()
        await asyncio.Event().wait()
        return b""

    async with served(wait) as (_, method, server), asyncio.timeout(20):
        call = asyncio.ensure_future(method(b""))
        await started.wait()
        server.close()
        await server.wait_closed()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
