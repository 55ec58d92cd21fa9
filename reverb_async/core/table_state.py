"""A table without waiting: items, selectors and rate limiter, changed in synchronous steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.changes import ChangeKind
from reverb_async.core.draw import MutateResult
from reverb_async.core.item import ItemBlock
from reverb_async.core.key_index import Hashes
from reverb_async.core.mutation import Mutation, winners
from reverb_async.core.runs import Rows
from reverb_async.core.selectors import Fifo
from reverb_async.core.table_draws import TableDraws
from reverb_async.core.table_items import total
from reverb_async.errors import InvalidArgument


class TableState(TableDraws):
    """The items of one table.

    Every method runs to its end without waiting and leaves the state whole. Times, keys and random numbers are passed
    in.
    """

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
        return 65_536 if self.remover_kind.is_deterministic else 1_024

    def admitted_inserts(self, n: int) -> int:
        """Return how many of `n` inserts in a row the rate limiter, memory, and room for items in flight admit now."""
        if self.memory.used > self.memory.grow_below and not self.replaces_items:
            self.memory.is_waited_for = True
            return 0
        return min(self.limiter.admitted_inserts(n), self.slots.num_free)

    def insert(self, block: ItemBlock, now: float) -> None:
        """Insert a block that was checked and admitted; known keys only take the new priority."""
        keys = block.keys
        hashes = self.index.hash(keys)
        known = self.index.find(keys, hashes)
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
            return len(block) if isinstance(self.remover_kind, Fifo) else 0
        if self.remover_kind.is_deterministic:
            return len(block)
        return max(0, min(len(block), self.max_size - self.size))

    def settle_restored(self, *, make_room: bool) -> None:
        """Undo draws that nobody will acknowledge, and let go of what the table's definition does not admit.

        Args:
            make_room: evict down to `max_size` and `max_bytes`. A table of the saved definition that holds more does so
                because items were handed back, and waits for the next insert as ever.
        """
        self.hand_back_all()
        if self.max_times_sampled >= 1:
            live = self.live_slots()
            self._remove(live[self.slots.times_sampled[live] >= self.max_times_sampled], ChangeKind.SAMPLE_OUT)
        if make_room:
            self._make_room()

    def _make_room(self) -> None:
        self._evict(self.size - self.max_size)
        if self.max_bytes is not None:
            while self.nbytes > self.max_bytes:
                self._evict(1)

    def _fill_priorities(self, priorities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Replace NaN by the highest priority at that moment: Schaul et al., 2016, arXiv:1511.05952, section 3.3."""
        if self.size == 0:
            self.highest_priority = -np.inf
        highest = _extreme(priorities, np.maximum)
        if not math.isnan(highest):
            self.highest_priority = max(self.highest_priority, highest)
            return priorities
        asked = np.isnan(priorities)
        given = np.where(asked, -np.inf, priorities)
        given[0] = max(given[0], self.highest_priority) if asked[0] else given[0]
        if given[0] == -np.inf:
            given[0] = 1.0
        running = np.maximum(np.maximum.accumulate(given), self.highest_priority)
        self.highest_priority = float(running[-1])
        return np.where(asked, running, priorities)

    def _add(self, block: ItemBlock, priorities: NDArray[np.float64], now: float, hashes: Hashes = None) -> None:
        slots = self.slots.put(block, priorities, now)
        if self.slots.high_water != self._counted_slots:
            self._count_slots()
        self.index.insert(block.keys, slots, hashes)
        self.sampler.insert(slots, priorities)
        self.remover.insert(slots, priorities)
        self.size += len(slots)
        self.nbytes += total(block.nbytes)
        self.episodes.add(*(({}, len(slots)) if block.episodes is None else self.slots.episodes_of(slots)))
        self.limiter.count_inserts(len(slots))
        self._emit(ChangeKind.INSERT, slots, priorities)

    def _evict(self, count: int) -> None:
        if count <= 0:
            return
        if self.remover_kind.is_deterministic:
            self._remove(self.remover.first(count), ChangeKind.EVICT)
        else:
            for _ in range(count):
                self._remove(self.remover.sample(1, self.rng)[0], ChangeKind.EVICT)

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
        slots = self.index.find(keys) if recent is None else recent[0]
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
            self.highest_priority = max(self.highest_priority, float(priorities[last_in_call].max()))
            of_call = of_call[last_in_call]
            slots, priorities = slots[last], priorities[last]
        updated = [len(slots)] if len(calls) == 1 else np.bincount(of_call, minlength=len(calls)).tolist()
        self._set_priorities(slots, priorities)
        deleted = 0
        deletes = calls[-1].deletes
        if len(deletes):
            slots = self.index.find(deletes)
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
        self._touch(slots)
        self.slots.priority[slots] = priorities
        for selector in self._ranked:
            selector.update(slots, priorities)
        self.highest_priority = max(self.highest_priority, _extreme(priorities, np.maximum))
        self._emit(ChangeKind.UPDATE, slots, priorities)


def _extreme(values: NDArray[Any], which: np.ufunc) -> float:
    """Return the least or greatest value, NaN if there is any; a single item needs no vector operation."""
    return values.item(0) if len(values) == 1 else which.reduce(values).item()  # type: ignore[no-any-return]
