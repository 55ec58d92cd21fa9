"""How many bytes peers may send before they are read."""

from __future__ import annotations

INITIAL_WINDOW = (1 << 16) - 1
"""What every stream has from the start: HTTP/2's own default."""

BUSY_WINDOW = 1 << 20
LARGEST_WINDOW = 16 << 20
CONNECTION_WINDOW = (1 << 31) - 1
"""HTTP/2's maximum: the streams' windows bound what is received unread, the connection's never blocks a call."""


class WindowBudget:
    """The bytes by which all streams of a server together may exceed their initial windows.

    Attributes:
        total: the size of the budget.
        reserved: how much of it streams hold now.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.reserved = 0

    def reserve(self, wanted: int) -> int:
        """Take up to `wanted` bytes; return how many."""
        granted = max(0, min(wanted, self.total - self.reserved))
        self.reserved += granted
        return granted

    def give_back(self, granted: int) -> None:
        """Return what `reserve` granted."""
        self.reserved -= granted
        assert self.reserved >= 0


class StreamWindow:
    """Grows one stream's window as its messages need, from a budget; without a budget it stays what it is."""

    def __init__(self, budget: WindowBudget | None) -> None:
        self._budget = budget
        self._size = INITIAL_WINDOW
        self._announced = 0

    def grow(self, message_bytes: int) -> int:
        """Return by how many bytes to raise the window, for a message of `message_bytes` is about to come.

        It shall hold two messages of this size, so that one can come while the other is used; a stream that has carried
        much gets what keeps a distant sender busy.
        """
        if self._budget is None:
            return 0
        self._announced += message_bytes
        wanted = max(2 * message_bytes, BUSY_WINDOW if self._announced > BUSY_WINDOW else 0)
        missing = min(wanted, LARGEST_WINDOW) - self._size
        if missing <= 0:
            return 0
        granted = self._budget.reserve(missing)
        self._size += granted
        return granted

    def close(self) -> None:
        """Give everything back to the budget; twice does no harm."""
        if self._budget is not None:
            self._budget.give_back(self._size - INITIAL_WINDOW)
            self._budget = None
