"""h2's state of a connection with our settings, and the frames it is handed."""

from __future__ import annotations

import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import InvalidBodyLengthError, ProtocolError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from hyperframe.frame import DataFrame, Frame, HeadersFrame

from reverb_async.wire.http2.goaway import expect_goaway
from reverb_async.wire.http2.guards import FrameGuard
from reverb_async.wire.http2.header_blocks import RememberingDecoder, RememberingEncoder
from reverb_async.wire.http2.window import CONNECTION_WINDOW, INITIAL_WINDOW

FRAME_HEADER_BYTES = 9
MAX_FRAME_BYTES = 1 << 20
MAX_STREAMS = (1 << 31) - 1
MAX_HEADERS_BYTES = 256 << 10
"""Headers that come in several frames; four times what we admit of them uncompressed."""
MAX_CLOSED_STREAMS = 4096
"""How many streams are remembered to have been closed, so that what was under way to them is no fault."""


class _Data(DataFrame):
    """A DATA frame that is cheap to print.

    h2 formats every frame it receives for a log that drops it; for a DATA frame that turns the whole body into
    hexadecimal digits.
    """

    def __repr__(self) -> str:
        return "DATA"


class _Headers(HeadersFrame):
    """A HEADERS frame that is cheap to print, as is `_Data`."""

    def __repr__(self) -> str:
        return "HEADERS"


_CHEAP: dict[type[Frame], type[Frame]] = {DataFrame: _Data, HeadersFrame: _Headers}


class Frames(FrameBuffer):
    """Makes frames cheap to print, refuses frames that are too long before they are received, and endless headers.

    h2 itself would keep the headers of 64 frames, whatever their length.

    Attributes:
        guard: counts them.
        left: so many are handed out, then what follows waits.
    """

    guard: FrameGuard | None = None
    left = sys.maxsize

    def __next__(self) -> Frame:
        if not self.left or (self.guard is not None and self.guard.verdict is not None):
            raise StopIteration
        if self._headers_buffer and sum(len(frame.data) for frame in self._headers_buffer) > MAX_HEADERS_BYTES:
            raise ProtocolError(f"headers of more than {MAX_HEADERS_BYTES} bytes")
        try:
            frame = super().__next__()
        except StopIteration:
            if len(self._data) >= FRAME_HEADER_BYTES:
                self._validate_frame_length(int.from_bytes(self._data[:3], "big"))
            raise
        self.left -= 1
        if self.guard is not None:
            self.guard.saw(frame)
        frame.__class__ = _CHEAP.get(frame.__class__, frame.__class__)
        return frame


class H2(H2Connection):
    """Leaves it to `Processor` to refuse streams: h2 ends the connection, and looks at all streams for each new one."""

    MAX_CLOSED_STREAMS = MAX_CLOSED_STREAMS
    _forget_at = 0

    @property
    def open_inbound_streams(self) -> int:
        """0; when there are many more streams than were open last time, the closed ones are forgotten."""
        if len(self.streams) >= self._forget_at:
            self._forget_at = max(16, 2 * super().open_inbound_streams)
        return 0

    def _receive_frame(self, frame: Frame) -> list[Event]:
        """Take a frame; a wrong content-length is a fault of its stream's alone, for which h2 ends the connection."""
        try:
            return super()._receive_frame(frame)
        except ProtocolError as error:
            if not isinstance(error, InvalidBodyLengthError) and not str(error).startswith("Invalid content-length"):
                raise
            self.reset_stream(frame.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return [StreamReset(stream_id=frame.stream_id, error_code=ErrorCodes.PROTOCOL_ERROR, remote_reset=False)]

    def forget(self, stream_id: int) -> None:
        """Forget a stream if it is closed."""
        stream = self.streams.get(stream_id)
        if stream is not None and stream.closed:
            del self.streams[stream_id]
            self._closed_streams[stream_id] = stream.closed_by


def open_h2(
    config: H2Configuration, stream_window: int, max_streams: int = MAX_STREAMS, guard: FrameGuard | None = None
) -> H2:
    """Return an HTTP/2 state machine with our settings, its first frames ready to be sent."""
    h2_connection = H2(config=config)
    h2_connection.incoming_buffer = frames = Frames(server=not config.client_side)
    frames.guard = guard
    h2_connection._frame_dispatch_table[_Data] = h2_connection._receive_data_frame
    h2_connection._frame_dispatch_table[_Headers] = h2_connection._receive_headers_frame
    if config.client_side:
        expect_goaway(h2_connection)
    h2_connection.encoder, h2_connection.decoder = RememberingEncoder(), RememberingDecoder()
    h2_connection.decoder.max_header_list_size = h2_connection.DEFAULT_MAX_HEADER_LIST_SIZE
    # Settings given at once hold from the first frame on; later changes would wait for the peer's acknowledgement.
    h2_connection.local_settings = Settings(
        client=bool(config.client_side),
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: h2_connection.DEFAULT_MAX_HEADER_LIST_SIZE,
            SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            SettingCodes.INITIAL_WINDOW_SIZE: stream_window,
        },
    )
    h2_connection.max_inbound_frame_size = MAX_FRAME_BYTES
    h2_connection.initiate_connection()
    h2_connection.increment_flow_control_window(CONNECTION_WINDOW - INITIAL_WINDOW)
    return h2_connection
