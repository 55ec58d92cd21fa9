"""Where the data of items live: row stores by kind, and a blob store for what has no fixed size."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from reverb_async.core.cut.store_cut import RowWatch
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage.account import Account
from reverb_async.core.storage.backing import Backing, PlatformBacking
from reverb_async.core.storage.blob_store import BlobStore
from reverb_async.core.storage.row_cursor import RowCursor
from reverb_async.core.storage.row_store import RowStore
from reverb_async.core.storage.usage import StoreUsage
from reverb_async.errors import ResourceExhausted

__all__ = ["Account", "BlobStore", "RowCursor", "RowStore", "Storage", "StoreUsage"]

MAX_KINDS = 256


class Storage:
    """All stores of a server: one `RowStore` per kind of column group, kept as long as somebody refers to it.

    Args:
        reserve_bytes: address space per store; by default twice the machine's memory.
        backing: the kind of memory.
        account: where everything in use is counted.

    Attributes:
        blobs: what variable columns of all kinds keep their values in.
    """

    def __init__(
        self,
        *,
        reserve_bytes: int | None = None,
        backing: type[Backing] = PlatformBacking,
        account: Account | None = None,
    ) -> None:
        self.account = account or Account()
        self._reserve_bytes = reserve_bytes
        self._backing = backing
        self._groups: weakref.WeakValueDictionary[tuple[ArraySpec, ...], RowStore] = weakref.WeakValueDictionary()
        self.blobs = BlobStore(reserve_bytes=reserve_bytes, backing=backing, account=self.account)
        self._is_watched = False

    def watch(self) -> None:
        """Note from now on which rows are on disk; see `RowStore.watch`."""
        self._is_watched = True
        for store in list(self._groups.values()):
            if store.watch is None:
                store.watch = RowWatch(store.capacity)

    def group(self, specs: Sequence[ArraySpec]) -> RowStore:
        """Return the store of this kind of column group; the caller keeps it alive.

        Raises:
            ResourceExhausted: there are 256 other kinds already, or no address space is left.
        """
        kind = tuple(specs)
        store = self._groups.get(kind)
        if store is None:
            if len(self._groups) >= MAX_KINDS:
                raise ResourceExhausted(
                    f"this server holds column groups of {MAX_KINDS} kinds (dtypes and shapes), its limit; "
                    "put None into the signature's shape where shapes vary from item to item"
                )
            store = RowStore(
                kind, self.blobs, reserve_bytes=self._reserve_bytes, backing=self._backing, account=self.account
            )
            if self._is_watched:
                store.watch = RowWatch(store.capacity)
            self._groups[kind] = store
        return store

    def trim(self, max_rows: int = 1 << 16) -> bool:
        """Give memory of free rows back, as `RowStore.trim` does; return whether there may be more to do."""
        for store in list(self._groups.values()):
            if store.surplus_rows:
                store.trim(max_rows)
                return True
        return self.blobs.trim(max_rows)

    def usage(self) -> StoreUsage:
        """Return the usage of all stores together; blobs count as rows of their own."""
        return sum((store.usage() for store in list(self._groups.values())), self.blobs.usage())
