"""Which parts of earlier checkpoints the next one shares, and which it writes anew so that little lies dead on disk."""

from __future__ import annotations

from reverb_async.checkpoint.manifest import Manifest, TableFacts

MAX_CHAIN = 12
"""Files that hold one table's slots."""

MAX_ROW_FILES = 64
"""Files of rows of one checkpoint, unless each is large."""

_LARGE_BYTES = 128 << 20
"""A file of rows of this size is not written again for being one of many."""


def is_outgrown(table: TableFacts) -> bool:
    """Whether what changed since a table was saved whole takes more room than that."""
    return sum(table.nbytes[1:]) > table.nbytes[0]


def absorbed(table: TableFacts) -> int:
    """Return how many of a table's newest files the next one takes over, so that they never become many.

    Those that are not much larger than all after them: so each change is copied a few times, however many follow it.
    """
    if len(table.files) < MAX_CHAIN:
        return 0
    count, nbytes = 0, 0
    for size in reversed(table.nbytes[1:]):
        if count >= MAX_CHAIN // 2 and size > 2 * nbytes:
            break
        count += 1
        nbytes += size
    return count


def to_be_rewritten(manifest: Manifest) -> set[int]:
    """Return the numbers of files of rows less than half of which live, and of the smallest if there are many."""
    live: dict[int, int] = {}
    for store in manifest.stores:
        for number, rows in store.rows.items():
            live[number] = live.get(number, 0) + rows
    dead = {number for number, rows in live.items() if 2 * rows < manifest.files[number].rows}
    small = sorted(
        (number for number in live if number not in dead and manifest.files[number].nbytes < _LARGE_BYTES),
        key=lambda number: manifest.files[number].nbytes,
    )
    return dead | set(small[: MAX_ROW_FILES // 2] if len(small) >= MAX_ROW_FILES else ())
