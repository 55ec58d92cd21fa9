"""A stream that gives and takes whole messages, its DATA frames written and read without h2."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import grpclib.protocol
from h2.connection import ConnectionInputs
from h2.exceptions import ProtocolError, StreamClosedError
from h2.stream import StreamInputs, StreamState

from reverb_async.wire.codec import Body, Encoded
from reverb_async.wire.http2.message_buffer import MessageBuffer
from reverb_async.wire.http2.stream import PREFIX_BYTES, Headers, Stream, message_prefix

if TYPE_CHECKING:
    from reverb_async.wire.http2.data_path import FastConnection

FRAME_HEADER = struct.Struct(">HBBBL")
"""Length (16 high and 8 low bits), type, flags, stream id."""

JOINED_BYTES = 32 << 10
"""Shorter chunks are copied to go out together; longer ones the transport takes where they lie."""

MAX_PLAIN_HEADERS = 4 << 10
"""Characters of headers; however they are encoded, they need no second frame, which is h2's to make."""

_HEADERS, _END_STREAM, _END_HEADERS = 1, 1, 4
_CREDIT = struct.Struct(">HBBBLL")
WINDOW_UPDATE = 8
_SENDING = (StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE)

Chunk = bytes | memoryview

_WRITELINES_NEVER_PAUSES = (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)
"""CVE-2024-12254: asyncio's transport takes any number of lines, and only `write` looks how much it holds already."""


def credit_frame(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return _CREDIT.pack(0, 4, WINDOW_UPDATE, 0, stream_id, increment)


class FastStream(Stream):
    """A stream whose messages go to and come from memory without copies; the rest is `Stream`."""

    buffer: MessageBuffer  # type: ignore[assignment]
    connection: FastConnection

    _body: Body | None = None
    _num_sending = 0
    """Calls of `_send` that have not returned: no other message may overtake theirs, or go out between their frames."""

    def init_stream(self, stream_id: int, connection: grpclib.protocol.Connection) -> None:
        """Take an id, and with it a buffer."""
        self.id = stream_id
        self.buffer = MessageBuffer(self)
        connection.streams_started += 1
        self.created = connection.last_stream_created = time.monotonic()

    @property
    def window_size(self) -> int:
        """How many bytes the peer may send before they are read."""
        assert self.id is not None
        h2_stream = self._h2_connection.streams.get(self.id)
        return 0 if h2_stream is None else h2_stream._inbound_window_manager.max_window_size

    def ready(self, most: int, nbytes: int) -> list[Body]:
        """Return the next messages that are here whole: at most so many, and none behind so many bytes."""
        return self.buffer.ready(most, nbytes)

    def receive(self) -> Coroutine[Any, Any, Body | None]:
        """Return the next message's body, None at the end of the stream. Cancelling loses nothing.

        Raises:
            GRPCError: the message is too long, compressed, or cut off by the end of the stream.
        """
        return self.buffer.message()

    def listen(self, take: Callable[[Body], bool]) -> None:
        """Offer short messages that somebody waits for to `take`, which returns whether it took them."""
        self.buffer.take = take

    async def recv_data(self, size: int) -> bytes:
        """Return a message's prefix or, called next, its body: for those who read as grpclib does."""
        if self._body is None:
            self._body = await self.buffer.message()
            if self._body is None:
                self._check_end()
                return b""
            self.needs_message = False
            return message_prefix(len(self._body))
        body, self._body = self._body, None
        return bytes(body)

    async def send_headers(self, headers: Headers, end_stream: bool = False) -> None:
        """Send headers or trailers: headers together with what follows in this turn of the loop.

        Raises:
            StreamClosedError: the stream is gone; grpclib's server expects this error.
        """
        assert self.id is not None
        connection = self.connection
        await connection.write_ready.wait()
        h2_connection = self._h2_connection
        h2_stream = h2_connection.streams.get(self.id)
        if self.terminated is not None or h2_stream is None:
            raise StreamClosedError(self.id)
        self.answered = True
        if sum(len(name) + len(value) for name, value in headers) > MAX_PLAIN_HEADERS:
            h2_connection.send_headers(self.id, headers, end_stream=end_stream)
            connection.flush()
        else:
            h2_connection.state_machine.process_input(ConnectionInputs.SEND_HEADERS)
            h2_stream.state_machine.process_input(StreamInputs.SEND_HEADERS)
            flags = _END_HEADERS
            if end_stream:
                h2_stream.state_machine.process_input(StreamInputs.SEND_END_STREAM)
                flags |= _END_STREAM
            block = h2_connection.encoder.encode(headers)
            if not connection.is_closing():
                header = FRAME_HEADER.pack(len(block) >> 8, len(block) & 0xFF, _HEADERS, flags, self.id)
                connection.write_short(header + block, more_follows=not end_stream)
        connection.headers_send_process()

    async def send_message(self, message: Encoded, *, end_stream: bool = False) -> None:
        """Send a message; waits for the peer's window and the transport.

        The message's memory must not change until the transport has got rid of it. Cancelling a call that has sent a
        part of the message resets the stream.
        """
        size = PREFIX_BYTES + message.nbytes
        await self._send([message_prefix(message.nbytes), *message.chunks], size, end_stream)

    def try_send_message(self, message: Encoded) -> bool:
        """Send a short message if window and transport take all of it now; return whether they did."""
        assert self.id is not None
        size = PREFIX_BYTES + message.nbytes
        h2_connection, connection = self._h2_connection, self.connection
        if (
            self._num_sending
            or size > JOINED_BYTES
            or self.terminated is not None
            or not connection.write_ready.is_set()
            or connection.is_closing()
        ):
            return False
        h2_stream = h2_connection.streams.get(self.id)
        if (
            h2_stream is None
            or h2_stream.state_machine.state not in _SENDING
            or size > h2_stream.outbound_flow_control_window
            or size > h2_connection.outbound_flow_control_window
            or size > h2_connection.max_outbound_frame_size
        ):
            return False
        header = FRAME_HEADER.pack(size >> 8, size & 0xFF, 0, 0, self.id)
        connection.write_short(b"".join([header, message_prefix(message.nbytes), *message.chunks]))
        h2_stream.outbound_flow_control_window -= size
        h2_connection.outbound_flow_control_window -= size
        self._count_sent(size)
        return True

    def _count_sent(self, size: int) -> None:
        self.data_sent += size
        self.connection.data_sent += size
        self.connection.data_send_process()

    async def send_data(self, data: bytes, end_stream: bool = False) -> None:
        """Send all of `data`; waits for the peer's window and the transport."""
        if data:
            await self._send([data], len(data), end_stream)
        elif end_stream:
            await self.end()

    async def _send(self, chunks: Sequence[Chunk], size: int, end_stream: bool) -> None:
        assert self.id is not None
        h2_connection, connection = self._h2_connection, self.connection
        pieces: _Pieces | None = None
        left = size
        self._num_sending += 1
        try:
            while left:
                if not connection.write_ready.is_set() or self.terminated is not None or connection.is_closing():
                    await self._writable()
                h2_stream = h2_connection.streams.get(self.id)
                if h2_stream is None or h2_stream.state_machine.state not in _SENDING:
                    raise self._refusal_to_send()
                window = min(h2_connection.outbound_flow_control_window, h2_stream.outbound_flow_control_window)
                if window <= 0:  # it can become negative
                    await self._starve()
                    continue
                frame = min(left, window, h2_connection.max_outbound_frame_size)
                header = FRAME_HEADER.pack(frame >> 8, frame & 0xFF, 0, 0, self.id)
                if frame == size <= JOINED_BYTES:
                    connection.write_short(b"".join([header, *chunks]))
                else:
                    connection.write_held()
                    if pieces is None:
                        pieces = _Pieces(chunks)
                    self._write([header, *pieces.take(frame)])
                h2_connection.outbound_flow_control_window -= frame
                h2_stream.outbound_flow_control_window -= frame
                left -= frame
                self.framed += frame
                connection.framed += frame
        finally:
            self._num_sending -= 1
            if connection.starving and not self._num_sending:
                connection.starving.pop(self, None)
            if 0 < left < size and self.stalled is None:
                self.abort("a message was cut short")
        self._count_sent(size)
        if end_stream:
            h2_connection.end_stream(self.id)
            connection.flush()

    def _write(self, pieces: list[Chunk]) -> None:
        if _WRITELINES_NEVER_PAUSES:
            last = pieces.pop()
            self._transport.writelines(pieces)
            self._transport.write(last)
        else:
            self._transport.writelines(pieces)

    def _refusal_to_send(self) -> Exception:
        assert self.id is not None
        h2_stream = self._h2_connection.streams.get(self.id)
        if h2_stream is None or h2_stream.closed:
            return StreamClosedError(self.id)
        return ProtocolError(f"this side of stream {self.id} has ended")

    def credit(self, size: int) -> None:
        """Let the peer send `size` more bytes on this stream."""
        assert self.id is not None
        h2_stream = self._h2_connection.streams.get(self.id)
        if not size or h2_stream is None or not h2_stream.open:
            return
        increment = h2_stream._inbound_window_manager.process_bytes(size)
        if increment and not self.connection.is_closing():
            self._transport.write(credit_frame(self.id, increment))

    def credit_connection(self, size: int) -> None:
        """Let the peer send `size` more bytes on this stream's connection."""
        increment = self._h2_connection._inbound_flow_control_window_manager.process_bytes(size)
        if increment and not self.connection.is_closing():
            self._transport.write(credit_frame(0, increment))

    def drop_unread(self) -> None:
        """Forget what nobody will read, and return the credit for it to the peer."""
        self.buffer.drop()


class _Pieces:
    """Chunks of a message from which frames are cut; short neighbours are joined, long ones never copied."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._pieces: list[Chunk] = []
        short: list[Chunk] = []
        for chunk in chunks:
            if len(chunk) < JOINED_BYTES:
                short.append(chunk)
                continue
            if short:
                self._pieces.append(b"".join(short))
                short = []
            self._pieces.append(memoryview(chunk))
        if short:
            self._pieces.append(b"".join(short))
        self._next = 0
        self._start = 0

    def take(self, size: int) -> list[Chunk]:
        """Return the next `size` bytes."""
        taken: list[Chunk] = []
        while size:
            piece = self._pieces[self._next]
            part = memoryview(piece)[self._start : self._start + size] if self._start or len(piece) > size else piece
            taken.append(part)
            size -= len(part)
            self._start += len(part)
            if self._start == len(piece):
                self._next += 1
                self._start = 0
        return taken
