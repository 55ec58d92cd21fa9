"""Everybody who waits is served, in turn; a client that stands still holds up nobody and loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np
import pytest
from reliability_rig import another_client, in_process_and_tcp, num_waiters, serving, until_nothing_waits_or_is_held

import reverb_async as ra
from reverb_async.testing import until

WRITERS = 1000


@in_process_and_tcp
async def test_a_thousand_blocked_writers_are_served_alike(way: str) -> None:
    """Each inserts again and again; after any number of samples none is ahead of another by more than a few."""
    async with serving([ra.Table.queue("q", 1)], way) as (server, client):
        clients = [another_client(server, way) for _ in range(8)]
        await client.insert({"writer": np.int64(-1)}, {"q": 1.0})
        counts = np.zeros(WRITERS, np.int64)

        async def write(number: int) -> None:
            while True:
                await clients[number % 8].insert({"writer": np.int64(number)}, {"q": 1.0})

        writers = [asyncio.create_task(write(number)) for number in range(WRITERS)]
        await until(lambda: num_waiters(server) > 0)
        async with client.sample("q", prefetch=2) as samples:
            assert (await anext(samples)).data["writer"] == -1
            for _ in range(2 * WRITERS):
                counts[(await anext(samples)).data["writer"]] += 1
        assert 1 <= counts.min() <= counts.max() <= 3, (counts.min(), counts.max())
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)
        for one in clients:
            await one.close()
        await client.close()
        await until_nothing_waits_or_is_held(server)


@in_process_and_tcp
async def test_blocked_trajectory_writers_are_served_alike(way: str) -> None:
    async with serving([ra.Table.queue("q", 2)], way) as (server, client):
        counts = np.zeros(100, np.int64)

        async def write(number: int) -> None:
            with contextlib.suppress(ra.Closed):
                async with client.trajectory_writer(1, max_in_flight_items=2) as writer:
                    while True:
                        writer.append({"writer": np.int64(number)})
                        await writer.create_item("q", 1.0, trajectory={"writer": writer.history["writer"][-1]})

        writers = [asyncio.create_task(write(number)) for number in range(100)]
        await until(lambda: num_waiters(server) >= 100)
        async with another_client(server, way) as learner:
            for _ in range(1000):
                counts[(await learner.sample_one("q", timeout=10)).data["writer"]] += 1
        assert 7 <= counts.min() <= counts.max() <= 13, (counts.min(), counts.max())
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)
        await client.close()
        await until_nothing_waits_or_is_held(server)


@in_process_and_tcp
async def test_waiting_samplers_are_served_in_the_order_of_their_coming(way: str) -> None:
    async with serving([ra.Table.queue("q", 1000)], way) as (server, client):
        served: list[int] = []

        async def sample(number: int) -> None:
            assert (await client.sample_one("q")).data["x"] == len(served)
            served.append(number)

        samplers = []
        for number in range(50):
            samplers.append(asyncio.create_task(sample(number)))
            await until(lambda want=number + 1: num_waiters(server) == want)
        for number in range(50):
            await client.insert({"x": number}, {"q": 1.0})
            await until(lambda want=number + 1: len(served) == want)
        assert served == list(range(50))


@in_process_and_tcp
async def test_a_batch_that_waits_is_not_overtaken_by_smaller_ones(way: str) -> None:
    async with serving([ra.Table.queue("q", 100)], way) as (server, client):
        big = asyncio.create_task(client.sample_batch("q", 20))
        await until(lambda: num_waiters(server) == 1)
        small = [asyncio.create_task(client.sample_one("q")) for _ in range(5)]
        await until(lambda: num_waiters(server) == 6)
        await client.insert_batch({"x": np.arange(19)}, {"q": 1.0})
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in small)
        await client.insert_batch({"x": np.arange(19, 25)}, {"q": 1.0})
        assert (await big).data["x"].tolist() == list(range(20))
        assert sorted(int(sample.data["x"]) for sample in await asyncio.gather(*small)) == list(range(20, 25))


# -- a client that stands still ---------------------------------------------------------------------------------------


async def test_a_client_whose_loop_was_blocked_goes_on_without_error_loss_or_double() -> None:
    await _blocked(3.0)


@pytest.mark.soak
async def test_a_client_whose_loop_was_blocked_for_90_seconds_goes_on() -> None:
    await _blocked(90.0)


async def _blocked(seconds: float) -> None:
    tables = [ra.Table.queue("q", 64), ra.Table("log", max_size=10_000)]
    async with serving(tables, "tcp") as (server, client):
        total = 3000
        taken: list[int] = []

        async def learn() -> None:
            async with (
                ra.Client(server.address) as own,
                own.trajectory_writer(1) as writer,
                own.sample_batches("q", 10, prefetch=4, num_batches=total // 10) as batches,
            ):
                async for batch in batches:
                    taken.extend(batch.data["x"].tolist())
                    writer.append({"n": np.int64(len(taken))})
                    await writer.create_item("log", 1.0, trajectory={"n": writer.history["n"][-1]})
                    if len(taken) in (500, 1500):
                        time.sleep(seconds / 2)  # noqa: ASYNC251  # this is what is tested

        def in_a_loop_of_its_own() -> None:
            asyncio.run(learn())

        async def write() -> None:
            for start in range(0, total, 50):
                await client.insert_batch({"x": np.arange(start, start + 50)}, {"q": 1.0})

        await asyncio.gather(asyncio.to_thread(in_a_loop_of_its_own), write())
        assert taken == list(range(total))
        assert server.tables["log"].info.current_size == total // 10
        await client.close()
        await until_nothing_waits_or_is_held(server)


@in_process_and_tcp
async def test_a_learner_that_does_not_read_holds_up_nobody(way: str) -> None:
    """Its prefetched batches stay its own; others draw, write and update meanwhile."""
    async with serving([ra.Table("t", max_size=100)], way) as (server, client):
        await client.insert_batch({"frame": np.zeros((100, 100_000), np.uint8)}, {"t": 1.0})
        lazy = [client.sample_batches("t", 10, prefetch=4) for _ in range(5)]
        for iterator in lazy:
            await anext(iterator)
        async with another_client(server, way) as other:
            for _ in range(20):
                assert (await other.sample_batch("t", 10, timeout=5)).data["frame"].shape == (10, 100_000)
                await other.insert({"frame": np.zeros(100_000, np.uint8)}, {"t": 1.0}, timeout=5)
        for iterator in lazy:
            assert (await anext(iterator)).data["frame"].shape == (10, 100_000)
            await iterator.aclose()
        await client.close()
        await until_nothing_waits_or_is_held(server)
