"""Saving a replay on disks that stop at any call."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_rig import Stopped, StoppingDisk, directory_at
from helpers import Items, keys

import reverb_async as ra
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.loading import newest_whole
from reverb_async.checkpoint.saving import Saver
from reverb_async.replay import Replay


def make_replay() -> Replay:
    return Replay([ra.Table("a", max_size=40, seed=1), ra.Table("b", max_size=40, sampler=ra.selectors.Fifo(), seed=2)])


class Writer:
    """A replay that was restored from a directory, and saves to it."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.replay = make_replay()
        self.thread = ThreadPoolExecutor(1)
        self.saver = Saver(self.replay, directory, self.thread)
        image = newest_whole(directory, "fail")
        if image is not None:
            self.replay.restore(image)
            self.saver.last, self.saver.held = image.manifest, image.held
        self.saver.last_number = directory.last_segment()
        self.items = Items(self.replay.storage)

    def change(self, start: int) -> None:
        """Insert, evict, delete and reset."""
        a, b = (table.state for table in self.replay.tables.values())
        items = self.items
        items.put(a, range(start, start + 30))
        items.put(b, range(start, start + 5))
        a.mutate(keys(start + 10, start + 11), np.array([5.0, 6.0]), keys(start + 12, start + 13))
        if start > 50:
            b.reset()
            items.put(b, range(3))

    async def save(self) -> None:
        try:
            await self.saver.save(lambda: None)
            self.directory.prune(1)
        finally:
            self.thread.shutdown()


def held(path: Path) -> Any:
    """Return what a server that starts here now would restore."""
    image = newest_whole(directory_at(path), "previous")
    if image is None:
        return None
    slots = {
        (name, slot): values
        for name, table in image.tables.items()
        for block in table.blocks()
        for slot, values in zip(block.ids.tolist(), block.values.tolist(), strict=True)
    }
    rows = {
        row: value
        for store in image.stores
        for block in store.rows()
        for row, value in zip(block.rows.tolist(), np.asarray(block.columns[0]).tolist(), strict=True)
    }
    return image.manifest.sequence, slots, rows


async def saved(path: Path, disk: StoppingDisk | None = None) -> None:
    writer = Writer(Directory(path, disk))
    writer.change(100)
    with contextlib.suppress(Stopped):
        await writer.save()


@pytest.mark.parametrize("power_cut", [False, True])
async def test_after_a_stop_at_any_call_of_a_save_a_server_has_the_old_checkpoint_or_the_new_one(tmp_path, power_cut):
    first = Writer(directory_at(tmp_path / "before"))
    first.change(0)
    await first.save()
    old = held(tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    await saved(tmp_path / "after")
    new = held(tmp_path / "after")
    assert old != new
    seen = []
    for calls in range(1000):
        path = tmp_path / f"stop{calls}"
        shutil.copytree(tmp_path / "before", path)
        disk = StoppingDisk(calls, power_cut=power_cut)
        await saved(path, disk)
        found = held(path)
        assert found in (old, new)
        seen.append(found == new)
        shutil.rmtree(path)
        if disk.calls < calls:
            break
    assert len(seen) > 30
    assert seen == sorted(seen)
    assert seen[-1]


async def test_a_cancelled_save_leaves_nothing_and_the_next_one_goes_on(tmp_path):
    writer = Writer(directory_at(tmp_path))
    writer.change(0)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    cancelled = 0
    for turns in (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 30, 50, 100, 200, 400):
        task = asyncio.create_task(writer.saver.save(lambda: None))
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            break
        cancelled += 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(path.name for path in tmp_path.rglob("*")) == before
    else:
        await writer.saver.save(lambda: None)
    assert cancelled > 5
    writer.thread.shutdown()
    replay = make_replay()
    image = newest_whole(directory_at(tmp_path), "fail")
    assert image is not None
    replay.restore(image)
    assert [table.state.size for table in replay.tables.values()] == [28, 5]
