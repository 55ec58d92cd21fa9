"""A checkpoint on disk as something to restore from; making one reads and checks all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reverb_async.checkpoint import content
from reverb_async.checkpoint.content import Malformed
from reverb_async.checkpoint.damage import Damage
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.manifest import Manifest, StoreFacts, TableFacts
from reverb_async.checkpoint.records import Record, RecordReader
from reverb_async.core.cut.image import ArrayBlock, RowValues
from reverb_async.core.slots import FREE
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows
from reverb_async.errors import InvalidArgument

T = TypeVar("T")

MAX_SLOTS = 2**31
"""Tables number their slots with 31 bits."""


@dataclass(slots=True)
class _Places:
    """Where records stand, oldest first: (number of the file, offset)."""

    records: list[tuple[int, int]] = field(default_factory=list)


class _Files:
    """Reads the files of one checkpoint, none of which changes."""

    def __init__(self, directory: Directory, manifest: Manifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._what = dict.fromkeys(manifest.files, content.ROWS_FILE)
        self._what |= dict.fromkeys(
            [manifest.state_file, *(number for table in manifest.tables for number in table.files)],
            content.ITEMS_FILE,
        )

    def numbers(self) -> list[int]:
        """Return the numbers of all files, oldest first."""
        missing = [number for number in self._what if number not in self._manifest.files]
        if missing:
            path = self._directory.manifest_path(self._manifest.sequence)
            raise Damage(path, 0, f"what is to be known of file {missing[0]}", "nothing")
        return sorted(self._what)

    def reader(self, number: int) -> RecordReader:
        """Return what reads a file."""
        return RecordReader(self._directory.segment_path(number), self._what[number], self._manifest.files[number])

    def read(self, places: Sequence[tuple[int, int]], decode: Callable[[Record], T]) -> Iterator[tuple[int, T]]:
        """Yield what stands in some records, with the numbers of their files."""
        for number, record in self._records(places):
            yield number, self.decoded(number, record, decode)

    def _records(self, places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Record]]:
        at = 0
        while at < len(places):
            number = places[at][0]
            stop = at
            while stop < len(places) and places[stop][0] == number:
                stop += 1
            for record in self.reader(number).at([offset for _, offset in places[at:stop]]):
                yield number, record
            at = stop

    def decoded(self, number: int, record: Record, decode: Callable[[Record], T]) -> T:
        """Return what a record holds.

        Raises:
            Damage: it holds something else.
        """
        try:
            return decode(record)
        except (Malformed, InvalidArgument, LookupError, TypeError, ValueError, StopIteration) as error:
            path = self._directory.segment_path(number)
            raise Damage(path, record.offset, f"a record of {record.kind}", str(error) or repr(error)) from error


class TableOnDisk:
    """A table of a checkpoint; see `core.cut.image.TableImage`."""

    def __init__(self, files: _Files, facts: TableFacts, places: _Places, state: Mapping[str, Any]) -> None:
        self._files = files
        self._places = places
        self.facts = facts
        self.state = state
        self.unsaved: NDArray[np.int64] | None = np.zeros(0, np.int64)

    def blocks(self) -> Iterator[ArrayBlock]:
        """Yield images of slots; of a slot the last counts."""
        for _, block in self._files.read(self._places.records, content.read_slots):
            yield block


class StoreOnDisk:
    """A store of a checkpoint; see `core.cut.image.StoreImage`."""

    def __init__(self, files: _Files, facts: StoreFacts, places: _Places) -> None:
        self._files = files
        self._places = places
        self.facts = facts
        self.specs = tuple(map(ArraySpec.from_wire, facts.specs))
        self.num_rows = facts.num_rows

    def rows(self) -> Iterator[RowValues]:
        """Yield rows, each once: of a row that was used several times, the newest values."""
        seen = np.zeros(self.num_rows, np.bool_)
        newest_first = self._places.records[::-1]
        for number, values in self._files.read(newest_first, lambda record: content.read_rows(record, self.specs, 0)):
            rows = values.rows
            fresh = np.flatnonzero(rows < self.num_rows)
            fresh = fresh[~seen[rows[fresh]]]
            seen[rows[fresh]] = True
            columns = values.columns
            if len(fresh) < len(rows):
                columns = [
                    column.take(fresh) if isinstance(column, VariableRows) else column[fresh] for column in columns
                ]
                rows = rows[fresh]
            if len(rows):
                yield RowValues(rows, columns, number)


class CheckpointOnDisk:
    """A whole checkpoint; see `saving.ReplayImage`.

    Blocks while it reads and checks every file the manifest names.

    Args:
        directory: where it is.
        manifest: says what it consists of.

    Raises:
        Damage: a file is not what was written, or does not hold what the manifest says.

    Attributes:
        manifest: says what it consists of.
        state: the server's.
        tables: by name.
        stores: in the order in which layouts name them.
        held: which slots of each table hold items.
    """

    def __init__(self, directory: Directory, manifest: Manifest) -> None:
        self.manifest = manifest
        self._directory = directory
        self._files = _Files(directory, manifest)
        self._slots = {table.name: _Places() for table in manifest.tables}
        self._rows = {store.name: _Places() for store in manifest.stores}
        self.held: dict[str, NDArray[np.bool_]] = {
            table.name: np.zeros(_checked(directory, manifest, table), np.bool_) for table in manifest.tables
        }
        self._row_counts: dict[tuple[str, int], int] = {}
        state: dict[str, Any] | None = None
        for number in self._files.numbers():
            for record in self._files.reader(number):
                if record.kind == content.STATE and number == manifest.state_file:
                    state = self._files.decoded(number, record, self._read_state)
                self._note(number, record)
        if state is None:
            raise Damage(directory.segment_path(manifest.state_file), 0, "the server's state", "none")
        self.state: dict[str, Any] = state["server"]
        self._check_counts()
        self.tables = {
            table.name: TableOnDisk(self._files, table, self._slots[table.name], state["tables"][table.name])
            for table in manifest.tables
        }
        self.stores = [StoreOnDisk(self._files, store, self._rows[store.name]) for store in manifest.stores]

    def _note(self, number: int, record: Record) -> None:
        """Remember where a record stands, and count what it holds."""
        manifest = self.manifest
        if record.kind == content.SLOTS:
            name = record.header.get("table")
            table = next((table for table in manifest.tables if table.name == name and number in table.files), None)
            if table is not None:
                block = self._files.decoded(number, record, content.read_slots)
                self._slots[table.name].records.append((number, record.offset))
                self._files.decoded(number, record, lambda _: self._hold(table, block))
        elif record.kind == content.ROWS:
            store = record.header.get("store")
            if store in self._rows:
                rows = self._files.decoded(number, record, content.read_row_numbers)
                self._rows[store].records.append((number, record.offset))
                self._row_counts[store, number] = self._row_counts.get((store, number), 0) + len(rows)

    def _read_state(self, record: Record) -> dict[str, Any]:
        state = content.read_state(record)
        if not isinstance(state["server"], dict) or state["tables"].keys() != {t.name for t in self.manifest.tables}:
            raise Malformed("it is not that of the manifest's tables")
        return state

    def _hold(self, table: TableFacts, block: ArrayBlock) -> None:
        self.held[table.name][block.ids] = block.values["state"] != FREE

    def _check_counts(self) -> None:
        path = self._directory.manifest_path(self.manifest.sequence)
        for table in self.manifest.tables:
            found = int(np.count_nonzero(self.held[table.name]))
            if found != table.items:
                raise Damage(path, 0, f"files with {table.items} items of table {table.name!r}", f"{found} items")
        for store in self.manifest.stores:
            if not 0 <= store.num_rows <= content.MAX_NUMBER:
                raise Damage(path, 0, f"a store of at most {content.MAX_NUMBER} rows", str(store.num_rows))
            for number, rows in store.rows.items():
                found = self._row_counts.get((store.name, number), 0)
                if not 0 < rows <= found:
                    path = self._directory.segment_path(number)
                    raise Damage(path, 0, f"{rows} rows or more of store {store.name}", f"{found} rows")


def _checked(directory: Directory, manifest: Manifest, table: TableFacts) -> int:
    """Return how many slots a table's image spans, if there can be so many."""
    if not 0 <= table.slots <= MAX_SLOTS:
        path = directory.manifest_path(manifest.sequence)
        raise Damage(path, 0, f"a table of at most {MAX_SLOTS} slots", str(table.slots))
    return table.slots


def records_of_table(directory: Directory, manifest: Manifest, number: int, table: str) -> Iterator[Record]:
    """Yield the records of one table's slots in one file.

    Raises:
        Damage: the file is not what was written.
    """
    for record in _Files(directory, manifest).reader(number):
        if record.kind == content.SLOTS and record.header.get("table") == table:
            yield record
