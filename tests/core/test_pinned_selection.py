"""What Reverb's tables are known to do, one test each; where this package decided otherwise, the name says so."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from helpers import Items, keys, keys_of, make_state, no_keys, settle

from reverb_async.core import selectors
from reverb_async.core.rate_limiters import MinSize, RateLimiter, RateLimiterState, SampleToInsertRatio
from reverb_async.core.selectors import Fifo, Lifo, MaxHeap, MinHeap, Prioritized, Selector, Uniform
from reverb_async.core.table_state import TableState
from reverb_async.errors import InvalidArgument
from reverb_async.table import Table


@pytest.fixture
def items() -> Items:
    return Items()


def sampled_one_by_one(state: TableState) -> list[int]:
    return [int(state.draw(1).keys[0]) for _ in range(state.size)]


def drained(items: Items, sampler: Selector, priorities: list[float]) -> list[int]:
    state = make_state(sampler=sampler, max_times_sampled=1)
    items.put(state, range(len(priorities)), priorities)
    return sampled_one_by_one(state)


def frequencies(state: TableState, n: int) -> list[float]:
    drawn = np.concatenate([state.draw(1000).keys for _ in range(n // 1000)]).astype(np.int64)
    return (np.bincount(drawn, minlength=state.size) / n).tolist()


class TestSelectors:
    def test_01_fifo_samples_in_order_of_insertion_with_probability_1(self, items: Items) -> None:
        state = make_state(sampler=Fifo(), max_times_sampled=1)
        items.put(state, range(5))
        draws = [state.draw(1) for _ in range(5)]
        assert [draw.keys.tolist() for draw in draws] == [[0], [1], [2], [3], [4]]
        assert [draw.probabilities.tolist() for draw in draws] == [[1.0]] * 5

    def test_02_lifo_samples_in_reverse_order_of_insertion(self, items: Items) -> None:
        assert drained(items, Lifo(), [1.0] * 5) == [4, 3, 2, 1, 0]

    def test_03_heaps_sample_by_priority_and_ties_by_age(self, items: Items) -> None:
        assert drained(items, MinHeap(), [5, 1, 5, 1, 9]) == [1, 3, 0, 2, 4]
        assert drained(items, MaxHeap(), [5, 1, 5, 1, 9]) == [4, 0, 2, 1, 3]

    def test_04_updating_to_the_same_priority_moves_an_item_behind_its_equals(self, items: Items) -> None:
        state = make_state(sampler=MinHeap())
        items.put(state, range(3))
        state.mutate(keys(0), np.ones(1), no_keys())
        assert state.draw(1).keys.tolist() == [1]

    def test_05_uniform_reports_and_keeps_one_nth(self, items: Items) -> None:
        state = make_state()
        items.put(state, range(8))
        assert state.draw(10).probabilities.tolist() == [1 / 8] * 10
        assert frequencies(state, 40_000) == pytest.approx([1 / 8] * 8, abs=0.01)

    def test_06_prioritized_never_samples_priority_zero(self, items: Items) -> None:
        state = make_state(sampler=Prioritized(1.0))
        items.put(state, range(3), [1.0, 0.1, 0.0])
        assert frequencies(state, 20_000) == pytest.approx([10 / 11, 1 / 11, 0.0], abs=0.01)
        assert 2 not in state.draw(1000).keys

    def test_07_all_priorities_zero_means_uniform(self, items: Items) -> None:
        state = make_state(sampler=Prioritized(1.0))
        items.put(state, range(4), 0.0)
        assert state.draw(5).probabilities.tolist() == [0.25] * 5
        assert frequencies(state, 20_000) == pytest.approx([0.25] * 4, abs=0.02)

    def test_08_exponents_flatten_but_zero_stays_zero(self, items: Items) -> None:
        flat = make_state(sampler=Prioritized(0.0))
        items.put(flat, range(3), [0.0, 3.0, 7.0])
        assert set(flat.draw(200).keys.tolist()) == {1, 2}
        assert flat.draw(3).probabilities.tolist() == [0.5] * 3
        root = make_state(sampler=Prioritized(0.5))
        items.put(root, range(4), [0.0, 0.0, 4.0, 1.0])
        draw = root.draw(200)
        assert {(int(key), p) for key, p in zip(draw.keys, draw.probabilities, strict=True)} == {(2, 2 / 3), (3, 1 / 3)}

    def test_09_probabilities_stay_exact_under_many_changes(self, items: Items) -> None:
        state = make_state(200, Prioritized(1.0))
        rng = np.random.default_rng(0)
        now: dict[int, float] = {}
        for start in range(0, 6000, 60):
            fresh = np.arange(start, start + 60)
            weights = rng.integers(10, 100, 60) * 10.0 ** rng.integers(-12, 13, 60)
            items.put(state, fresh, weights)
            now |= dict(zip(fresh.tolist(), weights.tolist(), strict=True))
            some = rng.choice(fresh, 20, replace=False).astype(np.uint64)
            state.mutate(some[:15], weights[:15] * 3, some[15:])
            now |= dict(zip(some[:15].tolist(), (weights[:15] * 3).tolist(), strict=True))
        live = keys_of(state)
        total = sum(now[key] for key in live)
        draw = state.draw(1000)
        assert draw.probabilities == pytest.approx([now[int(key)] / total for key in draw.keys], rel=1e-9)
        assert draw.probabilities.min() > 0

    @pytest.mark.parametrize("selector", [Uniform(), Prioritized(0.5), Fifo(), Lifo(), MinHeap(), MaxHeap()], ids=repr)
    def test_10_selectors_refuse_keys_present_twice_or_absent_and_tell_their_options(self, selector: Selector) -> None:
        state = selector.build(10)
        slot, one = np.array([3]), np.ones(1)
        state.insert(slot, one)
        with pytest.raises(InvalidArgument):
            state.insert(slot, one)
        for absent in (lambda: state.update(slot + 1, one), lambda: state.delete(slot + 1)):
            with pytest.raises(InvalidArgument):
                absent()
        assert len(state) == 1
        assert selector.options()["is_deterministic"] == selector.is_deterministic
        assert selectors.from_options(selector.options()) == selector


class TestRateLimiters:
    def test_11_sampling_starts_at_the_minimum_size(self, items: Items) -> None:
        state = make_state(rate_limiter=RateLimiter(1.0, 2, -100.0, 100.0))
        items.put(state, [1])
        assert state.admitted_samples(1) == 0
        items.put(state, [2])
        assert state.admitted_samples(1) == 1

    def test_12_two_inserts_at_one_and_a_half_admit_six_samples(self, items: Items) -> None:
        state = make_state(rate_limiter=RateLimiter(1.5, 1, -3.0, 3.1))
        items.put(state, [1, 2])
        assert state.admitted_samples(7) == 6
        for _ in range(6):
            state.draw(1)
        assert state.admitted_samples(1) == 0

    def test_13_an_insert_waits_for_the_samples_before_it(self, items: Items) -> None:
        state = make_state(rate_limiter=RateLimiter(1.5, 2, -1.0, 3.0))
        items.put(state, [1, 2])
        state.draw(1)
        assert state.admitted_inserts(1) == 0
        state.draw(1)
        assert state.admitted_inserts(1) == 1

    def test_14_samples_may_run_ahead_of_inserts_as_far_as_min_diff(self, items: Items) -> None:
        table = Table("t", max_size=10, rate_limiter=RateLimiter(1.0, 1, -1.0, 10.0))
        items.put(table.state, [1])
        assert [table.can_sample(n) for n in (1, 2, 3)] == [True, True, False]

    def test_15_below_the_minimum_size_inserts_are_free_and_samples_are_not(self, items: Items) -> None:
        state = make_state(rate_limiter=RateLimiter(5.0, 2, 0.0, 5.0))
        assert state.admitted_inserts(3) == 2
        items.put(state, [1, 2])
        assert state.admitted_inserts(1) == 0
        state.mutate(no_keys(), np.zeros(0), keys(1))
        assert state.admitted_inserts(5) == 1
        assert state.admitted_samples(1) == 0
        items.put(state, [3])
        assert state.admitted_samples(1) == 1

    def test_16_error_buffers_that_block_are_refused(self) -> None:
        for refused in (
            (5.0, 10, 4.0),
            (0.5, 10, 0.9),
            (1.0, 10, (11, 15)),
            (1.0, 0, 5.0),
            (0.0, 10, 5.0),
            (-1.0, 10, 5.0),
        ):
            with pytest.raises(InvalidArgument):
                SampleToInsertRatio(*refused)
        with pytest.warns(UserWarning, match="wait for each other"):
            SampleToInsertRatio(1.0, 10, (5, 9))
        limiter = SampleToInsertRatio(1.0, 10, (7, 12))
        assert (limiter.min_diff, limiter.max_diff) == (7.0, 12.0)
        limiter = SampleToInsertRatio(2.0, 10, 6.0)
        assert (limiter.min_diff, limiter.max_diff) == (14.0, 26.0)

    @pytest.mark.parametrize("size", [0, -1])
    def test_17_a_minimum_size_is_at_least_one(self, size: int) -> None:
        with pytest.raises(InvalidArgument):
            MinSize(size)

    def test_18_counts_that_are_restored_go_on_where_they_were(self) -> None:
        restored = RateLimiterState(RateLimiter(2.0, 1, -5.0, 5.0))
        restored.count_inserts(3)
        restored.count_samples(2)
        restored.count_deletes(1)
        assert restored.admitted_inserts(9) == 0  # (3 + 1) * 2 - 2 > 5
        assert restored.admitted_samples(9) == 9
        restored.count_inserts(1)
        restored.count_samples(1)
        assert (restored.inserts, restored.samples, restored.deletes, restored.size) == (4, 3, 1, 3)

    async def test_19_a_reset_lets_a_blocked_insert_in(self, items: Items) -> None:
        table = Table.queue("q", 1)
        await items.insert(table, [1])
        waiting = asyncio.create_task(items.insert(table, [2]))
        await settle()
        table.reset()
        await waiting
        assert keys_of(table.state) == [2]

    async def test_20_a_queue_blocks_when_full_and_when_empty(self, items: Items) -> None:
        table = Table.queue("q", 10)
        await items.insert(table, range(10))
        eleventh = asyncio.create_task(items.insert(table, [10]))
        await settle()
        assert not eleventh.done()
        drawn = []
        for _ in range(11):
            drawn += (await table.sample(1)).keys.tolist()
            await settle()
        assert drawn == list(range(11))
        assert eleventh.done()
        assert table.state.size == 0
        sampling = asyncio.create_task(table.sample(1))
        await settle()
        assert not sampling.done()
        await items.insert(table, [99])
        assert (await sampling).keys.tolist() == [99]
