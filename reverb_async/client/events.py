"""What happens to a client that no call tells of: `Client.events`."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Connected:
    """The server answered for the first time.

    Attributes:
        address: the server's.
    """

    address: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A stream or a call has lost the server; the client tries to reach it while something needs it.

    Attributes:
        address: the server's.
        reason: how it was lost.
    """

    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """The server answers again.

    Attributes:
        address: the server's.
        epoch_changed: it is a new process: what the old one held is here as far as a checkpoint brought it back.
        downtime_s: seconds since `Disconnected`.
    """

    address: str
    epoch_changed: bool
    downtime_s: float


@dataclass(frozen=True, slots=True)
class ItemsLost:
    """A new server process knows nothing of items that the old one had confirmed.

    What was not confirmed is sent again, and does not count.

    Attributes:
        writer: whose items they were: ``"trajectory writer 3"``, or ``"insert()"`` for `insert` and `insert_batch`.
        count: how many, of all that the writer wrote since it was made, or since the last such loss; some may have left
            the tables long before.
    """

    writer: str
    count: int


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something has waited at the server for long, which comes again while it goes on; or for the server itself.

    Attributes:
        what: who waits: ``"insert()"``, ``"sampling from 'replay'"``, ``"connecting to 127.0.0.1:8000"``.
        reason: what for, as the server says it; or why it cannot be reached.
    """

    what: str
    reason: str


Event: TypeAlias = Connected | Disconnected | Reconnected | ItemsLost | Blocked


class Events:
    """An asynchronous iterator of events; made by `Client.events`. It ends when the client is closed.

    Attributes:
        dropped: how many events were thrown away, the oldest first, because nobody took them.
    """

    def __init__(self, capacity: int) -> None:
        self.dropped = 0
        self._capacity = capacity
        self._queue: deque[Event] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._ended = False

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event. Cancelling loses none."""
        while not self._queue:
            if self._ended:
                raise StopAsyncIteration
            if self._wake is None:
                self._wake = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._wake})
        return self._queue.popleft()

    def _put(self, event: Event) -> None:
        if len(self._queue) >= self._capacity:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(event)
        self._look()

    def _end(self) -> None:
        self._ended = True
        self._look()

    def _look(self) -> None:
        """Let whoever waits look again."""
        wake, self._wake = self._wake, None
        if wake is not None:
            wake.set_result(None)
