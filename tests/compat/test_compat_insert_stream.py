"""DeepMind's InsertStream on a real server."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

import reverb_async as ra
from reverb_async.compat.insert_stream import InsertStream
from reverb_async.compat.service import DeepMindService
from reverb_async.errors import ReplayError
from reverb_async.replay import Replay
from reverb_async.wire.generated.deepmind.reverb import InsertStreamRequest, InsertStreamResponse
from tests.compat.deepmind_rig import chunk, column, held, item, row_item, served, status, until

MISSING = "ReleaseOutOfRangeChunks: Kept less chunks than expected.  chunks_.size() == 0 != keep_keys.size() == 1"


def steps(key: int, first: int, count: int, **more: object):
    """Return a chunk of one column, the numbers from `first` on."""
    return chunk(key, np.arange(first, first + count, dtype=np.float32), start=first, **more)


async def test_an_item_comes_back_as_it_was_written() -> None:
    request = row_item(2**64 - 2, "t", np.float32([1, 2]), np.int64(7), priority=3.0)
    async with served(ra.Table("t", max_size=10)) as (_, client):
        await client.insert(request)
        (sample,) = await client.sample("t")
    assert [bytes(each) for each in sample.chunks] == [bytes(each) for each in request.chunks]
    assert bytes(sample.info.flat_trajectory) == bytes(request.items[0].flat_trajectory)
    assert (sample.info.key, sample.info.priority, sample.info.times_sampled) == (2**64 - 2, 3.0, 1)
    assert (sample.whole.probability, sample.whole.table_size, sample.whole.rate_limited) == (1.0, 1, False)
    np.testing.assert_array_equal(sample.columns[0], np.float32([[1, 2]]))
    assert sample.columns[1].tolist() == [7]


async def test_chunks_are_kept_for_later_items_as_long_as_they_are_named() -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        stream = client.inserting()
        await stream.send(
            InsertStreamRequest(chunks=[steps(1, 0, 3)], keep_chunk_keys=[99]),  # ignored: there are no items
            InsertStreamRequest(
                chunks=[steps(2, 3, 3)], items=[item(10, "t", column((1, 1, 2), (2, 0, 1)))], keep_chunk_keys=[2]
            ),
            InsertStreamRequest(items=[item(11, "t", column((2, 0, 3)))], keep_chunk_keys=[2]),
        )
        assert await stream.keys(2) == [10, 11]
        assert held(server) == (2, 2)
        await stream.send(InsertStreamRequest(items=[item(12, "t", column((1, 0, 1)))]))
        assert await status(stream.call) == ("INTERNAL", "Could not find sequence chunk 1.")
        samples = {sample.info.key: sample for sample in await client.sample("t", 50)}
        assert [samples[10].columns[0].tolist(), samples[11].columns[0].tolist()] == [[1, 2, 3], [3, 4, 5]]
        await client.reset("t")
        await until(lambda: held(server) == (0, 0))


async def test_keeping_a_chunk_that_is_not_there_is_refused_after_the_items_are_in() -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        stream = client.inserting()
        await stream.send(InsertStreamRequest(chunks=[steps(1, 0, 1)], items=[item(5, "t", column((1, 0, 1)))]))
        assert await stream.keys(1) == [5]
        await stream.send(
            InsertStreamRequest(chunks=[steps(3, 0, 1)], items=[item(6, "t", column((3, 0, 1)))], keep_chunk_keys=[4])
        )
        assert await status(stream.call) == ("FAILED_PRECONDITION", MISSING)
        assert server.tables["t"].state.size == 2


async def test_the_first_of_two_chunks_with_one_key_counts() -> None:
    async with served(ra.Table("t", max_size=10)) as (_, client):
        stream = client.inserting()
        await stream.send(InsertStreamRequest(chunks=[steps(1, 0, 2), steps(1, 50, 2)]))
        await stream.send(
            InsertStreamRequest(chunks=[steps(1, 70, 2)], items=[item(5, "t", column((1, 0, 2)))], keep_chunk_keys=[1])
        )
        assert await stream.keys(1) == [5]
        (sample,) = await client.sample("t")
        assert sample.columns[0].tolist() == [0, 1]


async def test_a_known_key_only_takes_the_new_priority_and_is_confirmed() -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        await client.insert(row_item(5, "t", np.int32(1)), row_item(5, "t", np.int32(2), priority=9.0))
        (sample,) = await client.sample("t")
        assert (sample.info.priority, sample.columns[0].tolist()) == (9.0, [1])
        await until(lambda: held(server) == (1, 1))
        assert server.tables["t"].info.rate_limiter_info.insert_stats.completed == 1


@pytest.mark.parametrize(
    ("request_of", "code", "text"),
    [
        (lambda: row_item(1, "nowhere", np.int32(1)), "NOT_FOUND", "Priority table nowhere was not found"),
        (lambda: InsertStreamRequest(keep_chunk_keys=[1]), "INVALID_ARGUMENT", "lacks both chunks and item"),
        (lambda: InsertStreamRequest(items=[item(1, "t")]), "INVALID_ARGUMENT", "trajectory must not be empty"),
        (lambda: one(column()), "INVALID_ARGUMENT", "trajectory must not be empty"),
        (lambda: one(column((8, 0, 1))), "INTERNAL", "Could not find sequence chunk 8."),
        (lambda: one(column((9, 0, 4))), "INVALID_ARGUMENT", "rows 0 to 3"),
        (lambda: one(column((9, -1, 1))), "INVALID_ARGUMENT", "rows -1 to -1"),
        (lambda: one(column((9, 0, 0))), "INVALID_ARGUMENT", "rows 0 to -1"),
        (lambda: one(column((9, 2**31 - 1, 2**31 - 1))), "INVALID_ARGUMENT", "rows 2147483647 to"),
        (lambda: one(column((9, 0, 1, 1))), "INVALID_ARGUMENT", "has 1 tensors, no 1"),
        (lambda: one(column((9, 0, 1, -1))), "INVALID_ARGUMENT", "has 1 tensors, no -1"),
        (lambda: one(column((9, 0, 2), squeeze=True)), "INVALID_ARGUMENT", "squeezed"),
        (lambda: row_item(1, "t", np.int32(1), priority=-1.0), "INVALID_ARGUMENT", "Priority must not be negative."),
        (lambda: row_item(1, "t", np.int32(1), priority=float("nan")), "INVALID_ARGUMENT", "must not be NaN"),
        (lambda: row_item(1, "t", np.int32(1), priority=float("inf")), "INVALID_ARGUMENT", "priorit"),
        (lambda: b"\xff" * 50, "INVALID_ARGUMENT", "InsertStreamRequest"),
    ],
)
async def test_a_wrong_request_ends_its_stream_with_a_status_and_leaves_nothing(request_of, code, text) -> None:
    table = ra.Table("t", max_size=10, sampler=ra.selectors.Prioritized(1.0))
    async with served(table) as (server, client):
        stream = client.inserting()
        await stream.send(row_item(77, "t", np.int32(1)), request_of())
        got, details = await status(stream.call)
        assert (got, text in details) == (code, True), details
        assert table.state.size == 1
        await until(lambda: held(server) == (1, 1))


def one(shown):
    """Return a request with a chunk of 3 rows, key 9, and an item of one column."""
    return InsertStreamRequest(chunks=[steps(9, 0, 3)], items=[item(1, "t", shown)])


async def test_items_before_a_wrong_one_are_inserted_and_confirmed() -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        stream = client.inserting()
        wrong = [item(at, "t", column((9, 0, 3 if at < 3 else 4))) for at in range(5)]
        await stream.send(InsertStreamRequest(chunks=[steps(9, 0, 3)], items=wrong))
        assert await stream.keys(3) == [0, 1, 2]
        assert (await status(stream.call))[0] == "INVALID_ARGUMENT"
        assert server.tables["t"].state.size == 3


async def test_a_column_of_different_dtypes_is_refused() -> None:
    async with served(ra.Table("t", max_size=10)) as (_, client):
        stream = client.inserting()
        chunks = [chunk(1, np.zeros(2, np.float32)), chunk(2, np.zeros(2, np.int32))]
        await stream.send(InsertStreamRequest(chunks=chunks, items=[item(1, "t", column((1, 0, 2), (2, 0, 1)))]))
        code, text = await status(stream.call)
        assert (code, "float32" in text and "int32" in text) == ("INVALID_ARGUMENT", True)


async def test_items_wait_for_the_rate_limiter_and_are_confirmed_in_order() -> None:
    table = ra.Table.queue("q", 2)
    async with served(table) as (server, client):
        stream = client.inserting()
        await stream.send(*(row_item(key, "q", np.int32(key)) for key in range(1, 4)))
        assert await stream.keys(2) == [1, 2]
        await until(lambda: len(table.inserters) == 1)
        assert [each.info.key for each in await client.sample("q", 2)] == [1, 2]
        assert await stream.keys(1) == [3]
        await client.sample("q", 1)
        assert await stream.end() == []
        await until(lambda: held(server) == (0, 0))


async def test_items_for_different_tables_do_not_hold_each_other_up() -> None:
    async with served(ra.Table.queue("full", 20), ra.Table("free", max_size=100)) as (server, client):
        stream = client.inserting()
        await stream.send(*(row_item(key, "full", np.int32(0)) for key in range(21)))
        await stream.keys(20)
        await stream.send(*(row_item(100 + key, "free", np.int32(0)) for key in range(5)))
        assert await stream.keys(5) == [100, 101, 102, 103, 104]
        stream.call.cancel()
        await until(lambda: not len(server.tables["full"].inserters))


async def test_a_stream_is_read_no_further_while_a_tenth_of_its_table_waits() -> None:
    table = ra.Table.queue("q", 200)
    async with served(table, ra.Table("free", max_size=100)) as (server, client):
        stream = client.inserting()
        await stream.send(*(row_item(key, "q", np.int32(0)) for key in range(230)))
        await stream.send(row_item(999, "free", np.int32(0)))
        await stream.keys(200)
        await asyncio.sleep(0.1)
        assert held(server)[0] == 220
        assert server.tables["free"].state.size == 0
        await client.sample("q", 100)
        assert await stream.keys(31) == [*range(200, 230), 999]


async def test_a_few_small_items_may_wait_for_any_table_but_not_large_ones() -> None:
    large = np.random.default_rng(0).integers(0, 256, 20 << 20, np.uint8)
    full, free = ra.Table.queue("full", 1), ra.Table("free", max_size=100)
    async with served(full, free) as (_, client):
        stream = client.inserting()
        await stream.send(*(row_item(key, "full", np.int32(0)) for key in range(6)), row_item(6, "free", np.int32(0)))
        assert await stream.keys(2) == [0, 6]
        await stream.send(row_item(7, "full", large), row_item(8, "free", np.int32(0)))
        await asyncio.sleep(0.3)
        assert free.state.size == 1
        await client.sample("full", 6)
        assert sorted(await stream.keys(7)) == [1, 2, 3, 4, 5, 7, 8]


async def test_cancelling_a_stream_withdraws_what_waits_and_frees_its_chunks() -> None:
    table = ra.Table.queue("q", 10)
    async with served(table) as (server, client):
        stream = client.inserting()
        await stream.send(*(row_item(key, "q", np.int32(0)) for key in range(11)))
        await stream.keys(10)
        await until(lambda: len(table.inserters) == 1)
        stream.call.cancel()
        await until(lambda: not len(table.inserters))
        await client.sample("q", 10)
        await until(lambda: held(server) == (0, 0))
        assert table.state.size == 0


async def test_half_closing_leaves_what_waits_in_the_queue() -> None:
    table = ra.Table.queue("q", 40)
    async with served(table) as (server, client):
        stream = client.inserting()
        await stream.send(*(row_item(key, "q", np.int32(key)) for key in range(43)))
        await stream.keys(40)
        await until(lambda: held(server)[0] == 43)
        assert await stream.end() == []
        assert held(server)[0] == 43
        assert [each.info.key for each in await client.sample("q", 43)] == [*range(43)]
        await until(lambda: held(server) == (0, 0))


async def test_what_waits_for_ended_streams_is_withdrawn_when_the_server_closes() -> None:
    table = ra.Table.queue("q", 40)
    async with served(table) as (server, client):
        stream = client.inserting()
        await stream.send(*(row_item(key, "q", np.int32(key)) for key in range(42)))
        await stream.keys(40)
        assert await stream.end() == []
        await server.close()
        assert (len(table.inserters), held(server)[0]) == (0, 40)


async def test_a_reset_lets_blocked_inserts_in() -> None:
    table = ra.Table.queue("q", 3)
    async with served(table) as (_, client):
        stream = client.inserting()
        await stream.send(*(row_item(key, "q", np.int32(key)) for key in range(4)))
        await stream.keys(3)
        await until(lambda: len(table.inserters) == 1)
        await client.reset("q")
        assert await stream.keys(1) == [3]
        assert [each.info.key for each in await client.sample("q", 1)] == [3]


async def test_closing_the_server_cancels_blocked_inserts() -> None:
    async with served(ra.Table.queue("q", 1)) as (server, client):
        stream = client.inserting()
        await stream.send(*(row_item(key, "q", np.int32(key)) for key in range(2)))
        await stream.keys(1)
        await until(lambda: len(server.tables["q"].inserters) == 1)
        await server.close()
        assert await status(stream.call) == ("CANCELLED", "RateLimiter has been cancelled")


async def test_blocked_writers_do_not_stop_a_sampler_on_their_connection() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (300, 300), np.uint8)
    request = bytes(row_item(2, "full", frames))
    full, table = ra.Table.queue("full", 1), ra.Table("t", max_size=10)
    async with served(full, table) as (server, client):
        await client.insert(row_item(1, "t", np.int32(5)))
        streams = [client.inserting() for _ in range(130)]

        async def flood(number: int) -> None:
            for _ in range(40):
                await streams[number].send(request)

        floods = [asyncio.create_task(flood(number)) for number in range(len(streams))]
        await until(lambda: len(full.inserters) >= 130 and held(server)[0] >= 130 * 16)
        for _ in range(20):
            assert (await client.sample("t"))[0].columns[0].tolist() == [5]
        for each in floods:
            each.cancel()
        await asyncio.gather(*floods, return_exceptions=True)


async def test_writers_beyond_the_hundredth_are_served() -> None:
    async with served(ra.Table("t", max_size=1000)) as (server, client):
        streams = [client.inserting() for _ in range(150)]
        for number, stream in enumerate(streams):
            await stream.send(row_item(number, "t", np.int32(number)))
        for number, stream in enumerate(streams):
            assert await stream.keys(1) == [number]
        assert server.tables["t"].num_writers == 150
        assert server.tables["t"].state.size == 150


async def test_a_large_item_passes_and_a_too_large_message_gets_a_status() -> None:
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, 100 << 20, np.uint8)
    async with served(ra.Table("t", max_size=10)) as (_server, client):
        await client.insert(row_item(1, "t", large))
        (sample,) = await client.sample("t")
        assert np.array_equal(sample.columns[0][0], large)
        del sample
        call = client.channel.unary_unary("/deepmind.reverb.ReverbService/Reset")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(bytes(2 << 20))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "65536" in refused.value.details()


async def test_episodes_are_counted_across_streams() -> None:
    table = ra.Table("t", max_size=10)
    async with served(table) as (_, client):
        stream = client.inserting()
        parts = [steps(1, 0, 2, episode=2**64 - 5), steps(2, 2, 2, episode=2**64 - 5), steps(3, 0, 2, episode=3)]
        shown = [column((1, 0, 2)), column((2, 0, 2)), column((3, 0, 2)), column((2, 0, 1), (3, 0, 1))]
        items = [item(key, "t", each) for key, each in enumerate(shown)]
        await stream.send(InsertStreamRequest(chunks=parts, items=items))
        await stream.keys(4)
        assert table.info.num_episodes == 2
        await client.insert(
            InsertStreamRequest(chunks=[steps(4, 4, 1, episode=3)], items=[item(9, "t", column((4, 0, 1)))])
        )
        assert table.info.num_episodes == 2
        await client.mutate("t", {}, [0, 1])
        assert (table.info.num_episodes, table.info.num_deleted_episodes) == (2, 0)
        await client.mutate("t", {}, [3])
        assert (table.info.num_episodes, table.info.num_deleted_episodes) == (1, 1)


class Burst:
    """A stream whose messages are all here already."""

    peer = ""

    def __init__(self, messages: list[bytes]) -> None:
        self._messages = messages
        self.answers: list[list[int]] = []

    def ready(self, most: int, nbytes: int) -> list[bytes]:
        ready, self._messages = self._messages[:most], self._messages[most:]
        return ready

    async def receive(self) -> bytes | None:
        return self._messages.pop(0) if self._messages else None

    async def send(self, chunks: list[bytes]) -> None:
        self.answers.append(InsertStreamResponse.parse(b"".join(chunks)).keys)


async def serve_burst(replay: Replay, messages: list[bytes]) -> tuple[list[list[int]], Exception | None]:
    stream = Burst(messages)
    try:
        await InsertStream(DeepMindService(replay), stream).run()
    except ReplayError as error:
        return stream.answers, error
    return stream.answers, None


@pytest.fixture
def replay() -> Replay:
    opened = Replay([ra.Table("t", max_size=1000)])
    opened.open()
    return opened


async def test_short_messages_that_are_here_are_worked_off_together(replay: Replay) -> None:
    answers, error = await serve_burst(replay, [bytes(row_item(key, "t", np.int32(key))) for key in range(60)])
    assert (answers, error) == ([[*range(60)]], None)
    assert replay.tables["t"].state.size == 60


@pytest.mark.parametrize("wrong", [b"\xff", bytes(InsertStreamRequest(items=[item(1, "t", column((404, 0, 1)))]))])
async def test_messages_before_a_wrong_one_count_and_those_after_do_not(replay: Replay, wrong: bytes) -> None:
    messages = [bytes(row_item(key, "t", np.int32(key))) for key in range(20)]
    messages[7] = wrong
    answers, error = await serve_burst(replay, messages)
    assert error is not None
    assert [key for keys in answers for key in keys] == [*range(7)]
    assert replay.tables["t"].state.size == 7
    replay.tables["t"].reset()
    while replay.tables["t"].state.dismantle():
        pass
    await asyncio.sleep(0)
    assert [usage.live_rows + usage.staged_rows for usage in (store.usage() for store in replay.encoded.stores)] == [
        0,
        0,
    ]


async def test_messages_read_together_see_only_the_chunks_sent_before_them(replay: Replay) -> None:
    first = InsertStreamRequest(chunks=[steps(1, 0, 3)], items=[item(1, "t", column((1, 0, 3)))])  # drops the chunk
    again = InsertStreamRequest(chunks=[steps(1, 10, 3)], items=[item(2, "t", column((1, 0, 3)))], keep_chunk_keys=[1])
    early = InsertStreamRequest(items=[item(3, "t", column((2, 0, 1)))], keep_chunk_keys=[1])
    late = InsertStreamRequest(chunks=[steps(2, 0, 3)])
    answers, error = await serve_burst(replay, [bytes(each) for each in (first, again, early, late)])
    assert [key for keys in answers for key in keys] == [1, 2]
    assert str(error) == "Could not find sequence chunk 2."
    state = replay.tables["t"].state
    trajectories = replay.encoded.stores[1].usage()
    assert (state.size, trajectories.live_rows) == (2, 2)
