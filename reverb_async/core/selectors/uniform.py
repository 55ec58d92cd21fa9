"""Draw every slot with the same probability."""

from __future__ import annotations

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
    check_finite,
    in_order_of,
    refuse_absent,
    refuse_empty,
    refuse_order,
    refuse_present,
)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every item is equally likely; priorities play no part."""

    is_deterministic: ClassVar[bool] = False

    def options(self) -> dict[str, object]:
        """Describe the selector in Reverb's words; `from_options` reads them back."""
        return {"uniform": True, "is_deterministic": False}

    def check_priorities(self, priorities: Priorities) -> None:
        """Raise `InvalidArgument` unless all priorities are finite."""
        check_finite(priorities)

    def build(self, capacity: int) -> UniformState:
        """Return an empty state for slots below `capacity`."""
        return UniformState(capacity)


class UniformState:
    """A dense array of the slots present, and the position of each in it; all operations are O(batch)."""

    def __init__(self, capacity: int) -> None:
        self._capacity = check_capacity(capacity)
        self._size = 0
        self._slots = np.empty(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)  # by slot, plus one: 0 is absent
        self._moving: Callable[[Slots], object] | None = None

    def __len__(self) -> int:
        return self._size

    def insert(self, slots: Slots, priorities: Priorities) -> None:
        """Add slots; see `SelectorState`."""
        size = self._size
        if len(slots) == 1:
            slot = slots[0]
            if self._positions[slot]:
                raise refuse_present(slots, self._positions.take(slots) > 0)
            self._slots[size] = slot
            self._positions[slot] = self._size = size + 1
            return
        at = as_run(slots) or slots
        if self._positions[at].any():
            raise refuse_present(slots, self._positions.take(slots) > 0)
        end = size + len(slots)
        self._slots[size:end] = slots
        self._positions[at] = np.arange(size + 1, end + 1, dtype=np.int32)
        self._size = end

    def delete(self, slots: Slots) -> None:
        """Remove slots: those at the end of the array move into the holes; see `SelectorState`."""
        if len(slots) == 1:
            self._delete_one(slots)
            return
        at = as_run(slots) or slots
        holes = self._positions[at] - 1
        if len(holes) and int(holes.min()) < 0:
            raise refuse_absent(slots, holes < 0)
        end = self._size - len(slots)
        holes = holes[holes < end]
        self._positions[at] = 0
        tail = self._slots[end : self._size]
        movers = tail[self._positions.take(tail) > 0]
        if self._moving is not None:
            self._moving(movers.astype(np.int64))
        self._slots[holes] = movers
        self._positions[movers] = holes + 1
        self._size = end

    def _delete_one(self, slots: Slots) -> None:
        slot = slots[0]
        position = self._positions[slot]
        if not position:
            raise refuse_absent(slots, self._positions.take(slots) == 0)
        mover = self._slots[self._size - 1]
        if self._moving is not None:
            self._moving(self._slots[self._size - 1 : self._size].astype(np.int64))
        self._slots[position - 1] = mover
        self._positions[mover] = position
        self._positions[slot] = 0  # last: the slot may be the mover itself
        self._size -= 1

    def update(self, slots: Slots, priorities: Priorities) -> None:
        """Do nothing to slots that are present; see `SelectorState`."""
        self.require(slots)

    def require(self, slots: Slots) -> None:
        """Raise `InvalidArgument` unless all slots are present."""
        positions = self._positions.take(slots)
        if not positions.all():
            raise refuse_absent(slots, positions == 0)

    def contains(self, slots: Slots) -> NDArray[np.bool_]:
        """Return which slots are present, ``[n]``."""
        return self._positions.take(slots) > 0

    def clear(self) -> None:
        """Remove all slots; see `SelectorState`."""
        self._size = 0
        self._positions = np.zeros(self._capacity, np.int32)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Slots, Probabilities]:
        """Draw `n` slots, each with probability ``1 / len(self)``; see `SelectorState`."""
        if not self._size:
            raise refuse_empty()
        if n == 1:  # the same draw; with a size it takes four times as long
            return np.array([self._slots.item(rng.integers(self._size))]), np.array([1.0 / self._size])
        drawn = self._slots.take(rng.integers(self._size, size=n))
        return drawn.astype(np.int64), np.full(n, 1.0 / self._size)

    def first(self, n: int) -> Slots:
        """Raise `InvalidArgument`: there is no order."""
        raise refuse_order("Uniform")

    def place(self, slots: Slots) -> Places:
        """Return zeros: there is no order; see `SelectorState`."""
        self.require(slots)
        return np.zeros(len(slots), np.int64)

    def restore(self, slots: Slots, priorities: Priorities, places: Places) -> None:
        """Add slots; see `SelectorState`."""
        self.insert(slots, priorities)

    def peek(self, slots: Slots) -> Places:
        """Return the position of each slot in the array, -1 for absent ones; see `SelectorState`."""
        return self._positions.take(slots).astype(np.int64) - 1

    def counters(self) -> dict[str, int]:
        """Return nothing; see `SelectorState`."""
        return {}

    def rebuild(self, slots: Slots, priorities: Priorities, places: Places, counters: Mapping[str, int]) -> None:
        """Put slots where they were; see `SelectorState`."""
        self.insert(slots[in_order_of(places)], priorities)

    def watch(self, moving: Callable[[Slots], object]) -> None:
        """Have `moving` called with slots that will fill holes; see `SelectorState`."""
        self._moving = moving
