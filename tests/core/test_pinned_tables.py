"""What Reverb's tables are known to do, one test each; where this package decided otherwise, the name says so."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from helpers import Items, insert_block, keys, keys_of, make_state, no_keys, settle

from reverb_async.core import rate_limiters
from reverb_async.core.rate_limiters import MinSize, Queue
from reverb_async.core.selectors import Fifo, Lifo, MinHeap, Prioritized, Selector, Uniform
from reverb_async.errors import InvalidArgument, RateLimiterTimeout, TableClosed
from reverb_async.table import Table
from reverb_async.waiting import Deadline


@pytest.fixture
def items() -> Items:
    return Items()


class TestTables:
    def test_21_a_key_inserted_twice_is_an_update(self, items: Items) -> None:
        state = make_state()
        items.put(state, [7], 1.0)
        items.put(state, [7], 5.0)
        assert keys_of(state) == [7]
        assert state.draw(1).priorities.tolist() == [5.0]
        assert state.limiter.inserts == 1

    def test_22_the_remover_decides_what_stays(self, items: Items) -> None:
        for remover, kept in ((Fifo(), range(5, 15)), (Lifo(), range(10))):
            state = make_state(10, remover=remover)
            for key in range(15):
                items.put(state, [key])
            assert keys_of(state) == list(kept)
        state = make_state(3, remover=MinHeap())
        items.put(state, range(3), 5.0)
        items.put(state, [9], 1.0)
        assert keys_of(state) == [0, 1, 2]

    def test_23_an_item_vanishes_with_its_last_sample(self, items: Items) -> None:
        state = make_state(sampler=Fifo(), max_times_sampled=2)
        items.put(state, [1])
        draws = [state.draw(1), state.draw(1)]
        assert [draw.times_sampled.tolist() for draw in draws] == [[1], [2]]
        assert [draw.table_sizes.tolist() for draw in draws] == [[1], [1]]
        assert state.size == 0

    async def test_24_a_batch_waits_until_it_is_whole_unlike_reverb(self, items: Items) -> None:
        table = Table.queue("q", 5)
        await items.insert(table, [1])
        sampling = asyncio.create_task(table.sample(2))
        await settle()
        assert not sampling.done()
        await items.insert(table, [2])
        assert (await sampling).keys.tolist() == [1, 2]

    async def test_25_fifo_repeats_its_head_until_that_is_used_up(self, items: Items) -> None:
        table = Table("t", max_size=10, sampler=Fifo(), rate_limiter=MinSize(3), max_times_sampled=2)
        await items.insert(table, [1, 2, 3])
        assert [int((await table.sample(1)).keys[0]) for _ in range(2)] == [1, 1]
        third = asyncio.create_task(table.sample(1))
        await settle()
        assert not third.done()
        await items.insert(table, [4])
        assert (await third).keys.tolist() == [2]

    async def test_26_a_sample_tells_whether_it_had_to_wait(self, items: Items) -> None:
        table = Table("t", max_size=10)
        waiting = asyncio.create_task(table.sample(1))
        await settle()
        await items.insert(table, [1])
        assert (await waiting).rate_limited
        assert not (await table.sample(1)).rate_limited

    def test_27_episodes_are_counted_until_their_last_item_goes(self, items: Items) -> None:
        state = make_state()
        counts = []
        for key, episode in ((1, 10), (2, 10), (3, 11)):
            items.put(state, [key], episodes=[[episode, episode]])
            counts.append(state.episodes.num_episodes)
        assert counts == [1, 1, 2]
        counts = []
        for key in (2, 3, 1):
            state.mutate(no_keys(), np.zeros(0), keys(key))
            counts.append((state.episodes.num_episodes, state.episodes.num_deleted))
        assert counts == [(2, 0), (1, 1), (0, 2)]
        state.reset()
        assert (state.episodes.num_episodes, state.episodes.num_deleted) == (0, 0)

    async def test_28_info_tells_sizes_and_counts(self, items: Items) -> None:
        table = Table("t", max_size=10, sampler=Fifo(), max_times_sampled=1)
        await items.insert(table, [1, 2])
        await table.sample(1)
        info = table.info
        assert (info.current_size, info.num_episodes, info.num_deleted_episodes, info.num_unique_samples) == (
            1,
            1,
            1,
            1,
        )
        assert info.rate_limiter_info.insert_stats.completed == 2
        assert info.rate_limiter_info.sample_stats.completed == 1
        assert info.num_deletes == 1

    def test_29_an_item_is_one_unique_sample_however_often_it_is_sampled(self, items: Items) -> None:
        state = make_state()
        items.put(state, [1])
        state.draw(5)
        state.draw(2)
        assert state.num_unique_samples == 1

    def test_30_unknown_keys_are_no_error_and_deletes_win(self, items: Items) -> None:
        state = make_state()
        items.put(state, [1, 2])
        assert state.mutate(keys(8), np.ones(1), keys(9)).unknown == 2
        state.mutate(keys(1), np.array([4.0]), keys(1))
        assert keys_of(state) == [2]

    async def test_31_waiting_ends_with_a_timeout_or_with_the_table(self, items: Items) -> None:
        table = Table.queue("q", 1)
        await items.insert(table, [1])
        block = items.block([2])
        with pytest.raises(RateLimiterTimeout):
            await insert_block(table, block, timeout=0.001)
        await table.sample(1)
        sampling = asyncio.create_task(table.sample(1))
        await settle()
        table.close()
        with pytest.raises(TableClosed):
            await sampling
        with pytest.raises(TableClosed):
            await table.sample(1)

    # 32, items without a trajectory: in test_step_rows.

    def test_33_can_sample_asks_the_rate_limiter_only(self, items: Items) -> None:
        table = Table("t", max_size=10, max_times_sampled=1)
        items.put(table.state, [1, 2])
        assert table.can_sample(3)

    def test_34_replace_keeps_what_it_is_not_told(self, items: Items) -> None:
        table = Table("a", max_size=10, sampler=Prioritized(0.5), remover=MinHeap(), rate_limiter=MinSize(2))
        items.put(table.state, [1, 2])
        other = table.replace(rate_limiter=Queue(3))
        assert (other.name, other.state.size, other.info.rate_limiter_info.max_diff) == ("a", 0, 3.0)
        other = table.replace(name="b", max_size=7)
        assert (other.name, other.info.max_size) == ("b", 7)
        assert other.info.sampler_options == Prioritized(0.5).options()
        assert other.info.remover_options == MinHeap().options()
        assert other.info.rate_limiter_info.min_size_to_sample == 2
        assert table.replace(max_times_sampled=3).replace(max_times_sampled=0).info.max_times_sampled == 0
        assert rate_limiters.Stack(3).max_diff == 3.0

    @pytest.mark.parametrize("sampler", [Uniform(), Prioritized(1.0)], ids=repr)
    async def test_77_every_item_is_sampled_exactly_as_often_as_allowed(self, items: Items, sampler: Selector) -> None:
        table = Table("t", max_size=10, sampler=sampler, max_times_sampled=10)
        items.put(table.state, range(3), [0.0, 1.0, 2.0])
        draw = await table.sample(30)
        assert np.bincount(draw.keys.astype(np.int64)).tolist() == [10, 10, 10]
        assert not table.can_sample(3)
        if isinstance(sampler, Prioritized):
            assert set(draw.keys[-10:].tolist()) == {0}
        with pytest.raises(RateLimiterTimeout):
            await table.sample(1, deadline=Deadline(0))

    def test_78_an_illegal_priority_is_refused_before_any_delete_unlike_reverb(self, items: Items) -> None:
        state = make_state(sampler=Prioritized(1.0))
        items.put(state, [1])
        with pytest.raises(InvalidArgument):
            state.mutate(keys(1), np.array([-1.0]), keys(1))
        assert keys_of(state) == [1]
