"""Calls may be cancelled and iterators left at any moment: nothing stays behind, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from reliability_rig import (
    Baseline,
    another_client,
    cancel_after_turns,
    in_process_and_tcp,
    num_streams,
    serving,
    until_nothing_waits_or_is_held,
)

import reverb_async as ra
from reverb_async.testing import until

CANCELLATIONS = 1000

Call = Callable[[ra.Client], Coroutine[Any, Any, object]]


async def next_batch(client: ra.Client, table: str, size: int = 1, taken: list[int] | None = None) -> None:
    """Take one batch; it counts as taken even if leaving the iterator is cancelled."""
    async with client.sample_batches(table, size, prefetch=2) as batches:
        batch = await anext(batches)
        if taken is not None:
            taken += batch.data["x"].tolist()


async def next_batch_bare(client: ra.Client, table: str) -> None:
    async for _ in client.sample_batches(table, 2):
        break


async def draw_batch(client: ra.Client, table: str, size: int, taken: list[int]) -> None:
    taken += (await client.sample_batch(table, size)).data["x"].tolist()


async def draw_one(client: ra.Client, table: str, taken: list[int]) -> None:
    taken.append(int((await client.sample_one(table)).data["x"]))


async def create_and_flush(client: ra.Client, table: str) -> None:
    async with client.trajectory_writer(2, max_in_flight_items=1) as writer:
        for number in range(3):
            writer.append({"x": np.int64(number)})
            await writer.create_item(table, 1.0, trajectory={"x": writer.history["x"][-1]})
        await writer.flush()


async def end_episode(client: ra.Client, table: str) -> None:
    writer = client.trajectory_writer(2)
    try:
        writer.append({"x": np.int64(0)})
        await writer.create_item(table, 1.0, trajectory={"x": writer.history["x"][-1]})
        await writer.end_episode()
    finally:
        writer.abort()


WAITING: dict[str, Call] = {
    "insert at a full table": lambda client: client.insert({"x": np.int64(0)}, {"full": 1.0}),
    "insert into two tables": lambda client: client.insert({"x": np.int64(0)}, {"full": 1.0, "open": 1.0}),
    "insert with a timeout": lambda client: client.insert({"x": np.int64(0)}, {"full": 1.0}, timeout=30),
    "insert_batch at a full table": lambda client: client.insert_batch({"x": np.arange(300)}, {"full": 1.0}),
    "create_item, flush": lambda client: create_and_flush(client, "full"),
    "end_episode": lambda client: end_episode(client, "full"),
    "sample_one": lambda client: client.sample_one("empty"),
    "sample_batch": lambda client: client.sample_batch("starved", 3),
    "sample_batches, anext": lambda client: next_batch(client, "empty"),
    "sample_batches, left bare": lambda client: next_batch_bare(client, "empty"),
}
ANSWERED: dict[str, Callable[[ra.Client, list[int]], Coroutine[Any, Any, object]]] = {
    "mutate_priorities": lambda client, _: client.mutate_priorities("open", {1: 2.0}, [3]),
    "server_info": lambda client, _: client.server_info(),
    "reset": lambda client, _: client.reset("empty"),
    "sample_one": lambda client, taken: draw_one(client, "open", taken),
    "sample_batch": lambda client, taken: draw_batch(client, "open", 4, taken),
    "sample_batches, anext": lambda client, taken: next_batch(client, "open", 3, taken),
}


def tables() -> list[ra.Table]:
    return [
        ra.Table.queue("full", 2),
        ra.Table("open", max_size=10_000, sampler=ra.selectors.Prioritized(1.0)),
        ra.Table("empty", max_size=10),
        ra.Table("starved", max_size=10, rate_limiter=ra.rate_limiters.SampleToInsertRatio(2.0, 1, 2.0)),
    ]


async def fill(client: ra.Client) -> None:
    await client.insert_batch({"x": np.arange(2)}, {"full": 1.0})
    await client.insert_batch({"x": np.arange(4)}, {"open": 1.0})
    await client.insert({"x": np.int64(1)}, {"starved": 1.0})


@in_process_and_tcp
@pytest.mark.parametrize("name", WAITING)
async def test_cancelled_waits_leave_nothing_behind(way: str, name: str) -> None:
    rng = random.Random(name)
    async with serving(tables(), way) as (server, client):
        await fill(client)
        await cancel_after_turns(WAITING[name](client), 50)  # What the client keeps open for later calls is open now.
        before = {table.name: table.info for table in server.tables.values()}
        baseline = Baseline(server)
        left = CANCELLATIONS // len(WAITING)
        while left > 0:
            together = min(left, rng.choice([1, 1, 2, 5, 20]))
            outcomes = await asyncio.gather(
                *(cancel_after_turns(WAITING[name](client), rng.randrange(40)) for _ in range(together))
            )
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes
            left -= together
        await baseline.settle(tasks=way == "in-process")
        await until_nothing_waits_or_is_held(server)
        for table, info in before.items():
            now = server.tables[table].info
            assert now.current_size == info.current_size
            assert now.rate_limiter_info == info.rate_limiter_info, (table, now, info)
            assert now.num_unique_samples == info.num_unique_samples
        # The client still works, on the same streams.
        assert (await client.sample_batch("full", 2, timeout=5)).data["x"].tolist() == [0, 1]
        await client.insert({"x": np.int64(5)}, {"empty": 1.0}, timeout=5)
        assert (await client.sample_one("empty", timeout=5)).data["x"] == 5


@in_process_and_tcp
@pytest.mark.parametrize("name", ANSWERED)
async def test_cancelled_calls_that_would_have_been_answered_leave_nothing_behind(way: str, name: str) -> None:
    rng = random.Random(name)
    async with serving(tables(), way) as (server, client):
        await fill(client)
        taken: list[int] = []
        for _ in range(CANCELLATIONS // len(ANSWERED)):
            outcome = await cancel_after_turns(ANSWERED[name](client, taken), rng.choice([None, rng.randrange(30)]))
            assert not isinstance(outcome, Exception), outcome
        await until(lambda: server.tables["open"].info.rate_limiter_info.sample_stats.completed == len(taken))
        await client.close()
        await until(lambda: num_streams(server) == 0)
        await until_nothing_waits_or_is_held(server)
        assert server.tables["open"].info.current_size == 4


@in_process_and_tcp
async def test_cancelled_inserts_are_in_wholly_or_not_at_all(way: str) -> None:
    """Of a batch a prefix is in; what two tables get is the same."""
    rng = random.Random(7)
    async with serving([ra.Table.queue("a", 1 << 16), ra.Table.queue("b", 1 << 16)], way) as (server, client):
        await client.insert({"x": np.int64(0), "call": np.int64(-1)}, {"a": 1.0, "b": 1.0})
        whole = {-1}
        for call in range(200):
            data = {"x": np.arange(50), "call": np.full(50, call)}
            inserting = client.insert_batch(data, {"a": 1.0, "b": 1.0})
            outcome = await cancel_after_turns(inserting, rng.choice([None, rng.randrange(30)]))
            if not isinstance(outcome, BaseException):
                whole.add(call)
        sizes = {name: table.info.current_size for name, table in server.tables.items()}
        first, second = [(await client.sample_batch(name, size)).data for name, size in sizes.items()]
        np.testing.assert_array_equal(first["x"], second["x"])
        np.testing.assert_array_equal(first["call"], second["call"])
        for call in np.unique(first["call"]).tolist():
            numbers = first["x"][first["call"] == call].tolist()
            assert numbers == list(range(len(numbers)))
            assert call not in whole or len(numbers) == (1 if call == -1 else 50)
        assert whole <= set(first["call"].tolist())
        await client.close()
        await until_nothing_waits_or_is_held(server)


@in_process_and_tcp
async def test_a_cancelled_draw_from_a_queue_goes_back_to_its_place(way: str) -> None:
    """Whoever draws gets the items in order, however many others gave up in between."""
    rng = random.Random(3)
    async with serving([ra.Table.queue("q", 10_000)], way) as (server, client):
        await client.insert_batch({"x": np.arange(600)}, {"q": 1.0})
        numbers: list[int] = []
        while len(numbers) < 600:
            size = rng.choice([1, 3]) if len(numbers) < 598 else 1
            take = rng.choice([draw_batch, next_batch])
            turns = rng.choice([None, rng.randrange(30), rng.randrange(300)])
            outcome = await cancel_after_turns(take(client, "q", size, taken=numbers), turns)
            assert not isinstance(outcome, Exception), outcome
        assert numbers == list(range(600))
        await client.close()
        await until_nothing_waits_or_is_held(server)
        assert server.tables["q"].info.rate_limiter_info.sample_stats.completed == 600


# -- leaving iterators ------------------------------------------------------------------------------------------------


@in_process_and_tcp
@pytest.mark.parametrize("how", ["async with", "aclose", "bare", "client closed"])
async def test_learners_that_leave_early_take_every_item_once_and_in_order(way: str, how: str) -> None:
    rng = random.Random(5)
    async with serving([ra.Table.queue("q", 10_000)], way) as (server, client):
        total = 300
        await client.insert_batch({"x": np.arange(total)}, {"q": 1.0})
        taken: list[int] = []

        async def learn() -> None:
            learner = another_client(server, way) if how == "client closed" else client
            size = rng.choice([1, 2, 5])
            wanted = rng.randrange(1, 9)
            iterator = learner.sample_batches("q", size, prefetch=rng.randrange(5))
            try:
                if how == "async with":
                    async with iterator:
                        async for batch in iterator:
                            taken.extend(batch.data["x"].tolist())
                            wanted -= 1
                            if not wanted:
                                break
                else:
                    async for batch in iterator:
                        taken.extend(batch.data["x"].tolist())
                        wanted -= 1
                        if not wanted or len(taken) == total:
                            break
                    if how == "aclose":
                        await iterator.aclose()
            finally:
                if how == "client closed":
                    await learner.close()

        while len(taken) < total - 20:
            await learn()
            if how == "bare":
                gc.collect()
            await until(lambda: num_streams(server) <= 1)  # All but the inserter's have gone.
        taken += (await client.sample_batch("q", total - len(taken), timeout=5)).data["x"].tolist()
        assert taken == list(range(total))
        assert server.tables["q"].info.rate_limiter_info.sample_stats.completed == total
        await client.close()
        await until_nothing_waits_or_is_held(server)


@in_process_and_tcp
async def test_many_learners_that_leave_early_at_once_take_every_item_once(way: str) -> None:
    rng = random.Random(11)
    async with serving([ra.Table.queue("q", 64)], way) as (server, client):
        taken: list[int] = []

        async def learn() -> None:
            while len(taken) < 1200:
                async with client.sample_batches("q", rng.choice([1, 3]), prefetch=rng.randrange(4)) as batches:
                    for _ in range(rng.randrange(1, 10)):
                        try:
                            async with asyncio.timeout(rng.choice([0.001, 0.01, 1])):
                                taken.extend((await anext(batches)).data["x"].tolist())
                        except TimeoutError:
                            break

        async def write(first: int) -> None:
            for start in range(first, first + 600, 100):
                await client.insert_batch({"x": np.arange(start, start + 100)}, {"q": 1.0})

        learners = [asyncio.create_task(learn()) for _ in range(6)]
        await asyncio.gather(write(0), write(600))
        await until(lambda: len(taken) + server.tables["q"].info.current_size >= 1190)
        await until(lambda: len(taken) >= 1185)
        for learner in learners:
            learner.cancel()
        await asyncio.wait(learners)
        left = 1200 - len(taken)
        if left:
            taken += (await client.sample_batch("q", left, timeout=5)).data["x"].tolist()
        assert sorted(taken) == list(range(1200))
        await client.close()
        await until_nothing_waits_or_is_held(server)
