"""Our client through DeepMind's protocol: the door of our own server stands in for dm-reverb's."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

import reverb_async as ra

STEP = {"obs": ra.ArraySpec((4,), np.float32), "reward": ra.ArraySpec((), np.float32)}
WINDOW = {"action": ra.ArraySpec((), np.int32), "obs": ra.ArraySpec((3, 4), np.float32)}


def tables() -> list[ra.Table]:
    return [
        ra.Table("plain", max_size=1000),
        ra.Table("step", max_size=1000, sampler=ra.selectors.Prioritized(1.0), signature=STEP),
        ra.Table("window", max_size=1000, sampler=ra.selectors.Fifo(), signature=WINDOW),
        ra.Table.queue("queue", 2),
    ]


@pytest.fixture
async def server() -> AsyncIterator[ra.Server]:
    async with ra.Server(tables()) as server:
        yield server


@pytest.fixture
async def client(server: ra.Server) -> AsyncIterator[ra.Client]:
    async with ra.Client(f"reverb://{server.address}") as client:
        yield client


def step(value: float) -> dict[str, object]:
    return {"obs": np.full(4, value, np.float32), "reward": np.float32(value)}


async def test_an_item_comes_back_as_it_went_in_where_the_signature_names_its_columns(client: ra.Client) -> None:
    assert client.transport.startswith("reverb")
    keys = await client.insert(step(3), {"step": 2.5})
    sample = await client.sample_one("step")
    assert set(sample.data) == {"obs", "reward"}
    assert sample.data["obs"].tolist() == [3, 3, 3, 3]
    assert sample.data["reward"] == np.float32(3)
    assert (sample.info.key, sample.info.priority, sample.info.times_sampled) == (keys["step"], 2.5, 1)
    assert (sample.info.probability, sample.info.table_size) == (1.0, 1)
    assert abs(sample.info.inserted_at - time.time()) < 60


@pytest.mark.parametrize(
    "value",
    [
        *[np.arange(6, dtype=kind).reshape(2, 3) for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2")],
        *[np.linspace(-2, 2, 5).astype(kind) for kind in ("f4", "f8", "c8", "c16")],
        np.array([True, False]),
        np.zeros((0, 3), np.float32),
        np.float64(2.5),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}",
)
async def test_every_dtype_survives_with_the_time_axis_that_dm_reverb_adds(
    client: ra.Client, value: np.ndarray
) -> None:
    await client.insert({"x": value}, {"plain": 1.0})
    (column,) = (await client.sample_one("plain")).data
    assert column.dtype == value.dtype
    assert column.shape == (1, *value.shape)
    assert column[0].tobytes() == np.asarray(value).tobytes()


async def test_text_comes_back_as_bytes(client: ra.Client) -> None:
    await client.insert(["zwölf", b"\0\xff"], {"plain": 1.0})
    text, raw = (await client.sample_one("plain")).data
    assert [bytes(text[0]).decode(), bytes(raw[0])] == ["zwölf", b"\0\xff"]


async def test_batches_are_stacked_and_their_updates_come_before_the_next_draw(client: ra.Client) -> None:
    values = np.arange(8, dtype=np.float32)
    batch = {"obs": np.repeat(values[:, None], 4, axis=1), "reward": values}
    keys = await client.insert_batch(batch, {"step": 1.0})
    async with client.sample_batches("step", 64, prefetch=0) as batches:
        first = await anext(batches)
        assert first.data["obs"].shape == (64, 4)
        assert bool((first.data["obs"][:, 0] == first.data["reward"]).all())
        await first.update_priorities(np.where(first.info.key == keys["step"][5], 1.0, 0.0))
        rest = {int(key): 0.0 for key in keys["step"] if key not in set(first.info.key)}
        if rest:
            await client.mutate_priorities("step", rest)
        await client.mutate_priorities("step", {int(keys["step"][5]): 1.0})
        second = await anext(batches)
    assert set(second.info.key.tolist()) == {int(keys["step"][5])}


async def test_overlapping_trajectories_are_written_and_read(client: ra.Client, server: ra.Server) -> None:
    async with client.trajectory_writer(3) as writer:
        for number in range(6):
            writer.append({"obs": np.full(4, number, np.float32), "action": np.int32(number)})
            if writer.episode_steps >= 3:
                trajectory = {"obs": writer.history["obs"][-3:], "action": writer.history["action"][-1]}
                await writer.create_item("window", 1.0, trajectory=trajectory)
        await writer.end_episode()
    seen = set()
    async for sample in client.sample("window", num_samples=8):
        assert sample.data["obs"][:, 0].tolist() == [
            sample.data["action"] - 2,
            sample.data["action"] - 1,
            sample.data["action"],
        ]
        seen.add(int(sample.data["action"]))
    assert seen <= {2, 3, 4, 5}
    assert server.tables["window"].info.current_size == 4


async def test_a_row_goes_to_several_tables_under_a_key_each(client: ra.Client) -> None:
    keys = await client.insert(step(1), {"step": 1.0, "plain": 2.0})
    assert (await client.sample_one("plain")).info.key == keys["plain"]
    assert (await client.sample_one("step")).info.key == keys["step"]


async def test_without_a_priority_an_item_gets_the_highest_this_client_gave(client: ra.Client) -> None:
    await client.insert(step(1), {"step": None})
    assert (await client.sample_one("step")).info.priority == 1.0
    await client.insert(step(1), {"step": 7.0})
    keys = await client.insert(step(2), {"step": None})
    async for sample in client.sample("step", num_samples=1000):
        if sample.info.key == keys["step"]:
            assert sample.info.priority == 7.0
            return
    pytest.fail("an item of half the priority was not among a thousand samples")


async def test_a_full_queue_holds_an_insert_up_until_somebody_samples(client: ra.Client) -> None:
    for number in range(2):
        await client.insert({"x": number}, {"queue": 1.0})
    third = asyncio.create_task(client.insert({"x": 2}, {"queue": 1.0}))
    taken = [(await client.sample_one("queue")).data[0][0] for _ in range(3)]
    await third
    assert taken == [0, 1, 2]


async def test_a_sampler_times_out_and_goes_on(client: ra.Client) -> None:
    async with client.sample("queue", timeout=0.05, prefetch=0) as samples:
        with pytest.raises(ra.RateLimiterTimeout, match="queue"):
            await anext(samples)
        await client.insert({"x": 5}, {"queue": 1.0})
        samples_left = await anext(samples)
    assert samples_left.data[0].tolist() == [5]


async def test_what_a_dm_reverb_server_cannot_do_is_refused_by_name(client: ra.Client) -> None:
    with pytest.raises(ra.InvalidArgument, match="cannot take back an insert"):
        await client.insert({"x": 1}, {"plain": 1.0}, timeout=1)
    with pytest.raises(ra.TableNotFound, match="'nope'"):
        await client.insert({"x": 1}, {"nope": 1.0})
    with pytest.raises(ra.TableNotFound, match="'nope'"):
        await client.sample_one("nope")
    with pytest.raises(ra.InvalidArgument, match="no Checkpointer"):
        await client.checkpoint()
    assert (
        await client.sample_batch("plain", 1, timeout=5) if await client.insert(1, {"plain": 1.0}) else None
    ) is not None


async def test_one_bad_item_does_not_end_the_writer(client: ra.Client) -> None:
    with pytest.raises(ra.InvalidArgument):
        await client.insert(step(1), {"step": -1.0})
    await client.insert(step(1), {"step": 1.0})


async def test_reset_and_info(client: ra.Client) -> None:
    await client.insert(step(1), {"step": 1.0})
    info = (await client.server_info())["step"]
    assert (info.current_size, info.max_size) == (1, 1000)
    assert info.signature == STEP
    await client.reset("step")
    assert (await client.server_info())["step"].current_size == 0


async def test_every_item_enters_once_when_the_server_comes_back(client: ra.Client, server: ra.Server) -> None:
    await client.insert({"x": 1}, {"plain": 1.0})
    port = server.port
    await server.close()
    late = asyncio.create_task(client.insert({"x": 2}, {"plain": 1.0}))
    async with ra.Server(tables(), port=port) as again:
        await late
        assert again.tables["plain"].info.current_size == 1
        assert (await client.sample_one("plain")).data[0].tolist() == [2]


async def test_a_cancelled_insert_leaves_the_client_usable(client: ra.Client) -> None:
    for number in range(2):
        await client.insert({"x": number}, {"queue": 1.0})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.insert({"x": 2}, {"queue": 1.0})
    taken = [(await client.sample_one("queue")).data[0][0] for _ in range(2)]
    assert taken == [0, 1]


def test_such_a_client_is_an_address_that_travels() -> None:
    client = ra.Client("reverb://127.0.0.1:8000")
    assert client.transport == "reverb"
    assert pickle.loads(pickle.dumps(client)) == client


@pytest.mark.parametrize("address", ["reverb://", "reverb://host", "reverb://unix:///replay.sock", "reverb://h:0"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ra.InvalidArgument, match="no address"):
        ra.Client(address)
