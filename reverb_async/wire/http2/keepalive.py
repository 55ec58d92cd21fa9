"""A client's look at whether its server still lives."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from reverb_async.wire.status import Silence

SILENCE_S = 20.0
"""A server of which nothing was heard for so long is gone; after half of it, it is asked for a sign of life."""

_TICKS = 8
_ASKING_TICK = _TICKS // 2


class Watched(Protocol):
    """A connection."""

    is_heard: bool
    """Something was received; reset by who looks."""

    def ask(self) -> None:
        """Send a PING."""

    def give_up(self, reason: str) -> None:
        """End the connection and all its streams."""


class Keepalive:
    """Counts the time without a sign of life, in ticks of this process's own clock.

    So a client whose own event loop was blocked, however long, has heard nothing for one tick, and will read what has
    come meanwhile before the next.

    Args:
        connection: what is watched.
        silence_s: for how long nothing may be heard.
    """

    def __init__(self, connection: Watched, silence_s: float) -> None:
        self._connection = connection
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._silent_ticks = 0
        self._timer = self._loop.call_later(silence_s / _TICKS, self._tick)

    def stop(self) -> None:
        """Watch no longer. Idempotent."""
        self._timer.cancel()

    def _tick(self) -> None:
        connection = self._connection
        self._silent_ticks = 0 if connection.is_heard else self._silent_ticks + 1
        connection.is_heard = False
        if self._silent_ticks >= _TICKS:
            connection.give_up(Silence(f"nothing was heard of it for {self._silence_s:g} s"))
            return
        if self._silent_ticks == _ASKING_TICK:
            connection.ask()
        self._timer = self._loop.call_later(self._silence_s / _TICKS, self._tick)


def limit_unacknowledged(sock: socket.socket, silence_s: float) -> None:
    """Have the system give a connection up whose data are not acknowledged for so long (Linux)."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, option, int(1000 * silence_s))
