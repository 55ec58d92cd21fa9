"""Several batches per message: the same batches as one at a time, each of them the client's or the table's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.core.variable import VariableRows
from reverb_async.errors import InvalidArgument, RateLimiterTimeout, from_map
from reverb_async.protocol.message import Duplex
from reverb_async.protocol.sampled import SampledBatch
from reverb_async.protocol.sampling import SampleRequest, SampleResponse, SampleResponseReader, Subscription
from reverb_async.service import sample_stream
from reverb_async.testing import settle, until
from reverb_async.wire.codec import decode, encode

Insert = Callable[[ra.Client], Any]


class Learner:
    """The client's end of a Sample stream."""

    def __init__(self, duplex: Duplex) -> None:
        self._duplex = duplex
        self._reader = SampleResponseReader()

    async def ask(self, **request: Any) -> None:
        await self._duplex.send(SampleRequest(**request).to_message())

    async def hear(self) -> SampleResponse:
        async with asyncio.timeout(10):
            message = await self._duplex.receive()
        assert message is not None
        return self._reader.read(decode(encode(message).join(), owned=True))

    async def batches(self, count: int) -> list[SampledBatch]:
        """Return so many batches; more were not sent along with them."""
        batches: list[SampledBatch] = []
        while len(batches) < count:
            batches += (await self.hear()).batches
        assert len(batches) == count
        return batches

    async def end(self) -> None:
        await self.ask(end=True)
        async with asyncio.timeout(10):
            while await self._duplex.receive() is not None:
                pass

    def vanish(self) -> None:
        self._duplex.abort()


class Rig:
    """A server with a client that inserts, and learners."""

    def __init__(self, server: ra.Server) -> None:
        self.server = server
        self.client = server.client()
        self._transport = next(iter(server._transports))

    async def learner(self, table: str, batch_size: int, *, together: int, **request: Any) -> Learner:
        learner = Learner(await self._transport.open("sample"))
        partial = request.pop("partial", False)
        await learner.ask(subscribe=Subscription(table, batch_size, None, partial, together), **request)
        return learner

    def samples(self, table: str) -> int:
        return self.server.tables[table].info.rate_limiter_info.sample_stats.completed


async def serve(*tables: ra.Table) -> AsyncIterator[Rig]:
    async with ra.Server(list(tables), port=None) as server:
        rig = Rig(server)
        yield rig
        await rig.client.close()


def same(one: SampledBatch, other: SampledBatch) -> bool:
    names = ("probabilities", "priorities", "times_sampled", "table_sizes")
    assert one.seq == other.seq
    assert one.rate_limited == other.rate_limited
    for name in names:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype
        assert mine.tobytes() == theirs.tobytes(), name
    assert len(one.pieces) == len(other.pieces)
    for piece, counterpart in zip(one.pieces, other.pieces, strict=True):
        assert piece.layout.structure == counterpart.layout.structure
        assert np.array_equal(piece.positions, counterpart.positions)
        for length, its in zip(piece.lengths, counterpart.lengths, strict=True):
            ones = np.ones(len(one.keys) if piece.positions is None else len(piece.positions), np.int64)
            assert np.array_equal(length * ones, its * ones)
        for column, its in zip(piece.columns, counterpart.columns, strict=True):
            if isinstance(column, VariableRows):
                for name in ("data", "sizes", "shapes"):
                    assert np.array_equal(getattr(column, name), getattr(its, name))
                continue
            assert column.dtype == its.dtype
            assert column.shape == its.shape
            assert column.tobytes() == its.tobytes()
            assert column.flags.writeable
            assert column.flags.c_contiguous
            assert column.ctypes.data % 64 == 0
    return True


async def insert_small(client: ra.Client) -> None:
    rng = np.random.default_rng(0)
    priorities = rng.random(60) + 0.1
    await client.insert_batch(
        {
            "flag": rng.random(60) < 0.5,
            "half": rng.random((60, 3)).astype(np.float16),
            "pixels": rng.integers(0, 256, (60, 5, 7), np.uint8),
            "z": rng.random(60) + 1j,
            "name": rng.choice(["left", "right"], 60).astype("U5"),
        },
        {"plain": priorities, "packed": priorities},
    )


async def insert_trajectories(client: ra.Client) -> None:
    async with client.trajectory_writer(num_keep_alive_refs=9) as writer:
        for step in range(60):
            writer.append({"obs": np.full(3, step, np.float32), "action": step})
            length = 1 + step * 7 % 9
            if step >= 9:
                history = writer.history
                trajectory = {
                    "obs": history["obs"][-length:],
                    "last": history["action"][-1],
                    "two": history["obs"][-2:],
                }
                for table in ("plain", "packed"):
                    await writer.create_item(table, 1.0 + step, trajectory=trajectory)


async def insert_ragged(client: ra.Client) -> None:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 9, (int(n), 2), np.int16) for n in rng.integers(0, 30, 50)]
    await client.insert_batch(
        {"tokens": ra.Ragged.from_list(tokens), "reward": rng.random(50)}, {"plain": None, "packed": None}
    )


async def insert_texts(client: ra.Client) -> None:
    for at in range(40):
        await client.insert({"text": "ä" * (at % 7), "number": at}, {"plain": 1.0, "packed": 1.0})


async def insert_mixed(client: ra.Client) -> None:
    for at in range(40):
        data = {"x": np.arange(3) + at} if at % 3 else {"x": np.arange(4.0) + at, "y": "text"}
        await client.insert(data, {"plain": 1.0, "packed": 1.0})


@pytest.mark.parametrize("insert", [insert_small, insert_trajectories, insert_ragged, insert_texts, insert_mixed])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
@pytest.mark.parametrize("sampler", [ra.selectors.Uniform(), ra.selectors.Prioritized(0.6), ra.selectors.Lifo()])
async def test_batches_that_share_a_message_are_those_that_come_one_at_a_time(
    insert: Insert, batch_size: int, sampler: Any
) -> None:
    tables = [ra.Table(name, max_size=100, sampler=sampler, seed=7) for name in ("plain", "packed")]
    async for rig in serve(*tables):
        await insert(rig.client)
        one = await rig.learner("plain", batch_size, together=0, credits=12)
        several = await rig.learner("packed", batch_size, together=5, credits=12)
        plain, packed = await one.batches(12), await several.batches(12)
        assert all(same(mine, theirs) for mine, theirs in zip(packed, plain, strict=True))
        # The tables' items are the same, but for their keys and the moment they came in.
        pairs = {
            (int(key), int(its_key), float(since), float(its_since))
            for mine, theirs in zip(packed, plain, strict=True)
            for key, its_key, since, its_since in zip(
                mine.keys, theirs.keys, mine.inserted_at, theirs.inserted_at, strict=True
            )
        }
        assert len(pairs) == len({key for key, *_ in pairs}) == len({its_key for _, its_key, *_ in pairs})
        assert all(0 <= abs(since - its_since) < 60 for *_, since, its_since in pairs)


async def test_a_message_carries_as_many_batches_as_were_asked_for_and_wished_for() -> None:
    async for rig in serve(ra.Table("t", max_size=10)):
        await rig.client.insert({"x": 1}, {"t": 1.0})
        learner = await rig.learner("t", 2, together=4, credits=10)
        assert [len((await learner.hear()).batches) for _ in range(3)] == [4, 4, 2]
        await settle()
        assert rig.samples("t") == 20
        await learner.ask(credits=1)
        assert len(await learner.batches(1)) == 1


async def test_large_batches_travel_alone() -> None:
    async for rig in serve(ra.Table("t", max_size=10)):
        await rig.client.insert({"x": np.zeros(100_000, np.uint8)}, {"t": 1.0})
        learner = await rig.learner("t", 1, together=8, credits=8)
        assert [len((await learner.hear()).batches) for _ in range(4)] == [2, 2, 2, 2]
        learner = await rig.learner("t", 4, together=8, credits=2)
        assert [len((await learner.hear()).batches) for _ in range(2)] == [1, 1]


async def test_values_of_variable_size_count_as_what_they_are() -> None:
    async for rig in serve(ra.Table("t", max_size=10)):
        rows = [np.zeros(200_000 + at, np.uint8) for at in range(3)]
        await rig.client.insert_batch({"x": ra.Ragged.from_list(rows)}, {"t": 1.0})
        table = rig.server.tables["t"]
        draw = table.sample_now(5, 1)
        assert table.plan(draw).nbytes >= 1_000_000
        table.hand_back(draw)
        learner = await rig.learner("t", 1, together=8, credits=3)
        assert [len((await learner.hear()).batches) for _ in range(3)] == [1, 1, 1]


async def test_when_large_items_come_as_a_surprise_all_batches_but_one_are_drawn_later() -> None:
    async for rig in serve(ra.Table("t", max_size=10_000, sampler=ra.selectors.Lifo())):
        await rig.client.insert_batch({"x": np.zeros(9_000, np.uint8)}, {"t": 1.0})
        await rig.client.insert({"x": np.ones(3 << 20, np.uint8)}, {"t": 1.0})
        learner = await rig.learner("t", 1, together=8, credits=8)
        for seq in range(1, 9):
            (batch,) = (await learner.hear()).batches
            assert batch.seq == seq
            assert batch.times_sampled.tolist() == [seq]
        assert rig.samples("t") == 8


class TestHandingBack:
    @pytest.mark.parametrize("leave", ["end", "vanish"])
    async def test_exactly_what_was_not_acknowledged_goes_back(self, leave: str) -> None:
        async for rig in serve(ra.Table.queue("q", 100)):
            await rig.client.insert_batch({"x": np.arange(20)}, {"q": 1.0})
            learner = await rig.learner("q", 2, together=4, credits=8)
            batches = await learner.batches(8)
            await learner.ask(consumed=3)
            await settle()
            assert rig.server.tables["q"].info.current_size == 4
            if leave == "end":
                await learner.end()
            else:
                learner.vanish()
            await settle()
            assert rig.samples("q") == 6
            assert rig.server.tables["q"].info.current_size == 14
            rest = await (await rig.learner("q", 14, together=1, credits=1)).batches(1)
            handed_back = np.concatenate([batch.keys for batch in batches[3:]])
            assert rest[0].keys[:10].tolist() == handed_back.tolist()

    async def test_what_is_left_of_a_queue_waits_for_a_whole_batch(self) -> None:
        async for rig in serve(ra.Table.queue("q", 100)):
            await rig.client.insert_batch({"x": np.arange(10)}, {"q": 1.0})
            learner = await rig.learner("q", 3, together=5, credits=5)
            batches = (await learner.hear()).batches
            assert [batch.pieces[0].columns[0].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
            await settle()
            await rig.client.insert_batch({"x": np.arange(10, 12)}, {"q": 1.0})
            (batch,) = await learner.batches(1)
            assert (batch.seq, batch.pieces[0].columns[0].tolist()) == (4, [9, 10, 11])
            assert batch.rate_limited
            await learner.ask(consumed=4)
            await learner.end()
            assert rig.samples("q") == 12

    @pytest.mark.parametrize("sampler", [ra.selectors.Uniform(), ra.selectors.Prioritized(1.0)])
    async def test_items_that_leave_with_their_last_sample_come_once(self, sampler: Any) -> None:
        table = ra.Table("once", max_size=100, sampler=sampler, max_times_sampled=1, seed=3)
        async for rig in serve(table):
            await rig.client.insert_batch({"x": np.arange(50)}, {"once": 1.0})
            learner = await rig.learner("once", 4, together=6, credits=12)
            batches = await learner.batches(12)
            seen = np.concatenate([batch.keys for batch in batches])
            assert len(np.unique(seen)) == 48
            sizes = np.concatenate([batch.table_sizes for batch in batches])
            assert sizes.tolist() == list(range(50, 2, -1))
            await learner.end()
            assert rig.server.tables["once"].info.current_size == 50


class TestWaiting:
    async def test_the_limiter_admits_whole_batches_and_the_next_one_waits(self) -> None:
        limiter = ra.rate_limiters.RateLimiter(1.0, 1, 0.0, 1e9)
        async for rig in serve(ra.Table("t", max_size=100, rate_limiter=limiter)):
            await rig.client.insert_batch({"x": np.arange(10)}, {"t": 1.0})
            learner = await rig.learner("t", 4, together=6, credits=6)
            assert len((await learner.hear()).batches) == 2
            await settle()
            assert rig.server.tables["t"].info.waiters[0].kind == "sample"
            await learner.ask(withdraw=3)
            ((seq, error),) = (await learner.hear()).failed
            assert seq == 3
            assert isinstance(from_map(error), RateLimiterTimeout)
            await rig.client.insert_batch({"x": np.arange(6)}, {"t": 1.0})
            batches = await learner.batches(2)
            assert [batch.seq for batch in batches] == [4, 5]
            learner.vanish()
            await settle()
            assert rig.samples("t") == 0

    async def test_withdrawing_many_credits_answers_each(self) -> None:
        limiter = ra.rate_limiters.RateLimiter(1.0, 1, 0.0, 1e9)
        async for rig in serve(ra.Table("t", max_size=100, rate_limiter=limiter)):
            await rig.client.insert_batch({"x": np.arange(10)}, {"t": 1.0})
            learner = await rig.learner("t", 4, together=4, credits=40, withdraw=40, partial=True)
            batches, failed = [], []
            while len(batches) + len(failed) < 40:
                response = await learner.hear()
                batches += [len(batch.keys) for batch in response.batches]
                failed += [seq for seq, _ in response.failed]
            assert batches == [4, 4, 2]
            assert failed == list(range(4, 41))
            await learner.end()

    async def test_nobody_is_overtaken(self) -> None:
        limiter = ra.rate_limiters.RateLimiter(1.0, 1, 0.0, 1e9)
        async for rig in serve(ra.Table("t", max_size=100, rate_limiter=limiter)):
            await rig.client.insert_batch({"x": np.arange(2)}, {"t": 1.0})
            patient = await rig.learner("t", 4, together=1, credits=1)
            await settle()
            eager = await rig.learner("t", 1, together=4, credits=4)
            await settle()
            await rig.client.insert_batch({"x": np.arange(2)}, {"t": 1.0})
            assert len(await patient.batches(1)) == 1
            await rig.client.insert_batch({"x": np.arange(4)}, {"t": 1.0})
            assert len(await eager.batches(4)) == 4

    async def test_updates_come_before_whatever_is_drawn_later(self) -> None:
        table = ra.Table("t", max_size=10, sampler=ra.selectors.Prioritized(1.0))
        async for rig in serve(table):
            keys = (await rig.client.insert_batch({"x": np.arange(3)}, {"t": 1.0}))["t"]
            learner = await rig.learner("t", 5, together=3, credits=3)
            await learner.batches(3)
            updates = {"keys": keys[[0, 1, 2, 0]], "priorities": np.array([9.0, 0.0, 1.0, 0.0])}
            await learner.ask(consumed=3, credits=3, **updates)
            for batch in await learner.batches(3):
                assert set(batch.keys.tolist()) == {int(keys[2])}


async def test_batches_not_acknowledged_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_stream, "MAX_UNCONSUMED_BATCHES", 10)
    async for rig in serve(ra.Table("t", max_size=10)):
        await rig.client.insert({"x": 1}, {"t": 1.0})
        learner = await rig.learner("t", 1, together=4, credits=100)
        assert [len((await learner.hear()).batches) for _ in range(3)] == [4, 4, 2]
        with pytest.raises(ra.ResourceExhausted, match="10 batches were sent"):
            await learner.hear()


async def test_a_subscription_with_a_nonsensical_wish_is_refused() -> None:
    async for rig in serve(ra.Table("t", max_size=10)):
        learner = await rig.learner("t", 1, together=-1, credits=1)
        with pytest.raises(InvalidArgument, match="together"):
            await learner.hear()


async def test_learners_share_the_memory_that_batches_are_gathered_in_and_the_last_leaves_none() -> None:
    async for rig in serve(ra.Table("t", max_size=100)):
        await rig.client.insert_batch({"x": np.zeros((64, 8192), np.uint8)}, {"t": 1.0})
        pool = rig.server._service._pool
        learners = [await rig.learner("t", 32, together=1) for _ in range(10)]
        for learner in learners:
            for _ in range(3):
                await learner.ask(credits=1)
                await learner.batches(1)
        assert 0 < len(pool._rooms) <= 3
        for learner in learners[1:]:
            await learner.end()
        assert pool._rooms
        learners[0].vanish()
        await until(lambda pool=pool: not pool._rooms)
