"""The system calls that change a directory of checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

Buffer = bytes | bytearray | memoryview

_MOST_PARTS = 1024
"""What one ``writev`` takes."""


class FileSystem:
    """Makes the calls. Every change on disk is one of these, so that tests can fail or stop after each.

    All raise `OSError`; all may block for as long as the disk takes.
    """

    def create(self, path: Path) -> int:
        """Create a file that must not exist yet; return its descriptor, open for writing."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)

    def write(self, file: int, parts: Sequence[Buffer]) -> None:
        """Append all bytes of `parts`."""
        rest = [part for part in map(_bytes_of, parts) if len(part)]
        while rest:
            written = self.write_some(file, rest[:_MOST_PARTS])
            done = 0
            while done < len(rest) and written >= len(rest[done]):
                written -= len(rest[done])
                done += 1
            rest = rest[done:]
            if written:
                rest[0] = rest[0][written:]

    def write_some(self, file: int, parts: Sequence[memoryview]) -> int:
        """Append some bytes of `parts`; return how many."""
        if not hasattr(os, "writev"):
            return os.write(file, parts[0])
        return os.writev(file, parts)

    def sync(self, file: int) -> None:
        """Have the disk keep what was written."""
        os.fsync(file)

    def sync_data(self, file: int) -> None:
        """Have the disk keep what was written, and the file's length, but not its times."""
        getattr(os, "fdatasync", os.fsync)(file)

    def truncate(self, file: int, nbytes: int) -> None:
        """Cut a file off; what is written next follows there."""
        os.ftruncate(file, nbytes)
        os.lseek(file, nbytes, os.SEEK_SET)

    def close(self, file: int) -> None:
        """Close a descriptor."""
        os.close(file)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file or directory another name; a file of that name is replaced."""
        os.rename(path, target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def make_directory(self, path: Path) -> None:
        """Make a directory that must not exist yet."""
        os.mkdir(path)

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory."""
        os.rmdir(path)

    def sync_directory(self, path: Path) -> None:
        """Have the disk keep the names in a directory."""
        if os.name == "nt":  # Windows opens no directories; its journal keeps renames in order.
            return
        directory = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _bytes_of(part: Buffer) -> memoryview:
    view = memoryview(part)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")
