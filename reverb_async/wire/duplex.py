"""Streams of `Frame` as `Duplex`es: parts put together, errors translated."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpclib.server

from reverb_async.errors import Unavailable
from reverb_async.protocol.message import Message
from reverb_async.wire.generated.reverb_async.v1 import Frame
from reverb_async.wire.http2 import Call, ReplayChannel, abort_server_stream
from reverb_async.wire.parts import MAX_UNIT_BYTES, Assembler, split
from reverb_async.wire.status import TRANSPORT_ERRORS, cause_of, from_grpc_error, status_as_errors


class _GrpcDuplex(abc.ABC):
    """What both ends of a stream do alike.

    Args:
        peer: who is at the other end, for messages.
        max_unit_bytes: the longest message that may come in parts.
    """

    def __init__(self, peer: str, max_unit_bytes: int) -> None:
        self._peer = peer
        self._assembler = Assembler(max_unit_bytes)
        self._aborted = False

    async def send(self, message: Message) -> None:
        """Hand a message over; waits while the peer's window is full.

        Raises:
            Unavailable: the peer is gone.
            ReplayError: the peer has ended the call with this error.
        """
        with self._translating():
            for part in split(message):
                await self._send_part(part)

    async def receive(self) -> Message | None:
        """Return the next message, None once the peer has ended its side with success.

        Raises:
            InvalidArgument: it is malformed.
            ResourceExhausted: it is too long.
            Unavailable: the peer is gone.
            ReplayError: the peer has ended the call with this error.
        """
        while True:
            with self._translating():
                part = await self._receive_part()
            self._check_open()
            if part is None:
                return None
            whole = self._assembler.feed(part)
            if whole is not None:
                return whole

    async def end(self) -> None:
        """End this side with success."""
        with self._translating():
            await self._end()

    def abort(self) -> None:
        """Reset the stream, if it is still open; never waits. A client calls it, at last, on every duplex."""
        self._aborted = True
        self._abort()

    def _check_open(self) -> None:
        if self._aborted:
            raise Unavailable("the stream was aborted")

    @contextmanager
    def _translating(self) -> Iterator[None]:
        self._check_open()
        try:
            yield
        except TRANSPORT_ERRORS as error:
            self._check_open()
            raise from_grpc_error(error, self._peer) from cause_of(error)

    @abc.abstractmethod
    async def _send_part(self, part: Message) -> None: ...

    @abc.abstractmethod
    async def _receive_part(self) -> Message | None: ...

    @abc.abstractmethod
    async def _end(self) -> None: ...

    @abc.abstractmethod
    def _abort(self) -> None: ...


class GrpcServerDuplex(_GrpcDuplex):
    """A stream from the server's side. When the client leaves, grpclib cancels the handler's task.

    Buffers of received messages are read-only views of what was received; those of long messages are aligned copies.

    Args:
        stream: the handler's.
        max_unit_bytes: the longest message that may come in parts.
    """

    def __init__(self, stream: grpclib.server.Stream[Any, Any], *, max_unit_bytes: int = MAX_UNIT_BYTES) -> None:
        super().__init__("the client", max_unit_bytes)
        self._stream = stream

    async def _send_part(self, part: Message) -> None:
        await self._stream.send_message(part)

    async def _receive_part(self) -> Message | None:
        part: Message | None = await self._stream.recv_message()
        return part

    async def _end(self) -> None:
        await self._stream.send_trailing_metadata()

    def _abort(self) -> None:
        abort_server_stream(self._stream)


class GrpcClientDuplex(_GrpcDuplex):
    """A stream from the client's side; received buffers are writable and aligned.

    Args:
        call: an open call of a streaming method.
        address: the server's, for messages.
        max_unit_bytes: the longest message that may come in parts.
    """

    def __init__(self, call: Call, address: str, *, max_unit_bytes: int = MAX_UNIT_BYTES) -> None:
        super().__init__(address, max_unit_bytes)
        self._call = call

    async def _send_part(self, part: Message) -> None:
        await self._call.send(part, Frame)

    async def _receive_part(self) -> Message | None:
        part: Message | None = await self._call.receive(Frame)
        return part

    async def _end(self) -> None:
        await self._call.end()

    def _abort(self) -> None:
        self._call.abort()


async def open_duplex(
    channel: ReplayChannel, path: str, address: str, *, max_unit_bytes: int = MAX_UNIT_BYTES
) -> GrpcClientDuplex:
    """Open a stream of method `path`, ``"/reverb_async.v1.Replay/Insert"`` say, at the server of `address`.

    Raises:
        Unavailable: the server cannot be reached.
    """
    with status_as_errors(address):
        return GrpcClientDuplex(await channel.open_call(path), address, max_unit_bytes=max_unit_bytes)
