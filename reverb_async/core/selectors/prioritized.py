"""Draw slots in proportion to a power of their priority (Schaul et al., 2016, arXiv:1511.05952)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.runs import as_run
from reverb_async.core.selectors.base import (
    Places,
    Priorities,
    Probabilities,
    Slots,
    check_capacity,
    refuse_absent,
    refuse_order,
    refuse_present,
)
from reverb_async.core.selectors.sum_tree import SumTree
from reverb_async.core.selectors.uniform import UniformState
from reverb_async.errors import InvalidArgument

_SMALLEST = float(np.finfo(np.float64).tiny)
_LARGEST = float(np.finfo(np.float64).max)

# A weight is at most 2**960, so that the sum of 2**31 of them is far from overflow (2**1024).
_MAX_WEIGHT_EXPONENT = 960


@dataclass(frozen=True, slots=True)
class Prioritized:
    """An item of priority p is drawn with probability ``p**priority_exponent / sum(q**priority_exponent)``.

    Priority 0 is never drawn, whatever the exponent, unless all priorities are 0: then all items are equally likely.

    Raises:
        InvalidArgument: `priority_exponent` is not a finite number >= 0.
    """

    priority_exponent: float

    is_deterministic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        given: object = self.priority_exponent
        try:
            exponent = math.nan if isinstance(given, str | bytes) else float(self.priority_exponent)
        except (TypeError, ValueError):
            exponent = math.nan
        if not (0.0 <= exponent < math.inf):
            raise InvalidArgument(f"priority_exponent must be a finite number >= 0, got {self.priority_exponent!r}")
        object.__setattr__(self, "priority_exponent", exponent)

    @property
    def max_priority(self) -> float:
        """The largest priority whose weight can still be summed safely."""
        if self.priority_exponent * 1024 <= _MAX_WEIGHT_EXPONENT:
            return _LARGEST
        return math.pow(2.0, _MAX_WEIGHT_EXPONENT / self.priority_exponent)

    def options(self) -> dict[str, object]:
        """Describe the selector in Reverb's words; `from_options` reads them back."""
        return {"prioritized": {"priority_exponent": self.priority_exponent}, "is_deterministic": False}

    def check_priorities(self, priorities: Priorities) -> None:
        """Raise `InvalidArgument` unless all priorities are finite, >= 0 and at most `max_priority`."""
        if not len(priorities):
            return
        limit = self.max_priority
        if len(priorities) == 1 and 0.0 <= priorities.item(0) <= limit:
            return
        # The bits of floats >= 0 are in the order of their values; those of negative ones and NaN are above.
        if np.maximum.reduce(priorities.view(np.uint64)) <= _bits(limit):
            return
        if priorities.min() >= 0.0 and priorities.max() <= limit:  # both are false for NaN
            return
        position = int(np.argmin((priorities >= 0.0) & (priorities <= limit)))
        value = float(priorities[position])
        where = f"priority {value} at position {position}"
        if not math.isfinite(value):
            raise InvalidArgument(f"{where} is not finite")
        if value < 0.0:
            raise InvalidArgument(f"{where} is negative; Prioritized takes priorities >= 0")
        raise InvalidArgument(f"{where} is too large for priority_exponent {self.priority_exponent}: at most {limit:g}")

    def weights(self, priorities: Priorities) -> NDArray[np.float64]:
        """Return the weight of each priority, ``[n]``: zero for 0, else positive, tiny as the priority may be."""
        weights: NDArray[np.float64] = priorities**self.priority_exponent
        if self.priority_exponent and np.minimum.reduce(weights, initial=1.0) >= _SMALLEST:
            return weights
        positive = priorities > 0.0
        np.maximum(weights, _SMALLEST, out=weights)
        weights *= positive
        return weights

    def build(self, capacity: int) -> PrioritizedState:
        """Return an empty state for slots below `capacity`."""
        return PrioritizedState(self, capacity)


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.uint64))


class PrioritizedState:
    """A sum tree over slots; beside it the set of slots of weight zero, which are drawn when there are no others."""

    def __init__(self, selector: Prioritized, capacity: int) -> None:
        self._selector = selector
        self._capacity = check_capacity(capacity)
        self._tree = SumTree(capacity)
        self._zeros = UniformState(capacity)
        self._present = np.zeros(capacity, np.bool_)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def insert(self, slots: Slots, priorities: Priorities) -> None:
        """Add slots; see `SelectorState`."""
        at = as_run(slots) or slots
        present = self._present[at]
        if np.count_nonzero(present):
            raise refuse_present(slots, present)
        weights = self._selector.weights(priorities)
        self._present[at] = True
        self._size += len(slots)
        self._tree.set(slots, weights)
        if np.count_nonzero(weights) < len(weights):
            zero = slots[weights == 0.0]
            self._zeros.insert(zero, np.zeros(len(zero)))

    def delete(self, slots: Slots) -> None:
        """Remove slots; see `SelectorState`."""
        at = as_run(slots) or slots
        self._require(slots, at)
        self._present[at] = False
        self._size -= len(slots)
        self._tree.set(slots, 0.0)
        if len(self._zeros):
            self._zeros.delete(slots[self._zeros.contains(slots)])

    def update(self, slots: Slots, priorities: Priorities) -> None:
        """Give slots new priorities; see `SelectorState`."""
        self._require(slots, slots)
        weights = self._selector.weights(priorities)
        self._tree.set(slots, weights)
        if len(self._zeros) or np.count_nonzero(weights) < len(weights):
            was_zero, is_zero = self._zeros.contains(slots), weights == 0.0
            self._zeros.delete(slots[was_zero & ~is_zero])
            self._zeros.insert(slots[is_zero & ~was_zero], weights[is_zero & ~was_zero])

    def _require(self, slots: Slots, at: Slots | slice) -> None:
        if len(slots) == 1 and self._present.item(slots.item(0)):
            return
        present = self._present[at]
        if np.count_nonzero(present) < len(slots):
            raise refuse_absent(slots, ~present)

    def clear(self) -> None:
        """Remove all slots; see `SelectorState`."""
        self._tree.clear()
        self._zeros.clear()
        self._present = np.zeros(self._capacity, np.bool_)
        self._size = 0

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Slots, Probabilities]:
        """Draw `n` slots in proportion to their weights; see `SelectorState`."""
        total = self._tree.total
        if total == 0.0:
            return self._zeros.sample(n, rng)
        slots, weights = self._tree.draw(n, rng)
        weights /= total
        return slots, weights

    def first(self, n: int) -> Slots:
        """Raise `InvalidArgument`: there is no order."""
        raise refuse_order("Prioritized")

    def place(self, slots: Slots) -> Places:
        """Return zeros: there is no order; see `SelectorState`."""
        self._require(slots, slots)
        return np.zeros(len(slots), np.int64)

    def restore(self, slots: Slots, priorities: Priorities, places: Places) -> None:
        """Add slots; see `SelectorState`."""
        self.insert(slots, priorities)

    def peek(self, slots: Slots) -> Places:
        """Return the position of each slot of weight zero among those, -1 for others; see `SelectorState`."""
        return self._zeros.peek(slots)

    def counters(self) -> dict[str, int]:
        """Return how the sum tree adds up; see `SelectorState`."""
        return self._tree.counters()

    def rebuild(self, slots: Slots, priorities: Priorities, places: Places, counters: Mapping[str, int]) -> None:
        """Give slots their weights, and those of weight zero their order; see `SelectorState`."""
        self.insert(slots, priorities)
        self._zeros.clear()
        is_zero = self._tree.get(slots) == 0.0
        zero, places = slots[is_zero], places[is_zero]
        self._zeros.rebuild(zero, priorities[is_zero], places, {})
        if counters:
            self._tree.recount(counters)

    def watch(self, moving: Callable[[Slots], object]) -> None:
        """Have `moving` called with slots of weight zero that will fill holes; see `SelectorState`."""
        self._zeros.watch(moving)
