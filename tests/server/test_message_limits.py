"""Servers with small limits: clients cut what is long, and are told what is too long."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.testing import until

MIB = 1 << 20


async def test_clients_cut_their_messages_as_the_server_wants() -> None:
    limits = ra.Limits(max_message_bytes=4 * MIB)
    async with ra.Server([ra.Table("t", max_size=100)], limits=limits) as server, ra.Client(server.address) as client:
        frames = np.random.default_rng(0).integers(0, 256, 20 * MIB, np.uint8)
        await client.insert({"x": frames}, {"t": 1.0})
        np.testing.assert_array_equal((await client.sample_one("t")).data["x"], frames)
        with pytest.raises(ra.ResourceExhausted, match=r"exceeds the limit of 67108864 \(16 times max_message_bytes\)"):
            await client.insert({"x": np.zeros(65 * MIB, np.uint8)}, {"t": 1.0})
        await until(lambda: server._budget.held == 0)


async def test_long_messages_of_many_clients_take_turns() -> None:
    limits = ra.Limits(max_bytes=64 * MIB)  # 2 MiB of which are for messages being received
    async with ra.Server([ra.Table("t", max_size=4)], limits=limits) as server:
        clients = [ra.Client(server.address) for _ in range(4)]
        highest = 0

        async def insert(client: ra.Client) -> None:
            for _ in range(3):
                await client.insert({"x": np.ones(3 * MIB, np.uint8)}, {"t": 1.0}, timeout=30)

        async def watch() -> None:
            nonlocal highest
            while True:
                highest = max(highest, server._budget.held)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(insert(client) for client in clients))
        watching.cancel()
        for client in clients:
            await client.close()
        assert 3 * MIB <= highest <= 4 * MIB
        await until(lambda: (server._budget.held, server._budget.reserved) == (0, 0))
