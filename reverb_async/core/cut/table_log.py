"""Collects what has changed in a table since a log was last told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.cut.image import NO_MORE, ArrayBlock
from reverb_async.core.cut.plain import counters_of
from reverb_async.core.cut.slot_reader import SlotReader
from reverb_async.core.item import ItemLayout
from reverb_async.core.runs import Rows
from reverb_async.core.slots import LIVE, OUT, Slots
from reverb_async.core.storage import RowStore

if TYPE_CHECKING:
    from reverb_async.core.table_items import TableItems


@dataclass(slots=True)
class TableChanges:
    """What is different in a table: images, as a cut has them.

    Attributes:
        is_reset: all that was known of the table before is void.
        counters: `counters_of`.
        layouts: those that items name now by position, None if they are the same as the last time.
        block: the slots that changed and hold items.
        freed: int64 ``[n]``, the slots that changed and hold none,
        versions: uint32 ``[n]``, and how many items have left them.
    """

    is_reset: bool
    counters: dict[str, Any]
    layouts: list[ItemLayout | None] | None
    block: ArrayBlock
    freed: Rows
    versions: NDArray[np.uint32]


class TableLog:
    """The slots of a table that have changed; what they hold is read when it is asked for, between two steps.

    Args:
        table: whose.
        due: called when there is something to be asked for, for the first time since the last time.
    """

    def __init__(self, table: TableItems, due: Callable[[], object]) -> None:
        self._table = table
        self._due = due
        self._touched: list[Rows] = []
        self._put: list[Rows] = []
        self._is_reset = False
        self._layouts: list[ItemLayout | None] | None = None
        self._reader: SlotReader | None = None
        self._samples = -1

    @property
    def is_behind(self) -> bool:
        """Whether there were draws that changed nothing else: the next time there is something to take, so is that."""
        return self._samples != self._table.limiter.samples

    def __bool__(self) -> bool:
        """Whether anything has changed."""
        return self._is_reset or bool(self._touched)

    def touch(self, slots: Rows) -> None:
        """Note that `slots` change in this step; see `SlotWatch.touch`."""
        if not self:
            self._due()
        self._touched.append(slots.copy())

    def note_put(self, slots: Rows) -> None:
        """Note that `slots` get new items in this step."""
        self._put.append(slots.copy())

    def note_reset(self) -> None:
        """Note that the table has forgotten everything."""
        if not self:
            self._due()
        self.forget_changes()
        self._is_reset = True
        self._layouts = self._reader = None

    def forget_changes(self) -> None:
        """Let go of what has changed: something else knows it."""
        self._touched, self._put, self._is_reset = [], [], False

    def forget_layouts(self) -> None:
        """Name the layouts again."""
        self._layouts = None

    def new_rows(self) -> Iterator[tuple[RowStore, Rows]]:
        """Yield the rows that new items show; distinct and ascending, but for what several layouts share."""
        if not self._put:
            return
        slots = self._table.slots
        new = _unique(self._put)
        state = slots.state[new]
        new = new[(state == LIVE) | (state == OUT)]
        for layout_id, positions in slots.by_layout(new):
            layout = slots.layouts[layout_id]
            assert layout is not None, "these slots hold items"
            for view, store in enumerate(layout.stores):
                yield store, _unique([slots.runs(view, new if positions is None else new[positions]).rows()])

    def take(self) -> TableChanges:
        """Return what has changed, and begin anew."""
        table, slots = self._table, self._table.slots
        ids = _unique(self._touched)
        state = slots.state[ids]
        holds = (state == LIVE) | (state == OUT)
        is_all = bool(holds.all())
        live, freed = (ids, ids[:0]) if is_all else (ids[holds], ids[~holds])
        layouts = None
        if self._layouts != slots.layouts:
            layouts = self._layouts = list(slots.layouts)
        reader = self._reading(slots)
        block = ArrayBlock(live, reader.values(live), reader.more(live) if len(live) else NO_MORE)
        changes = TableChanges(
            self._is_reset, counters_of(table), layouts, block, freed, slots.version[freed].astype("<u4")
        )
        self._samples = table.limiter.samples
        self.forget_changes()
        return changes

    def _reading(self, slots: Slots) -> SlotReader:
        table, reader = self._table, self._reader
        if reader is None or reader.num_views != slots.num_views:
            reader = self._reader = SlotReader(
                slots, table.sampler, table.remover, table.sampler_place, table.remover_place
            )
        return reader


def _unique(parts: list[Rows]) -> Rows:
    if not parts:
        return np.zeros(0, np.int64)
    numbers = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if len(numbers) < 2 or np.count_nonzero(numbers[1:] <= numbers[:-1]) == 0:
        return numbers
    return np.unique(numbers)
