"""The key index agrees with a dict, whatever the keys are."""

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from reverb_async.core.key_index import KeyIndex

MULTIPLIER = 0xD6E8_FEB8_6659_FD93
STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * mmap.PAGESIZE


def keys_of(*keys: int) -> np.ndarray:
    return np.array(keys, np.uint64)


def keys_in_one_bucket(index: KeyIndex, count: int, start: int = 0) -> list[int]:
    """Find keys that collide, as only someone who knows the multiplier can."""
    candidates = np.arange(start, start + 400_000, dtype=np.uint64)
    buckets, _ = index._hash(candidates)
    return candidates[buckets == buckets[0]][:count].tolist()


class KeyIndexMachine(RuleBasedStateMachine):
    """Insert, delete and find must agree with a dict."""

    capacity = 40
    multiplier = MULTIPLIER

    def __init__(self) -> None:
        super().__init__()
        self.keys = np.zeros(self.capacity, np.uint64)
        self.index = KeyIndex(self.capacity, self.keys, self.multiplier)
        colliding = keys_in_one_bucket(self.index, 24, start=10_000)
        even = [i << 44 for i in range(30)] + [i << 60 for i in range(16)]
        self.pool = sorted({*colliding, *even, *range(30), 2**64 - 1, 2**64 - 2, 2**63})
        self.model: dict[int, int] = {}
        self.free = list(range(self.capacity))

    batches = st.lists(st.integers(0, 10_000), max_size=24)

    def chosen(self, numbers: list[int], *, present: bool) -> list[int]:
        keys = dict.fromkeys(self.pool[number % len(self.pool)] for number in numbers)
        return [key for key in keys if (key in self.model) is present]

    @rule(numbers=batches)
    def insert(self, numbers: list[int]) -> None:
        keys = self.chosen(numbers, present=False)[: len(self.free)]
        slots = [self.free.pop(number % len(self.free)) for number, _ in zip(numbers, keys, strict=False)]
        self.keys[slots] = keys
        self.index.insert(keys_of(*keys), np.array(slots, np.int64))
        self.model |= zip(keys, slots, strict=True)

    @rule(numbers=batches)
    def delete(self, numbers: list[int]) -> None:
        keys = self.chosen(numbers, present=True)
        slots = [self.model.pop(key) for key in keys]
        self.index.delete(keys_of(*keys), np.array(slots, np.int64))
        self.free += slots

    @rule()
    def clear(self) -> None:
        self.index.clear()
        self.free += self.model.values()
        self.model.clear()

    @rule(numbers=batches)
    def find_one_by_one(self, numbers: list[int]) -> None:
        for key in {self.pool[number % len(self.pool)] for number in numbers}:
            assert self.index.find(keys_of(key)).tolist() == [self.model.get(key, -1)]

    @invariant()
    def same_slots(self) -> None:
        found = self.index.find(keys_of(*self.pool))
        assert found.dtype == np.int64
        assert found.tolist() == [self.model.get(key, -1) for key in self.pool]


@pytest.mark.parametrize("multiplier", [MULTIPLIER, 1, 2**64 - 1])
def test_it_agrees_with_a_dict(multiplier: int) -> None:
    machine = type("Machine", (KeyIndexMachine,), {"multiplier": multiplier})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
    )


@pytest.mark.parametrize(
    "keys",
    [
        np.arange(50_000),
        np.arange(50_000) << 44,
        np.arange(50_000) * 2**20 + 2**40,
        (np.arange(50_000) << 32) | 0xFFFF,
        2**64 - 1 - np.arange(50_000, dtype=np.uint64),
        np.random.default_rng(5).integers(0, 2**64, 50_000, dtype=np.uint64),
    ],
    ids=["counting", "same low bits", "strided", "high halves", "from the top", "random"],
)
def test_regular_keys_spread_over_the_buckets(keys: np.ndarray) -> None:
    keys = keys.astype(np.uint64)
    index = KeyIndex(len(keys), keys, MULTIPLIER)
    slots = np.arange(len(keys))
    for start in range(0, len(keys), 300):
        index.insert(keys[start : start + 300], slots[start : start + 300])
    assert index.find(keys).tolist() == slots.tolist()
    assert len(index._overflow) < len(keys) / 1000
    index.delete(keys[::2], slots[::2])
    assert index.find(keys).tolist() == np.where(slots % 2, slots, -1).tolist()


def test_overflow_is_forgotten_when_its_keys_leave() -> None:
    table_keys = np.zeros(64, np.uint64)
    index = KeyIndex(64, table_keys, MULTIPLIER)
    keys, slots = keys_of(*keys_in_one_bucket(index, 40)), np.arange(40)
    table_keys[:40] = keys
    index.insert(keys, slots)
    assert len(index._overflow) == 32
    assert index.find(keys).tolist() == slots.tolist()
    for slot in slots.tolist():
        index.delete(keys[slot : slot + 1], slots[slot : slot + 1])
    assert not index._overflow
    assert not index._num_overflowed.any()
    assert not index._cells.any()


@pytest.mark.parametrize("batch", [1, 2])
def test_deleting_what_is_not_there_is_a_bug(batch: int) -> None:
    index = KeyIndex(8, np.zeros(8, np.uint64), MULTIPLIER)
    with pytest.raises(AssertionError, match="key 5 is not in the index under slot 3"):
        index.delete(keys_of(*[5] * batch), np.full(batch, 3))


def test_a_stale_key_in_the_tables_array_is_not_found() -> None:
    table_keys = keys_of(7, 9, 9)
    index = KeyIndex(3, table_keys, MULTIPLIER)
    index.insert(keys_of(7, 9), np.array([0, 1]))
    index.delete(keys_of(7), np.array([0]))
    assert index.find(keys_of(7, 9, 0)).tolist() == [-1, 1, -1]


def test_no_keys_are_no_work() -> None:
    index = KeyIndex(1, np.zeros(1, np.uint64), MULTIPLIER)
    nothing, no_slots = keys_of(), np.zeros(0, np.int64)
    index.insert(nothing, no_slots)
    index.delete(nothing, no_slots)
    assert len(index.find(nothing)) == 0


def test_an_even_multiplier_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="even"):
        KeyIndex(8, np.zeros(8, np.uint64), 6)


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
def test_an_index_for_many_keys_takes_no_memory_before_they_come() -> None:
    before = resident_bytes()
    index = KeyIndex(2**24, np.zeros(2**24, np.uint64), MULTIPLIER)
    assert index.find(np.arange(100, dtype=np.uint64)).max() == -1
    index.clear()
    assert index._cells.nbytes == 2**28
    assert resident_bytes() - before < 2**24


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc")
def test_few_consecutive_keys_take_few_pages_of_a_large_index() -> None:
    keys = np.arange(1 << 40, (1 << 40) + 4096, dtype=np.uint64)
    index = KeyIndex(2**22, keys, MULTIPLIER)
    before = resident_bytes()
    index.insert(keys, np.arange(len(keys)))
    assert resident_bytes() - before < 4 << 20  # of 64 MiB, all of which a page per key would be
    per_page = mmap.PAGESIZE // index._cells.itemsize
    assert int(index._cells.reshape(-1, per_page).any(axis=1).sum()) <= len(keys) // 64
    assert index.find(keys[::-1]).tolist() == list(range(len(keys)))[::-1]
