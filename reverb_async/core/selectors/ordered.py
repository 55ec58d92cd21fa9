"""Pick slots by when they were inserted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from reverb_async.core.selectors.base import (
    Places,
    Priorities,
    Probabilities,
    Slots,
    check_finite,
    in_order_of,
    refuse_absent,
    refuse_empty,
    refuse_present,
)
from reverb_async.core.selectors.insertion_log import InsertionLog
from reverb_async.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Fifo:
    """The oldest item first; priorities play no part."""

    is_deterministic: ClassVar[bool] = True

    def options(self) -> dict[str, object]:
        """Describe the selector in Reverb's words; `from_options` reads them back."""
        return {"fifo": True, "is_deterministic": True}

    def check_priorities(self, priorities: Priorities) -> None:
        """Raise `InvalidArgument` unless all priorities are finite."""
        check_finite(priorities)

    def build(self, capacity: int) -> OrderedState:
        """Return an empty state for slots below `capacity`."""
        return OrderedState(capacity, newest_first=False)


@dataclass(frozen=True, slots=True)
class Lifo:
    """The newest item first; priorities play no part. As a remover it freezes a full table: newcomers leave at once."""

    is_deterministic: ClassVar[bool] = True

    def options(self) -> dict[str, object]:
        """Describe the selector in Reverb's words; `from_options` reads them back."""
        return {"lifo": True, "is_deterministic": True}

    def check_priorities(self, priorities: Priorities) -> None:
        """Raise `InvalidArgument` unless all priorities are finite."""
        check_finite(priorities)

    def build(self, capacity: int) -> OrderedState:
        """Return an empty state for slots below `capacity`."""
        return OrderedState(capacity, newest_first=True)


class OrderedState:
    """Slots in the order of their insertion; a place is the number of the insertion."""

    def __init__(self, capacity: int, *, newest_first: bool) -> None:
        self._newest_first = newest_first
        self._log = InsertionLog(capacity)

    def __len__(self) -> int:
        return self._log.size

    def insert(self, slots: Slots, priorities: Priorities) -> None:
        """Add slots; see `SelectorState`."""
        self._refuse_present(slots)
        self._log.append(slots)

    def delete(self, slots: Slots) -> None:
        """Remove slots; see `SelectorState`."""
        self._require(slots)
        self._log.remove(slots)

    def update(self, slots: Slots, priorities: Priorities) -> None:
        """Do nothing to slots that are present; see `SelectorState`."""
        self._require(slots)

    def _refuse_present(self, slots: Slots) -> None:
        if np.count_nonzero(self._log.contains(slots)):
            raise refuse_present(slots, self._log.contains(slots))

    def _require(self, slots: Slots) -> None:
        if np.count_nonzero(self._log.contains(slots)) < len(slots):
            raise refuse_absent(slots, ~self._log.contains(slots))

    def clear(self) -> None:
        """Remove all slots; see `SelectorState`."""
        self._log.clear()

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Slots, Probabilities]:
        """Return the first slot `n` times, with probability 1; see `SelectorState`."""
        if not self._log.size:
            raise refuse_empty()
        return np.full(n, self.first(1)[0]), np.ones(n)

    def first(self, n: int) -> Slots:
        """Return the oldest or newest `n` slots, in that order; see `SelectorState`."""
        return self._log.newest(n) if self._newest_first else self._log.oldest(n)

    def place(self, slots: Slots) -> Places:
        """Return the number of each slot's insertion; see `SelectorState`."""
        self._require(slots)
        return self._log.numbers(slots)

    def restore(self, slots: Slots, priorities: Priorities, places: Places) -> None:
        """Add slots as if they had been inserted at `places`; see `SelectorState`."""
        self._refuse_present(slots)
        self._log.put_back(slots, places)

    def peek(self, slots: Slots) -> Places:
        """Return the number of each slot's insertion, -1 for absent ones; see `SelectorState`."""
        return self._log.numbers(slots)

    def counters(self) -> dict[str, int]:
        """Return the next insertion's number; see `SelectorState`."""
        return {"next": self._log.next_number}

    def rebuild(self, slots: Slots, priorities: Priorities, places: Places, counters: Mapping[str, int]) -> None:
        """Put slots where they were; see `SelectorState`."""
        order = in_order_of(places)
        if len(order) and places[order[0]] < 0:
            raise InvalidArgument(f"insertions are numbered from 0, one has {int(places[order[0]])}")
        self._log.put_back(slots[order], places[order])
        self._log.skip_to(counters.get("next", 0))

    def watch(self, moving: Callable[[Slots], object]) -> None:
        """Do nothing: only slots that are named change their place; see `SelectorState`."""
