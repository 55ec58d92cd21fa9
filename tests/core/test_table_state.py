from __future__ import annotations

import numpy as np
import pytest
from helpers import Items, keys, keys_of, make_state, no_keys, shown

from reverb_async.core import rate_limiters, selectors
from reverb_async.core.changes import Change, ChangeKind
from reverb_async.core.table_state import TableState
from reverb_async.errors import InvalidArgument

RANDOM = [selectors.Uniform(), selectors.Prioritized(1.0)]
ORDERED = [selectors.Fifo(), selectors.Lifo(), selectors.MinHeap(), selectors.MaxHeap()]


@pytest.fixture
def items() -> Items:
    return Items()


def once(sampler: selectors.Selector | None = None, max_times_sampled: int = 1, max_size: int = 100) -> TableState:
    return make_state(max_size, sampler or selectors.Fifo(), max_times_sampled=max_times_sampled)


class TestBlocks:
    @pytest.mark.parametrize("max_bytes", [None, 120])
    @pytest.mark.parametrize("remover", ORDERED, ids=repr)
    def test_a_block_leaves_what_its_items_leave_one_by_one(
        self, items: Items, remover: selectors.Selector, max_bytes: int | None
    ) -> None:
        rng = np.random.default_rng(0)
        for size in (1, 3, 20, 50):
            together = make_state(20, remover=remover, max_bytes=max_bytes)
            alone = make_state(20, remover=remover, max_bytes=max_bytes)
            for start in range(0, 100, size):
                numbers = np.arange(start, start + size)
                priorities = rng.integers(4, size=size).astype(float)
                block = items.block(numbers, priorities)
                block.nbytes[:] = rng.integers(1, 60, size)
                together.insert(block, 0.0)
                for at in range(size):
                    alone.insert(block.part(at, at + 1), 0.0)
            assert keys_of(together) == keys_of(alone)
            assert together.nbytes == alone.nbytes
            assert together.limiter.inserts == alone.limiter.inserts
            assert together.limiter.deletes == alone.limiter.deletes

    def test_a_random_remover_may_choose_the_newcomer(self, items: Items) -> None:
        gone = np.zeros(4)
        for seed in range(400):
            state = make_state(3, remover=selectors.Uniform(), seed=seed)
            items.put(state, range(4))
            gone[list(set(range(4)) - set(keys_of(state)))] += 1
        assert ((gone - 100) ** 2 / 100).sum() < 16.3  # chi-squared, 3 degrees of freedom, 0.1 %

    def test_a_block_larger_than_the_table_leaves_what_the_remover_spares(self, items: Items) -> None:
        state = make_state(10)
        items.put(state, range(1000))
        assert keys_of(state) == list(range(990, 1000))
        assert items.held() == (10, 0)

    def test_of_equal_keys_in_a_block_the_later_ones_are_updates(self, items: Items) -> None:
        state = make_state()
        items.put(state, [5, 6, 5], [1.0, 2.0, 3.0])
        assert state.size == state.limiter.inserts == 2
        assert state.slots.priority[state.find(keys(5, 6))].tolist() == [3.0, 2.0]
        assert items.held() == (2, 0)

    def test_zero_and_the_largest_uint64_are_keys_like_others(self, items: Items) -> None:
        state = make_state()
        items.put(state, [0])
        largest = items.block([0])
        largest.keys[:] = 2**64 - 1
        state.insert(largest, 0.0)
        assert keys_of(state) == [0, 2**64 - 1]


class TestPriorityOfNone:
    def test_it_is_one_in_an_empty_table(self, items: Items) -> None:
        state = make_state()
        items.put(state, [1, 2], [np.nan, np.nan])
        assert state.slots.priority[state.find(keys(1, 2))].tolist() == [1.0, 1.0]

    def test_it_is_the_highest_so_far_within_a_block_too(self, items: Items) -> None:
        state = make_state()
        items.put(state, [1, 2, 3, 4, 5], [0.5, np.nan, 3.0, np.nan, 1.0])
        items.put(state, [6], np.nan)
        assert state.slots.priority[state.find(keys(2, 4, 6))].tolist() == [0.5, 3.0, 3.0]

    def test_updates_and_items_that_have_left_count(self, items: Items) -> None:
        state = make_state()
        items.put(state, [1, 2], 1.0)
        state.mutate(keys(1), np.array([7.0]), keys(1))
        items.put(state, [3], np.nan)
        assert state.slots.priority[state.find(keys(3))].tolist() == [7.0]

    def test_an_emptied_table_starts_again(self, items: Items) -> None:
        state = make_state()
        items.put(state, [1], 9.0)
        state.mutate(no_keys(), np.zeros(0), keys(1))
        items.put(state, [2], np.nan)
        assert state.slots.priority[state.find(keys(2))].tolist() == [1.0]


class TestMaxBytes:
    def test_items_leave_until_the_rest_fits(self, items: Items) -> None:
        state = make_state(max_bytes=100)
        items.put(state, [1, 2, 3], nbytes=30)
        items.put(state, [4], nbytes=70)
        assert keys_of(state) == [3, 4]
        assert state.nbytes == 100
        assert state.limiter.deletes == 2

    def test_an_item_beyond_the_whole_limit_is_refused(self, items: Items) -> None:
        state = make_state(max_bytes=100)
        with pytest.raises(InvalidArgument, match=r"101 bytes.*max_bytes=100"):
            items.put(state, [1], nbytes=101)

    def test_a_large_item_that_a_heap_evicts_at_once_leaves_room_for_the_next(self, items: Items) -> None:
        state = make_state(remover=selectors.MinHeap(), max_bytes=10)
        block = items.block([1, 2, 3], [5.0, 3.0, 2.0])
        block.nbytes[:] = [4, 7, 1]
        state.insert(block, 0.0)
        assert keys_of(state) == [1, 3]


class TestSampling:
    @pytest.mark.parametrize("sampler", [*ORDERED, *RANDOM], ids=repr)
    @pytest.mark.parametrize("max_times_sampled", [0, 1, 3])
    def test_drawn_slots_show_the_items_drawn(
        self, items: Items, sampler: selectors.Selector, max_times_sampled: int
    ) -> None:
        state = once(sampler, max_times_sampled)
        items.put(state, range(20), np.arange(20.0))
        draw = state.draw(12)
        assert shown(state, draw) == draw.keys.tolist()

    @pytest.mark.parametrize("sampler", [selectors.Fifo(), selectors.Uniform()], ids=repr)
    def test_a_draw_ends_where_used_up_items_leave_too_few(self, items: Items, sampler: selectors.Selector) -> None:
        state = make_state(sampler=sampler, max_times_sampled=1, rate_limiter=rate_limiters.MinSize(3))
        items.put(state, range(5))
        draw = state.draw(5)
        assert draw.table_sizes.tolist() == [5, 4, 3]
        assert state.size == 2
        assert state.limiter.samples == 3

    @pytest.mark.parametrize("max_times_sampled", [0, 1000])
    def test_prioritized_draws_follow_the_priorities(self, items: Items, max_times_sampled: int) -> None:
        state = once(selectors.Prioritized(1.0), max_times_sampled)
        items.put(state, range(5), [0.0, 1.0, 2.0, 3.0, 4.0])
        draw = state.draw(1000)
        assert draw.probabilities.tolist() == [int(key) / 10 for key in draw.keys]
        counts = np.bincount(draw.keys.astype(np.int64), minlength=5)
        assert counts[0] == 0
        expected = np.array([100, 200, 300, 400])
        assert ((counts[1:] - expected) ** 2 / expected).sum() < 16.3  # chi-squared, 3 degrees of freedom, 0.1 %

    def test_seeds_make_draws_reproducible(self, items: Items) -> None:
        first, again, other = (make_state(seed=seed) for seed in (7, 7, 8))
        for state in (first, again, other):
            items.put(state, range(100))
        drawn = [state.draw(50).keys.tolist() for state in (first, again, other)]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_an_item_counts_its_samples_also_within_one_draw(self, items: Items) -> None:
        state = make_state(sampler=selectors.Fifo())
        items.put(state, [1, 2])
        assert state.draw(3).times_sampled.tolist() == [1, 2, 3]
        assert state.draw(1).times_sampled.tolist() == [4]

    def test_reserved_samples_are_counted_once(self, items: Items) -> None:
        state = make_state(rate_limiter=rate_limiters.RateLimiter(1.0, 1, 0.0, 10.0))
        items.put(state, range(3))
        state.reserve_samples(2)
        assert state.admitted_samples(5) == 1
        assert len(state.draw(3, reserved=2)) == 3
        assert state.limiter.samples == 3


class TestMutating:
    def test_updates_come_before_deletes(self, items: Items) -> None:
        state = make_state()
        items.put(state, [1, 2, 3])
        result = state.mutate(keys(1, 2, 9), np.array([2.0, 3.0, 4.0]), keys(2, 8, 9))
        assert (result.updated, result.deleted, result.unknown) == (2, 1, 2)
        assert keys_of(state) == [1, 3]

    def test_the_last_of_duplicate_keys_wins(self, items: Items) -> None:
        state = make_state(sampler=selectors.MinHeap())
        items.put(state, [1, 2], 5.0)
        assert state.mutate(keys(1, 2, 1), np.array([9.0, 3.0, 1.0]), keys()).updated == 2
        assert state.draw(1).keys.tolist() == [1]

    @pytest.mark.parametrize("priority", [-1.0, np.nan, np.inf])
    def test_a_bad_priority_changes_nothing(self, items: Items, priority: float) -> None:
        state = make_state(sampler=selectors.Prioritized(0.5))
        items.put(state, [1, 2], 5.0)
        with pytest.raises(InvalidArgument, match="position 1"):
            state.mutate(keys(1, 2), np.array([1.0, priority]), keys(1))
        assert keys_of(state) == [1, 2]
        assert state.slots.priority[state.live_slots()].tolist() == [5.0, 5.0]

    @pytest.mark.parametrize("sampler_first", [True, False])
    def test_sampler_and_remover_both_have_a_say_in_priorities(self, items: Items, sampler_first: bool) -> None:
        pair = [selectors.Prioritized(1.0), selectors.Fifo()]
        state = make_state(sampler=pair[not sampler_first], remover=pair[sampler_first])
        with pytest.raises(InvalidArgument, match="negative"):
            items.put(state, [1], -1.0)
        assert state.size == 0

    def test_a_deleted_item_gives_its_rows_back(self, items: Items) -> None:
        state = make_state()
        items.put(state, range(4))
        state.mutate(no_keys(), np.zeros(0), keys(0, 3, 3))
        assert items.held() == (2, 0)


class TestResetting:
    def test_it_counts_from_zero(self, items: Items) -> None:
        state = once(max_times_sampled=2)
        items.put(state, range(4), episodes=[[0, 0]] * 4)
        state.draw(3)
        state.mutate(no_keys(), np.zeros(0), keys(3))
        state.reset()
        limiter = state.limiter
        assert (limiter.inserts, limiter.samples, limiter.deletes, state.size, state.nbytes) == (0, 0, 0, 0, 0)
        assert (state.num_unique_samples, state.episodes.num_episodes, state.episodes.num_deleted) == (0, 0, 0)
        assert state.admitted_samples(1) == 0

    def test_rows_come_back_slice_by_slice_while_the_table_is_in_use(self, items: Items) -> None:
        state = make_state()
        items.put(state, range(10))
        state.reset()
        items.put(state, range(5))
        state.reset()
        items.put(state, range(3))
        held = []
        while state.dismantle(4):
            held.append(items.held()[0])
        held.append(items.held()[0])
        assert held == [14, 10, 8, 4, 3]
        assert keys_of(state) == [0, 1, 2]

    def test_rows_of_sampled_out_items_come_back_too(self, items: Items) -> None:
        state = once()
        items.put(state, range(4))
        state.draw(2)
        state.reset()
        assert state.dismantle() is False
        assert items.held() == (0, 0)


def test_every_change_is_recorded_in_order(items: Items) -> None:
    state = once(max_size=3)
    changes: list[Change] = []
    state.listeners.append(changes.append)
    items.put(state, [1, 2, 3])
    items.put(state, [4])
    items.put(state, [4], 6.0)
    state.hand_back(state.draw(1))
    state.mutate(keys(3), np.array([2.0]), keys(4))
    state.reset()
    assert [(change.number, change.kind, change.keys.tolist()) for change in changes] == [
        (1, ChangeKind.INSERT, [1, 2, 3]),
        (2, ChangeKind.INSERT, [4]),
        (3, ChangeKind.EVICT, [1]),
        (4, ChangeKind.UPDATE, [4]),
        (5, ChangeKind.SAMPLE_OUT, [2]),
        (6, ChangeKind.HAND_BACK, [2]),
        (7, ChangeKind.UPDATE, [3]),
        (8, ChangeKind.DELETE, [4]),
        (9, ChangeKind.RESET, []),
    ]
