"""Pick slots by the height of their priority."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import ClassVar, TypeAlias

import numpy as np

from reverb_async.core.selectors.base import (
    Places,
    Priorities,
    Probabilities,
    Slots,
    check_capacity,
    check_finite,
    in_order_of,
    refuse_absent,
    refuse_empty,
    refuse_present,
)
from reverb_async.errors import InvalidArgument

_Entry: TypeAlias = tuple[float, int, int]  # rank (lowest first), stamp, slot
_Heap: TypeAlias = list[_Entry]

# A heap may hold this many outdated entries more than it has valid ones.
_SLACK = 65_536


@dataclass(frozen=True, slots=True)
class MinHeap:
    """The lowest priority first; of equal ones, the least recently inserted or updated."""

    is_deterministic: ClassVar[bool] = True

    def options(self) -> dict[str, object]:
        """Describe the selector in Reverb's words; `from_options` reads them back."""
        return {"heap": {"min_heap": True}, "is_deterministic": True}

    def check_priorities(self, priorities: Priorities) -> None:
        """Raise `InvalidArgument` unless all priorities are finite."""
        check_finite(priorities)

    def build(self, capacity: int) -> HeapState:
        """Return an empty state for slots below `capacity`."""
        return HeapState(capacity, highest_first=False)


@dataclass(frozen=True, slots=True)
class MaxHeap:
    """The highest priority first; of equal ones, the least recently inserted or updated."""

    is_deterministic: ClassVar[bool] = True

    def options(self) -> dict[str, object]:
        """Describe the selector in Reverb's words; `from_options` reads them back."""
        return {"heap": {"min_heap": False}, "is_deterministic": True}

    def check_priorities(self, priorities: Priorities) -> None:
        """Raise `InvalidArgument` unless all priorities are finite."""
        check_finite(priorities)

    def build(self, capacity: int) -> HeapState:
        """Return an empty state for slots below `capacity`."""
        return HeapState(capacity, highest_first=True)


class HeapState:
    """A binary heap of entries that are checked when they are read; a place is a stamp, which decides among equals.

    Every insert and update pushes an entry with a stamp never used before; the entry is valid as long as its slot has
    that stamp. (A restored slot may have two such entries, which are equal.) When too many are outdated, the heap is
    *retired*: a fresh one takes its place, and each later call moves a few valid entries over, so that no single call
    pays for the cleaning.
    """

    def __init__(self, capacity: int, *, highest_first: bool) -> None:
        self._capacity = check_capacity(capacity)
        self._sign = -1.0 if highest_first else 1.0
        self._size = 0
        self._next_stamp = 1
        self._stamps = np.zeros(capacity, np.int64)  # by slot; 0 is absent
        self._stamp_of = self._stamps.data  # the same memory, faster to read one by one
        self._heap: _Heap = []
        self._retired: list[_Heap] = []

    def __len__(self) -> int:
        return self._size

    def insert(self, slots: Slots, priorities: Priorities) -> None:
        """Add slots; see `SelectorState`."""
        self._refuse_present(slots)
        self._push_newest(slots, priorities)
        self._size += len(slots)

    def delete(self, slots: Slots) -> None:
        """Remove slots; see `SelectorState`."""
        self._require(slots)
        self._stamps[slots] = 0
        self._size -= len(slots)
        self._clean(len(slots))

    def update(self, slots: Slots, priorities: Priorities) -> None:
        """Give slots new priorities, which moves each behind its equals; see `SelectorState`."""
        self._require(slots)
        self._push_newest(slots, priorities)

    def clear(self) -> None:
        """Remove all slots; their entries are dismantled by later calls; see `SelectorState`."""
        self._stamps = np.zeros(self._capacity, np.int64)
        self._stamp_of = self._stamps.data
        self._size = 0
        self._retire(self._heap)
        self._heap = []

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Slots, Probabilities]:
        """Return the first slot `n` times, with probability 1; see `SelectorState`."""
        if not self._size:
            raise refuse_empty()
        return np.full(n, self.first(1)[0]), np.ones(n)

    def first(self, n: int) -> Slots:
        """Return the `n` slots that rank first, in order; O(n log size); see `SelectorState`."""
        count = min(n, self._size)
        if count == 1:
            return np.array([self._leading()[0][2]], np.int64)
        entries: _Heap = []
        while len(entries) < count:
            entry = heappop(self._leading())
            if not entries or entry != entries[-1]:
                entries.append(entry)
        # A sorted list is a heap. Mostly these slots are deleted next; then nothing of it needs to be moved back.
        self._retire(entries)
        return np.array([slot for _, _, slot in entries], np.int64)

    def place(self, slots: Slots) -> Places:
        """Return the stamp of each slot; see `SelectorState`."""
        self._require(slots)
        return self._stamps.take(slots)

    def restore(self, slots: Slots, priorities: Priorities, places: Places) -> None:
        """Add slots with the stamps they had; see `SelectorState`."""
        self._refuse_present(slots)
        if len(slots):
            self._next_stamp = max(self._next_stamp, int(places.max()) + 1)
        self._push(slots, priorities, places)
        self._size += len(slots)

    def peek(self, slots: Slots) -> Places:
        """Return the stamp of each slot, 0 for absent ones; see `SelectorState`."""
        return self._stamps.take(slots)

    def counters(self) -> dict[str, int]:
        """Return the next stamp; see `SelectorState`."""
        return {"next": self._next_stamp}

    def rebuild(self, slots: Slots, priorities: Priorities, places: Places, counters: Mapping[str, int]) -> None:
        """Give slots the stamps they had; see `SelectorState`."""
        order = in_order_of(places)
        if len(order) and places[order[0]] < 1:
            raise InvalidArgument(f"stamps begin with 1, a slot has {int(places[order[0]])}")
        self._stamps[slots] = places
        ranks = priorities * self._sign
        order = order[ranks[order].argsort(kind="stable")]
        ranks, stamps, slots = ranks[order], places[order], slots[order]
        self._heap = list(zip(ranks.tolist(), stamps.tolist(), slots.tolist(), strict=True))  # sorted, hence a heap
        self._size = len(slots)
        self._next_stamp = max(counters.get("next", 1), int(stamps.max(initial=0)) + 1)

    def watch(self, moving: Callable[[Slots], object]) -> None:
        """Do nothing: only slots that are named change their place; see `SelectorState`."""

    def _refuse_present(self, slots: Slots) -> None:
        stamps = self._stamps.take(slots)
        if stamps.any():
            raise refuse_present(slots, stamps > 0)

    def _require(self, slots: Slots) -> None:
        stamps = self._stamps.take(slots)
        if not stamps.all():
            raise refuse_absent(slots, stamps == 0)

    def _push_newest(self, slots: Slots, priorities: Priorities) -> None:
        end = self._next_stamp + len(slots)
        self._push(slots, priorities, np.arange(self._next_stamp, end))
        self._next_stamp = end

    def _push(self, slots: Slots, priorities: Priorities, stamps: Places) -> None:
        self._stamps[slots] = stamps
        self._push_all(zip((priorities * self._sign).tolist(), stamps.tolist(), slots.tolist(), strict=True))
        self._clean(len(slots))

    def _push_all(self, entries: Iterable[_Entry]) -> None:
        heap = self._heap
        for entry in entries:
            heappush(heap, entry)

    def _leading(self) -> _Heap:
        """Return the heap whose first entry ranks first; at least one slot must be present."""
        leading = self._drop_outdated(self._heap)
        for heap in self._retired:
            self._drop_outdated(heap)
            if heap and (not leading or heap[0] < leading[0]):
                leading = heap
        return leading

    def _drop_outdated(self, heap: _Heap) -> _Heap:
        """Remove outdated entries from the front of a heap."""
        stamp_of = self._stamp_of
        while heap and stamp_of[heap[0][2]] != heap[0][1]:
            heappop(heap)
        return heap

    def _clean(self, n: int) -> None:
        """Do a share of the cleaning that is due, in proportion to the `n` slots the caller was given."""
        if self._retired:
            retired, stamp_of = self._retired[-1], self._stamp_of
            share = retired[-2 * n - 64 :]
            del retired[-2 * n - 64 :]  # the front part of a heap is a heap
            self._push_all(entry for entry in share if stamp_of[entry[2]] == entry[1])
            if not retired:
                self._retired.pop()
        elif len(self._heap) > 2 * self._size + _SLACK:
            self._retire(self._heap)
            self._heap = []

    def _retire(self, heap: _Heap) -> None:
        self._retired = [other for other in self._retired if other]
        if heap:
            self._retired.append(heap)
