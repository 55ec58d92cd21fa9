"""Changes of priorities that arrive together, as one step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.runs import Rows


class Mutation(NamedTuple):
    """One call of `mutate_priorities`.

    Attributes:
        keys: uint64 ``[n]``, items to give new priorities; the last of duplicates wins.
        priorities: float64 ``[n]``.
        deletes: uint64 ``[m]``, items to delete afterwards.
    """

    keys: NDArray[np.uint64]
    priorities: NDArray[np.float64]
    deletes: NDArray[np.uint64]


def in_order(slots: Rows) -> tuple[Rows, Rows] | None:
    """Return slots in ascending order, equal ones in the order they stand in, and their positions; ``[n]`` each.

    Returns None if no slot stands there twice, which is much quicker to see.
    """
    ordered = np.sort(slots)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    # One number for slot and position, as sorting numbers is five times as fast as a stable argsort.
    both = np.sort((slots << 32) | np.arange(len(slots)))
    return both >> 32, both & 0xFFFF_FFFF


_ONCE = np.ones(1, np.int32)
_ONCE.flags.writeable = False


def occurrence(slots: Rows) -> NDArray[np.int32]:
    """Return, for each position, how often its slot has occurred so far, itself included; int32 ``[n]``."""
    n = len(slots)
    if n < 2:
        return _ONCE[:n]
    if (sorted_slots := in_order(slots)) is None:
        return np.ones(n, np.int32)
    ordered, positions = sorted_slots
    new = np.ones(n, bool)
    new[1:] = ordered[1:] != ordered[:-1]
    at = np.arange(n)
    rank = np.empty(n, np.int32)
    rank[positions] = at - np.maximum.accumulate(np.where(new, at, 0)) + 1
    return rank


def winners(slots: Rows, calls: Rows) -> tuple[Rows | None, Rows | None]:
    """Tell who wins where calls, one after the other, name slots several times.

    Args:
        slots: int64 ``[n]``.
        calls: int64 ``[n]``, ascending: the call each slot is named in.

    Returns:
        The positions of the last of each slot, and those of the last of each slot in each call, both ascending; None
        instead of all positions.
    """
    if len(slots) < 2 or (sorted_slots := in_order(slots)) is None:
        return None, None
    ordered, positions = sorted_slots
    is_last = np.ones(len(slots), bool)
    is_last[:-1] = ordered[1:] != ordered[:-1]
    is_last_in_call = is_last.copy()
    is_last_in_call[:-1] |= np.diff(calls[positions]) != 0
    return np.sort(positions[is_last]), np.sort(positions[is_last_in_call])
