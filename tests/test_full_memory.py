"""A server whose memory is full: who waits, who goes on, who is refused and how."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.protocol.inserting import Group, InsertRequest, Steps
from reverb_async.testing import until
from reverb_async.wire.generated.deepmind.reverb import InsertStreamRequest
from tests.compat.deepmind_rig import DeepMindClient, chunk, row_item, served, status

MIB = 1 << 20
LEAST = ra.Limits(max_bytes=16 * MIB)
ITEMS = 11
"""Items of 1 MiB that fit into a table of such a server."""


def one(value: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.full(MIB, value % 256, np.uint8)}


def tables() -> list[ra.Table]:
    return [ra.Table("grows", max_size=1000), ra.Table("ring", max_size=2), ra.Table("small", max_size=1000)]


@asynccontextmanager
async def serving(limits: ra.Limits = LEAST, *, full: bool = True) -> AsyncIterator[tuple[ra.Server, ra.Client]]:
    """Serve the tables; `grows` has taken all there is."""
    async with ra.Server(tables(), limits=limits) as server, ra.Client(server.address) as client:
        for at in range(2):
            await client.insert(one(at), {"ring": 1.0})
        if full:
            for at in range(ITEMS - 2):
                await client.insert(one(at), {"grows": 1.0}, timeout=10)
            waiting = asyncio.create_task(client.insert(one(99), {"grows": 1.0}, timeout=0.05))
            with pytest.raises(ra.ResourceExhausted):
                await waiting
        yield server, client


async def test_an_insert_with_a_timeout_says_what_it_waited_for() -> None:
    async with serving() as (server, client):
        began = time.monotonic()
        with pytest.raises(
            ra.ResourceExhausted, match=r"'grows' waits for memory: .* of max_bytes=16\.0 MiB"
        ) as caught:
            await client.insert_batch({"x": np.zeros((3, MIB), np.uint8)}, {"grows": 1.0}, timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 5
        assert caught.value.keys == {"grows": pytest.approx([])}
        assert server.tables["grows"].info.current_size == ITEMS - 2
        assert (await client.server_status()).staged_rows == 0


async def test_writers_wait_in_their_order_until_something_is_deleted() -> None:
    async with serving() as (server, client):
        small = {"x": np.zeros(MIB // 8, np.uint8)}
        memory = server._replay.memory
        while memory.used + MIB // 8 < memory.grow_below:
            await client.insert(small, {"small": 1.0}, timeout=10)
        writers = [ra.Client(server.address) for _ in range(3)]
        waiting = []
        for writer in writers:
            waiting.append(asyncio.create_task(writer.insert(small, {"small": 1.0})))
            await until(lambda: len(server.tables["small"].inserters) == len(waiting))
        (waiter,) = (await client.server_info())["small"].waiters
        assert (waiter.kind, waiter.count) == ("insert", 3)
        assert "waits for memory: the server holds" in waiter.reason
        state = server.tables["grows"].state
        await client.mutate_priorities("grows", deletes=state.slots.key[state.live_slots()[:1]])
        keys = [(await asyncio.wait_for(task, 10))["small"] for task in waiting]
        state = server.tables["small"].state
        assert state.slots.key[state.remover.first(state.size)[-3:]].tolist() == keys
        for writer in writers:
            await writer.close()


async def test_tables_that_evict_go_on_and_so_do_samples_updates_and_resets() -> None:
    async with serving() as (server, client), ra.Client(server.address) as other:
        waiting = asyncio.create_task(client.insert(one(), {"grows": 1.0}))
        await until(lambda: len(server.tables["grows"].inserters) == 1)
        async with asyncio.timeout(10):
            for at in range(20):
                key = (await other.insert(one(at), {"ring": 1.0}))["ring"]
                assert (await other.sample_one("grows")).data["x"].shape == (MIB,)
                assert (await other.mutate_priorities("ring", {key: 2.0})).updated == 1
            assert not waiting.done()
            await other.reset("ring")
            await waiting
        assert server.tables["grows"].info.current_size == ITEMS - 1


async def test_after_the_servers_timeout_writers_are_refused_and_an_alarm_tells(caplog) -> None:
    async with serving(ra.Limits(max_bytes=16 * MIB, full_timeout=0.5)) as (server, client):
        with pytest.raises(ra.ResourceExhausted, match=r"waits for memory: .*; has waited \d+ s"):
            await client.insert(one(), {"grows": 1.0})
        status = await client.server_status()
        assert status.num_refused == 1
        assert not status.staged_rows
        waiting = asyncio.create_task(client.insert(one(), {"grows": 1.0}))
        await until(lambda: bool(list(server._replay.alarms)))
        (alarm,) = (await client.server_status()).alarms
        assert alarm.name == "memory"
        assert "max_bytes=16.0 MiB" in alarm.message
        with pytest.raises(ra.ResourceExhausted):
            await waiting
        await client.reset("grows")
        await until(lambda: not list(server._replay.alarms))


async def test_while_memory_becomes_free_nobody_is_refused() -> None:
    async with ra.Server([ra.Table.queue("q", 1000)], limits=ra.Limits(max_bytes=16 * MIB, full_timeout=0.5)) as server:
        async with ra.Client(server.address) as client, ra.Client(server.address) as other:
            inserting = asyncio.create_task(client.insert_batch({"x": np.zeros((20, MIB), np.uint8)}, {"q": 1.0}))
            await until(lambda: server.tables["q"].state.size >= 8)
            for _ in range(20):
                await other.sample_one("q", timeout=10)
                await asyncio.sleep(0.06)
            assert len((await inserting)["q"]) == 20
        assert server._replay.memory.num_refused == 0


async def test_a_writer_that_keeps_too_much_is_refused_and_all_of_it_is_given_back() -> None:
    async with serving(full=False) as (server, client):
        used = server._replay.memory.used

        async def write() -> None:
            async with client.trajectory_writer(8) as writer:
                for at in range(8):
                    writer.append(one(at))
                    await writer.create_item("grows", 1.0, trajectory={"x": writer.history["x"][-1:]})
                await writer.flush()

        with pytest.raises(ra.ResourceExhausted, match=r"max_client_bytes=1\.0 MiB: keep fewer steps"):
            await write()
        await client.reset("grows")
        await until(lambda: server._replay.memory.used <= used)


async def test_steps_of_a_stream_that_makes_no_items_shut_nobody_out() -> None:
    async with serving() as (server, client), ra.Client(server.address) as other:
        stream = await other._use().connector.transport.open("insert")
        await stream.send(InsertRequest(session=b"s" * 16).to_message())
        await stream.receive()
        await stream.send(InsertRequest(groups=[Group(0, (ra.ArraySpec((1000,), np.uint8),))]).to_message())
        held = server._replay.memory.used
        await stream.send(InsertRequest(steps=[Steps(0, 0, 1000, [np.zeros((1000, 1000), np.uint8)])]).to_message())
        await until(lambda: server._replay.memory.used > held)
        async with asyncio.timeout(10):
            for at in range(5):
                await client.insert(one(at), {"ring": 1.0})
        before = server._replay.memory.used
        stream.abort()
        began = time.monotonic()
        await until(lambda: server._replay.memory.used < before - 1_000_000)
        assert time.monotonic() - began < 1


async def test_what_can_never_be_stored_is_refused_at_once() -> None:
    async with serving(full=False) as (_, client):
        began = time.monotonic()
        with pytest.raises(ra.ResourceExhausted, match="is more than the server can store"):
            await client.insert({"x": np.zeros(20 * MIB, np.uint8)}, {"grows": 1.0})
        assert time.monotonic() - began < 10
        await client.insert(one(), {"grows": 1.0})


async def fill(client: DeepMindClient, server: ra.Server) -> None:
    """Fill a table through DeepMind's door."""
    memory = server._replay.memory
    key = 0
    while memory.used + MIB < memory.grow_below:
        key += 1
        await client.insert(row_item(key, "grows", np.random.default_rng(key).integers(0, 256, MIB, np.uint8)))


async def test_writers_of_deepminds_protocol_wait_and_are_refused_too() -> None:
    async with served(*tables(), limits=ra.Limits(max_bytes=16 * MIB, full_timeout=0.5)) as (server, client):
        noise = np.random.default_rng(0).integers(0, 256, 2 * MIB, np.uint8)
        for key in (1001, 1002):
            await client.insert(row_item(key, "ring", noise[:MIB]))
        await fill(client, server)
        stream = client.inserting()
        await stream.send(row_item(5000, "grows", noise))
        code, text = await asyncio.wait_for(status(stream.call), 20)
        assert code == "RESOURCE_EXHAUSTED"
        assert "'grows' waits for memory: the server holds" in text
        for key in range(2000, 2010):
            await asyncio.wait_for(client.insert(row_item(key, "ring", noise[:MIB])), 10)
        assert len(await client.sample("grows", 3)) == 3
        stream = client.inserting()
        await stream.send(row_item(5000, "grows", noise))
        await client.reset("grows")
        assert await asyncio.wait_for(stream.keys(1), 10) == [5000]
        await stream.end()


async def test_chunks_without_items_are_bounded_at_deepminds_door() -> None:
    async with served(*tables(), limits=LEAST) as (server, client):
        noise = np.random.default_rng(0).integers(0, 256, (1, 300_000), np.uint8)
        stream = client.inserting()
        await stream.send(InsertStreamRequest(chunks=[chunk(key, noise) for key in (1, 2, 3)]))
        await until(lambda: server._replay.memory.used > 900_000)
        await stream.send(InsertStreamRequest(chunks=[chunk(key, noise) for key in (4, 5, 6)]))
        code, text = await asyncio.wait_for(status(stream.call), 20)
        assert code == "RESOURCE_EXHAUSTED"
        assert "max_client_bytes=1.0 MiB: create items" in text
        await until(lambda: server._replay.memory.used == 0)
