"""A genuine client at one end and a client of ours at the other, on the same tables."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from drivers.payloads import STRINGS, arrays, same
from peer_rig import GenuineServers, OurServer, Peer

import reverb_async as ra

pytestmark = pytest.mark.peer

Pair = collections.namedtuple("Pair", ["second", "first"])
Theirs = Callable[..., Awaitable[Any]]


class Both(NamedTuple):
    """A client of ours, and the way to have genuine ones do something."""

    ours: ra.Client
    theirs: Theirs
    address: str


Doors = Callable[[str], AbstractAsyncContextManager[Both]]
"""Serves the tables that a function of `drivers/doors.py` needs."""


@pytest.fixture(params=["our server", "genuine server"])
def doors(request: pytest.FixtureRequest) -> Doors:
    """Both clients at our server, or both at dm-reverb's."""
    if request.param == "our server":
        return partial(at_our_server, request.getfixturevalue("peer"))
    return partial(at_their_server, request.getfixturevalue("genuine"))


@asynccontextmanager
async def at_our_server(peer: Peer, name: str) -> AsyncIterator[Both]:
    with OurServer(peer.call("scenario", "config_of", module="doors", name=name)) as server:

        async def theirs(name: str, /, **arguments: Any) -> Any:
            return await asyncio.to_thread(peer.call, "doors", name, address=server.address, **arguments)

        async with ra.Client(server.address) as ours:
            yield Both(ours, theirs, server.address)


@asynccontextmanager
async def at_their_server(genuine: GenuineServers, name: str) -> AsyncIterator[Both]:
    client = genuine.client
    address = genuine.serve(client.call("scenario", "config_of", module="doors", name=name))

    async def theirs(name: str, /, **arguments: Any) -> Any:
        return await asyncio.to_thread(client.call, "doors", name, address=address, **arguments)

    with genuine.reachable(address) as relay:
        async with ra.Client(f"reverb://{relay.address}") as ours:
            yield Both(ours, theirs, address)


# -- they write, we read -----------------------------------------------------------------------------------------------


async def test_our_client_reads_their_trajectories_nested_by_the_signature_or_as_a_list(doors: Doors) -> None:
    data = arrays((6, 3))
    async with doors("write_series") as both:
        await both.theirs("write_series")
        signed = (await both.ours.sample_one("signed")).data
        bare = (await both.ours.sample_one("bare")).data
    assert set(signed) == set(data)
    assert isinstance(bare, list)
    for (name, array), column in zip(sorted(data.items()), bare, strict=True):
        same(signed[name], array, name)
        same(column, array, name)


async def test_our_client_reads_their_inserts(doors: Doors) -> None:
    data = arrays((3,))
    async with doors("insert_steps") as both:
        await both.theirs("insert_steps")
        signed = await both.ours.sample_one("signed")
        bare = await both.ours.sample_one("bare")
    assert bare.info.priority == 2.0
    for (name, array), column in zip(sorted(data.items()), bare.data, strict=True):
        same(signed.data[name], array, name)
        same(column, array[None], name)


async def test_our_client_reads_batches_of_their_windows(doors: Doors) -> None:
    async with doors("write_windows") as both:
        await both.theirs("write_windows", count=40, length=5)
        batch = await both.ours.sample_batch("signed", 40)
        assert (await both.ours.server_info())["signed"].current_size == 0
    starts = np.arange(40)
    np.testing.assert_array_equal(batch.data["window"][:, :, 0], starts[:, None] + np.arange(5))
    np.testing.assert_array_equal(batch.data["window"][:, :, 1], -starts[:, None] - np.arange(5))
    np.testing.assert_array_equal(batch.data["newest"], starts + 4)
    np.testing.assert_array_equal(batch.info.priority, starts + 4.0)


async def test_our_client_reads_their_items_of_unequal_length(doors: Doors) -> None:
    async with doors("write_growing_items") as both:
        await both.theirs("write_growing_items", count=7)
        batch = await both.ours.sample_batch("bare", 7, ragged="list")
    for length, (frames, numbers) in enumerate(zip(*batch.data, strict=True), 1):
        expected = np.arange(4, dtype=np.uint16) * np.arange(length, dtype=np.uint16)[:, None]
        same(frames, expected)
        same(numbers, np.arange(length, dtype=np.float32))


async def test_our_client_reads_their_strings(doors: Doors) -> None:
    encoded = [text if isinstance(text, bytes) else text.encode() for text in STRINGS]
    async with doors("write_strings") as both:
        await both.theirs("write_strings")
        (bare,) = (await both.ours.sample_one("bare")).data
        signed = (await both.ours.sample_one("signed")).data["text"]
    assert list(bare) == encoded
    assert list(signed) == encoded


# -- we write, they read -----------------------------------------------------------------------------------------------


async def test_their_clients_read_our_inserts(doors: Doors) -> None:
    async with doors("read_steps") as both:
        await both.ours.insert(arrays((3,)), {"signed": 1.0, "bare": 2.0})
        await both.theirs("read_steps")


async def test_their_clients_read_our_trajectories(doors: Doors) -> None:
    data = arrays((6, 3))
    async with doors("read_series") as both:
        async with both.ours.trajectory_writer(num_keep_alive_refs=6) as writer:
            for at in range(6):
                writer.append({name: array[at] for name, array in data.items()})
            for name in ("signed", "bare"):
                shown = {name: column[:] for name, column in writer.history.items()}
                await writer.create_item(name, 1.0, trajectory=shown)
        await both.theirs("read_series")


async def test_their_datasets_read_our_overlapping_windows(doors: Doors) -> None:
    async with doors("read_windows") as both:
        async with both.ours.trajectory_writer(num_keep_alive_refs=5) as writer:
            for number in range(44):
                writer.append({"pair": np.float32([number, -number]), "number": np.int64(number)})
                if number >= 4:
                    shown = {"window": writer.history["pair"][-5:], "newest": writer.history["number"][-1]}
                    await writer.create_item("signed", float(number), trajectory=shown)
        await both.theirs("read_windows", count=40, length=5)


async def test_their_clients_read_our_batches_item_by_item(doors: Doors) -> None:
    async with doors("read_numbers") as both:
        await both.ours.insert_batch({"x": np.arange(150)}, {"q": 1.0})
        assert await both.theirs("read_numbers", count=150) == list(range(150))


async def test_their_clients_read_our_ragged_batches(doors: Doors) -> None:
    rows = [np.arange(length, dtype=np.float32) for length in (3, 0, 5)]
    async with doors("read_columns") as both:
        await both.ours.insert_batch({"x": ra.Ragged.from_list(rows), "y": np.arange(3)}, {"bare": 1.0})
        for number, row in enumerate(rows):
            assert await both.theirs("read_columns", name="bare") == [[row.tolist()], [number]]


async def test_their_clients_read_our_nests_in_the_order_of_theirs(doors: Doors) -> None:
    async with doors("read_nested") as both:
        async with both.ours.trajectory_writer(num_keep_alive_refs=2) as writer:
            for z, second, first in ((1, 3, 0), (2, 4, 5)):
                numbers = {"z": np.int32(z), "second": np.int32(second), "first": np.int32(first)}
                writer.append(numbers)
            history = writer.history
            pair = Pair(history["second"][:], history["first"][-1])
            for name in ("signed", "bare"):
                nest = collections.OrderedDict(z=history["z"][:], a=pair)
                await writer.create_item(name, 1.0, trajectory=nest)
        await both.theirs("read_nested")


async def test_nothing_in_our_nests_is_no_column(doors: Doors) -> None:
    async with doors("read_columns") as both:
        nest = collections.OrderedDict(z=np.int32(1), none=None, a=[np.int32(2), None])
        await both.ours.insert(nest, {"bare": 1.0})
        assert await both.theirs("read_columns", name="bare") == [[2], [1]]


async def test_their_clients_read_our_strings(doors: Doors) -> None:
    async with doors("read_strings") as both:
        async with both.ours.trajectory_writer(num_keep_alive_refs=len(STRINGS)) as writer:
            for text in STRINGS:
                writer.append({"text": text if isinstance(text, bytes) else text.encode()})
            await writer.create_item("bare", 1.0, trajectory={"text": writer.history["text"][:]})
        await both.theirs("read_strings")


# -- both at once ------------------------------------------------------------------------------------------------------


async def test_priorities_are_everybodys(doors: Doors) -> None:
    async with doors("write_numbers") as both:
        await both.theirs("write_numbers", name="t", numbers=[1, 2])
        await both.ours.insert(np.int64(3), {"t": 3.0})
        number, key = await both.theirs("sample_key", name="t")
        assert number == 3
        await both.theirs("mutate", name="t", updates={str(key): 0.5}, deletes=[])
        theirs = await both.ours.sample_one("t")
        assert theirs.info.priority == 2.0
        assert theirs.data[0].tolist() == [2]
        await both.ours.mutate_priorities("t", deletes=[theirs.info.key])
        assert (await both.theirs("sample_key", name="t"))[0] == 1
        await both.theirs("mutate", name="t", updates={}, deletes=[key])
        assert (await both.ours.server_info())["t"].current_size == 1


async def test_their_writers_wait_for_our_samplers(doors: Doors) -> None:
    async with doors("write_numbers") as both:
        writing = asyncio.create_task(both.theirs("write_numbers", name="q", numbers=list(range(20))))
        found = [(await both.ours.sample_one("q", timeout=20)).data[0].item() for _ in range(20)]
        await writing
    assert found == list(range(20))


async def test_our_writers_wait_for_their_samplers(doors: Doors) -> None:
    async with doors("write_numbers") as both:
        reading = asyncio.create_task(both.theirs("read_numbers", count=20))
        for number in range(20):
            async with asyncio.timeout(20):
                await both.ours.insert(np.int64(number), {"q": 1.0})
        assert await reading == list(range(20))


async def test_two_processes_of_theirs_share_a_queue(peer: Peer, another_peer: Peer) -> None:
    async with at_our_server(peer, "write_numbers") as both:
        numbers = list(range(40))
        name, where = "write_numbers", both.address
        writing = asyncio.to_thread(another_peer.call, "doors", name, address=where, name="q", numbers=numbers)
        reading = both.theirs("read_numbers", count=40)
        assert (await asyncio.gather(writing, reading))[1] == numbers
