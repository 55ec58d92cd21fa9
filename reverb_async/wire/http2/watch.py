"""A look at all connections of a server, about once a second: who is silent, dead, or takes nothing of what it asked.

Three kinds of silence are told apart.

- A *dead* host acknowledges nothing: Linux counts what it sends again and again in vain (`TCP_INFO`). After
  `Guards.dead_after` the connection is dropped; PINGs make sure that there is something to acknowledge.
- A *blocked* program (a training step in the event loop, SIGSTOP) reads nothing and answers no PING, but its host does
  acknowledge, or says that its buffer is full. That is no reason to drop it until `Guards.silence_timeout`. This is
  why the kernel's own TCP_USER_TIMEOUT is not set: it ends connections whose peer's buffer is full just the same.
- One that *takes nothing* of what is to be sent to it holds a message and its rows for as long: `Guards.send_timeout`.
  If it lives and merely gives a stream no credit, that stream ends with a status; a connection whose socket takes no
  more cannot be told anything and is dropped. Our clients, and DeepMind's, then resume by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import TYPE_CHECKING, Any

from h2.errors import ErrorCodes

from reverb_async.wire.http2.guards import Guards

if TYPE_CHECKING:
    from reverb_async.wire.http2.connection import Endpoint, Protocol
    from reverb_async.wire.http2.stream import Stream

LONGEST_INTERVAL_S = 1.0

MIN_PROGRESS_BYTES = 16 << 10
"""Who takes less than this in `Guards.send_timeout`, and still not all there is, takes nothing."""

LAST_WORDS_S = 1.0
"""A stream that stalled has so long to end with a status, then it is reset."""

_TCP_INFO_BYTES = 60
_RETRANSMITS, _PROBES, _LAST_ACK_RECEIVED = 2, 3, 56
"""Where `struct tcp_info` keeps what was sent again in vain, probes in vain, milliseconds since an acknowledgement."""

_PING = b"watching"


class Watched:
    """What the watch remembers of a connection; all times are the watch's own."""

    __slots__ = ("blocked", "heard_at", "made_at", "pinged_at", "stalled", "times_gone")

    def __init__(self, now: float) -> None:
        self.made_at = self.heard_at = now
        self.pinged_at = -1.0
        self.times_gone = 0
        self.blocked: tuple[float, int] | None = None  # since when, and how much was unsent then
        self.stalled: dict[Stream, float] = {}


class Watch:
    """Looks at a server's connections while there are any.

    Its clock stands still while the event loop is blocked: what peers sent meanwhile has not been read.
    """

    def __init__(self, endpoint: Endpoint, guards: Guards) -> None:
        self.now = 0.0
        self._endpoint = endpoint
        self._guards = guards
        shortest = min(guards.first_request_timeout, guards.send_timeout, guards.keepalive_interval, guards.dead_after)
        self.interval = min(LONGEST_INTERVAL_S, shortest / 4)
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, unless that was done."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._last = loop.time()
            self._timer = loop.call_later(self.interval, self._look, loop)

    def stop(self) -> None:
        """End; `start` begins anew."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self.now += min(now - self._last, 2 * self.interval)
        self._last = now
        self._timer = loop.call_later(self.interval, self._look, loop)
        for protocol in list(self._endpoint.connections):
            if not protocol.processor.closed:
                self._look_at(protocol)

    def _look_at(self, protocol: Protocol) -> None:
        watched, guards, now = protocol.watched, self._guards, self.now
        if protocol.is_heard:
            protocol.is_heard = False
            watched.heard_at = now
        if not protocol.processor.requested and now - watched.made_at >= guards.first_request_timeout:
            protocol.drop("no request in time", ErrorCodes.NO_ERROR, logging.INFO)
            return
        if self._is_blocked(protocol):
            protocol.drop_now("reads nothing")
            return
        self._look_at_streams(protocol)
        silent = now - watched.heard_at
        is_gone = silent >= guards.dead_after and _unacknowledged_s(protocol.socket) >= guards.dead_after
        watched.times_gone = watched.times_gone + 1 if is_gone else 0
        if watched.times_gone > 1:  # once may be a probe whose answer is under way
            protocol.drop_now("its host is gone")
        elif silent >= guards.silence_timeout and protocol.processor.streams:
            protocol.drop_now("silent")
        elif silent >= guards.keepalive_interval and now - watched.pinged_at >= guards.keepalive_interval:
            watched.pinged_at = now
            protocol.ping(_PING)

    def _is_blocked(self, protocol: Protocol) -> bool:
        """Whether the socket has taken nothing for too long although there is something to take."""
        watched, unsent = protocol.watched, protocol.unsent_bytes
        if not unsent:
            watched.blocked = None
            return False
        since, before = watched.blocked or (self.now, unsent)
        if unsent <= before - MIN_PROGRESS_BYTES:
            since, before = self.now, unsent
        watched.blocked = since, max(unsent, before)
        return self.now - since >= self._guards.send_timeout

    def _look_at_streams(self, protocol: Protocol) -> None:
        """End streams that wait for credit for too long, and connections of which nothing else is left."""
        connection, watched, timeout = protocol.connection, protocol.watched, self._guards.send_timeout
        for stream, mark in connection.starving.items():
            if stream.stalled is not None:
                continue
            sent = stream.framed, connection.framed
            whose = 0 if stream.send_window <= 0 else 1  # without credit of its own, what others take is no progress
            if mark is None or sent[whose] - mark[1][whose] >= MIN_PROGRESS_BYTES:
                connection.starving[stream] = self.now, sent
            elif self.now - mark[0] >= timeout:
                self._endpoint.stats.stalled_streams += 1
                watched.stalled[stream] = self.now
                stream.stall(timeout)
        if not watched.stalled:
            return
        for stream, since in list(watched.stalled.items()):
            if stream not in protocol.processor.streams.values():
                del watched.stalled[stream]
            elif self.now - since >= LAST_WORDS_S:
                protocol.processor.cut(stream, "its client reads nothing")
        if not watched.stalled and not protocol.processor.streams:
            protocol.drop("reads nothing", ErrorCodes.NO_ERROR)


def _unacknowledged_s(sock: Any) -> float:
    """Return for how long a peer's host has acknowledged nothing of what was sent; 0 if unknown or nothing was."""
    if sys.platform != "linux" or sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 0.0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:  # it has just been closed
        return 0.0
    if len(info) < _TCP_INFO_BYTES or not (info[_RETRANSMITS] or info[_PROBES]):
        return 0.0
    return int.from_bytes(info[_LAST_ACK_RECEIVED : _LAST_ACK_RECEIVED + 4], sys.byteorder) / 1000
