"""A table without waiting: items, selectors and rate limiter, changed in synchronous steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.changes import Change, ChangeKind, Listener
from reverb_async.core.draw import Draw, MutateResult
from reverb_async.core.episodes import EpisodeCounter
from reverb_async.core.item import ItemBlock
from reverb_async.core.key_index import Hashes, KeyIndex
from reverb_async.core.mutation import Mutation, occurrence, winners
from reverb_async.core.rate_limiters import RateLimiter, RateLimiterState
from reverb_async.core.recent_draws import RecentDraws
from reverb_async.core.runs import Rows, as_run
from reverb_async.core.selectors import Fifo, Lifo, Prioritized, Selector, Uniform
from reverb_async.core.slots import GONE, LIVE, OUT, Slots
from reverb_async.core.storage import Account
from reverb_async.errors import InvalidArgument

ITEM_BYTES = 128
"""About what an item takes beside its rows: its record, and its places in key index, sampler and remover."""

_SPARE_SLOTS = 65_536
"""Slots beyond twice `max_size`: room for a block before it evicts, and for items not acknowledged by learners."""


class TableState:
    """The items of one table.

    Every method runs to its end without waiting and leaves the state whole. Times, keys and random numbers are passed
    in.
    """

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
        self._sampler_kind = sampler
        self._remover_kind = remover
        # Prioritized selectors refuse all that others refuse, and those refuse the same.
        strict = {kind for kind in (sampler, remover) if isinstance(kind, Prioritized)}
        self._strict_kinds: tuple[Selector, ...] = tuple(strict) or (sampler,)
        self._rng = rng
        self._multiplier = int(rng.integers(2**63)) * 2 + 1
        self.listeners: list[Listener] = []
        self.memory = Account()
        """That of the server, while one serves the table."""
        self.generation = 0
        """Counts resets; what was drawn before one is void after it."""
        self._num_changes = 0
        self._detached: list[Slots] = []
        self._dismantled = 0
        self._start_empty()

    def _start_empty(self) -> None:
        capacity = 2 * self.max_size + _SPARE_SLOTS
        self.slots = Slots(capacity)
        self._counted_slots = 0
        self._index = KeyIndex(capacity, self.slots.key, self._multiplier)
        self._recent = RecentDraws(self.slots)
        self._sampler = self._sampler_kind.build(capacity)
        self._remover = self._remover_kind.build(capacity)
        self._ranked = [
            state
            for kind, state in ((self._sampler_kind, self._sampler), (self._remover_kind, self._remover))
            if not isinstance(kind, Uniform | Fifo | Lifo)  # to whom priorities mean nothing
        ]
        # Where sampled-out items stood in sampler and remover, so that they can return there.
        self._sampler_place = np.zeros(capacity, np.int64)
        self._remover_place = np.zeros(capacity, np.int64)
        self.size = 0
        self.nbytes = 0
        self.num_unique_samples = 0
        self.episodes = EpisodeCounter()
        self._highest_priority = -np.inf

    # -- inserting ----------------------------------------------------------------------------------------------------

    def check_insert(self, block: ItemBlock) -> None:
        """Refuse a block that can never enter this table; changes nothing.

        Raises:
            InvalidArgument: a priority the selectors refuse, or an item larger than `max_bytes`.
        """
        given = block.priorities
        if len(given) and math.isnan(_extreme(given, np.minimum)):
            given = given[~np.isnan(given)]
        self.check_priorities(given)
        if self.max_bytes is not None and len(block) and int(block.nbytes.max()) > self.max_bytes:
            raise InvalidArgument(
                f"an item shows {int(block.nbytes.max())} bytes, the whole table may hold max_bytes={self.max_bytes}"
            )

    def check_priorities(self, priorities: NDArray[np.float64]) -> None:
        """Raise `InvalidArgument` for priorities that sampler or remover refuse."""
        for kind in self._strict_kinds:
            kind.check_priorities(priorities)

    @property
    def max_insert(self) -> int:
        """How many items one step should insert at most, so that it stays short."""
        return 65_536 if self._remover_kind.is_deterministic else 1_024

    def admitted_inserts(self, n: int) -> int:
        """Return how many of `n` inserts in a row the rate limiter, memory, and room for items in flight admit now."""
        if self.memory.used > self.memory.grow_below and not self.replaces_items:
            self.memory.is_waited_for = True
            return 0
        return min(self.limiter.admitted_inserts(n), self.slots.num_free)

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

    def count_in(self, account: Account) -> None:
        """Count what items take beside their rows in another account from now on."""
        self.memory.give_back(self._counted_slots * ITEM_BYTES)
        self.memory = account
        account.used += self._counted_slots * ITEM_BYTES

    def insert(self, block: ItemBlock, now: float) -> None:
        """Insert a block that was checked and admitted; known keys only take the new priority."""
        keys = block.keys
        hashes = self._index.hash(keys)
        known = self._index.find(keys, hashes)
        fresh = _extreme(known, np.maximum) < 0
        if fresh and len(keys) > 1 and not bool((keys[1:] > keys[:-1]).all()):
            fresh = len(np.unique(keys)) == len(keys)
        if not fresh and len(keys) > 1:
            for at in range(len(keys)):
                self.insert(block.part(at, at + 1), now)
            return
        priorities = self._fill_priorities(block.priorities)
        if not fresh:
            self._set_priorities(known, priorities)
            return
        together = self._count_together(block)
        if together:
            self._add(block.part(0, together), priorities[:together], now, hashes if together == len(block) else None)
            self._make_room()
        for at in range(together, len(block)):
            self._add(block.part(at, at + 1), priorities[at : at + 1], now)
            self._make_room()

    def _count_together(self, block: ItemBlock) -> int:
        """Return how many items of a block can enter before the first eviction, and the table end as if one by one.

        Random removers choose each victim among the items present at that moment. Fifo leaves the newest items that fit
        in any case; other orders leave those that rank last if every item counts the same, as it does without
        `max_bytes`: there, a large one that leaves at once makes room for small ones after it.
        """
        if self.max_bytes is not None and self.nbytes + int(block.nbytes.sum()) > self.max_bytes:
            return len(block) if isinstance(self._remover_kind, Fifo) else 0
        if self._remover_kind.is_deterministic:
            return len(block)
        return max(0, min(len(block), self.max_size - self.size))

    def _make_room(self) -> None:
        self._evict(self.size - self.max_size)
        if self.max_bytes is not None:
            while self.nbytes > self.max_bytes:
                self._evict(1)

    def _fill_priorities(self, priorities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Replace NaN by the highest priority at that moment: Schaul et al., 2016, arXiv:1511.05952, section 3.3."""
        if self.size == 0:
            self._highest_priority = -np.inf
        highest = _extreme(priorities, np.maximum)
        if not math.isnan(highest):
            self._highest_priority = max(self._highest_priority, highest)
            return priorities
        asked = np.isnan(priorities)
        given = np.where(asked, -np.inf, priorities)
        given[0] = max(given[0], self._highest_priority) if asked[0] else given[0]
        if given[0] == -np.inf:
            given[0] = 1.0
        running = np.maximum(np.maximum.accumulate(given), self._highest_priority)
        self._highest_priority = float(running[-1])
        return np.where(asked, running, priorities)

    def _add(self, block: ItemBlock, priorities: NDArray[np.float64], now: float, hashes: Hashes = None) -> None:
        slots = self.slots.put(block, priorities, now)
        if self.slots.high_water != self._counted_slots:
            self.memory.used += (self.slots.high_water - self._counted_slots) * ITEM_BYTES
            self._counted_slots = self.slots.high_water
        self._index.insert(block.keys, slots, hashes)
        self._sampler.insert(slots, priorities)
        self._remover.insert(slots, priorities)
        self.size += len(slots)
        self.nbytes += _total(block.nbytes)
        self.episodes.add(*(({}, len(slots)) if block.episodes is None else self.slots.episodes_of(slots)))
        self.limiter.count_inserts(len(slots))
        self._emit(ChangeKind.INSERT, slots, priorities)

    def _evict(self, count: int) -> None:
        if count <= 0:
            return
        if self._remover_kind.is_deterministic:
            self._remove(self._remover.first(count), ChangeKind.EVICT)
        else:
            for _ in range(count):
                self._remove(self._remover.sample(1, self._rng)[0], ChangeKind.EVICT)

    # -- sampling -----------------------------------------------------------------------------------------------------

    def admitted_samples(self, n: int) -> int:
        """Return how many of `n` samples the rate limiter admits now, if none of them removes its item."""
        return self.limiter.admitted_samples(n)

    def reserve_samples(self, n: int) -> None:
        """Count `n` admitted samples that `draw` makes later."""
        self.limiter.count_samples(n)

    def return_samples(self, n: int) -> None:
        """Take back what `reserve_samples` counted."""
        self.limiter.count_samples(-n)

    def draw(self, n: int, *, reserved: int = 0) -> Draw:
        """Draw up to `n` admitted items, fewer only if `max_times_sampled` empties the table below its minimum size.

        Args:
            n: how many; at most what `admitted_samples` allows on top of `reserved`.
            reserved: how many of them `reserve_samples` has counted before.
        """
        if self.max_times_sampled < 1:
            slots, probabilities = self._sampler.sample(n, self._rng)
            draw = self._record(slots, probabilities, np.full(n, self.size))
        elif self._sampler_kind.is_deterministic:
            draw = self._draw_in_order(n)
        else:
            draw = self._draw_until_exhausted(n)
        self.limiter.count_samples(len(draw) - reserved)
        return draw

    def _draw_in_order(self, n: int) -> Draw:
        """A deterministic sampler repeats its head until that is used up: whole stretches of its order are known."""
        heads = self._sampler.first(n)
        left = self.max_times_sampled - self.slots.times_sampled[heads].astype(np.int64)
        slots = np.repeat(heads, left)[:n]
        used_up = np.cumsum(left)
        gone_before = np.searchsorted(used_up, np.arange(len(slots)), side="right")
        sizes = self.size - gone_before
        slots = slots[sizes >= self.limiter.limiter.min_size_to_sample]
        draw = self._record(slots, np.ones(len(slots)), sizes[: len(slots)])
        self._sample_out(heads[: np.searchsorted(used_up, len(slots), side="right")])
        return draw

    def _draw_until_exhausted(self, n: int) -> Draw:
        """Draw with replacement up to the first item that is used up, remove it, go on: as drawing one by one does."""
        draws: list[Draw] = []
        ahead = 1
        while n and self.size >= self.limiter.limiter.min_size_to_sample:
            slots, probabilities = self._sampler.sample(min(n, ahead), self._rng)
            times = self.slots.times_sampled[slots] + occurrence(slots)
            used_up = np.flatnonzero(times >= self.max_times_sampled)
            count = int(used_up[0]) + 1 if len(used_up) else len(slots)
            ahead = 2 * count  # As far ahead as lately went well: what lies behind a used-up item is drawn in vain.
            draws.append(self._record(slots[:count], probabilities[:count], np.full(count, self.size)))
            if len(used_up):
                self._sample_out(slots[count - 1 : count])
            n -= count
        return Draw.join(draws)

    def _record(self, slots: Rows, probabilities: NDArray[np.float64], sizes: NDArray[np.int64]) -> Draw:
        """Count the draws and note what their callers are told."""
        items = self.slots
        seen = items.read(slots)
        occurrences = occurrence(slots)
        times = seen["times_sampled"] + occurrences
        keys = seen["key"].copy()
        self._recent.note(keys, slots, is_distinct=not occurrences.shape)
        items.times_sampled[slots] = times  # the last of duplicates is the highest, and is what stays
        self.num_unique_samples += len(times) - int(
            times.item(0) > 1 if len(times) == 1 else np.count_nonzero(times - 1)
        )
        if self.max_times_sampled >= 1:
            np.add.at(items.unsettled, slots, np.int32(1))
        return Draw(
            self.generation,
            slots,
            keys,
            probabilities,
            seen["priority"].copy(),
            times,
            sizes,
            seen["inserted_at"].copy(),
            seen["version"].copy(),
        )

    def _sample_out(self, slots: Rows) -> None:
        """Remove used-up items; their slots and rows stay until the draw is acknowledged."""
        if not len(slots):
            return
        self._sampler_place[slots] = self._sampler.place(slots)
        self._remover_place[slots] = self._remover.place(slots)
        self._detach(slots, ChangeKind.SAMPLE_OUT)
        self.slots.state[slots] = OUT

    def acknowledge(self, draw: Draw) -> None:
        """The caller has the items: sampled-out ones are gone for good once no other draw may hand them back."""
        if draw.generation == self.generation and self.max_times_sampled >= 1:
            self._settle(draw.slots)

    def _settle(self, slots: Rows) -> None:
        """Note that draws of these slots are settled; free those that held on to nothing else."""
        items = self.slots
        np.subtract.at(items.unsettled, slots, np.int32(1))
        slots = np.unique(slots[(items.state[slots] != LIVE) & (items.unsettled[slots] == 0)])
        if len(slots):
            items.free(slots)

    def hand_back(self, draw: Draw) -> None:
        """Undo a draw: limiter and item counts, and used-up items return to their old place. Void after a reset."""
        if draw.generation != self.generation:
            return
        self.limiter.count_samples(-len(draw))
        items = self.slots
        slots = draw.slots[(items.version[draw.slots] == draw.versions) & (items.state[draw.slots] != GONE)]
        np.subtract.at(items.times_sampled, slots, np.int32(1))
        self.num_unique_samples -= int(np.count_nonzero(items.times_sampled[np.unique(slots)] == 0))
        if self.max_times_sampled >= 1:
            self._return(slots[items.state[slots] == OUT])
            self._settle(draw.slots)

    def _return(self, out: Rows) -> None:
        """Put sampled-out items, in draw order, back in the table; not those whose keys were inserted anew since."""
        if not len(out):
            return
        items = self.slots
        items.state[out] = GONE
        latest = out[::-1]  # Of two items with one key, the newer was drawn later.
        back = latest[np.unique(items.key[latest], return_index=True)[1]]
        back = back[self._index.find(items.key[back]) < 0]
        if not len(back):
            return
        items.state[back] = LIVE
        self._index.insert(items.key[back], back)
        self._sampler.restore(back, items.priority[back], self._sampler_place[back])
        self._remover.restore(back, items.priority[back], self._remover_place[back])
        self.size += len(back)
        self.nbytes += int(items.nbytes[back].sum())
        self.episodes.undelete(*items.episodes_of(back))
        self.limiter.count_deletes(-len(back))
        self._emit(ChangeKind.HAND_BACK, back, items.priority[back])

    # -- changing -----------------------------------------------------------------------------------------------------

    def mutate(
        self, keys: NDArray[np.uint64], priorities: NDArray[np.float64], deletes: NDArray[np.uint64]
    ) -> MutateResult:
        """Set priorities, then delete; the last of duplicate keys wins, unknown keys are counted.

        Raises:
            InvalidArgument: a priority the selectors refuse; nothing was changed.
        """
        result = self.mutate_all([Mutation(keys, priorities, deletes)])[0]
        if isinstance(result, InvalidArgument):
            raise result
        return result

    def mutate_all(self, calls: Iterable[Mutation]) -> list[MutateResult | InvalidArgument]:
        """Do what `mutate` does for one call after the other, in as few vector operations as possible.

        A call that is refused harms no other. Calls that only set priorities make one change record together.
        """
        results: list[MutateResult | InvalidArgument] = []
        together: list[Mutation] = []
        for call in calls:
            try:
                self.check_priorities(call.priorities)
            except InvalidArgument as refusal:
                results.extend(self._mutate(together))
                together = []
                results.append(refusal)
                continue
            together.append(call)
            if len(call.deletes):
                results.extend(self._mutate(together))
                together = []
        results.extend(self._mutate(together))
        return results

    def _mutate(self, calls: list[Mutation]) -> list[MutateResult]:
        """Apply checked calls of which only the last may delete."""
        if not calls:
            return []
        keys, priorities = calls[0].keys, calls[0].priorities
        if len(calls) > 1:
            keys = np.concatenate([call.keys for call in calls])
            priorities = np.concatenate([call.priorities for call in calls])
        recent = self._recent.find(keys)
        if recent is not None and recent[1] and len(calls) == 1 and not len(calls[0].deletes):
            self._set_priorities(recent[0], priorities)
            return [MutateResult(len(keys), 0, 0)]
        slots = self._index.find(keys) if recent is None else recent[0]
        if len(calls) == 1:
            of_call = np.zeros(len(keys), np.int64)
        else:
            of_call = np.repeat(np.arange(len(calls)), [len(call.keys) for call in calls])
        unknown: dict[int, NDArray[np.uint64]] = {}
        if np.count_nonzero(known := slots >= 0) < len(slots):
            missing = np.bincount(of_call[~known], minlength=len(calls))
            parts = np.split(keys[~known], np.cumsum(missing)[:-1])
            unknown = {at: parts[at] for at in missing.nonzero()[0].tolist()}
            slots, priorities, of_call = slots[known], priorities[known], of_call[known]
        last, last_in_call = winners(slots, of_call)
        if last is not None and last_in_call is not None:
            # Also what a later call overwrites counts for the highest priority so far.
            self._highest_priority = max(self._highest_priority, float(priorities[last_in_call].max()))
            of_call = of_call[last_in_call]
            slots, priorities = slots[last], priorities[last]
        updated = [len(slots)] if len(calls) == 1 else np.bincount(of_call, minlength=len(calls)).tolist()
        self._set_priorities(slots, priorities)
        deleted = 0
        deletes = calls[-1].deletes
        if len(deletes):
            slots = self._index.find(deletes)
            strange = deletes[slots < 0]
            if len(strange):
                unknown[len(calls) - 1] = np.concatenate([unknown.get(len(calls) - 1, strange[:0]), strange])
            slots = np.unique(slots[slots >= 0])
            deleted = len(slots)
            self._remove(slots, ChangeKind.DELETE)
        results = [
            MutateResult(count, 0, len(np.unique(unknown[at])) if at in unknown else 0)
            for at, count in enumerate(updated)
        ]
        if deleted:
            results[-1] = MutateResult(updated[-1], deleted, results[-1].unknown)
        return results

    def _set_priorities(self, slots: Rows, priorities: NDArray[np.float64]) -> None:
        if not len(slots):
            return
        self.slots.priority[slots] = priorities
        for selector in self._ranked:
            selector.update(slots, priorities)
        self._highest_priority = max(self._highest_priority, _extreme(priorities, np.maximum))
        self._emit(ChangeKind.UPDATE, slots, priorities)

    def _detach(self, slots: Rows, kind: ChangeKind) -> None:
        self._index.delete(self.slots.key[slots], slots)
        self._recent.num_detached += 1
        self._sampler.delete(slots)
        self._remover.delete(slots)
        self.size -= len(slots)
        self.nbytes -= _total(self.slots.nbytes[as_run(slots) or slots])
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
        self.memory.give_back(self._counted_slots * ITEM_BYTES)
        self.generation += 1
        self._start_empty()
        self.limiter.reset()
        self._emit(ChangeKind.RESET, np.zeros(0, np.int64), None)

    def dismantle(self, max_slots: int = 65_536) -> bool:
        """Give back part of what resets left behind; return whether more remains."""
        if not self._detached:
            return False
        slots = self._detached[0]
        stop = min(self._dismantled + max_slots, slots.high_water)
        slots.dismantle(self._dismantled, stop)
        self._dismantled = stop
        if stop == slots.high_water:
            self._detached.pop(0)
            self._dismantled = 0
        return bool(self._detached)

    def find(self, keys: NDArray[np.uint64]) -> Rows:
        """Return the slots of `keys`, int64 ``[n]``; -1 where the table has no such item."""
        return self._index.find(keys)

    def oldest_inserted_at(self) -> float | None:
        """Return when the oldest item was inserted, None without items; O(items) unless a selector knows the order."""
        if not self.size:
            return None
        for kind, state in ((self._remover_kind, self._remover), (self._sampler_kind, self._sampler)):
            if isinstance(kind, Fifo):
                return float(self.slots.inserted_at[state.first(1)[0]])
        return float(self.slots.inserted_at[self.live_slots()].min())

    def live_slots(self) -> Rows:
        """Return the slots of all items, int64 ``[size]``; O(`max_size`)."""
        return np.flatnonzero(self.slots.state[: self.slots.high_water] == LIVE)

    def _emit(self, kind: ChangeKind, slots: Rows, priorities: NDArray[np.float64] | None) -> None:
        self._num_changes += 1
        if self.listeners:
            change = Change(self._num_changes, kind, self.slots.key[slots], slots, priorities)
            for listener in self.listeners:
                listener(change)


def _extreme(values: NDArray[Any], which: np.ufunc) -> float:
    """Return the least or greatest value, NaN if there is any; a single item needs no vector operation."""
    return values.item(0) if len(values) == 1 else which.reduce(values).item()  # type: ignore[no-any-return]


def _total(values: NDArray[np.int64]) -> int:
    return values.item(0) if len(values) == 1 else int(values.sum())
