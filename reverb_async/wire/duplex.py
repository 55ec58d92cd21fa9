"""Streams of `Frame` as `Duplex`es: parts put together, errors translated."""

from __future__ import annotations

from typing import Any

import grpclib.server

from reverb_async.errors import ReplayError, Unavailable
from reverb_async.protocol.message import Message
from reverb_async.wire.generated.reverb_async.v1 import Frame
from reverb_async.wire.http2 import Call, ReplayChannel, abort_server_stream
from reverb_async.wire.parts import MAX_UNIT_BYTES, Assembler, split
from reverb_async.wire.status import TRANSPORT_ERRORS, cause_of, from_grpc_error, status_as_errors


class GrpcServerDuplex:
    """A stream from the server's side. When the client leaves, grpclib cancels the handler's task.

    Buffers of received messages are read-only views of what was received; those of long messages are aligned copies.

    Args:
        stream: the handler's.
        max_unit_bytes: the longest message that may come in parts.
    """

    def __init__(self, stream: grpclib.server.Stream[Any, Any], *, max_unit_bytes: int = MAX_UNIT_BYTES) -> None:
        self._stream = stream
        self._assembler = Assembler(max_unit_bytes)
        self._aborted = False

    async def send(self, message: Message) -> None:
        """Hand a message over; waits while the client's window is full."""
        self._check_open()
        try:
            for part in split(message):
                await self._stream.send_message(part)
        except TRANSPORT_ERRORS as error:
            raise self._translated(error) from cause_of(error)

    async def receive(self) -> Message | None:
        """Return the next message, None once the client has ended its side.

        Raises:
            InvalidArgument: it is malformed.
            ResourceExhausted: it is too long.
        """
        self._check_open()
        while True:
            try:
                part = await self._stream.recv_message()
            except TRANSPORT_ERRORS as error:
                raise self._translated(error) from cause_of(error)
            self._check_open()
            if part is None:
                return None
            whole = self._assembler.feed(part)
            if whole is not None:
                return whole

    async def end(self) -> None:
        """End the call with success."""
        self._check_open()
        try:
            await self._stream.send_trailing_metadata()
        except TRANSPORT_ERRORS as error:
            raise self._translated(error) from cause_of(error)

    def abort(self) -> None:
        """Reset the stream; never waits."""
        self._aborted = True
        abort_server_stream(self._stream)

    def _check_open(self) -> None:
        if self._aborted:
            raise Unavailable("the stream was aborted")

    def _translated(self, error: Exception) -> ReplayError:
        return Unavailable("the stream was aborted") if self._aborted else from_grpc_error(error, "the client")


class GrpcClientDuplex:
    """A stream from the client's side; received buffers are writable and aligned.

    Args:
        call: an open call of a streaming method.
        address: the server's, for messages.
        max_unit_bytes: the longest message that may come in parts.
    """

    def __init__(self, call: Call, address: str, *, max_unit_bytes: int = MAX_UNIT_BYTES) -> None:
        self._call = call
        self._address = address
        self._assembler = Assembler(max_unit_bytes)
        self._aborted = False

    async def send(self, message: Message) -> None:
        """Hand a message over; waits while the server's window is full.

        Raises:
            Unavailable: the server is gone.
            ReplayError: the server has ended the call with this error.
        """
        self._check_open()
        try:
            for part in split(message):
                await self._call.send(part, Frame)
        except TRANSPORT_ERRORS as error:
            raise self._translated(error) from cause_of(error)

    async def receive(self) -> Message | None:
        """Return the next message, None once the server has ended the call with success.

        Raises:
            Unavailable: the server is gone.
            ReplayError: the server has ended the call with this error.
        """
        self._check_open()
        while True:
            try:
                part = await self._call.receive(Frame)
            except TRANSPORT_ERRORS as error:
                raise self._translated(error) from cause_of(error)
            if part is None:
                return None
            whole = self._assembler.feed(part)
            if whole is not None:
                return whole

    async def end(self) -> None:
        """End this side."""
        self._check_open()
        try:
            await self._call.end()
        except TRANSPORT_ERRORS as error:
            raise self._translated(error) from cause_of(error)

    def abort(self) -> None:
        """Reset the stream, if it is still open, and let go of it; never waits. Call it, at last, on every duplex."""
        self._aborted = True
        self._call.abort()

    def _check_open(self) -> None:
        if self._aborted:
            raise Unavailable("the stream was aborted")

    def _translated(self, error: Exception) -> ReplayError:
        return Unavailable("the stream was aborted") if self._aborted else from_grpc_error(error, self._address)


async def open_duplex(
    channel: ReplayChannel, path: str, address: str, *, max_unit_bytes: int = MAX_UNIT_BYTES
) -> GrpcClientDuplex:
    """Open a stream of method `path`, ``"/reverb_async.v1.Replay/Insert"`` say, at the server of `address`.

    Raises:
        Unavailable: the server cannot be reached.
    """
    with status_as_errors(address):
        return GrpcClientDuplex(await channel.open_call(path), address, max_unit_bytes=max_unit_bytes)
