from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
from helpers import Clock, Items, insert_block, keys, keys_of, no_keys, settle

from reverb_async.core import selectors
from reverb_async.core.draw import Draw
from reverb_async.core.rate_limiters import MinSize, RateLimiter, SampleToInsertRatio
from reverb_async.errors import RateLimiterTimeout, TableClosed
from reverb_async.table import Table
from reverb_async.waiting import Deadline


@pytest.fixture
def items() -> Items:
    return Items()


def task(coroutine: object) -> asyncio.Task:
    return asyncio.create_task(coroutine)  # type: ignore[arg-type]


class TestBatches:
    @pytest.mark.parametrize(
        "table",
        [
            Table("ratio", max_size=100, rate_limiter=SampleToInsertRatio(1.0, 1, 2.0)),
            Table("slow", max_size=100, rate_limiter=SampleToInsertRatio(0.25, 4, (0.0, 2.0))),
            Table.queue("queue", 2),
            Table("twice", max_size=3, sampler=selectors.Fifo(), max_times_sampled=2),
        ],
        ids=lambda table: table.name,
    )
    async def test_one_larger_than_the_limiters_window_completes(self, items: Items, table: Table) -> None:
        table, numbers = table.replace(), itertools.count()

        async def write() -> None:
            while True:
                await items.insert(table, [next(numbers)])
                await asyncio.sleep(0)

        writers = [task(write()) for _ in range(3)]
        for _ in range(3):
            draw = await table.sample(50)
            assert len(draw) == 50
            table.acknowledge(draw)
        assert table.state.limiter.samples == 150
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)

    async def test_drawn_items_that_are_evicted_while_the_batch_waits_still_show_their_data(self, items: Items) -> None:
        table = Table(
            "t",
            max_size=1,
            sampler=selectors.Fifo(),
            rate_limiter=RateLimiter(1.0, 1, 0.0, 100.0),
            max_times_sampled=2,
        )
        sampling = task(table.sample(4))
        for key in range(4):
            await items.insert(table, [key])  # evicts the one before
            await settle()
        draw = await sampling
        (piece,) = table.plan(draw).run([None])
        assert piece.columns[0].tolist() == draw.keys.tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]
        table.acknowledge(draw)
        assert items.held() == (1, 0)

    async def test_without_removal_all_items_are_drawn_in_one_step_at_the_end(self, items: Items) -> None:
        table = Table("t", max_size=10, sampler=selectors.Lifo(), rate_limiter=RateLimiter(1.0, 1, 0.0, 10.0))
        await items.insert(table, [1, 2])
        sampling = task(table.sample(4))
        await settle()
        assert table.state.limiter.samples == 2  # reserved
        assert table.state.slots.times_sampled[table.state.find(keys(1, 2))].tolist() == [0, 0]
        await items.insert(table, [3, 4])
        draw = await sampling
        assert draw.keys.tolist() == [4] * 4
        assert draw.rate_limited
        assert table.state.limiter.samples == 4

    async def test_a_partial_batch_has_what_there_was_when_the_time_was_up(
        self, items: Items, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(monkeypatch)
        limiter = RateLimiter(1.0, 1, 0.0, 10.0)
        for table in (Table.queue("q", 10), Table("t", max_size=10, sampler=selectors.Fifo(), rate_limiter=limiter)):
            await items.insert(table, [1, 2])
            sampling = task(table.sample(5, deadline=Deadline(3), partial=True))
            await clock.advance(2)
            await items.insert(table, [3])
            await clock.advance(2)
            draw = await sampling
            assert len(draw) == 3
            assert table.state.limiter.samples == 3
            assert draw.rate_limited

    async def test_a_partial_batch_of_nothing_is_a_timeout(self, items: Items) -> None:
        table = Table("t", max_size=10, rate_limiter=MinSize(2))
        await items.insert(table, [1])
        with pytest.raises(RateLimiterTimeout):
            await table.sample(5, deadline=Deadline(0), partial=True)

    async def test_any_number_is_what_there_is_at_once(self, items: Items) -> None:
        limiter = RateLimiter(2.0, 1, 0.0, 10.0)
        for table in (Table.queue("q", 10), Table("t", max_size=10, sampler=selectors.Fifo(), rate_limiter=limiter)):
            await items.insert(table, [1, 2])
            assert len(await table.sample(1, any_number=True)) == 1
            rest = await table.sample(100, any_number=True)
            assert len(rest) == (1 if table.name == "q" else 3)
            assert not rest.rate_limited
            assert table.state.limiter.samples == 1 + len(rest)

    async def test_any_number_waits_for_the_first_and_takes_all_that_came(self, items: Items) -> None:
        table = Table.queue("q", 10)
        first, second = (task(table.sample(3, any_number=True)) for _ in range(2))
        await settle()
        await items.insert(table, [1, 2, 3, 4])
        assert [(await each).keys.tolist() for each in (first, second)] == [[1, 2, 3], [4]]
        assert (await first).rate_limited

    async def test_any_number_of_nothing_is_a_timeout_and_leaves_no_trace(self, items: Items) -> None:
        table = Table("t", max_size=10, rate_limiter=MinSize(2))
        await items.insert(table, [1])
        with pytest.raises(RateLimiterTimeout):
            await table.sample(5, deadline=Deadline(0), any_number=True)
        assert table.state.limiter.samples == 0

    async def test_more_rows_than_one_step_takes_leave_the_loop_its_turn(self, items: Items) -> None:
        table, steps = Table("t", max_size=1000, remover=selectors.Uniform()), []
        await items.insert(table, range(2500), admitted=steps.append)
        assert steps == [1024, 1024, 452]


class TestResetting:
    async def test_a_waiting_insert_enters_the_empty_table(self, items: Items) -> None:
        table = Table.queue("q", 2)
        await items.insert(table, [1, 2])
        waiting = [task(items.insert(table, [key])) for key in range(3, 11)]
        await settle()
        table.reset()
        await settle()
        assert keys_of(table.state) == [3, 4]
        assert [waiter.done() for waiter in waiting] == [True, True] + 6 * [False]
        for waiter in waiting:
            waiter.cancel()

    @pytest.mark.parametrize("max_times_sampled", [0, 1])
    async def test_a_waiting_batch_begins_again(self, items: Items, max_times_sampled: int) -> None:
        table = Table(
            "t",
            max_size=10,
            sampler=selectors.Fifo(),
            rate_limiter=RateLimiter(1.0, 1, 0.0, 10.0),
            max_times_sampled=max_times_sampled,
        )
        await items.insert(table, [1, 2])
        sampling = task(table.sample(3))
        await settle()
        table.reset()
        await items.insert(table, [3])
        await settle()
        assert not sampling.done()
        await items.insert(table, [4, 5])
        draw = await sampling
        assert len(draw) == 3
        assert set(draw.keys.tolist()) <= {3, 4, 5}
        assert (table.state.limiter.inserts, table.state.limiter.samples) == (3, 3)
        await settle()
        table.acknowledge(draw)
        assert items.held() == (table.state.size, 0)

    async def test_giving_up_after_a_reset_takes_nothing_from_the_new_counts(self, items: Items) -> None:
        table = Table.queue("q", 5)
        await items.insert(table, [1, 2])
        sampling = task(table.sample(3))
        await settle()
        table.reset()
        sampling.cancel()
        await asyncio.wait([sampling])
        limiter = table.state.limiter
        assert (limiter.inserts, limiter.samples, limiter.deletes) == (0, 0, 0)


class TestClosing:
    async def test_everybody_gets_table_closed(self, items: Items) -> None:
        empty, full = Table.queue("empty", 1), Table.queue("full", 1)
        await items.insert(full, [1])
        waiting = [task(empty.sample(1)) for _ in range(5)] + [task(items.insert(full, [2])) for _ in range(5)]
        await settle()
        empty.close()
        full.close()
        full.close()
        await settle()
        assert [type(waiter.exception()) for waiter in waiting if waiter.done()] == [TableClosed] * 10
        assert empty.info.waiters == full.info.waiters == ()
        assert items.held() == (1, 0)

    async def test_later_calls_are_refused_and_nothing_changes(self, items: Items) -> None:
        table = Table("t", max_size=5)
        await items.insert(table, [1])
        table.close()
        with pytest.raises(TableClosed, match="table 't' is closed: its server is stopping"):
            await table.sample(1)
        with pytest.raises(TableClosed):
            await items.insert(table, [2])
        for change in (table.reset, lambda: table.mutate(no_keys(), np.zeros(0), keys(1))):
            with pytest.raises(TableClosed):
                change()
        assert keys_of(table.state) == [1]

    async def test_draws_are_settled_after_it_all_the_same(self, items: Items) -> None:
        table = Table.queue("q", 5)
        await items.insert(table, [1, 2])
        kept, returned = await table.sample(1), await table.sample(1)
        table.close()
        table.acknowledge(kept)
        table.hand_back(returned)
        assert keys_of(table.state) == [2]
        table.open()
        assert (await table.sample(1)).keys.tolist() == [2]


async def test_samples_taken_let_waiting_inserts_in_while_the_batch_is_incomplete(items: Items) -> None:
    table = Table.queue("q", 1)
    await items.insert(table, [1])
    inserting = [task(items.insert(table, [key])) for key in (2, 3)]
    await settle()
    draw: Draw = await table.sample(3)
    assert draw.keys.tolist() == [1, 2, 3]
    await asyncio.gather(*inserting)


async def test_room_for_items_in_flight_ends_and_comes_back(items: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reverb_async.core.table_items._SPARE_SLOTS", 4)
    table = Table("t", max_size=3, sampler=selectors.Fifo(), max_times_sampled=1)
    draws = []
    for key in range(10):
        await items.insert(table, [key])
        draws.append(await table.sample(1))
    with pytest.raises(RateLimiterTimeout, match="table 't' waits for samplers to acknowledge items; 0 samplers"):
        await items.insert(table, [10], timeout=0)
    inserting = task(insert_block(table, items.block([10])))
    await settle()
    assert not inserting.done()
    table.acknowledge(draws[0])
    await inserting
    assert keys_of(table.state) == [10]


class TestSeveralAtOnce:
    @pytest.mark.parametrize(
        "definition",
        [
            {"sampler": selectors.Uniform()},
            {"sampler": selectors.Prioritized(0.7)},
            {"sampler": selectors.Fifo(), "max_times_sampled": 3},
            {"sampler": selectors.Lifo(), "max_times_sampled": 1},
            {"sampler": selectors.MaxHeap(), "rate_limiter": RateLimiter(1.0, 2, 5.0, 1e9)},
        ],
        ids=str,
    )
    async def test_they_are_what_calls_one_after_the_other_draw(self, items: Items, definition: dict) -> None:
        tables = [Table(name, max_size=50, seed=3, **definition) for name in ("one by one", "at once")]
        for table in tables:
            await items.insert(table, range(20), np.arange(20.0) + 1)
        alone: list[Draw] = []
        while len(alone) < 6 and (draw := tables[0].sample_now(3, 1)) is not None:
            alone.append(draw)
        together = tables[1].sample_now(3, 6)
        assert len(together) == 3 * len(alone)
        for at, draw in enumerate(alone):
            part = together.part(3 * at, 3 * at + 3)
            for name in ("keys", "probabilities", "priorities", "times_sampled", "table_sizes", "versions"):
                assert getattr(part, name).tolist() == getattr(draw, name).tolist(), name
        for table, draws in zip(
            tables, (alone, [together.part(at, at + 3) for at in range(0, len(together), 3)]), strict=True
        ):
            table.hand_back(draws.pop())
            table.acknowledge(draws[0])
            table.hand_back(draws.pop())
        assert tables[0].state.size == tables[1].state.size
        assert tables[0].state.limiter.samples == tables[1].state.limiter.samples
        following = [table.sample_now(2, 2) for table in tables]
        assert following[0].times_sampled.sum() == following[1].times_sampled.sum()

    async def test_what_is_no_whole_batch_stays_in_the_table(self, items: Items) -> None:
        table = Table.queue("q", 10)
        await items.insert(table, range(10))
        draw = table.sample_now(4, 5)
        assert draw.keys.tolist() == list(range(8))
        assert table.state.size == 2
        assert table.state.limiter.samples == 8
        assert table.sample_now(4, 5) is None
        assert table.sample_now(2, 1).keys.tolist() == [8, 9]

    async def test_nobody_overtakes_those_who_wait(self, items: Items) -> None:
        table = Table.queue("q", 10)
        await items.insert(table, range(2))
        waiting = task(table.sample(3))
        await settle()
        assert table.sample_now(1, 1) is None
        await items.insert(table, [2])
        assert (await waiting).keys.tolist() == [0, 1, 2]
        await items.insert(table, [3])
        assert table.sample_now(1, 4).keys.tolist() == [3]

    async def test_waiting_inserts_go_on(self, items: Items) -> None:
        table = Table.queue("q", 2)
        await items.insert(table, range(2))
        waiting = task(items.insert(table, [2]))
        await settle()
        draw = table.sample_now(1, 1)
        table.acknowledge(draw)
        await waiting

    async def test_a_closed_table_says_so(self, items: Items) -> None:
        table = Table("t", max_size=10)
        await items.insert(table, range(2))
        table.close()
        with pytest.raises(TableClosed):
            table.sample_now(1, 1)
