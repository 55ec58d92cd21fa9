"""Where the rows of all insert streams enter their tables: what arrives in one turn of the loop goes in in one step."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from reverb_async.core.item import ItemBlock, ItemLayout
from reverb_async.core.runs import Rows, Runs
from reverb_async.core.spec import check_values
from reverb_async.core.storage import RowCursor, RowStore
from reverb_async.errors import ReplayError
from reverb_async.protocol.rows import RecordFormat, RowBlock
from reverb_async.replay import Replay
from reverb_async.table import Table, insert_now

MAX_STEP_BYTES = 4 << 20
MAX_STEP_ROWS = 32_768
"""A step takes no further message once it has so much to work off."""


class Sender(Protocol):
    """The stream that rows came on."""

    def acknowledge(self, seq: int, count: int) -> None:
        """Note, in the step that inserted them, that items are in."""

    def refuse(self, seq: int, count: int, error: ReplayError) -> None:
        """Note that items never will be in."""

    def insert(self, tables: Sequence[Table], blocks: Sequence[ItemBlock], seq: int, timeout: float | None) -> None:
        """Insert the items that the tables accept and admit; keeps, with a hold on their rows, those that must wait."""


@dataclass(slots=True)
class Arrival:
    """A `RowBlock` of a sender, checked as far as that needs no table."""

    sender: Sender
    layout: ItemLayout
    format: RecordFormat
    block: RowBlock


class RowIntake:
    """Stores rows and inserts them, in the order in which they arrived, those of many streams together.

    While rows arrive one by one each is inserted at once; when more than one message came in a turn of the event loop,
    those of the next turn are worked off together at its end.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._queue: deque[tuple[list[Arrival], asyncio.Future[None]]] = deque()
        self._messages = 0
        self._is_turn_open = False
        self._is_busy = False
        self._cursors: dict[RowStore, RowCursor] = {}
        self._users: dict[RowStore, int] = {}

    def open(self, store: RowStore) -> None:
        """Note that a stream is going to send rows for a store."""
        self._users[store] = self._users.get(store, 0) + 1
        if store not in self._cursors:
            self._cursors[store] = RowCursor(store)

    def close(self, store: RowStore) -> None:
        """Note that it will not any more."""
        self._users[store] -= 1
        if not self._users[store]:
            del self._users[store]
            self._cursors.pop(store).close()

    def add(self, arrivals: list[Arrival]) -> asyncio.Future[None] | None:
        """Insert a message's rows.

        Returns:
            What is done when that has happened, None if it has. If it is cancelled before, nothing is inserted.
        """
        loop = asyncio.get_running_loop()
        self._messages += 1
        if not self._is_turn_open:
            self._is_turn_open = True
            loop.call_soon(self._end_turn)
        if not self._is_busy and self._messages == 1 and not self._queue:
            self.insert(arrivals)
            return None
        done = loop.create_future()
        self._queue.append((arrivals, done))
        return done

    def _end_turn(self) -> None:
        self._is_busy = self._messages > 1
        self._messages = 0
        work: list[Arrival] = []
        finished: list[asyncio.Future[None]] = []
        rows = nbytes = 0
        while self._queue and rows < MAX_STEP_ROWS and nbytes < MAX_STEP_BYTES:
            arrivals, done = self._queue.popleft()
            if not done.done():
                work += arrivals
                finished.append(done)
                rows += sum(arrival.block.count for arrival in arrivals)
                nbytes += sum(arrival.block.records.nbytes for arrival in arrivals)
        self._is_turn_open = bool(self._queue)
        if self._queue:
            asyncio.get_running_loop().call_soon(self._end_turn)
        try:
            self.insert(work)
        except BaseException as error:
            for done in finished:
                done.set_exception(error)  # Streams that would never be answered end instead.
            raise
        for done in finished:
            done.set_result(None)

    def insert(self, arrivals: list[Arrival]) -> None:
        """Insert rows now, as far as the tables admit them; see `Sender` for what becomes of each."""
        if len(arrivals) == 1:
            self._enter(arrivals)
        else:
            for alike in _grouped(arrivals):
                self._enter(alike)

    def _enter(self, alike: list[Arrival]) -> None:
        """Insert rows of one layout for the same tables."""
        first = alike[0]
        try:
            tables = [self._replay.table(name) for name in first.block.tables]
            rows, blocks = self._store(alike)
        except ReplayError as error:
            if len(alike) == 1:
                first.sender.refuse(first.block.seq, first.block.count, error)
            else:  # Whose fault is it?
                for arrival in alike:
                    self._enter([arrival])
            return
        try:
            if insert_now(tables, blocks):
                for arrival in alike:
                    arrival.sender.acknowledge(arrival.block.seq, arrival.block.count)
            else:
                start = 0
                for arrival in alike:
                    stop = start + arrival.block.count
                    parts = [block.part(start, stop) for block in blocks]
                    arrival.sender.insert(tables, parts, arrival.block.seq, arrival.block.timeout)
                    start = stop
        finally:
            first.layout.stores[0].unpin(rows)

    def _store(self, alike: list[Arrival]) -> tuple[Rows, list[ItemBlock]]:
        """Write rows, which stay pinned, and return them with a block of items per table.

        Raises:
            InvalidArgument: bytes that are no values of their column.
            ResourceExhausted: the store is full.
        """
        layout, form = alike[0].layout, alike[0].format
        data = alike[0].block.records
        records = np.frombuffer(
            data if len(alike) == 1 else b"".join([arrival.block.records.data for arrival in alike]), form.dtype
        )
        for name in form.unsafe:
            check_values(records[name], f"column {name} of a row")
        count = len(records)
        store = layout.stores[0]
        rows = self._cursors[store].take(count)
        store.write_all(rows, [records[name] for name in form.columns])
        keys, priorities = records["key"], records["priority"]
        nbytes = np.empty(count, np.int64)
        nbytes.fill(store.row_bytes)
        views = (Runs.of_rows(rows),)
        return rows, [
            ItemBlock(layout, keys[:, table].copy(), priorities[:, table].copy(), views, nbytes)
            for table in range(keys.shape[1])
        ]


def _grouped(arrivals: Iterable[Arrival]) -> list[list[Arrival]]:
    """Put arrivals together that can enter in one step; the order of the rows of each table stays as it is."""
    groups: list[list[Arrival]] = []
    alike: dict[object, list[Arrival]] = {}
    latest: dict[str, list[Arrival]] = {}
    for arrival in arrivals:
        tables = arrival.block.tables
        group = alike.get((arrival.layout, tables))
        if group is None or any(latest[table] is not group for table in tables):
            group = alike[arrival.layout, tables] = []
            groups.append(group)
            for table in tables:
                latest[table] = group
        group.append(arrival)
    return groups
