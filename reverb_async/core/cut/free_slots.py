"""In which order free slots will be taken: draws of `Prioritized` depend on which slot an item gets."""

from __future__ import annotations

import numpy as np

from reverb_async.core.runs import Rows
from reverb_async.core.slots import Slots


class FreeSlotsCut:
    """The stack of a table's free slots as it was, read from the bottom while slots are taken and given back."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._size = self._intact = len(slots.returned)
        self._position = 0
        # What was taken off the stack since, as (position of the first, slots): those further down come later.
        self._taken: list[tuple[int, Rows]] = []

    def note_taken(self, left: int) -> None:
        """The stack is about to shrink to `left` slots."""
        if left < self._intact:
            self._taken.append((left, self._slots.returned[left : self._intact].copy()))
            self._intact = left

    def next_slots(self, n: int) -> tuple[int, Rows]:
        """Return the position of the next slots and the slots themselves, up to `n`, none at the end."""
        start = self._position
        if start < self._intact:
            slots = self._slots.returned[start : min(start + n, self._intact)].copy()
        else:
            while self._taken and self._taken[-1][0] + len(self._taken[-1][1]) <= start:
                self._taken.pop()
            slots = np.zeros(0, np.int64)
            if self._taken:
                first, taken = self._taken[-1]
                slots = taken[start - first : start - first + n]
        self._position += len(slots)
        return start, slots
