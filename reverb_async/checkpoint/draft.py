"""A checkpoint in the making: its files are written, checked, and then given their names in one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.checkpoint import content
from reverb_async.checkpoint import manifest as manifests
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.manifest import Manifest, read_manifest
from reverb_async.checkpoint.records import FileFacts, RecordReader, RecordWriter
from reverb_async.core.cut.image import ArrayBlock
from reverb_async.core.variable import VariableRows

SEGMENT_BYTES = 256 << 20
"""A file of rows that has grown to this is followed by another one."""


class Draft:
    """The files of one checkpoint. All methods block and are called in one thread at a time.

    Whoever makes one ends it with `commit` or, after any error, with `abandon`.

    Args:
        directory: prepared.
        sequence: the checkpoint's number.
        after: files of records get higher numbers than this.
        segment_bytes: when to begin another file of rows.

    Attributes:
        last_number: the highest number given to a file so far.
        files: those that are complete, by number.
    """

    def __init__(
        self, directory: Directory, sequence: int, after: int = 0, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._directory = directory
        self.sequence = sequence
        self._segment_bytes = segment_bytes
        self.last_number = after
        self.files: dict[int, FileFacts] = {}
        self._numbers: list[int] = []
        self._what: dict[int, str] = {}
        self._rows: dict[int, int] = {}
        self._open: dict[str, tuple[int, RecordWriter]] = {}

    def add_slots(self, table: str, block: ArrayBlock) -> tuple[int, int]:
        """Write images of slots; return the number of the file that holds them, and how many bytes they take."""
        number, file = self._file(content.ITEMS_FILE)
        before = file.nbytes
        content.write_slots(file, table, block)
        return number, file.nbytes - before

    def items_file(self) -> int:
        """Return the number of the file that holds slots and state."""
        return self._file(content.ITEMS_FILE)[0]

    def add_rows(self, store: str, rows: NDArray[np.int64], columns: Sequence[NDArray[Any] | VariableRows]) -> int:
        """Write rows; return the number of the file that holds them."""
        number, file = self._file(content.ROWS_FILE)
        content.write_rows(file, store, rows, columns)
        self._rows[number] = self._rows.get(number, 0) + len(rows)
        if file.nbytes >= self._segment_bytes:
            self._finish(content.ROWS_FILE)
        return number

    def add_state(self, state: Mapping[str, Any]) -> int:
        """Write the server's state; return the number of the file that holds it."""
        number, file = self._file(content.ITEMS_FILE)
        content.write_state(file, state)
        return number

    def finish_files(self) -> dict[int, FileFacts]:
        """Complete all files, read them back, and return them by number."""
        for what in list(self._open):
            self._finish(what)
        self._directory.files.sync_directory(self._directory.segments)
        for number, facts in self.files.items():
            RecordReader(self._directory.segment_path(number), self._what[number], facts).verify()
        return dict(self.files)

    def commit(self, manifest: Manifest) -> Path:
        """Write the manifest and make the checkpoint appear; return its path.

        Raises:
            OSError: the disk does not take it; there is no checkpoint, unless the very last call failed.
            Damage: what was written is not what is read back.
        """
        files, directory = self._directory.files, self._directory
        path = directory.checkpoint_path(self.sequence)
        unfinished = path.with_name(f"tmp-{path.name}")
        files.make_directory(unfinished)
        file = files.create(unfinished / manifests.NAME)
        try:
            files.write(file, [manifest.encode()])
            files.sync(file)
        finally:
            files.close(file)
        files.sync_directory(unfinished)
        read_manifest(unfinished / manifests.NAME, self.sequence)
        files.rename(unfinished, path)
        files.sync_directory(directory.path)
        directory.verified.add(self.sequence)
        return path

    def abandon(self) -> None:
        """Remove all that was written."""
        for _, file in self._open.values():
            file.close()
        if self._directory.discard_checkpoint(self.sequence):
            self._directory.discard_segments(self._numbers)

    def _file(self, what: str) -> tuple[int, RecordWriter]:
        """Return the file of this kind that is being written."""
        if what not in self._open:
            number = self._directory.next_segment(self.last_number)
            path = self._directory.segment_path(number)
            self.last_number = number
            self._numbers.append(number)
            self._what[number] = what
            file = RecordWriter(self._directory.files, path.with_name(f"tmp-{path.name}"), what)
            self._open[what] = number, file
        return self._open[what]

    def _finish(self, what: str) -> None:
        number, file = self._open.pop(what)
        path = self._directory.segment_path(number)
        facts = file.finish()
        self._directory.files.rename(file.path, path)
        self.files[number] = dataclasses.replace(facts, name=path.name, rows=self._rows.get(number, 0))
