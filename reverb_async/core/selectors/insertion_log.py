"""The order in which slots were inserted, kept in chunks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.selectors.base import check_capacity

_CHUNK = 4096

# A chunk is rewritten without its dead entries once fewer than one in this many is alive.
_SPARSE = 8

# How many entries more than wanted are read at first, in case some are dead.
_SPARE = 64


class InsertionLog:
    """Slots in insertion order, each insertion having a number that is never used again.

    The number each slot has now decides: removing a slot only forgets its number, and what the chunks still say about
    it is *dead*. A chunk covers the numbers from its start to the start of the next chunk. In a *numbered* chunk, entry
    i stands for number ``start + i``; a *compact* one holds its slots in the order of their numbers and lost the rest.
    Chunks become compact, are joined and are dropped one at a time as their slots go away: no operation ever walks the
    whole log, and it holds at most about `_SPARSE` entries (int32) per slot, however old the oldest slot is. The last
    chunk, the *tail*, is always numbered; all insertions go there.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = check_capacity(capacity)
        self._next = 0
        self.clear()

    def clear(self) -> None:
        """Forget all slots; numbers go on."""
        self.size = 0
        self._numbers = np.zeros(self._capacity, np.int64)  # by slot, plus one: 0 is absent
        # Chunk by chunk: entries, first number covered, entries alive, entries written (meaningless for the tail).
        self._chunks: list[NDArray[np.int32]] = [np.empty(_CHUNK, np.int32)]
        self._is_numbered = [True]
        self._starts = np.array([self._next])
        self._alive = np.array([0])
        self._written = np.array([0])
        # No slot has a number below the first or from the second on.
        self._lowest, self._highest = self._next, self._next

    def contains(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which slots are in the log."""
        return self._numbers.take(slots) > 0

    def numbers(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the insertion numbers of slots, -1 for those not in the log."""
        return self._numbers.take(slots) - 1

    @property
    def next_number(self) -> int:
        """The number of the next insertion."""
        return self._next

    def skip_to(self, number: int) -> None:
        """Let the next insertion have this number, if it is not lower than it would have."""
        if number > self._next:
            self._start_tail(number)
            self._highest = number

    def append(self, slots: NDArray[np.int64]) -> None:
        """Insert slots that are not in the log; the last one becomes the newest."""
        n, done = len(slots), 0
        if n == 1:
            self._numbers[slots[0]] = self._next + 1
        else:
            self._numbers[slots] = np.arange(self._next + 1, self._next + n + 1)
        while done < n:
            used = self._next - int(self._starts[-1])
            if used == _CHUNK:
                self._start_tail(self._next)
                used = 0
            count = min(_CHUNK - used, n - done)
            self._chunks[-1][used : used + count] = slots[done : done + count]
            self._alive[-1] += count
            self._next += count
            done += count
        self.size += n
        self._highest = self._next

    def remove(self, slots: NDArray[np.int64]) -> None:
        """Remove slots that are in the log."""
        numbers = self._numbers.take(slots) - 1
        self._numbers[slots] = 0
        self.size -= len(slots)
        if not len(slots):
            return
        if len(slots) == 1:
            low = high = self._chunk_of(numbers.item(0))
        else:
            low, high = self._chunk_of(int(numbers.min())), self._chunk_of(int(numbers.max()))
        if low == high:
            self._count_dead(low, len(slots))
            return
        chunks = self._starts.searchsorted(numbers, side="right") - 1
        self._alive -= np.bincount(chunks, minlength=len(self._chunks))
        touched = slice(low, min(high + 1, len(self._chunks) - 1))  # the tail stays as it is
        sparse = np.flatnonzero(self._alive[touched] * _SPARSE <= self._written[touched]) + low
        for chunk in sparse[::-1].tolist():  # backwards: shrinking a chunk moves those behind it
            self._shrink(chunk)

    def _count_dead(self, chunk: int, n: int) -> None:
        """Count `n` slots less in a chunk."""
        self._alive[chunk] -= n
        if chunk < len(self._chunks) - 1 and self._alive[chunk] * _SPARSE <= self._written[chunk]:
            self._shrink(chunk)

    def oldest(self, n: int) -> NDArray[np.int64]:
        """Return the `n` oldest slots, oldest first; all of them if there are fewer."""
        found, missing = [], min(n, self.size)
        chunk = 0
        while missing > 0:
            if self._alive[chunk]:
                slots = self._oldest_in(chunk, missing)[:missing]
                found.append(slots)
                missing -= len(slots)
            chunk += 1
        slots = _joined(found)
        if len(slots):
            self._lowest = int(self._numbers[slots[0]]) - 1
        return slots

    def newest(self, n: int) -> NDArray[np.int64]:
        """Return the `n` newest slots, newest first; all of them if there are fewer."""
        found, missing = [], min(n, self.size)
        chunk = len(self._chunks) - 1
        while missing > 0:
            if self._alive[chunk]:
                slots = self._newest_in(chunk, missing)[::-1][:missing]
                found.append(slots)
                missing -= len(slots)
            chunk -= 1
        slots = _joined(found)
        if len(slots):
            self._highest = int(self._numbers[slots[0]])
        return slots

    def put_back(self, slots: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Insert slots that are not in the log under numbers that no slot has."""
        if not len(slots):
            return
        highest = int(numbers.max())
        if highest >= self._next:  # a log of an earlier process is being rebuilt
            self._start_tail(highest + 1)
        self._lowest = min(self._lowest, int(numbers.min()))
        self._highest = max(self._highest, highest + 1)
        self.size += len(slots)
        order = numbers.argsort()
        slots, numbers = slots[order], numbers[order]
        # Numbers below all chunks join the first one, unless that is the tail, which takes only its own.
        first = 0 if len(self._chunks) > 1 else -1
        chunks = np.maximum(self._starts.searchsorted(numbers, side="right") - 1, first)
        cuts = np.flatnonzero(np.diff(chunks)) + 1
        groups = zip(chunks[np.r_[0, cuts]].tolist(), np.split(slots, cuts), np.split(numbers, cuts), strict=True)
        for chunk, some_slots, some_numbers in reversed(list(groups)):  # backwards: chunks may be added
            self._put_back_into(chunk, some_slots, some_numbers)

    def _put_back_into(self, chunk: int, slots: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
        """Insert slots whose numbers belong to one chunk, or below all chunks (-1); numbers ascend."""
        start = int(numbers[0])
        if chunk < 0:
            chunk = 0
            self._numbers[slots] = numbers + 1
        else:
            entries = numbers - self._starts[chunk]
            if self._is_numbered[chunk] and entries[0] >= 0 and entries[-1] < self._entries_in(chunk):
                self._chunks[chunk][entries] = slots
                self._numbers[slots] = numbers + 1
                self._alive[chunk] += len(slots)
                return
            survivors = self._survivors(chunk)  # before the new numbers bring dead entries back to life
            self._numbers[slots] = numbers + 1
            slots = np.concatenate((survivors, slots))
            slots = slots[self._numbers.take(slots).argsort()]
            start = min(start, int(self._starts[chunk]))
            self._drop(chunk)
        for begin in range(0, len(slots), _CHUNK):
            piece = slots[begin : begin + _CHUNK].astype(np.int32)
            if begin:
                start = int(self._numbers[piece[0]]) - 1
            self._add_chunk(chunk, start, piece, alive=len(piece), is_numbered=False)
            chunk += 1

    def _chunk_of(self, number: int) -> int:
        return int(self._starts.searchsorted(number, side="right")) - 1

    def _entries_in(self, chunk: int) -> int:
        is_tail = chunk == len(self._chunks) - 1
        return self._next - int(self._starts[-1]) if is_tail else int(self._written[chunk])

    def _oldest_in(self, chunk: int, n: int) -> NDArray[np.int64]:
        """Return at least the `n` oldest slots of a chunk, or all of them, in order."""
        if not self._is_numbered[chunk]:
            return self._survivors(chunk)
        begin = max(0, self._lowest - int(self._starts[chunk]))
        end = self._entries_in(chunk)
        # Mostly the wanted slots stand next to each other; look at the whole chunk only if they don't.
        found = self._alive_between(chunk, begin, min(end, begin + n + _SPARE))
        return found if len(found) >= n else self._alive_between(chunk, begin, end)

    def _newest_in(self, chunk: int, n: int) -> NDArray[np.int64]:
        """Return at least the `n` newest slots of a chunk, or all of them, in order."""
        if not self._is_numbered[chunk]:
            return self._survivors(chunk)
        end = min(self._entries_in(chunk), self._highest - int(self._starts[chunk]))
        found = self._alive_between(chunk, max(0, end - n - _SPARE), end)
        return found if len(found) >= n else self._alive_between(chunk, 0, end)

    def _alive_between(self, chunk: int, begin: int, end: int) -> NDArray[np.int64]:
        """Return the slots alive among some entries of a numbered chunk."""
        start = int(self._starts[chunk]) + 1
        slots: NDArray[np.int64] = self._chunks[chunk][begin:end].astype(np.int64)
        is_alive: NDArray[np.bool_] = self._numbers.take(slots) == np.arange(start + begin, start + end)
        return slots[is_alive]

    def _survivors(self, chunk: int) -> NDArray[np.int64]:
        """Return all slots alive in a chunk that is not the tail, in order."""
        if self._is_numbered[chunk]:
            return self._alive_between(chunk, 0, int(self._written[chunk]))
        slots: NDArray[np.int64] = self._chunks[chunk].astype(np.int64)
        numbers = self._numbers.take(slots) - 1
        is_alive: NDArray[np.bool_] = (numbers >= self._starts[chunk]) & (numbers < self._starts[chunk + 1])
        return slots[is_alive]

    def _shrink(self, chunk: int) -> None:
        """Rewrite a sparse chunk without its dead entries, together with a neighbour if both fit into half a chunk."""
        first, last = chunk, chunk
        alive = int(self._alive[chunk])
        if alive:
            if chunk > 0 and alive + self._alive[chunk - 1] <= _CHUNK // 2:
                first = chunk - 1
            elif chunk + 2 < len(self._chunks) and alive + self._alive[chunk + 1] <= _CHUNK // 2:
                last = chunk + 1
            slots = np.concatenate([self._survivors(c) for c in range(first, last + 1)])
            start = int(self._starts[first])
        for _ in range(first, last + 1):
            self._drop(first)
        if alive:
            self._add_chunk(first, start, slots.astype(np.int32), alive=len(slots), is_numbered=False)

    def _start_tail(self, start: int) -> None:
        """Make the tail an ordinary chunk and put a new one behind it, whose first number is `start`."""
        closed = len(self._chunks) - 1
        self._written[closed] = self._next - int(self._starts[closed])
        self._next = start
        self._add_chunk(closed + 1, start, np.empty(_CHUNK, np.int32), alive=0, is_numbered=True)
        if self._alive[closed] * _SPARSE <= self._written[closed]:
            self._shrink(closed)

    def _add_chunk(self, at: int, start: int, slots: NDArray[np.int32], *, alive: int, is_numbered: bool) -> None:
        self._chunks.insert(at, slots)
        self._is_numbered.insert(at, is_numbered)
        self._starts = _with(self._starts, at, start)
        self._alive = _with(self._alive, at, alive)
        self._written = _with(self._written, at, len(slots))

    def _drop(self, chunk: int) -> None:
        del self._chunks[chunk]
        del self._is_numbered[chunk]
        self._starts = _without(self._starts, chunk)
        self._alive = _without(self._alive, chunk)
        self._written = _without(self._written, chunk)


def _with(values: NDArray[np.int64], at: int, value: int) -> NDArray[np.int64]:
    """Do what `np.insert` does, in a tenth of its time."""
    return np.concatenate((values[:at], [value], values[at:]))


def _without(values: NDArray[np.int64], at: int) -> NDArray[np.int64]:
    """Do what `np.delete` does, in a tenth of its time."""
    return np.concatenate((values[:at], values[at + 1 :]))


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
