"""The encoded items of one layout in a batch, and how native readers get their columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.encoded.layout import CHUNK, ORDINAL, EncodedLayout
from reverb_async.core.encoded.records import read_slices, split
from reverb_async.core.encoded.tensor_cache import TENSOR_BITS, DamagedChunks, Tensor, size_of
from reverb_async.core.encoded.values import fitted
from reverb_async.core.runs import Rows, Runs
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import RowStore
from reverb_async.core.storage.backing import aligned_empty
from reverb_async.core.variable import VariableRows, encode_rows
from reverb_async.errors import InvalidArgument

_DECODING_BYTES = 32 << 10
"""Decoding a small tensor takes about as long as copying so much."""
_DECODING_FACTOR = 4
"""Decoding takes about so much longer than copying the same bytes."""

_READ_AT_ONCE = 1 << 20
"""Encoded bytes that are copied out of the store in one go."""
_HELD_BYTES = 64 << 20
"""Decoded bytes, beside those of the cache, that wait for being copied together."""

_Slice = tuple[int, int, int]
"""Number of the tensor among those that are read, first row, rows."""


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
        *("_bounds", "_keys", "_length", "_offset", "_row"),
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
        first_chunk = np.repeat(np.cumsum(chunks.length) - chunks.length, counts.sum(axis=1))
        row = self.rows[1][first_chunk + slices.position]
        # From here on column after column, so that the slices of a column, in order, make up its rows.
        if bool((counts == 1).all()):
            order = np.arange(counts.size).reshape(counts.shape).T.reshape(-1)
        else:
            columns = np.tile(np.arange(layout.num_views), self.count)
            order = np.argsort(np.repeat(columns, counts.reshape(-1)), kind="stable")
        self._row: Rows = row[order]
        self._offset: NDArray[np.int64] = slices.offset[order]
        self._length: NDArray[np.int64] = slices.length[order]
        ordinals = layout.stores[1].columns[ORDINAL][self._row].astype(np.int64)
        self._keys: NDArray[np.int64] = ordinals << TENSOR_BITS | slices.tensor[order]
        self._bounds: list[int] = [0, *np.cumsum(counts.sum(axis=0)).tolist()]
        per_column = counts.T.reshape(-1)
        shown = np.add.reduceat(self._length, np.cumsum(per_column) - per_column).reshape(-1, self.count)
        self.totals: list[int] = shown.sum(axis=1).tolist()
        self.lengths: list[int | Rows] = [
            lowest if lowest == highest else shown[column]
            for column, (lowest, highest) in enumerate(
                zip(shown.min(axis=1).tolist(), shown.max(axis=1).tolist(), strict=True)
            )
        ]
        self.nbytes = int(nbytes.sum()) + self._effort()

    def _effort(self) -> int:
        missing = self.layout.tensors.missing(self._keys.tolist())
        if not missing:
            return 0
        encoded = int(self.layout.stores[1].bytes_of(np.unique(self._row[missing])).sum())
        return len(np.unique(self._keys[missing])) * _DECODING_BYTES + encoded * _DECODING_FACTOR

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
        specs, bounds = self.layout.specs, self._bounds
        wanted = range(len(specs)) if leaves is None else leaves
        targets: list[Any] = []
        for at, column in enumerate(wanted):
            spec, total = specs[column], self.totals[column]
            if spec.is_variable:
                targets.append([b""] * total)
            else:
                out = None if outs is None else outs[at]
                targets.append(aligned_empty((total, *spec.fixed_shape), spec.dtype) if out is None else out)
        chosen: slice | NDArray[np.int64] = slice(None)
        if len(wanted) < len(specs):
            chosen = np.concatenate([np.arange(bounds[column], bounds[column + 1]) for column in wanted])
        self._fill(wanted, targets, chosen)
        return [
            encode_rows(target, specs[column]) if specs[column].is_variable else target
            for column, target in zip(wanted, targets, strict=True)
        ]

    def _fill(self, wanted: Sequence[int], targets: Sequence[Any], chosen: slice | NDArray[np.int64]) -> None:
        """Copy the chosen slices, those of wanted columns, to the columns' targets."""
        keys, first, which = np.unique(self._keys[chosen], return_index=True, return_inverse=True)
        rows = self._row[chosen][first].tolist()
        offsets, lengths = self._offset[chosen].tolist(), self._length[chosen].tolist()
        slices = list(zip(which.tolist(), offsets, lengths, strict=True))
        damaged: dict[int, str] = {}
        for begin, tensors in self._stretches(keys.tolist(), rows):
            is_whole = len(tensors) == len(keys)
            start = 0
            for column, target in zip(wanted, targets, strict=True):
                spec = self.layout.specs[column]
                mine = slices[start : start + self._bounds[column + 1] - self._bounds[column]]
                start += len(mine)
                if not (is_whole and not spec.is_variable and _join(tensors, mine, target)):
                    damaged.update(_copy(tensors, begin, mine, target, spec))
        if damaged:
            found = {rows[number]: int(keys[number]) >> TENSOR_BITS for number in damaged}
            raise DamagedChunks(list(found.items()), next(iter(damaged.values())))

    def _stretches(self, keys: list[int], rows: list[int]) -> Iterator[tuple[int, list[Tensor | InvalidArgument]]]:
        """Yield the tensors with these keys, whose chunks are in `rows`, or what is wrong with them.

        They come in lists, as many as memory allows, each with the number of its first.
        """
        tensors = self.layout.tensors
        messages = _Messages(self.layout.stores[1], [rows[at] for at in tensors.missing(keys)])
        begin = held = 0
        stretch: list[Tensor | InvalidArgument] = []
        for at, tensor in enumerate(tensors.get_all(keys)):
            if tensor is not None:
                stretch.append(tensor)
                continue
            try:
                decoded = tensors.add(keys[at], messages.get(rows[at]))
            except InvalidArgument as error:
                stretch.append(error)
                continue
            stretch.append(decoded)
            held += size_of(decoded)
            if held > _HELD_BYTES:
                yield begin, stretch
                begin, held, stretch = at + 1, 0, []
        yield begin, stretch


def _join(tensors: Sequence[Any], slices: Sequence[_Slice], target: NDArray[Any]) -> bool:
    """Copy all slices of a column in one call; return False, so that each is looked at, if some do not fit."""
    try:
        parts = [tensors[number][offset : offset + length] for number, offset, length in slices]
        np.concatenate(parts, out=target, casting="no")
    except (TypeError, ValueError):
        return False
    return True


def _copy(
    tensors: Sequence[Tensor | InvalidArgument], begin: int, slices: Sequence[_Slice], target: Any, spec: ArraySpec
) -> dict[int, str]:
    """Copy the slices of a column that are in `tensors`, the first of which is number `begin`.

    Returns:
        By number, what is wrong with tensors.
    """
    damaged = {}
    at = 0
    for number, offset, length in slices:
        if begin <= number < begin + len(tensors):
            tensor = tensors[number - begin]
            try:
                if isinstance(tensor, InvalidArgument):
                    raise tensor
                target[at : at + length] = fitted(tensor, offset, length, spec)
            except InvalidArgument as error:
                damaged[number] = str(error)
        at += length
    return damaged


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
