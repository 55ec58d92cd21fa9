"""What every selector can do, and the checks they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reverb_async.errors import InvalidArgument

Slots: TypeAlias = NDArray[np.int64]
Priorities: TypeAlias = NDArray[np.float64]
Probabilities: TypeAlias = NDArray[np.float64]
Places: TypeAlias = NDArray[np.int64]

MAX_CAPACITY = 2**31 - 2
"""Slots are kept as int32, shifted by one where 0 means absent."""


class SelectorState(Protocol):
    """A selector at work on the slots of one table.

    Slots are int64 ``[n]`` without duplicates and below the capacity the state was built for; priorities are float64
    ``[n]`` that the selector's `check_priorities` accepted. Arrays per slot are reserved for the whole capacity, but
    take memory only where slots are used. A call that raises has changed nothing.
    """

    def __len__(self) -> int:
        """Return how many slots are present."""

    def insert(self, slots: Slots, priorities: Priorities) -> None:
        """Add slots, the last one being the newest.

        Raises:
            InvalidArgument: a slot is present already.
        """

    def delete(self, slots: Slots) -> None:
        """Remove slots.

        Raises:
            InvalidArgument: a slot is absent.
        """

    def update(self, slots: Slots, priorities: Priorities) -> None:
        """Give slots new priorities, the last one being the most recently updated.

        Raises:
            InvalidArgument: a slot is absent.
        """

    def clear(self) -> None:
        """Remove all slots, without visiting them."""

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Slots, Probabilities]:
        """Draw `n` slots with replacement; a deterministic selector gives its first slot `n` times.

        Returns:
            Slots ``[n]`` and the probability each had in its draw ``[n]``.

        Raises:
            InvalidArgument: no slot is present.
        """

    def first(self, n: int) -> Slots:
        """Return the (at most) `n` slots a deterministic selector would pick if each left when picked; changes nothing.

        Raises:
            InvalidArgument: the selector draws at random.
        """

    def place(self, slots: Slots) -> Places:
        """Return where slots stand in the selector's order: what `restore` needs to put them back; int64 ``[n]``.

        Raises:
            InvalidArgument: a slot is absent.
        """

    def restore(self, slots: Slots, priorities: Priorities, places: Places) -> None:
        """Add slots with the priorities they left with, at the places that `place` gave, as if they had never left.

        Raises:
            InvalidArgument: a slot is present already.
        """

    def peek(self, slots: Slots) -> Places:
        """Return what decides, besides priorities, when and how likely slots are picked, for `rebuild`; int64 ``[n]``.

        That is their place, and their position where random draws depend on one. Without meaning for absent slots.
        """

    def counters(self) -> dict[str, int]:
        """Return what else `rebuild` needs."""

    def rebuild(self, slots: Slots, priorities: Priorities, places: Places, counters: Mapping[str, int]) -> None:
        """Fill an empty state so that it will pick as the one did that `peek` and `counters` were asked of.

        Without counters `places` only give an order.

        Raises:
            InvalidArgument: places that no such state has.
        """

    def watch(self, moving: Callable[[Slots], object]) -> None:
        """Have `moving` called with slots that are about to change their place though nobody named them."""


def refuse_present(slots: Slots, present: NDArray[np.bool_]) -> InvalidArgument:
    """Return the error for slots that are present but must not be."""
    return InvalidArgument(f"slot {int(slots[present][0])} is already present")


def refuse_absent(slots: Slots, absent: NDArray[np.bool_]) -> InvalidArgument:
    """Return the error for slots that are absent but must not be."""
    return InvalidArgument(f"slot {int(slots[absent][0])} is not present")


def refuse_empty() -> InvalidArgument:
    """Return the error for drawing from nothing."""
    return InvalidArgument("nothing to sample from: no slot is present")


def refuse_order(name: str) -> InvalidArgument:
    """Return the error for asking a random selector for its order."""
    return InvalidArgument(f"{name} draws at random: no slot comes first")


def in_order_of(places: Places) -> NDArray[np.intp]:
    """Return the positions of `places` in ascending order.

    Raises:
        InvalidArgument: two are equal.
    """
    order = places.argsort(kind="stable")
    ordered = places[order]
    if np.count_nonzero(ordered[1:] == ordered[:-1]):
        raise InvalidArgument("two slots have the same place")
    return order


def check_finite(priorities: Priorities) -> None:
    """Refuse priorities that are NaN or infinite, naming the first one and its position."""
    if len(priorities) == 1 and math.isfinite(priorities.item()):
        return
    finite = np.isfinite(priorities)
    if not finite.all():
        position = int(finite.argmin())
        raise InvalidArgument(f"priority {float(priorities[position])} at position {position} is not finite")


def check_capacity(capacity: int) -> int:
    """Return `capacity` if a state can be built for it."""
    if not 1 <= capacity <= MAX_CAPACITY:
        raise InvalidArgument(f"capacity must be between 1 and {MAX_CAPACITY}, got {capacity}")
    return capacity
