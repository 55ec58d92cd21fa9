"""Streams of `Frame` as `Duplex`es: parts put together, errors translated."""

from __future__ import annotations

import abc
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import grpclib.server

from reverb_async.errors import Unavailable
from reverb_async.protocol.message import Message
from reverb_async.wire.codec import Body, decode, encode
from reverb_async.wire.http2 import JOINED_BYTES, Call, ReplayChannel, abort_server_stream, peer_name, transport_of
from reverb_async.wire.parts import MAX_UNIT_BYTES, PART_BYTES, Assembler, split
from reverb_async.wire.status import TRANSPORT_ERRORS, cause_of, from_grpc_error, status_as_errors


class _GrpcDuplex(abc.ABC):
    """What both ends of a stream do alike.

    Args:
        peer: who is at the other end, for messages.
        assembler: puts messages that come in parts together.
        part_bytes: longer messages are sent in parts.
    """

    _owned: bool
    """Whether received buffers are writable."""

    def __init__(self, peer: str, assembler: Assembler, part_bytes: int = PART_BYTES) -> None:
        self._peer = peer
        self._assembler = assembler
        self._part_bytes = part_bytes
        self._aborted = False
        self._take: Callable[[Message], bool] | None = None
        self._declined: tuple[Body, Message] | None = None
        self._failure: Exception | None = None

    @property
    def peer(self) -> str:
        """Where the other end is."""
        return self._peer

    async def send(self, message: Message) -> None:
        """Hand a message over; waits while the peer's window is full.

        Its buffers must not change afterwards: the transport may still hold them. A cancelled call that has sent a part
        of the message breaks the stream.

        Raises:
            Unavailable: the peer is gone.
            ReplayError: the peer has ended the call with this error.
        """
        if self.try_send(message):
            return
        self._check_open()
        try:
            if message.nbytes <= self._part_bytes:
                await self._send_part(message)
            else:
                for part in split(message, self._part_bytes):
                    await self._send_part(part)
        except TRANSPORT_ERRORS as error:
            self._check_open()
            raise from_grpc_error(error, self._peer) from cause_of(error)

    def try_send(self, message: Message) -> bool:
        """Hand a short message over if window and transport take it now; never waits, and raises nothing for the peer.

        Returns:
            Whether it was. Otherwise `send` it: that waits, or tells why it cannot be sent.

        Raises:
            InvalidArgument: it cannot be encoded.
        """
        return not self._aborted and message.nbytes <= JOINED_BYTES and self._try_send(message)

    @property
    @abc.abstractmethod
    def has_unread(self) -> bool:
        """Whether the peer has sent more than was received: perhaps only a part of a message."""

    async def receive(self) -> Message | None:
        """Return the next message, None once the peer has ended its side with success.

        Raises:
            InvalidArgument: it is malformed.
            ResourceExhausted: it is too long.
            Unavailable: the peer is gone.
            ReplayError: the peer has ended the call with this error.
        """
        while True:
            self._check_open()
            try:
                body = await self._receive_part()
            except TRANSPORT_ERRORS as error:
                self._assembler.clear()
                self._check_open()
                raise from_grpc_error(error, self._peer) from cause_of(error)
            self._check_open()
            if self._failure is not None:
                raise self._failure
            if body is None:
                self._assembler.clear()
                return None
            declined, self._declined = self._declined, None
            known = declined is not None and declined[0] is body
            message = declined[1] if declined is not None and known else decode(body, owned=self._owned)
            whole = self._assembler.feed(message)
            if whole is not None:
                self._release_unit()
                return whole
            try:
                await self._hold_unit(self._assembler.nbytes)
            except TRANSPORT_ERRORS as error:
                raise from_grpc_error(error, self._peer) from cause_of(error)

    def listen(self, take: Callable[[Message], bool]) -> None:
        """Offer short messages that come while `receive` waits to `take`; see `protocol.message.Duplex`."""
        self._take = take
        self._listen(self._offer)

    def _offer(self, body: Body) -> bool:
        assert self._take is not None
        if self._aborted or self._failure is not None:
            return False
        try:
            message = decode(body, owned=self._owned)
            if "parts" not in message.header and self._take(message):
                return True
            self._declined = (body, message)
        except Exception as error:  # `receive` raises it: who calls this knows of no stream
            self._failure = error
        return False

    async def end(self) -> None:
        """End this side with success."""
        self._check_open()
        try:
            await self._end()
        except TRANSPORT_ERRORS as error:
            self._check_open()
            raise from_grpc_error(error, self._peer) from cause_of(error)

    def abort(self) -> None:
        """Reset the stream, if it is still open; never waits. A client calls it, at last, on every duplex."""
        self._aborted = True
        self._assembler.clear()
        self._abort()

    def _check_open(self) -> None:
        if self._aborted:
            raise Unavailable("the stream was aborted")

    async def _hold_unit(self, nbytes: int) -> None:
        """Wait for room for a message of which a part has come; a client's is its own."""
        return

    def _release_unit(self) -> None:
        """Return that room."""
        return

    @abc.abstractmethod
    def _try_send(self, message: Message) -> bool: ...

    @abc.abstractmethod
    async def _send_part(self, part: Message) -> None: ...

    @abc.abstractmethod
    def _receive_part(self) -> Coroutine[Any, Any, Body | None]: ...

    @abc.abstractmethod
    def _listen(self, take: Callable[[Body], bool]) -> None: ...

    @abc.abstractmethod
    async def _end(self) -> None: ...

    @abc.abstractmethod
    def _abort(self) -> None: ...


class GrpcServerDuplex(_GrpcDuplex):
    """A stream from the server's side. When the client leaves, grpclib cancels the handler's task.

    Buffers of received messages are read-only views of what was received; those of messages in parts are writable.

    Args:
        stream: the handler's.
        max_unit_bytes: the longest message that may come in parts.
    """

    _owned = False

    def __init__(self, stream: grpclib.server.Stream[Any, Any], *, max_unit_bytes: int = MAX_UNIT_BYTES) -> None:
        self._transport = transport_of(stream)
        super().__init__("the client", Assembler(max_unit_bytes, self._transport.connection.pool))
        self._stream = stream
        self._peer_name = peer_name(stream.peer)

    @property
    def peer(self) -> str:
        """Where the client is."""
        return self._peer_name

    def _try_send(self, message: Message) -> bool:
        # The first message goes another way: it comes after the headers.
        return self._stream._send_message_done and self._transport.try_send_message(encode(message))

    def finish_reading(self) -> None:
        """Have `receive` return None after what has been received, or has begun to be; see `OpenStreams`."""
        self._transport.finish_reading()

    @property
    def is_cut_short(self) -> bool:
        """Whether `finish_reading` ended the client's messages before it did."""
        return self._transport.is_cut_short

    # grpclib's own send_message and recv_message would do the same with several copies more.

    async def _send_part(self, part: Message) -> None:
        if not self._stream._send_initial_metadata_done:
            await self._stream.send_initial_metadata()
        await self._transport.send_message(encode(part))
        self._stream._send_message_done = True

    def _receive_part(self) -> Coroutine[Any, Any, Body | None]:
        return self._transport.receive()

    @property
    def has_unread(self) -> bool:
        """Whether the peer has sent more than was received: perhaps only a part of a message."""
        return self._transport.buffer.has_unread

    def _listen(self, take: Callable[[Body], bool]) -> None:
        self._transport.listen(take)

    async def _hold_unit(self, nbytes: int) -> None:
        await self._transport.hold_unit(nbytes)

    def _release_unit(self) -> None:
        self._transport.release_unit()

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
        part_bytes: longer messages are sent in parts.
    """

    _owned = True

    def __init__(
        self, call: Call, address: str, *, max_unit_bytes: int = MAX_UNIT_BYTES, part_bytes: int = PART_BYTES
    ) -> None:
        super().__init__(address, Assembler(max_unit_bytes, call.pool), part_bytes)
        self._call = call

    def _try_send(self, message: Message) -> bool:
        return self._call.try_send_encoded(encode(message))

    async def _send_part(self, part: Message) -> None:
        await self._call.send_encoded(encode(part))

    def _receive_part(self) -> Coroutine[Any, Any, Body | None]:
        return self._call.receive_body()

    @property
    def has_unread(self) -> bool:
        """Whether the peer has sent more than was received: perhaps only a part of a message."""
        return self._call.has_unread

    def _listen(self, take: Callable[[Body], bool]) -> None:
        self._call.listen(take)

    def finish_reading(self) -> None:
        """Do nothing: this is for the server's end."""

    async def _end(self) -> None:
        await self._call.end()

    def _abort(self) -> None:
        self._call.abort()


async def open_duplex(
    channel: ReplayChannel,
    path: str,
    address: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    max_unit_bytes: int = MAX_UNIT_BYTES,
    part_bytes: int = PART_BYTES,
) -> GrpcClientDuplex:
    """Open a stream of method `path`, ``"/reverb_async.v1.Replay/Insert"`` say, at the server of `address`.

    Raises:
        Unavailable: the server cannot be reached.
    """
    with status_as_errors(address):
        call = await channel.open_call(path, headers)
        return GrpcClientDuplex(call, address, max_unit_bytes=max_unit_bytes, part_bytes=part_bytes)
