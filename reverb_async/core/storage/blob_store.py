"""Values without a fixed size: text, ragged rows, encoded chunks. Kept in size classes, counted one by one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage.account import Account
from reverb_async.core.storage.backing import Backing, PlatformBacking, aligned_empty
from reverb_async.core.storage.holds import Rows
from reverb_async.core.storage.row_cursor import RowCursor
from reverb_async.core.storage.row_store import Handles, RowStore
from reverb_async.core.storage.usage import StoreUsage
from reverb_async.core.variable import VariableRows
from reverb_async.errors import InvalidArgument, ResourceExhausted

MAX_RANK = 8
MAX_BLOB_BYTES = 1 << 30
CLASS_BYTES: NDArray[np.int64] = np.array(
    [(8 + step) << octave for octave in range(3, 27) for step in range(8)] + [1 << 30]
)
"""Bytes a blob of each class has room for: 64, 72, ... 120, 128, 144, ... 1 GiB. Larger blobs waste at most 1/9."""
_CLASSES: list[int] = CLASS_BYTES.tolist()
_ROW_BITS = 40
_ROW_NUMBER = (1 << _ROW_BITS) - 1
_CLASS_SHIFT = np.uint64(_ROW_BITS)
_ROW_MASK = np.uint64(_ROW_NUMBER)
_FIRST = np.zeros(1, np.intp)
_ONE = np.uint64(1)
_BYTES, _SIZE, _SHAPE = range(3)
_SLACK_BYTES = 512 << 10
"""Per class: there may be 193 of them."""
_FEW = 8
"""So many blobs take less time one by one than by arrays."""


class BlobStore:
    """Blobs: bytes with a shape and a count each. A blob goes when its count does.

    Handles are uint64, never 0: ``(class << 40 | row) + 1``. Blobs are never moved or written again.
    """

    def __init__(
        self,
        *,
        reserve_bytes: int | None = None,
        backing: type[Backing] = PlatformBacking,
        account: Account | None = None,
    ) -> None:
        self._reserve_bytes = reserve_bytes
        self._backing = backing
        self._account = account or Account()
        self._pools: dict[int, tuple[RowStore, RowCursor]] = {}

    def _pool(self, size_class: int) -> tuple[RowStore, RowCursor]:
        pool = self._pools.get(size_class)
        if pool is None:
            # A column that is not written has no pages: shapes cost nothing for text and bytes.
            specs = (
                ArraySpec((int(CLASS_BYTES[size_class]),), np.uint8),
                ArraySpec((), np.int32),
                ArraySpec((MAX_RANK,), np.int32),
            )
            store = RowStore(
                specs,
                reserve_bytes=self._reserve_bytes,
                backing=self._backing,
                slack_bytes=_SLACK_BYTES,
                account=self._account,
            )
            pool = self._pools[size_class] = (store, RowCursor(store))
        return pool

    def put(self, rows: VariableRows) -> Handles:
        """Store rows as blobs with one count each; return their handles, uint64 ``[n]``.

        Raises:
            InvalidArgument: a row has more than 1 GiB, or more than 8 dimensions.
            ResourceExhausted: there is no room; nothing was stored.
        """
        sizes, rank = rows.sizes, rows.shapes.shape[1]
        if rank > MAX_RANK:
            raise InvalidArgument(f"rows of variable size have at most {MAX_RANK} dimensions, got {rank}")
        if len(sizes) and sizes.max() > MAX_BLOB_BYTES:
            raise InvalidArgument(f"a row of variable size has at most {MAX_BLOB_BYTES} bytes, got {sizes.max()}")
        data = np.ascontiguousarray(rows.data).data
        if len(sizes) <= _FEW and not rank:
            return self._put_few(data, sizes.tolist())
        handles = np.empty(len(sizes), np.uint64)
        offsets = rows.offsets
        for size_class, members, taken in self._take(np.searchsorted(CLASS_BYTES, sizes)):
            store = self._pools[size_class][0]
            room = store.columns[_BYTES]
            flat = room.reshape(-1).data
            lengths = sizes[members]
            # One copy per blob: for bytes without a common size that beats every gather by index.
            for start, size, offset in zip(
                (taken * room.shape[1]).tolist(), lengths.tolist(), offsets[members].tolist(), strict=True
            ):
                flat[start : start + size] = data[offset : offset + size]
            store.write(_SIZE, taken, lengths.astype(np.int32))
            if rank:
                store.columns[_SHAPE][taken, :rank] = rows.shapes[members]
            store.settle(taken)
            handles[members] = _handles(size_class, taken)
        return handles

    def _put_few(self, data: memoryview, sizes: list[int]) -> Handles:
        handles: list[int] = []
        start = 0
        try:
            for size in sizes:
                size_class = bisect_left(_CLASSES, size)
                store, cursor = self._pool(size_class)
                taken = cursor.take(1)
                row = taken.item()
                room, counts = store.columns[_BYTES], store.columns[_SIZE]
                room[row].data[:size] = data[start : start + size]
                counts[row] = size
                store.settle(taken)
                handles.append((size_class << _ROW_BITS) + row + 1)
                start += size
        except ResourceExhausted:
            self.release(np.array(handles, np.uint64))
            raise
        return np.array(handles, np.uint64)

    def make_room(self, nbytes: int) -> Handles:
        """Return the handle, ``[1]``, of a blob of that size, with one count; whoever calls fills it through `views`.

        Raises:
            InvalidArgument: it has more than 1 GiB.
            ResourceExhausted: there is no room.
        """
        if nbytes > MAX_BLOB_BYTES:
            raise InvalidArgument(f"a row of variable size has at most {MAX_BLOB_BYTES} bytes, got {nbytes}")
        ((size_class, _, taken),) = self._take(np.searchsorted(CLASS_BYTES, [nbytes]))
        store = self._pools[size_class][0]
        store.write(_SIZE, taken, np.array([nbytes], np.int32))
        store.settle(taken)
        return _handles(size_class, taken)

    def _take(self, classes: NDArray[np.intp]) -> list[tuple[int, NDArray[np.intp], Rows]]:
        """Lease a row for each blob; return (class, positions of its blobs, their rows). All of them or none."""
        parts: list[tuple[int, NDArray[np.intp], Rows]] = []
        try:
            for size_class, members in _groups(classes):
                parts.append((size_class, members, self._pool(size_class)[1].take(len(members))))
        except ResourceExhausted:
            for size_class, _, taken in parts:
                self._pools[size_class][0].unpin(taken)
            raise
        return parts

    def get(self, handles: Handles, rank: int) -> VariableRows:
        """Copy blobs of `rank` dimensions out, in the order of `handles`.

        Safe in a thread while somebody holds their counts.
        """
        pieces = self.views(handles)
        sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))
        shapes = np.empty((len(pieces), rank), np.int32)
        if rank:
            for store, members, rows in self._located(handles):
                shapes[members] = store.columns[_SHAPE][rows, :rank]
        data: NDArray[np.uint8] = aligned_empty((int(sizes.sum()),), np.dtype(np.uint8)).view(np.uint8)
        data[:] = np.frombuffer(bytearray().join(pieces), np.uint8)
        return VariableRows(data, sizes, shapes)

    def views(self, handles: Handles) -> list[memoryview]:
        """Return the bytes of blobs where they lie, in the order of `handles`; valid while somebody holds them."""
        pieces: list[memoryview] = [_NOTHING] * len(handles)
        for store, members, rows in self._located(handles):
            room = store.columns[_BYTES]
            flat = room.reshape(-1).data
            starts = rows * room.shape[1]
            stops = starts + store.columns[_SIZE][rows]
            for member, start, stop in zip(members.tolist(), starts.tolist(), stops.tolist(), strict=True):
                pieces[member] = flat[start:stop]
        return pieces

    def retain(self, handles: Handles) -> None:
        """Add a count to each blob; a handle that stands there twice counts twice."""
        for store, _, rows in self._located(handles):
            store.retain(rows)

    def release(self, handles: Handles) -> None:
        """Take a count from each blob; those without any left are gone."""
        for store, _, rows in self._located(handles):
            store.release(rows)

    def sizes(self, handles: Handles) -> NDArray[np.int64]:
        """Return the bytes of each blob, int64 ``[n]``."""
        sizes = np.empty(len(handles), np.int64)
        for store, members, rows in self._located(handles):
            sizes[members] = store.columns[_SIZE][rows]
        return sizes

    @property
    def largest_bytes(self) -> int:
        """No blob is larger than this."""
        return _CLASSES[max(self._pools, default=0)]

    def _located(self, handles: Handles) -> Iterator[tuple[RowStore, NDArray[np.intp], Rows]]:
        """Yield (store, positions in `handles`, rows) by class."""
        if len(handles) == 1:
            place = handles.item() - 1
            rows = np.array([place & _ROW_NUMBER])
            yield self._pools[place >> _ROW_BITS][0], _FIRST, rows
            return
        places = handles - _ONE
        classes = (places >> _CLASS_SHIFT).astype(np.intp)
        rows = (places & _ROW_MASK).astype(np.int64)
        for size_class, members in _groups(classes):
            yield self._pools[size_class][0], members, rows[members]

    def trim(self, max_rows: int = 1 << 16) -> bool:
        """Give back memory of freed blobs, as `RowStore.trim` does; return whether there may be more to do."""
        for store, _ in self._pools.values():
            if store.surplus_rows:
                store.trim(max_rows)
                return True
        return False

    def usage(self) -> StoreUsage:
        """Return the usage of all size classes together; a row is a blob."""
        return sum((store.usage() for store, _ in self._pools.values()), StoreUsage())


_NOTHING = memoryview(b"")


def _handles(size_class: int, rows: Rows) -> Handles:
    return rows.astype(np.uint64) + np.uint64((size_class << int(_CLASS_SHIFT)) + 1)


def _groups(classes: NDArray[np.intp]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield each class that occurs and the positions where it does."""
    if len(classes) == 0:
        return
    first = int(classes[0])
    if np.count_nonzero(classes == first) == len(classes):
        yield first, np.arange(len(classes))
        return
    for size_class in np.flatnonzero(np.bincount(classes)).tolist():
        yield size_class, np.flatnonzero(classes == size_class)
