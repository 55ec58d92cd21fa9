"""Encoded items, native ones beside them, and native clients who sample both."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from encoded_rig import add, block, damaged, decode, encode, item, layout_of, pinned, stored

import reverb_async as ra
from reverb_async.core.encoded import EncodedItems
from reverb_async.core.encoded.tensor_cache import Tensor
from reverb_async.replay import Replay
from reverb_async.testing import settle, until

STEP = {"x": (ra.ArraySpec((2,), np.float32), True), "n": (ra.ArraySpec((), np.int64), True)}
SIGNATURE = {"x": ra.ArraySpec((2,), np.float32), "n": ra.ArraySpec((), np.int64)}
SEQUENCE = {"x": (ra.ArraySpec((2,), np.float32), False), "n": (ra.ArraySpec((), str), False)}


@asynccontextmanager
async def serve(where: str, *tables: ra.Table) -> AsyncIterator[tuple[Replay, ra.Client]]:
    async with ra.Server(list(tables), port=0 if where == "tcp" else None) as server:
        replay = server._replay
        replay.encoded.decode = decode
        if where == "tcp":
            async with ra.Client(server.address) as client:
                yield replay, client
        else:
            yield replay, server.client()


def step(number: int) -> bytes:
    """Return a chunk of three steps, with tensors for n and x."""
    return encode(np.arange(3) + 10 * number, np.arange(6, dtype=np.float32).reshape(3, 2) + 100 * number)


def insert_steps(encoded: EncodedItems, tables: list[ra.Table], chunks: list[bytes]) -> None:
    """Insert an item for each chunk, numbered from 1: its second step."""
    rows = add(encoded, *chunks)
    items = [item([row], [(0, 1, 1, 0)], [(0, 1, 1, 1)], nbytes=16) for row in rows.tolist()]
    written = block(encoded, layout_of(encoded, STEP), items)
    for table in tables:
        table.check(written)
        table.insert_now(written)
    encoded.drop_records(written)
    encoded.drop(rows)


@pytest.mark.parametrize("where", ["tcp", "in process"])
async def test_a_batch_mixes_native_and_encoded_items(where: str) -> None:
    table = ra.Table("t", max_size=100, sampler=ra.selectors.Uniform(), signature=SIGNATURE, seed=1)
    async with serve(where, table) as (replay, client):
        insert_steps(replay.encoded, [table], [step(number) for number in range(1, 11)])
        native = {"x": np.arange(20, dtype=np.float32).reshape(10, 2), "n": np.arange(10) + 1000}
        await client.insert_batch(native, {"t": 1.0})
        seen: set[int] = set()
        async with client.sample_batches("t", 32) as batches:
            for _ in range(10):
                batch = await anext(batches)
                for x, n in zip(batch.data["x"], batch.data["n"].tolist(), strict=True):
                    seen.add(n)
                    start = 2 * (n - 1000) if n >= 1000 else n // 10 * 100 + 2
                    assert x.tolist() == [start, start + 1]
                assert batch.data["x"].flags.writeable
        assert seen == {10 * number + 1 for number in range(1, 11)} | {1000 + number for number in range(10)}
        only = await client.sample_batch("t", 4, columns=["n"])
        assert set(only.data) == {"n"}
        one = await client.sample_one("t")
        assert one.data["x"].shape == (2,)
        assert isinstance(one.data["n"], np.int64)


@pytest.mark.parametrize("where", ["tcp", "in process"])
async def test_trajectories_of_several_chunks_come_with_their_time_axis(where: str) -> None:
    table = ra.Table("t", max_size=100, sampler=ra.selectors.Fifo(), max_times_sampled=1)
    async with serve(where, table) as (replay, client):
        encoded = replay.encoded
        rows = add(
            encoded,
            *[
                encode(np.full((4, 2), number, np.float32), [b"%d.%d" % (number, at) for at in range(4)])
                for number in range(3)
            ],
        )
        items = [
            item(rows[[2, 1]], [(0, 0, 2, 0), (1, 3, 1, 0)], [(1, 0, 2, 1)]),
            item(rows[[0]], [(0, 1, 1, 0)], [(0, 1, 3, 1)]),
        ]
        layout = layout_of(encoded, {"a": SEQUENCE["x"], "b": SEQUENCE["n"]})
        written = block(encoded, layout, items)
        table.insert_now(written)
        encoded.drop_records(written)
        encoded.drop(rows)
        batch = await client.sample_batch("t", 2, ragged="list")
        assert [x.tolist() for x in batch.data["a"]] == [[[2, 2], [2, 2], [1, 1]], [[0, 0]]]
        assert [list(n) for n in batch.data["b"]] == [["1.0", "1.1"], ["0.1", "0.2", "0.3"]]
        await settle()
    assert stored(encoded) == (0, 0)


@pytest.mark.parametrize("where", ["tcp", "in process"])
@pytest.mark.parametrize("max_times_sampled", [0, 1])
@pytest.mark.parametrize("inline", [True, False])
async def test_items_with_a_damaged_chunk_are_removed_everywhere_and_others_are_served(
    where: str, max_times_sampled: int, inline: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not inline:
        monkeypatch.setattr("reverb_async.service.sample_answers.MAX_INLINE_GATHER_BYTES", 0)
    table = ra.Table("t", max_size=100, max_times_sampled=max_times_sampled, sampler=ra.selectors.Fifo())
    other = ra.Table("other", max_size=100)
    chunks = [step(number) for number in range(1, 7)]
    chunks[1] = chunks[4] = damaged(len(chunks[0]))
    async with serve(where, table, other) as (replay, client):
        insert_steps(replay.encoded, [table, other], chunks)
        with caplog.at_level(logging.WARNING):
            async with client.sample_batches("t", 2) as batches:
                seen = [n for _ in range(2) for n in (await anext(batches)).data["n"].tolist()]
        assert seen == ([11, 31, 41, 61] if max_times_sampled else [11] * 4)
        if not max_times_sampled:
            await client.mutate_priorities("t", deletes=[1])
            assert (await client.sample_batch("other", 200)).data["n"].tolist()
        info = await client.server_info()
        assert info["other"].current_size == 4
        assert replay.encoded.damaged >= 3
        assert "cannot be decoded" in caplog.text
        assert other.state.find(np.array([2, 5], np.uint64)).tolist() == [-1, -1]
        await client.reset("t")
        await client.reset("other")
        await settle()
        assert stored(replay.encoded) == (0, 0)
        assert pinned(replay.encoded) == (0, 0)


async def test_a_table_of_damaged_items_only_lets_its_samplers_wait_for_better_ones() -> None:
    table = ra.Table("t", max_size=100)
    async with serve("in process", table) as (replay, client):
        insert_steps(replay.encoded, [table], [damaged()] * 5)
        waiting = asyncio.create_task(client.sample_one("t"))
        await settle()
        assert replay.encoded.damaged == 5
        insert_steps(replay.encoded, [table], [step(3)])
        assert (await waiting).data["n"] == 31


async def test_a_stream_that_vanishes_while_a_thread_reads_leaves_no_pins() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(chunk: memoryview, tensor: int) -> Tensor:
        begun.set()
        assert go_on.wait(30)
        return decode(chunk, tensor)

    table = ra.Table("t", max_size=1000)
    async with serve("in process", table) as (replay, client):
        insert_steps(replay.encoded, [table], [step(number) for number in range(200)])
        replay.encoded.decode = slowly
        reading = asyncio.create_task(client.sample_batch("t", 200))
        assert await asyncio.to_thread(begun.wait, 30)
        assert all(count > 0 for count in pinned(replay.encoded))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await client.reset("t")
        await client.close()
        await settle()
        assert stored(replay.encoded) != (0, 0)
        go_on.set()
        await until(lambda: not any(pinned(replay.encoded)))
        assert stored(replay.encoded) == (0, 0)


async def test_a_signature_is_no_matter_of_the_table_where_a_door_has_seen_to_it() -> None:
    table = ra.Table("t", max_size=100, signature={"x": ra.ArraySpec((2,), np.float32), "n": ra.ArraySpec((3,), str)})
    async with serve("in process", table) as (replay, _):
        insert_steps(replay.encoded, [table], [step(1)])
        assert table.info.current_size == 1
        rows = add(replay.encoded, step(1))
        written = block(replay.encoded, layout_of(replay.encoded, STEP), [item(rows, [(0, 0, 1, 0)], [(0, 0, 1, 1)])])
        written.priorities[:] = -np.inf
        with pytest.raises(ra.InvalidArgument):
            table.check(written)
