"""Selectors rebuilt from what others told of themselves pick as those do."""

from __future__ import annotations

import numpy as np
import pytest

from reverb_async.core import selectors
from reverb_async.core.selectors import Selector, SelectorState
from reverb_async.errors import InvalidArgument

CAPACITY = 20_000
SELECTORS = [
    selectors.Uniform(),
    selectors.Prioritized(0.7),
    selectors.Fifo(),
    selectors.Lifo(),
    selectors.MinHeap(),
    selectors.MaxHeap(),
]


class Pair:
    """A selector at work, what it holds, and a second one rebuilt from it at some time."""

    def __init__(self, kind: Selector, seed: int) -> None:
        self.kind = kind
        self.rng = np.random.default_rng(seed)
        self.states: list[SelectorState] = [kind.build(CAPACITY)]
        self.priorities: dict[int, float] = {}

    def insert(self, n: int) -> None:
        free = np.setdiff1d(np.arange(CAPACITY), list(self.priorities))
        slots = self.rng.choice(free, n, replace=False)
        priorities = self.rng.choice([0.0, 0.5, 1.0, 1.5, 700.0], n)
        self.priorities.update(zip(slots.tolist(), priorities.tolist(), strict=True))
        for state in self.states:
            state.insert(slots, priorities)

    def delete(self, n: int) -> None:
        slots = self.rng.choice(list(self.priorities), n, replace=False)
        for slot in slots.tolist():
            del self.priorities[slot]
        for state in self.states:
            state.delete(slots)

    def update(self, n: int) -> None:
        slots = self.rng.choice(list(self.priorities), n, replace=False)
        priorities = self.rng.choice([0.0, 2.0, 3.0], n)
        self.priorities.update(zip(slots.tolist(), priorities.tolist(), strict=True))
        for state in self.states:
            state.update(slots, priorities)

    def rebuild(self) -> None:
        (state,) = self.states
        slots = self.rng.permutation(np.fromiter(self.priorities, np.int64))
        again = self.kind.build(CAPACITY)
        priorities = np.array([self.priorities[slot] for slot in slots.tolist()])
        again.rebuild(slots, priorities, state.peek(slots), state.counters())
        self.states.append(again)

    def compare(self) -> None:
        seed = int(self.rng.integers(1 << 30))
        for n in (1, 3, 300):
            drawn = [state.sample(n, np.random.default_rng(seed)) for state in self.states]
            assert drawn[0][0].tolist() == drawn[1][0].tolist()
            assert drawn[0][1].tolist() == drawn[1][1].tolist()
        if self.kind.is_deterministic:
            order, again = (state.first(len(self.priorities)).tolist() for state in self.states)
            assert order == again


@pytest.mark.parametrize("kind", SELECTORS)
@pytest.mark.parametrize("draws", [0, 50])
def test_a_rebuilt_selector_goes_on_as_the_first_one(kind: Selector, draws: int) -> None:
    pair = Pair(kind, seed=draws)
    pair.insert(6_000)
    pair.delete(3_000)
    pair.insert(500)
    pair.update(700)
    for _ in range(draws):  # after many draws without changes sums are kept at a finer level
        pair.states[0].sample(300, pair.rng)
    pair.rebuild()
    pair.compare()
    for _ in range(2):
        pair.delete(1_000)
        pair.insert(800)
        pair.update(50)
        pair.compare()


@pytest.mark.parametrize("kind", SELECTORS)
def test_a_selector_rebuilt_from_nothing_is_empty_and_goes_on_counting(kind: Selector) -> None:
    pair = Pair(kind, seed=1)
    pair.insert(5)
    pair.delete(5)
    pair.rebuild()
    assert len(pair.states[1]) == 0
    pair.insert(500)
    pair.compare()


@pytest.mark.parametrize("kind", [kind for kind in SELECTORS if not isinstance(kind, selectors.Prioritized)])
def test_places_that_are_twice_the_same_are_refused(kind: Selector) -> None:
    with pytest.raises(InvalidArgument, match="two slots have the same place"):
        kind.build(10).rebuild(np.array([1, 2]), np.ones(2), np.array([3, 3]), {"next": 9})


def test_a_sum_tree_refuses_counters_of_a_larger_one() -> None:
    counters = {"highest": 11, "flat": -1, "drawn": 0}
    with pytest.raises(InvalidArgument, match="a sum tree of 10 weights has no"):
        selectors.Prioritized(1.0).build(10).rebuild(np.array([1]), np.ones(1), np.array([-1]), counters)
