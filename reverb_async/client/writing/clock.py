"""Where a writer is."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """Where a writer is. Steps are numbered from 0 over its whole life.

    Attributes:
        origin: the first step of `history`: the first one after the last clear.
        end: the number of steps so far, an open one included.
        is_open: the last step still takes columns.
        version: changes with every step and clear, and with what columns keep.
        moves: how often a column's rows were moved to another array.
        needed_from: says the first step that something queued may need again.
    """

    __slots__ = ("end", "is_open", "moves", "needed_from", "origin", "version")

    def __init__(self, needed_from: Callable[[], int]) -> None:
        self.origin = 0
        self.end = 0
        self.is_open = False
        self.version = 0
        self.moves = 0
        self.needed_from = needed_from
