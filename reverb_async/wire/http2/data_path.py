"""Our own way for DATA frames: from the socket into a message's memory without h2 in between.

h2 and hyperframe copy each frame several times and spend tens of microseconds on it. Here, frames are parsed by this
module: the payload of plain DATA frames goes to the stream's `MessageBuffer`, the credit of WINDOW_UPDATE frames to
h2's windows, everything else to h2, unchanged. h2 remains the one to know the state of streams, and its flow control
windows are the only ones: they are checked and counted here as it would do itself. Whatever is not plain (padding, a
frame that breaks a rule, streams that are closed, reset or unknown) goes to h2 as well, so that it is answered as h2
answers it.
"""

from __future__ import annotations

import asyncio
import os

from grpclib.config import Configuration
from grpclib.utils import Wrapper
from h2.connection import ConnectionState
from h2.events import WindowUpdated
from h2.stream import H2Stream, StreamInputs, StreamState

from reverb_async.errors import InvalidArgument
from reverb_async.wire.http2.connection import (
    FRAMES_PER_TURN,
    SCRATCH_BYTES,
    Connection,
    Endpoint,
    Protocol,
    StockProtocol,
)
from reverb_async.wire.http2.fast_stream import FRAME_HEADER, WINDOW_UPDATE, FastStream, credit_frame
from reverb_async.wire.http2.guards import FREE_CREDITS
from reverb_async.wire.http2.h2_state import FRAME_HEADER_BYTES, H2
from reverb_async.wire.http2.message_buffer import MessageBuffer
from reverb_async.wire.http2.window import CONNECTION_WINDOW

DATA_PATH_VARIABLE = "REVERB_ASYNC_DATA_PATH"
"""The environment variable that chooses: ``fast`` (the default) or ``stock``, for which h2 handles every frame."""

SCRATCH_BETWEEN_BYTES = 64 << 10
"""How much is received at once behind a frame that went straight to its message: most likely the next is like it."""

DIRECT_BYTES = 32 << 10
"""From here on the rest of a frame is received straight into its message."""

MAX_HELD_BYTES = 64 << 10
"""No more is held back to go out together."""

WRITE_BUFFER_BYTES = 1 << 20
"""A transport that holds more than this makes senders wait."""

PLAIN_FRAMES_PER_TURN = 32 * FRAMES_PER_TURN
"""The same of frames that h2 does not see, which cost a fraction of the time."""

_H2_COST = PLAIN_FRAMES_PER_TURN // FRAMES_PER_TURN

_PREFACE_BYTES = 24
"""What a client sends before its first frame."""

_END_STREAM, _PADDED = 1, 8
_CREDIT_BYTES = 4
_OPEN = (ConnectionState.CLIENT_OPEN, ConnectionState.SERVER_OPEN)
_RECEIVING = (StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL)


def chosen_protocol() -> type[Protocol]:
    """Return the class for a new connection, as the environment variable ``REVERB_ASYNC_DATA_PATH`` has it.

    Raises:
        InvalidArgument: it is set to something else than ``fast`` or ``stock``.
    """
    choice = os.environ.get(DATA_PATH_VARIABLE, "fast")
    if choice == "fast":
        return FastProtocol
    if choice == "stock":
        return StockProtocol
    raise InvalidArgument(f"{DATA_PATH_VARIABLE} is {choice!r}; it can be 'fast', 'stock' or unset")


class FastConnection(Connection):
    """A connection of streams that take and give whole messages."""

    def __init__(
        self, h2_connection: H2, transport: asyncio.Transport, endpoint: Endpoint, config: Configuration
    ) -> None:
        super().__init__(h2_connection, transport, endpoint, config)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.num_taken = 0
        """Messages that listeners took of what is being received."""

    def write_short(self, frame: bytes, *, more_follows: bool = False) -> None:
        """Write a short frame; beside other streams, in one piece with what they write in this turn of the loop.

        A system call that wakes a peer costs more than a small message does otherwise, and streams that are answered
        together ask together. So does one whose headers are followed by a message and the end.

        Args:
            frame: the frame, or several.
            more_follows: this stream is about to write more: it is not written alone.
        """
        if not more_follows and not self._held and len(self._connection.streams) == 1:
            self._transport.write(frame)
            return
        if not self._held:
            self._loop.call_soon(self.write_held)
        self._held.append(frame)
        self._held_bytes += len(frame)
        if self._held_bytes > MAX_HELD_BYTES:
            self.write_held()

    def write_held(self) -> None:
        """Hand over what was held back to go out with more: it comes before anything that is written now."""
        if self._held:
            frames, self._held, self._held_bytes = self._held, [], 0
            if not self.is_closing():
                self._transport.write(b"".join(frames))

    def create_stream(self, *, stream_id: int | None = None, wrapper: Wrapper | None = None) -> FastStream:
        """Return a stream; without an id it gets one when its request is sent."""
        return FastStream(self, self._connection, self._transport, stream_id=stream_id, wrapper=wrapper)


class FastProtocol(Protocol, asyncio.BufferedProtocol):
    """Parses frames. It must not be an `asyncio.Protocol`, too: uvloop asks those for no buffers."""

    make_connection = FastConnection
    connection: FastConnection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        super().connection_made(transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._h2 = self.connection.h2
        self._scratch = self._endpoint.scratch
        self._held = b""  # a part of a frame's header
        self._for_h2 = 0 if self.h2_config.client_side else _PREFACE_BYTES  # bytes that go to h2 before the next header
        self._left = 0  # bytes that the current DATA frame still owes
        self._size = 0
        self._stream_id = 0
        self._ends_stream = False
        self._buffer: MessageBuffer | None = None
        self._direct = False
        self._was_direct = False
        self._put_off: memoryview | None = None  # input that waits for its turn

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive: the current message's own memory if much of the frame is missing."""
        self._direct = False  # a buffer that was asked for may have been left empty
        if self._left >= DIRECT_BYTES:
            assert self._buffer is not None
            room = self._buffer.room(self._left)
            if room is not None and len(room) >= DIRECT_BYTES:
                self._direct = True
                return room
        return self._scratch[len(self._held) : SCRATCH_BETWEEN_BYTES if self._was_direct else SCRATCH_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received."""
        self.connection.num_taken = 0
        self.is_heard = True
        if self._direct:
            self._direct = False
            self._was_direct = True
            assert self._buffer is not None
            self._buffer.filled(nbytes)
            self._take(nbytes)
            return
        self._was_direct = False
        view = self._scratch
        end = nbytes
        if self._held:
            end += len(self._held)
            view[: len(self._held)] = self._held
            self._held = b""
        self._parse(view, end)
        if self._put_off is not None:
            self._put_off = memoryview(bytes(self._put_off))  # other connections receive there, too
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Work off more of what was received before."""
        view, self._put_off = self._put_off, None
        if view is None or self.connection.is_closing():
            return
        self.connection.num_taken = 0
        self._parse(view, len(view))
        if self._put_off is None and not self.connection.is_closing():
            self._transport.resume_reading()

    def _parse(self, view: memoryview, end: int) -> None:
        """Work off input; what is too much for one turn of the event loop is put off until the next."""
        position = credits = 0
        left = PLAIN_FRAMES_PER_TURN
        while position < end and not self.processor.closed:
            if self._left:
                stop = min(end, position + self._left)
                assert self._buffer is not None
                self._buffer.feed(view[position:stop])
                self._take(stop - position)
                position = stop
            elif self._for_h2:
                stop = min(end, position + self._for_h2)
                self._for_h2 -= stop - position
                self.data_received(bytes(view[position:stop]))
                position = stop
            elif end - position < FRAME_HEADER_BYTES:
                self._held = bytes(view[position:end])
                break
            elif left <= 0:
                self._put_off = view[position:end]
                asyncio.get_running_loop().call_soon(self.go_on)
                break
            else:
                left -= 1
                high, low, kind, flags, stream_id = FRAME_HEADER.unpack_from(view, position)
                size = high << 8 | low
                stop = position + FRAME_HEADER_BYTES
                if kind == 0 and self._begin_data(size, flags, stream_id & 0x7FFFFFFF):
                    position = stop
                elif (
                    kind == WINDOW_UPDATE
                    and size == _CREDIT_BYTES <= end - stop
                    and self._take_credit(stream_id & 0x7FFFFFFF, int.from_bytes(view[stop : stop + size], "big"))
                ):
                    position = stop + size
                    credits += 1
                else:
                    self._for_h2 = FRAME_HEADER_BYTES + size
                    left -= _H2_COST
        if credits > FREE_CREDITS and self.guard is not None:
            self.guard.saw_credits(credits)
            if self.guard.verdict is not None:
                self.drop(self.guard.verdict)

    def _begin_data(self, size: int, flags: int, stream_id: int) -> bool:
        """Begin to receive a DATA frame and count it, as h2 would; False if h2 is to see it itself."""
        if not size or flags & _PADDED:
            return False
        h2_connection = self._h2
        h2_stream: H2Stream | None = h2_connection.streams.get(stream_id)
        stream = self.processor.streams.get(stream_id)
        if h2_stream is None or stream is None:
            return False
        machine = h2_stream.state_machine
        window, whole_window = h2_stream._inbound_window_manager, h2_connection._inbound_flow_control_window_manager
        if (
            machine.state not in _RECEIVING
            or not machine.headers_received
            or h2_connection.state_machine.state not in _OPEN
            or h2_connection.incoming_buffer._headers_buffer
            or h2_stream._expected_content_length is not None
            or size > h2_connection.max_inbound_frame_size
            or size > window.current_window_size
            or size > whole_window.current_window_size
        ):
            return False
        window.window_consumed(size)
        whole_window.window_consumed(size)
        assert isinstance(stream, FastStream)
        self._buffer = stream.buffer
        self._stream_id = stream_id
        self._size = self._left = size
        self._ends_stream = bool(flags & _END_STREAM)
        return True

    def _take_credit(self, stream_id: int, field: int) -> bool:
        """Take a WINDOW_UPDATE, as h2 would; False if h2 is to see it itself."""
        h2_connection, increment = self._h2, field & 0x7FFFFFFF
        if (
            not increment
            or h2_connection.state_machine.state not in _OPEN
            or h2_connection.incoming_buffer._headers_buffer
        ):
            return False
        h2_stream = h2_connection.streams.get(stream_id)
        if stream_id and (h2_stream is None or not h2_stream.open):
            return False
        credited: H2 | H2Stream = h2_stream or h2_connection
        if credited.outbound_flow_control_window + increment > CONNECTION_WINDOW:
            return False
        credited.outbound_flow_control_window += increment
        self.processor.process(WindowUpdated(stream_id=stream_id, delta=increment))
        return True

    def _take(self, nbytes: int) -> None:
        """Count what the message buffer got of the current frame."""
        self._left -= nbytes
        if self._left:
            return
        self._buffer = None
        self.connection.data_received += self._size
        increment = self._h2._inbound_flow_control_window_manager.process_bytes(self._size)
        if increment and not self.connection.is_closing():
            self._transport.write(credit_frame(0, increment))
        if self._ends_stream:
            self._end(self._stream_id)

    def _end(self, stream_id: int) -> None:
        """Take the end of a stream that came with its last DATA frame, as h2 would."""
        h2_stream = self._h2.streams.get(stream_id)
        if h2_stream is None or h2_stream.state_machine.state not in _RECEIVING:
            self.data_received(FRAME_HEADER.pack(0, 0, 0, _END_STREAM, stream_id))
            return
        for event in h2_stream.state_machine.process_input(StreamInputs.RECV_END_STREAM):
            self.processor.process(event)
