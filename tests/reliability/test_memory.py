"""What is stored is what items show, once; what nobody shows any more is given back."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest
from reliability_rig import (
    in_process_and_tcp,
    service_of,
    serving,
    until_nothing_waits_or_is_held,
    usage_of,
)

import reverb_async as ra
from reverb_async.testing import until

STATE_BYTES = 4096
FRAME = (84, 84)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say which pages are shared")


def shared_resident_bytes() -> int:
    """Pages of shared mappings, which are the stores', in this process's memory."""
    gc.collect()  # What earlier tests left behind must not go while one counts.
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssShmem"].split()[0]) * 1024


@in_process_and_tcp
@pytest.mark.parametrize("overlap", [0, 40])
async def test_r2d2_items_of_80_steps_store_one_state_each(way: str, overlap: int) -> None:
    """Every step has a 4 KB recurrent state, of which each item shows the first."""
    async with serving([ra.Table("t", max_size=10_000)], way) as (server, client):
        items = 0
        async with client.trajectory_writer(81) as writer:
            for step in range(4000):
                writer.append(
                    {
                        "obs": np.full(16, step, np.float32),
                        "action": np.int32(step),
                        "state": np.full(STATE_BYTES // 4, step, np.float32),
                    }
                )
                if writer.episode_steps >= 80 and (writer.episode_steps - 80) % (80 - overlap) == 0:
                    history = writer.history
                    shown = {
                        "obs": history["obs"][-80:],
                        "action": history["action"][-80:],
                        "state": history["state"][-80],
                    }
                    await writer.create_item("t", 1.0, trajectory=shown)
                    items += 1
        steps = 80 + (items - 1) * (80 - overlap)
        shown_bytes = steps * (16 * 4 + 4) + items * STATE_BYTES
        usage = usage_of(server)
        assert shown_bytes <= usage.used_bytes <= 1.05 * shown_bytes
        batch = await client.sample_batch("t", 32)
        np.testing.assert_array_equal(batch.data["state"][:, 0], batch.data["obs"][:, 0, 0])
        assert batch.data["state"].shape == (32, STATE_BYTES // 4)
        await until_nothing_waits_or_is_held(server)


@in_process_and_tcp
async def test_overlapping_frame_stacks_store_each_frame_once(way: str) -> None:
    """Also when two tables show them, and observation and next observation are stacks of the same frames."""
    tables = [ra.Table("t", max_size=10_000), ra.Table("u", max_size=10_000)]
    async with serving(tables, way) as (server, client):
        async with client.trajectory_writer(5) as writer:
            for step in range(1000):
                writer.append({"frame": np.full(FRAME, step % 251, np.uint8), "action": np.int64(step)})
                if step >= 4:
                    history = writer.history
                    shown = {
                        "obs": history["frame"][-5:-1],
                        "next": history["frame"][-4:],
                        "action": history["action"][-2],
                    }
                    await writer.create_item("t", 1.0, trajectory=shown)
                    await writer.create_item("u", 1.0, trajectory=shown)
        frame_bytes = 1000 * FRAME[0] * FRAME[1]
        assert frame_bytes <= usage_of(server).used_bytes <= 1.01 * frame_bytes
        assert server.tables["t"].info.stored_bytes >= 7.9 * frame_bytes * 996 / 1000  # Overlaps are counted there.
        batch = await client.sample_batch("u", 64)
        assert (batch.data["next"][:, 0] == batch.data["obs"][:, 1]).all()
        await client.reset("t")
        await until(lambda: not server.tables["t"].state._detached)
        assert frame_bytes <= usage_of(server).used_bytes + 4 * FRAME[0] * FRAME[1]
        await until_nothing_waits_or_is_held(server)


async def test_steps_that_left_the_history_and_no_item_shows_are_not_kept() -> None:
    async with serving([ra.Table("t", max_size=10)], "tcp") as (server, client):
        async with client.trajectory_writer(4) as writer:
            for step in range(3000):
                writer.append({"x": np.full(1000, step, np.float32)})
                if step % 2 == 0:
                    await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][-1]})
            await writer.flush()
            usage = usage_of(server)
            assert usage.used_bytes <= (10 + 4 + 64 + 1) * 4000
        await until_nothing_waits_or_is_held(server)
        assert usage_of(server).live_rows == 10


@linux_only
async def test_reset_gives_the_pages_back_while_the_server_runs() -> None:
    before = shared_resident_bytes()
    async with serving([ra.Table("t", max_size=10_000)], "in-process") as (server, client):
        for _ in range(16):
            await client.insert_batch({"x": np.ones((500, 1024), np.float32)}, {"t": 1.0})
        full = shared_resident_bytes() - before
        assert full >= 8000 * 4096
        await client.reset("t")
        await until(lambda: usage_of(server).used_bytes == 0)
        await until(lambda: not service_of(server).replay.storage.trim())
        assert shared_resident_bytes() - before <= 0.2 * full
        await client.insert({"x": np.ones(1024, np.float32)}, {"t": 1.0})
        assert (await client.sample_one("t")).data["x"].sum() == 1024


@linux_only
async def test_closing_a_server_gives_everything_back_once_it_is_dropped() -> None:
    before = shared_resident_bytes()
    for _ in range(3):
        server = ra.Server([ra.Table("t", max_size=10_000)], port=None)
        await server.start()
        client = server.client()
        for _ in range(8):
            await client.insert_batch({"x": np.ones((500, 1024), np.float32)}, {"t": 1.0})
        assert shared_resident_bytes() - before >= 4000 * 4096
        await server.close()
        del server, client
    assert shared_resident_bytes() - before <= 1 << 20


async def test_turnover_of_a_full_table_does_not_grow() -> None:
    async with serving([ra.Table("t", max_size=1000, remover=ra.selectors.Uniform(), seed=1)], "in-process") as pair:
        server, client = pair
        for _ in range(20):
            await client.insert_batch({"x": np.ones((1000, 64), np.float32)}, {"t": 1.0})
        usage = usage_of(server)
        assert usage.live_rows == 1000
        assert usage.used_bytes == 1000 * 256
        await until_nothing_waits_or_is_held(server)


async def test_values_of_variable_size_are_given_back_too() -> None:
    signature = {"tokens": ra.ArraySpec((None,), np.int32), "text": ra.ArraySpec((), "str")}
    async with serving([ra.Table("t", max_size=50, signature=signature)], "tcp") as (server, client):
        for number in range(300):
            data = {"tokens": np.arange(number * 10, dtype=np.int32), "text": "ü" * number}
            await client.insert(data, {"t": 1.0})
        assert server.tables["t"].info.current_size == 50
        assert usage_of(server).live_rows == 150
        sample = await client.sample_one("t")
        assert len(sample.data["tokens"]) == 10 * len(sample.data["text"])
        await client.reset("t")
        await until(lambda: usage_of(server).used_bytes == 0)
