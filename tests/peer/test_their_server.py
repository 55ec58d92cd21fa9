"""``ra.Client("reverb://...")`` at a genuine dm-reverb server: the table in docs/migration.md, row by row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from drivers.payloads import STRINGS, arrays, same
from peer_rig import GenuineServers, Relay

import reverb_async as ra
from reverb_async.testing import settle

pytestmark = pytest.mark.peer


class Theirs:
    """A genuine server, genuine clients there, and the way in for ours."""

    def __init__(self, genuine: GenuineServers) -> None:
        self.servers = genuine
        self._config = genuine.client.call("scenario", "config_of", module="their_server", name="size")
        self.address = genuine.serve(self._config)
        self.relay: Relay = genuine.reachable(self.address)

    def restart(self) -> None:
        self.address = self.servers.serve(self._config)
        self.relay.point_at(self.address)

    async def __call__(self, name: str, /, **arguments: Any) -> Any:
        call = self.servers.client.call
        return await asyncio.to_thread(call, "their_server", name, address=self.address, **arguments)


@pytest.fixture
async def theirs(genuine: GenuineServers) -> AsyncIterator[Theirs]:
    theirs = Theirs(genuine)
    with theirs.relay:
        yield theirs


@pytest.fixture
async def client(theirs: Theirs) -> AsyncIterator[ra.Client]:
    async with ra.Client(f"reverb://{theirs.relay.address}") as client:
        yield client


async def size(client: ra.Client, table: str) -> int:
    return (await client.server_info())[table].current_size


async def size_becomes(client: ra.Client, table: str, wanted: int) -> None:
    async with asyncio.timeout(20):
        while await size(client, table) != wanted:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)


# -- data --------------------------------------------------------------------------------------------------------------


async def test_every_dtype_comes_back_bit_by_bit(client: ra.Client) -> None:
    data: dict[str, Any] = {
        **arrays((2, 3)),
        **{f"{name} scalar": array[()] for name, array in arrays(()).items()},
        "none": np.zeros((0, 3), np.float32),
    }
    for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn):
        data[kind.__name__] = np.arange(6, dtype=np.uint8).astype(kind).reshape(2, 3)
    await client.insert(data, {"bare": 1.0})
    found = (await client.sample_one("bare")).data
    for (name, sent), column in zip(sorted(data.items()), found, strict=True):
        same(column, np.asarray(sent)[None], name)


async def test_bfloat16_passes_between_their_clients_and_ours(client: ra.Client, theirs: Theirs) -> None:
    bits = [0x3F80, 0xFF80, 0x8001]
    await theirs("insert_halves", bits=bits)
    sample = await client.sample_one("halves")
    assert sample.data["x"].dtype == ml_dtypes.bfloat16
    assert sample.data["x"].view(np.uint16).tolist() == [bits]
    await client.reset("halves")
    async with client.trajectory_writer(2) as writer:
        for row in (sample.data["x"][0], sample.data["x"][0][::-1]):
            writer.append({"x": row})
        await writer.create_item("halves", 1.0, trajectory={"x": writer.history["x"][:]})
    assert await theirs("read_halves") == bits + bits[::-1]


async def test_text_comes_back_as_bytes_and_a_signature_wants_it_so(client: ra.Client) -> None:
    encoded = [text if isinstance(text, bytes) else text.encode() for text in STRINGS]
    for text in encoded:
        await client.insert({"x": np.float32([1, 2]), "text": text}, {"signed": 1.0})
        assert (await client.sample_one("signed")).data["text"] == text
        await client.reset("signed")
    with pytest.raises(ra.SignatureMismatch, match="pass a Python bytes"):
        await client.insert({"x": np.float32([1, 2]), "text": "text"}, {"signed": 1.0})
    await client.insert(list(STRINGS), {"bare": 1.0})
    assert [column[0] for column in (await client.sample_one("bare")).data] == encoded


async def test_an_item_is_nested_by_the_signature_or_is_a_list_of_columns(client: ra.Client) -> None:
    row = {"x": np.float32([1, 2]), "text": b"a"}
    keys = await client.insert(row, {"signed": 2.0, "bare": 3.0})
    signed, bare = await client.sample_one("signed"), await client.sample_one("bare")
    assert (signed.info.key, bare.info.key) == (keys["signed"], keys["bare"])
    assert (signed.info.priority, bare.info.priority) == (2.0, 3.0)
    assert signed.data["x"].tolist() == [1, 2]
    assert signed.data["text"] == b"a"
    text, x = bare.data
    assert (list(text), x.tolist()) == ([b"a"], [[1, 2]])


async def test_slices_repeats_and_picked_steps_come_back(client: ra.Client) -> None:
    async with client.trajectory_writer(6) as writer:
        for number in range(6):
            writer.append({"x": np.int32(number)})
        x = writer.history["x"]
        picked = {"a": x[1:4], "b": x[::2], "c": x[-1]}
        await writer.create_item("bare", 1.0, trajectory=picked)
    found = (await client.sample_one("bare")).data
    assert [np.asarray(column).tolist() for column in found] == [[1, 2, 3], [0, 2, 4], 5]


async def test_batches_are_written_and_sampled(client: ra.Client, theirs: Theirs) -> None:
    keys = await client.insert_batch({"x": np.arange(100)}, {"once": 1.0})
    async with client.sample_batches("once", 25, num_batches=4) as batches:
        found = [batch async for batch in batches]
    assert np.concatenate([batch.data[0][:, 0] for batch in found]).tolist() == list(range(100))
    assert np.concatenate([batch.info.key for batch in found]).tolist() == keys["once"].tolist()
    assert all(np.abs(batch.info.inserted_at - time.time()).max() < 60 for batch in found)
    assert await theirs("size", name="once") == 0


# -- priorities --------------------------------------------------------------------------------------------------------


async def test_updates_of_a_batch_come_before_the_next_draw(client: ra.Client, theirs: Theirs) -> None:
    keys = (await client.insert_batch({"x": np.arange(8)}, {"prioritized": 1.0}))["prioritized"]
    async with client.sample_batches("prioritized", 200, prefetch=0) as batches:
        batch = await anext(batches)
        assert set(batch.info.key) == set(keys)  # Every one of 8 among 200: by chance once in 10**10 it is not.
        await batch.update_priorities(np.where(batch.info.key == keys[3], 1.0, 0.0))
        assert set((await anext(batches)).info.key) == {keys[3]}
    assert await theirs("keys_and_priorities", name="prioritized", count=2) == [[int(keys[3]), 1.0]] * 2


async def test_mutate_priorities_updates_and_deletes_and_counts_what_it_was_given(
    client: ra.Client, theirs: Theirs
) -> None:
    keys = (await client.insert_batch({"x": np.arange(4)}, {"best": np.arange(1.0, 5.0)}))["best"]
    result = await client.mutate_priorities("best", {int(keys[0]): 9.0, 12345: 1.0}, deletes=keys[1:3])
    assert result == ra.MutateResult(updated=2, deleted=2, unknown=0)
    assert await theirs("keys_and_priorities", name="best", count=1) == [[int(keys[0]), 9.0]]
    assert await theirs("size", name="best") == 2
    with pytest.raises(ra.TableNotFound, match="nope"):
        await client.mutate_priorities("nope", {1: 1.0})


async def test_no_priority_is_the_highest_that_this_client_gave(client: ra.Client, theirs: Theirs) -> None:
    await theirs("insert", name="best", number=0, priority=50.0)
    first = await client.insert(1, {"best": None})
    await client.mutate_priorities("best", deletes=[(await client.sample_one("best")).info.key])
    assert await theirs("keys_and_priorities", name="best", count=1) == [[first["best"], 1.0]]
    await client.insert(2, {"best": 7.0})
    await client.mutate_priorities("best", deletes=[(await client.sample_one("best")).info.key])
    again = await client.insert(3, {"best": None})
    assert await theirs("keys_and_priorities", name="best", count=1) == [[again["best"], 7.0]]


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_server_info_says_what_dm_reverb_tells_and_0_for_the_rest(client: ra.Client, theirs: Theirs) -> None:
    await theirs("insert", name="slow", number=1, priority=1.0)
    tables = await client.server_info()
    info = tables["slow"]
    assert (info.name, info.max_size, info.current_size) == ("slow", 1000, 1)
    assert info.rate_limiter_info.min_size_to_sample == 3
    assert info.rate_limiter_info.insert_stats.completed == 1
    assert (info.stored_bytes, info.stored_rows, info.waiters, info.num_deletes) == (0, 0, (), 0)
    assert (info.inserts_per_second, info.oldest_item_age) == (0, 0)
    assert set(tables["signed"].signature) == {"x", "text"}
    assert tables["bare"].signature is None


async def test_reset_empties_a_table(client: ra.Client, theirs: Theirs) -> None:
    await client.insert(1, {"bare": 1.0, "once": 1.0})
    await client.reset("bare")
    assert [await theirs("size", name=name) for name in ("bare", "once")] == [0, 1]
    with pytest.raises(ra.TableNotFound, match="nope"):
        await client.reset("nope")


async def test_a_checkpoint_is_written_by_the_server(client: ra.Client) -> None:
    await client.insert(1, {"bare": 1.0})
    path = Path(await client.checkpoint())
    assert (path / "DONE").exists()


async def test_an_insert_with_a_timeout_is_refused(client: ra.Client, theirs: Theirs) -> None:
    for timeout in (0, 1.0):
        with pytest.raises(ra.InvalidArgument, match="cannot take back an insert"):
            await client.insert(1, {"bare": 1.0}, timeout=timeout)
    with pytest.raises(ra.InvalidArgument, match="cannot take back an insert"):
        await client.insert_batch(np.arange(3), {"bare": 1.0}, timeout=1.0)
    assert await theirs("size", name="bare") == 0


async def test_bad_items_are_refused_and_the_next_ones_enter(client: ra.Client) -> None:
    with pytest.raises(ra.InvalidArgument, match="-1"):
        await client.insert(1, {"prioritized": -1.0})
    with pytest.raises(ra.TableNotFound, match="nope"):
        await client.insert(1, {"nope": 1.0})
    with pytest.raises(ra.SignatureMismatch, match="x"):
        await client.insert({"x": np.float64([1, 2]), "text": b""}, {"signed": 1.0})
    await client.insert(1, {"prioritized": 1.0})
    assert await size(client, "prioritized") == 1


async def test_a_sampler_that_times_out_goes_on(client: ra.Client, theirs: Theirs) -> None:
    with pytest.raises(ra.RateLimiterTimeout, match="'slow'"):
        await client.sample_one("slow", timeout=0.1)
    with pytest.raises(ra.RateLimiterTimeout):
        await client.sample_batch("slow", 2, timeout=0)
    async with client.sample("slow", timeout=0.1, prefetch=0) as samples:
        with pytest.raises(ra.RateLimiterTimeout):
            await anext(samples)
        for number in range(3):
            await theirs("insert", name="slow", number=number, priority=1.0)
        assert (await anext(samples)).data[0].tolist() == [0]


async def test_what_the_server_has_sent_is_sampled(client: ra.Client) -> None:
    await client.insert_batch(np.arange(20), {"once": 1.0})
    async with client.sample("once", prefetch=3) as samples:
        assert (await anext(samples)).data[0].tolist() == [0]
        await size_becomes(client, "once", 16)
    assert (await client.sample_one("once")).data[0].tolist() == [4]


async def test_a_full_queue_holds_our_writers_up(client: ra.Client, theirs: Theirs) -> None:
    await client.insert_batch(np.arange(2), {"queue": 1.0})
    third = asyncio.create_task(client.insert(2, {"queue": 1.0}))
    assert await theirs("columns", name="queue") == [[0]]
    await third
    assert [(await client.sample_one("queue")).data[0].tolist() for _ in range(2)] == [[1], [2]]


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_a_server_that_does_not_answer_is_given_up_in_time(client: ra.Client, theirs: Theirs) -> None:
    await client.server_info()
    with theirs.servers.frozen():
        for call in (client.server_info, lambda timeout: client.reset("bare", timeout=timeout)):
            with pytest.raises(ra.DeadlineExceeded):
                await call(timeout=0.1)
        with pytest.raises(ra.DeadlineExceeded):
            await client.mutate_priorities("bare", {1: 1.0}, timeout=0.1)
    assert await size(client, "bare") == 0


async def test_cancelling_any_call_leaves_nothing_behind(theirs: Theirs) -> None:
    before = asyncio.all_tasks()
    async with ra.Client(f"reverb://{theirs.relay.address}") as client:
        await client.insert_batch(np.arange(2), {"queue": 1.0})
        await client.sample_one("queue")
        await client.insert(2, {"queue": 1.0})
        idle = asyncio.all_tasks()
        for waiting in (client.sample_one("slow"), client.sample_batch("slow", 4)):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await waiting
        await settle()
        assert asyncio.all_tasks() <= idle
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.insert(3, {"queue": 1.0})
        assert [(await client.sample_one("queue")).data[0].tolist() for _ in range(2)] == [[1], [2]]
    assert asyncio.all_tasks() == before


async def test_a_server_that_is_gone_is_unavailable(theirs: Theirs) -> None:
    async with ra.Client(f"reverb://{theirs.relay.address}", connect_timeout=0.5) as client:
        await client.insert(1, {"bare": 1.0})
        waiting = asyncio.create_task(client.sample_one("slow"))
        await settle()
        await asyncio.to_thread(theirs.servers.stop)
        calls = [client.insert(2, {"bare": 1.0}), client.sample_one("bare"), client.server_info(), waiting]
        for found in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(found, ra.Unavailable), found
            assert theirs.relay.address in str(found)


async def test_calls_are_repeated_at_a_restarted_server(client: ra.Client, theirs: Theirs) -> None:
    await client.insert(1, {"bare": 1.0})
    sampling = asyncio.create_task(client.sample_one("queue"))
    await settle()
    await asyncio.to_thread(theirs.servers.stop)
    inserting = asyncio.create_task(client.insert(2, {"queue": 1.0}))
    await settle()
    await asyncio.to_thread(theirs.restart)
    async with asyncio.timeout(20):
        key = (await inserting)["queue"]
        assert (await sampling).info.key == key
    assert await size(client, "bare") == 0
