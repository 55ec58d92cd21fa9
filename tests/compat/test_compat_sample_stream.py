"""DeepMind's SampleStream on a real server."""

from __future__ import annotations

import asyncio

import grpc.aio
import numpy as np
import pytest

import reverb_async as ra
from reverb_async.wire.generated.deepmind.reverb import (
    InsertStreamRequest,
    SampleStreamRequest,
    SampleStreamResponse,
)
from reverb_async.wire.http2 import Guards
from tests.compat.deepmind_rig import DeepMindClient, chunk, column, held, item, row_item, served, status, until

TIMEOUT = "Rate Limiter: Timeout exceeded before the right to insert was acquired."


def rows(table: str, count: int, first: int = 0) -> list[InsertStreamRequest]:
    return [row_item(key, table, np.int64(key)) for key in range(first, first + count)]


async def test_many_samples_come_in_few_messages() -> None:
    async with served(ra.Table.queue("q", 1000)) as (_, client):
        await client.insert(*rows("q", 500))
        stream = client.sampling()
        await stream.ask("q", 500)
        messages = 0
        keys: list[int] = []
        while len(keys) < 500:
            answer = await stream.call.read()
            messages += 1
            keys += [entry.info.item.key for entry in SampleStreamResponse.parse(answer).entries]
        assert keys == list(range(500))
        assert messages <= 4


async def test_one_stream_takes_request_after_request() -> None:
    async with served(ra.Table.queue("q", 100)) as (_, client):
        await client.insert(*rows("q", 10))
        stream = client.sampling()
        for first in range(0, 10, 2):
            await stream.ask("q", 2, -1)
            assert [each.info.key for each in await stream.read(2)] == [first, first + 1]
        await stream.call.done_writing()
        assert await status(stream.call) == ("OK", "")


async def test_what_there_is_comes_at_once_and_the_rest_when_it_is_written() -> None:
    table = ra.Table.queue("q", 100)
    async with served(table) as (_, client):
        await client.insert(*rows("q", 3))
        stream = client.sampling()
        await stream.ask("q", 5)
        first = await stream.read(3)
        assert [each.whole.rate_limited for each in first] == [False] * 3
        await until(lambda: table.info.waiters)
        await client.insert(*rows("q", 2, first=3))
        rest = await stream.read(2)
        assert [each.info.key for each in first + rest] == [0, 1, 2, 3, 4]
        assert rest[0].whole.rate_limited


@pytest.mark.parametrize("timeout_ms", [0, 50])
async def test_a_timeout_has_the_text_that_clients_compare(timeout_ms) -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        stream = client.sampling()
        await stream.ask("t", 3, timeout_ms)
        assert await status(stream.call) == ("DEADLINE_EXCEEDED", TIMEOUT)
        assert not server.tables["t"].info.waiters


async def test_a_partial_answer_comes_before_the_timeout() -> None:
    async with served(ra.Table.queue("q", 10)) as (_, client):
        await client.insert(*rows("q", 2))
        stream = client.sampling()
        await stream.ask("q", 3, 0)
        assert len(await stream.read(2)) == 2
        assert await status(stream.call) == ("DEADLINE_EXCEEDED", TIMEOUT)


@pytest.mark.parametrize("timeout_ms", [None, -1, -(2**63), 2**63 - 1])
async def test_without_a_timeout_a_sampler_waits(timeout_ms) -> None:
    table = ra.Table("t", max_size=10)
    async with served(table) as (_, client):
        stream = client.sampling()
        await stream.ask("t", 1, timeout_ms)
        await until(lambda: table.info.waiters)
        await client.insert(*rows("t", 1))
        assert (await stream.read(1))[0].info.key == 0


@pytest.mark.parametrize(
    ("sent", "code", "text"),
    [
        (SampleStreamRequest(table="nowhere", num_samples=1), "NOT_FOUND", "Priority table nowhere was not found"),
        (SampleStreamRequest(table="t"), "INVALID_ARGUMENT", "`num_samples` must be > 0 (got0)."),
        (SampleStreamRequest(table="t", num_samples=-3), "INVALID_ARGUMENT", "`num_samples` must be > 0 (got-3)."),
        (b"\x0a\xff\xff", "INVALID_ARGUMENT", "SampleStreamRequest"),
    ],
)
async def test_a_wrong_request_ends_its_stream_with_a_status(sent, code, text) -> None:
    async with served(ra.Table("t", max_size=10)) as (_, client):
        stream = client.sampling()
        await stream.call.write(bytes(sent))
        got, details = await status(stream.call)
        assert (got, text in details) == (code, True), details


async def test_samples_that_were_not_sent_return_when_the_client_vanishes() -> None:
    frame = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    table = ra.Table.queue("q", 60)
    async with served(table) as (server, client):
        await client.insert(*(row_item(key, "q", frame) for key in range(40)))
        stream = client.sampling()
        await stream.ask("q", 2**62, -1)
        await until(lambda: table.state.limiter.samples)
        await asyncio.sleep(0.3)
        stream.call.cancel()
        await until(lambda: not table.num_samplers)
        left = table.state.size
        assert 10 < left < 40
        assert table.state.limiter.samples == 40 - left
        assert [each.info.key for each in await client.sample("q", left)] == [*range(40 - left, 40)]
        await until(lambda: held(server) == (0, 0))


async def test_a_sampler_that_vanishes_while_it_waits_stands_in_nobodys_way() -> None:
    table = ra.Table("t", max_size=10)
    async with served(table) as (_, client):
        gone, stays = client.sampling(), client.sampling()
        await gone.ask("t", 1)
        await until(lambda: table.info.waiters)
        await stays.ask("t", 1)
        await until(lambda: table.info.waiters[0].count == 2)
        gone.call.cancel()
        await client.insert(*rows("t", 1))
        assert len(await stays.read(1)) == 1


async def test_closing_the_server_cancels_waiting_samplers() -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        stream = client.sampling()
        await stream.ask("t", 1)
        await until(lambda: server.tables["t"].info.waiters)
        await server.close()
        assert await status(stream.call) == ("CANCELLED", "RateLimiter has been cancelled")


async def test_several_samplers_of_a_queue_share_its_items() -> None:
    table = ra.Table.queue("q", 10)
    async with served(table) as (_, client):
        streams = [client.sampling() for _ in range(5)]
        for stream in streams:
            await stream.ask("q", 20)
        reading = [asyncio.create_task(stream.read(20)) for stream in streams]
        await client.insert(*rows("q", 100))
        keys = [sample.info.key for samples in await asyncio.gather(*reading) for sample in samples]
        assert sorted(keys) == list(range(100))


async def test_an_item_of_many_chunks_has_each_of_them_once() -> None:
    async with served(ra.Table("t", max_size=10)) as (_, client):
        chunks = [chunk(key, np.full((4, 3), key, np.int32)) for key in range(1, 6)]
        shown = [column(*((key, 1, 2) for key in range(1, 6))), column((3, 0, 4)), column((5, 3, 1), squeeze=True)]
        await client.insert(InsertStreamRequest(chunks=chunks, items=[item(1, "t", *shown)]))
        (sample,) = await client.sample("t")
    assert sorted(each.chunk_key for each in sample.chunks) == [1, 2, 3, 4, 5]
    assert sample.columns[0][:, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert sample.columns[1].tolist() == [[3] * 3] * 4
    assert sample.columns[2].tolist() == [5] * 3


async def test_samples_report_priority_probability_and_times() -> None:
    table = ra.Table("t", max_size=10, sampler=ra.selectors.Prioritized(1.0), max_times_sampled=3)
    async with served(table) as (_, client):
        await client.insert(row_item(1, "t", np.int32(1), priority=0.0), row_item(2, "t", np.int32(2), priority=4.0))
        samples = await client.sample("t", 3)
        assert [each.info.key for each in samples] == [2, 2, 2]
        assert [each.info.times_sampled for each in samples] == [1, 2, 3]
        assert [each.whole.table_size for each in samples] == [2, 2, 2]
        assert [each.whole.probability for each in samples] == [1.0] * 3
        assert [each.info.priority for each in samples] == [4.0] * 3
        assert table.state.size == 1


async def test_large_and_small_items_come_back_whole() -> None:
    rng = np.random.default_rng(0)
    sizes = [10, 3 << 20, 10, 9 << 20, 100_000, 5 << 20, 1]
    values = [rng.integers(0, 256, size, np.uint8) for size in sizes]
    async with served(ra.Table.queue("q", 10)) as (server, client):
        await client.insert(*(row_item(key, "q", value) for key, value in enumerate(values)))
        samples = await client.sample("q", len(values))
        for sample, value in zip(samples, values, strict=True):
            assert np.array_equal(sample.columns[0][0], value)
        await until(lambda: held(server) == (0, 0))


async def test_initialize_connection_answers_with_no_address() -> None:
    async with served(ra.Table("t", max_size=10)) as (_, client):
        call = client.stream("InitializeConnection")
        await call.write(b"\x08\x05")
        assert await call.read() == b""
        assert await status(call) == ("OK", "")


async def test_a_learner_that_pauses_for_too_long_is_told_to_try_again() -> None:
    """These clients take every status but this one, and CANCELLED, for the end; their learners pause for minutes."""
    server = ra.Server([ra.Table("t", max_size=100)])
    server._guards = Guards(send_timeout=0.3, keepalive_interval=0.1)
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with server, grpc.aio.insecure_channel(server.address, options=limits) as channel:
        client = DeepMindClient(channel)
        big = np.random.default_rng(0).integers(0, 255, 4_000_000, np.uint8)
        await client.insert(*[row_item(key, "t", big) for key in range(3)])
        stream = client.sampling()
        await stream.ask("t", 50)
        await until(lambda: server.stats.stalled_streams == 1)
        assert await status(stream.call) == ("UNAVAILABLE", "the client has read nothing for 0.3 s")
        assert len(await client.sample("t", 2)) == 2
