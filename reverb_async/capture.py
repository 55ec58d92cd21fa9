"""What has changed in a `Replay` since a log was last told: all tables, rows and sessions in one order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.cut.plain import layout_to_plain
from reverb_async.core.cut.table_log import TableChanges, TableLog
from reverb_async.core.runs import Rows, as_run
from reverb_async.core.storage import RowStore
from reverb_async.core.variable import VariableRows

if TYPE_CHECKING:
    from reverb_async.core.table_state import TableState
    from reverb_async.replay import Replay


class Log(Protocol):
    """Where changes are written before they are acknowledged."""

    async def durable(self) -> None:
        """Write what has changed, and return when it may be acknowledged. Cancelling harms nobody.

        Raises:
            ReplayError: it cannot be written; nothing may be acknowledged.
        """


@dataclass(slots=True)
class Changes:
    """Everything that has changed between two moments at which no step was under way.

    Attributes:
        tables: by name.
        layouts: by table, those of `TableChanges.layouts` as plain values that name stores by number.
        stores: numbers and specs, in wire form, of stores that were not named before.
        rows: by the number of their store: rows that new items show, and their columns.
        sessions: ``[identity, number, seq, count, error or None]`` of items that were settled.
        server: counters.
    """

    tables: dict[str, TableChanges]
    layouts: dict[str, list[Any]]
    stores: list[tuple[int, list[Any]]]
    rows: list[tuple[int, Rows, list[NDArray[np.generic] | VariableRows]]]
    sessions: list[list[Any]]
    server: dict[str, int]


class Capture:
    """Notes what changes in a replay; nothing is missed from the moment on at which it is made.

    Args:
        replay: whose tables hold what is known already.
        due: called when there is something to take, within the step that changes it.
    """

    def __init__(self, replay: Replay, due: Callable[[], object]) -> None:
        self._replay = replay
        self._due = due
        self._tables: dict[str, TableLog] = {}
        self._sessions: list[list[Any]] = []
        self._number = 1
        self._stores: WeakKeyDictionary[RowStore, int] = WeakKeyDictionary()
        self._num_stores = 0
        self._new_stores: list[tuple[int, list[Any]]] = []
        replay.capture = self
        replay.storage.watch()
        replay.sessions.record(self._sessions)

    def attach(self, name: str, state: TableState) -> None:
        """Note the changes of a table's state, which is about to be watched."""
        self._tables[name] = state.log = TableLog(state, self._due)

    def attach_all(self) -> None:
        """Note the changes of all tables."""
        for name, table in self._replay.tables.items():
            if table.state.log is None:
                self.attach(name, table.state)
                table.state.watch()

    def __bool__(self) -> bool:
        """Whether anything has changed."""
        return bool(self._sessions) or any(self._tables.values())

    def begin_file(self) -> None:
        """Repeat, from now on, what another file of the log has told: names of stores, layouts, and rows."""
        self._number += 1
        self._stores.clear()
        self._new_stores.clear()
        self._num_stores = 0
        for table in self._tables.values():
            table.forget_layouts()

    def forget(self) -> None:
        """Let go of what has changed: something else knows it."""
        for table in self._tables.values():
            table.forget_changes()
        self._sessions.clear()

    def take(self) -> Changes:
        """Return what has changed since the last time; the columns of rows may be views of what is stored."""
        changed = {name: table for name, table in self._tables.items() if table or table.is_behind}
        rows = []
        for table in changed.values():
            for store, numbers in table.new_rows():
                assert store.watch is not None, "storage is watched"
                fresh = store.watch.take_unlogged(numbers, self._number)
                if len(fresh):
                    rows.append((self._number_of(store), fresh, _columns(store, fresh)))
        tables = {name: table.take() for name, table in changed.items()}
        layouts = {name: self._plain(changes) for name, changes in tables.items() if changes.layouts is not None}
        sessions = list(self._sessions)
        self._sessions.clear()
        stores, self._new_stores = self._new_stores, []
        return Changes(tables, layouts, stores, rows, sessions, self._replay.counters())

    def _plain(self, changes: TableChanges) -> list[Any]:
        assert changes.layouts is not None
        for layout in changes.layouts:
            for store in () if layout is None else layout.stores:
                self._number_of(store)
        return [None if layout is None else layout_to_plain(layout, self._stores) for layout in changes.layouts]

    def _number_of(self, store: RowStore) -> int:
        number = self._stores.get(store)
        if number is None:
            number = self._stores[store] = self._num_stores
            self._num_stores += 1
            self._new_stores.append((number, [spec.to_wire() for spec in store.specs]))
        return number


def _columns(store: RowStore, rows: Rows) -> list[NDArray[np.generic] | VariableRows]:
    at = as_run(rows) or rows
    columns: list[NDArray[np.generic] | VariableRows] = []
    for column, spec in enumerate(store.specs):
        if spec.is_variable:
            columns.append(store.gather_variable(column, rows))
        else:
            columns.append(store.columns[column][at])
    return columns
