"""Rows for one stream."""

from __future__ import annotations

import numpy as np

from reverb_async.core.storage.holds import Rows
from reverb_async.core.storage.row_store import RowStore


class RowCursor:
    """Leases rows for one stream so that they stay consecutive from call to call."""

    __slots__ = ("_rest", "_store")

    def __init__(self, store: RowStore) -> None:
        self._store = store
        self._rest: Rows = np.empty(0, np.int64)

    def take(self, n: int) -> Rows:
        """Take `n` rows, each with a pin, as `RowStore.lease` does.

        Raises:
            ResourceExhausted: the store is full; nothing was taken.
        """
        rest, kept = self._rest, len(self._rest)
        if n > kept:
            more = self._store.claim(n - kept, whole=True)
            rest = np.concatenate((rest, more)) if kept else more
            self._store.reserved_rows += len(more)
        self._rest = rest[n:]
        store = self._store
        store.reserved_rows -= n
        store.account.used += n * store.width
        return rest[:n]

    def close(self) -> None:
        """Give back what was not taken; the cursor can be used again."""
        rest, self._rest = self._rest, self._rest[:0]
        store = self._store
        store.reserved_rows -= len(rest)
        store.account.used += len(rest) * store.width  # what is freed is given back
        store.unpin(rest)
