"""Files that are read again when they change."""

from __future__ import annotations

import os
from collections.abc import Sequence

State = tuple[tuple[int, int, int] | None, ...]
"""Modification time in nanoseconds, size and inode of each file; None for one that is not there."""


def state_of(paths: Sequence[str]) -> State:
    """Return what changes when a file is written or another one takes its place, links followed."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)
