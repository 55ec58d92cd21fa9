"""Collects what has changed in a table since a log was last told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.cut.plain import counters_of
from reverb_async.core.cut.slot_reader import SlotReader
from reverb_async.core.item import ItemBlock, ItemLayout
from reverb_async.core.runs import Rows, Runs, as_run
from reverb_async.core.slots import LIVE, OUT, Slots
from reverb_async.core.storage import RowStore

if TYPE_CHECKING:
    from reverb_async.core.table_items import TableItems


@dataclass(slots=True)
class TableChanges:
    """What is different in a table. Arrays may be views of what is kept: they are written before the next step.

    Attributes:
        is_reset: all that was known of the table before is void.
        counters: `counters_of`.
        layouts: those that items name now by position, None if they are the same as the last time.
        ids: int64 ``[n]``, the slots that changed and hold items, ascending.
        words: uint64 ``[n, 8]``, their records.
        state: uint8 ``[n]``; None: all are `LIVE`.
        unsettled: int32 ``[n]``; None: no draw of any is unsettled.
        places: int64 ``[n]`` each, in the sampler's order and in the remover's.
        views: first rows and lengths of all views but the first.
        more: see `ArrayBlock`.
        freed: int64 ``[m]``, the slots that changed and hold none,
        versions: uint32 ``[m]``, and how many items have left them.
    """

    is_reset: bool
    counters: dict[str, Any]
    layouts: list[ItemLayout | None] | None
    ids: Rows
    words: NDArray[np.uint64]
    state: NDArray[np.uint8] | None
    unsettled: NDArray[np.int32] | None
    places: tuple[Rows, Rows]
    views: list[tuple[Rows, NDArray[np.int32]]]
    more: NDArray[np.int64]
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
        self._put: list[tuple[Rows, ItemLayout, tuple[Runs, ...]]] = []
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

    def note_put(self, slots: Rows, block: ItemBlock) -> None:
        """Note that `slots` get new items in this step."""
        self._put.append((slots, block.layout, block.views))

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
        put = [slots for slots, _, _ in self._put]
        new = _unique(put)
        state = slots.state[as_run(new) or new]
        is_here = (state == LIVE) | (state == OUT)
        if len(new) == sum(map(len, put)) and np.count_nonzero(is_here) == len(new):
            for _, layout, views in self._put:
                for store, runs in zip(layout.stores, views, strict=True):
                    yield store, _unique([runs.rows()])
            return
        new = new[is_here]  # Others left at once, and their rows may be others' by now.
        for layout_id, positions in slots.by_layout(new):
            of_slot = slots.layouts[layout_id]
            assert of_slot is not None, "these slots hold items"
            for view, store in enumerate(of_slot.stores):
                yield store, _unique([slots.runs(view, new if positions is None else new[positions]).rows()])

    def take(self) -> TableChanges:
        """Return what has changed, and begin anew."""
        table, slots = self._table, self._table.slots
        ids = _unique(self._touched)
        state = slots.state[as_run(ids) or ids]
        freed = ids[:0]
        holds = (state == LIVE) | (state == OUT)
        if np.count_nonzero(holds) < len(ids):
            ids, freed, state = ids[holds], ids[~holds], state[holds]
        at = as_run(ids) or ids
        unsettled = slots.unsettled[at] if table.max_times_sampled >= 1 else None
        layouts = None
        if self._layouts != slots.layouts:
            layouts = self._layouts = list(slots.layouts)
        reader = self._reading(slots)
        changes = TableChanges(
            self._is_reset,
            counters_of(table),
            layouts,
            ids,
            slots.words[at],
            None if np.count_nonzero(state == LIVE) == len(ids) else state,
            unsettled if unsettled is not None and np.count_nonzero(unsettled) else None,
            reader.places(ids, state),
            [slots.view(number, ids) for number in range(1, slots.num_views)],
            reader.more(ids),
            freed,
            slots.version[freed],
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
    if len(numbers) < 2 or np.count_nonzero(numbers[1:] > numbers[:-1]) == len(numbers) - 1:
        return numbers
    numbers = np.sort(numbers, kind="stable")  # np.unique takes four times as long for what is in order mostly
    is_first = np.empty(len(numbers), np.bool_)
    is_first[0] = True
    np.not_equal(numbers[1:], numbers[:-1], out=is_first[1:])
    return numbers if np.count_nonzero(is_first) == len(numbers) else numbers[is_first]
