"""Learners give the items they drew new priorities: where those are need not be looked up again."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.runs import Rows
from reverb_async.core.slots import LIVE, Slots

_REMEMBERED = 8
_MOST = 65_536
"""Larger draws are not remembered, so that little memory is taken."""
_LEAST = 16
"""Fewer keys are as quickly found in the index."""


class _Seen(NamedTuple):
    keys: NDArray[np.uint64]
    slots: Rows
    is_distinct: bool
    num_detached: int


class RecentDraws:
    """The keys and slots of the last draws of one table.

    Attributes:
        num_detached: counts removals of items; between two of them a slot keeps its item.
    """

    def __init__(self, items: Slots) -> None:
        self._items = items
        self._draws: deque[_Seen] = deque(maxlen=_REMEMBERED)
        self.num_detached = 0

    def note(self, keys: NDArray[np.uint64], slots: Rows, *, is_distinct: bool) -> None:
        """Remember a draw.

        Args:
            keys: uint64 ``[n]``, copied.
            slots: int64 ``[n]``, kept, so nobody may change the array later.
            is_distinct: no slot stands there twice.
        """
        if _LEAST <= len(keys) <= _MOST:
            self._draws.append(_Seen(keys.copy(), slots, is_distinct, self.num_detached))

    def find(self, keys: NDArray[np.uint64]) -> tuple[Rows, bool] | None:
        """Return the slots of keys drawn lately, all still there, and whether they are known to be distinct.

        Args:
            keys: uint64 ``[n]``; as a draw gave them, or one of the parts of `n` that it was cut into.
        """
        n = len(keys)
        if n < _LEAST:
            return None
        first = keys.item(0)
        for drawn, slots, is_distinct, num_detached in reversed(self._draws):
            for start in range(0, len(drawn) - n + 1, n):
                if drawn.item(start) != first or drawn[start : start + n].tobytes() != keys.tobytes():
                    continue
                part = slots[start : start + n]
                if num_detached == self.num_detached or self._hold(part, keys):
                    return part, is_distinct
                return None
        return None

    def _hold(self, slots: Rows, keys: NDArray[np.uint64]) -> bool:
        is_there = self._items.state.take(slots) == LIVE
        is_there &= self._items.key[slots] == keys
        return int(np.count_nonzero(is_there)) == len(slots)
