"""Several batches in one buffer: what the server answers whom asked for it in its subscription.

The plain form has a buffer for each array, eleven for a batch of five columns, and each of them costs several
microseconds at either end. The packed form has one, in which the arrays follow each other, each at a multiple of 64
bytes, where the header alone tells their places:

1. of all items of all its batches: keys, probabilities, priorities, times sampled, table sizes, insertion times;
2. per piece: the positions of its items, if it is not the only one; per view, the lengths of the items if they differ;
3. per piece: the columns of fixed rows.

Columns of variable rows follow in buffers of their own. The header's entry is ``[seq, count, size, rate_limited,
pieces]``: `count` batches of `size` items each, numbered from `seq` on; a piece is ``[layout, items, has positions,
lengths]``, with -1 for a view whose items differ. Several batches in one entry have a single piece.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.variable import VariableRows
from reverb_async.protocol.inserting import put_column
from reverb_async.protocol.message import Buffer
from reverb_async.protocol.sampled import INFO, SampledLayout

MAX_BATCHES_PER_ENTRY = 256

_ALIGNMENT = 64
_INT64 = np.dtype(np.int64)
_MAX_KNOWN = 256
"""Places that are kept for the next entries of the same kind."""

Place = tuple[tuple[int, ...], np.dtype[Any], int]
"""Shape, dtype and first byte of an array."""


class Places:
    """Where arrays stand in a buffer.

    Attributes:
        nbytes: size of the buffer.
    """

    __slots__ = ("_names", "_places", "_record", "nbytes")

    def __init__(self) -> None:
        self.nbytes = 0
        self._places: list[Place] = []
        self._record: np.dtype[np.void] | None = None
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._places)

    def add(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Put an array behind the others."""
        start = -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._places.append((shape, dtype, start))
        self.nbytes = start + math.prod(shape) * dtype.itemsize

    def settle(self) -> None:
        """Prepare for many buffers: the fields of a record are found in a third of the time that arrays are made in."""
        shapes, dtypes, starts = zip(*self._places, strict=True)
        self._names = [str(at) for at in range(len(self._places))]
        formats = list(zip(dtypes, shapes, strict=True))
        # NumPy refuses sizes and extents beyond a C int.
        with contextlib.suppress(ValueError):
            self._record = np.dtype(
                {"names": self._names, "formats": formats, "offsets": starts, "itemsize": self.nbytes}
            )

    def arrays(self, buffer: NDArray[np.uint8], start: int = 0) -> list[NDArray[Any]]:
        """Return the arrays, from number `start` on, as views of `buffer`, which has `nbytes` or more."""
        if self._record is not None and not start:
            record = np.ndarray((), self._record, buffer)
            return [record[name] for name in self._names]
        return [np.ndarray(shape, dtype, buffer, offset) for shape, dtype, offset in self._places[start:]]


class PieceHead(NamedTuple):
    """What the header says of a piece.

    Attributes:
        layout: how its items look.
        items: how many it has.
        positioned: it is not the only one: the places of its items in the batch are named.
        lengths: per view, the rows of each item; -1 if they differ.
    """

    layout: SampledLayout
    items: int
    positioned: bool
    lengths: tuple[int, ...]

    @property
    def is_even(self) -> bool:
        """Whether this head alone tells the places of everything."""
        return not self.positioned and -1 not in self.lengths


class Packer:
    """Knows the places of the arrays of one stream's entries; an entry like an earlier one costs a dictionary look-up.

    Both ends of a stream have one.
    """

    def __init__(self) -> None:
        self._known: dict[object, Places] = {}

    def even(self, head: PieceHead) -> Places:
        """Return the places in an entry whose only piece `is_even`."""
        key = (head.layout.id, head.items, head.lengths)
        places = self._known.get(key)
        if places is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            places = self._known[key] = self.heads(head.items, [head])
            self.columns(places, head, [head.items * length for length in head.lengths])
            places.settle()
        return places

    def heads(self, items: int, pieces: Sequence[PieceHead]) -> Places:
        """Return the places of everything but columns, in an entry of `items` items."""
        places = Places()
        for dtype in INFO:
            places.add((items,), dtype)
        for piece in pieces:
            if piece.positioned:
                places.add((piece.items,), _INT64)
            for length in piece.lengths:
                if length < 0:
                    places.add((piece.items,), _INT64)
        return places

    def columns(self, places: Places, piece: PieceHead, totals: Sequence[int]) -> None:
        """Add the columns of fixed rows of a piece; `totals` are its rows per view."""
        for view, _, spec in piece.layout.leaves:
            if not spec.is_variable:
                places.add((totals[view], *spec.fixed_shape), spec.dtype)


@dataclass(slots=True)
class PackedBatches:
    """An entry: `count` batches of `size` items with consecutive numbers.

    Attributes:
        seq: the first batch's number.
        count: batches.
        size: items in each.
        rate_limited: the first of them had to wait for the rate limiter.
        heads: what there is to say of each piece.
        buffer: uint8 ``[n]``: everything that has a place.
        variable: the columns of variable rows, piece after piece.
    """

    seq: int
    count: int
    size: int
    rate_limited: bool
    heads: list[PieceHead]
    buffer: NDArray[np.uint8]
    variable: list[VariableRows]

    def to_header(self, buffers: list[Buffer]) -> list[Any]:
        """Return the header's entry, and add to the message's buffers."""
        buffers.append(self.buffer)
        for column in self.variable:
            put_column(buffers, column)
        pieces = [[head.layout.id, head.items, head.positioned, list(head.lengths)] for head in self.heads]
        return [self.seq, self.count, self.size, self.rate_limited, pieces]
