"""Disks that stop or fail under a log, after every single call, and logs cut off at every byte."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoint_rig import FailingDisk, Stopped, StoppingDisk

from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.file_system import FileSystem
from reverb_async.checkpoint.loading import read_checkpoint, with_log
from reverb_async.checkpoint.log_file import NOWHERE, LogReader
from reverb_async.checkpoint.log_reading import LogOnDisk, read_log
from reverb_async.checkpoint.saving import Saver
from reverb_async.checkpoint.write_ahead import WriteAheadLog
from reverb_async.core import table_items
from reverb_async.core.item import ItemBlock, Leaf
from reverb_async.core.nest import flatten
from reverb_async.core.runs import Runs
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import ReplayError
from reverb_async.replay import Replay
from reverb_async.table import Table


@pytest.fixture(autouse=True)
def few_spare_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_items, "_SPARE_SLOTS", 64)


class Life:
    """A server that inserts item after item, with a checkpoint before the first and two in between.

    Attributes:
        acknowledged: keys of the items of which it was told that they are kept.
        tried: how many it inserted.
    """

    def __init__(self, path: Path, files: FileSystem, *, sync: bool) -> None:
        self.directory = Directory(path, files)
        for each in (path, self.directory.segments, self.directory.log):
            each.mkdir(exist_ok=True)
        self.replay = Replay([Table("replay", max_size=100)])
        self.log = WriteAheadLog(self.replay, self.directory, sync=sync)
        self.acknowledged: list[int] = []
        self.tried = 0

    async def run(self) -> None:
        with ThreadPoolExecutor(1) as thread:
            self.log.begin(self.log.prepare(), NOWHERE)
            saver = Saver(self.replay, self.directory, thread, self.log)
            await saver.save(lambda: None)
            for number in range(9):
                if number % 3 == 2:
                    with contextlib.suppress(OSError):
                        await saver.save(lambda: None)
                    self.directory.prune(2)
                self.insert(number)
                with contextlib.suppress(ReplayError):
                    await self.log.durable()
                    self.acknowledged.append(number)

    def insert(self, number: int) -> None:
        table = self.replay.tables["replay"]
        if table.refusal is not None:
            return
        self.tried += 1
        store = self.replay.storage.group([ArraySpec((), np.int64), ArraySpec((3,), np.int8)])
        rows = store.lease(1)
        store.write_all(rows, [np.array([number]), np.full((1, 3), number, np.int8)])
        layout = self.replay.layouts.get(flatten({"a": 0, "b": 1})[1], (store,), (Leaf(0, 0, True), Leaf(0, 1, True)))
        key = np.array([number], np.uint64)
        table.insert_now(ItemBlock(layout, key, np.ones(1), (Runs.of_rows(rows),), np.array([11])))
        store.unpin(rows)


def found(path: Path, most: int | None = None) -> list[int] | None:
    """Return the keys of the items that another server finds, from any checkpoint; None if there is none.

    Args:
        path: the directory.
        most: look at so many of the newest checkpoints; None: at all.
    """
    directory = Directory(path)
    each = [_found_from(directory, sequence) for sequence in directory.sequences()[:most]]
    assert all(keys == each[0] for keys in each)
    return each[0] if each else None


def _found_from(directory: Directory, sequence: int) -> list[int]:
    image = read_checkpoint(directory, sequence)
    replay = Replay([Table("replay", max_size=100)])
    replay.restore(with_log(directory, image, "fail")[0])
    state = replay.tables["replay"].state
    slots = state.live_slots()
    rows = state.slots.runs(0, slots).rows()
    (store,) = state.slots.stores() or {None}
    if store is not None:
        assert store.gather(0, rows).tolist() == state.slots.key[slots].tolist()
        assert store.gather(1, rows)[:, 2].tolist() == state.slots.key[slots].tolist()
    return sorted(state.slots.key[slots].tolist())


EVERY = pytest.mark.parametrize(
    ("sync", "step"),
    [(False, 11), (True, 7), *(pytest.param(sync, 1, marks=pytest.mark.soak) for sync in (False, True))],
)


@EVERY
def test_whatever_call_was_the_last_all_that_was_acknowledged_is_there(tmp_path, sync, step, caplog):
    caplog.set_level(logging.CRITICAL)
    lengths = []
    for calls in range(0, 1000, step):
        path = tmp_path / str(calls)
        disk = StoppingDisk(calls, power_cut=sync)
        life = Life(path, disk, sync=sync)
        with contextlib.suppress(Stopped):
            asyncio.run(life.run())
        keys = found(path)
        if keys is None:
            assert not life.acknowledged
        else:
            assert keys == list(range(len(keys)))
            assert len(life.acknowledged) <= len(keys) <= life.tried
        shutil.rmtree(path)
        lengths.append(len(life.acknowledged))
        if disk.calls < calls:
            break
    assert lengths[-1] == 9
    assert lengths == sorted(lengths)


@EVERY
def test_whatever_call_fails_all_that_was_acknowledged_is_there(tmp_path, sync, step, caplog):
    caplog.set_level(logging.CRITICAL)
    for at in range(1, 1000, step):
        path = tmp_path / str(at)
        disk = FailingDisk(at)
        life = Life(path, disk, sync=sync)
        with contextlib.suppress(OSError):
            asyncio.run(life.run())
        keys = found(path, 1)  # What was not logged for a while is in the newest one only.
        assert set(life.acknowledged) <= set(keys or ())
        shutil.rmtree(path)
        if disk.calls < at:
            break
        if life.tried:
            assert life.acknowledged[-1] >= 7, "it has recovered with the next checkpoint at the latest"
    assert at > 60


def test_a_log_that_ends_at_any_byte_has_the_frames_before_it(tmp_path):
    life = Life(tmp_path, FileSystem(), sync=False)
    asyncio.run(life.run())
    directory = Directory(tmp_path)
    number = directory.log_numbers()[-1]
    path = directory.log_path(number)
    reader = LogReader(path)
    starts = [record.offset for record in reader]
    last, end = starts[-1], reader.end
    assert end == path.stat().st_size
    whole = path.read_bytes()

    def frames() -> list[int]:
        log = LogOnDisk()
        read_log(directory, log, number, lambda place, frame: None, is_newest=True, may_be_cut=False)
        return [offset for _, offset in log.frames]

    assert found(tmp_path) == list(range(9))
    assert frames() == starts[1:]
    for length in range(last, end):
        path.write_bytes(whole[:length])
        assert frames() == starts[1:-1], length
    rng = np.random.default_rng(0)
    for place in [last, end - 1, *rng.integers(last, end, 200).tolist()]:
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        assert frames() == starts[1:-1], place
    assert found(tmp_path) == list(range(8))
