"""Reads what `protocol.packing` describes: from one buffer to the batches in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.storage.backing import ALIGNMENT, aligned_empty, round_up
from reverb_async.core.variable import VariableRows
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.fields import integer, items_of
from reverb_async.protocol.inserting import Column, take_column
from reverb_async.protocol.message import BufferReader
from reverb_async.protocol.packing import MAX_BATCHES_PER_ENTRY, Packer, PieceHead, Places
from reverb_async.protocol.sampled import (
    INFO,
    MAX_BATCH_SIZE,
    MAX_ITEM_ROWS,
    SampledBatch,
    SampledLayout,
    SampledPiece,
)

_UINT8 = np.dtype(np.uint8)

Lengths = int | NDArray[np.int64]


class Unpacker:
    """Reads the entries of one stream.

    Args:
        layouts: the layouts that the stream has declared so far, by number.
    """

    def __init__(self, layouts: Mapping[int, SampledLayout]) -> None:
        self._layouts = layouts
        self._packer = Packer()

    def read(self, entry: Sequence[Any], reader: BufferReader) -> list[SampledBatch]:
        """Return the batches of an entry: views of what was received, or copies where these would not be aligned.

        Raises:
            InvalidArgument: the entry is malformed.
        """
        seq, count, size = integer(entry[0], "seq"), integer(entry[1], "count"), integer(entry[2], "size")
        if not 1 <= count <= MAX_BATCHES_PER_ENTRY or not 1 <= size <= MAX_BATCH_SIZE:
            raise InvalidArgument(
                f"an entry holds 1 to {MAX_BATCHES_PER_ENTRY} batches of 1 to {MAX_BATCH_SIZE} items, "
                f"got {count} of {size}"
            )
        heads = [self._head(piece) for piece in items_of({"pieces": entry[4]}, "pieces", 4)]
        items = heads[0].items if len(heads) == 1 else sum([head.items for head in heads])
        is_whole = len(heads) == 1 and not heads[0].positioned
        if items != count * size or not (is_whole or (count == 1 and all([head.positioned for head in heads]))):
            raise InvalidArgument(
                f"{count} batches of {size} items cannot be made of pieces of {[head.items for head in heads]}"
            )
        info, pieces = self._arrays(items, heads, reader)
        limited = bool(entry[3])
        if count == 1:
            keys, probabilities, priorities, times, sizes, inserted_at = info
            return [SampledBatch(seq, keys, probabilities, priorities, times, sizes, inserted_at, limited, pieces)]
        facts = [array.reshape(count, size) for array in info]
        return [
            SampledBatch(
                seq + at, keys, probabilities, priorities, times, sizes, inserted_at, limited and at == 0, [piece]
            )
            for at, (keys, probabilities, priorities, times, sizes, inserted_at, piece) in enumerate(
                zip(*facts, _split_piece(pieces[0], count, size), strict=True)
            )
        ]

    def _head(self, entry: Sequence[Any]) -> PieceHead:
        layout = self._layouts.get(entry[0]) if isinstance(entry[0], int) else None
        if layout is None:
            raise InvalidArgument(f"a batch names layout {entry[0]!r:.60}, which was not declared")
        lengths = tuple(items_of({"lengths": entry[3]}, "lengths"))
        if len(lengths) != layout.num_views:
            raise InvalidArgument(f"layout {layout.id} has {layout.num_views} views, a piece names {len(lengths)}")
        for length in lengths:
            if type(length) is not int or not -1 <= length <= MAX_ITEM_ROWS:
                raise InvalidArgument(f"an item has 0 to {MAX_ITEM_ROWS} rows, or -1: each its own; got {length!r:.60}")
        return PieceHead(layout, integer(entry[1], "items"), bool(entry[2]), lengths)

    def _arrays(
        self, items: int, heads: list[PieceHead], reader: BufferReader
    ) -> tuple[list[NDArray[Any]], list[SampledPiece]]:
        """Return the arrays of info, ``[items]`` each, and the pieces of all batches together."""
        buffer = reader.bytes()
        if len(heads) == 1 and heads[0].is_even:
            head = heads[0]
            places = self._packer.even(head)
            _check(buffer, places, buffer.nbytes == places.nbytes)
            arrays = iter(places.arrays(buffer))
            info = list(itertools.islice(arrays, len(INFO)))
            totals = [head.items * length for length in head.lengths]
            columns = _columns(head.layout, arrays, totals, reader)
            return info, [SampledPiece(head.layout, None, list(head.lengths), columns)]
        places = self._packer.heads(items, heads)
        _check(buffer, places, buffer.nbytes >= places.nbytes)
        arrays = iter(places.arrays(buffer))
        info = list(itertools.islice(arrays, len(INFO)))
        found = [_places_and_lengths(head, items, arrays) for head in heads]
        behind = len(places)
        for head, (_, _, totals) in zip(heads, found, strict=True):
            self._packer.columns(places, head, totals)
        _check(buffer, places, buffer.nbytes == places.nbytes)
        arrays = iter(places.arrays(buffer, behind))
        return info, [
            SampledPiece(head.layout, positions, lengths, _columns(head.layout, arrays, totals, reader))
            for head, (positions, lengths, totals) in zip(heads, found, strict=True)
        ]


def _check(buffer: NDArray[np.uint8], places: Places, fits: bool) -> None:
    if not fits:
        raise InvalidArgument(f"the header speaks of {places.nbytes} bytes, the buffer has {buffer.nbytes}")


def _places_and_lengths(
    head: PieceHead, items: int, arrays: Iterator[NDArray[Any]]
) -> tuple[NDArray[np.int64] | None, list[Lengths], list[int]]:
    """Return where the items of a piece stand, their lengths per view, and the rows per view."""
    positions: NDArray[np.int64] | None = None
    if head.positioned:
        positions = next(arrays)
        if len(positions) and not (positions.min() >= 0 and positions.max() < items):
            raise InvalidArgument(f"positions lie between 0 and {items - 1}")
    lengths: list[Lengths] = []
    totals: list[int] = []
    for length in head.lengths:
        if length >= 0:
            lengths.append(length)
            totals.append(head.items * length)
            continue
        each = next(arrays)
        if len(each) and not (each.min() >= 0 and each.max() <= MAX_ITEM_ROWS):
            raise InvalidArgument(f"an item has 0 to {MAX_ITEM_ROWS} rows, got {each.min()} to {each.max()}")
        lengths.append(each)
        totals.append(int(each.sum()))
    return positions, lengths, totals


def _columns(
    layout: SampledLayout, arrays: Iterator[NDArray[Any]], totals: Sequence[int], reader: BufferReader
) -> list[Column]:
    if layout.is_fixed:
        return list(itertools.islice(arrays, len(layout.leaves)))
    return [
        take_column(reader, spec, totals[view]) if spec.is_variable else next(arrays) for view, _, spec in layout.leaves
    ]


# -- several batches --------------------------------------------------------------------------------------------------


def _split_piece(piece: SampledPiece, count: int, size: int) -> list[SampledPiece]:
    """Return the pieces of `count` batches of `size` items, given all of them together."""
    bounds = [_bounds(length, count, size) for length in piece.lengths]
    lengths: list[list[Lengths]] = [
        [length] * count if isinstance(length, int) else list(length.reshape(count, size)) for length in piece.lengths
    ]
    columns = [
        _split_column(column, bounds[view], isinstance(piece.lengths[view], int))
        for (view, _, _), column in zip(piece.layout.leaves, piece.columns, strict=True)
    ]
    return [
        SampledPiece(piece.layout, None, [each[at] for each in lengths], [parts[at] for parts in columns])
        for at in range(count)
    ]


def _bounds(length: Lengths, count: int, size: int) -> list[int]:
    """Return the row where each batch begins, and where the last one ends."""
    if isinstance(length, int):
        return [at * size * length for at in range(count + 1)]
    return [0, *np.cumsum(length)[size - 1 :: size].tolist()]


def _split_column(column: Column, bounds: list[int], even: bool) -> list[Any]:
    """Cut a column at `bounds`; each part begins at a multiple of 64 bytes."""
    if isinstance(column, VariableRows):
        offsets = column.offsets[bounds].tolist()
        data = _aligned_parts(column.data, offsets)
        return [
            VariableRows(data[at], column.sizes[start:stop], column.shapes[start:stop])
            for at, (start, stop) in enumerate(itertools.pairwise(bounds))
        ]
    if even:
        parts = column.reshape(len(bounds) - 1, bounds[1], *column.shape[1:])
        return list(parts if parts.strides[0] % ALIGNMENT == 0 else _spread(parts))
    return _aligned_parts(column, bounds)


def _spread(parts: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of ``[count, ...]`` in which each part is contiguous and begins at a multiple of 64 bytes."""
    stride = round_up(parts.strides[0], ALIGNMENT)
    room = aligned_empty((len(parts) * stride,), _UINT8)
    spread: NDArray[Any] = np.ndarray(parts.shape, parts.dtype, room, 0, (stride, *parts.strides[1:]))
    spread[...] = parts
    return spread


def _aligned_parts(column: NDArray[Any], bounds: list[int]) -> list[NDArray[Any]]:
    row_bytes = column.strides[0] if len(column) else 0
    parts = [column[start:stop] for start, stop in itertools.pairwise(bounds)]
    if all(start * row_bytes % ALIGNMENT == 0 for start in bounds[:-1]):
        return parts
    copies = []
    for part in parts:
        copies.append(aligned_empty(part.shape, part.dtype))
        copies[-1][...] = part
    return copies
