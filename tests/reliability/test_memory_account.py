"""Whatever clients of both protocols do, the account is what there is; and nothing is left when all is gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc
import numpy as np
import pytest
from reliability_rig import num_connections, num_streams

import reverb_async as ra
from reverb_async.core.storage import RowStore
from reverb_async.core.table_items import ITEM_BYTES
from reverb_async.testing import until
from reverb_async.wire.generated.deepmind.reverb import InsertStreamRequest
from tests.compat.deepmind_rig import DeepMindClient, chunk, column, item, row_item

TABLES = ("t", "u", "q")


class World:
    """A server, and clients that do random things."""

    def __init__(self, server: ra.Server, channel: grpc.aio.Channel, seed: int) -> None:
        self.server = server
        self.deepmind = DeepMindClient(channel)
        self.random = random.Random(seed)
        self.noise = np.random.default_rng(seed)
        self.clients = [ra.Client(server.address), server.client(), ra.Client(server.address)]
        self.calls: list[asyncio.Task[object]] = []
        self.streams: list[grpc.aio.StreamStreamCall] = []

    @property
    def client(self) -> ra.Client:
        return self.random.choice(self.clients)

    @property
    def table(self) -> str:
        return self.random.choice(TABLES)

    def data(self, *shape: int) -> np.ndarray:
        return self.noise.integers(0, 256, shape, np.uint8)

    async def insert_row(self) -> None:
        size = self.random.choice((10, 3000, 200_000))
        await self.client.insert({"x": self.data(size)}, {self.table: 1.0}, timeout=self.random.choice((0.05, None)))

    async def insert_text(self) -> None:
        await self.client.insert({"text": "x" * self.random.randrange(5000)}, {"t": 1.0, "u": 2.0}, timeout=0.2)

    async def insert_batch(self) -> None:
        await self.client.insert_batch({"x": self.data(20, 5000)}, {self.table: None}, timeout=0.3)

    async def write_trajectory(self) -> None:
        async with self.client.trajectory_writer(5) as writer:
            for step in range(self.random.randrange(3, 30)):
                writer.append({"x": self.data(4000), "y": step})
                if step >= 4 and self.random.random() < 0.5:
                    shown = {"x": writer.history["x"][-5:], "y": writer.history["y"][-1]}
                    await writer.create_item(self.table, 1.0, trajectory=shown)
                if self.random.random() < 0.02:
                    raise ra.InvalidArgument("enough")

    async def insert_at_deepminds_door(self) -> None:
        stream = self.deepmind.inserting()
        self.streams.append(stream.call)
        for _ in range(self.random.randrange(1, 4)):
            key = self.random.randrange(1, 1 << 60)
            if self.random.random() < 0.3:
                await stream.send(InsertStreamRequest(chunks=[chunk(key, self.data(5, 20_000))]))
            elif self.random.random() < 0.3:
                await stream.send(row_item(key, self.table, self.data(3000)))
            else:
                shown = [item(key + at, self.table, column((key, at, 3))) for at in range(3)]
                await stream.send(InsertStreamRequest(chunks=[chunk(key, self.data(5, 20_000))], items=shown))
        match self.random.randrange(3):
            case 0:
                stream.call.cancel()
            case 1:
                await stream.call.done_writing()
            case _:
                await stream.send(b"\xff")

    async def sample(self) -> None:
        await self.client.sample_batch(self.random.choice(("t", "u")), 3, timeout=0.2, ragged="list")

    async def sample_at_deepminds_door(self) -> None:
        stream = self.deepmind.sampling()
        self.streams.append(stream.call)
        await stream.ask(self.table, 3, 100)
        await asyncio.sleep(0.05)
        stream.call.cancel()

    async def delete(self) -> None:
        table = self.server.tables[self.table].state
        keys = table.slots.key[table.live_slots()]
        await self.client.mutate_priorities(self.random.choice(TABLES), deletes=keys[::2])

    async def reset(self) -> None:
        await self.client.reset(self.table)

    async def replace_a_client(self) -> None:
        at = self.random.choice((0, 2))
        client, self.clients[at] = self.clients[at], ra.Client(self.server.address)
        await client.close()

    async def cancel(self) -> None:
        if self.calls:
            self.random.choice(self.calls).cancel()

    async def step(self) -> None:
        inserts = [self.insert_row, self.insert_text, self.insert_batch, self.write_trajectory]
        others = [self.sample, self.sample_at_deepminds_door, self.delete, self.cancel]
        steps = [*inserts, *inserts, self.insert_at_deepminds_door, *others]
        rare = [self.reset, self.replace_a_client]
        chosen = self.random.choice(rare if self.random.random() < 0.05 else steps)
        self.calls.append(asyncio.create_task(self.suffer(chosen())))
        self.calls = [call for call in self.calls if not call.done()]
        await asyncio.sleep(self.random.choice((0, 0, 0.01, 0.03)))

    async def suffer(self, call) -> None:
        with suppress(ra.ReplayError, grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            await call

    async def end(self) -> None:
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*self.calls, return_exceptions=True)
        for stream in self.streams:
            stream.cancel()
        for client in self.clients:
            await client.close()


def counted(server: ra.Server) -> int:
    """Count anew what there is."""
    storage = server._replay.storage
    pools = [pool for pool, _ in storage.blobs._pools.values()]
    stores: list[RowStore] = [*storage._groups.values(), *pools]
    rows = sum((store._extents.used_rows - store.reserved_rows) * store.width for store in stores)
    return rows + sum(table.state.slots.high_water for table in server.tables.values()) * ITEM_BYTES


@pytest.fixture
async def server() -> AsyncIterator[ra.Server]:
    tables = [ra.Table("t", max_size=30), ra.Table("u", max_size=1000), ra.Table.queue("q", 20)]
    async with ra.Server(tables, limits=ra.Limits(max_bytes=16 << 20, full_timeout=1.0)) as server:
        yield server


@pytest.mark.parametrize("seed", range(2))
async def test_the_account_is_what_there_is_and_returns_to_zero(server: ra.Server, seed: int) -> None:
    memory = server._replay.memory
    async with grpc.aio.insecure_channel(server.address) as channel:
        world = World(server, channel, seed)
        for _ in range(100):
            await world.step()
            assert memory.used <= 1.1 * (16 << 20)
        await world.end()
        await world.deepmind.info()  # The server has seen all that came before on this connection.
        await until(lambda: num_connections(server) <= 1 and not num_streams(server))
        await until(lambda: not len(server._deepmind._streams))
    await until(lambda: memory.used == counted(server))
    while server._deepmind._service._adopted:  # DeepMind's clients leave items behind that still wait
        server.tables["q"].reset()
        await asyncio.sleep(0.01)
    for table in server.tables.values():
        table.reset()
    await until(lambda: memory.used == 0)
    assert (memory._waiting_bytes, memory.num_writers) == (0, 0)
    assert (server._budget.held, server._budget.reserved, list(server._budget._waiting)) == (0, 0, [])
