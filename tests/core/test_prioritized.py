"""Prioritized draws in proportion to ``priority ** exponent``, exactly."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reverb_async.core.selectors import Prioritized, sum_tree
from reverb_async.core.selectors.prioritized import PrioritizedState
from reverb_async.core.selectors.sum_tree import SumTree
from reverb_async.errors import InvalidArgument


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def state_with(exponent: float, priorities: list[float]) -> PrioritizedState:
    state = Prioritized(exponent).build(len(priorities))
    state.insert(np.arange(len(priorities)), np.array(priorities))
    return state


def rates(state: PrioritizedState, rng: np.random.Generator, draws: int = 100_000) -> np.ndarray:
    slots, _ = state.sample(draws, rng)
    return np.bincount(slots, minlength=len(state)) / draws


@pytest.mark.parametrize(
    ("exponent", "priorities", "expected"),
    [
        (1.0, [1.0, 0.1, 0.0], [1 / 1.1, 0.1 / 1.1, 0.0]),
        (1.0, [0.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]),
        (0.0, [0.0, 3.0, 7.0], [0.0, 0.5, 0.5]),
        (0.5, [0.0, 0.0, 4.0, 1.0], [0.0, 0.0, 2 / 3, 1 / 3]),
        (0.0, [0.0, 0.0], [0.5, 0.5]),
    ],
)
def test_rates_and_probabilities_follow_the_priorities(
    exponent: float, priorities: list[float], expected: list[float], rng: np.random.Generator
) -> None:
    state = state_with(exponent, priorities)
    np.testing.assert_allclose(rates(state, rng), expected, atol=0.006)
    slots, probabilities = state.sample(1000, rng)
    np.testing.assert_allclose(probabilities, np.array(expected)[slots], rtol=1e-14)
    if 0.0 in expected:
        assert expected.index(0.0) not in slots


@pytest.mark.parametrize("draws_per_call", [1, 256])
def test_draws_pass_a_chi_square_test(rng: np.random.Generator, draws_per_call: int) -> None:
    n, draws = 3000, 256 * 300
    weights = rng.random(n) ** 2
    state = Prioritized(1.0).build(n)
    state.insert(np.arange(n), weights)
    drawn = np.concatenate([state.sample(draws_per_call, rng)[0] for _ in range(draws // draws_per_call)])
    bins = np.arange(n) % 60
    observed = np.bincount(bins[drawn], minlength=60)
    expected = np.bincount(bins, weights=weights) / weights.sum() * draws
    assert ((observed - expected) ** 2 / expected).sum() < 98.3  # 59 degrees of freedom, once in a thousand seeds


@pytest.mark.parametrize("spread", [0, 3, 40])
def test_probabilities_stay_exact_after_many_mixed_updates(rng: np.random.Generator, spread: int) -> None:
    capacity = 5000
    state = Prioritized(0.7).build(capacity)
    model = np.zeros(capacity)
    present = np.zeros(capacity, bool)
    for size in rng.choice([1, 2, 7, 256, 3000], size=600).tolist():
        slots = rng.permutation(capacity)[:size]
        priorities = 10.0 ** rng.uniform(-spread, spread, size) * (rng.random(size) < 0.9)
        is_new = ~present[slots]
        state.insert(slots[is_new], priorities[is_new])
        state.update(slots[~is_new], priorities[~is_new])
        model[slots], present[slots] = priorities, True
        gone = slots[rng.random(size) < 0.3]
        state.delete(gone)
        model[gone], present[gone] = 0.0, False
    weights = np.where(model > 0.0, model**0.7, 0.0)
    slots, probabilities = state.sample(20_000, rng)
    assert (weights[slots] > 0.0).all()
    np.testing.assert_allclose(probabilities, weights[slots] / math.fsum(weights), rtol=1e-12)


def test_nothing_of_a_huge_weight_stays_behind(rng: np.random.Generator) -> None:
    state = state_with(1.0, [1e-200, 3e-200, 1e280])
    state.update(np.array([2]), np.array([0.0]))
    np.testing.assert_allclose(rates(state, rng), [0.25, 0.75, 0.0], atol=0.006)


def test_a_priority_whose_weight_underflows_is_still_drawn(rng: np.random.Generator) -> None:
    state = state_with(3.0, [1e-300, 0.0, 5e-324])
    slots, probabilities = state.sample(500, rng)
    assert set(slots.tolist()) == {0, 2}
    assert (probabilities == 0.5).all()


def test_the_largest_priorities_can_be_summed(rng: np.random.Generator) -> None:
    for exponent in (0.5, 1.0, 2.0, 30.0):
        selector = Prioritized(exponent)
        priorities = np.full(300, selector.max_priority)
        selector.check_priorities(priorities)
        state = selector.build(300)
        state.insert(np.arange(300), priorities)
        np.testing.assert_allclose(state.sample(256, rng)[1], 1 / 300, rtol=1e-12)


@pytest.mark.parametrize(
    ("exponent", "bad", "message"),
    [
        (1.0, -1.0, "priority -1.0 at position 1 is negative"),
        (1.0, -5e-324, "is negative"),
        (0.6, math.nan, "priority nan at position 1 is not finite"),
        (2.0, 1e160, r"priority 1e\+160 at position 1 is too large for priority_exponent 2.0: at most 3.1"),
    ],
)
def test_priorities_without_a_usable_weight_are_refused(exponent: float, bad: float, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Prioritized(exponent).check_priorities(np.array([1.0, bad, bad]))


def test_minus_zero_is_zero() -> None:
    Prioritized(1.0).check_priorities(np.array([-0.0]))
    assert Prioritized(0.0).weights(np.array([-0.0])).tolist() == [0.0]


@pytest.mark.parametrize("exponent", [-1, math.nan, math.inf, "high", None])
def test_a_meaningless_exponent_is_refused(exponent: float) -> None:
    with pytest.raises(InvalidArgument, match=r"priority_exponent must be a finite number >= 0, got"):
        Prioritized(exponent)


def test_numpy_exponents_become_plain_floats() -> None:
    assert type(Prioritized(np.float32(0.5)).priority_exponent) is float
    assert Prioritized(1) == Prioritized(1.0)


@pytest.mark.parametrize("capacity", [1, 3, 1023, 1024, 1025, 5000])
def test_the_highest_slot_can_be_the_first_one(capacity: int, rng: np.random.Generator) -> None:
    state = Prioritized(1.0).build(capacity)
    state.insert(np.array([capacity - 1]), np.array([2.0]))
    assert state.sample(8, rng)[0].tolist() == [capacity - 1] * 8


class AlmostOne:
    """A source of the largest number below one, and then of zero."""

    def __init__(self) -> None:
        self.calls = 0

    def random(self, n: int | None = None) -> np.ndarray | float:
        self.calls += 1
        value = np.nextafter(1.0, 0.0) if self.calls == 1 else 0.0
        return value if n is None else np.full(n, value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    weights=arrays(
        np.float64,
        st.integers(6, 90),
        elements=st.one_of(st.just(0.0), st.floats(2.3e-308, 1e280), st.sampled_from([1.0, 2.0**-53, 1 / 3])),
    ),
    n=st.sampled_from([1, 9]),
)
def test_extreme_random_numbers_never_draw_a_zero(weights: np.ndarray, n: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sum_tree, "_TOP", 8)
        tree = SumTree(len(weights))
        tree.set(np.arange(len(weights)), weights)
        if not weights.any():
            assert tree.total == 0.0
            return
        np.testing.assert_allclose(tree.total, math.fsum(weights), rtol=1e-13)
        assert (tree.get(tree.draw(n, AlmostOne())[0]) > 0.0).all()  # type: ignore[arg-type]


def assert_sums_equal_a_fresh_build(tree: SumTree) -> None:
    """However it came about, the tree is the one that its weights make in one go."""
    fresh = SumTree(tree._capacity)
    fresh.set(np.arange(tree._highest + 1), tree._levels[0][: tree._highest + 1])
    assert fresh.total == tree.total
    assert fresh._height == tree._height
    for level, expected in zip(tree._levels[: tree._height + 1], fresh._levels, strict=False):
        np.testing.assert_array_equal(level, expected)


@pytest.mark.parametrize(("updates", "capacity"), [(200_000, 300), (200_000, 70_000), (10_000_000, 400_000)])
def test_sums_do_not_drift(rng: np.random.Generator, updates: int, capacity: int) -> None:
    """Blocks of all sizes, scattered and in runs, with weights over 80 orders of magnitude, zeros and duplicates."""
    tree, model = SumTree(2 * capacity), np.zeros(capacity)
    done = draws = 0
    while done < updates:
        size = min(int(2 ** rng.uniform(0, 15)), capacity)
        indices = rng.integers(capacity, size=size)
        if rng.random() < 0.3:
            indices = np.arange(size) + int(rng.integers(capacity - size + 1))
        weights = 10.0 ** rng.uniform(-40, 40, size) * (rng.random(size) < 0.8)
        tree.set(indices, weights)
        model[indices] = weights
        done += size
        if rng.random() < 0.2 and tree.total:
            draws += 1
            assert (model[tree.draw(int(rng.choice([1, 300])), rng)[0]] > 0.0).all()
    assert draws > 10
    np.testing.assert_array_equal(tree.get(np.arange(capacity)), model)
    total = tree.total
    np.testing.assert_allclose(total, math.fsum(model), rtol=1e-12)
    drawn, weights = tree.draw(10_000, rng)
    np.testing.assert_array_equal(weights, model[drawn])
    np.testing.assert_allclose(tree.get(drawn) / total, model[drawn] / math.fsum(model), rtol=1e-12)
    assert_sums_equal_a_fresh_build(tree)
    tree.set(np.arange(capacity), 0.0)
    assert tree.total == 0.0


def test_the_same_seed_draws_the_same(rng: np.random.Generator) -> None:
    """Also when sums were brought up to date at other moments."""
    trees = SumTree(100_000), SumTree(100_000)
    for _ in range(50):
        indices, weights = rng.integers(90_000, size=300), rng.random(300)
        for asked_often, tree in enumerate(trees):
            tree.set(indices, weights)
            assert not asked_often or tree.total > 0.0
    draws = [tree.draw(1000, np.random.default_rng(3))[0].tolist() for tree in trees]
    assert draws[0] == draws[1]


def test_draws_without_changes_between_come_to_lower_levels_and_stay_the_same(rng: np.random.Generator) -> None:
    weights = 10.0 ** rng.uniform(-6, 3, 100_000) * (rng.random(100_000) < 0.7)
    tree, plain = SumTree(100_000), SumTree(100_000)
    flat = set()
    for at in range(300):
        if at % 150 == 0:
            for each in (tree, plain):
                each.set(np.arange(100_000), weights * (1 + at))
        plain.set(np.array([0]), weights[:1] * (at // 150 * 150 + 1))
        drawn = [each.draw(1000, np.random.default_rng(at)) for each in (tree, plain)]
        assert tree.total == plain.total
        assert plain._flat == plain._height == 2
        np.testing.assert_array_equal(drawn[0][1], tree.get(drawn[0][0]))
        # Sums added in another order differ in the last bits, where two neighbours meet.
        assert np.count_nonzero(drawn[0][0] != drawn[1][0]) <= 1
        flat.add(tree._flat)
    assert flat == {0, 1, 2}
    few = tree.draw(3, rng)[0], tree.draw(3, rng)[1]
    assert all((part > 0).all() for part in few)


def test_draws_are_not_in_order(rng: np.random.Generator) -> None:
    state = state_with(1.0, [1.0] * 5000)
    slots = state.sample(2000, rng)[0]
    assert abs(np.corrcoef(slots, np.arange(2000))[0, 1]) < 0.1


def test_among_zeros_only_those_present_are_drawn(rng: np.random.Generator) -> None:
    state = state_with(0.6, [0.0, 0.0, 0.0, 5.0, 0.0])
    state.delete(np.array([1, 3]))
    state.update(np.array([0, 4]), np.array([0.0, 0.0]))
    slots, probabilities = state.sample(200, rng)
    assert set(slots.tolist()) == {0, 2, 4}
    assert (probabilities == 1 / 3).all()
    state.update(np.array([4]), np.array([1e-9]))
    assert state.sample(50, rng)[0].tolist() == [4] * 50
    state.update(np.array([4]), np.array([0.0]))
    state.insert(np.array([1]), np.array([0.0]))
    assert set(state.sample(200, rng)[0].tolist()) == {0, 1, 2, 4}
