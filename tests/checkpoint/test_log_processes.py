"""Real server processes with a log, killed at random moments."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from server_rig import NAME, serving, values
from test_checkpoint_processes import Program, check_data, running

import reverb_async as ra

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def insert_batches(client: ra.Client, acknowledged: list[int], start: int) -> None:
    at = start
    while True:
        numbers = np.arange(at, at + 100)
        keys = await client.insert_batch(values(numbers), {NAME: np.ones(100)})
        acknowledged += keys[NAME].tolist()
        at += 100


async def append_steps(client: ra.Client, acknowledged: list[int], start: int) -> None:
    keys: list[int] = []
    async with client.trajectory_writer(num_keep_alive_refs=4) as writer:
        for step in range(start, start + 10**9):
            writer.append({name: column[0] for name, column in values(np.array([step])).items()})
            trajectory = {name: column[-1] for name, column in writer.history.items()}
            keys.append(await writer.create_item(NAME, 1.0, trajectory=trajectory))
            if step % 50 == 49:
                await writer.flush()
                acknowledged += keys
                keys.clear()


async def kill(path: Path, seed: int, durability: str) -> None:
    """Kill a server while four clients write; each key that was acknowledged must be there once."""
    choose = random.Random(seed)
    acknowledged: list[int] = []
    async with running(path, "--durability", durability, "--checkpoint-every", "0.4") as (program, _):
        clients = [ra.Client(program.address) for _ in range(4)]
        writers = [
            asyncio.create_task((insert_batches if number % 2 else append_steps)(client, acknowledged, number * 10**7))
            for number, client in enumerate(clients)
        ]
        await asyncio.sleep(choose.uniform(0.5, 2.5))
        assert not any(writer.done() for writer in writers)
        assert program.stop(signal.SIGKILL)[0] == -signal.SIGKILL
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        for client in clients:
            await client.close()
    async with serving(path, ra.Table(NAME, max_size=10**6), on_corrupt="fail") as (client, checkpointer):
        assert checkpointer._saver is not None
        state = checkpointer._saver._replay.tables[NAME].state
        keys = state.slots.key[state.live_slots()].tolist()
        assert len(keys) == len(set(keys))
        assert acknowledged
        assert set(acknowledged) <= set(keys)
        await check_data(client)


@pytest.mark.parametrize("durability", ["wal", "wal_fsync"])
async def test_a_killed_server_has_every_acknowledged_item_once(tmp_path, durability):
    await kill(tmp_path, 1, durability)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10, 30))
async def test_a_server_killed_at_any_moment_has_every_acknowledged_item_once(tmp_path, seed):
    await kill(tmp_path, seed, ["wal", "wal_fsync"][seed % 2])


async def test_a_writer_outlives_a_killed_server_and_every_item_is_there_once(tmp_path):
    port = str(free_port())
    args = ("--durability", "wal", "--port", port)
    count = 1500
    program = Program(tmp_path, *args)
    try:
        async with ra.Client(program.address) as client, client.trajectory_writer(num_keep_alive_refs=1) as writer:
            for step in range(count):
                writer.append({name: column[0] for name, column in values(np.array([step])).items()})
                await writer.create_item(NAME, 1.0, trajectory={n: h[-1] for n, h in writer.history.items()})
                if step in (500, 1000):
                    assert program.stop(signal.SIGKILL)[0] == -signal.SIGKILL
                    program = await asyncio.to_thread(Program, tmp_path, *args)
            await writer.flush()
            program.stop(signal.SIGKILL)
    finally:
        program.process.kill()
        program.process.communicate()
    async with serving(tmp_path, ra.Table(NAME, max_size=10**6), on_corrupt="fail") as (client, checkpointer):
        assert checkpointer._saver is not None
        assert checkpointer._saver._replay.tables[NAME].state.size == count
        seen: set[int] = set()
        while len(seen) < count:
            seen |= set((await client.sample_batch(NAME, 1500)).data["action"].tolist())
        assert seen == set(range(count))
