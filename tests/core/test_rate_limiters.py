"""A limiter admits by `inserts * samples_per_insert - samples`, exactly as Reverb does."""

import pickle
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverb_async.core.rate_limiters import (
    MinSize,
    Queue,
    RateLimiter,
    RateLimiterState,
    SampleToInsertRatio,
    Stack,
)
from reverb_async.errors import InvalidArgument

MAX = sys.float_info.max


def state_of(limiter: RateLimiter, inserts: int = 0, samples: int = 0, deletes: int = 0) -> RateLimiterState:
    state = RateLimiterState(limiter)
    state.count_inserts(inserts)
    state.count_samples(samples)
    state.count_deletes(deletes)
    return state


def test_sampling_starts_at_the_minimum_size() -> None:
    state = state_of(RateLimiter(1.0, 2, -MAX, MAX), inserts=1)
    assert not state.can_sample()
    state.count_inserts(1)
    assert state.can_sample()


def test_both_bounds_are_inclusive() -> None:
    # r=1.5, m=2, lo=0, hi=5, from Reverb's own tests.
    state = state_of(RateLimiter(1.5, 2, 0.0, 5.0))
    assert [state.can_insert(n) for n in (1, 2, 3, 4)] == [True, True, True, False]
    state.count_inserts(3)
    assert not state.can_insert(1)
    state.count_samples(2)
    assert [state.can_insert(n) for n in (1, 2)] == [True, False]


def test_two_inserts_at_three_samples_each_admit_six_samples() -> None:
    state = state_of(RateLimiter(1.5, 1, -3.0, 3.1))
    for _ in range(2):
        assert state.can_insert()
        state.count_inserts(1)
    for _ in range(6):
        assert state.can_sample()
        state.count_samples(1)
    assert not state.can_sample()


def test_a_sample_makes_room_for_an_insert() -> None:
    state = state_of(RateLimiter(1.5, 2, -1.0, 3.0), inserts=2, samples=1)
    assert not state.can_insert()  # 3 * 1.5 - 1 = 3.5
    state.count_samples(1)
    assert state.can_insert()


def test_several_samples_count_at_once() -> None:
    state = state_of(RateLimiter(1.0, 1, -1.0, MAX), inserts=1)
    assert [state.can_sample(n) for n in (1, 2, 3)] == [True, True, False]


def test_a_delete_admits_inserts_only_up_to_the_minimum_size() -> None:
    state = state_of(RateLimiter(5.0, 2, 0.0, 5.0))
    for _ in range(2):
        assert state.can_insert()
        state.count_inserts(1)
    state.count_samples(1)
    assert not state.can_insert()
    state.count_deletes(1)
    assert state.can_insert()
    assert not state.can_sample()
    state.count_inserts(1)
    assert state.can_sample()


def test_deleting_from_a_full_queue_admits_nothing() -> None:
    state = state_of(Queue(10), inserts=10)
    state.count_deletes(3)
    assert not state.can_insert()


def test_a_queue_holds_its_size_and_gives_each_item_once() -> None:
    state = state_of(Queue(10))
    assert state.admitted_inserts(11) == 10
    state.count_inserts(10)
    assert not state.can_insert()
    for _ in range(11):
        assert state.can_sample()
        state.count_samples(1)
        state.count_deletes(1)
        if state.inserts < 11:
            assert state.can_insert()
            state.count_inserts(1)
    assert state.size == 0
    assert not state.can_sample()
    assert state.can_insert()


def test_counts_can_be_taken_back_restored_and_reset() -> None:
    state = state_of(MinSize(1), inserts=5, samples=3, deletes=1)
    state.count_samples(-2)
    state.count_deletes(-1)
    assert (state.inserts, state.samples, state.deletes, state.size) == (5, 1, 0, 5)
    restored = state_of(MinSize(1))
    restored.inserts, restored.samples, restored.deletes = 7, 2, 4
    restored.count_inserts(1)
    restored.count_samples(1)
    assert (restored.inserts, restored.samples, restored.size) == (8, 3, 4)
    state.reset()
    assert (state.inserts, state.samples, state.deletes) == (0, 0, 0)


def test_reset_admits_a_refused_insert() -> None:
    state = state_of(Queue(2), inserts=2)
    assert not state.can_insert()
    state.reset()
    assert state.can_insert()


@pytest.mark.parametrize("n", [0, -1])
def test_asking_for_less_than_one_is_refused(n: int) -> None:
    state = state_of(MinSize(1))
    for ask in (state.can_insert, state.can_sample, state.insert_refusal, state.sample_refusal):
        with pytest.raises(InvalidArgument, match=f"n must be >= 1, got {n}"):
            ask(n)
    assert state.admitted_inserts(n) == state.admitted_samples(n) == 0


counts = st.integers(0, 60)
limiters = st.builds(
    RateLimiter,
    st.one_of(st.sampled_from([0.1, 0.3, 1.0, 1.5, 5.0, 1 / 3]), st.floats(0.01, 20.0)),
    st.integers(1, 20),
    st.one_of(st.just(-MAX), st.floats(-50.0, 50.0), st.integers(-50, 50)),
    st.one_of(st.just(MAX), st.floats(-50.0, 100.0), st.integers(-50, 100)),
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(limiter=limiters, inserts=counts, samples=counts, deletes=counts, n=st.integers(1, 40), offset=st.booleans())
def test_admitted_counts_equal_those_of_a_loop_of_single_steps(
    limiter: RateLimiter, inserts: int, samples: int, deletes: int, n: int, offset: bool
) -> None:
    huge = 2**53 // 7 if offset else 0  # where rounding shows
    state = state_of(limiter, inserts + huge, samples + int(huge * limiter.samples_per_insert), min(deletes, inserts))
    state.count_deletes(huge)
    admitted_inserts, admitted_samples = state.admitted_inserts(n), state.admitted_samples(n)
    steps = 0
    while steps < n and state.can_insert():
        state.count_inserts(1)
        steps += 1
    assert admitted_inserts == steps
    state.count_inserts(-steps)
    steps = 0
    while steps < n and state.can_sample():
        state.count_samples(1)
        steps += 1
    assert admitted_samples == steps


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    ratio=st.integers(1, 40).map(lambda eighths: eighths / 8),  # exact in binary: no rounding blurs the bound
    low=st.integers(-50, 50),
    high=st.integers(-50, 50),
    minimum=st.integers(1, 20),
    inserts=counts,
    samples=counts,
    deletes=counts,
    n=st.integers(1, 10),
)
def test_a_refusal_names_the_smallest_number_that_helps(
    ratio: float, low: int, high: int, minimum: int, inserts: int, samples: int, deletes: int, n: int
) -> None:
    state = state_of(RateLimiter(ratio, minimum, low, high), inserts, samples, min(deletes, inserts))
    if refusal := state.insert_refusal(n):
        missing = int(refusal.split()[1])
        state.count_samples(missing - 1)
        assert not state.can_insert(n)
        state.count_samples(1)
        assert state.can_insert(n)
        state.count_samples(-missing)
    assert (refusal == "") == state.can_insert(n)
    if refusal := state.sample_refusal(n):
        missing = int(refusal.split()[1])
        state.count_inserts(missing - 1)
        assert not state.can_sample(n)
        state.count_inserts(1)
        assert state.can_sample(n) or "min_size_to_sample" in refusal  # then the bound may be next
        state.count_inserts(-missing)
    assert (refusal == "") == state.can_sample(n)


def test_refusals_are_sentences_with_numbers() -> None:
    assert state_of(MinSize(1000), inserts=600, deletes=12).sample_refusal() == (
        "needs 412 more inserts (min_size_to_sample 1000, holds 588)"
    )
    assert state_of(MinSize(2), inserts=1).sample_refusal() == ("needs 1 more insert (min_size_to_sample 2, holds 1)")
    state = state_of(SampleToInsertRatio(4.0, 10, 8.0), inserts=12, samples=3)
    assert state.insert_refusal() == (
        "needs 1 more sample (samples_per_insert 4, 12 inserts, 3 samples so far, max_diff 48)"
    )
    assert state.insert_refusal(2).startswith("needs 5 more samples")
    assert state.sample_refusal(20) == (
        "needs 2 more inserts (samples_per_insert 4, 12 inserts, 3 samples so far, min_diff 32)"
    )
    assert state.sample_refusal() == state_of(MinSize(1)).insert_refusal() == ""
    never = state_of(RateLimiter(1.0, 1, MAX, -MAX), inserts=1)
    assert never.insert_refusal().startswith("needs more samples than can be counted")
    assert never.sample_refusal().startswith("needs more inserts than can be counted")


def test_each_kind_sets_the_four_numbers() -> None:
    def numbers(limiter: RateLimiter) -> tuple[float, int, float, float]:
        assert isinstance(limiter, RateLimiter)
        return limiter.samples_per_insert, limiter.min_size_to_sample, limiter.min_diff, limiter.max_diff

    assert numbers(MinSize(7)) == (1.0, 7, -MAX, MAX)
    assert numbers(SampleToInsertRatio(2.0, 10, 5)) == (2.0, 10, 15.0, 25.0)
    assert numbers(SampleToInsertRatio(1, 10, (7, 12))) == (1.0, 10, 7.0, 12.0)
    assert numbers(Queue(3)) == numbers(Stack(3)) == (1.0, 1, 0.0, 3.0)


def test_limiters_are_values() -> None:
    for limiter in (RateLimiter(1.5, 2, 0, 5), MinSize(3), SampleToInsertRatio(1, 10, 4.0), Queue(5), Stack(5)):
        assert pickle.loads(pickle.dumps(limiter)) == limiter
        assert len({limiter, pickle.loads(pickle.dumps(limiter))}) == 1
        with pytest.raises(AttributeError):
            limiter.max_diff = 3.0  # type: ignore[misc]
    assert repr(MinSize(3)) == "MinSize(3)"
    assert repr(SampleToInsertRatio(1, 10, 4)) == "SampleToInsertRatio(1.0, 10, (6.0, 14.0))"
    assert repr(Queue(5)) == "Queue(5)"
    assert repr(Stack(5)) == "Stack(5)"
    assert repr(RateLimiter(1, 2, 0, 5)).startswith("RateLimiter(samples_per_insert=1.0, min_size_to_sample=2")


@pytest.mark.parametrize("scalar", [np.float32, np.float64, np.int64, np.array])
def test_numpy_numbers_are_fine(scalar: type) -> None:
    assert SampleToInsertRatio(scalar(2), np.int64(10), scalar(5)) == SampleToInsertRatio(2.0, 10, 5.0)
    assert type(SampleToInsertRatio(scalar(2), np.int64(10), scalar(5)).max_diff) is float
    assert SampleToInsertRatio(1, 10, np.array([7, 12])) == SampleToInsertRatio(1, 10, (7, 12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 10, 4), "leaves 8 between the bounds; with samples_per_insert 5 it takes at least 10"),
        ((0.5, 10, 0.9), "leaves 1.8 between the bounds"),
        ((1, 10, (11, 15)), r"the lower bound 11 of error_buffer is above .* 10"),
        ((1, 0, 4), "min_size_to_sample must be >= 1, got 0"),
        ((0, 10, 4), "samples_per_insert must be a finite number > 0, got 0"),
        ((-1.5, 10, 4), "samples_per_insert must be a finite number > 0, got -1.5"),
        ((1, 10, (1, 2, 3)), r"error_buffer must be a number or a pair \(low, high\), got \(1, 2, 3\)"),
        ((1, 10, "wide"), "error_buffer must be a number, got 'wide'"),
        ((1, 10, float("nan")), "error_buffer must be a number, got nan"),
    ],
)
def test_ratios_that_would_block_for_ever_are_refused(arguments: tuple[float, int, float], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        SampleToInsertRatio(*arguments)


def test_an_upper_bound_below_the_start_is_accepted_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="the upper bound 9 of error_buffer is below"):
        limiter = SampleToInsertRatio(1, 10, (5, 9))
    assert (limiter.min_diff, limiter.max_diff) == (5.0, 9.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SampleToInsertRatio(1, 10, (7, 12))


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_below_one_are_refused(size: int) -> None:
    for kind in (MinSize, Queue, Stack):
        with pytest.raises(InvalidArgument, match=f"must be >= 1, got {size}"):
            kind(size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1, 0.0, 1.0), "samples_per_insert must be a finite number > 0"),
        ((float("inf"), 1, 0.0, 1.0), "samples_per_insert must be a finite number > 0, got inf"),
        ((1.0, 0, 0.0, 1.0), "min_size_to_sample must be >= 1, got 0"),
        ((1.0, 2.5, 0.0, 1.0), "min_size_to_sample must be an integer, got 2.5"),
        ((1.0, 1, float("nan"), 1.0), "min_diff must be a number, got nan"),
        ((1.0, 1, 0.0, None), "max_diff must be a number, got None"),
    ],
)
def test_meaningless_numbers_are_refused(arguments: tuple[float, int, float, float], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        RateLimiter(*arguments)
