"""Clients die at random moments of everything they do: within a second nothing of theirs is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from reliability_rig import Baseline, num_connections, num_streams, service_of, until_nothing_waits_or_is_held

import reverb_async as ra
from reverb_async.testing import until

GONE_WITHIN_S = 1.0

NURSERY = """
import asyncio, os, random, sys, traceback
import numpy as np
import reverb_async as ra

async def live(address, seed):
    rng = random.Random(seed)
    client = ra.Client(address, shared_memory=rng.choice(["auto", False]))

    async def insert():
        for number in range(10**9):
            await client.insert({"x": np.ones(300)}, {"t": 1.0})

    async def insert_batches():
        for number in range(10**9):
            await client.insert_batch({"y": np.zeros((rng.randrange(1, 200), 50))}, {rng.choice(["t2", "full"]): 1.0})

    async def write():
        while True:
            row = np.ones(rng.choice([10, 100_000]))
            async with client.trajectory_writer(8, max_in_flight_items=rng.randrange(1, 100)) as writer:
                for step in range(rng.randrange(1, 200)):
                    writer.append({"x": row})
                    if step > 3:
                        table = rng.choice(["t2", "t2", "q", "full"])
                        await writer.create_item(table, 1.0, trajectory={"x": writer.history["x"][-3:]})

    async def learn(table):
        size, prefetch = rng.randrange(1, 40), rng.randrange(0, 5)
        async for batch in client.sample_batches(table, size, prefetch=prefetch, ragged="list"):
            if rng.random() < 0.5:
                await batch.update_priorities(np.ones(len(batch.info.key)))
            await asyncio.sleep(rng.random() / 100)

    async def starve():
        await client.sample_batch("empty", 5)

    async def mutate():
        while True:
            await client.mutate_priorities("t", {rng.randrange(100): 1.0}, [rng.randrange(100)])

    works = [insert, insert_batches, write, write, starve, mutate]
    works += [lambda table=table: learn(table) for table in ("big", "t", "q", "full")]
    chosen = rng.sample(works, rng.randrange(3, len(works)))
    # A learner ends when it meets items of two structures in one batch; the others go on.
    await asyncio.gather(*(work() for work in chosen), return_exceptions=True)
    await asyncio.sleep(1000)

for line in sys.stdin:
    address, seed = line.split()
    pid = os.fork()
    if not pid:
        try:
            asyncio.run(live(address, int(seed)))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    print(pid, flush=True)
    while os.waitpid(pid, 0)[0] != pid:
        pass
    print("dead", flush=True)
"""


class Nursery:
    """Bears clients, one after the other, in no time: it has imported what they need."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def bear(self, address: str, seed: int) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{address} {seed}\n")
        self._process.stdin.flush()
        return int(self._said())

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        assert self._said() == "dead"

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


async def kill_clients(nursery: Nursery, seeds: range, live_s: float) -> None:
    tables = [
        ra.Table("t", max_size=2000, sampler=ra.selectors.Prioritized(1.0)),
        ra.Table("t2", max_size=300),
        ra.Table("big", max_size=100),
        ra.Table("empty", max_size=10),
        ra.Table.queue("full", 3),
        ra.Table.queue("q", 500),
    ]
    async with ra.Server(tables) as server, server.client() as local:
        await local.insert_batch({"x": np.zeros((100, 1 << 15), np.uint8)}, {"big": 1.0})
        baseline, leases = Baseline(server), service_of(server).leases
        sockets = num_sockets()
        for seed in seeds:
            pid = await asyncio.to_thread(nursery.bear, server.address, seed)
            with contextlib.suppress(TimeoutError):
                await until(lambda: num_streams(server) > 1, timeout=5)
            await asyncio.sleep(random.Random(seed).uniform(0.0, live_s))
            await asyncio.to_thread(nursery.kill, pid)
            await until(lambda: num_connections(server) == 0, timeout=5)  # the system tells
            detected = time.monotonic()
            await baseline.settle(timeout=GONE_WITHIN_S, tasks=False)
            await until_nothing_waits_or_is_held(server, timeout=GONE_WITHIN_S)
            assert not len(leases)
            assert all((table.num_writers, table.num_samplers) == (1, 0) for table in tables), "only the local one"
            assert time.monotonic() - detected < GONE_WITHIN_S + 0.5, seed
        await baseline.settle()
        gc.collect()
        assert num_sockets() <= sockets


def num_sockets() -> int:
    folder = "/proc/self/fd"
    count = 0
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        with contextlib.suppress(OSError):  # that of the listing itself
            count += os.readlink(f"{folder}/{name}").startswith("socket:")
    return count


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


async def test_clients_killed_at_random_moments_leave_nothing(nursery: Nursery) -> None:
    await kill_clients(nursery, range(4), live_s=0.3)


INTERRUPTED = """
import asyncio, sys
import numpy as np
import reverb_async as ra

async def main():
    async with ra.Client(sys.argv[1]) as client, client.trajectory_writer(2) as writer:
        await client.insert({"x": 1}, {"t": 1.0})
        await client.insert({"x": 1}, {"full": 1.0})

        async def write():
            while True:
                writer.append({"x": np.ones(1000)})
                await writer.create_item("full", 1.0, trajectory={"x": writer.history["x"][-1]})

        async def learn():
            async for batch in client.sample_batches("t", 4):
                print("ready", flush=True)

        await asyncio.gather(write(), learn(), client.sample_one("empty"), client.insert({"x": 1}, {"full": 1.0}))

asyncio.run(main())
"""


def start_interrupted(address: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", INTERRUPTED, address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def test_ctrl_c_ends_a_program_whose_every_call_waits() -> None:
    tables = [ra.Table("t", max_size=10), ra.Table("empty", max_size=10), ra.Table.queue("full", 1)]
    async with ra.Server(tables) as server:
        program = start_interrupted(server.address)
        assert program.stdout is not None
        assert await asyncio.to_thread(program.stdout.readline) == b"ready\n"
        reading = asyncio.create_task(asyncio.to_thread(program.stdout.read))
        await until(lambda: all(any(table.info.waiters) for table in tables[1:]))
        started = time.monotonic()
        program.send_signal(signal.SIGINT)
        await reading
        program.communicate()
        assert time.monotonic() - started < 1.5
        assert program.returncode == -signal.SIGINT
        await until_nothing_waits_or_is_held(server, timeout=GONE_WITHIN_S)


@pytest.mark.soak
async def test_200_clients_killed_at_random_moments_leave_nothing(nursery: Nursery) -> None:
    await kill_clients(nursery, range(100, 300), live_s=1.0)
