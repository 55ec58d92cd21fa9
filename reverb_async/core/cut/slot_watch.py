"""Notes which slots of a table change, and what they were before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from reverb_async.core.cut.table_cut import TableCut
    from reverb_async.core.cut.table_log import TableLog
    from reverb_async.core.item import ItemBlock
    from reverb_async.core.runs import Rows


class SlotWatch:
    """The changes of a table's slots since its last reset.

    Attributes:
        dirty: bool ``[capacity]``, slots changed since the last cut.
        cut: the cut that still has to pass some slots, or None.
        is_saved: a committed cut holds all slots that are not dirty.
        log: is told of all changes that a log must have, if there is one.
    """

    __slots__ = ("_spare", "cut", "dirty", "is_saved", "log")

    def __init__(self, capacity: int) -> None:
        self.dirty = np.zeros(capacity, np.bool_)
        self._spare = np.zeros(capacity, np.bool_)
        self.cut: TableCut | None = None
        self.is_saved = False
        self.log: TableLog | None = None

    def touch(self, slots: Rows) -> None:
        """Note that `slots` are about to change; one may stand there twice."""
        self.touch_unlogged(slots)
        if self.log is not None:
            self.log.touch(slots)

    def touch_unlogged(self, slots: Rows) -> None:
        """Note that `slots` are about to change in a way that may be forgotten when the server is killed."""
        self.dirty[slots] = True
        if self.cut is not None:
            self.cut.keep(slots)

    def put(self, slots: Rows, block: ItemBlock) -> None:
        """Note that `slots` are about to hold new items."""
        self.touch(slots)
        if self.log is not None:
            self.log.note_put(slots, block)

    def note_taken(self, left: int) -> None:
        """Free slots are about to be taken, so that `left` remain of those that were used before."""
        if self.cut is not None:
            self.cut.note_taken(left)

    def freeze(self) -> NDArray[np.bool_]:
        """Return what is dirty for a cut, and start anew; the cut gives the array back to `thaw`."""
        frozen, self.dirty = self.dirty, self._spare
        return frozen

    def thaw(self, frozen: NDArray[np.bool_]) -> None:
        """Take back what `freeze` returned, all False by now."""
        self._spare = frozen
