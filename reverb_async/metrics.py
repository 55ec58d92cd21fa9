"""Rates and counts of events."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

WINDOW_S = 10
"""Rates are means over the last so many seconds."""


class RateMeter:
    """Counts events in buckets of one second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._buckets: deque[list[int]] = deque(maxlen=WINDOW_S + 1)

    def count(self, n: int) -> None:
        """Note `n` events now."""
        second = int(time.monotonic())
        if self._buckets and self._buckets[-1][0] == second:
            self._buckets[-1][1] += n
        else:
            self._buckets.append([second, n])

    def per_second(self) -> float:
        """Return the mean rate over the window, or over the meter's life while that is shorter."""
        now = time.monotonic()
        recent = sum(n for second, n in self._buckets if second > now - WINDOW_S)
        return recent / max(1e-3, min(WINDOW_S, now - self._started))


@dataclass(slots=True)
class AccessCounts:
    """Calls that a server refused for want of permission, since its start.

    Attributes:
        unauthenticated: they had no token, or one that is not known.
        denied: their token does not allow them.
    """

    unauthenticated: int = 0
    denied: int = 0
