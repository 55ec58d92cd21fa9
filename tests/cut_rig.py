"""Checkpoints in memory: what a disk would hold of cuts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.cut.image import ArrayBlock, RowValues
from reverb_async.core.cut.store_cut import StoreCut
from reverb_async.core.spec import ArraySpec
from reverb_async.replay import Replay
from reverb_async.saving import ReplayCut


class MemoryTable:
    """A table's image: its newest full cut and those after it."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.saved: list[ArrayBlock] = []
        self.unsaved = np.zeros(0, np.int64)

    def blocks(self) -> Iterable[ArrayBlock]:
        return list(self.saved)


class MemoryStore:
    """A store's image: which rows were live, and the segments they are on."""

    def __init__(self, specs: tuple[ArraySpec, ...], num_rows: int, segments: dict[int, dict[Any, list[Any]]]) -> None:
        self.specs = tuple(ArraySpec.from_wire(json.loads(json.dumps(spec.to_wire()))) for spec in specs)
        self.num_rows = num_rows
        self.live: dict[int, int] = {}
        self._segments = segments

    def rows(self) -> Iterator[RowValues]:
        for segment in sorted(set(self.live.values())):
            rows = [row for row, of in self.live.items() if of == segment]
            values = [self._segments[segment][self.specs, row] for row in rows]
            columns = [_joined([row[at] for row in values]) for at in range(len(self.specs))]
            yield RowValues(np.array(rows, np.int64), columns, segment)


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return type(parts[0])(
        np.concatenate([part.data for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.shapes for part in parts]),
    )


class Image:
    """What was committed last."""

    def __init__(self, state: dict[str, Any], tables: dict[str, MemoryTable], stores: list[MemoryStore]) -> None:
        self.state = state
        self.tables = tables
        self.stores = stores


class Saving:
    """One checkpoint being written, a step at a time, from all tables and stores in turn."""

    def __init__(self, disk: Disk, cut: ReplayCut, block: int) -> None:
        self.disk = disk
        self.cut = cut
        self.block = block
        self.written = 0
        self.blocks: dict[str, list[ArrayBlock]] = {name: [] for name in cut.tables}
        self.stores = [MemoryStore(store.specs, store.num_rows, disk.segments) for store in cut.stores]
        self.segment = disk.next_segment()
        self._todo = self._steps()
        self._unwritten: list[tuple[StoreCut, NDArray[np.int64]]] = []

    def step(self) -> bool:
        """Read or write a bit; return whether there is more."""
        return next(self._todo, None) is not None

    def _steps(self) -> Iterator[bool]:
        todo = [self._of_table(name) for name in self.cut.tables] + [
            self._of_store(at) for at in range(len(self.stores))
        ]
        while todo:
            for part in list(todo):
                if next(part, None) is None:
                    todo.remove(part)
                yield True

    def _of_table(self, name: str) -> Iterator[bool]:
        while (block := self.cut.tables[name].next_block(self.block)) is not None:
            self.blocks[name].append(block)
            self.written += block.values.nbytes
            yield True

    def _of_store(self, at: int) -> Iterator[bool]:
        store, saved = self.cut.stores[at], self.stores[at]
        while (block := store.next_rows(8 * self.block)) is not None:
            segments = np.where(block.segments == 0, self.segment, block.segments)
            saved.live.update(zip(block.rows.tolist(), segments.tolist(), strict=True))
            yield True  # the thread has not written yet
            unsaved = block.unsaved
            for part in (unsaved[: len(unsaved) // 2], unsaved[len(unsaved) // 2 :]):
                if len(part):
                    self._write(store, part)
                    yield True

    def _write(self, store: StoreCut, rows: NDArray[np.int64]) -> None:
        held = self.disk.segments.setdefault(self.segment, {})
        for row in rows.tolist():
            one = np.array([row])
            held[store.specs, row] = [
                store.store.gather_variable(at, one) if spec.is_variable else store.store.gather(at, one)
                for at, spec in enumerate(store.specs)
            ]
            self.written += store.store.row_bytes
        store.done(rows, self.segment)

    def finish(self, committed: bool) -> None:
        """Write the rest and commit, or give up where it stands."""
        if committed:
            while self.step():
                pass
            self.disk.commit(self)
        while self.cut.finish(committed):
            pass


class Disk:
    """Checkpoints of a `Replay`; `image` is the last that was committed.

    Args:
        replay: whose.
        base: what it was restored from; nothing changes there.
    """

    def __init__(self, replay: Replay, base: Disk | None = None) -> None:
        self.replay = replay
        self.segments: dict[int, dict[Any, list[Any]]] = {}
        self.image: Image | None = None
        self._segment = 0
        if base is not None:
            self.image, self._segment = base.image, base._segment
            self.segments = {number: dict(held) for number, held in base.segments.items()}

    def next_segment(self) -> int:
        self._segment += 1
        return self._segment

    def begin(self, *, full: bool = False, block: int = 3) -> Saving:
        return Saving(self, self.replay.cut(full=full), block)

    def save(self, *, full: bool = False, block: int = 3) -> int:
        """Write a checkpoint; return its bytes."""
        saving = self.begin(full=full, block=block)
        saving.finish(True)
        return saving.written

    def commit(self, saving: Saving) -> None:
        tables = {}
        for name, cut in saving.cut.tables.items():
            table = tables[name] = MemoryTable()
            if not cut.full:
                assert self.image is not None
                table.saved = list(self.image.tables[name].saved)
            table.saved += saving.blocks[name]
            table.state = json.loads(json.dumps(cut.state, allow_nan=False))
        self.image = Image(json.loads(json.dumps(saving.cut.state, allow_nan=False)), tables, saving.stores)
