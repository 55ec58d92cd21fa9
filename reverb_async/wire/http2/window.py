"""How many bytes peers may send before they are read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from reverb_async.errors import ResourceExhausted

INITIAL_WINDOW = (1 << 16) - 1
"""What every stream has from the start: HTTP/2's own default."""

BUSY_WINDOW = 1 << 20
LARGEST_WINDOW = 16 << 20
CONNECTION_WINDOW = (1 << 31) - 1
"""HTTP/2's maximum: the streams' windows bound what is received unread, the connection's never blocks a call."""

PATIENCE_S = 10.0
LEAST_RATE = 4 << 20
"""While others wait for room, a message may take this long, and so many bytes per second more."""


class Hold:
    """Room for a message that is being received.

    Attributes:
        nbytes: the message's.
        is_stored: whether its content is going to be stored.
        is_granted: whether it may come; until then its stream gets no credit for what has come.
        since: when it was asked for or granted, on the event loop's clock.
    """

    __slots__ = ("_fail", "grant", "is_granted", "is_stored", "nbytes", "since")

    def __init__(
        self, nbytes: int, is_stored: bool, grant: Callable[[], object], fail: Callable[[ResourceExhausted], object]
    ) -> None:
        self.nbytes = nbytes
        self.is_stored = is_stored
        self.is_granted = False
        self.since = asyncio.get_running_loop().time()
        self.grant = grant
        self._fail = fail

    def give_up(self, error: ResourceExhausted) -> None:
        """End the message's stream with an error."""
        self._fail(error)


class WindowBudget:
    """The bytes by which all streams of a server together may exceed their initial windows, and those of messages.

    Longer messages than a window are received a few at a time, so that together they stay within the budget.

    Attributes:
        total: what windows may take, and messages once more; a single message may be longer.
        reserved: how much of it windows hold now.
        held: how much messages do that are being received.
        may_store: whether messages of so many bytes that are to be stored may come now.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.reserved = 0
        self.held = 0
        self.may_store: Callable[[int], bool] = lambda nbytes: True
        self._holds: dict[Hold, None] = {}
        self._waiting: deque[Hold] = deque()

    def reserve(self, wanted: int) -> int:
        """Take up to `wanted` bytes for a window; return how many."""
        granted = max(0, min(wanted, self.total - self.reserved))
        self.reserved += granted
        return granted

    def give_back(self, granted: int) -> None:
        """Return what `reserve` granted."""
        self.reserved -= granted
        assert self.reserved >= 0

    def hold(self, hold: Hold) -> None:
        """Take room for a message, now or, with a call of `Hold.grant`, when there is some; `release` it at last."""
        self._waiting.append(hold)
        self.wake(hold)

    def release(self, hold: Hold) -> None:
        """Return a message's room, or do without."""
        if hold.is_granted:
            del self._holds[hold]
            self.held -= hold.nbytes
        else:
            self._waiting.remove(hold)
        self.wake()

    def wake(self, new: Hold | None = None) -> None:
        """Grant what can be; `new` is not told."""
        if not self._waiting:
            return
        left: deque[Hold] = deque()
        while self._waiting:
            hold = self._waiting.popleft()
            if hold.is_stored and not self.may_store(hold.nbytes):
                left.append(hold)
            elif self.held and self.held + hold.nbytes > self.total:
                left.append(hold)
                break
            else:
                self.held += hold.nbytes
                self._holds[hold] = None
                hold.is_granted = True
                hold.since = asyncio.get_running_loop().time()
                if hold is not new:
                    hold.grant()
        self._waiting = left + self._waiting

    def waiting_for_memory(self) -> Iterator[Hold]:
        """Yield the messages that do not come because what they bring cannot be stored."""
        for hold in list(self._waiting):
            if hold.is_stored and not self.may_store(hold.nbytes):
                yield hold

    def look_after(self) -> None:
        """Refuse messages that come too slowly while others wait for their room; to be called every second or so."""
        if not any(not hold.is_stored or self.may_store(hold.nbytes) for hold in self._waiting):
            return
        now = asyncio.get_running_loop().time()
        for hold in list(self._holds):
            if now - hold.since > PATIENCE_S + hold.nbytes / LEAST_RATE:
                hold.give_up(
                    ResourceExhausted(f"a message of {hold.nbytes} bytes came too slowly, and others wait for its room")
                )


class StreamWindow:
    """Grows one stream's window as its messages need, from a budget; without a budget it stays what it is."""

    def __init__(self, budget: WindowBudget | None) -> None:
        self.budget = budget
        self._size = INITIAL_WINDOW
        self._announced = 0

    def grow(self, message_bytes: int) -> int:
        """Return by how many bytes to raise the window, for a message of `message_bytes` is about to come.

        It shall hold two messages of this size, so that one can come while the other is used; a stream that has carried
        much gets what keeps a distant sender busy.
        """
        if self.budget is None:
            return 0
        self._announced += message_bytes
        wanted = max(2 * message_bytes, BUSY_WINDOW if self._announced > BUSY_WINDOW else 0)
        missing = min(wanted, LARGEST_WINDOW) - self._size
        if missing <= 0:
            return 0
        granted = self.budget.reserve(missing)
        self._size += granted
        return granted

    def close(self) -> None:
        """Give everything back to the budget; twice does no harm."""
        if self.budget is not None:
            self.budget.give_back(self._size - INITIAL_WINDOW)
            self.budget = None
