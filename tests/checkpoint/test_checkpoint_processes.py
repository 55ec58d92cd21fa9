"""Real server processes that are killed, told to stop, and run out of disk."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from server_rig import NAME, fill, make_table, serving, values

import reverb_async as ra

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

TABLE = f"{NAME}:max_size=1e6"


class Program:
    """A server program that keeps checkpoints."""

    def __init__(self, path: Path, *args: str) -> None:
        command = [sys.executable, "-m", "reverb_async.serve", "--port", "0", "--table", TABLE]
        self.process = subprocess.Popen(
            [*command, "--checkpoint-dir", str(path), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()

    @property
    def address(self) -> str:
        found = re.search(r"on (\S+?);", self.ready)
        assert found, self.ready + self.process.communicate()[1]
        return found[1]

    def stop(self, number: int) -> tuple[int, str]:
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log


@asynccontextmanager
async def running(path: Path, *args: str) -> AsyncIterator[tuple[Program, ra.Client]]:
    program = Program(path, *args)
    try:
        async with ra.Client(program.address) as client:
            yield program, client
    finally:
        program.process.kill()
        program.process.communicate()


async def size(client: ra.Client) -> int:
    return (await client.server_info())[NAME].current_size


async def check_data(client: ra.Client) -> None:
    batch = await client.sample_batch(NAME, 1000)
    for name, expected in values(batch.data["action"]).items():
        np.testing.assert_array_equal(batch.data[name], expected)


@asynccontextmanager
async def restored(path: Path, **options: str) -> AsyncIterator[ra.Client]:
    """Restore in this process, which takes less time."""
    async with serving(path, ra.Table(NAME, max_size=10**6), **options) as (client, _):
        yield client


async def kill_often(tmp_path: Path, seeds: range) -> None:
    """Kill servers at some moment of a save; they must have the checkpoint before or this one afterwards."""
    old, new = 30_000, 90_000
    async with restored(tmp_path / "c") as client:
        await fill(client, 0, old)
    for seed in seeds:
        path = tmp_path / f"c{seed}"
        shutil.copytree(tmp_path / "c", path)
        async with running(path) as (program, client):
            assert await size(client) == old
            await fill(client, old, new - old)
            call = asyncio.create_task(client.checkpoint())
            await asyncio.sleep(random.Random(seed).uniform(0, 0.25))
            assert program.stop(signal.SIGKILL)[0] == -signal.SIGKILL
            call.cancel()
            await asyncio.wait([call])
        async with restored(path, on_corrupt="fail") as client:
            assert await size(client) in (old, new)
            await check_data(client)
            assert not list(path.rglob("tmp-*"))
        shutil.rmtree(path)


async def test_a_server_killed_while_it_saves_has_the_old_checkpoint_or_the_new_one(tmp_path):
    await kill_often(tmp_path, range(1))


@pytest.mark.soak
async def test_a_server_killed_at_any_moment_of_a_save_has_the_old_checkpoint_or_the_new_one(tmp_path):
    await kill_often(tmp_path, range(100, 120))


async def test_a_server_that_is_told_to_stop_loses_nothing_that_was_confirmed(tmp_path):
    async with running(tmp_path) as (program, client):
        await fill(client, 0, 1234)
        async with client.trajectory_writer(num_keep_alive_refs=1) as writer:
            for step in range(66):
                writer.append({name: column[0] for name, column in values(np.array([step])).items()})
                await writer.create_item(NAME, 1.0, trajectory={n: h[-1] for n, h in writer.history.items()})
        status, log = program.stop(signal.SIGTERM)
        assert status == 0, log
        assert "checkpoint" in log
    async with restored(tmp_path) as client:
        assert await size(client) == 1300
        await check_data(client)


async def test_what_cannot_be_restored_ends_the_program_with_a_status_of_its_own(tmp_path):
    async with serving(tmp_path, ra.Table(NAME, max_size=5)) as (client, _):
        await fill(client, 0, 3)
    program = Program(tmp_path)
    _, log = program.process.communicate(timeout=60)
    assert program.process.returncode == 3
    assert "had max_size=5, the server's has max_size=1000000" in log


async def test_a_file_that_must_not_grow_any_more_is_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    async with serving(tmp_path, make_table()) as (client, _):
        await fill(client, 0, 10)
        path = await client.checkpoint()
        await fill(client, 10, 5000)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
        try:
            with pytest.raises(ra.ResourceExhausted, match=f"File too large.*{path} is as it was"):
                await client.checkpoint()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list(tmp_path.rglob("tmp-*"))
        assert (await client.sample_one(NAME)).data
        await client.checkpoint()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    yield path
    subprocess.run(["umount", path], check=True)


async def test_a_full_disk_is_told_and_the_server_goes_on(small_disk):
    async with running(small_disk, "--on-corrupt", "fail") as (program, client):
        await fill(client, 0, 1000)
        path = await client.checkpoint()
        free = shutil.disk_usage(small_disk).free
        await fill(client, 1000, 100_000)
        with pytest.raises(ra.ResourceExhausted, match=f"No space left on device.*{path} is as it was"):
            await client.checkpoint()
        assert shutil.disk_usage(small_disk).free == free
        await check_data(client)
        await fill(client, 101_000, 10)
        status, log = program.stop(signal.SIGTERM)
        assert status == 1  # its last checkpoint has failed, too
        assert "No space left" in log
    shutil.copytree(small_disk, small_disk.parent / "copy")
    async with restored(small_disk.parent / "copy", on_corrupt="fail") as client:
        assert await size(client) == 1000
