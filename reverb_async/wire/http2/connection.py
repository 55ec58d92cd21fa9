"""One HTTP/2 connection under grpclib: settings, frames and events."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import grpclib.protocol
import numpy as np
from grpclib.config import Configuration
from grpclib.metadata import decode_bin_value
from grpclib.utils import Wrapper
from h2.config import H2Configuration
from h2.connection import ConnectionState
from h2.errors import ErrorCodes
from h2.events import Event, PingAckReceived, RequestReceived, StreamReset, WindowUpdated
from h2.exceptions import ProtocolError
from h2.stream import StreamState

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.wire.http2.goaway import (
    GoingAway,
    goaway_frame,
    is_parting,
    parting_frames,
    ping_frame,
)
from reverb_async.wire.http2.guards import UNIX, ConnectionStats, FrameGuard, Guards, peer_name
from reverb_async.wire.http2.h2_state import H2, MAX_STREAMS, Frames, open_h2
from reverb_async.wire.http2.keepalive import Keepalive, limit_unacknowledged
from reverb_async.wire.http2.stream import Stream
from reverb_async.wire.http2.watch import Watch, Watched
from reverb_async.wire.http2.window import CONNECTION_WINDOW, INITIAL_WINDOW, WindowBudget

log = logging.getLogger(__name__)

SCRATCH_BYTES = 256 << 10
MAX_MESSAGE_BYTES = 64 << 20
CLOSE_GRACE = 1.0
"""Seconds a closed connection has to send what it still holds."""
MAX_UNSENT_BYTES = 64 << 20
"""A peer that makes us answer (pings, settings) and reads nothing is dropped when so much waits for it.

Messages never come near this: their senders wait when the transport is full.
"""
FRAMES_PER_TURN = 32
"""Frames for h2 that one connection has worked off in a turn of the event loop, before others have theirs."""


@dataclass(eq=False)
class Endpoint:
    """What all connections of a server or channel share.

    Attributes:
        stream_window: bytes a stream may receive unread, at first.
        max_message_bytes: longer messages are refused before they are read.
        message_limits: other limits for some services, by full name, or for some methods, by path.
        storing: paths of the methods whose messages bring what is stored.
        unary: paths of the methods that take one message.
        window_budget: lets windows of streams grow; None keeps them as they are.
        silence_s: of a client: a connection is given up when nothing was heard for so long; None: never.
        pool: memory for long messages.
        connections: those that live.
        idle: set while there are none.
        entered: called with each new connection.
        guards: limits of connections; None: a client's.
        stats: counts them.
        scratch: where connections receive what has no memory of its own yet, one after the other: what is received is
            parsed in the same step, so a thousand connections need no more of it than one.
    """

    stream_window: int = INITIAL_WINDOW
    max_message_bytes: int = MAX_MESSAGE_BYTES
    message_limits: dict[str, int] = field(default_factory=dict)
    storing: frozenset[str] = frozenset()
    unary: frozenset[str] = frozenset()
    window_budget: WindowBudget | None = None
    silence_s: float | None = None
    pool: BufferPool = field(default_factory=BufferPool)
    connections: set[Protocol] = field(default_factory=set)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    entered: Callable[[Protocol], object] | None = None
    guards: Guards | None = None
    stats: ConnectionStats = field(default_factory=ConnectionStats)
    scratch: memoryview = field(default_factory=lambda: np.empty(SCRATCH_BYTES, np.uint8).data)

    def __post_init__(self) -> None:
        self.idle.set()
        self.watch = None if self.guards is None else Watch(self, self.guards)

    def add(self, connection: Protocol) -> str | None:
        """Count a new connection; return why it is not to be admitted."""
        self.connections.add(connection)
        if self.entered is not None:
            self.entered(connection)
        self.idle.clear()
        stats, guards = self.stats, self.guards
        stats.open += 1
        stats.by_peer[connection.peer] += 1
        if guards is None or self.watch is None:
            return None
        self.watch.start()
        if stats.open > guards.connections_at_most:
            return "too many connections"
        if connection.peer != UNIX and stats.by_peer[connection.peer] > (
            guards.max_connections_per_peer or sys.maxsize
        ):
            return "too many connections from this address"
        stats.accepted += 1
        return None

    def discard(self, connection: Protocol) -> None:
        """Count a connection no more."""
        if connection not in self.connections:
            return
        self.connections.discard(connection)
        self.stats.open -= 1
        self.stats.by_peer[connection.peer] -= 1
        if not self.stats.by_peer[connection.peer]:
            del self.stats.by_peer[connection.peer]
        if not self.connections:
            self.pool.clear()
            self.idle.set()
            if self.watch is not None:
                self.watch.stop()

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


class Connection(grpclib.protocol.Connection):
    """A connection whose end wakes everybody who waits for it.

    Attributes:
        framed: bytes of messages handed to the transport.
        starving: streams that wait for credit, and what the watch has noted of them.
    """

    def __init__(
        self, h2_connection: H2, transport: asyncio.Transport, endpoint: Endpoint, config: Configuration
    ) -> None:
        super().__init__(h2_connection, transport, config=config)
        self.h2 = h2_connection
        self.max_message_bytes = endpoint.max_message_bytes
        self.window_budget = endpoint.window_budget
        self.pool = endpoint.pool
        self.client_side = bool(h2_connection.config.client_side)
        self.is_leaving = False
        """The server goes away: the connection opens no more streams, and ends with its last one."""
        self.end_reason = "Connection lost"
        # Senders wait for the transport one behind the other: all at once would fill it once each.
        self.turn = asyncio.Lock()
        self.framed = 0
        self.starving: dict[Stream, tuple[float, tuple[int, int]] | None] = {}
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


def is_plain(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether all headers are ASCII, and those that claim to be base64 are."""
    for name, value in headers:
        if not (name.isascii() and value.isascii()):
            return False
        if name.endswith("-bin"):
            try:
                decode_bin_value(value.encode("ascii"))
            except ValueError:
                return False
    return True


class Processor(grpclib.protocol.EventsProcessor):
    """Routes h2's events; unlike grpclib's it ignores what it does not know and forgets streams that are reset."""

    connection: Connection
    streams: dict[int, Stream]  # type: ignore[assignment]

    def __init__(
        self,
        handler: grpclib.protocol.AbstractHandler,
        connection: Connection,
        endpoint: Endpoint,
        guard: FrameGuard | None,
    ) -> None:
        super().__init__(handler, connection)
        self._endpoint = endpoint
        self.guard = guard
        self.closed = False
        self.requested = False
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
        self.connection.h2.forget(stream.id)
        if self.connection.is_leaving and not self.streams:
            self.close("the server goes away")

    def cut(self, stream: Stream, reason: str) -> None:
        """Reset a server's stream and cancel its handler."""
        stream.abort(reason)
        if self.streams.get(cast("int", stream.id)) is stream:
            stream.__terminated__(reason)
            self.handler.cancel(stream)
            self._release(stream)

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
        self.requested = True
        received = cast("list[tuple[str, str]]", event.headers)
        headers = dict(received)
        if not {":method", ":path"} <= headers.keys() or not is_plain(received):
            self._refuse(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        guards = self._endpoint.guards
        if guards is not None:
            if len(self.connection.h2.streams) > len(self.streams) + guards.max_streams:
                self._end_answered()
            if len(self.streams) >= guards.max_streams:
                self._endpoint.stats.refused_streams += 1
                self._refuse(event.stream_id, ErrorCodes.REFUSED_STREAM)
                return
        super().process_request_received(event)
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            stream.max_message_bytes = self._endpoint.limit(headers[":path"])
            stream.is_stored = headers[":path"] in self._endpoint.storing
            stream.needs_message = headers[":path"] in self._endpoint.unary

    def _end_answered(self) -> None:
        """Reset streams that were answered to their end, and that the peer does not end."""
        for stream_id, stream in list(self.connection.h2.streams.items()):
            if stream_id not in self.streams and stream.state_machine.state is StreamState.HALF_CLOSED_LOCAL:
                self.connection.h2.reset_stream(stream_id, ErrorCodes.NO_ERROR)

    def _refuse(self, stream_id: int, code: ErrorCodes) -> None:
        stream = self.connection.h2.streams.get(stream_id)
        if stream is not None and not stream.closed:  # the peer may have given up meanwhile
            self.connection.h2.reset_stream(stream_id, code)
        if self.guard is not None:
            self.guard.saw_reset()

    def process_window_updated(self, event: WindowUpdated) -> None:
        """Wake who waits for credit: of a connection with thousands of streams, few do."""
        if event.stream_id:
            super().process_window_updated(event)
            return
        for stream in self.connection.starving:
            stream.window_updated.set()

    def process_stream_reset(self, event: StreamReset) -> None:
        """End a stream. A handler cancelled before its first step would never release it, so that is done here."""
        stream = self.streams.get(event.stream_id)
        if self.guard is not None and (not event.remote_reset or (stream is not None and not stream.answered)):
            self.guard.saw_reset()
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
        self.socket = transport.get_extra_info("socket")
        if self.socket is not None:
            grpclib.protocol._set_nodelay(self.socket)
        self._transport = cast("asyncio.Transport", transport)
        self.peer = peer_name(transport.get_extra_info("peername"))
        endpoint = self._endpoint
        guards = endpoint.guards
        self.guard = None if guards is None else FrameGuard(guards)
        max_streams = MAX_STREAMS if guards is None else guards.max_streams
        h2_connection = open_h2(self.h2_config, endpoint.stream_window, max_streams, self.guard)
        self.connection = self.make_connection(h2_connection, self._transport, endpoint, self.config)
        self.connection.flush()
        self.connection.initialize()
        self.processor = Processor(self.handler, self.connection, endpoint, self.guard)
        self.watched = Watched(0.0 if endpoint.watch is None else endpoint.watch.now)
        refusal = endpoint.add(self)
        if refusal is not None:
            endpoint.stats.refuse(refusal, self.peer)
            self._dismiss(refusal, ErrorCodes.ENHANCE_YOUR_CALM)
        silence_s = endpoint.silence_s
        if silence_s is not None:
            self._keepalive = Keepalive(self, silence_s)
            if self.socket is not None:
                limit_unacknowledged(self.socket, silence_s)

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
            self.connection.flush()
            for event in events:
                self.processor.process(event)
        except (ProtocolError, UnicodeDecodeError) as error:  # the second: a header that is not ASCII
            log.debug("Protocol error", exc_info=error)
            self.drop("protocol error", ErrorCodes.PROTOCOL_ERROR, logging.DEBUG)
            return
        self.connection.flush()
        if self.guard is not None and self.guard.verdict is not None:
            self.drop(self.guard.verdict)
        elif not self.connection.write_ready.is_set() and self.unsent_bytes > MAX_UNSENT_BYTES:
            self.drop_now("asks and reads nothing")

    @property
    def unsent_bytes(self) -> int:
        """What the transport holds."""
        return self._transport.get_write_buffer_size()

    def ping(self, data: bytes) -> None:
        """Ask the peer whether it is there, unless it is known not to read."""
        if self.connection.write_ready.is_set() and not self.connection.is_closing():
            self.connection.h2.ping(data)
            self.connection.flush()

    def drop(self, reason: str, code: ErrorCodes = ErrorCodes.ENHANCE_YOUR_CALM, level: int = logging.WARNING) -> None:
        """End the connection, count it, and tell the peer why."""
        if not self.processor.closed:
            self._endpoint.stats.drop(reason, self.peer, level)
            self._dismiss(reason, code)

    def drop_now(self, reason: str) -> None:
        """End the connection and count it; a peer that reads nothing cannot be told."""
        self._endpoint.stats.drop(reason, self.peer)
        self.abort()

    def _dismiss(self, reason: str, code: ErrorCodes) -> None:
        h2_connection = self.connection.h2
        if h2_connection.state_machine.state is not ConnectionState.CLOSED:
            h2_connection.close_connection(code, additional_data=reason.encode())
        self.connection.flush()
        self.processor.close(reason)

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

    _has_put_off = False

    def data_received(self, data: bytes) -> None:
        """Take what came in, a part of it now."""
        self.is_heard = True
        frames = cast("Frames", self.connection.h2.incoming_buffer)
        frames.left = FRAMES_PER_TURN
        super().data_received(data)
        if not frames.left and not self.processor.closed:
            self._has_put_off = True
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.go_on)

    def go_on(self) -> None:
        """Work off more of what came in."""
        if self._has_put_off and not self.processor.closed and not self.connection.is_closing():
            self._has_put_off = False
            self._transport.resume_reading()
            self.data_received(b"")
