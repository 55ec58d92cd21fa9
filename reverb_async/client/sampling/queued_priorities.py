"""Priority updates on their way to the server along with a Sample stream's requests."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from reverb_async.protocol.updating import MAX_KEYS

_MAX_UNPROVEN = 1024

Priorities = tuple[NDArray[np.uint64], NDArray[np.float64]]
"""Keys and priorities, ``[n]`` each."""


class QueuedPriorities:
    """Updates that are to be sent; and those sent of which it is not known yet that they arrived.

    Attributes:
        num_unsent: keys that are to be sent.
    """

    def __init__(self) -> None:
        self.num_unsent = 0
        self._unsent: deque[Priorities] = deque()
        # With the number of the last batch that was asked for before; a bound, for nobody may ever ask for another.
        self._unproven: deque[tuple[int, Priorities]] = deque(maxlen=_MAX_UNPROVEN)

    def __bool__(self) -> bool:
        return bool(self._unsent or self._unproven)

    def add(self, keys: NDArray[np.uint64], priorities: NDArray[np.float64]) -> None:
        """Queue updates; the arrays are kept."""
        for start in range(0, len(keys), MAX_KEYS):
            part = slice(start, start + MAX_KEYS)
            self._unsent.append((keys[part], priorities[part]))
        self.num_unsent += len(keys)

    def next(self, asked_before: int) -> Priorities | None:
        """Take as many as one message may carry; `asked_before` batches were asked for in earlier messages."""
        taken: list[Priorities] = []
        count = 0
        while self._unsent and count + len(self._unsent[0][0]) <= MAX_KEYS:
            taken.append(self._unsent.popleft())
            count += len(taken[-1][0])
        if not taken:
            return None
        self.num_unsent -= count
        joined = taken[0] if len(taken) == 1 else _joined(taken)
        self._unproven.append((asked_before, joined))
        return joined

    def answered(self, batch: int) -> None:
        """Note the answer to a batch: what was said along with the wish for it, or earlier, has arrived."""
        while self._unproven and self._unproven[0][0] < batch:
            self._unproven.popleft()

    def resend(self) -> None:
        """Queue again what may not have arrived, before the rest."""
        for _, update in reversed(self._unproven):
            self._unsent.appendleft(update)
            self.num_unsent += len(update[0])
        self._unproven.clear()

    def take_all(self) -> Priorities | None:
        """Take everything that may not have arrived, in order."""
        self.resend()
        taken = list(self._unsent)
        self.clear()
        return _joined(taken) if taken else None

    def clear(self) -> None:
        """Forget everything: it has arrived."""
        self._unsent.clear()
        self._unproven.clear()
        self.num_unsent = 0


def _joined(updates: list[Priorities]) -> Priorities:
    keys, priorities = zip(*updates, strict=True)
    return np.concatenate(keys), np.concatenate(priorities)
