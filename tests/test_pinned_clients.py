"""Behaviours of Reverb's clients and writers that are pinned down, each under its number, in process.

Where this package decides otherwise, the name of the test says so.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.testing import settle, until

STEP = {"x": np.float32(0)}


@asynccontextmanager
async def serving(*tables: ra.Table) -> AsyncIterator[tuple[ra.Server, ra.Client]]:
    async with ra.Server(tables, port=None) as server, server.client() as client:
        yield server, client


def used_bytes(server: ra.Server) -> int:
    return server._service.replay.storage.usage().used_bytes


async def write_item(writer: ra.TrajectoryWriter, table: str = "t", length: int = 1, **data: Any) -> int:
    writer.append(data or STEP)
    shown = {name: writer.history[name][-length:] for name in (data or STEP)}
    return await writer.create_item(table, 1.0, trajectory=shown)


async def numbers_in(client: ra.Client, table: str, count: int) -> list[Any]:
    return [(await client.sample_one(table, timeout=5)).data["x"].tolist() for _ in range(count)]


# -- tables, as a client sees them ------------------------------------------------------------------------------------


async def test_24_a_batch_waits_until_it_is_whole_unlike_reverb() -> None:
    async with serving(ra.Table("t", max_size=10, max_times_sampled=1)) as (_, client):
        await client.insert({"x": 1}, {"t": 1.0})
        waiting = asyncio.create_task(client.sample_batch("t", 2))
        await settle()
        assert not waiting.done()
        await client.insert({"x": 2}, {"t": 1.0})
        assert sorted((await waiting).data["x"]) == [1, 2]
        await client.insert({"x": 3}, {"t": 1.0})
        assert (await client.sample_batch("t", 2, timeout=0.01, allow_partial=True)).data["x"].tolist() == [3]


async def test_25_fifo_repeats_its_head_until_it_is_used_up_and_then_the_minimum_size_holds() -> None:
    limiter = ra.rate_limiters.MinSize(3)
    table = ra.Table("t", max_size=10, sampler=ra.selectors.Fifo(), rate_limiter=limiter, max_times_sampled=2)
    async with serving(table) as (_, client):
        await client.insert_batch({"x": np.arange(3)}, {"t": 1.0})
        assert await numbers_in(client, "t", 2) == [0, 0]
        third = asyncio.create_task(client.sample_one("t"))
        await settle()
        assert not third.done()
        await client.insert({"x": 3}, {"t": 1.0})
        assert (await third).data["x"] == 1


async def test_26_a_sample_tells_whether_it_had_to_wait() -> None:
    async with serving(ra.Table("t", max_size=10)) as (server, client):
        waiting = asyncio.create_task(client.sample_one("t"))
        await until(lambda: bool(server.tables["t"].info.waiters))
        await client.insert({"x": 1}, {"t": 1.0})
        assert (await waiting).info.rate_limited is True
        assert (await client.sample_one("t")).info.rate_limited is False
        assert not (await client.sample_batch("t", 3)).info.rate_limited.any()


async def test_27_episodes_are_counted_until_their_last_item_goes() -> None:
    async with serving(ra.Table("t", max_size=10)) as (server, client):

        def counts() -> tuple[int, int]:
            info = server.tables["t"].info
            return info.num_episodes, info.num_deleted_episodes

        async with client.trajectory_writer(1) as writer:
            first = await write_item(writer)
            await writer.flush()
            assert counts() == (1, 0)
            second = await write_item(writer)
            await writer.end_episode()
            assert counts() == (1, 0)
            third = await write_item(writer)
            await writer.end_episode()
            assert counts() == (2, 0)
        await client.mutate_priorities("t", deletes=[second])
        assert counts() == (2, 0)
        await client.mutate_priorities("t", deletes=[third])
        assert counts() == (1, 1)
        await client.mutate_priorities("t", deletes=[first])
        assert counts() == (0, 2)
        await client.reset("t")
        assert counts() == (0, 0)


async def test_28_info_tells_sizes_and_counts() -> None:
    async with serving(ra.Table("t", max_size=10, max_times_sampled=1)) as (_, client):
        async with client.trajectory_writer(1) as writer:
            for _ in range(2):
                await write_item(writer)
                await writer.end_episode()
        await client.sample_one("t")
        info = (await client.server_info())["t"]
    assert (info.current_size, info.num_episodes, info.num_deleted_episodes, info.num_unique_samples) == (1, 1, 1, 1)
    assert info.rate_limiter_info.insert_stats.completed == 2
    assert info.rate_limiter_info.sample_stats.completed == 1


async def test_29_an_item_is_one_unique_sample_however_often_it_is_sampled() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        await client.insert({"x": 1}, {"t": 1.0})
        await client.sample_batch("t", 5)
        await client.sample_one("t")
        assert (await client.server_info())["t"].num_unique_samples == 1


async def test_30_unknown_keys_are_no_error_and_deletes_win_over_updates() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        key = (await client.insert({"x": 1}, {"t": 1.0}))["t"]
        assert await client.mutate_priorities("t", {key + 1: 2.0}, [key + 2]) == ra.MutateResult(0, 0, 2)
        assert await client.mutate_priorities("t", {key: 2.0}, [key]) == ra.MutateResult(1, 1, 0)
        assert (await client.server_info())["t"].current_size == 0


async def test_31_waiting_ends_with_a_timeout_or_with_table_closed() -> None:
    async with serving(ra.Table.queue("q", 1)) as (server, client):
        await client.insert({"x": 1}, {"q": 1.0})
        with pytest.raises(ra.RateLimiterTimeout):
            await client.insert({"x": 2}, {"q": 1.0}, timeout=0.05)
        await client.sample_one("q")
        waiting = asyncio.create_task(client.sample_one("q"))
        await until(lambda: bool(server.tables["q"].info.waiters))
        await server.close()
        with pytest.raises(ra.TableClosed):
            await waiting
        with pytest.raises(ra.ReplayError):
            await client.sample_one("q")


async def test_32_an_item_without_a_trajectory_or_of_foreign_steps_is_refused() -> None:
    async with (
        serving(ra.Table("t", max_size=10)) as (_, client),
        client.trajectory_writer(1) as writer,
        client.trajectory_writer(1) as other,
    ):
        writer.append(STEP)
        other.append(STEP)
        with pytest.raises(ra.InvalidArgument, match="at least one column"):
            await writer.create_item("t", 1.0, trajectory={})
        with pytest.raises(ra.InvalidArgument, match="another writer"):
            await writer.create_item("t", 1.0, trajectory={"x": other.history["x"][-1]})


async def test_33_can_sample_asks_the_rate_limiter_only() -> None:
    async with serving(ra.Table("t", max_size=10, max_times_sampled=1)) as (server, client):
        await client.insert_batch({"x": np.arange(2)}, {"t": 1.0})
        assert server.tables["t"].can_sample(3)


async def test_34_replace_keeps_what_it_is_not_told_and_starts_empty() -> None:
    first = ra.Table("a", max_size=5, sampler=ra.selectors.Lifo(), remover=ra.selectors.Lifo())
    second = first.replace(name="b", max_size=7)
    third = first.replace(rate_limiter=ra.rate_limiters.MinSize(3))
    async with serving(first, second) as (_, client):
        await client.insert({"x": 1}, {"a": 1.0})
        info = await client.server_info()
    assert (info["b"].max_size, info["b"].current_size) == (7, 0)
    assert info["b"].sampler_options == info["b"].remover_options == info["a"].sampler_options
    assert (third.name, third.info.current_size, third.info.rate_limiter_info.min_size_to_sample) == ("a", 0, 3)


# -- inserting --------------------------------------------------------------------------------------------------------


async def test_35_no_priorities_no_tables_and_two_tables_of_one_name_are_value_errors() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        with pytest.raises(ValueError, match="priorities"):
            await client.insert({"x": 1}, {})
    for tables in ([], [ra.Table("t", max_size=1), ra.Table("t", max_size=1)]):
        with pytest.raises(ValueError, match="table"):
            ra.Server(tables)


async def test_36_an_inserted_array_is_sampled_as_it_was_without_reverbs_leading_axis() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        await client.insert(np.ones([3, 3]), {"t": 1.0})
        data = (await client.sample_one("t")).data
    assert data.shape == (3, 3)
    assert data.dtype == np.float64
    assert (data == 1).all()


@pytest.mark.parametrize("signed", [False, True])
async def test_37_a_trajectory_keeps_its_names_with_and_without_a_signature_and_info_is_python_numbers(
    signed: bool,
) -> None:
    signature = {"a": ra.ArraySpec((3,), np.int64), "b": ra.ArraySpec((None, 2), np.float32)} if signed else None
    async with serving(ra.Table("t", max_size=10, signature=signature)) as (_, client):
        async with client.trajectory_writer(3) as writer:
            for step in range(3):
                writer.append({"a": np.int64(step), "b": np.full(2, step, np.float32)})
            shown = {"a": writer.history["a"][:], "b": writer.history["b"][:]}
            key = await writer.create_item("t", 2.5, trajectory=shown)
        sample = await client.sample_one("t")
    assert sample.data["a"].tolist() == [0, 1, 2]
    assert sample.data["b"].tolist() == [[0, 0], [1, 1], [2, 2]]
    info = sample.info
    assert [type(value) for value in (info.key, info.probability, info.table_size, info.priority)] == [
        int, float, int, float,
    ]  # fmt: skip
    assert [type(value) for value in (info.times_sampled, info.rate_limited, info.inserted_at)] == [int, bool, float]
    assert (info.key, info.priority, info.probability, info.table_size, info.times_sampled) == (key, 2.5, 1.0, 1, 1)


async def test_38_items_after_each_step_are_sampled_alike_and_a_sequence_equals_its_steps() -> None:
    async with serving(ra.Table("t", max_size=10, seed=0)) as (_, client):
        async with client.trajectory_writer(2) as writer:
            writer.append({"x": np.int64(-1)})
            for step in range(4):
                await write_item(writer, length=2, x=np.int64(step))
        drawn = Counter((await client.sample_batch("t", 4000)).data["x"][:, 1].tolist())
        assert set(drawn) == {0, 1, 2, 3}
        assert all(900 < count < 1100 for count in drawn.values())
        histories = []
        for together in (False, True):
            async with client.trajectory_writer(5) as writer:
                if together:
                    writer.append_sequence({"x": np.arange(5), "y": np.arange(10.0).reshape(5, 2)})
                else:
                    for step in range(5):
                        writer.append({"x": step, "y": np.arange(2.0) + 2 * step})
                assert writer.episode_steps == 5
                histories.append([writer.history[name][:].numpy() for name in "xy"])
        for one, other in zip(*histories, strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype


async def test_39_numbers_that_cannot_work_are_value_errors_and_use_after_close_raises() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        for options in (
            {"chunk_length": 0},
            {"chunk_length": 4},
            {"max_in_flight_items": -1},
            {"max_in_flight_items": 0},
        ):
            with pytest.raises(ValueError, match="must"):
                client.trajectory_writer(3, **options)
        writer = client.trajectory_writer(3)
        for _ in range(4):
            writer.append(STEP)
        with pytest.raises(ValueError, match="num_keep_alive_refs >= 4"):
            writer.history["x"][-4:]
        await writer.close()
        for use in (lambda: writer.append(STEP), lambda: writer.append_sequence({"x": np.arange(3)})):
            with pytest.raises(ra.Closed):
                use()
        for call in (writer.flush(), writer.end_episode(), writer.create_item("t", 1.0, trajectory={})):
            with pytest.raises(ra.Closed):
                await call


async def test_40_server_info_of_a_dead_address_ends_with_its_timeout() -> None:
    async with ra.Client("127.0.0.1:9") as client:
        started = time.monotonic()
        with pytest.raises(ra.DeadlineExceeded, match=r"127\.0\.0\.1:9"):
            await client.server_info(timeout=1)
        assert 0.9 < time.monotonic() - started < 2


async def test_41_a_client_pickles_to_an_equal_working_client_and_many_writers_lose_no_item() -> None:
    async with ra.Server([ra.Table("t", max_size=10_000)]) as server:
        async with ra.Client(server.address) as client:
            await client.insert({"x": np.float32(1)}, {"t": 1.0})
            copy = pickle.loads(pickle.dumps(client))
            assert copy == client
            assert hash(copy) == hash(client)
            assert (await copy.sample_one("t")).data["x"] == 1
            await copy.close()
        client = server.client()

        async def actor(number: int) -> None:
            for at in range(16):
                async with client.trajectory_writer(1) as writer:
                    await write_item(writer, x=np.float32(number * 16 + at))

        await asyncio.gather(*(actor(number) for number in range(64)))
        assert server.tables["t"].info.current_size == 1 + 64 * 16


# -- history ----------------------------------------------------------------------------------------------------------


async def test_42_history_needs_a_step_and_columns_that_come_and_go_stay_of_equal_length() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client), client.trajectory_writer(5) as writer:
        with pytest.raises(ra.ReplayError, match="before the first append"):
            _ = writer.history
        writer.append({"x": 1, "z": 2})
        writer.append({"z": 3, "y": 4})
        writer.append({"w": 5})
        assert set(writer.history) == {"w", "x", "y", "z"}
        assert {len(column) for column in writer.history.values()} == {3}
        places = [("x", 0), ("z", 1), ("y", 1), ("w", 2)]
        assert [writer.history[name][at].numpy() for name, at in places] == [1, 3, 4, 5]
        with pytest.raises(ra.InvalidArgument, match="no value"):
            writer.history["x"][1:]


async def test_43_a_step_given_in_parts_is_one_step_and_no_column_comes_twice() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client), client.trajectory_writer(5) as writer:
        writer.append({"x": 1, "z": 2}, partial_step=True)
        assert writer.episode_steps == 0
        writer.append({"y": 3}, partial_step=True)
        assert writer.episode_steps == 0
        with pytest.raises(ValueError, match=r"\('x',\)"):
            writer.append({"x": 9}, partial_step=True)
        writer.append({"w": 4})
        assert writer.episode_steps == 1
        assert {len(column) for column in writer.history.values()} == {1}
        assert [int(writer.history[name][-1].numpy()) for name in "xzyw"] == [1, 2, 3, 4]


@pytest.mark.parametrize("spread", [False, True])
async def test_44_an_int_drops_the_time_axis_slices_and_lists_keep_it_and_lists_permute(spread: bool) -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        async with client.trajectory_writer(6) as writer:
            for step in range(3):
                writer.append({"x": np.int64(step)})
                if spread:  # The steps travel in messages of their own.
                    await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][-1:]})
                    await writer.flush()
            await writer.flush()
            await client.reset("t")
            x = writer.history["x"]
            assert (x[-1].shape, x[-1:].shape, x[[1, 0, 2]].shape) == ((), (1,), (3,))
            shown = {"int": x[-1], "slice": x[-1:], "list": x[[1, 0, 2]], "strided": x[::2], "twice": x[[1, 1]]}
            await writer.create_item("t", 1.0, trajectory=shown)
        data = (await client.sample_one("t")).data
    assert {name: value.tolist() for name, value in data.items()} == {
        "int": 2, "slice": [2], "list": [1, 0, 2], "strided": [0, 2], "twice": [1, 1],
    }  # fmt: skip


async def test_45_columns_of_none_are_value_errors_and_other_leaves_are_stored_unlike_reverb() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        async with client.trajectory_writer(3) as writer:
            writer.append({"x": 1, "y": None})
            writer.append({"x": 2, "y": 3})
            with pytest.raises(ValueError, match=r"\('y',\)"):
                await writer.create_item("t", 1.0, trajectory={"y": writer.history["y"][:]})
            with pytest.raises(ValueError, match=r"\('y',\) is None"):
                await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][-1], "y": None})
            with pytest.raises(ValueError, match=r"\('x',\)"):
                await writer.create_item("t", 1.0, trajectory={"x": object()})
            with pytest.raises(ValueError, match=">= 0, got -1"):
                await writer.flush(-1)
            await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][-1], "return": np.ones(2)})
        assert (await client.sample_one("t")).data["return"].tolist() == [1, 1]


async def test_46_an_expired_reference_fails_and_one_within_num_keep_alive_refs_works() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        async with client.trajectory_writer(2) as writer:
            writer.append({"x": 0})
            first = writer.history["x"][-1]
            writer.append({"x": 1})
            assert first.numpy() == 0
            await writer.create_item("t", 1.0, trajectory={"x": first})
            writer.append({"x": 2})
            with pytest.raises(ra.ExpiredReference):
                await writer.create_item("t", 1.0, trajectory={"x": first})
            with pytest.raises(ra.ExpiredReference):
                first.numpy()
        assert (await client.sample_one("t")).data["x"] == 0


async def test_47_another_dtype_or_shape_is_a_value_error_naming_path_got_and_wanted() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client), client.trajectory_writer(3) as writer:
        writer.append({"a": {"x": np.zeros(2, np.float32)}})
        for wrong, got in ((np.zeros(2, np.int32), r"int32 \[2\]"), (np.zeros(3, np.float32), r"float32 \[3\]")):
            with pytest.raises(ValueError, match=rf"\('a', 'x'\) is float32 \[2\], got {got}"):
                writer.append({"a": {"x": wrong}})
        assert writer.episode_steps == 1
        assert len(writer.history["a"]["x"]) == 1


async def test_48_end_episode_clears_history_or_lets_items_span_two_episodes() -> None:
    async with serving(ra.Table("t", max_size=10)) as (server, client), client.trajectory_writer(3) as writer:
        await write_item(writer)
        await writer.end_episode()
        assert writer.episode_steps == 0
        assert len(writer.history["x"]) == 0
        await write_item(writer)
        await writer.end_episode(clear_buffers=False)
        assert writer.episode_steps == 0
        assert len(writer.history["x"]) == 1
        await client.reset("t")
        await write_item(writer, length=2)
        await writer.flush()
        assert server.tables["t"].info.num_episodes == 2


# -- what is sent, and when -------------------------------------------------------------------------------------------


async def test_49_without_an_item_nothing_is_sent_and_an_item_sends_what_it_shows_once() -> None:
    async with serving(ra.Table("t", max_size=100)) as (server, client), client.trajectory_writer(10) as writer:
        for step in range(5):
            writer.append({"x": np.full(100, step, np.float32), "y": np.zeros(1000)})
        await writer.flush()
        assert used_bytes(server) == 0
        for _ in range(3):
            await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][1:3]})
        await writer.flush()
        assert used_bytes(server) == 2 * 400
        await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][1:4]})
        await writer.flush()
        assert used_bytes(server) == 3 * 400


async def test_50_flush_may_leave_items_and_an_item_is_visible_soon_without_one_unlike_reverb() -> None:
    async with (
        serving(ra.Table.queue("q", 1), ra.Table("t", max_size=10)) as (server, client),
        client.trajectory_writer(1) as writer,
    ):
        await write_item(writer, "q")
        await writer.flush()
        await write_item(writer, "q")
        async with asyncio.timeout(1):
            await writer.flush(block_until_num_items=1)
        assert server.tables["q"].info.current_size == 1
        await write_item(writer, "t")
        await until(lambda: server.tables["t"].info.current_size == 1, timeout=0.5)
        await client.sample_one("q")
        await writer.flush()
        assert server.tables["q"].info.rate_limiter_info.insert_stats.completed == 2


async def test_51_flush_and_end_episode_on_a_full_queue_raise_in_time_and_the_items_go_in_later() -> None:
    async with serving(ra.Table.queue("q", 1)) as (server, client):
        async with client.trajectory_writer(1) as writer:
            for number in range(3):
                await write_item(writer, "q", x=np.float32(number))
            for call in (writer.flush(timeout=0.03), writer.end_episode(timeout=0.03), writer.flush(timeout=0)):
                with pytest.raises(ra.DeadlineExceeded):
                    await call
            assert writer.episode_steps == 3
            assert await numbers_in(client, "q", 3) == [[0], [1], [2]]
            await writer.end_episode()
        assert server.tables["q"].info.rate_limiter_info.insert_stats.completed == 3


async def test_52_leaving_the_block_flushes_after_success_and_foreign_errors_and_not_after_reverbs() -> None:
    async with serving(ra.Table("t", max_size=10), ra.Table.queue("q", 1)) as (server, client):
        async with client.trajectory_writer(1) as writer:
            await write_item(writer)
        assert server.tables["t"].info.current_size == 1

        async def write(table: str, call: Callable[[ra.TrajectoryWriter], Any]) -> None:
            async with client.trajectory_writer(1) as writer:
                await write_item(writer, table)
                await call(writer)

        with pytest.raises(ZeroDivisionError):
            await write("t", lambda _: 1 / 0)
        assert server.tables["t"].info.current_size == 2
        await client.insert(STEP, {"q": 1.0})
        started = time.monotonic()
        with pytest.raises(ra.DeadlineExceeded):
            await write("q", lambda writer: writer.flush(timeout=0.01))
        assert time.monotonic() - started < 2
        await client.sample_one("q")
        await settle()
        assert server.tables["q"].info.current_size == 0


async def test_53_items_written_while_the_server_is_away_arrive_once_and_a_permanent_error_stays() -> None:
    table = ra.Table("t", max_size=10)
    async with ra.Server([table]) as server, ra.Client(server.address) as client:
        port = server.port
        writer = client.trajectory_writer(1)
        await write_item(writer)
        await writer.flush()
        await server.close()
        writing = asyncio.create_task(write_item(writer))
        await asyncio.sleep(0.05)
        async with ra.Server([ra.Table("t", max_size=10)], port=port) as successor:
            try:
                await writing
            except ra.Unavailable:  # Nothing was queued then.
                await write_item(writer)
            await writer.flush()
            assert successor.tables["t"].info.rate_limiter_info.insert_stats.completed == 1
            await writer.close()


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (lambda h: {"x": h["x"][-2:]}, "missing column"),
        (lambda h: {"x": h["x"][-2:], "y": h["y"][-1], "z": h["y"][-1]}, "unexpected column"),
        (lambda h: {"x": h["y"][-2:], "y": h["y"][-1]}, "float64"),
        (lambda h: {"x": h["w"][-2:], "y": h["y"][-1]}, "float32"),
        (lambda h: {"x": h["x"][-1], "y": h["y"][-1]}, "float32"),
        (lambda h: {"x": h["x"][-1:], "y": h["y"][-1]}, "2"),
    ],
)
async def test_54_what_does_not_fit_the_signature_is_refused_at_create_item(trajectory: Any, message: str) -> None:
    signature = {"x": ra.ArraySpec((2, 3), np.float32), "y": ra.ArraySpec((), np.float64)}
    async with serving(ra.Table("t", max_size=10, signature=signature)) as (server, client):
        async with client.trajectory_writer(2) as writer:
            for _ in range(2):
                writer.append({"x": np.zeros(3, np.float32), "y": 0.0, "w": np.zeros(4, np.float32)})
            with pytest.raises(ValueError, match=message):
                await writer.create_item("t", 1.0, trajectory=trajectory(writer.history))
            with pytest.raises(LookupError, match="'unknown'"):
                await writer.create_item("unknown", 1.0, trajectory={"x": writer.history["x"][-1]})
            shown = {"x": writer.history["x"][-2:], "y": writer.history["y"][-1]}
            await writer.create_item("t", 1.0, trajectory=shown)
        assert server.tables["t"].info.current_size == 1


async def test_55_configure_refuses_numbers_that_cannot_work_and_applies_to_columns_not_seen_yet() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client), client.trajectory_writer(2) as writer:
        for refs, chunk in ((4, 5), (1, 0), (0, None)):
            with pytest.raises(ValueError, match=r"must|chunk length"):
                writer.configure("x", num_keep_alive_refs=refs, max_chunk_length=chunk)
        writer.configure(("a", "x"), num_keep_alive_refs=4)
        for step in range(6):
            writer.append({"a": {"x": step, "y": step}})
        assert writer.history["a"]["x"][-4:].numpy().tolist() == [2, 3, 4, 5]
        with pytest.raises(ra.ExpiredReference):
            writer.history["a"]["y"][-4:]


@pytest.mark.parametrize("dtype", ["u1", "i1", "i8", "u8", "f2", "f4", "f8", "?"])
async def test_56_sequences_come_back_bit_for_bit_at_the_ends_of_their_range(dtype: Any) -> None:
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        extremes = [np.iinfo(kind).min, np.iinfo(kind).max, 0, 1]
    elif kind.kind == "f":
        extremes = [np.finfo(kind).max, -np.inf, np.nan, -0.0]
    else:
        extremes = [True, False, True, True]
    values = np.array(extremes * 8, kind)
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        async with client.trajectory_writer(32) as writer:
            writer.append_sequence({"x": values})
            await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][:]})
        data = (await client.sample_one("t")).data["x"]
    assert data.dtype == kind
    assert data.tobytes() == values.tobytes()


async def test_57_a_column_that_is_there_now_and_then_shows_the_right_steps() -> None:
    async with serving(ra.Table.queue("q", 100)) as (_, client):
        async with client.trajectory_writer(10) as writer:
            for step in range(10):
                writer.append({"x": step, "rare": step} if step % 3 == 0 else {"x": step})
            history = writer.history
            await writer.create_item("q", 1.0, trajectory={"x": history["x"][:], "rare": history["rare"][[0, 3, 6, 9]]})
            await writer.create_item("q", 1.0, trajectory={"x": history["x"][2:4], "rare": history["rare"][::3]})
        first, second = (await client.sample_one("q")).data, (await client.sample_one("q")).data
    assert (first["x"].tolist(), first["rare"].tolist()) == (list(range(10)), [0, 3, 6, 9])
    assert (second["x"].tolist(), second["rare"].tolist()) == ([2, 3], [0, 3, 6, 9])


# -- sampling ---------------------------------------------------------------------------------------------------------


async def test_64_so_many_samples_are_charged_as_are_delivered_and_a_timeout_raises_unlike_reverb() -> None:
    async with serving(ra.Table("t", max_size=10), ra.Table("empty", max_size=10)) as (server, client):
        await client.insert({"x": 1}, {"t": 1.0})
        delivered = 0
        async for _ in client.sample("t", num_samples=3, prefetch=5):
            delivered += 1
        assert delivered == server.tables["t"].info.rate_limiter_info.sample_stats.completed == 3
        started = time.monotonic()
        with pytest.raises(ra.RateLimiterTimeout):
            async for _ in client.sample("empty", timeout=0.1):
                pass
        assert 0.05 < time.monotonic() - started < 1


@pytest.mark.parametrize(
    "options", [{"num_samples": 0}, {"num_samples": -2}, {"prefetch": -1}, {"timeout": -2}, {"timeout": float("nan")}]
)
async def test_65_numbers_that_cannot_work_are_value_errors(options: dict[str, Any]) -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        with pytest.raises(ValueError, match=next(iter(options))):
            client.sample("t", **options)


async def test_66_a_fatal_error_ends_an_iterator_with_it_and_after_close_every_call_is_closed() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        unknown = client.sample("unknown")
        for _ in range(2):
            with pytest.raises(ra.TableNotFound):
                await anext(unknown)
        iterator = client.sample("t")
        waiting = asyncio.create_task(anext(iterator))
        await settle()
        await iterator.aclose()
        with pytest.raises(ra.Closed):
            await waiting
        for _ in range(2):
            with pytest.raises(ra.Closed):
                await anext(iterator)


@pytest.mark.parametrize("count", [1, 4, 10])
async def test_67_of_a_queue_what_was_not_asked_for_remains(count: int) -> None:
    async with serving(ra.Table.queue("q", 10)) as (server, client):
        await client.insert_batch({"x": np.arange(10)}, {"q": 1.0})
        taken: Sequence[int] = [
            int(sample.data["x"]) async for sample in client.sample("q", num_samples=count, prefetch=20)
        ]
        assert taken == list(range(count))
        assert server.tables["q"].info.current_size == 10 - count
        if count < 10:
            assert (await client.sample_one("q")).data["x"] == count


# -- mistakes ---------------------------------------------------------------------------------------------------------


async def test_79_a_step_with_one_bad_column_changes_nothing_and_succeeds_when_corrected() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        async with client.trajectory_writer(3) as writer:
            writer.append({"a": 1.0, "b": np.zeros(2), "c": 1})
            for _ in range(2):
                with pytest.raises(ValueError, match=r"\('b',\)"):
                    writer.append({"a": 2.0, "b": np.zeros(3), "c": 2, "new": 5})
                assert writer.episode_steps == 1
            assert set(writer.history) == {"a", "b", "c"}
            writer.append({"a": 2.0, "b": np.ones(2), "c": 2})
            shown = {name: writer.history[name][:] for name in "abc"}
            await writer.create_item("t", 1.0, trajectory=shown)
        data = (await client.sample_one("t")).data
    assert data["a"].tolist() == [1, 2]
    assert data["b"].tolist() == [[0, 0], [1, 1]]
    assert data["c"].tolist() == [1, 2]


async def test_80_after_a_permanent_error_every_call_raises_it_but_close_is_fine() -> None:
    async with serving(ra.Table("t", max_size=10)) as (_, client):
        writer = client.trajectory_writer(1, validate_items=False)
        await write_item(writer, "unknown")
        for _ in range(2):
            with pytest.raises(ra.TableNotFound, match="unknown"):
                await writer.flush()
            with pytest.raises(ra.TableNotFound, match="unknown"):
                writer.append(STEP)
            with pytest.raises(ra.TableNotFound, match="unknown"):
                await writer.create_item("t", 1.0, trajectory={"x": np.float32(1)})
            with pytest.raises(ra.TableNotFound, match="unknown"):
                await writer.end_episode()
        await writer.close()
