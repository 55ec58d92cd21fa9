from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest
from helpers import Items, keys_of, settle

from reverb_async.core import selectors
from reverb_async.core.draw import Draw
from reverb_async.core.rate_limiters import MinSize, RateLimiter, SampleToInsertRatio
from reverb_async.table import Table


@pytest.fixture
def items() -> Items:
    return Items()


def task(coroutine: object) -> asyncio.Task:
    return asyncio.create_task(coroutine)  # type: ignore[arg-type]


async def assert_nothing_is_left(table: Table, items: Items, taken: int) -> None:
    """Assert that nobody holds anything of an idle table of which `taken` samples were taken and settled."""
    await settle()
    info, state = table.info, table.state
    assert info.waiters == ()
    assert not len(table.inserters)
    assert not table._samplers.turn.locked()
    assert info.rate_limiter_info.sample_stats.completed == taken
    assert state.limiter.inserts - state.limiter.deletes == state.size
    assert state.slots.capacity - state.slots.num_free == state.size
    assert not state.slots.unsettled.any()
    assert items.held() == (state.size, 0)


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    """A new table of the definition given as a parameter."""
    return request.param.replace()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "table",
    [
        Table("permits", max_size=50, rate_limiter=RateLimiter(1.0, 1, 0.0, 6.0)),
        Table.queue("queue", 6),
        Table("twice", max_size=50, rate_limiter=RateLimiter(1.0, 1, 0.0, 6.0), max_times_sampled=2),
    ],
    ids=lambda table: table.name,
    indirect=True,
)
class TestSamples:
    async def test_a_cancelled_head_gives_back_what_it_had(self, items: Items, table: Table) -> None:
        await items.insert(table, [1, 2])
        head = task(table.sample(4))
        await settle()
        assert table.state.limiter.samples == 2
        head.cancel()
        await asyncio.wait([head])
        assert head.cancelled()
        await assert_nothing_is_left(table, items, taken=0)
        assert keys_of(table.state) == [1, 2]

    async def test_what_it_had_goes_to_the_next(self, items: Items, table: Table) -> None:
        await items.insert(table, [1, 2])
        head, following = task(table.sample(4)), task(table.sample(2))
        await settle()
        assert not following.done()
        head.cancel()
        draw = await following
        assert len(draw) == 2
        table.acknowledge(draw)
        await assert_nothing_is_left(table, items, taken=2)

    async def test_one_from_the_middle_leaves_the_order_as_it_was(self, items: Items, table: Table) -> None:
        served: list[int] = []

        async def sample(name: int) -> None:
            table.acknowledge(await table.sample(1))
            served.append(name)

        waiting = [task(sample(name)) for name in range(5)]
        await settle()
        waiting[2].cancel()
        for key in range(4):
            await items.insert(table, [key])
            await settle()
        assert served == [0, 1, 3, 4]
        await assert_nothing_is_left(table, items, taken=4)

    async def test_cancelling_a_head_that_was_just_woken_does_not_lose_the_wakeup(
        self, items: Items, table: Table
    ) -> None:
        first, second = task(table.sample(1)), task(table.sample(1))
        await settle()
        await items.insert(table, [1])  # wakes the first; does not suspend
        first.cancel()
        draw = await second
        table.acknowledge(draw)
        await assert_nothing_is_left(table, items, taken=1)

    @pytest.mark.parametrize("rounds", range(7))
    async def test_cancelling_after_any_number_of_rounds_leaves_nothing(
        self, items: Items, table: Table, rounds: int
    ) -> None:
        await items.insert(table, [1, 2])
        waiting = [task(table.sample(4)), task(table.sample(3)), task(items.insert(table, [3]))]
        for _ in range(rounds):
            await asyncio.sleep(0)
        taken = 0
        for waiter in waiting:
            waiter.cancel()
        await asyncio.wait(waiting)
        for waiter in waiting[:2]:
            if not waiter.cancelled():
                taken += len(waiter.result())
                table.acknowledge(waiter.result())
        await assert_nothing_is_left(table, items, taken)


class TestInserts:
    async def test_a_cancelled_head_lets_the_next_one_in(self, items: Items) -> None:
        table = Table.queue("q", 1)
        await items.insert(table, [0])
        waiting = [task(items.insert(table, [key])) for key in (1, 2, 3)]
        await settle()
        waiting[0].cancel()
        await settle()
        table.acknowledge(await table.sample(1))
        await asyncio.wait_for(waiting[1], 1)
        assert keys_of(table.state) == [2]
        waiting[2].cancel()
        await assert_nothing_is_left(table, items, taken=1)

    @pytest.mark.parametrize("is_cancelled_first", [True, False])
    async def test_cancelling_a_head_in_the_step_that_admits_it_does_not_lose_the_admission(
        self, items: Items, is_cancelled_first: bool
    ) -> None:
        table, admitted = Table.queue("q", 1), []
        await items.insert(table, [0])
        first, second = task(items.insert(table, [1], admitted=admitted.append)), task(items.insert(table, [2]))
        await settle()
        if is_cancelled_first:
            first.cancel()
        table.acknowledge(await table.sample(1))
        first.cancel()
        await settle()
        assert first.cancelled()
        if is_cancelled_first:
            assert admitted == []
        else:  # It was served before it heard of it: that is no reason to go out again.
            assert admitted == [1]
            assert keys_of(table.state) == [1]
            table.acknowledge(await table.sample(1))
        await asyncio.wait_for(second, 1)
        assert keys_of(table.state) == [2]
        await assert_nothing_is_left(table, items, taken=2 - is_cancelled_first)

    async def test_a_cancelled_batch_leaves_a_prefix_that_it_told(self, items: Items) -> None:
        table, admitted = Table.queue("q", 3), []
        inserting = task(items.insert(table, range(10), admitted=admitted.append))
        await settle()
        draw = await table.sample(2)
        table.acknowledge(draw)
        await settle()
        inserting.cancel()
        await asyncio.wait([inserting])
        assert sum(admitted) == 5
        assert keys_of(table.state) == [2, 3, 4]
        await assert_nothing_is_left(table, items, taken=2)

    async def test_a_row_for_several_tables_leaves_all_their_queues(self, items: Items) -> None:
        tables = [Table.queue(name, 1) for name in "abc"]
        await items.insert(tables[1], [0])
        waiting = task(items.insert(tables, [1]))
        behind = task(items.insert([tables[0], tables[2]], [2]))
        await settle()
        waiting.cancel()
        await asyncio.wait_for(behind, 1)
        assert [keys_of(table.state) for table in tables] == [[2], [0], [2]]
        for table in tables:
            assert table.info.waiters == ()
            assert not len(table.inserters)

    @pytest.mark.parametrize("rounds", range(7))
    async def test_cancelling_after_any_number_of_rounds_leaves_nothing(self, items: Items, rounds: int) -> None:
        tables = [Table.queue("a", 1), Table.queue("b", 2)]
        await items.insert(tables, [0])
        admitted: list[int] = []
        waiting = [task(items.insert(tables, [at, at + 1], admitted=admitted.append)) for at in (1, 3)]
        for at in range(rounds):
            await asyncio.sleep(0)
            if at == 3:
                for table in tables:
                    table.acknowledge(await table.sample(1))
        for waiter in waiting:
            waiter.cancel()
        await asyncio.wait(waiting)
        await settle()
        for table in tables:
            assert table.info.waiters == ()
            assert not len(table.inserters)
            assert table.state.limiter.inserts == 1 + sum(admitted)
        assert items.held() == (len({*keys_of(tables[0].state), *keys_of(tables[1].state)}), 0)


@pytest.mark.parametrize(
    "table",
    [
        Table.queue("queue", 5),
        Table.stack("stack", 3),
        Table("ratio", max_size=20, rate_limiter=SampleToInsertRatio(1.5, 2, 4.0), seed=0),
        Table("thrice", max_size=10, sampler=selectors.Prioritized(0.6), max_times_sampled=3, seed=0),
        Table(
            "evicting",
            max_size=4,
            remover=selectors.Uniform(),
            rate_limiter=SampleToInsertRatio(1.0, 3, 5.0),
            max_times_sampled=2,
            seed=0,
        ),
        Table("big", max_size=40, rate_limiter=MinSize(30), max_times_sampled=1, seed=0),
    ],
    ids=lambda table: table.name,
    indirect=True,
)
async def test_a_thousand_cancellations_leave_nothing_behind(items: Items, table: Table) -> None:
    rng = np.random.default_rng(0)
    numbers = itertools.count()
    taken = 0
    draws: list[Draw] = []
    waiting: list[asyncio.Task] = []
    cancelled = 0

    async def sample(n: int) -> None:
        nonlocal taken
        draw = await table.sample(n)
        taken += n
        draws.append(draw)

    async def insert(n: int) -> None:
        await items.insert(table, [next(numbers) for _ in range(n)])

    while cancelled < 1000:
        waiting = [waiter for waiter in waiting if not waiter.done()]
        for _ in range(rng.integers(1, 6)):
            waiting.append(task((sample if rng.random() < 0.5 else insert)(int(rng.integers(1, 8)))))
        for _ in range(rng.integers(0, 4)):
            await asyncio.sleep(0)
        for at in rng.permutation(len(waiting))[: rng.integers(0, 5)]:
            cancelled += waiting[at].cancel()
        for at in rng.permutation(len(draws))[: rng.integers(0, 3)].tolist():
            if rng.random() < 0.5:
                table.acknowledge(draws[at])
            else:
                table.hand_back(draws[at])
                taken -= len(draws[at])
            draws[at] = None  # type: ignore[call-overload]
        draws = [draw for draw in draws if draw is not None]
    for waiter in waiting:
        waiter.cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    for draw in draws:
        table.acknowledge(draw)
    await assert_nothing_is_left(table, items, taken)
    assert next(numbers) > 100
    assert taken > 20
    table.reset()
    await items.insert(table, range(31 if table.name == "big" else 3))
    assert len(await table.sample(2)) == 2
