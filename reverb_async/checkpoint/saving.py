"""Writing one checkpoint while the server goes on."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reverb_async.checkpoint import upkeep
from reverb_async.checkpoint.content import read_slots
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.draft import Draft
from reverb_async.checkpoint.image import records_of_table
from reverb_async.checkpoint.jobs import Jobs, until_done
from reverb_async.checkpoint.manifest import Manifest, StoreFacts, TableFacts, store_name
from reverb_async.checkpoint.write_ahead import WriteAheadLog
from reverb_async.core.cut.image import ArrayBlock
from reverb_async.core.cut.store_cut import StoreCut
from reverb_async.core.cut.table_cut import TableCut
from reverb_async.core.slots import FREE
from reverb_async.core.storage import RowStore
from reverb_async.core.variable import VariableRows
from reverb_async.replay import Replay
from reverb_async.saving import ReplayCut

T = TypeVar("T")

BLOCK_SLOTS = 16_384
"""Slots that are copied in one turn of the event loop, which takes a millisecond."""

RECORD_BYTES = 4 << 20
"""Rows are written in records of about this size."""

_OF_FREE = ("version", "sampler", "remover")
"""What an image of a free slot has to say."""

_JOB_BYTES = 64 << 20
"""Rows that one job writes, variable columns aside."""


class Saver:
    """Writes what a replay holds as the next checkpoint of a directory.

    Args:
        replay: whose cut is written.
        directory: prepared; nobody else writes there.
        log: begins another file with each checkpoint; None: there is none.
        thread: runs one job at a time; all file operations happen there.

    Attributes:
        last: the checkpoint that the next one builds on; None: it is written whole.
        last_number: the highest number of a file of records so far.
        held: which slots of each table hold items in the last checkpoint; those that changed since may be wrong.
    """

    def __init__(
        self, replay: Replay, directory: Directory, thread: Executor, log: WriteAheadLog | None = None
    ) -> None:
        self._log = log
        self._replay = replay
        self._directory = directory
        self._thread = thread
        self.last: Manifest | None = None
        self.last_number = 0
        self.held: dict[str, NDArray[np.bool_]] = {}

    async def save(self, began: Callable[[], None]) -> Manifest:
        """Write a checkpoint of this moment; `began` is called in the step that makes the cut.

        Cancelling removes what was written.

        Raises:
            OSError: the disk does not take it; the checkpoint before is as it was.
            CheckpointError: what was written is not what is read back, or there is no number left.
        """
        last = self.last
        sequence = await self._do(self._directory.next_sequence)
        draft = Draft(self._directory, sequence, self.last_number)
        outgrown = () if last is None else [table.name for table in last.tables if upkeep.is_outgrown(table)]
        log_file = None if self._log is None else await self._do(self._log.prepare)
        began()
        written = time.time()
        if self._log is not None and log_file is not None:
            self._log.rotate(log_file)
        cut = self._replay.cut(full=last is None)
        for name in outgrown:
            if name in cut.tables:
                cut.tables[name].full = True
        manifest: Manifest | None = None
        try:
            tables = [await self._save_table(draft, name, table) for name, table in cut.tables.items()]
            stores = await self._save_stores(draft, cut.stores)
            state = {"server": cut.state, "tables": {name: table.state for name, table in cut.tables.items()}}
            state_file = await self._do(draft.add_state, state)
            files = await self._do(draft.finish_files)
            if last is not None:
                needed = {number for store in stores for number in store.rows}
                needed.update(number for table in tables for number in table.files)
                files |= {number: facts for number, facts in last.files.items() if number in needed}
            manifest = Manifest(
                sequence=sequence,
                parent=0 if last is None else last.sequence,
                epoch=self._replay.epoch.hex(),
                time=written,
                version=_version(),
                state_file=state_file,
                tables=tuple(tables),
                stores=tuple(stores),
                files=files,
                log_position=None if log_file is None else log_file.number,
            )
            if self._log is not None:
                await self._log.linked()
            await self._do(draft.commit, manifest)
            self.last = manifest
            if self._log is not None:
                self._log.committed()
        finally:
            self.last_number = draft.last_number
            is_committed = self.last is manifest is not None
            if not is_committed:
                await self._do(draft.abandon)
            await _finish(cut, is_committed)
        return manifest

    # -- tables -------------------------------------------------------------------------------------------------------

    async def _save_table(self, draft: Draft, name: str, cut: TableCut) -> TableFacts:
        before = None if self.last is None else next((t for t in self.last.tables if t.name == name), None)
        files: list[tuple[int, int]] = []
        if before is not None and not cut.full:
            files = list(zip(before.files, before.nbytes, strict=True))
        taken_over = upkeep.absorbed(before) if before is not None and files else 0
        written = _Written(self.held.get(name) if files else None)
        jobs = Jobs(self._thread)
        if taken_over:
            await jobs.add(self._copy_slots, draft, name, [number for number, _ in files[-taken_over:]], written)
            del files[-taken_over:]
        while (block := cut.next_block(BLOCK_SLOTS)) is not None:
            if len(block):
                await jobs.add(_write_slots, draft, name, block, written)
            else:
                await asyncio.sleep(0)
        await jobs.finish()
        held = self.held[name] = written.held[: written.end]
        if written.number or not files:
            # A table without items has an empty file for a base.
            files.append((written.number or await self._do(draft.items_file), written.nbytes))
        return TableFacts(
            name=name,
            definition=cut.state["definition"],
            items=int(np.count_nonzero(held)),
            slots=len(held),
            files=tuple(number for number, _ in files),
            nbytes=tuple(nbytes for _, nbytes in files),
        )

    def _copy_slots(self, draft: Draft, name: str, numbers: Sequence[int], written: _Written) -> None:
        assert self.last is not None
        for number in numbers:
            for record in records_of_table(self._directory, self.last, number, name):
                _write_slots(draft, name, read_slots(record), written)

    # -- rows ---------------------------------------------------------------------------------------------------------

    async def _save_stores(self, draft: Draft, cuts: Sequence[StoreCut]) -> list[StoreFacts]:
        """Write what is on no segment; return which files hold how many live rows of each store."""
        rewrite = set() if self.last is None else upkeep.to_be_rewritten(self.last)
        facts = []
        for cut in cuts:
            specs = tuple(spec.to_wire() for spec in cut.specs)
            cut.rewrite = rewrite
            facts.append(StoreFacts(specs, cut.num_rows, await self._save_rows(draft, store_name(specs), cut)))
        return facts

    async def _save_rows(self, draft: Draft, store: str, cut: StoreCut) -> dict[int, int]:
        live: dict[int, int] = {}
        jobs = Jobs(self._thread)

        def note(jobs_done: Iterable[list[tuple[NDArray[np.int64], int]]]) -> None:
            for rows, segment in itertools.chain.from_iterable(jobs_done):
                cut.done(rows, segment)
                live[segment] = live.get(segment, 0) + len(rows)

        most = max(1, _JOB_BYTES // max(1, cut.store.row_bytes))
        while (block := cut.next_rows()) is not None:
            segments, counts = np.unique(block.segments[block.segments > 0], return_counts=True)
            for segment, count in zip(segments.tolist(), counts.tolist(), strict=True):
                live[segment] = live.get(segment, 0) + count
            unsaved = block.unsaved
            for start in range(0, len(unsaved), most):
                part = unsaved[start : start + most]
                note(await jobs.add(_write_rows, draft, store, cut.store, part))
            await asyncio.sleep(0)
        note(await jobs.finish())
        return live

    async def _do(self, work: Callable[..., T], *args: Any) -> T:
        """Run a job in the thread; return when it has ended, also when cancelled."""
        return await until_done(self._thread.submit(work, *args))


async def _finish(cut: ReplayCut, is_committed: bool) -> None:
    """End a cut; at once if cancelled, for there is no other before it has ended."""
    try:
        while cut.finish(is_committed):  # noqa: ASYNC110 - it is the work that is done here
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        while cut.finish(is_committed):
            pass
        raise


def _version() -> str:
    """Return this package's version, as far as it is known: one that was never installed has none."""
    try:
        return version("reverb_async")
    except PackageNotFoundError:
        return "unknown"


class _Written:
    """What was written of one table.

    Attributes:
        held: which slots hold items, as far as is known; there may be room for more.
        end: all slots that were written are below this one.
        number: of the file; 0: nothing was written.
        nbytes: how many bytes of it.
    """

    def __init__(self, held: NDArray[np.bool_] | None) -> None:
        self.held = np.zeros(0, np.bool_) if held is None else held
        self.end = len(self.held)
        self.number = 0
        self.nbytes = 0

    def note(self, block: ArrayBlock, number: int, nbytes: int) -> None:
        """Note a block that was written."""
        self.number = number
        self.nbytes += nbytes
        self.end = max(self.end, int(block.ids.max(initial=-1)) + 1)
        if self.end > len(self.held):
            grown = np.zeros(max(self.end, 2 * len(self.held)), np.bool_)
            grown[: len(self.held)] = self.held
            self.held = grown
        self.held[block.ids] = block.values["state"] != FREE


def _write_slots(draft: Draft, name: str, block: ArrayBlock, written: _Written) -> None:
    """Write images of slots; of free ones only what may count, which takes next to no room."""
    is_free = block.values["state"] == FREE
    num_free = int(np.count_nonzero(is_free))
    if num_free:
        free = np.zeros(num_free, block.values.dtype)
        for field in _OF_FREE:
            free[field] = block.values[field][is_free]
        freed = ArrayBlock(block.ids[is_free], free, block.more[:0])
        written.note(freed, *draft.add_slots(name, freed))
        block = ArrayBlock(block.ids[~is_free], block.values[~is_free], block.more)
    if len(block):
        written.note(block, *draft.add_slots(name, block))


def _write_rows(
    draft: Draft, name: str, store: RowStore, rows: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], int]]:
    """Write pinned rows in records of a few megabytes; return which rows are in which file."""
    written = []
    # Before which row a record is full.
    ends = np.cumsum(store.bytes_of(rows) if store.is_variable else np.full(len(rows), store.row_bytes))
    start = 0
    while start < len(rows):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + RECORD_BYTES, side="right")))
        part = rows[start:stop]
        columns: list[NDArray[Any] | VariableRows] = [
            store.gather_variable(column, part) if spec.is_variable else store.gather(column, part)
            for column, spec in enumerate(store.specs)
        ]
        written.append((part, draft.add_rows(name, part, columns)))
        start = stop
    return written
