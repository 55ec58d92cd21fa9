"""One HTTP/2 connection under grpclib: settings, frames and events."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import grpclib.protocol
import numpy as np
from grpclib.config import Configuration
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, PingAckReceived, RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from hyperframe.frame import DataFrame, Frame, HeadersFrame

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.wire.http2.goaway import (
    GoingAway,
    expect_goaway,
    goaway_frame,
    is_parting,
    parting_frames,
    ping_frame,
)
from reverb_async.wire.http2.header_blocks import RememberingDecoder, RememberingEncoder
from reverb_async.wire.http2.keepalive import Keepalive, limit_unacknowledged
from reverb_async.wire.http2.stream import Stream
from reverb_async.wire.http2.window import CONNECTION_WINDOW, INITIAL_WINDOW, WindowBudget

log = logging.getLogger(__name__)

FRAME_HEADER_BYTES = 9
SCRATCH_BYTES = 256 << 10
MAX_FRAME_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 64 << 20
MAX_STREAMS = (1 << 31) - 1
MAX_HEADERS_BYTES = 256 << 10
"""Headers that come in several frames; four times what we admit of them uncompressed."""
CLOSE_GRACE = 1.0
"""Seconds a closed connection has to send what it still holds."""
MAX_UNSENT_BYTES = 64 << 20
"""A peer that makes us answer (pings, settings) and reads nothing is dropped when so much waits for it.

Messages never come near this: their senders wait when the transport is full.
"""


@dataclass(eq=False)
class Endpoint:
    """What all connections of a server or channel share.

    Attributes:
        stream_window: bytes a stream may receive unread, at first.
        max_message_bytes: longer messages are refused before they are read.
        message_limits: other limits for some services, by full name, or for some methods, by path.
        storing: paths of the methods whose messages bring what is stored.
        window_budget: lets windows of streams grow; None keeps them as they are.
        silence_s: of a client: a connection is given up when nothing was heard for so long; None: never.
        pool: memory for long messages.
        connections: those that live.
        idle: set while there are none.
        entered: called with each new connection.
        scratch: where connections receive what has no memory of its own yet, one after the other: what is received is
            parsed in the same step, so a thousand connections need no more of it than one.
    """

    stream_window: int = INITIAL_WINDOW
    max_message_bytes: int = MAX_MESSAGE_BYTES
    message_limits: dict[str, int] = field(default_factory=dict)
    storing: frozenset[str] = frozenset()
    window_budget: WindowBudget | None = None
    silence_s: float | None = None
    pool: BufferPool = field(default_factory=BufferPool)
    connections: set[Protocol] = field(default_factory=set)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    entered: Callable[[Protocol], object] | None = None

    scratch: memoryview = field(default_factory=lambda: np.empty(SCRATCH_BYTES, np.uint8).data)

    def __post_init__(self) -> None:
        self.idle.set()

    def add(self, connection: Protocol) -> None:
        """Count a new connection."""
        self.connections.add(connection)
        if self.entered is not None:
            self.entered(connection)
        self.idle.clear()

    def discard(self, connection: Protocol) -> None:
        """Count a connection no more."""
        self.connections.discard(connection)
        if not self.connections:
            self.pool.clear()
            self.idle.set()

    @property
    def config(self) -> Configuration:
        """What grpclib is to know of this."""
        return Configuration(
            http2_connection_window_size=CONNECTION_WINDOW, http2_stream_window_size=self.stream_window
        )

    def limit(self, path: str) -> int:
        """Return the longest message allowed in calls of a method."""
        limits = self.message_limits
        if path in limits:
            return limits[path]
        return limits.get(path.split("/")[1] if path.startswith("/") else "", self.max_message_bytes)


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


class _Frames(FrameBuffer):
    """Makes frames cheap to print, refuses frames that are too long before they are received, and endless headers.

    h2 itself would keep the headers of 64 frames, whatever their length.
    """

    def __next__(self) -> Frame:
        if self._headers_buffer and sum(len(frame.data) for frame in self._headers_buffer) > MAX_HEADERS_BYTES:
            raise ProtocolError(f"headers of more than {MAX_HEADERS_BYTES} bytes")
        try:
            frame = super().__next__()
        except StopIteration:
            if len(self._data) >= FRAME_HEADER_BYTES:
                self._validate_frame_length(int.from_bytes(self._data[:3], "big"))
            raise
        frame.__class__ = _CHEAP.get(frame.__class__, frame.__class__)
        return frame


def _open_h2(config: H2Configuration, stream_window: int) -> H2Connection:
    """Return an HTTP/2 state machine with our settings, its first frames ready to be sent."""
    h2_connection = H2Connection(config=config)
    h2_connection.incoming_buffer = _Frames(server=not config.client_side)
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
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: h2_connection.DEFAULT_MAX_HEADER_LIST_SIZE,
            SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            SettingCodes.INITIAL_WINDOW_SIZE: stream_window,
        },
    )
    h2_connection.max_inbound_frame_size = MAX_FRAME_BYTES
    h2_connection.initiate_connection()
    h2_connection.increment_flow_control_window(CONNECTION_WINDOW - INITIAL_WINDOW)
    return h2_connection


class Connection(grpclib.protocol.Connection):
    """A connection whose end wakes everybody who waits for it."""

    def __init__(
        self, h2_connection: H2Connection, transport: asyncio.Transport, endpoint: Endpoint, config: Configuration
    ) -> None:
        super().__init__(h2_connection, transport, config=config)
        self.max_message_bytes = endpoint.max_message_bytes
        self.window_budget = endpoint.window_budget
        self.pool = endpoint.pool
        self.client_side = bool(h2_connection.config.client_side)
        self.is_leaving = False
        """The server goes away: the connection opens no more streams, and ends with its last one."""
        self.end_reason = "Connection lost"
        # Senders wait for the transport one behind the other: all at once would fill it once each.
        self.turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()

    def create_stream(self, *, stream_id: int | None = None, wrapper: Wrapper | None = None) -> Stream:
        """Return a stream; without an id it gets one when its request is sent."""
        return Stream(self, self._connection, self._transport, stream_id=stream_id, wrapper=wrapper)

    def flush(self) -> None:
        """Hand what h2 has to say to the transport."""
        data = self._connection.data_to_send()
        if data and not self.is_closing():
            self.write_held()
            self._transport.write(data)

    def write_held(self) -> None:
        """Hand over what was held back to go out with more: it comes before anything that is written now."""

    def write_now(self, frames: bytes) -> None:
        """Hand whole frames to the transport that h2 does not know of."""
        if not self.is_closing():
            self.write_held()
            self._transport.write(frames)

    def close(self) -> None:
        """Close the transport; one that cannot get rid of its data is aborted before long."""
        self.write_held()
        for timer in (self._ping_handle, self._close_by_ping_handler):
            if timer is not None:
                timer.cancel()
        if not self._transport.is_closing():
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._loop.call_later(CLOSE_GRACE, self._transport.abort)
        self.write_ready.set()
        self.stream_close_waiter.set()


class Processor(grpclib.protocol.EventsProcessor):
    """Routes h2's events; unlike grpclib's it ignores what it does not know and forgets streams that are reset."""

    connection: Connection
    streams: dict[int, Stream]  # type: ignore[assignment]

    def __init__(self, handler: grpclib.protocol.AbstractHandler, connection: Connection, endpoint: Endpoint) -> None:
        super().__init__(handler, connection)
        self._endpoint = endpoint
        self.closed = False
        self.processors[GoingAway] = self.process_going_away

    def register(self, stream: grpclib.protocol.Stream) -> Callable[[], None]:
        """Route a stream's events to it until the function that is returned is called; twice does no harm."""
        assert isinstance(stream, Stream)
        assert stream.id is not None
        self.streams[stream.id] = stream
        return lambda: self._release(stream)

    def _release(self, stream: Stream) -> None:
        assert stream.id is not None
        self.streams.pop(stream.id, None)
        stream.close_window()
        self.connection.stream_close_waiter.set()
        stream.drop_unread()
        if self.connection.is_leaving and not self.streams:
            self.close("the server goes away")

    def close(self, reason: str = "Connection closed") -> None:
        """Close the connection and end every stream."""
        if self.closed:
            return
        self.closed = True
        self.connection.end_reason = reason
        self.connection.close()
        self.handler.close()
        for stream in list(self.streams.values()):
            stream.__terminated__(reason)

    def process(self, event: Event) -> None:
        """Act on an event."""
        if event.__class__ in self.processors and not self.closed:
            super().process(event)

    def process_going_away(self, event: GoingAway) -> None:
        """Let new calls find another connection; calls that the server has not taken may be made again there."""
        self.connection.is_leaving = True
        self.handler.connection_lost = True  # type: ignore[attr-defined]  # which is how channels know
        self.connection.stream_close_waiter.set()
        for stream in [stream for stream_id, stream in self.streams.items() if stream_id > event.last_stream]:
            stream.__terminated__("the server goes away, and has not taken this call")
        if not self.streams:
            self.close("the server goes away")

    def process_ping_ack_received(self, event: PingAckReceived) -> None:
        """Name the last stream to a peer that has read the first GOAWAY."""
        super().process_ping_ack_received(event)
        if not self.connection.client_side and is_parting(event.ping_data):
            self.connection.write_now(goaway_frame(self.connection._connection.highest_inbound_stream_id))

    def process_request_received(self, event: RequestReceived) -> None:
        """Start the handler of a new stream."""
        headers = dict(cast("list[tuple[str, str]]", event.headers))
        if not {":method", ":path"} <= headers.keys():
            self.connection._connection.reset_stream(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        super().process_request_received(event)
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.max_message_bytes = self._endpoint.limit(headers[":path"])
            stream.is_stored = headers[":path"] in self._endpoint.storing

    def process_stream_reset(self, event: StreamReset) -> None:
        """End a stream. A handler cancelled before its first step would never release it, so that is done here."""
        stream = self.streams.get(event.stream_id)
        super().process_stream_reset(event)
        if stream is not None and not self.connection.client_side:
            self._release(stream)


class Protocol:
    """Connects a transport with the classes above; `data_received` takes what came in."""

    connection: Connection
    make_connection: type[Connection] = Connection
    is_heard = True
    """Something was received lately; see `Keepalive`."""
    _keepalive: Keepalive | None = None

    def __init__(
        self,
        handler: grpclib.protocol.AbstractHandler,
        config: Configuration,
        h2_config: H2Configuration,
        endpoint: Endpoint,
    ) -> None:
        self.handler = handler
        self.config = config
        self.h2_config = h2_config
        self._endpoint = endpoint
        self._is_heard = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            grpclib.protocol._set_nodelay(sock)
        self._transport = cast("asyncio.Transport", transport)
        h2_connection = _open_h2(self.h2_config, self._endpoint.stream_window)
        self.connection = self.make_connection(h2_connection, self._transport, self._endpoint, self.config)
        self.connection.flush()
        self.connection.initialize()
        self.processor = Processor(self.handler, self.connection, self._endpoint)
        self._endpoint.add(self)
        silence_s = self._endpoint.silence_s
        if silence_s is not None:
            self._keepalive = Keepalive(self, silence_s)
            if sock is not None:
                limit_unacknowledged(sock, silence_s)

    def go_away(self) -> None:
        """Tell the peer to open no more streams here; those that are open go on."""
        self.connection.write_now(parting_frames())

    def part(self) -> None:
        """Close the connection once the peer has taken what was sent to it."""
        self.connection.write_held()
        self._transport.close()

    def ask(self) -> None:
        """Ask the peer for a sign of life."""
        self.connection.write_now(ping_frame(bytes(8)))

    def give_up(self, reason: str) -> None:
        """End the connection and all its streams at once."""
        self.processor.close(reason)
        self.abort()

    def data_received(self, data: bytes) -> None:
        """Feed h2 and act on what it makes of it; peers that break the protocol are told so and dropped."""
        self._is_heard = True
        try:
            events = self.connection.feed(data)
        except (ProtocolError, UnicodeDecodeError) as error:  # the second: a header that is not ASCII
            log.debug("Protocol error", exc_info=error)
            self.connection.flush()
            self.processor.close("Protocol error")
            return
        self.connection.flush()
        for event in events:
            self.processor.process(event)
        self.connection.flush()
        if not self.connection.write_ready.is_set() and self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.warning("A peer that asks and does not read is dropped")
            self.abort()

    def pause_writing(self) -> None:
        """Let senders wait until the transport has got rid of what it holds."""
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self.connection.resume_writing()

    def eof_received(self) -> None:
        """Close when the peer closes."""
        self.processor.close(self._farewell("Connection closed by the peer"))

    def connection_lost(self, exc: BaseException | None) -> None:
        """End every stream."""
        if self._keepalive is not None:
            self._keepalive.stop()
        self._endpoint.discard(self)
        self.processor.close(
            self._farewell(f"Connection lost: {exc}" if isinstance(exc, ssl.SSLError) else "Connection lost")
        )

    def _farewell(self, what: str) -> str:
        if self._is_heard or not self.h2_config.client_side:
            return what
        return f"{what} before the server said anything: it may want TLS, or to see a certificate (Client(tls=))"

    def abort(self) -> None:
        """Close the connection at once; what was not sent is lost, as far as the transport does not take it now."""
        self.connection.write_held()
        self._transport.abort()


class StockProtocol(Protocol, asyncio.Protocol):
    """Lets h2 handle every frame."""

    def data_received(self, data: bytes) -> None:
        """Feed h2."""
        self.is_heard = True
        super().data_received(data)
