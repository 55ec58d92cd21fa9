"""What is wrong with a checkpoint on disk."""

from __future__ import annotations

from pathlib import Path

from reverb_async.errors import CheckpointError


class Damage(CheckpointError):
    """A file is not what was written.

    Attributes:
        path: the file.
        offset: the byte from which on it is wrong, as far as can be told.
        expected: what should be there.
        found: what is there.
    """

    def __init__(self, path: Path, offset: int, expected: str, found: str) -> None:
        self.path = path
        self.offset = offset
        self.expected = expected
        self.found = found
        super().__init__(f"{path}: at byte {offset}: expected {expected}, found {found}")
