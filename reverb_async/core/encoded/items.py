"""Encoded items of all tables of a server: their chunks and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.dtypes import BYTES
from reverb_async.core.encoded.layout import CHUNK, KEY, ORDINAL, EncodedLayout
from reverb_async.core.encoded.records import EncodedItem, read_trajectories, write_records
from reverb_async.core.encoded.showing import showing
from reverb_async.core.encoded.tensor_cache import TENSOR_BITS, DamagedChunks, Decode, TensorCache
from reverb_async.core.item import ItemBlock, ItemLayout
from reverb_async.core.nest import Structure
from reverb_async.core.runs import Rows, Runs
from reverb_async.core.slots import Slots
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import RowCursor, RowStore, Storage
from reverb_async.core.variable import VariableRows
from reverb_async.errors import InvalidArgument, ResourceExhausted

MAX_CACHED_BYTES = 256 << 20

Answer = tuple[memoryview, list[memoryview]]
"""An item's trajectory and its chunks, as they came."""


class EncodedItems:
    """Keeps chunks and the records of items that show parts of them. Rows are counted as those of other items are.

    Args:
        storage: the server's.
        decode: decodes a tensor of a chunk for native readers; may be set later.
        max_cached_bytes: decoded tensors kept for the next readers.
        lock: needed if items are read in threads.

    Attributes:
        tensors: what native readers read.
        damaged: how many items were removed because a chunk of theirs could not be decoded.
    """

    def __init__(
        self,
        storage: Storage,
        decode: Decode | None = None,
        max_cached_bytes: int = MAX_CACHED_BYTES,
        *,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self._storage = storage
        self.tensors = TensorCache(decode, max_cached_bytes, lock or nullcontext())
        self.damaged = 0
        self._next_ordinal = 0
        self._layouts: WeakValueDictionary[object, EncodedLayout] = WeakValueDictionary()

    @cached_property
    def stores(self) -> tuple[RowStore, RowStore]:
        """The stores of records and of chunks, made when they are first needed: few servers have such clients."""
        one = ArraySpec((), np.uint64)
        return self._storage.group((ArraySpec((), BYTES),)), self._storage.group((ArraySpec((), BYTES), one, one))

    @cached_property
    def _cursors(self) -> tuple[RowCursor, RowCursor]:
        return RowCursor(self.stores[0]), RowCursor(self.stores[1])

    @property
    def decode(self) -> Decode | None:
        """Decodes a tensor of a chunk: ``[rows, *row_shape]``, or a list of bytes; `InvalidArgument` if damaged."""
        return self.tensors.decode

    @decode.setter
    def decode(self, decode: Decode) -> None:
        self.tensors.decode = decode

    def counters(self) -> dict[str, int]:
        """Return what `resume` needs."""
        return {"next_ordinal": self._next_ordinal, "damaged": self.damaged}

    def resume(self, counters: Mapping[str, int]) -> None:
        """Go on numbering chunks where the one did that gave `counters`."""
        self._next_ordinal, self.damaged = int(counters["next_ordinal"]), int(counters["damaged"])

    def add_chunks(self, chunks: Sequence[bytes | memoryview], keys: NDArray[np.uint64]) -> Rows:
        """Store chunks; return their rows, with a pin each, to be given to `drop`.

        Raises:
            InvalidArgument: a chunk has more than 1 GiB; nothing was stored.
            ResourceExhausted: there is no room; nothing was stored.
        """
        rows = self._cursors[1].take(len(chunks))
        _put(self.stores[1], rows, chunks)
        self._mark(rows, keys)
        return rows

    def make_room(self, nbytes: int, key: NDArray[np.uint64]) -> Rows:
        """Store a long chunk that `fill` gets the bytes of; return its row, with a pin, to be given to `drop`.

        Args:
            nbytes: the chunk's.
            key: uint64 ``[1]``.

        Raises:
            InvalidArgument: it has more than 1 GiB.
            ResourceExhausted: there is no room.
        """
        row = self._cursors[1].take(1)
        try:
            self.stores[1].make_room(CHUNK, row, nbytes)
        except (InvalidArgument, ResourceExhausted):
            self.stores[1].unpin(row)
            raise
        self._mark(row, key)
        return row

    def fill(self, row: Rows, start: int, part: bytes | memoryview) -> None:
        """Write a part of the chunk in `row`, from its byte `start` on."""
        (room,) = self.stores[1].views(CHUNK, row)
        room[start : start + len(part)] = part

    def _mark(self, rows: Rows, keys: NDArray[np.uint64]) -> None:
        store, count = self.stores[1], len(rows)
        ordinals = np.arange(self._next_ordinal, self._next_ordinal + count, dtype=np.uint64)
        self._next_ordinal += count
        store.write(KEY, rows, keys)
        store.write(ORDINAL, rows, ordinals)

    def drop(self, rows: Rows) -> None:
        """Take a pin from each chunk; those that no item shows are gone."""
        self.stores[1].unpin(rows)

    def forget_what_is_gone(self) -> None:
        """Forget decoded tensors once no chunk is left; until then new ones push them out."""
        if self.tensors.nbytes and self.stores[1].is_empty:
            self.tensors.clear()

    def layout(self, structure: Structure, specs: Sequence[ArraySpec], squeezed: Sequence[bool]) -> EncodedLayout:
        """Return the layout of items that look so to native readers; the same one for the same parts, while it lives.

        Args:
            structure: what a sample comes back as.
            specs: one row of each column, in flatten order of `structure`.
            squeezed: columns of one row without a time axis.
        """
        assert structure.num_leaves == len(specs) == len(squeezed), "one of each per column"
        parts = (structure, tuple(specs), tuple(squeezed))
        layout = self._layouts.get(parts)
        if layout is None:
            layout = EncodedLayout.of(structure, self.stores, specs, squeezed, self.tensors)
            self._layouts[parts] = layout
        return layout

    def block(
        self,
        layout: ItemLayout,
        keys: NDArray[np.uint64],
        priorities: NDArray[np.float64],
        items: Sequence[EncodedItem],
        episodes: NDArray[np.int64] | None,
    ) -> ItemBlock:
        """Write items down, to be inserted; give the block to `drop_records` once they are or cannot be.

        Args:
            layout: what `layout` returned.
            keys: uint64 ``[n]``.
            priorities: float64 ``[n]``, see `ItemBlock`.
            items: what their columns show; checked by the caller against its chunks, which somebody holds until the
                items are inserted.
            episodes: int64 ``[n, 2]``, see `ItemBlock`.

        Raises:
            InvalidArgument: a chunk has too many tensors.
            ResourceExhausted: there is no room; nothing was stored.
        """
        for columns in {id(item.columns): item.columns for item in items}.values():
            highest = max([part[3] for slices in columns for part in slices])
            if highest >= 1 << TENSOR_BITS:
                raise InvalidArgument(f"a chunk has at most {1 << TENSOR_BITS} tensors, an item shows tensor {highest}")
        records, chunks = write_records(items)
        rows = self._cursors[0].take(len(items))
        _put(self.stores[0], rows, records)
        nbytes = np.array([item.nbytes for item in items], np.int64)
        return ItemBlock(layout, keys, priorities, (Runs.of_rows(rows), chunks), nbytes, episodes)

    def drop_records(self, block: ItemBlock) -> None:
        """Let go of the records of a block; those of items that were inserted stay."""
        self.stores[0].unpin(block.views[0].rows())

    def answers(self, layout: ItemLayout, records: Runs, chunks: Runs) -> list[Answer]:
        """Return items as they came, chunks in any order: where they are stored, valid while the rows are held.

        Args:
            layout: theirs.
            records: their rows in the first store, as `Slots.runs` returns them.
            chunks: their rows in the second store.
        """
        trajectories = read_trajectories(self.stores[0].views(0, records.rows()))
        messages = self.stores[1].views(CHUNK, chunks.rows())
        answers = []
        start = 0
        for trajectory, count in zip(trajectories, chunks.length.tolist(), strict=True):
            answers.append((trajectory, messages[start : start + count]))
            start += count
        return answers

    def keys_showing(self, slots: Slots, damage: DamagedChunks) -> NDArray[np.uint64]:
        """Return the keys of a table's items that show damaged chunks."""
        store = self.stores[1]
        found = [
            showing(slots, store, row) for row, ordinal in damage.found if int(store.columns[ORDINAL][row]) == ordinal
        ]
        return np.unique(slots.key[np.concatenate(found)]) if found else np.zeros(0, np.uint64)


def _put(store: RowStore, rows: Rows, values: Sequence[bytes | memoryview]) -> None:
    """Fill the first column of leased rows; if that fails they are given back."""
    count = len(values)
    sizes = np.fromiter(map(len, values), np.int64, count)
    data = np.frombuffer(values[0] if count == 1 else b"".join(values), np.uint8)
    try:
        store.write(0, rows, VariableRows(data, sizes, np.zeros((count, 0), np.int32)))
    except (InvalidArgument, ResourceExhausted):
        store.unpin(rows)
        raise
