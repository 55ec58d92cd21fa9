"""A file that one process at a time may hold."""

from __future__ import annotations

import os
from pathlib import Path

from reverb_async.errors import CheckpointError


class Lock:
    """An advisory lock on a file; the system releases it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self) -> None:
        """Take the lock, at once or not at all.

        Raises:
            CheckpointError: somebody else has it.
            OSError: the file cannot be made.
        """
        assert self._file is None
        file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            _lock(file)
        except OSError:
            holder = os.read(file, 100).decode(errors="replace").strip()
            os.close(file)
            raise CheckpointError(
                f"{self._path.parent} is in use by another server{f' (process {holder})' if holder else ''}: "
                f"give each server a directory of its own"
            ) from None
        os.truncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        self._file = file

    def release(self) -> None:
        """Let others have it. Idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _lock(file: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
