"""One file of the log: records of which each is there wholly or not at all, whatever happens to the writer.

After the head, the first record says which place in which file this one goes on from; all others are frames.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from reverb_async.checkpoint.damage import Damage
from reverb_async.checkpoint.file_system import FileSystem
from reverb_async.checkpoint.records import ALIGNMENT, MAGIC, Record, RecordReader, RecordWriter

WHAT = "log"
FOLLOWS = "follows"
FRAME = "frame"

Position = tuple[int, int]
"""Number of a file, and a place in it: its length so far."""

NOWHERE: Position = (0, 0)

_SEARCHED = 4 << 20
"""Bytes that are searched at a time, a multiple of the alignment."""


class LogWriter(RecordWriter):
    """Writes one file of the log; unlike other files it has no end.

    Args:
        files: makes the system calls.
        path: where; must not exist.
        number: the file's.
    """

    def __init__(self, files: FileSystem, path: Path, number: int) -> None:
        self.number = number
        super().__init__(files, path, WHAT)

    @property
    def position(self) -> Position:
        """Where the next record will stand."""
        return self.number, self.nbytes

    def follow(self, position: Position) -> None:
        """Say what this file goes on from, `NOWHERE` if only a checkpoint has what was before."""
        self.add({"kind": FOLLOWS, "log": position[0], "at": position[1]}, ())

    def sync(self) -> None:
        """Have the disk keep all that was added; may run in a thread while more is added."""
        self._files.sync_data(self._file)

    def cut_off(self) -> None:
        """Remove what a failed `add` may have left."""
        self._files.truncate(self._file, self.nbytes)


class LogReader(RecordReader):
    """Reads one file of the log.

    Attributes:
        end: where the next record would stand, as far as records were read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, WHAT)
        self.end = 0

    def __iter__(self) -> Iterator[Record]:
        """Yield all records but the first, each whole.

        Raises:
            Damage: what follows `end` is no whole record.
        """
        try:
            with self._path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                while self.end < size:
                    offset = self.end
                    record, _, length = self._read_one(file, offset, size)
                    if offset:
                        yield record
                    else:
                        self._check_first(record)
                    self.end = offset + length
        except OSError as error:
            raise Damage(self._path, self.end, "a readable file", error.strerror or str(error)) from error

    def has_record_after(self, offset: int) -> bool:
        """Whether any whole record stands behind a place where there is none: nobody was killed while writing that."""
        with self._path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            start = offset + ALIGNMENT
            while start < size:
                file.seek(start)
                part = file.read(_SEARCHED)
                at = part.find(MAGIC)
                while at >= 0:
                    if at % ALIGNMENT == 0 and self._is_record(file, start + at, size):
                        return True
                    at = part.find(MAGIC, at + 1)
                start += _SEARCHED
        return False

    def _is_record(self, file: BinaryIO, offset: int, size: int) -> bool:
        file.seek(offset)
        try:
            self._read_one(file, offset, size)
        except Damage:
            return False
        return True
