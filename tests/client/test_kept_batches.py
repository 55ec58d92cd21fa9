"""What callers see of batches that share messages and memory: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.client.sampling import batch_stream
from reverb_async.core.buffer_pool import BufferPool
from reverb_async.testing import settle


@contextlib.asynccontextmanager
async def served(table: ra.Table, over_tcp: bool) -> AsyncIterator[ra.Client]:
    """A client of a server, over TCP or in its process."""
    async with ra.Server([table], port=0 if over_tcp else None) as server:
        client = ra.Client(server.address) if over_tcp else server.client()
        async with client:
            yield client


@pytest.mark.parametrize("over_tcp", [True, False], ids=["tcp", "in process"])
@pytest.mark.parametrize(("batch_size", "prefetch"), [(1, 64), (16, 8), (256, 2)])
async def test_a_thousand_batches_that_are_kept_stay_what_they_were(
    over_tcp: bool, batch_size: int, prefetch: int
) -> None:
    table = ra.Table("t", max_size=2000)
    async with served(table, over_tcp) as client:
        numbers = np.arange(2000)
        rows = {"number": numbers, "odd": numbers % 2 == 1, "wide": np.tile(numbers[:, None], (1, 9)).astype("f4")}
        keys = (await client.insert_batch(rows, {"t": 1.0}))["t"]
        place = {int(key): at for at, key in enumerate(keys)}
        async with client.sample_batches("t", batch_size, prefetch=prefetch, num_batches=1000) as batches:
            kept = [batch async for batch in batches]
    for batch in kept:
        wanted = np.array([place[key] for key in batch.info.key.tolist()])
        assert np.array_equal(batch.data["number"], wanted)
        assert np.array_equal(batch.data["odd"], wanted % 2 == 1)
        assert np.array_equal(batch.data["wide"], np.tile(wanted[:, None], (1, 9)))
        for leaf in batch.data.values():
            assert leaf.flags.writeable
            assert leaf.flags.c_contiguous
            assert leaf.ctypes.data % 64 == 0
        for leaf in batch.data.values():
            leaf[...] = 0  # The caller's own: no other batch is to notice.


@pytest.mark.parametrize("over_tcp", [True, False], ids=["tcp", "in process"])
async def test_large_batches_that_are_kept_do_not_return_to_the_pool(over_tcp: bool) -> None:
    async with served(ra.Table("t", max_size=100), over_tcp) as client:
        frames = np.repeat(np.arange(100, dtype=np.uint8), 10_000).reshape(100, 100, 100)
        await client.insert_batch({"frame": frames, "number": np.arange(100)}, {"t": 1.0})
        kept = []
        async with client.sample_batches("t", 32, num_batches=200) as batches:
            async for batch in batches:
                if len(kept) % 3 == 0:  # Others go at once, and their memory is used again.
                    kept.append((batch.data["frame"][3:5], batch.data["number"][3:5]))
                else:
                    kept.append((batch.data["frame"][:0], batch.data["number"][:0]))
                del batch
    for frame, number in kept:
        assert np.array_equal(frame, np.broadcast_to(number[:, None, None], frame.shape))


async def test_memory_of_answers_is_used_again_once_they_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = BufferPool.take

    def noted(pool: BufferPool, size: int) -> np.ndarray:
        room = take(pool, size)
        taken.append(room.ctypes.data)
        return room

    monkeypatch.setattr(BufferPool, "take", noted)
    async with ra.Server([ra.Table("t", max_size=10)], port=None) as server, server.client() as client:
        await client.insert({"x": np.zeros(400_000, np.uint8)}, {"t": 1.0})
        async with client.sample_batches("t", 1, num_batches=50) as batches:
            async for _ in batches:
                pass
    assert len(taken) == 50
    assert len(set(taken)) <= 4


async def test_single_samples_that_share_a_message_are_values_of_their_own() -> None:
    async with served(ra.Table("t", max_size=100, sampler=ra.selectors.Fifo()), True) as client:
        await client.insert({"n": 3, "f": np.float32(0.5), "v": np.arange(3), "s": "text"}, {"t": 2.0})
        async with client.sample("t", prefetch=16, num_samples=40) as samples:
            kept = [sample async for sample in samples]
    for at, sample in enumerate(kept, 1):
        assert type(sample.data["n"]) is np.int64
        assert type(sample.data["f"]) is np.float32
        assert (sample.data["n"], sample.data["f"], sample.data["s"]) == (3, 0.5, "text")
        assert sample.data["v"].tolist() == [0, 1, 2]
        assert sample.data["v"].ctypes.data % 64 == 0
        sample.data["v"][...] = -at
        info = sample.info
        assert (type(info.key), type(info.probability), type(info.times_sampled)) == (int, float, int)
        assert (info.priority, info.times_sampled, info.table_size, info.rate_limited) == (2.0, at, 1, False)


@pytest.mark.parametrize("seed", range(6))
async def test_learners_that_come_and_go_take_each_item_of_a_queue_once(seed: int) -> None:
    rng = random.Random(seed)
    async with served(ra.Table.queue("q", 1000), seed % 2 == 1) as client:
        await client.insert_batch({"x": np.arange(600)}, {"q": 1.0})
        seen: list[int] = []
        while len(seen) < 590:
            prefetch, size = rng.choice([1, 2, 3, 8, 40]), rng.choice([1, 2, 5])
            take = rng.randrange(12)
            try:
                async with client.sample_batches("q", size, prefetch=prefetch, timeout=0.05) as batches:
                    for _ in range(take):
                        batch = await anext(batches)
                        seen += batch.data["x"].tolist()
            except ra.RateLimiterTimeout:
                pass
        info = (await client.server_info())["q"]
        assert sorted(seen) == list(range(len(seen)))
        assert info.rate_limiter_info.sample_stats.completed == len(seen)
        assert info.current_size == 600 - len(seen)


async def test_a_learner_that_is_cancelled_amid_many_credits_hands_them_back() -> None:
    table = ra.Table.queue("q", 1000)
    async with ra.Server([table], port=None) as server, server.client() as client:
        await client.insert_batch({"x": np.arange(500)}, {"q": 1.0})
        for turns in range(0, 60, 3):
            seen: list[int] = []

            async def learn(seen: list[int] = seen) -> None:
                async with client.sample("q", prefetch=64) as samples:
                    async for sample in samples:
                        seen.append(int(sample.data["x"]))
                        await asyncio.sleep(0)

            learner = asyncio.create_task(learn())
            await settle(turns)
            learner.cancel()
            await asyncio.wait([learner])
            assert learner.cancelled()
            await settle()
            if seen:
                await client.insert_batch({"x": np.array(seen)}, {"q": 1.0})
            assert table.info.current_size == 500
        async with client.sample("q", num_samples=500, prefetch=64) as samples:
            assert sorted([int(sample.data["x"]) async for sample in samples]) == list(range(500))


async def test_priorities_of_all_batches_of_a_message_travel_in_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []
    compose = batch_stream.BatchStream.compose

    def noted(stream: batch_stream.BatchStream) -> object:
        message = compose(stream)
        if message is not None:
            requests.append(message.header)
        return message

    monkeypatch.setattr(batch_stream.BatchStream, "compose", noted)
    table = ra.Table("t", max_size=100, sampler=ra.selectors.Prioritized(1.0))
    async with ra.Server([table], port=None) as server, server.client() as client:
        keys = (await client.insert_batch({"x": np.arange(10)}, {"t": 1.0}))["t"]
        async with client.sample_batches("t", 8, prefetch=8, num_batches=40) as batches:
            seen: set[int] = set()
            async for batch in batches:
                seen.update(batch.info.key.tolist())
                await batch.update_priorities(np.where(batch.info.key == keys[0], 1.0, 0.0))
        assert sum(request.get("updates", 0) for request in requests) == 40 * 8
        assert sum("updates" in request for request in requests) <= 12
        assert all({"credits", "consumed", "end"} & request.keys() for request in requests if "updates" in request)
        later = await client.sample_batch("t", 64)
        assert not set(later.info.key.tolist()) & seen - {int(keys[0])}
