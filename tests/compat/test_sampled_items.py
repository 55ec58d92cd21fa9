from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

import reverb_async as ra
from reverb_async.compat.sampled_items import MESSAGE_BYTES, portions
from reverb_async.compat.service import DeepMindService
from reverb_async.core.draw import Draw
from reverb_async.wire.generated.deepmind.reverb import SampleStreamResponse
from tests.compat.deepmind_rig import held, row_item, served, until

SIZES = [100, 1 << 20, 1 << 20, 3 << 20, 100, 1 << 19, 6 << 20]


def response(message: bytes) -> list[int]:
    return [entry.info.item.key for entry in SampleStreamResponse.parse(message).entries]


def service_of(server: ra.Server) -> DeepMindService:
    assert server._deepmind is not None
    return server._deepmind._service


@asynccontextmanager
async def drawn() -> AsyncIterator[tuple[ra.Server, Draw]]:
    """Draw all items of a queue that holds rows of these sizes, every other one written natively."""
    rng = np.random.default_rng(0)
    table = ra.Table.queue("q", 10)
    async with served(table) as (server, client), ra.Client(server.address) as native:
        for key, size in enumerate(SIZES):
            value = rng.integers(0, 256, size, np.uint8)
            await (native.insert(value, {"q": 1.0}) if key % 2 else client.insert(row_item(key, "q", value)))
        yield server, await table.sample(len(SIZES))


async def test_messages_are_cut_by_size_and_keep_the_order() -> None:
    async with drawn() as (server, draw):
        cut = portions(service_of(server), server.tables["q"], draw)
        assert [portion.count for portion in cut] == [2, 1, 1, 2, 1]
        messages = [await portion.message() for portion in cut]
        assert [key for message in messages for key in response(message)] == draw.keys.tolist()
        assert max(map(len, messages[:3])) < MESSAGE_BYTES * 2
        server.tables["q"].acknowledge(draw)
        await until(lambda: held(server) == (0, 0))


async def test_rows_outlive_their_items_until_the_message_is_made() -> None:
    async with drawn() as (server, draw):
        cut = portions(service_of(server), server.tables["q"], draw)
        server.tables["q"].reset()
        await asyncio.sleep(0.05)
        assert [key for portion in cut for key in response(await portion.message())] == draw.keys.tolist()
        await until(lambda: server._replay.storage.usage().pinned_rows == 0 and held(server) == (0, 0))


async def test_closing_lets_go_of_the_rows() -> None:
    async with drawn() as (server, draw):
        cut = portions(service_of(server), server.tables["q"], draw)
        for portion in cut:
            portion.close()
            portion.close()
        server.tables["q"].reset()
        await until(lambda: held(server) == (0, 0) and not server._replay.storage.usage().live_rows)


async def test_a_cancelled_message_lets_go_when_its_thread_is_done() -> None:
    async with drawn() as (server, draw):
        cut = portions(service_of(server), server.tables["q"], draw)
        making = asyncio.create_task(cut[-1].message())
        await asyncio.sleep(0)
        making.cancel()
        for portion in cut[:-1]:
            portion.close()
        server.tables["q"].reset()
        await until(lambda: held(server) == (0, 0))
