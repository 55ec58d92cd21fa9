"""Shared memory between real processes, which stall and are killed: nothing is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from reliability_rig import (
    Proxy,
    check_nothing_waits_or_is_held,
    service_of,
    until_nothing_waits_or_is_held,
    usage_of,
)

import reverb_async as ra
from reverb_async.client.sampling.batch_stream import BatchStream
from reverb_async.protocol.message import Message
from reverb_async.service.leases import MAX_AGE_S, PATIENCE_S
from reverb_async.testing import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process map another's memory")

ROW_BYTES = 32_768
BATCH = 16

LEARNER = """
import asyncio, sys
import reverb_async as ra

async def main():
    async with ra.Client(sys.argv[1]) as client:
        async with client.sample_batches("t", 16, prefetch=4) as batches:
            async for batch in batches:
                assert (batch.data["x"] == batch.data["n"][:, None]).all()
                if sys.argv[2] == "stop" and client.transport == "tcp + shared memory":
                    sys.argv[2] = "go on"
                    print("ready", flush=True)
                    sys.stdin.readline()
                if sys.argv[2] == "loop":
                    print("ready", flush=True)

asyncio.run(main())
"""


def rows(first: int, count: int) -> dict[str, np.ndarray]:
    numbers = np.arange(first, first + count)
    return {"n": numbers, "x": np.repeat(numbers[:, None], ROW_BYTES // 8, 1)}


@contextlib.asynccontextmanager
async def serving(table: ra.Table | None = None) -> AsyncIterator[ra.Server]:
    table = table or ra.Table("t", max_size=200)
    async with ra.Server([table]) as server:
        async with server.client() as client:
            await client.insert_batch(rows(0, 200), {"t": 1.0})
        yield server


@contextlib.contextmanager
def learning(server: ra.Server, how: str) -> Iterator[subprocess.Popen[str]]:
    """Run a learner in a process of its own."""
    command = [sys.executable, "-c", LEARNER, server.address, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


def left_behind() -> set[str]:
    """Return what a killed process could leave in this system."""
    # Semaphores are Python's: of tests that run beside this one.
    files = {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}
    return {*files, *Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


async def test_a_learner_that_is_killed_leaves_nothing():
    before = left_behind()
    async with serving() as server:
        for _ in range(3):
            with learning(server, "loop") as learner:
                assert await line_of(learner) == "ready\n"
                learner.send_signal(signal.SIGKILL)
                await until_nothing_waits_or_is_held(server)
        leases = service_of(server).leases
        assert leases.num_granted > 0
        assert (len(leases), leases.leased_bytes) == (0, 0)
    assert left_behind() == before


async def test_a_learner_that_stalls_cannot_hold_memory_for_long(monkeypatch):
    """It goes on as if nothing had been, although other items stand where its rows were."""
    async with serving() as server, server.client() as client:
        leases = service_of(server).leases
        with learning(server, "stop") as learner:
            assert await line_of(learner) == "ready\n"
            await until(lambda: len(leases) == 4)
            assert usage_of(server).pinned_rows > 0
            now = leases._clock()
            monkeypatch.setattr(leases, "_clock", lambda: now + MAX_AGE_S)
            await until(lambda: len(leases) == 0)  # The server looks once a second.
            assert (usage_of(server).pinned_rows, leases.num_revoked) == (0, 4)
            for first in range(200, 1000, 200):
                await client.insert_batch(rows(first, 200), {"t": 1.0})
            granted = leases.num_granted
            go_on(learner)
            await until(lambda: leases.num_granted > granted + 10)
            assert learner.poll() is None
        await until_nothing_waits_or_is_held(server)


async def test_memory_that_others_need_is_taken_from_a_learner_that_stalls(monkeypatch):
    async with serving() as server, ra.Client(server.address) as client:
        leases = service_of(server).leases
        batch_bytes = BATCH * (ROW_BYTES + 8)
        with learning(server, "stop") as learner:
            assert await line_of(learner) == "ready\n"
            await until(lambda: len(leases) == 4)
            monkeypatch.setattr(leases, "_max_bytes", 4 * batch_bytes)
            granted = leases.num_granted
            await client.sample_batch("t", BATCH)
            assert (leases.num_granted, leases.num_revoked) == (granted, 0), "patience first"
            now = leases._clock()
            monkeypatch.setattr(leases, "_clock", lambda: now + PATIENCE_S + 1)
            await client.sample_batch("t", BATCH)
            assert leases.num_granted == granted + 1
            assert leases.num_revoked > 0
            monkeypatch.undo()
            go_on(learner)
            await until(lambda: leases.num_granted > granted + 10)
            assert learner.poll() is None


@contextlib.contextmanager
def server_process(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "reverb_async.serve", "--port", str(port), "--table", "t:max_size=200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
            assert found is not None
            yield process, found.group()
        finally:
            process.kill()


def mappings() -> int:
    gc.collect()  # What earlier tests left behind must not go while this one counts.
    return Path("/proc/self/maps").read_text().count("/memfd:reverb_async")


async def test_a_server_that_is_killed_leaves_nothing_and_its_successor_is_used():
    """Batches that were delivered stay; the stores of the dead server are unmapped, so that their memory is free."""
    before, mapped = left_behind(), mappings()
    with server_process() as (server, address):
        async with ra.Client(address) as client:
            await client.insert_batch(rows(0, 200), {"t": 1.0})
            async with client.sample_batches("t", BATCH, prefetch=2) as batches:
                kept = [await anext(batches) for _ in range(5)]
                assert client.transport == "tcp + shared memory"
                assert mappings() == mapped + 2, "the control page, and the store"
                server.send_signal(signal.SIGKILL)
                server.wait()
                await until(lambda: mappings() <= mapped + 1)
                for batch in kept:
                    assert (batch.data["x"] == batch.data["n"][:, None]).all()
                with server_process(int(address.rpartition(":")[2])):
                    await client.insert_batch(rows(1000, 200), {"t": 1.0})
                    while int((batch := await anext(batches)).data["n"].min()) < 1000:
                        pass  # What had been copied before the server died.
                    assert (batch.data["x"] == batch.data["n"][:, None]).all()
                    assert client.transport == "tcp + shared memory"
                    assert mappings() == mapped + 2
    assert left_behind() == before
    assert mappings() <= mapped + 1


async def test_a_network_that_breaks_again_and_again_loses_no_lease():
    """Every item of a queue arrives, and at the end nothing is lent or pinned."""
    table = ra.Table.queue("t", 10_000)
    async with serving(table) as server, Proxy(server.address) as proxy:
        leases = service_of(server).leases
        async with server.client() as inserting, ra.Client(proxy.address) as client:
            await inserting.insert_batch(rows(200, 1800), {"t": 1.0})
            proxy.cut_every(0.02, 0.2, seed=1)
            seen: set[int] = set()
            async with client.sample_batches("t", BATCH, prefetch=3) as batches:
                while table.info.current_size or len(seen) < 2000 - 3 * BATCH:
                    batch = await anext(batches)
                    assert (batch.data["x"] == batch.data["n"][:, None]).all()
                    seen.update(batch.data["n"].tolist())
                    await asyncio.sleep(0.005)
                    if len(seen) > 2000 - 2 * BATCH:
                        break
            proxy.stop_cutting()
        assert proxy.num_cut > 0
        await until_nothing_waits_or_is_held(server)
        assert leases.num_granted > 0
        assert len(leases) == 0
        rest = {row for row in range(2000)} - seen
        assert len(rest) <= 3 * BATCH


async def test_rows_that_are_lent_stay_as_they_are_while_their_items_leave(monkeypatch):
    """Every copy waits until the table holds other items only: no row is torn or of another item."""
    async with serving() as server, server.client() as inserting:
        inserted, stop = 200, False
        absorb = BatchStream.absorb

        async def absorb_late(self, message: Message) -> None:
            arrived_at = inserted
            await until(lambda: inserted > arrived_at + 400)
            await absorb(self, message)

        monkeypatch.setattr(BatchStream, "absorb", absorb_late)

        async def insert() -> None:
            nonlocal inserted
            while not stop:
                await inserting.insert_batch(rows(inserted, 50), {"t": 1.0})
                inserted += 50

        async def learn() -> None:
            async with ra.Client(server.address) as client:
                async for batch in client.sample_batches("t", BATCH, prefetch=3, num_batches=20):
                    assert (batch.data["x"] == batch.data["n"][:, None]).all()
                    assert batch.data["n"].max() < inserted - 200

        writing = asyncio.create_task(insert())
        try:
            await asyncio.gather(learn(), learn())
        finally:
            stop = True
            await writing
        leases = service_of(server).leases
        assert (leases.num_granted, leases.num_revoked) == (40, 0)
        await until_nothing_waits_or_is_held(server)
        check_nothing_waits_or_is_held(server)
