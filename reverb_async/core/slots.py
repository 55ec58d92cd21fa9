"""Per-item state of a table: arrays indexed by slot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.item import ItemBlock, ItemLayout
from reverb_async.core.runs import Rows, Runs

FREE, LIVE, OUT, GONE = 0, 1, 2, 3
"""A slot is free, holds an item of the table, holds one that was sampled out and may still be handed back, or one that
has left for good while a draw that shows it is not settled."""

NO_EPISODE = -1
"""The item counts as an episode of its own."""


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
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.state = np.zeros(capacity, np.uint8)
        self.key = np.zeros(capacity, np.uint64)
        self.priority = np.zeros(capacity)
        self.times_sampled = np.zeros(capacity, np.int32)
        self.inserted_at = np.zeros(capacity)
        self.nbytes = np.zeros(capacity, np.int64)
        self.layout = np.zeros(capacity, np.int32)
        self.episode = np.zeros(capacity, np.int64)
        self.version = np.zeros(capacity, np.uint32)
        """How many items have left each slot: tells an item from its predecessors, which may have had the same key."""
        self.unsettled = np.zeros(capacity, np.int32)
        """Draws neither acknowledged nor handed back; counted only where sampling removes items."""
        self.episode_spans: dict[int, int] = {}
        """Last episode of the items that cross an episode's end."""
        self.layouts: list[ItemLayout | None] = []
        self._layout_ids: dict[ItemLayout, int] = {}
        self._layout_items: list[int] = []
        self._views: list[_View] = []
        self._returned = np.zeros(capacity, np.int64)
        self._num_returned = 0
        self.high_water = 0
        """No slot at or above this one was ever used."""

    @property
    def num_free(self) -> int:
        """How many slots can still be taken."""
        return self.capacity - self.high_water + self._num_returned

    def _take(self, n: int) -> Rows:
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
        slots = self._take(len(block))
        self.state[slots] = LIVE
        self.key[slots] = block.keys
        self.priority[slots] = priorities
        self.times_sampled[slots] = 0
        self.inserted_at[slots] = now
        self.nbytes[slots] = block.nbytes
        self.layout[slots] = self._intern(block.layout, len(block))
        if block.episodes is None:
            self.episode[slots] = NO_EPISODE
        else:
            self.episode[slots] = block.episodes[:, 0]
            for at in np.flatnonzero(block.episodes[:, 0] != block.episodes[:, 1]).tolist():
                self.episode_spans[int(slots[at])] = int(block.episodes[at, 1])
        for number, runs in enumerate(block.views):
            if number == len(self._views):
                self._views.append(_View(np.zeros(self.capacity, np.int64), np.zeros(self.capacity, np.int32)))
            view = self._views[number]
            view.first[slots] = runs.first
            view.length[slots] = runs.length
            for at, pieces in runs.pieces.items():
                view.pieces[int(slots[at])] = pieces
            block.layout.stores[number].retain(runs.rows())
        return slots

    def free(self, slots: Rows) -> None:
        """Drop the items' references and make their slots available; `slots` are unique."""
        if self.episode_spans:
            for slot in slots.tolist():
                self.episode_spans.pop(slot, None)
        for layout_id, positions in self.by_layout(slots):
            self._release(layout_id, slots if positions is None else slots[positions])
        self.state[slots] = FREE
        self.version[slots] += np.uint32(1)
        self._returned[self._num_returned : self._num_returned + len(slots)] = slots
        self._num_returned += len(slots)

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

    def runs(self, view: int, slots: Rows) -> Runs:
        """Return the runs of one view for `slots`, int64 ``[n]``."""
        kept = self._views[view]
        pieces: dict[int, Rows] = {}
        if kept.pieces:
            pieces = {at: kept.pieces[slot] for at, slot in enumerate(slots.tolist()) if slot in kept.pieces}
        return Runs(kept.first[slots], kept.length[slots].astype(np.int64), pieces)

    def by_layout(self, slots: Rows) -> list[tuple[int, NDArray[np.intp] | None]]:
        """Split `slots` by layout: pairs of layout id and positions; None means all of them."""
        ids = self.layout[slots]
        if len(ids) == 0:
            return []
        first = int(ids[0])
        if len(ids) == 1 or bool((ids == first).all()):
            return [(first, None)]
        return [(int(layout_id), np.flatnonzero(ids == layout_id)) for layout_id in np.unique(ids)]

    def episodes_of(self, slots: Rows) -> tuple[dict[int, int], int]:
        """Return how many of the items refer to each episode, and how many are an episode of their own."""
        if len(slots) == 1:  # np.unique would take a third of the time that a single insert takes
            slot = int(slots[0])
            episode = int(self.episode[slot])
            if episode == NO_EPISODE:
                return {}, 1
            return dict.fromkeys(range(episode, self.episode_spans.get(slot, episode) + 1), 1), 0
        episodes = self.episode[slots]
        counts: dict[int, int] = {}
        alone = 0
        for episode, count in zip(*(part.tolist() for part in np.unique(episodes, return_counts=True)), strict=True):
            if episode == NO_EPISODE:
                alone = count
            else:
                counts[episode] = count
        if self.episode_spans:
            for slot, episode in zip(slots.tolist(), episodes.tolist(), strict=True):
                for further in range(episode + 1, self.episode_spans.get(slot, episode) + 1):
                    counts[further] = counts.get(further, 0) + 1
        return counts, alone

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
