"""All that one server holds: tables, the stores behind them, writers' sessions."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from reverb_async.alarms import Alarms
from reverb_async.capture import Capture, Log
from reverb_async.core.cut.plain import layout_from_plain
from reverb_async.core.cut.table_restore import restore_items
from reverb_async.core.encoded import DamagedChunks, EncodedItems
from reverb_async.core.episodes import EpisodeRanges
from reverb_async.core.item import Layouts
from reverb_async.core.storage import RowStore, Storage
from reverb_async.core.storage.restoring import RestoringStore
from reverb_async.core.table_state import TableState
from reverb_async.errors import InvalidArgument, TableNotFound
from reverb_async.limits import Limits
from reverb_async.logs import Repeats
from reverb_async.protocol.hello import KEYS_PER_BLOCK
from reverb_async.saving import ReplayCut, ReplayImage
from reverb_async.sessions import Sessions, read_sessions
from reverb_async.table import Memory, Table

logger = logging.getLogger("reverb_async")

_BLOCKS = 1 << 32
_SKIPPED_BLOCKS = 1 << 16
"""Blocks that may have been granted after a checkpoint: their keys may still be in clients' hands."""
_SPREAD_BLOCKS = 1 << 24
"""Of two servers restored from one checkpoint neither knows what the other granted: each begins somewhere in these."""


class Replay:
    """The tables of one server, by name, and what they share.

    Args:
        tables: at least one.
        limits: bounds of all that is held; none on bytes unless given.

    Raises:
        InvalidArgument: no tables, or two of the same name.
    """

    def __init__(self, tables: Sequence[Table], limits: Limits | None = None) -> None:
        if isinstance(tables, Table):
            raise InvalidArgument("tables is a list: put the table into one, Server([table])")
        if not tables:
            raise InvalidArgument("a server needs at least one table, such as Table('replay', max_size=1_000_000)")
        self.tables: dict[str, Table] = {}
        for table in tables:
            if not isinstance(table, Table):
                raise InvalidArgument(f"tables must be reverb_async.Table objects, got {table!r:.60}")
            if table.name in self.tables:
                raise InvalidArgument(f"two tables are named {table.name!r}: names must be distinct")
            self.tables[table.name] = table
        self.limits = limits or Limits()
        self.alarms = Alarms()
        self.memory = Memory(self.limits, self.alarms)
        self.storage = Storage(account=self.memory)
        self.layouts = Layouts()
        self.encoded = EncodedItems(self.storage, None, self.limits.cached_bytes * 4 // 5, lock=threading.Lock())
        self.sessions = Sessions()
        self.episodes = EpisodeRanges()
        self.epoch = secrets.token_bytes(16)
        """New with every start, so that clients notice a server that came back empty."""
        # Random, so that keys which survive a restart in a client's hands do not name other items afterwards.
        self._next_block = secrets.randbelow(_BLOCKS)
        self._num_writers = 0
        self._repeats = Repeats(logger)
        self._cut: ReplayCut | None = None
        self.capture: Capture | None = None
        self.log: Log | None = None
        """What must have a change before it is acknowledged, if anything must; see `logged`."""

    async def logged(self) -> None:
        """Return when what has changed so far may be acknowledged: at once, unless there is a log.

        Raises:
            ReplayError: the log cannot be written; nothing may be acknowledged.
        """
        if self.log is not None:
            await self.log.durable()

    def table(self, name: str) -> Table:
        """Return a table; raises `TableNotFound`, which lists the names there are."""
        try:
            return self.tables[name]
        except KeyError:
            raise TableNotFound(name, self.tables) from None

    def remove_damaged(self, damage: DamagedChunks) -> None:
        """Remove the items of all tables that show chunks which cannot be decoded.

        Raises:
            TableClosed: the server is stopping.
        """
        for table in self.tables.values():
            keys = self.encoded.keys_showing(table.state.slots, damage)
            if len(keys) and table.refusal is None:
                table.mutate(keys[:0], np.zeros(0), keys)
                self.encoded.damaged += len(keys)
                self._repeats.warning(f"table {table.name!r}: removed {len(keys)} items: {damage}")

    def grant_keys(self) -> int:
        """Return the first of `KEYS_PER_BLOCK` keys that are granted to nobody else."""
        block = self._next_block
        self._next_block = (block + 1) % _BLOCKS
        return block * KEYS_PER_BLOCK

    def counters(self) -> dict[str, int]:
        """Return what the server counts besides what its tables do."""
        return {
            "next_block": self._next_block,
            "next_episode": self.episodes.next,
            "num_sessions": self.sessions.number,
            **self.encoded.counters(),
        }

    def count_writers(self, change: int) -> None:
        """Note that insert streams opened (1) or ended (-1); tables name the number in their messages."""
        self._num_writers += change
        self.memory.num_writers = self._num_writers
        for table in self.tables.values():
            table.num_writers = self._num_writers

    def cut(self, *, full: bool) -> ReplayCut:
        """Return what everything holds now, to be saved in slices: one short step, whatever the tables hold.

        From the first cut on tables and stores note what changes; a cut must be finished before the next one.

        Args:
            full: tables give all items, not only those that changed since the last committed cut.
        """
        assert self._cut is None or self._cut.is_finished, "the last cut is not finished"
        self.storage.watch()
        numbers: dict[RowStore, int] = {}
        for table in self.tables.values():
            for store in table.state.slots.stores():
                numbers.setdefault(store, len(numbers))
        counters = {
            "epoch": self.epoch.hex(),
            "next_block": self._next_block,
            "next_episode": self.episodes.next,
            "encoded": self.encoded.counters(),
        }
        sessions = self.sessions.snapshot()
        tables = {
            name: table.state.cut(full=full, stores=numbers, definition=table.definition)
            for name, table in self.tables.items()
        }
        stores = [store.cut() for store in numbers]
        self._cut = ReplayCut(lambda: {**counters, "sessions": sessions.describe()}, tables, stores)
        return self._cut

    def restore(self, image: ReplayImage, into: Mapping[str, str] | None = None, *, resume: bool = True) -> None:
        """Fill the tables, to which nothing has happened yet, with what was saved.

        Draws that were not acknowledged are handed back. Where a table's definition differs from the saved one, its
        own holds: items it has no room for leave as its remover decides, and an order that nobody kept is that of the
        items' age. Its random draws go on as they would have if its seed is the saved one.

        Args:
            image: what was saved.
            into: for each table to be filled, the name of the saved one; by default all that have the same name.
            resume: the next cut may build on the image.

        Raises:
            InvalidArgument: the image contradicts itself, or names a table that is not there; nothing was changed.
            ResourceExhausted: there is no room; nothing was changed.
        """
        if into is None:
            into = {name: name for name in self.tables if name in image.tables}
        for name, saved in into.items():
            self.table(name)
            if saved not in image.tables:
                raise TableNotFound(saved, image.tables)
        if resume:
            self.storage.watch()
        restoring: list[RestoringStore] = []
        try:
            counters = {name: int(image.state[name]) for name in ("next_block", "next_episode")}
            encoded = {name: int(count) for name, count in image.state["encoded"].items()}
            sessions = read_sessions(image.state["sessions"])
            states = self._restored(image, into, restoring)
        except BaseException as error:
            for store in restoring:
                store.abandon()
            if isinstance(error, KeyError | TypeError | ValueError) and not isinstance(error, InvalidArgument):
                raise InvalidArgument(f"what was saved is not whole: {error!r}") from error
            raise
        for store in restoring:
            store.finish()
        for name, state in states.items():
            if self.capture is not None:
                self.capture.attach(name, state)
            source = image.tables[into[name]]
            self.tables[name].adopt(state, source.state["definition"], resume=resume, unsaved=source.unsaved)
        self.sessions.adopt(sessions)
        self.encoded.resume(encoded)
        self.episodes.next = counters["next_episode"]
        skipped = _SKIPPED_BLOCKS + secrets.randbelow(_SPREAD_BLOCKS)
        self._next_block = (counters["next_block"] + skipped) % _BLOCKS

    def _restored(
        self, image: ReplayImage, into: Mapping[str, str], restoring: list[RestoringStore]
    ) -> dict[str, TableState]:
        """Return the states of the tables to be filled, and append the stores they need, with all rows, to a list."""
        restoring.extend(RestoringStore(self.storage.group(saved.specs), saved.num_rows) for saved in image.stores)
        stores = [each.store for each in restoring]
        if len(set(stores)) < len(stores):
            raise InvalidArgument("two of the saved stores are of one kind")
        by_store = dict(zip(stores, restoring, strict=True))
        states = {}
        for name, source in into.items():
            table, saved_table = self.tables[name], image.tables[source]
            layouts = [
                None if plain is None else layout_from_plain(plain, stores, self.layouts, self.encoded)
                for plain in saved_table.state["layouts"]
            ]
            states[name] = table.new_state()
            same_seed = saved_table.state["definition"]["seed"] == table.definition["seed"]
            restore_items(states[name], saved_table, layouts, by_store, same_generator=same_seed)
        for saved, store in zip(image.stores, restoring, strict=True):
            for block in saved.rows():
                store.fill(block.rows, block.columns, block.segment)
            store.check()
        return states

    def open(self) -> None:
        """Admit calls to all tables, or, if one of them belongs to another server (`InvalidArgument`), to none."""
        opened: list[Table] = []
        try:
            for table in self.tables.values():
                table.open()
                opened.append(table)
        except InvalidArgument:
            for table in opened:
                table.close()
            raise
        self.memory.open(opened)
        for table in opened:
            table.state.count_in(self.memory)

    def add(self, table: Table) -> None:
        """Serve one more table, of a name there is none of; after `open`.

        Raises:
            InvalidArgument: it belongs to another server.
        """
        assert table.name not in self.tables
        table.open()
        self.tables[table.name] = table
        self.memory.add_table(table)
        table.state.count_in(self.memory)

    def end_waits(self) -> None:
        """End every wait, now and from now on; what need not wait goes on until `close`."""
        for table in self.tables.values():
            table.end_waits()

    def close(self) -> None:
        """End every wait and refuse everything."""
        for table in self.tables.values():
            table.close()
        self.memory.close()
