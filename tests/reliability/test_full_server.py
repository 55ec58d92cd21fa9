"""A server process whose memory is bounded: it stays within, samplers go on, and what is given up is given back."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

import reverb_async as ra
from reverb_async.testing import until
from reverb_async.wire.generated.deepmind.reverb import InsertStreamRequest
from tests.compat.deepmind_rig import DeepMindClient, chunk, column, item

CAP = 256 << 20
ROOM = 1.25 * CAP + (150 << 20)
"""What a server process may take in all."""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say how much memory is resident")


class Process:
    """A server in a process of its own."""

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "-m", "reverb_async.serve", "--port", "0", "--log-level", "error", *flags]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = re.search(r"127\.0\.0\.1:\d+", self._process.stdout.readline())
        assert found is not None
        self.address = found[0]

    @property
    def rss(self) -> int:
        """Resident bytes, shared ones included."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) << 10

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    process = Process(*request.param)
    yield process
    process.close()


@asynccontextmanager
async def deepmind(address: str) -> AsyncIterator[DeepMindClient]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield DeepMindClient(channel)


@dataclass
class Counts:
    """What came of the calls."""

    inserted: int = 0
    refused: int = 0
    sampled: dict[str, int] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)


def noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8)


async def again_and_again(step, counts: Counts) -> None:
    """Insert for ever, whatever is refused."""
    while True:
        try:
            await step()
            counts.inserted += 1
        except (ra.ResourceExhausted, grpc.aio.AioRpcError):
            counts.refused += 1
            await asyncio.sleep(0.05)
        await asyncio.sleep(0)


async def insert_rows(client: ra.Client, table: str, counts: Counts, seed: int) -> None:
    rng = np.random.default_rng(seed)
    await again_and_again(lambda: client.insert({"x": noise(rng, 2_000_000)}, {table: 1.0}), counts)


async def insert_batches(client: ra.Client, table: str, counts: Counts, seed: int) -> None:
    rng = np.random.default_rng(seed)
    await again_and_again(lambda: client.insert_batch({"x": noise(rng, 64, 40_000)}, {table: 1.0}), counts)


async def insert_trajectories(client: ra.Client, table: str, counts: Counts, seed: int) -> None:
    rng = np.random.default_rng(seed)

    async def episode() -> None:
        async with client.trajectory_writer(20) as writer:
            for step in range(40):
                writer.append({"frame": noise(rng, 84, 84, 3)})
                if step >= 19:
                    await writer.create_item(table, 1.0, trajectory={"frame": writer.history["frame"][-20:]})

    await again_and_again(episode, counts)


async def insert_chunks(address: str, table: str, counts: Counts, seed: int) -> None:
    """As dm-reverb's writers do: chunks that several items show."""
    rng = np.random.default_rng(seed)

    async def stream() -> None:
        async with deepmind(address) as client:
            inserting = client.inserting()
            for _ in range(20):
                keys = [int(key) for key in rng.integers(1, 1 << 60, 5)]
                chunks = [chunk(key, noise(rng, 10, 40_000)) for key in keys]
                shown = [item(key, table, column((key, 0, 10))) for key in keys]
                await inserting.send(InsertStreamRequest(chunks=chunks, items=shown))
                await inserting.keys(5)
            await inserting.end()

    async def checked() -> None:
        try:
            await stream()
        except AssertionError as ended:  # with the status that the rig found
            if "RESOURCE_EXHAUSTED" not in str(ended):
                raise
            raise ra.ResourceExhausted(str(ended)) from None

    await again_and_again(checked, counts)


async def sample(client: ra.Client, table: str, counts: Counts) -> None:
    """Sample for ever, and note how long it took at most."""
    counts.sampled[table] = 0
    while True:
        began = time.monotonic()
        await client.sample_batch(table, 4, timeout=20)
        counts.gaps.append(time.monotonic() - began)
        counts.sampled[table] += 1
        await asyncio.sleep(0.01)


async def fill(process: Process, seconds: float) -> tuple[Counts, int]:
    """Have eight writers insert random data, and three samplers sample, for some seconds after the server was full.

    Returns:
        What came of it, the samples only since the server was full; and the highest RSS.
    """
    counts, highest, was_full = Counts(), 0, False
    clients = [ra.Client(process.address) for _ in range(9)]
    writers = (insert_rows, insert_batches, insert_trajectories)
    tasks = [
        asyncio.create_task(writers[number % 3](clients[number], table, counts, number))
        for number, table in enumerate(("rows", "batches", "paths", "ring", "ring2", "ring3"))
    ]
    tasks += [asyncio.create_task(insert_chunks(process.address, table, counts, 9)) for table in ("chunks", "ring4")]
    await until(lambda: counts.inserted >= 8, 30)
    tasks += [
        asyncio.create_task(sample(clients[6 + number], table, counts))
        for number, table in enumerate(("rows", "paths", "ring"))
    ]
    until_then = time.monotonic() + 60
    while time.monotonic() < until_then:
        await asyncio.sleep(0.05)
        highest = max(highest, process.rss)
        for task in tasks:
            if task.done():
                task.result()
        if counts.refused and not was_full:
            until_then, was_full = time.monotonic() + seconds, True
            counts.gaps.clear()
            counts.sampled = dict.fromkeys(counts.sampled, 0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in clients:
        await client.close()
    return counts, highest


FLAGS = (
    *("--max-bytes", "256MiB", "--full-timeout", "1"),
    *(part for name in ("rows", "batches", "paths", "chunks") for part in ("--table", f"{name}:max_size=1e6")),
    *(part for name in ("ring", "ring2", "ring3", "ring4") for part in ("--table", f"{name}:max_size=20")),
)


async def check_bounds(process: Process, seconds: float) -> None:
    before = process.rss
    counts, highest = await fill(process, seconds)
    assert highest <= ROOM, f"{highest >> 20} MiB"
    assert counts.refused >= 4  # the server was full
    assert all(count >= seconds for count in counts.sampled.values()), counts
    async with ra.Client(process.address) as client:
        status = await client.server_status()
        assert 0.6 * CAP <= status.memory_used <= 1.1 * CAP
        await until_async(lambda: client.server_status(), lambda now: now.staged_rows == 0 and now.received_bytes == 0)
        for name in await client.server_info():
            await client.reset(name)
        await until_async(
            lambda: client.server_status(), lambda now: now.stored_bytes == now.staged_rows == 0 and not now.alarms
        )
    with contextlib.suppress(TimeoutError):
        await until(lambda: process.rss <= before + (40 << 20), 10)
    assert process.rss <= before + (40 << 20), f"{before >> 20} -> {process.rss >> 20} MiB"


async def until_async(ask, holds, timeout: float = 10.0) -> None:
    """Wait until the server says so."""
    deadline = time.monotonic() + timeout
    while not holds(status := await ask()):
        assert time.monotonic() < deadline, status
        await asyncio.sleep(0.05)


@linux_only
@pytest.mark.parametrize("process", [FLAGS], indirect=True)
async def test_memory_stays_within_bounds_while_samplers_go_on(process: Process) -> None:
    await check_bounds(process, 5.0)


@linux_only
@pytest.mark.soak
@pytest.mark.parametrize("process", [FLAGS], indirect=True)
async def test_memory_stays_within_bounds_for_long(process: Process) -> None:
    await check_bounds(process, 60.0)
