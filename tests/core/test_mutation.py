"""Calls that are applied together do what they do one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Items, keys_of, make_state
from hypothesis import given, settings
from hypothesis import strategies as st

from reverb_async.core import selectors
from reverb_async.core.draw import MutateResult
from reverb_async.core.mutation import Mutation, in_order, occurrence, winners
from reverb_async.core.table_state import TableState
from reverb_async.errors import InvalidArgument

numbers = st.integers(0, 30)
priorities = st.sampled_from([0.0, 0.5, 1.0, 2.0, 9.0, -1.0, np.nan])
calls = st.lists(
    st.tuples(st.lists(st.tuples(numbers, priorities), max_size=12), st.just([]) | st.lists(numbers, max_size=2)),
    min_size=1,
    max_size=6,
)


def as_mutation(updates: list[tuple[int, float]], deletes: list[int]) -> Mutation:
    return Mutation(
        np.array([key for key, _ in updates], np.uint64),
        np.array([priority for _, priority in updates], np.float64),
        np.array(deletes, np.uint64),
    )


def one_by_one(state: TableState, mutations: list[Mutation]) -> list[MutateResult | str]:
    results: list[MutateResult | str] = []
    for mutation in mutations:
        try:
            results.append(state.mutate(*mutation))
        except InvalidArgument as error:
            results.append(str(error))
    return results


SELECTORS = [selectors.Uniform(), selectors.Prioritized(0.7), selectors.MinHeap(), selectors.MaxHeap()]


@pytest.mark.parametrize("sampler", SELECTORS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(calls=calls)
def test_together_is_as_one_by_one(
    sampler: selectors.Selector, calls: list[tuple[list[tuple[int, float]], list[int]]]
) -> None:
    mutations = [as_mutation(*call) for call in calls]
    items = Items()
    together, singly = (make_state(50, sampler, selectors.MaxHeap()) for _ in range(2))
    for state in (together, singly):
        state.insert(items.block(range(20), np.arange(20) / 4.0), 0.0)
    expected = one_by_one(singly, mutations)
    results = [str(r) if isinstance(r, InvalidArgument) else r for r in together.mutate_all(mutations)]
    assert results == expected
    assert keys_of(together) == keys_of(singly)
    live = singly.live_slots()
    assert together.slots.priority[live].tolist() == singly.slots.priority[live].tolist()
    if len(live):
        assert together.draw(20).keys.tolist() == singly.draw(20).keys.tolist()
        assert together.remover.first(50).tolist() == singly.remover.first(50).tolist()
        # The highest priority so far, which later calls may have lowered again, is what an item without one gets.
        for state in (together, singly):
            state.insert(items.block([100], [np.nan]), 0.0)
        slot = together.find(np.array([100], np.uint64))
        assert together.slots.priority[slot] == singly.slots.priority[singly.find(np.array([100], np.uint64))]


def test_calls_without_deletes_make_one_change() -> None:
    state = make_state()
    state.insert(Items().block(range(10)), 0.0)
    changes = []
    state.listeners.append(changes.append)
    none: list[int] = []
    results = state.mutate_all([as_mutation([(1, 5.0), (2, 3.0)], none), as_mutation([(2, 4.0), (77, 1.0)], none)])
    assert results == [MutateResult(2, 0, 0), MutateResult(1, 0, 1)]
    (change,) = changes
    assert dict(zip(change.keys.tolist(), change.priorities.tolist(), strict=True)) == {1: 5.0, 2: 4.0}


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=30))
def test_winners(named: list[tuple[int, int]]) -> None:
    named.sort(key=lambda pair: pair[1])
    slots, of_call = (np.array([pair[at] for pair in named], np.int64) for at in (0, 1))
    last = {slot: at for at, (slot, _) in enumerate(named)}
    last_in_call = {pair: at for at, pair in enumerate(named)}
    got, got_in_call = winners(slots, of_call)
    if got is None:
        assert got_in_call is None
        assert len(last) == len(named)
    else:
        assert got_in_call is not None
        assert got.tolist() == sorted(last.values())
        assert got_in_call.tolist() == sorted(last_in_call.values())


@given(st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 4), max_size=30))
def test_occurrences_are_counted_in_order(slots: list[int]) -> None:
    assert np.broadcast_to(occurrence(np.array(slots, np.int64)), len(slots)).tolist() == [
        slots[: at + 1].count(slot) for at, slot in enumerate(slots)
    ]
    ordered = in_order(np.array(slots, np.int64))
    if ordered is None:
        assert len(set(slots)) == len(slots)
    else:
        pairs = sorted((slot, at) for at, slot in enumerate(slots))
        assert list(zip(*(part.tolist() for part in ordered), strict=True)) == pairs
