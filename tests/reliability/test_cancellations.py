"""A call may be cancelled at any moment, an iterator left at any time: nothing stays behind, nothing is lost or doubled."""

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


async def one_element(client: ra.Client, table: str) -> object:
    async with client.sample(table, prefetch=2) as samples:
        return await anext(samples)


async def one_element_bare(client: ra.Client, table: str) -> object:
    async for batch in client.sample_batches(table, 2):
        return batch
    return None


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
    "sample, anext": lambda client: one_element(client, "starved"),
    "sample_batches, left bare": lambda client: one_element_bare(client, "empty"),
}
ANSWERED: dict[str, Call] = {
    "mutate_priorities": lambda client: client.mutate_priorities("open", {1: 2.0}, [3]),
    "server_info": lambda client: client.server_info(),
    "reset": lambda client: client.reset("empty"),
    "sample_one": lambda client: client.sample_one("open"),
    "sample_batch": lambda client: client.sample_batch("open", 4),
    "sample, anext": lambda client: one_element(client, "open"),
    "checkpoint": lambda client: client.checkpoint(),
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
        await WAITING_ONCE(client, name)
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


async def WAITING_ONCE(client: ra.Client, name: str) -> None:
    """Open what the client keeps open for later calls."""
    await cancel_after_turns(WAITING[name](client), 50)


@in_process_and_tcp
@pytest.mark.parametrize("name", ANSWERED)
async def test_cancelled_calls_that_would_have_been_answered_leave_nothing_behind(way: str, name: str) -> None:
    rng = random.Random(name)
    async with serving(tables(), way) as (server, client):
        await fill(client)
        calls = 0
        for _ in range(CANCELLATIONS // len(ANSWERED)):
            outcome = await cancel_after_turns(ANSWERED[name](client), rng.randrange(30))
            calls += not isinstance(outcome, BaseException)
            assert not isinstance(outcome, Exception) or isinstance(outcome, ra.CheckpointError), outcome
        if name.startswith("sample"):
            size = 4 if name == "sample_batch" else 1
            await until(lambda: server.tables["open"].info.rate_limiter_info.sample_stats.completed == calls * size)
        await client.close()
        await until(lambda: num_streams(server) == 0)
        await until_nothing_waits_or_is_held(server)
        assert server.tables["open"].info.current_size == 4


@in_process_and_tcp
async def test_cancelled_inserts_are_in_wholly_or_not_at_all(way: str) -> None:
    """Of a batch a prefix is in; what two tables get is the same."""
    rng = random.Random(7)
    pair = [ra.Table("a", max_size=1 << 20), ra.Table("b", max_size=1 << 20)]
    async with serving(pair, way) as (server, client):
        await client.insert({"x": np.int64(-1), "call": np.int64(-1)}, {"a": 1.0, "b": 1.0})
        returned = 0
        for call in range(300):
            data = {"x": np.arange(50), "call": np.full(50, call)}
            outcome = await cancel_after_turns(client.insert_batch(data, {"a": 1.0, "b": 1.0}), rng.randrange(20))
            if not isinstance(outcome, BaseException):
                returned += 1
        await client.close()
        await until_nothing_waits_or_is_held(server)
        async with server.client() as local:
            assert server.tables["a"].info.current_size == server.tables["b"].info.current_size
            info = server.tables["a"].info
            everything = server.tables["a"].state
            assert (info.current_size - 1) >= returned * 50
            assert everything.size == info.current_size
            assert (await local.server_info())["b"].current_size == info.current_size


@in_process_and_tcp
async def test_a_cancelled_draw_from_a_queue_goes_back_to_its_place(way: str) -> None:
    """Whoever draws gets the items in order, however many others gave up in between."""
    rng = random.Random(3)
    async with serving([ra.Table.queue("q", 10_000)], way) as (server, client):
        await client.insert_batch({"x": np.arange(600)}, {"q": 1.0})
        numbers: list[int] = []
        while len(numbers) < 600:
            size = rng.choice([1, 3])
            call = client.sample_batch("q", size, timeout=5) if rng.random() < 0.5 else one_batch(client, size)
            outcome = await cancel_after_turns(call, rng.randrange(60))
            if not isinstance(outcome, BaseException):
                numbers += outcome.data["x"].tolist()
        assert numbers == list(range(600))
        await client.close()
        await until_nothing_waits_or_is_held(server)
        assert server.tables["q"].info.rate_limiter_info.sample_stats.completed == 600


async def one_batch(client: ra.Client, size: int) -> ra.Batch:
    async with client.sample_batches("q", size, prefetch=2) as batches:
        batch = await anext(batches)
    return batch


# -- leaving iterators ------------------------------------------------------------------------------------------------


@in_process_and_tcp
@pytest.mark.parametrize("how", ["async with", "aclose", "bare", "client closed"])
async def test_learners_that_leave_early_take_every_item_once_and_in_order(way: str, how: str) -> None:
    rng = random.Random(5)
    async with serving([ra.Table.queue("q", 10_000)], way) as (server, client):
        await client.insert_batch({"x": np.arange(800)}, {"q": 1.0})
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
                        if not wanted or len(taken) == 800:
                            break
                    if how == "aclose":
                        await iterator.aclose()
            finally:
                if how == "client closed":
                    await learner.close()

        while len(taken) < 780:
            await learn()
            gc.collect()
            await until(lambda: num_streams(server) <= 1)  # All but the inserter's have gone.
        taken += (await client.sample_batch("q", 800 - len(taken), timeout=5)).data["x"].tolist()
        assert taken == list(range(800))
        assert server.tables["q"].info.rate_limiter_info.sample_stats.completed == 800
        await client.close()
        await until_nothing_waits_or_is_held(server)


@in_process_and_tcp
async def test_many_learners_that_leave_early_at_once_take_every_item_once(way: str) -> None:
    rng = random.Random(11)
    async with serving([ra.Table.queue("q", 64)], way) as (server, client):
        taken: list[int] = []

        async def learn() -> None:
            while len(taken) < 2000:
                async with client.sample_batches("q", rng.choice([1, 3]), prefetch=rng.randrange(4)) as batches:
                    for _ in range(rng.randrange(1, 10)):
                        try:
                            async with asyncio.timeout(rng.choice([0.001, 0.01, 1])):
                                taken.extend((await anext(batches)).data["x"].tolist())
                        except TimeoutError:
                            break

        async def write(first: int) -> None:
            for start in range(first, first + 1000, 100):
                await client.insert_batch({"x": np.arange(start, start + 100)}, {"q": 1.0})

        learners = [asyncio.create_task(learn()) for _ in range(6)]
        await asyncio.gather(write(0), write(1000))
        await until(lambda: len(taken) + server.tables["q"].info.current_size >= 1990)
        await until(lambda: len(taken) >= 1985)
        for learner in learners:
            learner.cancel()
        await asyncio.wait(learners)
        left = 2000 - len(taken)
        if left:
            taken += (await client.sample_batch("q", left, timeout=5)).data["x"].tolist()
        assert sorted(taken) == list(range(2000))
        await client.close()
        await until_nothing_waits_or_is_held(server)
