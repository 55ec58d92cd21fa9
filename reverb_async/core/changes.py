"""The ordered record of what happens to a table: for metrics, watchers and, later, a write-ahead log."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class ChangeKind(enum.Enum):
    """What happened to the items of a `Change`."""

    INSERT = "insert"
    EVICT = "evict"
    SAMPLE_OUT = "sample_out"
    HAND_BACK = "hand_back"
    UPDATE = "update"
    DELETE = "delete"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Change:
    """One synchronous change of a table.

    Attributes:
        number: counts the table's changes from 1, without gaps.
        kind: what happened.
        keys: uint64 ``[n]``, the items it happened to; empty for a reset.
        slots: int64 ``[n]``, where they are (or were).
        priorities: float64 ``[n]``, the new ones, for inserts and updates.
    """

    number: int
    kind: ChangeKind
    keys: NDArray[np.uint64]
    slots: NDArray[np.int64]
    priorities: NDArray[np.float64] | None = None


Listener = Callable[[Change], None]
