"""Find the slot of a key."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.storage.backing import sparse_zeros

_BUCKET = 8  # cells: half a cache line
_BLOCK_BITS = 6
"""So many low bits of a key choose among neighbouring buckets: 64 consecutive keys fill 2 KiB, all of it."""
_LOW_64 = 2**64 - 1
_LOW_32 = 2**32 - 1
_HALF = np.uint64(32)
_ONE = np.uint32(1)

Hashes: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.uint32]] | None"
"""The bucket of each key, and its tag where an entry has it, ``[n]`` each; None for a single key."""


class KeyIndex:
    """A hash index from uint64 keys to slots that never moves an entry and never rehashes.

    It keeps no keys: the key of a slot is read from the table's own array. A key hashes to one bucket of 8 cells, which
    is looked at as a whole, so a deleted entry leaves no trace. At most a quarter of the cells is ever in use; the few
    keys that find their bucket full go to a dict, and how many is counted per bucket, so that a miss elsewhere need not
    ask the dict. The multiplier should be random: then nobody who chooses keys can choose which ones collide.

    Keys are handed out consecutively, so a block of 64 is hashed as one: its keys go to 64 neighbouring buckets, in an
    order of their own, no two to the same. Strangers in a bucket are of different blocks, as many as if every key were
    hashed for itself; but pages are touched one after the other, and a large index with few keys has few pages. Memory
    is taken where keys are, 20 to 36 bytes for each when the index is full.

    An entry is a slot, and above it as many bits of the hash (the *tag*) as 32 bits have room for. The lowest tag bit
    is always set, so no entry is 0, which means free. Tags tell most strangers in a bucket apart without reading their
    keys, which are far away.
    """

    def __init__(self, capacity: int, keys: NDArray[np.uint64], multiplier: int) -> None:
        """Index up to `capacity` keys.

        Args:
            capacity: how many keys at most.
            keys: ``keys[slot]`` must be the key of each slot inserted; may be strided.
            multiplier: odd.
        """
        assert 1 <= capacity <= 2**31, capacity
        assert multiplier % 2 == 1, "an even multiplier would lose the keys' high bits"
        self._keys = keys
        self._multiplier = multiplier & _LOW_64
        self._num_buckets = max(2, (1 << (4 * capacity - 1).bit_length()) // _BUCKET)
        bucket_bits = (self._num_buckets - 1).bit_length()
        self._shift = 64 - bucket_bits
        self._block_bits = min(_BLOCK_BITS, bucket_bits)
        self._block_mask = (1 << self._block_bits) - 1
        self._slot_bits = max(1, (len(keys) - 1).bit_length())
        assert self._slot_bits < 32, len(keys)
        # The same numbers as NumPy scalars.
        self._multiplier_64 = np.uint64(self._multiplier)
        self._shift_64 = np.uint64(self._shift)
        self._block_bits_64 = np.uint64(self._block_bits)
        self._block_mask_64 = np.uint64(self._block_mask)
        self._slot_bits_32 = np.uint32(self._slot_bits)
        self._slot_mask = (1 << self._slot_bits) - 1
        self._slot_mask_32 = np.uint32(self._slot_mask)
        self.clear()

    def clear(self) -> None:
        """Forget all keys, in O(1): the arrays are replaced by fresh ones, whose memory is not touched."""
        self._buckets: NDArray[np.uint32] = sparse_zeros((self._num_buckets, _BUCKET), np.dtype(np.uint32))
        self._cells = self._buckets.reshape(-1)
        # By slot: the cell of its entry, so that a delete need not search. Without meaning for slots not in a cell.
        place = np.int32 if len(self._cells) < 2**31 else np.int64
        self._cell_of: NDArray[np.signedinteger] = np.zeros(len(self._keys), place)
        self._overflow: dict[int, int] = {}
        self._num_overflowed = np.zeros(self._num_buckets, np.int32)  # by bucket

    def hash(self, keys: NDArray[np.uint64]) -> Hashes:
        """Return what `find` and `insert` of the same keys would both compute."""
        return None if len(keys) == 1 else self._hash(keys)

    def find(self, keys: NDArray[np.uint64], hashes: Hashes = None) -> NDArray[np.int64]:
        """Return the slot of each key, -1 where the key is unknown; ``[n]`` to ``[n]``."""
        n = len(keys)
        if n == 1:
            return np.array([self._find_one(keys.item(0))], np.int64)
        buckets, tags = hashes or self._hash(keys)
        # Where the tag is the same, taking it off leaves the bare slot.
        differences = self._buckets.take(buckets, axis=0)
        differences ^= tags[:, None]
        differences = differences.reshape(-1)
        candidates = (differences <= self._slot_mask_32).nonzero()[0]
        found = np.full(n, -1, np.int64)
        if len(candidates):
            slots = differences.take(candidates)
            positions = candidates // _BUCKET
            is_hit = self._keys[slots] == keys.take(positions)
            found[positions[is_hit]] = slots[is_hit]
        if self._overflow:
            maybe = np.flatnonzero((found < 0) & (self._num_overflowed.take(buckets) > 0))
            for position in maybe.tolist():
                found[position] = self._overflow.get(int(keys[position]), -1)
        return found

    def insert(self, keys: NDArray[np.uint64], slots: NDArray[np.int64], hashes: Hashes = None) -> None:
        """Add distinct keys that are not in the index; the table's array names them already; both ``[n]``."""
        if len(keys) == 1:
            self._insert_one(keys.item(0), slots.item(0))
            return
        buckets, tags = hashes or self._hash(keys)
        entries = tags | slots.astype(np.uint32)
        column = self._buckets.take(buckets, axis=0).argmin(axis=1)  # a free cell, or any if there is none
        while len(keys):
            cells = buckets * _BUCKET
            cells += column
            is_full = self._cells.take(cells) != 0
            if is_full.any():
                for position in is_full.nonzero()[0].tolist():
                    self._insert_overflow(int(buckets[position]), int(keys[position]), int(slots[position]))
                keys, slots, buckets, entries, cells = (a[~is_full] for a in (keys, slots, buckets, entries, cells))
            # Keys that chose the same cell overwrite each other; who finds someone else there chooses again.
            self._cells[cells] = entries
            self._cell_of[slots] = cells
            lost = self._cells.take(cells) != entries
            if not lost.any():
                return
            keys, slots, buckets, entries = (a[lost] for a in (keys, slots, buckets, entries))
            column = self._buckets.take(buckets, axis=0).argmin(axis=1)

    def delete(self, keys: NDArray[np.uint64], slots: NDArray[np.int64]) -> None:
        """Remove keys that are in the index under these slots; both ``[n]``."""
        if len(keys) == 1:
            self._delete_one(keys.item(0), slots.item(0))
            return
        cells = self._cell_of.take(slots)
        entries = self._cells.take(cells)
        is_here = (entries & self._slot_mask_32) == slots
        is_here &= entries > 0
        if is_here.all():
            self._cells[cells] = 0
            return
        self._cells[cells[is_here]] = 0
        for position in (~is_here).nonzero()[0].tolist():
            self._delete_overflow(int(keys[position]), int(slots[position]))

    def _hash(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Return the bucket of each key, and its tag where an entry has it; ``[n]`` each."""
        # Two rounds: one alone maps evenly spaced keys to few buckets under unlucky multipliers.
        mixed = keys >> self._block_bits_64
        mixed *= self._multiplier_64
        mixed ^= mixed >> _HALF
        mixed *= self._multiplier_64
        tags = mixed.astype(np.uint32)
        tags |= _ONE
        tags <<= self._slot_bits_32
        mixed >>= self._shift_64
        mixed ^= keys & self._block_mask_64
        return mixed.view(np.int64), tags

    def _hash_one(self, key: int) -> tuple[int, int]:
        mixed = (key >> self._block_bits) * self._multiplier & _LOW_64
        mixed ^= mixed >> 32
        mixed = mixed * self._multiplier & _LOW_64
        return mixed >> self._shift ^ key & self._block_mask, ((mixed | 1) << self._slot_bits) & _LOW_32

    def _find_one(self, key: int) -> int:
        bucket, tag = self._hash_one(key)
        for entry in self._buckets[bucket].tolist():
            slot = int(entry) ^ tag
            if not slot >> self._slot_bits and int(self._keys[slot]) == key:
                return slot
        return self._overflow.get(key, -1) if self._overflow else -1

    def _insert_one(self, key: int, slot: int) -> None:
        bucket, tag = self._hash_one(key)
        entries = self._buckets[bucket].tolist()
        if 0 in entries:
            column = entries.index(0)
            self._buckets[bucket, column] = tag | slot
            self._cell_of[slot] = bucket * _BUCKET + column
        else:
            self._insert_overflow(bucket, key, slot)

    def _delete_one(self, key: int, slot: int) -> None:
        cell = self._cell_of.item(slot)
        entry = self._cells.item(cell)
        if entry and entry & self._slot_mask == slot:
            self._cells[cell] = 0
        else:
            self._delete_overflow(key, slot)

    def _insert_overflow(self, bucket: int, key: int, slot: int) -> None:
        self._overflow[key] = slot
        self._num_overflowed[bucket] += 1

    def _delete_overflow(self, key: int, slot: int) -> None:
        assert self._overflow.get(key) == slot, f"key {key} is not in the index under slot {slot}"
        del self._overflow[key]
        self._num_overflowed[self._hash_one(key)[0]] -= 1
