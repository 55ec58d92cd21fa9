"""How long a client waits for its server: pauses between attempts, and the end of patience."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from reverb_async.errors import DeadlineExceeded, ReplayError, Unavailable

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
NOW_S = 2.0
"""What a timeout of 0 still allows a server for its answer: "now" is about waiting, not about the network."""

FIRST_REPORT_S = 1.0
"""A server that is just starting answers within this; one that does not is worth a line in the log."""


class Server(Protocol):
    """What a client knows of its server."""

    connect_timeout: float | None
    failure: Unavailable | None

    @property
    def address(self) -> str:
        """Where it is."""

    def lost(self, error: Unavailable, since: float) -> None:
        """Note that it did not answer what began at `since`."""

    def gives_up(self, error: Unavailable) -> bool:
        """Whether there is no use in another attempt."""

    def report(self, error: Unavailable) -> None:
        """Log that attempts go on."""


class Retry:
    """Attempts at one thing while nothing answers: pauses between them, and the end of patience.

    Args:
        server: what does not answer.
        what: what is attempted, for messages.
    """

    def __init__(self, server: Server, what: str) -> None:
        self._server = server
        self._what = what
        self._since: float | None = None
        self._tries = 0

    async def after(self, error: Unavailable, since: float) -> None:
        """Sleep until the next attempt: 50 ms and more each time, up to 2 s, less a random part.

        Args:
            error: why the last one failed.
            since: when it began.

        Raises:
            Unavailable: attempts have failed for `connect_timeout`; names the address, the last cause and the tries. Or
                the server was silent for so long that nobody is to wait any longer.
        """
        self._server.lost(error, since)
        if self._server.gives_up(error):
            silent = Unavailable(f"{self._what}: {error}")
            silent.after_silence = True
            raise silent from error
        now = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = now
        self._tries += 1
        tried_for, patience = now - self._since, self._server.connect_timeout
        if patience is not None and tried_for >= patience:
            tries = "1 try" if self._tries == 1 else f"{self._tries} tries"
            raise Unavailable(
                f"{self._what}: {self._server.address} does not answer, {tries} in {tried_for:.1f} s; "
                f"the last one: {error}"
            ) from error
        if tried_for >= FIRST_REPORT_S:
            self._server.report(error)
        pause = min(FIRST_PAUSE_S * 2 ** min(self._tries - 1, 16), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
        await asyncio.sleep(pause if patience is None else min(pause, patience - tried_for))


@asynccontextmanager
async def time_limit(timeout: float | None, server: Server, what: str) -> AsyncIterator[None]:
    """Give the body `timeout` seconds; with 0, it may still wait 2 s for an answer.

    Raises:
        DeadlineExceeded: the time is up; says what was asked of whom, and why nothing came if that is known.
    """
    try:
        async with asyncio.timeout(timeout or (None if timeout is None else NOW_S)):
            yield
    except TimeoutError as error:
        if isinstance(error, ReplayError):
            raise
        why = "" if server.failure is None else f": {server.failure}"
        raise DeadlineExceeded(f"{what}: {server.address} did not answer within {timeout:g} s{why}") from None
