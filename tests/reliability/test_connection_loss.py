"""Connections break at any moment: what was inserted is there once, samplers go on, updates arrive."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from reliability_rig import Proxy, check_nothing_waits_or_is_held, num_streams, until_nothing_waits_or_is_held

import reverb_async as ra
from reverb_async.testing import until


async def write_with_writer(client: ra.Client, table: str, numbers: range) -> None:
    async with client.trajectory_writer(2, max_in_flight_items=128) as writer:
        for number in numbers:
            writer.append({"x": np.int64(number)})
            await writer.create_item(table, 1.0, trajectory={"x": writer.history["x"][-1]})
            if number % 64 == 0:
                await asyncio.sleep(0.001)


async def write_one_by_one(client: ra.Client, table: str, numbers: range) -> None:
    async def write(some: range) -> None:
        for number in some:
            await client.insert({"x": np.int64(number)}, {table: 1.0})

    await asyncio.gather(*(write(numbers[at::16]) for at in range(16)))


async def write_in_batches(client: ra.Client, table: str, numbers: range) -> None:
    for start in range(0, len(numbers), 50):
        await client.insert_batch({"x": np.array(numbers[start : start + 50])}, {table: 1.0})
        await asyncio.sleep(0.001)


WAYS = [write_with_writer, write_one_by_one, write_in_batches]


async def drained(server: ra.Server, table: str, count: int) -> list[int]:
    """Take all items out of a queue, over a network that works."""
    numbers: list[int] = []
    async with server.client() as client:
        while len(numbers) < count:
            some = min(1000, count - len(numbers))
            numbers += (await client.sample_batch(table, some, timeout=10)).data["x"].tolist()
        with pytest.raises(ra.RateLimiterTimeout):
            await client.sample_one(table, timeout=0)
    return numbers


@pytest.mark.parametrize("write", WAYS)
async def test_items_arrive_exactly_once_however_often_the_connection_is_cut(write) -> None:
    tables = [ra.Table.queue("q", 100_000)]
    async with ra.Server(tables) as server, Proxy(server.address) as proxy, ra.Client(proxy.address) as client:
        proxy.cut_every(0.02, 0.06)
        done = 0
        while done < 2000 or proxy.num_cut < 30:
            await write(client, "q", range(done, done + 1000))
            done += 1000
        proxy.stop_cutting()
        assert server.tables["q"].info.rate_limiter_info.insert_stats.completed == done
        numbers = await drained(server, "q", done)
        assert sorted(numbers) == list(range(done))
        if write is not write_one_by_one:
            assert numbers == sorted(numbers)  # One stream keeps its order.
        await client.close()
        await until_nothing_waits_or_is_held(server)


@pytest.mark.soak
@pytest.mark.parametrize("write", WAYS)
async def test_20000_items_arrive_exactly_once_within_60_s_while_connections_live_half_a_second(write) -> None:
    table = ra.Table.queue("q", 100_000)
    async with ra.Server([table]) as server, Proxy(server.address) as proxy, ra.Client(proxy.address) as client:
        events = client.events()
        proxy.cut_every(0.3, 0.9)
        started = time.monotonic()
        for start in range(0, 20_000, 100):  # paced: many connections die on the way
            await write(client, "q", range(start, start + 100))
            await asyncio.sleep(0.1)
        assert time.monotonic() - started < 60
        proxy.stop_cutting()
        assert proxy.num_cut >= 20
        numbers = await drained(server, "q", 20_000)
        assert sorted(numbers) == list(range(20_000))
        await client.close()
        told = [event async for event in events]
        assert not any(isinstance(event, ra.events.ItemsLost) for event in told)
        met_again = [event for event in told if isinstance(event, ra.events.Reconnected)]
        assert len(met_again) >= 10
        assert not any(event.epoch_changed for event in met_again)
        assert max(event.downtime_s for event in met_again) < 3
        await until_nothing_waits_or_is_held(server)


@pytest.mark.soak
async def test_60000_items_arrive_exactly_once_while_connections_live_half_a_second() -> None:
    """Paced by a small queue, so that there are writers waiting at every cut."""
    started = time.monotonic()
    table = ra.Table.queue("q", 64)
    async with ra.Server([table]) as server, Proxy(server.address) as proxy, ra.Client(proxy.address) as client:
        proxy.cut_every(0.3, 0.9)
        numbers: list[int] = []

        async def drain() -> None:
            async with server.client() as local:
                while len(numbers) < 60_000:
                    numbers.extend((await local.sample_batch("q", 16)).data["x"].tolist())

        await asyncio.gather(
            drain(), *(write(client, "q", range(at * 20_000, at * 20_000 + 20_000)) for at, write in enumerate(WAYS))
        )
        assert proxy.num_cut >= 10
    assert sorted(numbers) == list(range(60_000))
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("way", ["writer", "insert", "insert_batch"])
async def test_an_item_whose_confirmation_was_lost_is_not_inserted_again(way: str) -> None:
    tables = [ra.Table.queue("q", 1000)]
    async with (
        ra.Server(tables) as server,
        Proxy(server.address) as proxy,
        ra.Client(proxy.address) as client,
        client.trajectory_writer(1) as writer,
    ):

        async def write(numbers: range) -> None:
            if way == "insert":
                await asyncio.gather(*(client.insert({"x": number}, {"q": 1.0}) for number in numbers))
            elif way == "insert_batch":
                await client.insert_batch({"x": np.array(numbers)}, {"q": 1.0})
            else:
                for number in numbers:
                    writer.append({"x": number})
                    await writer.create_item("q", 1.0, trajectory={"x": writer.history["x"][-1]})
                await writer.flush()

        await write(range(1))
        for start in (1, 11, 21):
            proxy.deaf = True
            writing = asyncio.create_task(write(range(start, start + 10)))
            await until(lambda want=start + 10: server.tables["q"].info.current_size == want)
            assert not writing.done()
            proxy.deaf = False
            proxy.cut()
            await asyncio.wait_for(writing, 10)
        assert server.tables["q"].info.rate_limiter_info.insert_stats.completed == 31
        assert await drained(server, "q", 31) == list(range(31))


@pytest.mark.parametrize("write", WAYS)
async def test_inserts_that_wait_at_a_full_queue_survive_cuts_and_keep_their_order(write) -> None:
    async with (
        ra.Server([ra.Table.queue("q", 3)]) as server,
        Proxy(server.address) as proxy,
        ra.Client(proxy.address) as client,
    ):
        writing = asyncio.create_task(write(client, "q", range(40)))
        numbers: list[int] = []
        async with server.client() as local:
            while len(numbers) < 40:
                if len(numbers) % 5 == 0:
                    await until(lambda: any(waiter.kind == "insert" for waiter in server.tables["q"].info.waiters))
                    proxy.cut()
                numbers.append(int((await local.sample_one("q", timeout=10)).data["x"]))
        await writing
        assert sorted(numbers) == list(range(40))
        if write is not write_one_by_one:
            assert numbers == list(range(40))


async def test_samplers_go_on_after_cuts_and_lose_nothing() -> None:
    """What the learner had but could not acknowledge may come again; nothing is left out."""
    async with (
        ra.Server([ra.Table.queue("q", 10_000), ra.Table("u", max_size=100)]) as server,
        Proxy(server.address) as proxy,
        ra.Client(proxy.address) as client,
        server.client() as local,
    ):
        await local.insert_batch({"x": np.arange(3000)}, {"q": 1.0})
        await local.insert_batch({"x": np.arange(100)}, {"u": 1.0})
        seen: list[int] = []
        async with (
            client.sample_batches("q", 10, prefetch=3) as batches,
            client.sample("u") as samples,
        ):
            for number in range(200):
                if number % 20 == 7:
                    proxy.cut()
                seen += (await anext(batches)).data["x"].tolist()
                assert 0 <= (await anext(samples)).data["x"] < 100
                assert 0 <= (await client.sample_one("u")).data["x"] < 100
            while len(set(seen)) < 3000:
                seen += (await anext(batches)).data["x"].tolist()
        assert set(seen) == set(range(3000))
        assert len(seen) - 3000 <= proxy.num_cut * 40  # At most what was on its way at each cut.
        await until_nothing_waits_or_is_held(server)


async def test_priority_updates_survive_a_cut_before_and_after_the_server_applied_them() -> None:
    table = ra.Table("t", max_size=100, sampler=ra.selectors.Prioritized(1.0))
    async with ra.Server([table]) as server, Proxy(server.address) as proxy, ra.Client(proxy.address) as client:
        keys = (await client.insert_batch({"x": np.arange(100)}, {"t": 1.0}))["t"]
        async with client.sample_batches("t", 50, prefetch=1) as batches:
            for number in range(20):
                batch = await anext(batches)
                await batch.update_priorities(np.full(50, number + 2.0))
                proxy.cut()
                again = await anext(batches)
                touched = np.isin(again.info.key, batch.info.key)
                assert touched.any()
                # A prefetched batch may have been drawn before the update; the next one may not.
                later = await anext(batches)
                touched = np.isin(later.info.key, batch.info.key)
                assert (later.info.priority[touched] == number + 2.0).all()
        for deaf in (False, True):
            proxy.deaf = deaf
            mutating = asyncio.create_task(client.mutate_priorities("t", (keys, np.full(100, 7.0 + deaf)), [keys[0]]))
            if deaf:
                await until(lambda: float(table.state.slots.priority[table.state.live_slots()].min()) == 8.0)
            else:
                await asyncio.sleep(0)
            proxy.deaf = False
            proxy.cut()
            result = await mutating
            assert (result.updated, result.unknown) == ((100, 0) if not deaf else (99, 1))
        assert table.info.current_size == 99


async def test_calls_of_every_kind_go_on_after_a_cut() -> None:
    async with (
        ra.Server([ra.Table("t", max_size=10)]) as server,
        Proxy(server.address) as proxy,
        ra.Client(proxy.address) as client,
    ):
        for number in range(5):
            proxy.cut()
            await client.insert({"x": number}, {"t": 1.0})
            proxy.cut()
            assert (await client.server_info())["t"].current_size == 1
            proxy.cut()
            assert (await client.sample_one("t")).data["x"] == number
            proxy.cut()
            key = (await client.sample_batch("t", 2)).info.key[0]
            proxy.cut()
            assert (await client.mutate_priorities("t", {int(key): 2.0})).updated == 1
            proxy.cut()
            await client.reset("t")
        await client.close()
        await until(lambda: num_streams(server) == 0)
        check_nothing_waits_or_is_held(server)


async def test_a_timeout_counts_while_the_connection_is_away() -> None:
    async with (
        ra.Server([ra.Table("t", max_size=10)]) as server,
        Proxy(server.address) as proxy,
        ra.Client(proxy.address) as client,
    ):
        await client.insert({"x": 1}, {"t": 1.0})
        proxy.refusing = True
        proxy.cut()
        for call in (
            client.sample_one("t", timeout=0.3),
            client.server_info(timeout=0.3),
            client.mutate_priorities("t", {1: 1.0}, timeout=0.3),
            client.reset("t", timeout=0.3),
        ):
            started = time.monotonic()
            with pytest.raises(ra.DeadlineExceeded) as caught:
                await call
            assert proxy.address in str(caught.value)
            assert time.monotonic() - started < 2
        proxy.refusing = False
        assert (await client.sample_one("t", timeout=10)).data["x"] == 1
