"""What every way to a server must do alike: the same suite runs over TCP, Unix sockets and in process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import numpy as np
import pytest

from reverb_async.client.client import Client
from reverb_async.core import rate_limiters, selectors
from reverb_async.core.ragged import Ragged
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import (
    Closed,
    InvalidArgument,
    RateLimiterTimeout,
    SignatureMismatch,
    TableClosed,
    TableNotFound,
)
from reverb_async.server import Server
from reverb_async.table import Table
from reverb_async.testing.loops import until


class Point(NamedTuple):
    """A structure that must come back by name."""

    x: Any
    y: Any


class ConformanceSuite:
    """Subclass it in a test module and say how to connect; pytest-asyncio (mode ``auto``) runs the rest.

    ::

        class TestTcp(ConformanceSuite):
            def serving(self, tables):
                return tcp_server_and_client(tables)   # async context manager of (Server, Client)
    """

    def serving(self, tables: Sequence[Table]) -> AbstractAsyncContextManager[tuple[Server, Client]]:
        """Return a context manager that serves `tables` and gives the server and a connected client."""
        raise NotImplementedError(f"{type(self).__name__} must say how to connect: override serving()")

    # -- data ---------------------------------------------------------------------------------------------------------

    async def test_what_is_inserted_is_sampled(self) -> None:
        """Structure, names, dtypes, shapes and values survive, without an added axis."""
        data = {
            "image": np.arange(12, dtype=np.uint8).reshape(3, 4),
            "nested": {"flag": np.bool_(True), "pair": (np.float32(0.5), np.int16(-3))},
            "point": Point(np.arange(3.0), np.complex64(1 + 2j)),
            "text": "déjà vu",
            "raw": b"\x00\xff",
            "number": 7,
            "nothing": None,
        }
        async with self.serving([Table("t", max_size=10)]) as (_, client):
            keys = await client.insert(data, {"t": 2.5})
            sample = await client.sample_one("t")
        got = sample.data
        np.testing.assert_array_equal(got["image"], data["image"])
        assert got["image"].dtype == np.uint8
        assert got["image"].flags.writeable
        assert got["image"].flags.c_contiguous
        assert got["nested"]["flag"] == np.True_
        assert isinstance(got["nested"]["pair"], tuple)
        assert got["nested"]["pair"][0].dtype == np.float32
        assert got["nested"]["pair"] == data["nested"]["pair"]  # type: ignore[index]
        np.testing.assert_array_equal(got["point"].x, np.arange(3.0))
        assert got["point"].y == np.complex64(1 + 2j)
        assert (got["text"], got["raw"], got["number"], got["nothing"]) == ("déjà vu", b"\x00\xff", 7, None)
        assert sample.info.key == keys["t"]
        assert sample.info.priority == 2.5
        assert sample.info.times_sampled == 1
        assert sample.info.table_size == 1
        assert sample.info.probability == 1.0

    async def test_a_batch_inserted_at_once_is_a_row_each(self) -> None:
        """Rows of a batch become items in order, with distinct keys per table and row."""
        queue, other = Table.queue("q", 100), Table("u", max_size=100)
        async with self.serving([queue, other]) as (_, client):
            keys = await client.insert_batch(
                {"x": np.arange(50), "y": np.arange(100.0).reshape(50, 2)}, {"q": None, "u": np.arange(50) + 1.0}
            )
            batch = await client.sample_batch("q", 50)
        assert len(np.unique(np.concatenate([keys["q"], keys["u"]]))) == 100
        np.testing.assert_array_equal(batch.info.key, keys["q"])
        np.testing.assert_array_equal(batch.data["x"], np.arange(50))
        np.testing.assert_array_equal(batch.data["y"][:, 1], np.arange(50) * 2 + 1.0)

    async def test_ragged_rows_come_back_as_asked(self) -> None:
        """Rows of unequal length: refused, padded with lengths, flat, or as a list."""
        rows = [np.arange(n, dtype=np.int32) for n in (3, 1, 5)]
        table = Table("t", max_size=10, sampler=selectors.Fifo(), max_times_sampled=4)
        async with self.serving([table]) as (_, client):
            await client.insert_batch({"tokens": Ragged.from_list(rows)}, {"t": 1.0})
            with pytest.raises(InvalidArgument) as caught:
                await client.sample_batch("t", 12, ragged="error")
            assert "tokens" in str(caught.value)
            assert "pad" in str(caught.value)
        async with self.serving([Table.queue("t", 30)]) as (_, client):
            for _ in range(3):
                await client.insert_batch({"tokens": Ragged.from_list(rows)}, {"t": 1.0})
            padded = await client.sample_batch("t", 3, ragged="pad", pad_value=-1)
            flat = await client.sample_batch("t", 3, ragged="flat")
            listed = await client.sample_batch("t", 3, ragged="list")
        assert padded.data["tokens"].tolist() == [[0, 1, 2, -1, -1], [0, -1, -1, -1, -1], [0, 1, 2, 3, 4]]
        assert padded.lengths["tokens"].tolist() == [3, 1, 5]
        assert flat.data["tokens"].values.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
        assert flat.data["tokens"].offsets.tolist() == [0, 3, 4, 9]
        assert [row.tolist() for row in listed.data["tokens"]] == [row.tolist() for row in rows]

    async def test_large_items_travel_in_parts(self) -> None:
        """An item longer than a message goes both ways."""
        frame = np.random.default_rng(0).integers(0, 255, (12, 1024, 1024), np.uint8)
        async with self.serving([Table("t", max_size=3)]) as (_, client):
            await client.insert({"frame": frame}, {"t": 1.0})
            sample = await client.sample_one("t")
        np.testing.assert_array_equal(sample.data["frame"], frame)

    async def test_a_signature_is_enforced(self) -> None:
        """Wrong names, dtypes and shapes are refused, and the table stays usable."""
        signature = {"obs": ArraySpec((4,), np.float32), "action": ArraySpec((), np.int32)}
        async with self.serving([Table("t", max_size=10, signature=signature)]) as (_, client):
            wrong: list[dict[str, Any]] = [
                {"obs": np.zeros(4), "action": np.int32(0)},
                {"obs": np.zeros(5, np.float32), "action": np.int32(0)},
                {"observation": np.zeros(4, np.float32), "action": np.int32(0)},
            ]
            for data in wrong:
                with pytest.raises(SignatureMismatch) as caught:
                    await client.insert(data, {"t": 1.0})
                assert "obs" in str(caught.value)
            await client.insert({"obs": np.zeros(4, np.float32), "action": 3}, {"t": 1.0})
            sample = await client.sample_one("t")
        assert sample.data["action"].dtype == np.int32

    # -- writing ------------------------------------------------------------------------------------------------------

    async def test_a_trajectory_writer_shows_slices_of_its_history(self) -> None:
        """Slices keep their time axis, an index drops it, an array-like leaf is stored with the item."""
        async with self.serving([Table.queue("q", 100)]) as (server, client):
            async with client.trajectory_writer(num_keep_alive_refs=4) as writer:
                for step in range(10):
                    writer.append({"obs": np.full(2, step, np.float32), "action": np.int64(step)})
                    if writer.episode_steps >= 4:
                        history = writer.history
                        await writer.create_item(
                            "q",
                            1.0,
                            trajectory={
                                "stack": history["obs"][-4:],
                                "next": history["obs"][-3:],
                                "action": history["action"][-1],
                                "return": np.float32(step / 2),
                            },
                        )
                await writer.end_episode()
            batch = await client.sample_batch("q", 7)
            info = (await client.server_info())["q"]
        assert batch.data["stack"].shape == (7, 4, 2)
        np.testing.assert_array_equal(batch.data["stack"][:, :, 0], np.arange(7)[:, None] + np.arange(4))
        np.testing.assert_array_equal(batch.data["next"][:, :, 0], np.arange(7)[:, None] + np.arange(1, 4))
        np.testing.assert_array_equal(batch.data["action"], np.arange(3, 10))
        np.testing.assert_array_equal(batch.data["return"], np.arange(3, 10, dtype=np.float32) / 2)
        assert info.rate_limiter_info.insert_stats.completed == 7
        assert server.tables["q"].info.current_size == 0

    async def test_one_step_may_be_shown_in_several_tables(self) -> None:
        """The same data in two tables, each with its own items."""
        tables = [Table("short", max_size=100), Table("long", max_size=100)]
        async with self.serving(tables) as (_, client):
            async with client.trajectory_writer(num_keep_alive_refs=3) as writer:
                for step in range(9):
                    writer.append({"x": np.int32(step)})
                    await writer.create_item("short", trajectory={"x": writer.history["x"][-1]})
                    if step % 3 == 2:
                        await writer.create_item("long", trajectory={"x": writer.history["x"][-3:]})
            info = await client.server_info()
        assert info["short"].current_size == 9
        assert info["long"].current_size == 3
        assert info["short"].num_episodes == info["long"].num_episodes == 1

    async def test_a_full_queue_holds_up_its_writer_and_nobody_else(self) -> None:
        """Back-pressure reaches the writer; another table takes items meanwhile."""
        async with self.serving([Table.queue("q", 2), Table("u", max_size=10)]) as (_, client):
            await client.insert_batch({"x": np.arange(2)}, {"q": 1.0})
            waiting = asyncio.create_task(client.insert({"x": 2}, {"q": 1.0}))
            await client.insert({"x": 9}, {"u": 1.0})
            assert not waiting.done()
            assert (await client.sample_one("q")).data["x"] == 0
            await waiting
            assert [(await client.sample_one("q")).data["x"] for _ in range(2)] == [1, 2]

    async def test_an_insert_that_times_out_names_what_got_in(self) -> None:
        """A batch keeps the rows that were admitted."""
        async with self.serving([Table.queue("q", 3)]) as (server, client):
            with pytest.raises(RateLimiterTimeout) as caught:
                await client.insert_batch({"x": np.arange(5)}, {"q": 1.0}, timeout=0.05)
            admitted = caught.value.keys["q"]
            batch = await client.sample_batch("q", 3)
            assert server.tables["q"].info.waiters == ()
        np.testing.assert_array_equal(batch.info.key, admitted)
        assert batch.data["x"].tolist() == [0, 1, 2]

    # -- sampling -----------------------------------------------------------------------------------------------------

    async def test_leaving_an_iterator_hands_back_what_was_not_delivered(self) -> None:
        """Prefetched items return to their place; those delivered are gone."""
        async with self.serving([Table.queue("q", 100)]) as (_, client):
            await client.insert_batch({"x": np.arange(40)}, {"q": 1.0})
            async with client.sample_batches("q", 5, prefetch=4) as batches:
                async for batch in batches:
                    assert batch.data["x"].tolist() == [0, 1, 2, 3, 4]
                    break
            rest = await client.sample_batch("q", 35)
        assert rest.data["x"].tolist() == list(range(5, 40))

    async def test_a_limited_iterator_is_charged_exactly(self) -> None:
        """`num_samples` bounds what the server counts."""
        async with self.serving([Table("u", max_size=100)]) as (_, client):
            await client.insert_batch({"x": np.arange(40)}, {"u": 1.0})
            samples = [sample.data["x"] async for sample in client.sample("u", num_samples=3, prefetch=10)]
            info = (await client.server_info())["u"]
        assert len(samples) == 3
        assert info.rate_limiter_info.sample_stats.completed == 3

    async def test_a_sample_that_times_out_says_what_is_missing(self) -> None:
        """Also with a timeout of 0, and the client stays usable."""
        table = Table("t", max_size=10, rate_limiter=rate_limiters.MinSize(3))
        async with self.serving([table]) as (_, client):
            await client.insert({"x": 1}, {"t": 1.0})
            for timeout in (0, 0.02):
                with pytest.raises(RateLimiterTimeout) as caught:
                    await client.sample_one("t", timeout=timeout)
                assert "needs 2 more inserts" in str(caught.value)
                assert "'t'" in str(caught.value)
            await client.insert_batch({"x": np.arange(2)}, {"t": 1.0})
            assert (await client.sample_batch("t", 4, timeout=5)).data["x"].shape == (4,)

    async def test_a_batch_larger_than_the_limiters_window_is_filled_bit_by_bit(self) -> None:
        """Asking for a batch never deadlocks with the writers that wait for its samples."""
        limiter = rate_limiters.SampleToInsertRatio(1.0, min_size_to_sample=1, error_buffer=2.0)
        async with self.serving([Table("t", max_size=100, rate_limiter=limiter)]) as (_, client):
            writing = asyncio.create_task(client.insert_batch({"x": np.arange(40)}, {"t": 1.0}))
            batch = await client.sample_batch("t", 32, timeout=10)
            assert len(batch.info.key) == 32
            writing.cancel()
            await asyncio.wait([writing])

    async def test_only_the_columns_asked_for_are_sent(self) -> None:
        """`columns` selects by name or path."""
        async with self.serving([Table("t", max_size=10)]) as (_, client):
            await client.insert({"a": 1, "b": {"c": 2, "d": 3}}, {"t": 1.0})
            sample = await client.sample_one("t", columns=["a", ("b", "d")])
        assert sample.data == {"a": 1, "b": {"d": 3}}

    async def test_priorities_follow_updates(self) -> None:
        """By batch, and by key; the last of duplicates wins; unknown keys are counted."""
        async with self.serving([Table("t", max_size=10, sampler=selectors.Prioritized(1.0))]) as (_, client):
            keys = (await client.insert_batch({"x": np.arange(3)}, {"t": np.ones(3)}))["t"]
            async with client.sample_batches("t", 8, prefetch=0) as batches:
                batch = await anext(batches)
                await batch.update_priorities(np.where(batch.data["x"] == 1, 5.0, 0.0))
                await anext(batches)
            updates = {int(keys[0]): 0.0, int(keys[1]): 3.0, 12345: 1.0}
            result = await client.mutate_priorities("t", updates, [keys[2], 99])
            assert (result.updated, result.deleted, result.unknown) == (2, 1, 2)
            sample = await client.sample_one("t")
        assert sample.data["x"] == 1
        assert sample.info.priority == 3.0
        assert sample.info.probability == 1.0

    async def test_a_reset_empties_the_table_and_its_counts(self) -> None:
        """Waiting inserts go on with the empty table."""
        async with self.serving([Table.queue("q", 2)]) as (_, client):
            await client.insert_batch({"x": np.arange(2)}, {"q": 1.0})
            waiting = asyncio.create_task(client.insert({"x": 2}, {"q": 1.0}))
            await asyncio.sleep(0.02)
            await client.reset("q")
            await waiting
            info = (await client.server_info())["q"]
        assert info.current_size == 1
        assert info.rate_limiter_info.insert_stats.completed == 1

    # -- mistakes and ends --------------------------------------------------------------------------------------------

    async def test_mistakes_are_named(self) -> None:
        """A wrong table, a bad priority, a closed client: each says so, and harms nobody."""
        async with self.serving([Table("replay", max_size=10, sampler=selectors.Prioritized(0.6))]) as (_, client):
            for call in (
                client.insert({"x": 1}, {"rePlay": 1.0}),
                client.sample_one("rePlay"),
                client.mutate_priorities("rePlay", {1: 1.0}),
                client.reset("rePlay"),
            ):
                with pytest.raises(TableNotFound, match="this server has: 'replay'"):
                    await call
            for priority in (-1.0, float("nan"), float("inf")):
                with pytest.raises(InvalidArgument, match="priorit"):
                    await client.insert({"x": 1}, {"replay": priority})
            await client.insert({"x": 1}, {"replay": 1.0})
            assert (await client.sample_one("replay")).data["x"] == 1
            await client.close()
            await client.close()
            with pytest.raises(Closed):
                await client.insert({"x": 1}, {"replay": 1.0})

    async def test_closing_the_server_ends_every_wait(self) -> None:
        """Waiting calls get `TableClosed`."""
        async with self.serving([Table.queue("q", 1), Table("u", max_size=1)]) as (server, client):
            await client.insert({"x": 1}, {"q": 1.0})
            calls = [
                asyncio.create_task(client.insert({"x": 2}, {"q": 1.0})),
                asyncio.create_task(client.sample_one("u")),
            ]
            await until(lambda: sum(len(table.info.waiters) for table in server.tables.values()) == 2)
            await server.close()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, TableClosed | Closed) for outcome in outcomes), outcomes

    async def test_cancelled_calls_leave_nothing_behind(self) -> None:
        """No waiter, no row and no permit stays."""
        async with self.serving([Table.queue("q", 1), Table("u", max_size=1)]) as (server, client):
            await client.insert({"x": 1}, {"q": 1.0})
            for _ in range(10):
                calls = [
                    asyncio.create_task(client.insert({"x": 2}, {"q": 1.0})),
                    asyncio.create_task(client.sample_one("u")),
                    asyncio.create_task(client.sample_batch("u", 2)),
                ]
                await asyncio.sleep(0.002)
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)
            await until(lambda: not any(table.info.waiters for table in server.tables.values()))
            assert server.tables["q"].info.current_size == 1
            assert (await client.sample_one("q", timeout=5)).data["x"] == 1
