"""Per-item state of a table: arrays indexed by slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.cut.slot_watch import SlotWatch
from reverb_async.core.episodes import NO_EPISODE, count_episodes
from reverb_async.core.item import ItemBlock, ItemLayout
from reverb_async.core.runs import Rows, Runs, as_run
from reverb_async.core.storage import RowStore

FREE, LIVE, OUT, GONE = 0, 1, 2, 3
"""A slot is free, holds an item of the table, holds one that was sampled out and may still be handed back, or one that
has left for good while a draw that shows it is not settled."""


RECORD = np.dtype(
    [
        ("key", np.uint64),
        ("priority", np.float64),
        ("inserted_at", np.float64),
        ("first", np.int64),
        ("nbytes", np.int64),
        ("episode", np.int64),
        ("times_sampled", np.int32),
        ("length", np.int32),
        ("layout", np.int32),
        ("version", np.uint32),
    ]
)
"""What a draw reads of an item, in one cache line: eight arrays would be eight misses. `first` and `length` are the
item's first view."""

_KEPT = 4096
"""Records of up to so many items are kept for who reads them next."""

_WORDS = RECORD.itemsize // 8


@dataclass(slots=True)
class _View:
    """Runs of one view, by slot; see `Runs`."""

    first: NDArray[np.int64]
    length: NDArray[np.int32]
    pieces: dict[int, Rows] = field(default_factory=dict)


class Slots:
    """Keeps what is known of every item, and hands out slots.

    The arrays are reserved for `capacity` items and stay untouched, and thus without memory behind them, beyond the
    highest slot in use.

    Attributes:
        records: `RECORD` ``[capacity]``; its fields are attributes too: views of it, to be indexed, not to `take` from,
            which would copy them whole.
        words: the same memory, uint64 ``[capacity, 8]``.
        version: how many items have left each slot: tells an item from its predecessors, which may have had its key.
        unsettled: draws neither acknowledged nor handed back; counted only where sampling removes items.
        episode_spans: last episode of the items that cross an episode's end.
        high_water: no slot at or above this one was ever used.
        watch: is told before anything of a slot changes, if checkpoints are made.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.records, self.words = _aligned_records(capacity)
        self.key: NDArray[np.uint64] = self.records["key"]
        self.priority: NDArray[np.float64] = self.records["priority"]
        self.inserted_at: NDArray[np.float64] = self.records["inserted_at"]
        self.nbytes: NDArray[np.int64] = self.records["nbytes"]
        self.episode: NDArray[np.int64] = self.records["episode"]
        self.times_sampled: NDArray[np.int32] = self.records["times_sampled"]
        self.layout: NDArray[np.int32] = self.records["layout"]
        self.version: NDArray[np.uint32] = self.records["version"]
        self.state = np.zeros(capacity, np.uint8)
        self.unsettled = np.zeros(capacity, np.int32)
        self.episode_spans: dict[int, int] = {}
        self.layouts: list[ItemLayout | None] = []
        self._layout_ids: dict[ItemLayout, int] = {}
        self._layout_items: list[int] = []
        self._views = [_View(self.records["first"], self.records["length"])]
        self._returned = np.zeros(capacity, np.int64)
        self._num_returned = 0
        self._read: tuple[Rows, NDArray[np.void]] | None = None
        self.high_water = 0
        self.watch: SlotWatch | None = None

    @property
    def num_free(self) -> int:
        """How many slots can still be taken."""
        return self.capacity - self.high_water + self._num_returned

    @property
    def returned(self) -> Rows:
        """Slots below `high_water` that are free; the last one is taken first."""
        return self._returned[: self._num_returned]

    def _take(self, n: int) -> Rows:
        if self.watch is not None:
            self.watch.note_taken(max(0, self._num_returned - n))
        if n <= self._num_returned:
            self._num_returned -= n
            return self._returned[self._num_returned : self._num_returned + n].copy()
        reused = self._returned[: self._num_returned].copy()
        self._num_returned = 0
        start, self.high_water = self.high_water, self.high_water + n - len(reused)
        assert self.high_water <= self.capacity, "the caller checks num_free"
        fresh = np.arange(start, self.high_water)
        return np.concatenate([reused, fresh]) if len(reused) else fresh

    def put(self, block: ItemBlock, priorities: NDArray[np.float64], now: float) -> Rows:
        """Store new items, take their references on the rows, and return their slots, int64 ``[n]``."""
        n = len(block)
        self._read = None
        slots = self._take(n)
        if self.watch is not None:
            self.watch.put(slots, block)
        layout = self._intern(block.layout, n)
        if n == 1:
            self._put_one(int(slots[0]), block, float(priorities[0]), now, layout)
        else:
            run = as_run(slots)
            at = run or slots
            self.state[at] = LIVE
            words = self.words[at]  # a view of a run, else a copy, to be written back
            record = words.view(RECORD).reshape(-1)
            record["key"] = block.keys
            record["priority"] = priorities
            record["inserted_at"] = now
            record["nbytes"] = block.nbytes
            record["episode"] = NO_EPISODE if block.episodes is None else block.episodes[:, 0]
            record["times_sampled"] = 0
            record["layout"] = layout
            if block.views:
                record["first"] = block.views[0].first
                record["length"] = block.views[0].length
            if run is None:
                self.words[slots] = words
            for number, runs in enumerate(block.views[1:], 1):
                view = self._view(number)
                view.first[at] = runs.first
                view.length[at] = runs.length
        if block.episodes is not None:
            for position in np.flatnonzero(block.episodes[:, 0] != block.episodes[:, 1]).tolist():
                self.episode_spans[int(slots[position])] = int(block.episodes[position, 1])
        for number, runs in enumerate(block.views):
            for position, pieces in runs.pieces.items():
                self._view(number).pieces[int(slots[position])] = pieces
            block.layout.stores[number].retain(runs.rows())
        return slots

    def _put_one(self, slot: int, block: ItemBlock, priority: float, now: float, layout: int) -> None:
        self.state[slot] = LIVE
        self.key[slot] = block.keys.item(0)
        self.priority[slot] = priority
        self.inserted_at[slot] = now
        self.nbytes[slot] = block.nbytes.item(0)
        self.episode[slot] = NO_EPISODE if block.episodes is None else block.episodes.item(0)
        self.times_sampled[slot] = 0
        self.layout[slot] = layout
        for number, runs in enumerate(block.views):
            view = self._view(number)
            view.first[slot] = runs.first.item(0)
            view.length[slot] = runs.length.item(0)

    @property
    def num_views(self) -> int:
        """How many views items have had at most."""
        return len(self._views)

    def _view(self, number: int) -> _View:
        while number >= len(self._views):
            self._views.append(_View(np.zeros(self.capacity, np.int64), np.zeros(self.capacity, np.int32)))
        return self._views[number]

    def free(self, slots: Rows) -> None:
        """Drop the items' references and make their slots available; `slots` are unique."""
        n = len(slots)
        self._read = None
        if self.watch is not None:
            self.watch.touch(slots)
        if self.episode_spans:
            for slot in slots.tolist():
                self.episode_spans.pop(slot, None)
        for layout_id, positions in self.by_layout(slots):
            self._release(layout_id, slots if positions is None else slots[positions])
        at = as_run(slots) or slots
        self.state[at] = FREE
        self.version[at] += np.uint32(1)
        self._returned[self._num_returned : self._num_returned + n] = slots
        self._num_returned += n

    def _release(self, layout_id: int, slots: Rows) -> None:
        layout = self.layouts[layout_id]
        assert layout is not None
        for number, store in enumerate(layout.stores):
            store.release(self.runs(number, slots).rows())
            pieces = self._views[number].pieces
            if pieces:
                for slot in slots.tolist():
                    pieces.pop(slot, None)
        self._layout_items[layout_id] -= len(slots)
        if not self._layout_items[layout_id]:
            del self._layout_ids[layout]
            self.layouts[layout_id] = None

    def read(self, slots: Rows) -> NDArray[np.void]:
        """Return the `RECORD` of each of `slots`, ``[n]``, not to be changed."""
        records = self.records.take(slots)
        if len(slots) <= _KEPT:
            self._read = slots, records
        return records

    def read_again(self, slots: Rows) -> NDArray[np.void]:
        """Return what `read` does, quicker if it was asked last and of the same array; priority and count may be old.

        The array must not have changed between.
        """
        if self._read is not None and self._read[0] is slots:
            return self._read[1]
        return self.records.take(slots)

    def runs(self, view: int, slots: Rows, records: NDArray[np.void] | None = None) -> Runs:
        """Return the runs of one view for `slots`, int64 ``[n]``; `records` are theirs, if they were read before."""
        kept = self._views[view]
        pieces: dict[int, Rows] = {}
        if kept.pieces:
            pieces = {at: kept.pieces[slot] for at, slot in enumerate(slots.tolist()) if slot in kept.pieces}
        if view == 0:
            if records is None:
                records = self.records.take(slots)
            return Runs(records["first"].copy(), records["length"].astype(np.int64), pieces)
        return Runs(kept.first[slots], kept.length[slots].astype(np.int64), pieces)

    def view(self, number: int, slots: Rows | slice) -> tuple[Rows, NDArray[np.int32]]:
        """Return first row and number of rows of one view for `slots`, ``[n]`` each; see `pieces`."""
        view = self._views[number]
        return view.first[slots], view.length[slots]

    def stores(self) -> set[RowStore]:
        """Return the stores that items refer to."""
        return {store for layout in self.layouts if layout is not None for store in layout.stores}

    def set_view(self, number: int, slots: Rows, first: Rows, length: Rows) -> None:
        """Set what `view` returns."""
        view = self._view(number)
        view.first[slots], view.length[slots] = first, length

    def forget_more(self, slots: Rows) -> None:
        """Forget the runs and last episodes of the few slots that have them."""
        some: list[dict[int, Any]] = [self.episode_spans, *(view.pieces for view in self._views)]
        for few in some:
            if few:
                for slot in slots.tolist():
                    few.pop(slot, None)

    def adopt(self, layouts: Sequence[ItemLayout | None], free: Rows, high_water: int) -> None:
        """Begin to use slots whose records and states were written.

        Args:
            layouts: as the records number them, distinct.
            free: those below `high_water` without an item; the last is taken first.
            high_water: all slots are below it.
        """
        used = np.flatnonzero(self.state[:high_water])
        self._layout_items = np.bincount(self.layout[used], minlength=len(layouts)).tolist()
        self.layouts = [layout if count else None for layout, count in zip(layouts, self._layout_items, strict=True)]
        self._layout_ids = {layout: at for at, layout in enumerate(self.layouts) if layout is not None}
        self._returned[: len(free)] = free
        self._num_returned = len(free)
        self.high_water = high_water

    def pieces(self, view: int) -> dict[int, Rows]:
        """Return the runs of those slots of which a view is several, by slot."""
        return self._views[view].pieces

    def by_layout(self, slots: Rows) -> list[tuple[int, NDArray[np.intp] | None]]:
        """Split `slots`, which hold items, by layout: pairs of layout id and positions; None means all of them."""
        if len(slots) == 0:
            return []
        if len(self.layouts) == 1:
            return [(0, None)]
        ids = self.layout[slots]
        first = int(ids[0])
        if len(ids) == 1 or bool((ids == first).all()):
            return [(first, None)]
        return [(int(layout_id), np.flatnonzero(ids == layout_id)) for layout_id in np.unique(ids)]

    def episodes_of(self, slots: Rows) -> tuple[dict[int, int], int]:
        """Return how many of the items refer to each episode, and how many are an episode of their own."""
        return count_episodes(slots, self.episode, self.episode_spans)

    def _intern(self, layout: ItemLayout, count: int) -> int:
        layout_id = self._layout_ids.get(layout)
        if layout_id is None:
            if None in self.layouts:
                layout_id = self.layouts.index(None)
                self.layouts[layout_id] = layout
            else:
                layout_id = len(self.layouts)
                self.layouts.append(layout)
                self._layout_items.append(0)
            self._layout_ids[layout] = layout_id
        self._layout_items[layout_id] += count
        return layout_id

    def dismantle(self, start: int, stop: int) -> None:
        """Free every item in slots ``[start:stop)``, sampled-out ones too; for slots nobody uses any more."""
        used = np.flatnonzero(self.state[start:stop] != FREE) + start
        if len(used):
            self.free(used)

    def describe(self, slots: Rows) -> dict[str, NDArray[Any]]:
        """Return the plain fields of some items, for inspection."""
        return {
            name: getattr(self, name)[slots].copy()
            for name in ("key", "priority", "times_sampled", "inserted_at", "nbytes")
        }


def _aligned_records(capacity: int) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
    """Return zeroed records ``[capacity]``, each a cache line, and the same memory as words ``[capacity, 8]``."""
    nbytes = capacity * RECORD.itemsize
    memory = np.zeros(nbytes + RECORD.itemsize, np.uint8)
    start = -memory.ctypes.data % RECORD.itemsize
    words = memory[start : start + nbytes].view(np.uint64).reshape(capacity, _WORDS)
    return words.view(RECORD).reshape(capacity), words
