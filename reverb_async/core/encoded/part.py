"""The encoded items of one layout in a batch, and how native readers get their columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.encoded.layout import CHUNK, ORDINAL, EncodedLayout
from reverb_async.core.encoded.records import read_slices, split
from reverb_async.core.encoded.tensor_cache import TENSOR_BITS, DamagedChunks, Tensor
from reverb_async.core.encoded.values import fitted
from reverb_async.core.runs import Rows, Runs
from reverb_async.core.storage import RowStore
from reverb_async.core.storage.backing import aligned_empty
from reverb_async.core.variable import VariableRows, encode_rows
from reverb_async.errors import InvalidArgument

_DECODING_BYTES = 32 << 10
"""Decoding a small tensor takes about as long as copying so much."""
_GROWTH = 4
"""Decoding takes about so much longer than copying the same bytes."""

_READ_AT_ONCE = 1 << 20
"""Encoded bytes that are copied out of the store in one go."""


class EncodedPart:
    """What is to be read; see `core.gather.Part`, whose fields these are.

    Attributes:
        layout: that of the items.
        count: how many items.
        positions: where they stand in the batch; None when they are the whole batch.
        lengths: per column, the rows of each item: one number for all, or int64 ``[count]``.
        rows: in both stores of the layout.
        totals: per column, the rows of all items together.
        nbytes: bytes to be copied, and to be decoded, counted as copies that take as long.
    """

    __slots__ = (
        *("_column", "_keys", "_length", "_offset", "_row", "_start"),
        *("count", "layout", "lengths", "nbytes", "positions", "rows", "totals"),
    )

    def __init__(
        self, layout: EncodedLayout, positions: Rows | None, records: Runs, chunks: Runs, nbytes: NDArray[np.int64]
    ) -> None:
        self.layout = layout
        self.count = len(records)
        self.positions = positions
        self.rows = [records.rows(), chunks.rows()]
        slices = read_slices(layout.stores[0].gather_variable(0, self.rows[0]), layout.num_views)
        counts = slices.counts
        shown = _sums(slices.length, counts.reshape(-1)).reshape(counts.shape)  # rows of each item and column
        ends = np.cumsum(shown, axis=0)
        self.totals: list[int] = ends[-1].tolist()
        self.lengths: list[int | Rows] = []
        for column, (lowest, highest) in enumerate(
            zip(shown.min(axis=0).tolist(), shown.max(axis=0).tolist(), strict=True)
        ):
            self.lengths.append(lowest if lowest == highest else shown[:, column].copy())
        chunk_start = np.cumsum(chunks.length) - chunks.length
        per_item = counts.sum(axis=1)
        row = self.rows[1][np.repeat(chunk_start, per_item) + slices.position]
        ordinals = layout.stores[1].columns[ORDINAL][row].astype(np.int64)
        keys = ordinals << TENSOR_BITS | slices.tensor
        # A slice starts, in its column, after all items before and the slices before it of the same item and column.
        before = np.cumsum(slices.length) - slices.length
        first = np.cumsum(counts.reshape(-1)) - counts.reshape(-1)
        start = np.repeat((ends - shown).reshape(-1) - before[first], counts.reshape(-1)) + before
        column_of = np.repeat(np.tile(np.arange(layout.num_views), self.count), counts.reshape(-1))
        order = np.argsort(keys, kind="stable")  # so that each tensor is fetched once
        self._keys: NDArray[np.int64] = keys[order]
        self._row: Rows = row[order]
        self._column: NDArray[np.int64] = column_of[order]
        self._offset: NDArray[np.int64] = slices.offset[order]
        self._length: NDArray[np.int64] = slices.length[order]
        self._start: NDArray[np.int64] = start[order]
        self.nbytes = int(nbytes.sum()) + self._effort()

    def _effort(self) -> int:
        at = _firsts(self._keys)
        missing = self.layout.tensors.missing(self._keys[at].tolist())
        if not missing:
            return 0
        encoded = int(self.layout.stores[1].bytes_of(np.unique(self._row[at[missing]])).sum())
        return len(missing) * _DECODING_BYTES + encoded * _GROWTH

    def gather(
        self, leaves: Sequence[int] | None, outs: Sequence[NDArray[np.generic] | None] | None
    ) -> list[NDArray[np.generic] | VariableRows]:
        """Return the columns of wanted leaves (None: all); in a thread while the rows are pinned.

        Args:
            leaves: which.
            outs: for each of them an array to fill, or None; None: none of them.

        Raises:
            DamagedChunks: some cannot be decoded.
        """
        specs = self.layout.specs
        wanted = list(range(len(specs))) if leaves is None else list(leaves)
        targets: list[Any] = [None] * len(specs)
        for column, out in zip(wanted, outs or [None] * len(wanted), strict=True):
            spec = specs[column]
            if spec.is_variable:
                targets[column] = [b""] * self.totals[column]
            elif out is None:
                targets[column] = aligned_empty((self.totals[column], *spec.fixed_shape), spec.dtype)
            else:
                targets[column] = out
        self._fill(targets)
        return [
            encode_rows(targets[column], specs[column]) if specs[column].is_variable else targets[column]
            for column in wanted
        ]

    def _fill(self, targets: Sequence[Any]) -> None:
        """Copy all slices of columns that have a target there."""
        wanted = np.array([target is not None for target in targets])[self._column]
        used = slice(None) if bool(wanted.all()) else np.flatnonzero(wanted)
        keys, rows = self._keys[used], self._row[used]
        firsts = _firsts(keys)
        bounds = [*firsts.tolist(), len(keys)]
        slices = list(
            zip(*(each[used].tolist() for each in (self._column, self._start, self._offset, self._length)), strict=True)
        )
        specs = self.layout.specs
        damaged: dict[int, tuple[int, int]] = {}
        reason = ""
        distinct = keys[firsts].tolist()
        for at, (key, row, tensor) in enumerate(self._read(distinct, rows[firsts].tolist())):
            try:
                if isinstance(tensor, InvalidArgument):
                    raise tensor
                for column, start, offset, length in slices[bounds[at] : bounds[at + 1]]:
                    targets[column][start : start + length] = fitted(tensor, offset, length, specs[column])
            except InvalidArgument as error:
                damaged[row] = (row, key >> TENSOR_BITS)
                reason = reason or str(error)
        if damaged:
            raise DamagedChunks(list(damaged.values()), reason)

    def _read(self, keys: list[int], rows: list[int]) -> Iterator[tuple[int, int, Tensor | InvalidArgument]]:
        """Yield each tensor, by key, with its chunk's row; or what is wrong with it."""
        tensors = self.layout.tensors
        messages = _Messages(self.layout.stores[1], [rows[at] for at in tensors.missing(keys)])
        for key, row in zip(keys, rows, strict=True):
            tensor: Tensor | InvalidArgument | None = tensors.get(key)
            if tensor is None:
                try:
                    tensor = tensors.add(key, messages.get(row))
                except InvalidArgument as error:
                    tensor = error
            yield key, row, tensor


class _Messages:
    """Copies chunks out of their store, several at once.

    Args:
        store: of the chunks.
        rows: those that will be needed, in order.
    """

    def __init__(self, store: RowStore, rows: Sequence[int]) -> None:
        self._store = store
        self._places = {row: place for place, row in enumerate(dict.fromkeys(rows))}
        self._rows = np.fromiter(self._places, np.int64, len(self._places))
        self._ends = np.cumsum(store.bytes_of(self._rows)) if len(self._rows) else self._rows
        self._loaded: dict[int, memoryview] = {}

    def get(self, row: int) -> memoryview:
        """Return a chunk."""
        message = self._loaded.get(row)
        if message is None:
            place = self._places.get(row)
            if place is None:  # its tensor was pushed out of the cache meanwhile
                rows = np.array([row], np.int64)
            else:
                before = int(self._ends[place - 1]) if place else 0
                stop = int(np.searchsorted(self._ends, before + _READ_AT_ONCE, side="right"))
                rows = self._rows[place : max(stop, place + 1)]
            found = self._store.gather_variable(CHUNK, rows)
            self._loaded = dict(zip(rows.tolist(), split(found), strict=True))
            message = self._loaded[row]
        return message


def _sums(values: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sums of consecutive stretches of `values`, none of them empty."""
    return np.add.reduceat(values, np.cumsum(counts) - counts)


def _firsts(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of sorted `keys` occurs first."""
    return np.flatnonzero(np.diff(keys, prepend=-1))
