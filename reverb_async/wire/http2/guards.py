"""What keeps one peer from harming a server's others: limits of a connection, and how often they were met.

`watch.py` looks for peers that are silent, dead, or do not take what they asked for; here is what is counted as frames
arrive. How much of a connection's input is worked off before others have their turn is in `connection.py`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from grpclib.exceptions import GRPCError
from hyperframe.frame import Frame

from reverb_async.errors import InvalidArgument, ResourceExhausted
from reverb_async.wire.status import to_grpc_error

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger("reverb_async")

OTHER_DESCRIPTORS = 128
"""What a process needs besides its connections: files, tables' memory, sockets that listen."""

LOG_EVERY_S = 10.0
"""Connections dropped for the same reason are reported together, so often."""

UNIX = "unix"
"""What stands for the address of a peer at a Unix socket."""

_DATA, _HEADERS, _RESET, _SETTINGS, _CONTINUATION = 0, 1, 3, 4, 9
_END_STREAM = "END_STREAM"

COSTS: dict[int | None, float] = {_SETTINGS: 10.0, _RESET: 0.25}
"""Of control frames, where it is not 1: settings can change the window of every stream, and a client that leaves gives
up thousands of calls at once."""

FREE_CREDITS, CREDIT_COST = 64, 1 / 16
"""So many WINDOW_UPDATEs in one piece of input cost nothing, the others this much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """Limits of a server's connections. Times are in seconds.

    The limits on frames are far above what gRPC clients send: a client that cancels 1,000 calls at once, or measures
    its bandwidth with a PING per round trip, must not meet them.

    Attributes:
        first_request_timeout: for a new connection to make its first request; then it is told to go away.
        handshake_timeout: for TLS, where there is TLS.
        max_connections: beyond them, new ones are refused; fewer if the process may not open so many files.
        max_connections_per_peer: the same for each IP address; None: no such limit, for actors share hosts.
        max_streams: of one connection; further ones are refused, the connection lives.
        send_timeout: how long a peer may take nothing of what is to be sent to it. A stream without credit fails with
            RESOURCE_EXHAUSTED; a connection that cannot get rid of its data is dropped.
        keepalive_interval: a peer that says nothing for so long is pinged.
        dead_after: a peer whose host has acknowledged nothing for so long is dropped, where the system can tell.
        silence_timeout: a peer that has calls open and answers not even a ping, although its host does, is dropped
            after so long: its program may be blocked, a training step of 90 s is no reason. Clients of ours resume.
        max_resets: calls that a peer may make and give up before they are answered, or have reset by breaking rules,
            in a burst; `resets_per_second` for long.
        max_control_frames: PING, SETTINGS and such, and empty DATA, in a burst; `control_frames_per_second` for long.
            See `COSTS`.

    Raises:
        InvalidArgument: one of them is not positive.
    """

    first_request_timeout: float = 10.0
    handshake_timeout: float = 10.0
    max_connections: int = 4096
    max_connections_per_peer: int | None = None
    max_streams: int = 2048
    send_timeout: float = 60.0
    keepalive_interval: float = 10.0
    dead_after: float = 20.0
    silence_timeout: float = 120.0
    max_resets: int = 4000
    resets_per_second: float = 200.0
    max_control_frames: int = 5000
    control_frames_per_second: float = 500.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidArgument(f"{name} must be positive, got {value!r}")

    @property
    def connections_at_most(self) -> int:
        """How many connections are possible: `max_connections`, or as many as there are file descriptors for."""
        if resource is None:
            return self.max_connections
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return self.max_connections
        return max(1, min(self.max_connections, soft - OTHER_DESCRIPTORS))


class Stalled(GRPCError):
    """A message could not be sent, for the peer gave no credit for too long; the stream is to end with this status."""

    def __init__(self, timeout: float) -> None:
        error = to_grpc_error(ResourceExhausted(f"the client has read nothing for {timeout:g} s"))
        super().__init__(error.status, error.message, error.details)


@dataclass(eq=False)
class ConnectionStats:
    """Counts a server's connections; several listeners may share one.

    Attributes:
        open: connections now.
        accepted: connections ever.
        refused: how many were not admitted, by reason.
        dropped: how many were ended by the server, by reason.
        stalled_streams: streams that ended because their client read nothing.
        refused_streams: streams beyond `Guards.max_streams`.
        by_peer: connections now, by IP address.
    """

    open: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    stalled_streams: int = 0
    refused_streams: int = 0
    by_peer: Counter[str] = field(default_factory=Counter)
    _logged: dict[str, tuple[float, int]] = field(default_factory=dict, repr=False)

    def snapshot(self) -> dict[str, Any]:
        """Return the numbers as plain values."""
        return {
            "open": self.open,
            "accepted": self.accepted,
            "refused": dict(self.refused),
            "dropped": dict(self.dropped),
            "stalled_streams": self.stalled_streams,
            "refused_streams": self.refused_streams,
        }

    def refuse(self, reason: str, peer: str) -> None:
        """Count a connection that is not admitted."""
        self.refused[reason] += 1
        self._report(f"refused: {reason}", peer, logging.WARNING)

    def drop(self, reason: str, peer: str, level: int = logging.WARNING) -> None:
        """Count a connection that is ended."""
        self.dropped[reason] += 1
        self._report(f"dropped: {reason}", peer, level)

    def _report(self, what: str, peer: str, level: int) -> None:
        if not log.isEnabledFor(level):
            return
        now = time.monotonic()
        due, unsaid = self._logged.get(what, (0.0, 0))
        if now < due:
            self._logged[what] = (due, unsaid + 1)
            return
        self._logged[what] = (now + LOG_EVERY_S, 0)
        log.log(level, "a connection was %s (%s)%s", what, peer, f"; so were {unsaid} before it" if unsaid else "")


class Bucket:
    """Admits a burst, and so many a second for long."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = self._left = float(burst)
        self._rate = per_second
        self._at = time.monotonic()

    def take(self, amount: float) -> bool:
        """Take some out; return whether there was enough."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - amount
        self._at = now
        return self._left >= 0

    @property
    def used(self) -> float:
        """What is missing in it, as of the last `take`."""
        return self._burst - self._left


class FrameGuard:
    """Counts one connection's frames.

    Attributes:
        verdict: why the connection is to be ended; None while there is no reason.
    """

    __slots__ = ("control", "resets", "verdict")

    def __init__(self, guards: Guards) -> None:
        self.control = Bucket(guards.max_control_frames, guards.control_frames_per_second)
        self.resets = Bucket(guards.max_resets, guards.resets_per_second)
        self.verdict: str | None = None

    def saw(self, frame: Frame) -> None:
        """Count a frame that h2 is to handle."""
        kind = frame.type
        if kind in (_HEADERS, _CONTINUATION):
            return
        if kind == _DATA and (frame.body_len or _END_STREAM in frame.flags):
            return
        if not self.control.take(COSTS.get(kind, 1.0)):
            self.verdict = "too many control frames"

    def saw_credits(self, count: int) -> None:
        """Count the WINDOW_UPDATEs in one piece of input."""
        if count > FREE_CREDITS and not self.control.take(count * CREDIT_COST):
            self.verdict = "too many control frames"

    def saw_reset(self) -> None:
        """Count a call that was given up before it was answered, or broke a rule."""
        if not self.resets.take(1):
            self.verdict = "too many resets"


def peer_name(address: object) -> str:
    """Return the IP address in a socket's `peername`; a Unix socket has none."""
    return str(address[0]) if isinstance(address, tuple) and address else UNIX
