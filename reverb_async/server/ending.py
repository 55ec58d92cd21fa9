"""How a server ends: what runs is finished, what waits is told, what is stuck is broken off."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Collection
from typing import Protocol

from reverb_async.errors import InvalidArgument
from reverb_async.replay import Replay
from reverb_async.service.service import ReplayService
from reverb_async.wire.http2 import ReplayServer

logger = logging.getLogger("reverb_async")

GRACE_S = 1.0
"""What `Server.close` allows peers that neither read nor write."""

_FAREWELL_SHARE = 0.2
_LEAST_FAREWELL_S = 0.1
"""Kept of the grace for telling those that did not finish: a part, and no less than so many seconds."""


class Streams(Protocol):
    """The streams of one door."""

    def finish(self) -> None:
        """Refuse new ones, and let those there are do what they have been asked for, then end with `TableClosed`."""

    async def wait(self, timeout: float) -> None:
        """Wait until all have ended, for so many seconds at most."""

    async def close(self, timeout: float) -> None:
        """End all now, with `TableClosed`, within so many seconds."""


def check_grace(grace: float) -> None:
    """Raise `InvalidArgument` unless it is a finite number of seconds."""
    if isinstance(grace, bool) or not isinstance(grace, int | float) or not 0 <= grace < math.inf:
        raise InvalidArgument(f"grace is a finite number of seconds >= 0, got {grace!r:.60}")


class Ending:
    """The end of one server.

    Args:
        replay: its tables.
        service: the native service.
        listening: what listens on its addresses.
        doors: the streams of both services and of clients in this process; None for those it does not have.
    """

    def __init__(
        self,
        replay: Replay,
        service: ReplayService,
        listening: Collection[ReplayServer],
        doors: Collection[Streams],
    ) -> None:
        self._replay = replay
        self._service = service
        self._listening = list(listening)
        self._doors = list(doors)

    async def finish(self, grace: float) -> None:
        """Refuse what is new, end what waits, and let what runs come to its end, for `grace` seconds at most."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        for server in self._listening:
            server.stop_accepting()
            server.go_away()
        self._service.closing = True
        self._replay.end_waits()
        for door in self._doors:
            door.finish()
        patience = grace * (1 - _FAREWELL_SHARE)
        waits: list[Awaitable[None]] = [door.wait(patience) for door in self._doors]
        waits += [server.calls_ended(patience) for server in self._listening]
        await asyncio.gather(*waits)
        left = sum(server.num_calls for server in self._listening)
        if left:
            logger.warning("closing: breaking off %d calls that did not end within %.3g s", left, patience)
        await asyncio.gather(*(door.close(max(_LEAST_FAREWELL_S, deadline - loop.time())) for door in self._doors))
        self._replay.close()
        await asyncio.gather(*(server.see_off(deadline - loop.time()) for server in self._listening))

    async def break_off(self) -> None:
        """End whatever is left, at once."""
        self._replay.close()
        for server in self._listening:
            server.close()
        for server in self._listening:
            await server.wait_closed()
