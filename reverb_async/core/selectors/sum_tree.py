"""Draw indices in proportion to their weights, by a few vector operations for each level of a wide tree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BITS = 3
_WIDTH = 1 << _BITS
"""Children of a node: eight sums are one cache line, and how many of eight running sums a number exceeds is one count
of bits."""

_TOP = 2048
"""The upper part of the tree is one flat array of at most this many nodes, whose running sums one binary search
answers: cheaper than further levels as long as the array stays in the first-level cache."""

_PENDING = 4096
"""Changed weights that may wait for their sums."""

_FEW = 4
"""Up to this many indices plain Python beats the fixed cost of numpy calls."""

_BEFORE = np.triu(np.ones((_WIDTH, _WIDTH)), 1)
"""``sums @ _BEFORE`` are the running sums before each child."""


class SumTree:
    """A tree of float64 sums over `capacity` weights, all zero at first.

    The tree of Wong & Easton (1980, "An efficient method for weighted sampling without replacement") with eight
    children per node instead of two, whose draws go down all together, in ascending order.

    Each level is an array of its own, so the tree grows upwards without copying, and only as high as the highest index
    used demands. A node is always the sum of its children as they are now, added in one fixed order, and never adjusted
    by a difference: errors do not build up, no sum turns negative, and a node is zero exactly when all weights below it
    are. Sums are brought up to date when they are asked for, those above many changed weights once for all.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.clear()

    def clear(self) -> None:
        """Set all weights to zero by starting with fresh arrays."""
        height = 0
        while _TOP << (_BITS * height) < self._capacity:
            height += 1
        # np.zeros takes no memory until a page is written.
        self._levels = [np.zeros(_TOP << _BITS * (height - k)) for k in range(height + 1)]
        self._rows = [level.reshape(-1, _WIDTH) for level in self._levels]
        self._weights = self._levels[0]
        self._height = 0  # the level of the flat top; only its first _TOP nodes are in use
        self._highest = 0  # no index above was ever used
        self._pending: list[NDArray[np.int64]] = []
        self._num_pending = 0
        self._running: NDArray[np.float64] | None = None  # running sums of the flat top, after a leading 0

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._running_sums()[-1])

    def get(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of `indices`, ``[n]``."""
        return self._weights.take(indices)

    def set(self, indices: NDArray[np.int64], weights: NDArray[np.float64] | float) -> None:
        """Give `indices` new finite weights >= 0; of an index named twice, the last weight counts.

        Args:
            indices: int64 ``[n]``; kept, so nobody may change the array later.
            weights: ``[n]``, or one for all.
        """
        n = len(indices)
        if not n:
            return
        self._weights[indices] = weights
        self._pending.append(indices)
        self._num_pending += n
        self._running = None
        if self._num_pending > _PENDING:
            self._settle()

    def _settle(self) -> None:
        """Bring the sums above changed weights up to date."""
        changed = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        self._pending.clear()
        self._num_pending = 0
        self._grow(int(changed.max()))
        if len(changed) <= _FEW:
            for index in changed.tolist():
                self._settle_one(index)
            return
        nodes = changed
        for k in range(self._height):
            rows, level = self._rows[k], self._levels[k + 1]
            in_use = (self._highest >> _BITS * (k + 1)) + 1
            if in_use <= len(nodes):
                level[:in_use] = _sums(rows[:in_use])
            else:
                nodes = nodes >> _BITS
                level[nodes] = _sums(rows.take(nodes, axis=0))

    def _settle_one(self, index: int) -> None:
        for k in range(self._height):
            index >>= _BITS
            a, b, c, d, e, f, g, h = self._rows[k][index].tolist()
            self._levels[k + 1][index] = ((a + b) + (c + d)) + ((e + f) + (g + h))

    def _grow(self, highest: int) -> None:
        """Raise the flat top until it covers index `highest`."""
        self._highest = max(self._highest, highest)
        while highest >> _BITS * self._height >= _TOP:
            rows, level = self._rows[self._height], self._levels[self._height + 1]
            level[: _TOP >> _BITS] = _sums(rows[: _TOP >> _BITS])
            self._height += 1

    def _running_sums(self) -> NDArray[np.float64]:
        if self._running is None:
            if self._pending:
                self._settle()
            top = self._levels[self._height][: (self._highest >> _BITS * self._height) + 1]
            self._running = np.zeros(len(top) + 1)
            np.add.accumulate(top, out=self._running[1:])
        return self._running

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw `n` indices with replacement, each in proportion to its weight; the total must be positive.

        An index of weight zero is never drawn.
        """
        if n <= _FEW:
            return np.array([self._draw_one(rng) for _ in range(n)], np.int64)
        running = self._running_sums()
        rest = rng.random(n)
        # In ascending order the search and the walk find their way in the caches: that pays for sorting.
        order = rest.argsort()
        rest = rest.take(order)
        rest *= running[-1]
        np.minimum(rest, np.nextafter(running[-1], 0.0), out=rest)  # the product may round up to the total
        nodes = running[1:].searchsorted(rest, side="right")
        rest -= running.take(nodes)
        if self._height:
            self._descend(nodes, rest)
        # About once in 1e16 draws rounding leaves `rest` at the very end of a node and the walk runs into a zero.
        weights = self._weights.take(nodes)
        if not weights.all():
            for lost in np.flatnonzero(weights == 0.0).tolist():
                nodes[lost] = self._draw_one(rng)
        drawn = np.empty(n, np.int64)
        drawn[order] = nodes
        return drawn

    def _descend(self, nodes: NDArray[np.int64], rest: NDArray[np.float64]) -> None:
        """Replace nodes of the flat top by the leaves below them where `rest` ends."""
        n = len(nodes)
        before = np.empty((n, _WIDTH))
        flat = before.reshape(-1)
        is_passed = np.empty((n, _WIDTH), np.bool_)
        num_passed = is_passed.view(np.uint64).reshape(-1)
        starts = np.arange(-1, n * _WIDTH - 1, _WIDTH)
        limits = rest[:, None]
        for k in range(self._height - 1, -1, -1):
            np.dot(self._rows[k].take(nodes, axis=0), _BEFORE, before)
            np.less_equal(before, limits, is_passed)
            child = np.bitwise_count(num_passed)  # counted from 1: nothing comes before the first child
            rest -= flat.take(starts + child)
            nodes <<= _BITS
            nodes += child
            nodes -= 1

    def _draw_one(self, rng: np.random.Generator) -> int:
        running = self._running_sums()
        rest = min(rng.random() * float(running[-1]), float(np.nextafter(running[-1], 0.0)))
        index = int(running[1:].searchsorted(rest, side="right"))
        rest -= float(running[index])
        for k in range(self._height - 1, -1, -1):
            sums = self._rows[k][index].tolist()
            index <<= _BITS
            last = 0
            for child, weight in enumerate(sums):
                if weight > 0.0:
                    last = child
                    if rest < weight:
                        break
                    rest -= weight
            index += last
        return index


def _sums(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of each row, ``[n, 8]`` to ``[n]``, always added in this order; a product with ones is not."""
    pairs = rows[:, ::2] + rows[:, 1::2]
    pairs = pairs[:, ::2] + pairs[:, 1::2]
    return pairs[:, 0] + pairs[:, 1]
