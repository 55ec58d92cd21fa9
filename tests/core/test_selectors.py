"""Every selector keeps the promises of `SelectorState`; each adds its own."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from reverb_async.core.selectors import (
    Fifo,
    Lifo,
    MaxHeap,
    MinHeap,
    Prioritized,
    Selector,
    SelectorState,
    Uniform,
    from_options,
    heap,
    insertion_log,
    sum_tree,
)
from reverb_async.errors import InvalidArgument

CAPACITY = 64


def slots_of(*slots: int) -> np.ndarray:
    return np.array(slots, np.int64)


def state_with(selector: Selector, priorities: list[float], capacity: int = CAPACITY) -> SelectorState:
    """Slots 0, 1, 2, ... with these priorities, inserted one by one."""
    state = selector.build(capacity)
    for slot, priority in enumerate(priorities):
        state.insert(slots_of(slot), np.array([priority]))
    return state


def drain(state: SelectorState, rng: np.random.Generator) -> list[int]:
    """Sample and delete until nothing is left: what `max_times_sampled=1` does."""
    order = []
    while len(state):
        slots, probabilities = state.sample(1, rng)
        assert probabilities.tolist() == [1.0]
        state.delete(slots)
        order.append(int(slots[0]))
    return order


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def small_structures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so low that a handful of slots reaches every branch."""
    monkeypatch.setattr(insertion_log, "_CHUNK", 8)
    monkeypatch.setattr(insertion_log, "_SPARSE", 2)
    monkeypatch.setattr(insertion_log, "_SPARE", 1)
    monkeypatch.setattr(heap, "_SLACK", 4)
    monkeypatch.setattr(sum_tree, "_TOP", 8)
    monkeypatch.setattr(sum_tree, "_PENDING", 10)
    monkeypatch.setattr(sum_tree, "_FEW", 1)


class SelectorMachine(RuleBasedStateMachine):
    """A selector must agree with a dict of priorities and places."""

    selector: Selector

    def __init__(self) -> None:
        super().__init__()
        self.state = self.selector.build(CAPACITY)
        self.model: dict[int, tuple[float, int]] = {}  # slot: priority, number of the last event that moves it
        self.away: dict[int, tuple[float, int, int]] = {}  # slot: the same and its place, for `restore`
        self.events = 0
        self.rng = np.random.default_rng(0)

    def expected_order(self) -> list[int]:
        match self.selector:
            case Fifo():
                return sorted(self.model, key=lambda slot: self.model[slot][1])
            case Lifo():
                return sorted(self.model, key=lambda slot: -self.model[slot][1])
            case MinHeap():
                return sorted(self.model, key=lambda slot: self.model[slot])
            case MaxHeap():
                return sorted(self.model, key=lambda slot: (-self.model[slot][0], self.model[slot][1]))
        raise AssertionError

    def expected_probabilities(self) -> dict[int, float]:
        exponent = self.selector.priority_exponent if isinstance(self.selector, Prioritized) else 0.0
        weights = {slot: p**exponent if p else 0.0 for slot, (p, _) in self.model.items()}
        if isinstance(self.selector, Uniform) or not any(weights.values()):
            weights = dict.fromkeys(self.model, 1.0)
        return {slot: weight / sum(weights.values()) for slot, weight in weights.items()}

    priorities = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 1000.0])
    batches = st.dictionaries(st.integers(0, CAPACITY - 1), priorities, max_size=24)

    @rule(batch=batches)
    def insert(self, batch: dict[int, float]) -> None:
        batch = {slot: p for slot, p in batch.items() if slot not in self.model and slot not in self.away}
        self.state.insert(slots_of(*batch), np.array(list(batch.values())))
        for slot, priority in batch.items():
            self.events += 1
            self.model[slot] = priority, self.events

    @rule(batch=batches)
    def update(self, batch: dict[int, float]) -> None:
        batch = {slot: p for slot, p in batch.items() if slot in self.model}
        self.state.update(slots_of(*batch), np.array(list(batch.values())))
        for slot, priority in batch.items():
            self.events += 1
            moves = isinstance(self.selector, MinHeap | MaxHeap)
            self.model[slot] = priority, self.events if moves else self.model[slot][1]

    @rule(wanted=st.sets(st.integers(0, CAPACITY - 1)))
    def delete(self, wanted: set[int]) -> None:
        slots = [slot for slot in wanted if slot in self.model]
        self.state.delete(slots_of(*slots))
        for slot in slots:
            del self.model[slot]

    @rule(wanted=st.lists(st.integers(0, CAPACITY - 1), unique=True))
    def take_away(self, wanted: list[int]) -> None:
        slots = [slot for slot in wanted if slot in self.model]
        places = self.state.place(slots_of(*slots)).tolist()
        self.state.delete(slots_of(*slots))
        for slot, place in zip(slots, places, strict=True):
            self.away[slot] = *self.model.pop(slot), place

    @precondition(lambda self: self.away)
    @rule(count=st.integers(1, 20))
    def restore(self, count: int) -> None:
        slots = list(self.away)[:count]
        priorities, events, places = zip(*(self.away.pop(slot) for slot in slots), strict=True)
        self.state.restore(slots_of(*slots), np.array(priorities), np.array(places, np.int64))
        self.model |= {slot: (p, e) for slot, p, e in zip(slots, priorities, events, strict=True)}

    @precondition(lambda self: self.selector.is_deterministic)
    @rule(n=st.integers(1, 20))
    def delete_first(self, n: int) -> None:
        slots = self.state.first(n)
        assert slots.tolist() == self.expected_order()[:n]
        self.state.delete(slots)
        for slot in slots.tolist():
            del self.model[slot]

    @rule(slot=st.integers(0, CAPACITY - 1), others=batches)
    def a_call_that_names_one_wrong_slot_changes_nothing(self, slot: int, others: dict[int, float]) -> None:
        is_present = slot in self.model
        slots = slots_of(*[s for s in others if s != slot and (s in self.model) != is_present], slot)
        ones = np.ones(len(slots))
        calls = (
            [lambda: self.state.insert(slots, ones), lambda: self.state.restore(slots, ones, np.arange(len(slots)))]
            if is_present
            else [
                lambda: self.state.update(slots, ones),
                lambda: self.state.delete(slots),
                lambda: self.state.place(slots),
            ]
        )
        for call in calls:
            with pytest.raises(InvalidArgument, match=f"slot {slot} is"):
                call()

    @rule()
    def clear(self) -> None:
        self.state.clear()
        self.model.clear()
        self.away.clear()

    @rule(batch=batches)
    def rebuild(self, batch: dict[int, float]) -> None:
        slots = list(self.model)
        places = self.state.place(slots_of(*slots))
        self.state = self.selector.build(CAPACITY)
        self.state.restore(slots_of(*slots), np.array([self.model[slot][0] for slot in slots]), places)
        self.away.clear()

    @invariant()
    def same_slots(self) -> None:
        assert len(self.state) == len(self.model)

    # Not an invariant: reading tidies up, and what piles up between two reads must be tried, too.
    @rule(n=st.sampled_from([1, 3, CAPACITY]))
    def same_order_or_probabilities(self, n: int) -> None:
        if not self.model:
            return
        if self.selector.is_deterministic:
            assert self.state.first(n).tolist() == self.expected_order()[:n]
        drawn, probabilities = self.state.sample(9, self.rng)
        if self.selector.is_deterministic:
            assert drawn.tolist() == self.expected_order()[:1] * 9
            assert probabilities.tolist() == [1.0] * 9
        else:
            expected = self.expected_probabilities()
            np.testing.assert_allclose(probabilities, [expected[slot] for slot in drawn.tolist()], rtol=1e-12)
            assert (probabilities > 0.0).all()

    def teardown(self) -> None:
        self.same_order_or_probabilities(CAPACITY)


class SelectorTests:
    """What every selector promises; a subclass gives `selector`."""

    selector: Selector

    def run_machine(self) -> None:
        machine = type("Machine", (SelectorMachine,), {"selector": self.selector})
        run_state_machine_as_test(
            machine, settings=settings(max_examples=25, stateful_step_count=40, deadline=None, derandomize=True)
        )

    def test_it_agrees_with_a_dict(self) -> None:
        self.run_machine()

    @pytest.mark.usefixtures("small_structures")
    def test_it_agrees_with_a_dict_when_its_structures_are_small(self) -> None:
        self.run_machine()

    def test_options_bring_it_back(self) -> None:
        options = self.selector.options()
        assert options["is_deterministic"] is self.selector.is_deterministic
        assert from_options(options) == self.selector

    def test_descriptions_are_values(self) -> None:
        assert hash(self.selector) == hash(from_options(self.selector.options()))
        with pytest.raises((AttributeError, TypeError)):  # CPython mixes them up for slots
            self.selector.anything = 1  # type: ignore[union-attr]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_priorities_must_be_finite(self, bad: float) -> None:
        with pytest.raises(InvalidArgument, match=f"priority {bad} at position 2 is not finite"):
            self.selector.check_priorities(np.array([1.0, 0.0, bad, bad]))

    def test_ordinary_and_no_priorities_are_accepted(self) -> None:
        self.selector.check_priorities(np.array([0.0, 1.0, 1e9, 5e-324]))
        self.selector.check_priorities(np.array([]))

    def test_sampling_nothing_is_refused(self, rng: np.random.Generator) -> None:
        with pytest.raises(InvalidArgument, match="nothing to sample"):
            self.selector.build(4).sample(1, rng)

    def test_samples_have_fixed_types(self, rng: np.random.Generator) -> None:
        state = state_with(self.selector, [1.0, 2.0, 3.0])
        for n in (1, 3, 300):
            slots, probabilities = state.sample(n, rng)
            assert (slots.dtype, slots.shape) == (np.int64, (n,))
            assert (probabilities.dtype, probabilities.shape) == (np.float64, (n,))

    def test_a_capacity_below_one_is_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="capacity must be between 1 and"):
            self.selector.build(0)

    def test_one_slot_is_capacity_enough(self, rng: np.random.Generator) -> None:
        state = state_with(self.selector, [3.0], capacity=1)
        assert state.sample(2, rng)[0].tolist() == [0, 0]

    def test_a_long_history_of_large_batches_agrees_with_a_dict(self, rng: np.random.Generator) -> None:
        capacity, batch = 20_000, 1500
        state = self.selector.build(capacity)
        model: dict[int, int] = {}
        events = 0
        for _ in range(60):
            absent = np.setdiff1d(np.arange(capacity), np.fromiter(model, np.int64))
            new = rng.permutation(absent)[:batch]
            state.insert(new, np.ones(len(new)))
            model |= {slot: events + i for i, slot in enumerate(new.tolist())}
            events += len(new)
            if len(model) > 12_000:
                gone = rng.permutation(np.fromiter(model, np.int64))[:batch]
                places = state.place(gone)
                state.delete(gone)
                back = rng.random(len(gone)) < 0.2
                state.restore(gone[back], np.ones(int(back.sum())), places[back])
                for slot in gone[~back].tolist():
                    del model[slot]
        assert len(state) == len(model)
        if self.selector.is_deterministic:
            order = sorted(model, key=model.__getitem__, reverse=isinstance(self.selector, Lifo))
            assert state.first(capacity).tolist() == order
            assert state.first(700).tolist() == order[:700]
        else:
            slots, probabilities = state.sample(2000, rng)
            assert set(slots.tolist()) <= set(model)
            np.testing.assert_allclose(probabilities, 1 / len(model), rtol=1e-12)


class RandomSelectorTests(SelectorTests):
    """What selectors promise that draw at random."""

    def test_there_is_no_first_slot(self) -> None:
        with pytest.raises(InvalidArgument, match="draws at random"):
            state_with(self.selector, [1.0]).first(1)

    def test_the_same_seed_draws_the_same_slots(self) -> None:
        state = state_with(self.selector, [1.0, 5.0, 2.0] * 10)
        first, second = (state.sample(50, np.random.default_rng(3))[0].tolist() for _ in range(2))
        assert first == second


class TestUniform(RandomSelectorTests):
    selector = Uniform()

    def test_every_slot_has_exactly_the_same_probability_and_about_the_same_rate(
        self, rng: np.random.Generator
    ) -> None:
        state = state_with(self.selector, [1.0, 0.0, 7.0, 3.0, 100.0, 2.0])
        state.delete(slots_of(2))
        slots, probabilities = state.sample(50_000, rng)
        assert (probabilities == 1 / 5).all()
        counts = np.bincount(slots, minlength=6)
        assert counts[2] == 0
        chi_square = ((counts[[0, 1, 3, 4, 5]] - 10_000) ** 2 / 10_000).sum()
        assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand seeds


class TestPrioritized(RandomSelectorTests):
    selector = Prioritized(0.6)


class TestPrioritizedWithoutAnExponent(RandomSelectorTests):
    selector = Prioritized(0.0)


class TestFifo(SelectorTests):
    selector = Fifo()

    def test_it_picks_the_oldest(self, rng: np.random.Generator) -> None:
        assert drain(state_with(self.selector, [5.0, 1.0, 5.0, 1.0, 9.0]), rng) == [0, 1, 2, 3, 4]

    def test_a_priority_update_moves_nothing(self) -> None:
        state = state_with(self.selector, [1.0, 1.0])
        state.update(slots_of(0), np.array([9.0]))
        assert state.first(2).tolist() == [0, 1]

    def test_its_memory_follows_the_slots_alive_and_not_the_age_of_the_oldest(self, rng: np.random.Generator) -> None:
        # The oldest slot never leaves, and of all others one in 64 stays: what a table does that keeps the best.
        state = self.selector.build(20_000)
        free = list(range(19_999, -1, -1))
        for _ in range(1000):
            batch = np.array([free.pop() for _ in range(64 * 16)])
            state.insert(batch, np.ones(len(batch)))
            gone = np.setdiff1d(batch, batch[::64])
            state.delete(gone)
            free += gone.tolist()
        assert len(state) == 16_000
        entries = sum(len(chunk) for chunk in state._log._chunks)
        assert entries <= 9 * len(state)


class TestLifo(SelectorTests):
    selector = Lifo()

    def test_it_picks_the_newest(self, rng: np.random.Generator) -> None:
        assert drain(state_with(self.selector, [5.0, 1.0, 5.0, 1.0, 9.0]), rng) == [4, 3, 2, 1, 0]


class HeapTests(SelectorTests):
    """What both heaps promise."""

    def test_updating_to_the_same_priority_moves_a_slot_behind_its_equals(self) -> None:
        state = state_with(self.selector, [1.0, 1.0, 1.0])
        state.update(slots_of(0), np.array([1.0]))
        assert state.first(3).tolist() == [1, 2, 0]

    def test_negative_priorities_are_fine(self) -> None:
        self.selector.check_priorities(np.array([-1.0]))
        lowest_first = state_with(self.selector, [-1.0, -3.0, 2.0]).first(3).tolist()
        assert lowest_first == ([1, 0, 2] if self.selector == MinHeap() else [2, 0, 1])

    @pytest.fixture
    def turnover(self) -> Iterator[heap.HeapState]:
        state = self.selector.build(256)
        state.insert(np.arange(256), np.ones(256))
        return iter([state])

    def test_outdated_entries_are_cleaned_away(self, turnover: Iterator[heap.HeapState]) -> None:
        state = next(turnover)
        for _ in range(1500):
            state.update(np.arange(256), np.ones(256))
            assert sum(map(len, [state._heap, *state._retired])) < 3 * (256 + heap._SLACK)
        assert state.first(256).tolist() == list(range(256))

    def test_cleared_entries_are_dismantled_by_later_calls(self, turnover: Iterator[heap.HeapState]) -> None:
        state = next(turnover)
        state.clear()
        for _ in range(8):
            state.insert(slots_of(3), np.ones(1))
            state.delete(slots_of(3))
        assert not state._retired


class TestMinHeap(HeapTests):
    selector = MinHeap()

    def test_it_picks_the_lowest_and_of_equals_the_oldest(self, rng: np.random.Generator) -> None:
        assert drain(state_with(self.selector, [5.0, 1.0, 5.0, 1.0, 9.0]), rng) == [1, 3, 0, 2, 4]


class TestMaxHeap(HeapTests):
    selector = MaxHeap()

    def test_it_picks_the_highest_and_of_equals_the_oldest(self, rng: np.random.Generator) -> None:
        assert drain(state_with(self.selector, [5.0, 1.0, 5.0, 1.0, 9.0]), rng) == [4, 0, 2, 1, 3]


def test_options_are_those_of_reverb() -> None:
    assert Uniform().options() == {"uniform": True, "is_deterministic": False}
    assert Prioritized(0.6).options() == {"prioritized": {"priority_exponent": 0.6}, "is_deterministic": False}
    assert Fifo().options() == {"fifo": True, "is_deterministic": True}
    assert Lifo().options() == {"lifo": True, "is_deterministic": True}
    assert MinHeap().options() == {"heap": {"min_heap": True}, "is_deterministic": True}
    assert MaxHeap().options() == {"heap": {"min_heap": False}, "is_deterministic": True}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fifo": False},
        {"fifo": True, "lifo": True},
        {"heap": {}},
        {"heap": True},
        {"prioritized": {"priority_exponent": "0.6"}},
        {"newest": True},
    ],
)
def test_unknown_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="no selector has the options"):
        from_options(options)


def test_uniform_draws_one_by_one_what_it_draws_together() -> None:
    state = Uniform().build(100)
    state.insert(np.arange(10, 73), np.ones(63))
    together, probabilities = state.sample(500, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    singles = [state.sample(1, rng) for _ in range(500)]
    assert [slots.item() for slots, _ in singles] == together.tolist()
    assert {(slots.dtype, each.dtype, each.item()) for slots, each in singles} == {
        (together.dtype, probabilities.dtype, probabilities[0])
    }
