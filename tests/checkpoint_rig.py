"""Disks that fail or stop, and checkpoints made by hand."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.draft import Draft
from reverb_async.checkpoint.file_system import FileSystem
from reverb_async.checkpoint.image import CheckpointOnDisk
from reverb_async.checkpoint.manifest import Manifest, StoreFacts, TableFacts, store_name
from reverb_async.core.cut.image import ArrayBlock, image_dtype
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows

SPECS = (ArraySpec((2,), np.float32), ArraySpec((), "str"), ArraySpec((None, 2), np.int16))
STORE = tuple(spec.to_wire() for spec in SPECS)
NO_MORE = np.zeros((0, 4), np.int64)


class Stopped(BaseException):
    """The process was killed."""


class StoppingDisk(FileSystem):
    """Does what it is told `calls` times; then the process is dead, and every further call finds that out.

    With `power_cut`, what was not synced by then is lost: the later half of unsynced bytes, and unsynced names.
    """

    def __init__(self, calls: int, *, power_cut: bool = False) -> None:
        self.left = calls
        self.calls = 0
        self._power_cut = power_cut
        self._unsynced: dict[Path, int] = {}
        self._open: dict[int, Path] = {}
        self._undo: list[tuple[Path, Path | None, Path]] = []
        self._is_dead = False

    def _count(self) -> None:
        if self._is_dead or self.calls == self.left:
            if not self._is_dead:
                self._is_dead = True
                self._lose()
            raise Stopped
        self.calls += 1

    def _lose(self) -> None:
        """Lose what the disk did not have to keep."""
        for file in self._open:
            os.close(file)
        if not self._power_cut:
            return
        for path, synced in self._unsynced.items():
            if path.exists():
                os.truncate(path, synced + (path.stat().st_size - synced) // 2)
        for _, old, new in reversed(self._undo):
            if old is None:
                shutil.rmtree(new) if new.is_dir() else new.unlink(missing_ok=True)
            elif new.exists() and not old.exists():
                os.rename(new, old)

    def create(self, path: Path) -> int:
        self._count()
        file = super().create(path)
        self._open[file] = path
        self._unsynced[path] = 0
        self._undo.append((path.parent, None, path))
        return file

    def write_some(self, file: int, parts: Sequence[memoryview]) -> int:
        self._count()
        return super().write_some(file, parts)

    def sync(self, file: int) -> None:  # No need to wait for the real disk: what it would lose is lost by `_lose`.
        self._count()
        self._unsynced.pop(self._open[file], None)

    def sync_data(self, file: int) -> None:
        self._count()
        length = os.fstat(file).st_size
        super().sync_data(file)
        self._unsynced[self._open[file]] = length

    def truncate(self, file: int, nbytes: int) -> None:
        self._count()
        super().truncate(file, nbytes)

    def close(self, file: int) -> None:
        self._count()
        del self._open[file]
        super().close(file)

    def rename(self, path: Path, target: Path) -> None:
        self._count()
        super().rename(path, target)
        if path in self._unsynced:
            self._unsynced[target] = self._unsynced.pop(path)
        self._undo.append((path.parent, path, target))

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)
        self._undo = [entry for entry in self._undo if entry[2] != path]

    def make_directory(self, path: Path) -> None:
        self._count()
        super().make_directory(path)
        self._undo.append((path.parent, None, path))

    def remove_directory(self, path: Path) -> None:
        self._count()
        super().remove_directory(path)
        self._undo = [entry for entry in self._undo if entry[2] != path]

    def sync_directory(self, path: Path) -> None:
        self._count()
        self._undo = [entry for entry in self._undo if entry[0] != path]


class FailingDisk(FileSystem):
    """Fails one call, the `at`-th, and works before and after.

    Attributes:
        calls: made so far.
    """

    def __init__(self, at: int, error: int = errno.ENOSPC) -> None:
        self.at = at
        self.calls = 0
        self._error = error

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise OSError(self._error, os.strerror(self._error))

    def create(self, path: Path) -> int:
        self._count()
        return super().create(path)

    def write_some(self, file: int, parts: Sequence[memoryview]) -> int:
        self._count()
        return super().write_some(file, parts)

    def sync(self, file: int) -> None:
        self._count()
        super().sync(file)

    def sync_data(self, file: int) -> None:
        self._count()
        super().sync_data(file)

    def truncate(self, file: int, nbytes: int) -> None:
        self._count()
        super().truncate(file, nbytes)

    def rename(self, path: Path, target: Path) -> None:
        self._count()
        super().rename(path, target)

    def make_directory(self, path: Path) -> None:
        self._count()
        super().make_directory(path)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)


def directory_at(path: Path, files: FileSystem | None = None) -> Directory:
    """Return a directory without its lock, as a process finds it that was started after another one was killed."""
    path.mkdir(exist_ok=True)
    (path / "segments").mkdir(exist_ok=True)
    return Directory(path, files)


def some_rows(n: int, seed: int) -> list[np.ndarray | VariableRows]:
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, 5, n)
    lengths = rng.integers(0, 3, n)
    return [
        rng.normal(size=(n, 2)).astype(np.float32),
        VariableRows(np.full(int(texts.sum()), ord("x"), np.uint8), texts, np.zeros((n, 0), np.int32)),
        VariableRows(
            rng.integers(0, 255, int(lengths.sum()) * 4).astype(np.uint8),
            lengths * 4,
            np.stack([lengths, np.full(n, 2)], axis=1).astype(np.int32),
        ),
    ]


def some_slots(ids: np.ndarray, seed: int) -> ArrayBlock:
    rng = np.random.default_rng(seed)
    values = np.zeros(len(ids), image_dtype(2))
    values["key"] = rng.integers(0, 2**63, len(ids))
    values["priority"] = rng.random(len(ids))
    values["first"] = ids * 3
    values["state"] = 1
    return ArrayBlock(ids, values, np.array([[int(ids[0]), 0, 5, 2], [int(ids[0]), 0, 9, 1]]))


def write_checkpoint(directory: Directory, seed: int, *, n: int = 40, last: Manifest | None = None) -> Manifest:
    """Write a checkpoint of one table and one store; on `last`, as a change to some of its slots and rows."""
    after = max([directory.last_segment(), *(() if last is None else last.files)])
    draft = Draft(directory, directory.next_sequence(), after, segment_bytes=2048)
    try:
        ids = np.arange(n) if last is None else np.arange(0, n, 7)
        slots_file, nbytes = draft.add_slots("replay", some_slots(ids, seed))
        live: dict[int, int] = {}
        for rows in np.array_split(ids, 4):
            number = draft.add_rows(store_name(STORE), rows, some_rows(len(rows), seed))
            live[number] = live.get(number, 0) + len(rows)
        if last is not None:
            left = n - len(ids)
            for number, count in last.stores[0].rows.items():
                live[number] = min(count, left)
                left -= live[number]
        state_file = draft.add_state({"server": {"seed": seed}, "tables": {"replay": {"big": 2**100, "seed": seed}}})
        files = draft.finish_files()
        manifest = Manifest(
            sequence=draft.sequence,
            parent=0 if last is None else last.sequence,
            epoch="00" * 16,
            time=1e9,
            version="0",
            state_file=state_file,
            tables=(
                TableFacts(
                    name="replay",
                    definition={"max_size": n, "rate": float("inf")},
                    items=n,
                    slots=n,
                    files=(slots_file,) if last is None else (*last.tables[0].files, slots_file),
                    nbytes=(nbytes,) if last is None else (*last.tables[0].nbytes, nbytes),
                ),
            ),
            stores=(StoreFacts(STORE, n, {number: count for number, count in live.items() if count}),),
            files=files if last is None else {**last.files, **files},
        )
        draft.commit(manifest)
    except Exception:
        draft.abandon()
        raise
    return manifest


def contents(image: CheckpointOnDisk) -> tuple[object, ...]:
    """Return all that a checkpoint holds, to be compared."""
    table, store = image.tables["replay"], image.stores[0]
    slots = {}
    for block in table.blocks():
        slots.update(zip(block.ids.tolist(), block.values.tolist(), strict=True))
    rows: dict[int, list[object]] = {}
    for block in store.rows():
        columns = [
            [bytes(row) for row in column.split()] if isinstance(column, VariableRows) else column.tolist()
            for column in block.columns
        ]
        for at, row in enumerate(block.rows.tolist()):
            assert row not in rows
            rows[row] = [column[at] for column in columns]
    return image.state, table.state, slots, rows
