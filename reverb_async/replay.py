"""All that one server holds: tables, the stores behind them, writers' sessions."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence

import numpy as np

from reverb_async.alarms import Alarms
from reverb_async.core.encoded import DamagedChunks, EncodedItems
from reverb_async.core.item import Layouts
from reverb_async.core.storage import Storage
from reverb_async.errors import InvalidArgument, TableNotFound
from reverb_async.limits import Limits
from reverb_async.protocol.hello import KEYS_PER_BLOCK
from reverb_async.sessions import Sessions
from reverb_async.table import Memory, Table

logger = logging.getLogger("reverb_async")

_BLOCKS = 1 << 32


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
        self.epoch = secrets.token_bytes(16)
        """New with every start, so that clients notice a server that came back empty."""
        # Random, so that keys which survive a restart in a client's hands do not name other items afterwards.
        self._next_block = secrets.randbelow(_BLOCKS)
        self._num_writers = 0

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
            if len(keys):
                table.mutate(keys[:0], np.zeros(0), keys)
                self.encoded.damaged += len(keys)
                logger.warning("table %r: removed %d items: %s", table.name, len(keys), damage)

    def grant_keys(self) -> int:
        """Return the first of `KEYS_PER_BLOCK` keys that are granted to nobody else."""
        block = self._next_block
        self._next_block = (block + 1) % _BLOCKS
        return block * KEYS_PER_BLOCK

    def count_writers(self, change: int) -> None:
        """Note that insert streams opened (1) or ended (-1); tables name the number in their messages."""
        self._num_writers += change
        self.memory.num_writers = self._num_writers
        for table in self.tables.values():
            table.num_writers = self._num_writers

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

    def close(self) -> None:
        """End every wait."""
        for table in self.tables.values():
            table.close()
        self.memory.close()
