"""Draw indices in proportion to their weights, in O(log n) vector operations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The upper part of the tree is one flat array of at most this many nodes, whose running sums one binary search
# answers: cheaper than ten more levels of the tree as long as the array stays in the first-level cache.
_TOP = 1024

# Below this many indices plain Python beats the fixed cost of numpy calls.
_FEW = 4


class SumTree:
    """A binary tree of float64 sums over `capacity` weights, all zero at first.

    Each level is an array of its own, so the tree grows upwards without copying, and only as high as the highest index
    used demands. A node is always the sum of its two children as they are now, never adjusted by a difference: errors
    do not build up, no sum turns negative, and a node is zero exactly when all weights below it are.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.clear()

    def clear(self) -> None:
        """Set all weights to zero by starting with fresh arrays."""
        size = max(_TOP, 1 << (self._capacity - 1).bit_length())
        # np.zeros takes no memory until a page is written.
        self._levels = [np.zeros(size >> k) for k in range((size // _TOP).bit_length())]
        self._height = 0  # the level of the flat top; only its first _TOP nodes are in use
        self._running: NDArray[np.float64] | None = None  # running sums of the flat top, after a leading 0

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._running_sums()[-1])

    def get(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of `indices`, ``[n]``."""
        return self._levels[0].take(indices)

    def set(self, indices: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Give `indices` new finite weights >= 0, both ``[n]``; of an index named twice, the last weight counts."""
        n = len(indices)
        if not n:
            return
        self._running = None
        if n <= _FEW:
            for index, weight in zip(indices.tolist(), weights.tolist(), strict=True):
                self._set_one(index, weight)
            return
        self._grow(int(indices.max()))
        self._levels[0][indices] = weights
        nodes = indices
        for k in range(self._height):
            below, level = self._levels[k], self._levels[k + 1]
            in_use = _TOP << (self._height - k - 1)
            if in_use <= n:
                np.add(below[0 : 2 * in_use : 2], below[1 : 2 * in_use : 2], out=level[:in_use])
            else:
                right = nodes | 1
                nodes = nodes >> 1
                level[nodes] = below.take(right) + below.take(right - 1)

    def _set_one(self, index: int, weight: float) -> None:
        self._grow(index)
        self._levels[0][index] = weight
        for k in range(self._height):
            below = self._levels[k]
            right = index | 1
            index >>= 1
            self._levels[k + 1][index] = below[right] + below[right - 1]

    def _grow(self, highest: int) -> None:
        """Raise the flat top until it covers index `highest`."""
        while highest >> self._height >= _TOP:
            below, level = self._levels[self._height], self._levels[self._height + 1]
            np.add(below[0:_TOP:2], below[1:_TOP:2], out=level[: _TOP // 2])
            self._height += 1

    def _running_sums(self) -> NDArray[np.float64]:
        if self._running is None:
            running = np.zeros(_TOP + 1)
            np.add.accumulate(self._levels[self._height][:_TOP], out=running[1:])
            self._running = running
        return self._running

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw `n` indices with replacement, each in proportion to its weight; the total must be positive.

        An index of weight zero is never drawn.
        """
        if n <= _FEW:
            return np.array([self._draw_one(rng) for _ in range(n)], np.int64)
        running = self._running_sums()
        rest = rng.random(n)
        rest *= running[-1]
        np.minimum(rest, np.nextafter(running[-1], 0.0), out=rest)  # the product may round up to the total
        indices = running[1:].searchsorted(rest, side="right")
        rest -= running.take(indices)
        for k in range(self._height - 1, -1, -1):
            indices <<= 1
            left = self._levels[k].take(indices)
            go_right = rest >= left
            left *= go_right
            rest -= left
            indices += go_right
        # About once in 1e16 draws rounding leaves `rest` at the very end of a node and the walk runs into a zero.
        for lost in np.flatnonzero(self._levels[0].take(indices) == 0.0).tolist():
            indices[lost] = self._draw_one(rng)
        return indices

    def _draw_one(self, rng: np.random.Generator) -> int:
        running = self._running_sums()
        rest = min(rng.random() * float(running[-1]), float(np.nextafter(running[-1], 0.0)))
        index = int(running[1:].searchsorted(rest, side="right"))
        rest -= float(running[index])
        for k in range(self._height - 1, -1, -1):
            level = self._levels[k]
            index <<= 1
            left = float(level[index])
            if rest >= left and level[index + 1] > 0.0:
                rest -= left
                index += 1
        return index
