"""Keys for new items: counted within blocks that the server granted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reverb_async.protocol.hello import KEYS_PER_BLOCK

_LOW_KEYS = KEYS_PER_BLOCK // 4


class KeyAllocator:
    """Hands out keys from the blocks a server granted."""

    def __init__(self) -> None:
        self._next = 0
        self._stop = 0
        self._spare: list[int] = []

    def grant(self, block: int) -> None:
        """Add a block, given by its first key."""
        self._spare.append(block)

    def clear(self) -> None:
        """Forget all blocks: a restarted server may grant them to others."""
        self._next = self._stop = 0
        self._spare.clear()

    @property
    def runs_low(self) -> bool:
        """Whether it is time to ask for another block."""
        return not self._spare and self._stop - self._next < _LOW_KEYS

    def has(self, n: int) -> bool:
        """Whether `take` would return keys."""
        return self._stop - self._next >= n or (bool(self._spare) and n <= KEYS_PER_BLOCK)

    def take_one(self) -> int | None:
        """Return a new key; None when no block has one left."""
        if self._next == self._stop:
            keys = self.take(1)
            return None if keys is None else int(keys[0])
        self._next += 1
        return self._next - 1

    def take(self, n: int) -> NDArray[np.uint64] | None:
        """Return `n` consecutive keys, uint64 ``[n]``; None when no block has as many left."""
        if self._stop - self._next < n:
            if not self.has(n):
                return None
            self._next = self._spare.pop(0)
            self._stop = self._next + KEYS_PER_BLOCK
        first = self._next
        self._next += n
        return np.arange(first, first + n, dtype=np.uint64)
