"""What a table held at one moment, read in slices while it goes on changing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.cut.free_slots import FreeSlotsCut
from reverb_async.core.cut.image import NO_MORE, ArrayBlock
from reverb_async.core.cut.slot_reader import SlotReader
from reverb_async.core.cut.slot_watch import SlotWatch
from reverb_async.core.cut.undo_log import UndoLog
from reverb_async.core.runs import Rows
from reverb_async.core.slots import FREE, LIVE, OUT

BLOCK_SLOTS = 16_384
"""As many take a few milliseconds, also where the memory for them is new."""
MAX_BLOCK_BYTES = 4 << 20
_SCANNED = 1 << 18
"""Slots that one call looks at: a few bytes of each."""


class TableCut:
    """What a table held when `cut` was called: its counts, and its slots in slices.

    Attributes:
        full: all items come; otherwise the slots that changed since the last committed cut, free ones too.
        dtype: `image_dtype` of the blocks.
    """

    def __init__(
        self,
        watch: SlotWatch,
        reader: SlotReader,
        describe: Callable[[], dict[str, Any]],
        *,
        full: bool,
        free: FreeSlotsCut | None = None,
    ) -> None:
        self.full = full or not watch.is_saved
        self.dtype = reader.dtype
        self._watch = watch
        self._reader = reader
        self._describe = describe
        self._dirty = watch.freeze()
        self._high_water = reader.slots.high_water
        self._position = 0
        self._max_slots = MAX_BLOCK_BYTES // self.dtype.itemsize
        # Per slot, which entry of the undo log it has, plus one.
        self._entry = np.zeros(self._high_water, np.int32)
        self._undo = UndoLog(self.dtype)
        self._more: dict[int, NDArray[np.int64]] = {}
        self._ended = 0
        self._free = free
        watch.cut = self

    @cached_property
    def state(self) -> dict[str, Any]:
        """Counts, limiter, generator and layouts as they were: values MessagePack and JSON know. Safe in a thread."""
        return self._describe()

    @property
    def num_undone(self) -> int:
        """Slots whose former images are kept: it grows while slots change that were not passed yet."""
        return len(self._undo)

    def keep(self, slots: Rows) -> None:
        """Note what `slots` hold before they change, unless they were passed or it is known."""
        slots = slots[(slots >= self._position) & (slots < self._high_water)]
        if not len(slots):
            return
        unknown = self._entry.take(slots) == 0
        if not self.full:
            unknown &= self._dirty.take(slots)
        slots = slots[unknown]
        if not len(slots):
            return
        if len(slots) > 1:
            order = np.arange(1, len(slots) + 1, dtype=np.int32)
            self._entry[slots] = order  # of equal ones one wins
            slots = slots[self._entry.take(slots) == order]
        start = len(self._undo)
        self._entry[slots] = np.arange(start + 1, start + len(slots) + 1, dtype=np.int32)
        self._undo.append(self._reader.values(slots))
        more = self._reader.more(slots)
        for slot in np.unique(more[:, 0]).tolist() if len(more) else ():
            self._more[slot] = more[more[:, 0] == slot]

    def next_block(self, max_slots: int = BLOCK_SLOTS) -> ArrayBlock | None:
        """Return the next slots as they were, in ascending order, at most 4 MB; None at the end.

        A block may be empty. A table whose last block was fetched pays for the cut no more.
        """
        start = self._position
        most = max(1, min(max_slots, self._max_slots))
        if start >= self._high_water:
            return self._next_free(most)
        stop = min(start + _SCANNED, self._high_water)
        window = slice(start, stop)
        if self.full:
            state = self._reader.slots.state[window]
            wanted = (state == LIVE) | (state == OUT)
            if len(self._undo):
                wanted |= self._entry[window] > 0
        else:
            wanted = self._dirty[window]
        ids = np.flatnonzero(wanted) + start
        if len(ids) > most:
            ids = ids[:most]
            stop = int(ids[-1]) + 1
        values, more = self._read(ids)
        self._position = stop
        if self.full:
            was_item = values["state"] != FREE
            if np.count_nonzero(was_item) < len(ids):
                ids, values = ids[was_item], values[was_item]
        return ArrayBlock(ids, values, more)

    def note_taken(self, left: int) -> None:
        """See `SlotWatch.note_taken`."""
        if self._free is not None:
            self._free.note_taken(left)

    def _next_free(self, most: int) -> ArrayBlock | None:
        """Return free slots, whose place is their position in the stack, from 1."""
        if self._free is not None:
            start, slots = self._free.next_slots(most)
            if len(slots):
                values = np.zeros(len(slots), self.dtype)
                values["version"] = self._reader.slots.version[slots]
                values["sampler"] = np.arange(start + 1, start + len(slots) + 1)
                return ArrayBlock(slots, values, NO_MORE)
        self._end()
        return None

    def _read(self, ids: Rows) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        values = self._reader.values(ids)
        if not len(self._undo):
            return values, self._reader.more(ids)
        entries = self._entry.take(ids).astype(np.int64) - 1
        undone = np.flatnonzero(entries >= 0)
        more = [self._reader.more(ids[entries < 0])]
        if len(undone):
            self._undo.fill(values, undone, entries[undone])
            if self._more:
                more += [self._more[slot] for slot in ids[undone].tolist() if slot in self._more]
        return values, np.concatenate(more) if len(more) > 1 else more[0]

    def _end(self) -> None:
        """The table owes nothing to this cut any more."""
        if self._watch.cut is self:
            self._watch.cut = None
        self._undo, self._more, self._free = UndoLog(self.dtype), {}, None
        self._entry = self._entry[:0]

    def finish(self, committed: bool, max_slots: int = 1 << 20) -> bool:
        """Say whether the cut is kept; if not, the next one holds its changes too. Bounded: see the result.

        Returns:
            Whether there is more to do: call it again.
        """
        if not self._ended:
            self._position = self._high_water
            self._end()
        start, stop = self._ended, min(self._ended + max_slots, len(self._dirty))
        stop = min(stop, self._high_water)
        if not committed:
            self._watch.dirty[start:stop] |= self._dirty[start:stop]
        self._dirty[start:stop] = False
        self._ended = stop
        if stop < self._high_water:
            return True
        if committed:
            self._watch.is_saved = True
        self._watch.thaw(self._dirty)
        return False
