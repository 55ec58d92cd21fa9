"""Servers that write a log: what they acknowledged is there when another one starts from what a killed one left."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_rig import NAME, everything, fill, make_table, until, values

import reverb_async as ra
from reverb_async.checkpoint import write_ahead
from reverb_async.checkpoint.file_system import FileSystem

MODES = ["wal", "wal_fsync"]


@asynccontextmanager
async def serving(
    path: Path, *tables: ra.Table, durability: Any = "wal", files: FileSystem | None = None, **options: Any
) -> AsyncIterator[tuple[ra.Server, ra.Client]]:
    checkpointer = ra.Checkpointer(path, **options)
    if files is not None:
        checkpointer._directory.files = files
    server = ra.Server(tables or [make_table()], port=0, checkpointer=checkpointer, durability=durability)
    async with server:
        yield server, server.client()


async def found_after_a_kill(path: Path, copy: Path, *tables: ra.Table, **options: Any) -> dict[str, Any]:
    """Return what a server finds that starts now, after the one that runs was killed."""
    shutil.copytree(path, copy)
    async with serving(copy, *tables, on_corrupt="fail", **options) as (server, client):
        return await everything(client, server.tables)


def two_tables() -> list[ra.Table]:
    return [make_table(), ra.Table.queue("queue", 1000)]


@pytest.mark.parametrize("durability", MODES)
async def test_what_was_acknowledged_is_there(tmp_path, durability):
    async with serving(tmp_path / "a", *two_tables(), durability=durability) as (server, client):
        keys = (await fill(client, 0, 50))[NAME]
        found = await found_after_a_kill(tmp_path / "a", tmp_path / "1", *two_tables())
        assert found == await everything(client, server.tables)
        await client.mutate_priorities(NAME, {int(keys[3]): 9.0}, [int(keys[4]), int(keys[5])])
        found = await found_after_a_kill(tmp_path / "a", tmp_path / "2", *two_tables())
        assert found == await everything(client, server.tables)
        assert len(found[NAME]["key"]) == 48
        async with client.trajectory_writer(num_keep_alive_refs=3) as writer:
            for step in range(20):
                writer.append({"x": np.int32(step), "text": "x" * step})
                if step > 2:
                    await writer.create_item(
                        "queue", 1.0, trajectory={name: column[-3:] for name, column in writer.history.items()}
                    )
        found = await found_after_a_kill(tmp_path / "a", tmp_path / "3", *two_tables())
        assert found == await everything(client, server.tables)
        assert len(found["queue"]["key"]) == 17
        await client.reset(NAME)
        found = await found_after_a_kill(tmp_path / "a", tmp_path / "4", *two_tables())
        assert found[NAME]["key"] == []
        assert len(found["queue"]["key"]) == 17


@pytest.mark.parametrize("durability", MODES)
async def test_what_was_confirmed_to_deepminds_clients_is_there(tmp_path, durability):
    async with (
        serving(tmp_path / "a", *two_tables(), durability=durability) as (server, _),
        ra.Client(f"reverb://{server.address}") as client,
    ):
        for number in range(12):
            await client.insert({"x": np.full(3, number, np.float32)}, {NAME: 1.0 + number})
        found = await found_after_a_kill(tmp_path / "a", tmp_path / "1", *two_tables())
        assert found == await everything(client, server.tables)
        assert len(found[NAME]["key"]) == 12
        keys = found[NAME]["key"]
        await client.mutate_priorities(NAME, {keys[0]: 7.5}, [keys[1]])
        found = await found_after_a_kill(tmp_path / "a", tmp_path / "2", *two_tables())
        assert found == await everything(client, server.tables)
        assert found[NAME]["priority"][0] == 7.5
        assert len(found[NAME]["key"]) == 11
        await client.reset(NAME)
        assert not (await found_after_a_kill(tmp_path / "a", tmp_path / "3", *two_tables()))[NAME]["key"]
    async with serving(tmp_path / "2", *two_tables()) as (_, client):
        batch = await client.sample_batch(NAME, 100)
        assert set(np.asarray(batch.data[0])[..., 0].ravel().tolist()) <= {0.0, *range(2, 12)}


async def test_data_are_whole_and_a_second_kill_loses_nothing_either(tmp_path):
    async with serving(tmp_path / "a") as (_, client):
        await fill(client, 0, 30)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    async with serving(tmp_path / "b", on_corrupt="fail") as (_, client):
        await fill(client, 30, 30)
        shutil.copytree(tmp_path / "b", tmp_path / "c")
    async with serving(tmp_path / "c", on_corrupt="fail") as (_, client):
        batch = await client.sample_batch(NAME, 500)
        for name, expected in values(batch.data["action"]).items():
            np.testing.assert_array_equal(batch.data[name], expected)
        assert set(batch.data["action"].tolist()) == set(range(60))


async def test_sampled_items_of_a_queue_are_gone_once_acknowledged(tmp_path):
    async with serving(tmp_path / "a", ra.Table.queue(NAME, 100)) as (server, client):
        await client.insert_batch({"x": np.arange(10)}, {NAME: np.ones(10)})
        taken = await client.sample_batch(NAME, 4)
        assert taken.data["x"].tolist() == [0, 1, 2, 3]
        await until(lambda: not server.tables[NAME].state.num_unsettled)
        await asyncio.sleep(0)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    async with serving(tmp_path / "b", ra.Table.queue(NAME, 100)) as (_, client):
        assert (await client.sample_batch(NAME, 6)).data["x"].tolist() == [4, 5, 6, 7, 8, 9]


class SmallDisk(FileSystem):
    """Takes nothing while it is full, and keeps nothing while it is held."""

    def __init__(self) -> None:
        self.is_full = False
        self.flows = threading.Event()
        self.flows.set()

    def write_some(self, file: int, parts: Sequence[memoryview]) -> int:
        if self.is_full:
            half = sum(map(len, parts)) // 2
            super().write_some(file, [memoryview(b"".join(parts))[:half]])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write_some(file, parts)

    def sync_data(self, file: int) -> None:
        self.flows.wait(30)
        super().sync_data(file)


async def test_nothing_is_acknowledged_before_the_disk_has_it(tmp_path):
    disk = SmallDisk()
    async with serving(tmp_path, files=disk, durability="wal_fsync") as (server, client):
        keys = (await fill(client, 0, 5))[NAME].tolist()
        disk.flows.clear()
        calls = [
            asyncio.create_task(fill(client, 5, 5)),
            asyncio.create_task(client.mutate_priorities(NAME, {keys[0]: 3.0})),
        ]
        await until(lambda: server.tables[NAME].state.size == 10)
        done, _ = await asyncio.wait(calls, timeout=0.2)
        assert not done
        disk.flows.set()
        await asyncio.gather(*calls)


@pytest.mark.parametrize("durability", MODES)
async def test_a_full_disk_refuses_changes_until_a_checkpoint_succeeds(tmp_path, durability):
    disk = SmallDisk()
    async with serving(tmp_path / "a", files=disk, durability=durability) as (server, client):
        keys = (await fill(client, 0, 20))[NAME]
        disk.is_full = True
        with pytest.raises((ra.ResourceExhausted, ra.CheckpointError), match="No space left on device"):
            await fill(client, 20, 1)
        with pytest.raises((ra.ResourceExhausted, ra.CheckpointError), match="No space left on device"):
            await client.mutate_priorities(NAME, deletes=[int(keys[0])])
        with pytest.raises((ra.ResourceExhausted, ra.CheckpointError), match="No space left on device"):
            await client.reset(NAME)
        assert len(await client.sample_batch(NAME, 8)) == 8
        found = await found_after_a_kill(tmp_path / "a", tmp_path / "1")
        assert set(keys.tolist()) <= set(found[NAME]["key"])
        disk.is_full = False
        await client.checkpoint()
        await fill(client, 30, 10)
        assert await found_after_a_kill(tmp_path / "a", tmp_path / "2") == await everything(client, server.tables)


async def fill_up(client: ra.Client) -> None:
    for start in range(10, 20_000, 100):
        await fill(client, start, 100)


async def test_a_file_that_must_not_grow_any_more_is_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    async with serving(tmp_path / "a") as (server, client):
        await fill(client, 0, 10)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
        try:
            with pytest.raises(ra.ResourceExhausted, match="File too large"):
                await fill_up(client)
            assert "log" in [alarm.name for alarm in (await client.server_status()).alarms]
            assert (await client.sample_one(NAME)).data
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await client.checkpoint()
        await fill(client, 30_000, 10)
        assert "log" not in [alarm.name for alarm in (await client.server_status()).alarms]
        assert await found_after_a_kill(tmp_path / "a", tmp_path / "b") == await everything(client, server.tables)


async def test_a_server_without_a_log_starts_from_one_as_well(tmp_path):
    async with serving(tmp_path / "a") as (server, client):
        await fill(client, 0, 20)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        expected = await everything(client, server.tables)
    async with serving(tmp_path / "b", durability="memory") as (server, client):
        assert await everything(client, server.tables) == expected
        await fill(client, 20, 20)
        expected = await everything(client, server.tables)
    async with serving(tmp_path / "b", on_corrupt="fail") as (server, client):
        assert await everything(client, server.tables) == expected
        await fill(client, 40, 20)
        found = await found_after_a_kill(tmp_path / "b", tmp_path / "c")
        assert found == await everything(client, server.tables)


async def test_other_definitions_are_in_a_checkpoint_before_anything_is_logged(tmp_path):
    async with serving(tmp_path / "a") as (_, client):
        await fill(client, 0, 50)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    changed = {"max_size": 30, "remover": ra.selectors.Lifo()}
    async with serving(tmp_path / "b", make_table(**changed), restore="config") as (server, client):
        assert server.tables[NAME].state.size == 30
        await fill(client, 50, 1)
        found = await found_after_a_kill(tmp_path / "b", tmp_path / "c", make_table(**changed))
        assert found == await everything(client, server.tables)


async def test_a_damaged_checkpoint_loses_nothing(tmp_path, caplog):
    async with serving(tmp_path / "a") as (server, client):
        await fill(client, 0, 20)
        await client.checkpoint()
        await fill(client, 20, 20)
        newest = await client.checkpoint()
        await fill(client, 40, 20)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        expected = await everything(client, server.tables)
    manifest = tmp_path / "b" / Path(newest).name / "MANIFEST"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    async with serving(tmp_path / "b") as (server, client):
        assert await everything(client, server.tables) == expected
    assert "using the previous checkpoint" in caplog.text


async def test_a_long_log_makes_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(write_ahead, "MIN_LOG_BYTES", 4000)
    async with serving(tmp_path / "a", keep=2) as (server, client):
        directory = server._checkpointer._directory
        start = 0
        while directory.sequences()[0] < 4:
            await fill(client, start, 20)
            start += 20
        await until(lambda: directory.log_numbers()[0] >= 3)
        assert await found_after_a_kill(tmp_path / "a", tmp_path / "b") == await everything(client, server.tables)


async def test_a_frame_that_was_not_finished_is_left_out_and_told(tmp_path, caplog):
    async with serving(tmp_path / "a") as (_, client):
        await fill(client, 0, 5)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    last = max((tmp_path / "b" / "log").iterdir())
    with last.open("ab") as file:
        file.write(b"RvAs" + bytes(77))
    with caplog.at_level(logging.WARNING, "reverb_async"):
        async with serving(tmp_path / "b", on_corrupt="fail") as (server, _):
            assert server.tables[NAME].state.size == 5
    assert f"{last}: the 81 bytes from byte" in caplog.text


async def test_a_damaged_frame_with_whole_ones_behind_it_is_told_and_can_end_the_start(tmp_path, caplog):
    async with serving(tmp_path / "a") as (_, client):
        for start in range(0, 20, 5):
            await fill(client, start, 5)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    last = max((tmp_path / "b" / "log").iterdir())
    whole = bytearray(last.read_bytes())
    whole[len(whole) // 2] ^= 1
    last.write_bytes(whole)
    with pytest.raises(ra.CheckpointError, match=f"the log is damaged: {last}: at byte"):
        async with serving(tmp_path / "b", on_corrupt="fail"):
            pass
    async with serving(tmp_path / "b") as (server, client):
        assert 0 < server.tables[NAME].state.size < 20
        assert "what was acknowledged after this place is lost" in caplog.text
        await fill(client, 100, 5)
        found = await found_after_a_kill(tmp_path / "b", tmp_path / "c")
        assert found == await everything(client, server.tables)


async def test_a_log_without_its_checkpoint_is_not_passed_over(tmp_path):
    async with serving(tmp_path / "a") as (_, client):
        await fill(client, 0, 5)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b").glob("ckpt-*"):
        shutil.rmtree(path)
    with pytest.raises(ra.CheckpointError, match=r"goes on from a checkpoint, and .* has none"):
        async with serving(tmp_path / "b"):
            pass


def test_a_log_needs_a_directory(tmp_path):
    with pytest.raises(ra.InvalidArgument, match="durability='wal' needs a checkpointer"):
        ra.Server([make_table()], durability="wal")
    with pytest.raises(ra.InvalidArgument, match="durability must be one of 'memory', 'wal', 'wal_fsync', got 'disk'"):
        ra.Server([make_table()], durability="disk", checkpointer=ra.Checkpointer(tmp_path))
