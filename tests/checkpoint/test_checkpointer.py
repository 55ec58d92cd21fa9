"""Servers that save, end and start again."""

from __future__ import annotations

import asyncio
import errno
import logging
from pathlib import Path

import numpy as np
import pytest
from checkpoint_rig import FailingDisk
from server_rig import NAME, everything, fill, make_table, serving, until, values

import reverb_async as ra
from reverb_async.checkpoint import upkeep
from reverb_async.checkpoint.file_system import FileSystem
from reverb_async.checkpoint.loading import newest_whole
from reverb_async.replay import Replay


async def until_cut(checkpointer: ra.Checkpointer) -> None:
    """Wait until the checkpoint that was asked for is being written."""
    await until(lambda: checkpointer._running is not None and checkpointer._next is None)


def bytes_in(path: Path) -> int:
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def names_in(path: Path) -> set[str]:
    return {entry.name for entry in path.rglob("*") if entry.is_file() and entry.name != "LOCK"}


async def test_a_restarted_server_holds_what_it_held_and_draws_as_it_would_have(tmp_path):
    table = make_table()
    async with serving(tmp_path, table) as (client, _):
        keys = (await fill(client, 0, 500))[NAME]
        await client.mutate_priorities(NAME, (keys[:50], np.full(50, 9.0)), keys[50:60])
        for _ in range(3):
            await client.sample_batch(NAME, 64)
        path = await client.checkpoint()
        before = await everything(client, {NAME: table})
        drawn = await client.sample_batch(NAME, 64)
    assert path == str(tmp_path / f"ckpt-{1:020d}")
    again = make_table()
    async with serving(tmp_path, again) as (client, checkpointer):
        assert checkpointer.last_path == str(tmp_path / f"ckpt-{2:020d}")
    (tmp_path / f"ckpt-{2:020d}").rename(tmp_path / "aside2")
    (tmp_path / f"ckpt-{3:020d}").rename(tmp_path / "aside3")
    again = make_table()
    async with serving(tmp_path, again) as (client, _):
        assert await everything(client, {NAME: again}) == before
        repeated = await client.sample_batch(NAME, 64)
        assert repeated.info.key.tolist() == drawn.info.key.tolist()
        assert repeated.info.probability.tolist() == drawn.info.probability.tolist()
        assert repeated.info.times_sampled.tolist() == drawn.info.times_sampled.tolist()
        number = repeated.data["action"]
        for name, expected in values(number).items():
            np.testing.assert_array_equal(repeated.data[name], expected)


async def test_what_was_restored_counts_as_memory_in_use(tmp_path):
    async with serving(tmp_path) as (client, _):
        await fill(client, 0, 5000)
        await client.insert({"text": "of variable size"}, {NAME: 1.0})
        before = (await client.server_status()).stored_bytes
    async with serving(tmp_path) as (client, _):
        assert (await client.server_status()).stored_bytes == before > 5000 * 21


async def test_data_of_all_kinds_come_back(tmp_path):
    tables = [ra.Table.queue("queue", 10), ra.Table("steps", max_size=100)]
    item = {"text": "späť", "raw": b"\0\xff", "any": np.arange(6).reshape(2, 3), "flag": np.bool_(True), "none": None}
    async with serving(tmp_path, *tables) as (client, _):
        await client.insert(item, {"queue": 1.0})
        await client.insert({**item, "any": np.zeros((0, 3), int)}, {"queue": 1.0})
        async with client.trajectory_writer(num_keep_alive_refs=4) as writer:
            for step in range(20):
                writer.append({"x": np.full(3, step, np.int16), "s": "y" * step})
                if step >= 3:
                    history = writer.history
                    await writer.create_item("steps", 1.0, trajectory={"x": history["x"][-4:], "s": history["s"][-1]})
    tables = [table.replace() for table in tables]
    async with serving(tmp_path, *tables) as (client, _):
        for shape in ((2, 3), (0, 3)):
            sample = await client.sample_one("queue")
            assert sample.data["text"] == "späť"
            assert sample.data["raw"] == b"\0\xff"
            assert sample.data["any"].shape == shape
            assert sample.data["none"] is None
        assert tables[1].state.size == 17
        batch = await client.sample_batch("steps", 64)
        for x, s in zip(batch.data["x"], batch.data["s"], strict=True):
            assert x[:, 0].tolist() == list(range(len(s) - 3, len(s) + 1))


async def test_calls_at_the_same_time_share_a_checkpoint(tmp_path):
    async with serving(tmp_path) as (client, _):
        await fill(client, 0, 10)
        paths = await asyncio.gather(*(client.checkpoint() for _ in range(5)))
        assert len(set(paths)) == 1


async def test_a_call_after_the_cut_gets_a_checkpoint_that_holds_what_was_written_before_it(tmp_path):
    table = make_table(max_size=200_000)
    async with serving(tmp_path, table) as (client, checkpointer):
        await fill(client, 0, 1000)
        first = asyncio.create_task(client.checkpoint())
        await asyncio.sleep(0)
        await until_cut(checkpointer)
        assert not first.done()
        await fill(client, 1000, 1)
        second = await client.checkpoint()
        assert await first != second
        checkpointer._directory.checkpoint_path(3)
    again = make_table(max_size=200_000)
    (tmp_path / f"ckpt-{3:020d}").rename(tmp_path / "aside")
    async with serving(tmp_path, again) as (client, checkpointer):
        assert checkpointer.last_path == second
        assert again.state.size == 1001


async def test_a_caller_who_leaves_does_not_stop_the_checkpoint(tmp_path):
    async with serving(tmp_path) as (client, checkpointer):
        await fill(client, 0, 100)
        call = asyncio.create_task(checkpointer.save())
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        other = await checkpointer.save()
        assert other == str(tmp_path / f"ckpt-{1:020d}")


async def test_a_second_checkpoint_writes_what_is_new(tmp_path):
    async with serving(tmp_path, make_table(max_size=20_000)) as (client, _):
        await fill(client, 0, 20_000)
        await client.checkpoint()
        first = bytes_in(tmp_path)
        await fill(client, 20_000, 200)  # 1 % of the items, which evict as many
        await client.checkpoint()
        second = bytes_in(tmp_path) - first
        assert second <= 0.05 * first
        await client.checkpoint()
        assert bytes_in(tmp_path) - first - second <= 0.01 * first + 4096


async def test_dead_rows_do_not_pile_up_on_disk(tmp_path):
    async with serving(tmp_path, make_table(max_size=1000), keep=2) as (client, _):
        await fill(client, 0, 1000)
        await client.checkpoint()
        whole = bytes_in(tmp_path)
        for turn in range(25):
            await fill(client, 1000 + 170 * turn, 170)
            await client.sample_batch(NAME, 20)
            await client.checkpoint()
            assert bytes_in(tmp_path) < 8 * whole
            assert len(list((tmp_path / "segments").iterdir())) < 60
    table = make_table(max_size=1000)
    async with serving(tmp_path, table) as (client, _):
        assert sorted(table.state.slots.key[table.state.live_slots()].tolist())
        batch = await client.sample_batch(NAME, 500)
        assert batch.data["action"].min() >= 170 * 25
        for name, expected in values(batch.data["action"]).items():
            np.testing.assert_array_equal(batch.data[name], expected)


async def test_many_small_additions_do_not_become_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "MAX_ROW_FILES", 12)
    async with serving(tmp_path, make_table(), keep=2) as (client, checkpointer):
        for turn in range(40):
            await fill(client, 10 * turn, 10)
            await client.checkpoint()
        assert checkpointer._saver is not None
        last = checkpointer._saver.last
        assert last is not None
        assert len(last.files) < 30
        assert len(last.tables[0].files) <= 13
    table = make_table()
    async with serving(tmp_path, table):
        assert table.state.size == 400


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_when_any_write_fails_the_service_goes_on_and_the_last_checkpoint_stays(tmp_path, code, caplog):
    async with serving(tmp_path) as (client, checkpointer):
        await fill(client, 0, 50)
        path = await client.checkpoint()
        before = {entry: entry.read_bytes() for entry in tmp_path.rglob("*") if entry.is_file()}
        kind = ra.ResourceExhausted if code == errno.ENOSPC else ra.CheckpointError
        for at in range(1, 100):
            checkpointer._directory.files = disk = FailingDisk(at, code)
            await fill(client, 50 * at, 50)
            (told,) = await asyncio.gather(client.checkpoint(), return_exceptions=True)
            if disk.calls < at:
                break
            assert type(told) is kind
            assert all(part in str(told) for part in (str(tmp_path), path, "is removed"))
            assert checkpointer.alarm == str(told)
            assert [(alarm.name, alarm.message) for alarm in (await client.server_status()).alarms] == [
                ("checkpoint", str(told))
            ]
            after = {entry: entry.read_bytes() for entry in tmp_path.rglob("*") if entry.is_file()}
            assert after == before
            await client.sample_batch(NAME, 8)
        assert isinstance(told, str)
        checkpointer._directory.files = FileSystem()
        assert 15 < at < 100
        assert checkpointer.alarm is None
        assert not (await client.server_status()).alarms
        assert any(record.levelno == logging.ERROR for record in caplog.records)
    table = make_table()
    async with serving(tmp_path, table):
        assert table.state.size == 50 * (at + 1)


async def test_a_failed_checkpoint_is_tried_again_by_itself(tmp_path):
    disk = FailingDisk(4)
    async with serving(tmp_path, every=0.01) as (client, checkpointer):
        checkpointer._directory.files = disk
        await fill(client, 0, 50)
        await until(lambda: disk.calls > 4 and not checkpointer.alarm and checkpointer.last_path is not None)


async def test_regular_checkpoints_need_nobody_to_ask(tmp_path):
    async with serving(tmp_path, every=0.02, keep=2) as (client, checkpointer):
        await fill(client, 0, 50)
        await until((tmp_path / f"ckpt-{4:020d}").exists)
        assert checkpointer.last_saved is not None


@pytest.mark.parametrize("sampler", [ra.selectors.Uniform(), ra.selectors.Prioritized(0.6)], ids=str)
async def test_tables_that_change_while_they_are_saved_restore_as_they_were(tmp_path, sampler):
    table = make_table(max_size=3000, sampler=sampler)
    async with serving(tmp_path, table) as (client, checkpointer):
        keys = (await fill(client, 0, 3000))[NAME]
        for turn in range(1, 6):
            before = await everything(client, {NAME: table})
            saving = asyncio.create_task(checkpointer.save())
            await until_cut(checkpointer)
            while not saving.done():
                keys = np.concatenate([keys, (await fill(client, 3000 * turn, 100))[NAME]])
                await client.mutate_priorities(NAME, (keys[-50:], np.full(50, 2.0)), keys[-200:-190])
                await client.sample_batch(NAME, 32)
            await saving
            restored = make_table(max_size=3000, sampler=sampler)
            replay = Replay([restored])
            image = newest_whole(checkpointer._directory, "fail")
            assert image is not None
            replay.restore(image)
            assert await everything(client, {NAME: restored}) == before


async def test_a_closed_server_has_written_a_last_checkpoint_and_let_the_directory_go(tmp_path):
    async with serving(tmp_path) as (client, checkpointer):
        await fill(client, 0, 7)
        with pytest.raises(ra.CheckpointError, match="in use by another server"):
            async with serving(tmp_path):
                pass
    with pytest.raises(ra.Closed, match="not in use"):
        await checkpointer.save()
    table = make_table()
    async with serving(tmp_path, table):
        assert table.state.size == 7


async def test_a_last_checkpoint_that_fails_is_told(tmp_path):
    checkpointer = ra.Checkpointer(tmp_path)
    server = ra.Server([make_table()], port=None, checkpointer=checkpointer)
    await server.start()
    await fill(server.client(), 0, 7)
    checkpointer._directory.files = FailingDisk(1)
    with pytest.raises(ra.ResourceExhausted, match="No space left"):
        await server.close()
    table = make_table()
    async with serving(tmp_path, table):
        assert table.state.size == 0


async def test_a_directory_that_somebody_took_away_is_told(tmp_path):
    server = ra.Server([make_table()], port=None, checkpointer=ra.Checkpointer(tmp_path / "c"))
    async with server, server.client() as client:
        await fill(client, 0, 7)
        path = await client.checkpoint()
        (tmp_path / "c").rename(tmp_path / "elsewhere")
        with pytest.raises(ra.CheckpointError, match=f"No such file or directory; .*{path} is gone"):
            await client.checkpoint()
        assert len(await client.sample_batch(NAME, 5)) == 5
        (tmp_path / "elsewhere").rename(tmp_path / "c")
        await client.checkpoint()


async def test_a_server_that_cannot_start_leaves_checkpoints_alone(tmp_path):
    async with serving(tmp_path) as (client, _):
        await fill(client, 0, 7)
    before = names_in(tmp_path)
    table = make_table()
    async with ra.Server([table], port=None), asyncio.timeout(10):
        with pytest.raises(ra.InvalidArgument, match="belongs to a running server"):
            async with serving(tmp_path, table):
                pass
    blocked = ra.Server([make_table()], unix_path="/nowhere/at/all.sock", checkpointer=ra.Checkpointer(tmp_path))
    with pytest.raises(ra.InvalidArgument):
        await blocked.start()
    assert names_in(tmp_path) == before
    async with serving(tmp_path, make_table()):
        pass


async def test_the_newest_damaged_the_one_before_is_used(tmp_path, caplog):
    async with serving(tmp_path) as (client, _):
        await fill(client, 0, 100)
        await client.checkpoint()
        await fill(client, 100, 100)
    newest = max((tmp_path / "segments").iterdir())
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    with pytest.raises(ra.CheckpointError, match="damaged"):
        async with serving(tmp_path, make_table(), on_corrupt="fail"):
            pass
    table = make_table()
    async with serving(tmp_path, table):
        assert table.state.size == 100
        assert (tmp_path / f"ckpt-{2:020d}.corrupt").is_dir()
        assert any(newest.name in record.getMessage() for record in caplog.records if record.levelno == logging.ERROR)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"keep": 1}, "keep must be an int >= 2"),
        ({"keep": True}, "keep must be"),
        ({"every": 0}, "every must be"),
        ({"every": float("nan")}, "every must be"),
        ({"restore": "loose"}, "restore must be one of 'strict', 'config', 'checkpoint', got 'loose'"),
        ({"on_corrupt": "ignore"}, "on_corrupt must be one of 'previous', 'fail'"),
    ],
)
def test_options_that_cannot_work_are_refused(tmp_path, options, what):
    with pytest.raises(ra.InvalidArgument, match=what):
        ra.Checkpointer(tmp_path, **options)


def test_a_path_is_no_checkpointer(tmp_path):
    with pytest.raises(ra.InvalidArgument, match="such as Checkpointer"):
        ra.Server([make_table()], checkpointer=str(tmp_path))


async def test_one_checkpointer_serves_one_server(tmp_path):
    async with serving(tmp_path) as (_, checkpointer):
        other = ra.Server([make_table()], port=None, checkpointer=checkpointer)
        with pytest.raises(ra.InvalidArgument, match="belongs to another server"):
            await other.start()
        await checkpointer.save()
