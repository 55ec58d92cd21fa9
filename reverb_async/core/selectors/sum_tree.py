"""Draw indices in proportion to their weights, by a few vector operations for each level of a wide tree."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from reverb_async.errors import InvalidArgument

_BITS = 3
_WIDTH = 1 << _BITS
"""Children of a node: eight sums are one cache line, and how many of eight running sums a number exceeds is one count
of bits."""

_TOP = 2048
"""The upper part of the tree is one flat array of at most this many nodes, whose running sums one binary search
answers: cheaper than further levels as long as the array stays in the first-level cache."""

_FINEST = 131_072
"""Longest running sums of a lower level: the system adds up so many in less than a millisecond."""

_PAYS = 2
"""Running sums of a lower level are made when one index was drawn for so many of its nodes, without any change: that
costs a tenth of what was drawn since, and saves draws a fifth if changes stay away for longer."""

_PENDING = 4096
"""Changed weights that may wait for their sums."""

_KEPT = 4096
"""Draws up to this size leave what they worked with to the next one: 150 bytes each."""

_FEW = 4
"""Up to this many indices plain Python beats the fixed cost of numpy calls."""

# Arrays of no dimension: numbers would be converted at each call.
_SHIFT = np.array(_BITS)
_ONE = np.array(1)

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
        self._running: NDArray[np.float64] | None = None  # running sums of level `_flat`, after a leading 0
        self._flat = 0  # the flat top, or a lower level if draws go on without changes
        self._total = 0.0
        self._num_drawn = 0  # since the last change
        self._scratch: _Scratch | None = None

    @property
    def total(self) -> float:
        """The sum of all weights."""
        self._running_sums()
        return self._total

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

    def counters(self) -> dict[str, int]:
        """Return what decides, besides the weights, how draws round: for `recount`."""
        highest = max([self._highest, *(int(indices.max()) for indices in self._pending)])
        return {"highest": highest, "flat": -1 if self._running is None else self._flat, "drawn": self._num_drawn}

    def recount(self, counters: Mapping[str, int]) -> None:
        """Draw from the same weights as the tree did that gave `counters`."""
        highest, flat = counters["highest"], counters["flat"]
        if 0 <= highest < self._capacity:
            self._grow(highest)  # Weights that are still pending have not done so.
        if not 0 <= highest < self._capacity or flat > self._height:
            raise InvalidArgument(f"a sum tree of {self._capacity} weights has no {dict(counters)!r}")
        if flat >= 0:
            self._running_sums()
            while self._flat > flat:
                self._flat -= 1
                self._running = self._add_up()
            self._num_drawn = counters["drawn"]

    def _settle(self) -> None:
        """Bring the sums above changed weights up to date."""
        changed = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        self._pending.clear()
        self._num_pending = 0
        self._grow(int(np.maximum.reduce(changed)))
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
            self._flat = self._height
            self._num_drawn = 0
            self._running = self._add_up()
            self._total = self._running.item(-1)
        return self._running

    def _add_up(self) -> NDArray[np.float64]:
        """Return the running sums of level `_flat`, after a leading 0."""
        nodes = self._levels[self._flat][: (self._highest >> _BITS * self._flat) + 1]
        running = np.zeros(len(nodes) + 1)
        np.add.accumulate(nodes, out=running[1:])
        return running

    def _prepare(self, n: int) -> NDArray[np.float64]:
        """Return the running sums for a draw of `n`, those of a lower level if that pays."""
        running = self._running_sums()
        self._num_drawn += n
        if self._flat:
            below = self._highest >> _BITS * (self._flat - 1)
            if below < _FINEST and self._num_drawn > below // _PAYS:
                self._flat -= 1
                running = self._running = self._add_up()
        return running

    def draw(self, n: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw `n` indices with replacement, each in proportion to its weight; the total must be positive.

        An index of weight zero is never drawn.

        Returns:
            Indices and their weights, ``[n]`` each.
        """
        if n <= _FEW:
            few = np.array([self._draw_one(rng) for _ in range(n)], np.int64)
            return few, self._weights.take(few)
        running = self._prepare(n)
        rest = rng.random(n)
        # In ascending order the search and the walk find their way in the caches: that pays for sorting.
        order = rest.argsort()
        rest = rest.take(order)
        rest *= _below(running)  # at most that, however the product is rounded: random numbers are less than 1
        nodes = running[1:].searchsorted(rest, side="right")
        if self._flat:
            rest -= running.take(nodes)
            self._descend(nodes, rest)
        weights = self._weights.take(nodes)
        # About once in 1e16 draws rounding leaves `rest` at the very end of a node and the walk runs into a zero.
        if np.count_nonzero(weights) < n:
            for lost in np.flatnonzero(weights == 0.0).tolist():
                nodes[lost] = self._draw_one(rng)
            weights = self._weights.take(nodes)
        drawn, drawn_weights = np.empty(n, np.int64), np.empty(n)
        drawn[order] = nodes
        drawn_weights[order] = weights
        return drawn, drawn_weights

    def _descend(self, nodes: NDArray[np.int64], rest: NDArray[np.float64]) -> None:
        """Replace nodes of level `_flat` by the leaves below them where `rest` ends."""
        scratch = self._scratch
        if scratch is None or scratch.n != len(nodes):
            scratch = _Scratch(len(nodes))
            if scratch.n <= _KEPT:
                self._scratch = scratch
        limits = rest[:, None]
        for k in range(self._flat - 1, -1, -1):
            self._rows[k].take(nodes, axis=0, out=scratch.sums, mode="clip")  # "raise" would copy through a buffer
            np.dot(scratch.sums, _BEFORE, scratch.before)
            np.less_equal(scratch.before, limits, scratch.is_passed)
            child = np.bitwise_count(scratch.num_passed)  # counted from 1: nothing comes before the first child
            if k:
                rest -= scratch.flat.take(scratch.starts + child)
            nodes <<= _SHIFT
            nodes += child
            nodes -= _ONE

    def _draw_one(self, rng: np.random.Generator) -> int:
        running = self._prepare(1)
        rest = rng.random() * _below(running)
        index = int(running[1:].searchsorted(rest, side="right"))
        rest -= float(running[index])
        for k in range(self._flat - 1, -1, -1):
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


class _Scratch:
    """What a walk of `n` indices writes to, kept for the next one: fresh memory would cost a third of its time."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.sums = np.empty((n, _WIDTH))
        self.before = np.empty((n, _WIDTH))
        self.flat = self.before.reshape(-1)
        self.is_passed = np.empty((n, _WIDTH), np.bool_)
        self.num_passed = self.is_passed.view(np.uint64).reshape(-1)
        self.starts = np.arange(-1, n * _WIDTH - 1, _WIDTH)


def _below(running: NDArray[np.float64]) -> float:
    """Return the largest number below the total."""
    return math.nextafter(running.item(-1), 0.0)


def _sums(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of each row, ``[n, 8]`` to ``[n]``, always added in this order; a product with ones is not."""
    sums = rows.reshape(-1)
    for _ in range(_BITS):
        sums = sums[::2] + sums[1::2]
    return sums
