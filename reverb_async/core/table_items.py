"""What a table holds: items, their order in sampler and remover, and counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.changes import Change, ChangeKind, Listener
from reverb_async.core.cut.free_slots import FreeSlotsCut
from reverb_async.core.cut.plain import counts_of
from reverb_async.core.cut.slot_reader import SlotReader
from reverb_async.core.cut.slot_watch import SlotWatch
from reverb_async.core.cut.table_cut import TableCut
from reverb_async.core.cut.table_log import TableLog
from reverb_async.core.episodes import EpisodeCounter
from reverb_async.core.key_index import KeyIndex
from reverb_async.core.rate_limiters import RateLimiter, RateLimiterState
from reverb_async.core.recent_draws import RecentDraws
from reverb_async.core.runs import Rows, as_run
from reverb_async.core.selectors import Fifo, Lifo, Prioritized, Selector, Uniform
from reverb_async.core.slots import GONE, LIVE, Slots
from reverb_async.core.storage import Account, RowStore

ITEM_BYTES = 128
"""About what an item takes beside its rows: its record, and its places in key index, sampler and remover."""

_SPARE_SLOTS = 65_536
"""Slots beyond twice `max_size`: room for a block before it evicts, and for items not acknowledged by learners."""


class TableItems:
    """The items of one table, and how they leave it; see `TableState`."""

    def __init__(
        self,
        *,
        max_size: int,
        sampler: Selector,
        remover: Selector,
        rate_limiter: RateLimiter,
        max_times_sampled: int,
        max_bytes: int | None,
        rng: np.random.Generator,
    ) -> None:
        self.max_size = max_size
        self.max_times_sampled = max_times_sampled
        self.max_bytes = max_bytes
        self.limiter = RateLimiterState(rate_limiter)
        self.sampler_kind = sampler
        self.remover_kind = remover
        # Prioritized selectors refuse all that others refuse, and those refuse the same.
        strict = {kind for kind in (sampler, remover) if isinstance(kind, Prioritized)}
        self._strict_kinds: tuple[Selector, ...] = tuple(strict) or (sampler,)
        self.rng = rng
        self._multiplier = int(rng.integers(2**63)) * 2 + 1
        self.listeners: list[Listener] = []
        self.memory = Account()
        """That of the server, while one serves the table."""
        self.generation = 0
        """Counts resets; what was drawn before one is void after it."""
        self.num_changes = 0
        self.log: TableLog | None = None
        """Collects what a log must have, if there is one."""
        self._detached: list[Slots] = []
        self._dismantled = 0
        self._start_empty()

    def _start_empty(self, capacity: int = 0) -> None:
        capacity = max(capacity, 2 * self.max_size + _SPARE_SLOTS)
        self.slots = Slots(capacity)
        self._counted_slots = 0
        self.index = KeyIndex(capacity, self.slots.key, self._multiplier)
        self._recent = RecentDraws(self.slots)
        self.sampler = self.sampler_kind.build(capacity)
        self.remover = self.remover_kind.build(capacity)
        self._ranked = [
            state
            for kind, state in ((self.sampler_kind, self.sampler), (self.remover_kind, self.remover))
            if not isinstance(kind, Uniform | Fifo | Lifo)  # to whom priorities mean nothing
        ]
        # Where sampled-out items stood in sampler and remover, so that they can return there.
        self.sampler_place = np.zeros(capacity, np.int64)
        self.remover_place = np.zeros(capacity, np.int64)
        self.size = 0
        self.nbytes = 0
        self.num_unique_samples = 0
        self.num_unsettled = 0
        """Draws neither acknowledged nor handed back, where sampling removes items."""
        self.num_reserved = 0
        self.episodes = EpisodeCounter()
        self.highest_priority = -np.inf

    def note_unsaved(self, slots: Rows) -> None:
        """Note that the last committed cut does not have `slots` as they are; the table is watched."""
        assert self.slots.watch is not None
        self.slots.watch.dirty[slots] = True

    @property
    def replaces_items(self) -> bool:
        """Whether the next insert makes another item leave."""
        if self.size >= self.max_size:
            return True
        # An item is as large as others are.
        return self.max_bytes is not None and self.nbytes * (self.size + 1) > self.max_bytes * self.size > 0

    @property
    def waits_for_memory(self) -> bool:
        """Whether the next insert has nothing to wait for but memory."""
        return (
            self.memory.used > self.memory.grow_below
            and not self.replaces_items
            and min(self.limiter.admitted_inserts(1), self.slots.num_free) > 0
        )

    def _count_slots(self) -> None:
        """Count what more slots are used than ever before."""
        self.memory.used += (self.slots.high_water - self._counted_slots) * ITEM_BYTES
        self._counted_slots = self.slots.high_water

    def count_in(self, account: Account) -> None:
        """Count what items take beside their rows in another account from now on."""
        self._count_slots()
        self.memory.give_back(self._counted_slots * ITEM_BYTES)
        self.memory = account
        account.used += self._counted_slots * ITEM_BYTES

    def _touch(self, slots: Rows) -> None:
        """Anything about `slots` is going to change."""
        if self.slots.watch is not None:
            self.slots.watch.touch(slots)

    def _detach(self, slots: Rows, kind: ChangeKind) -> None:
        self._touch(slots)
        self.index.delete(self.slots.key[slots], slots)
        self._recent.num_detached += 1
        self.sampler.delete(slots)
        self.remover.delete(slots)
        self.size -= len(slots)
        self.nbytes -= total(self.slots.nbytes[as_run(slots) or slots])
        self.episodes.delete(*self.slots.episodes_of(slots))
        self.limiter.count_deletes(len(slots))
        self._emit(kind, slots, None)

    def _remove(self, slots: Rows, kind: ChangeKind) -> None:
        if len(slots):
            self._detach(slots, kind)
            if self.max_times_sampled >= 1:
                unsettled = self.slots.unsettled[slots] > 0
                self.slots.state[slots[unsettled]] = GONE
                slots = slots[~unsettled]
            self.slots.free(slots)

    def reset(self) -> None:
        """Forget all items and counts in O(1); `dismantle` gives their memory back, a slice at a time."""
        self._detached.append(self.slots)
        if self.slots.watch is not None:
            self.slots.watch.log = None
        self.memory.give_back(self._counted_slots * ITEM_BYTES)
        self.generation += 1
        self._start_empty()
        if self.log is not None:
            self.log.note_reset()
            self.watch()
        self.limiter.reset()
        self._emit(ChangeKind.RESET, np.zeros(0, np.int64), None)

    def dismantle(self, max_slots: int = 65_536) -> bool:
        """Give back part of what resets left behind; return whether more remains."""
        if not self._detached:
            return False
        slots = self._detached[0]
        if slots.watch is not None and slots.watch.cut is not None:  # which costs ten times as much
            max_slots = min(max_slots, 8_192)
        stop = min(self._dismantled + max_slots, slots.high_water)
        slots.dismantle(self._dismantled, stop)
        self._dismantled = stop
        if stop == slots.high_water:
            self._detached.pop(0)
            self._dismantled = 0
        return bool(self._detached)

    def watch(self, *, is_saved: bool = False) -> None:
        """Note from now on which slots change, so that cuts need not save all of them.

        Args:
            is_saved: what the table holds now is saved already.
        """
        watch = self.slots.watch = SlotWatch(self.slots.capacity)
        watch.is_saved = is_saved
        watch.log = self.log
        for selector in (self.sampler, self.remover):
            selector.watch(watch.touch)

    def cut(
        self, *, full: bool, stores: Mapping[RowStore, int], definition: Mapping[str, object] | None = None
    ) -> TableCut:
        """Return what the table holds now, to be read in slices; O(layouts). The last cut must be finished.

        Draws neither acknowledged nor handed back are saved as what is handed back when the table is restored.

        Args:
            full: save all items, not only those that changed since the last committed cut.
            stores: the number of each store that items of the table may have rows of.
            definition: what is told of the table; ``sampler`` and ``remover`` must be their options.
        """
        if self.slots.watch is None:  # this is the first cut, or the first after a reset
            self.watch()
        watch = self.slots.watch
        assert watch is not None
        reader = SlotReader(self.slots, self.sampler, self.remover, self.sampler_place, self.remover_place)
        needs_order = any(isinstance(kind, Prioritized) for kind in (self.sampler_kind, self.remover_kind))
        free = FreeSlotsCut(self.slots) if needs_order else None
        describe = counts_of(self, stores, definition or self._own_definition())
        return TableCut(watch, reader, describe, full=full, free=free)

    def _own_definition(self) -> dict[str, object]:
        return {"sampler": self.sampler_kind.options(), "remover": self.remover_kind.options()}

    def start_restoring(self, high_water: int) -> None:
        """Make room for slots below `high_water`, which a table with a larger `max_size` may have used."""
        self._start_empty(high_water)

    def adopt(self, live: Rows) -> None:
        """Count the items in these slots as the table's."""
        slots = self.slots
        self._count_slots()
        self.size = len(live)
        self.nbytes = int(slots.nbytes[live].sum())
        self.episodes.add(*slots.episodes_of(live))

    def find(self, keys: NDArray[np.uint64]) -> Rows:
        """Return the slots of `keys`, int64 ``[n]``; -1 where the table has no such item."""
        return self.index.find(keys)

    def oldest_inserted_at(self) -> float | None:
        """Return when the oldest item was inserted, None without items; O(items) unless a selector knows the order."""
        if not self.size:
            return None
        for kind, state in ((self.remover_kind, self.remover), (self.sampler_kind, self.sampler)):
            if isinstance(kind, Fifo):
                return float(self.slots.inserted_at[state.first(1)[0]])
        return float(self.slots.inserted_at[self.live_slots()].min())

    def live_slots(self) -> Rows:
        """Return the slots of all items, int64 ``[size]``; O(`max_size`)."""
        return np.flatnonzero(self.slots.state[: self.slots.high_water] == LIVE)

    def _emit(self, kind: ChangeKind, slots: Rows, priorities: NDArray[np.float64] | None) -> None:
        self.num_changes += 1
        if self.listeners:
            change = Change(self.num_changes, kind, self.slots.key[slots], slots, priorities)
            for listener in self.listeners:
                listener(change)


def total(values: NDArray[np.int64]) -> int:
    """Return the sum; a single item needs no vector operation."""
    return values.item(0) if len(values) == 1 else int(values.sum())
