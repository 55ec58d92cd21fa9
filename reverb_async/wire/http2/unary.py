"""Unary calls whose messages are bytes, answered without the objects that grpclib makes for each call."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import grpclib.protocol
import grpclib.server
from grpclib.const import Status
from grpclib.encoding.base import GRPC_CONTENT_TYPE
from grpclib.events import RecvRequest
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.metadata import encode_grpc_message
from h2.exceptions import StreamClosedError

from reverb_async.wire.codec import Body, Encoded
from reverb_async.wire.http2.stream import Headers, Stream

log = logging.getLogger(__name__)


class BytesCall:
    """What grpclib calls for a unary method, and what `CallHandler` uses instead for the calls it answers itself.

    Args:
        answer: takes the request's message, None if there was none, and returns the answer's; fails with a `GRPCError`.
        serve: does the same with a stream of grpclib's.
    """

    def __init__(
        self,
        answer: Callable[[Body | None], Awaitable[bytes]],
        serve: Callable[[grpclib.server.Stream[Any, Any]], Awaitable[None]],
    ) -> None:
        self.answer = answer
        self._serve = serve

    async def __call__(self, stream: grpclib.server.Stream[Any, Any]) -> None:
        """Serve a call as grpclib's handlers do."""
        await self._serve(stream)


class CallHandler(grpclib.server.Handler):
    """The calls of one connection.

    Those of a `BytesCall` with nothing unusual in their headers, and without a deadline, are answered here; all others,
    and all while somebody listens to requests (to see their tokens, say), are grpclib's.
    """

    def accept(
        self, stream: grpclib.protocol.Stream, headers: list[tuple[str, str]], release_stream: Callable[[], Any]
    ) -> None:
        """Begin to serve a call, in a task of its own."""
        named = dict(headers)
        method = self.mapping.get(named[":path"])
        if (
            method is None
            or not isinstance(method.func, BytesCall)
            or named[":method"] != "POST"
            or named.get("te") != "trailers"
            or named.get("content-type") not in (GRPC_CONTENT_TYPE, self._content_type)
            or "grpc-timeout" in named
            or self.dispatch._listeners.get(RecvRequest)
        ):
            super().accept(stream, headers, release_stream)
            return
        self.__gc_step__()
        call = self._answered(method.func, cast("Stream", stream), release_stream)
        self._tasks[stream] = self.loop.create_task(call)

    @property
    def _content_type(self) -> str:
        return f"{GRPC_CONTENT_TYPE}+{self.codec.__content_subtype__}"

    async def _answered(self, call: BytesCall, stream: Stream, release: Callable[[], Any]) -> None:
        try:
            head: Headers = [(":status", "200"), ("content-type", self._content_type)]
            try:
                message = await call.answer(await stream.receive())
            except GRPCError as error:
                await self._refuse(stream, head, error)
                return
            except StreamTerminatedError:
                raise
            except Exception:  # As in grpclib: a mistake of ours ends this call only, and strangers hear no more.
                log.exception("Application error")
                await self._refuse(stream, head, GRPCError(Status.UNKNOWN, "Internal Server Error"))
                return
            await stream.send_headers(head)
            await stream.send_message(Encoded([message], len(message)))
            await stream.send_headers([("grpc-status", "0")], end_stream=True)
        except (StreamTerminatedError, StreamClosedError):
            log.debug("A client has left before its call was answered")
        finally:
            release()

    async def _refuse(self, stream: Stream, head: Headers, error: GRPCError) -> None:
        headers = [*head, ("grpc-status", str(error.status.value))]
        if error.message is not None:
            headers.append(("grpc-message", encode_grpc_message(error.message)))
        await stream.send_headers(headers, end_stream=True)
        if stream.closable:
            stream.reset_nowait()
