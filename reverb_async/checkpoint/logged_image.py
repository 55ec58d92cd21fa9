"""A checkpoint and the log that follows it, as something to restore from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.frames import Frame, TableFrame
from reverb_async.checkpoint.image import CheckpointOnDisk, StoreOnDisk, TableOnDisk
from reverb_async.checkpoint.log_file import Position
from reverb_async.checkpoint.log_reading import LogOnDisk, read_frames
from reverb_async.core.cut.image import ArrayBlock, RowValues
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows
from reverb_async.sessions import Sessions, read_sessions


class LoggedTable:
    """A table of a checkpoint, and how it changed; see `core.cut.image.TableImage`."""

    def __init__(self, saved: TableOnDisk, read: Callable[[list[Position]], Iterator[Frame]]) -> None:
        self._saved = saved
        self._read = read
        self._name = saved.facts.name
        self._places: list[Position] = []
        self._changed: list[NDArray[np.int64]] = []
        self._is_reset = False
        self.facts = saved.facts
        self.state: dict[str, Any] = dict(saved.state)

    @property
    def unsaved(self) -> NDArray[np.int64] | None:
        """The slots that the log has; None: all."""
        if self._is_reset:
            return None
        return np.unique(np.concatenate(self._changed)) if self._changed else np.zeros(0, np.int64)

    def add(self, place: Position, changes: TableFrame) -> None:
        """Note a frame that has changes of the table."""
        if changes.is_reset:
            self._is_reset = True
            self._places, self._changed = [], []
        self._places.append(place)
        self._changed += [changes.block.ids.copy(), changes.freed.ids.copy()]
        self.state |= changes.counters
        self.facts = replace(self.facts, items=int(self.state["size"]))

    def blocks(self) -> Iterator[ArrayBlock]:
        """Yield images of slots; of a slot the last counts."""
        if not self._is_reset:
            yield from self._saved.blocks()
        for frame in self._read(self._places):
            changes = frame.tables[self._name]
            yield changes.freed
            yield changes.block


class LoggedStore:
    """A store of a checkpoint, or one that is younger, and what was added; see `core.cut.image.StoreImage`."""

    def __init__(
        self,
        specs: Sequence[ArraySpec],
        saved: StoreOnDisk | None,
        read: Callable[[list[Position]], Iterator[Frame]],
    ) -> None:
        self.specs = tuple(specs)
        self.num_rows = 0 if saved is None else saved.num_rows
        self._saved = saved
        self._read = read
        self._places: list[tuple[Position, int]] = []

    def add(self, place: Position, number: int, values: RowValues) -> None:
        """Note rows of a frame, whose file calls the store by this number."""
        if not self._places or self._places[-1] != (place, number):
            self._places.append((place, number))
        self.num_rows = max(self.num_rows, int(values.rows.max()) + 1)

    def rows(self) -> Iterator[RowValues]:
        """Yield rows, each once: of a row that was used several times, the newest values."""
        seen = np.zeros(self.num_rows, np.bool_)
        newest_first = self._places[::-1]
        frames = self._read([place for place, _ in newest_first])
        for (_, number), frame in zip(newest_first, frames, strict=True):
            for store, values in reversed(frame.rows):
                if store == number:
                    yield from _unseen(values, seen)
        if self._saved is not None:
            for values in self._saved.rows():
                yield from _unseen(values, seen)


def _unseen(values: RowValues, seen: NDArray[np.bool_]) -> Iterator[RowValues]:
    fresh = np.flatnonzero(~seen[values.rows])
    seen[values.rows] = True
    if len(fresh) == len(values.rows):
        yield values
    elif len(fresh):
        columns = [
            column.take(fresh) if isinstance(column, VariableRows) else column[fresh] for column in values.columns
        ]
        yield RowValues(values.rows[fresh], columns, values.segment)


class LoggedImage:
    """What a checkpoint holds and the log has added; see `saving.ReplayImage`.

    Args:
        directory: where both are.
        saved: the checkpoint.
        log: which frames follow it; each is given to `add`, then `finish` is called.

    Attributes:
        state: the server's.
        tables: by name.
        stores: in the order in which layouts name them.
    """

    def __init__(self, directory: Directory, saved: CheckpointOnDisk, log: LogOnDisk) -> None:
        self._directory = directory
        self._log = log
        self.tables = {name: LoggedTable(table, self._read) for name, table in saved.tables.items()}
        self.stores = [LoggedStore(store.specs, store, self._read) for store in saved.stores]
        self._numbers = {store.specs: number for number, store in enumerate(self.stores)}
        self.state: dict[str, Any] = dict(saved.state)
        self._sessions = Sessions()
        self._sessions.adopt(read_sessions(saved.state["sessions"]))

    def add(self, place: Position, frame: Frame) -> None:
        """Take down what a frame adds.

        Raises:
            LookupError: it does not fit to what was before.
        """
        specs = self._log.specs[place[0]]
        for number, values in frame.rows:
            self.stores[self._number_of(specs[number])].add(place, number, values)
        for name, changes in frame.tables.items():
            table = self.tables[name]
            table.add(place, changes)
            if changes.layouts is not None:
                table.state["layouts"] = [
                    None
                    if plain is None
                    else [*plain[:2], [self._number_of(specs[number]) for number in plain[2]], *plain[3:]]
                    for plain in changes.layouts
                ]
        self._sessions.replay(frame.sessions)
        counters = dict(frame.server)
        for name in ("next_block", "next_episode"):
            self.state[name] = counters.pop(name)
        self._sessions.number = max(self._sessions.number, counters.pop("num_sessions"))
        self.state["encoded"] = counters

    def finish(self) -> None:
        """Take note that this was all."""
        self.state["sessions"] = self._sessions.snapshot().describe()

    def _number_of(self, specs: Sequence[ArraySpec]) -> int:
        kind = tuple(specs)
        if kind not in self._numbers:
            self._numbers[kind] = len(self.stores)
            self.stores.append(LoggedStore(kind, None, self._read))
        return self._numbers[kind]

    def _read(self, places: list[Position]) -> Iterator[Frame]:
        return read_frames(self._directory, self._log, places)
