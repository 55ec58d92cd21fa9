"""The arrays of a store, one after the other in one piece of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage.backing import PAGE, Backing, physical_memory, round_up
from reverb_async.errors import ResourceExhausted

Column = NDArray[np.generic]

MAX_ROWS = 1 << 31
EXTENT_ROWS = 64
EXTENT_BYTES = 4 << 20
"""Extents of large rows are shorter than 64: a few holes in them would be too much memory."""
_MAX_RESERVE = 2 << 40
"""Some 450 stores share 128 TiB of address space, also on machines with more memory than most."""
_FIRST_EXTENTS = 16
_COUNT_BYTES = 8


class Columns:
    """Arrays of rows: one per spec, and the holds of each row.

    Args:
        specs: one per column; variable ones hold uint64 handles.
        reserve_bytes: how large everything may become; by default twice the machine's memory.
        backing: the kind of memory.

    Attributes:
        row_bytes: bytes of a row, its counts excluded.
        extent: rows per extent, a power of two.
        limit: rows there can ever be, a multiple of `extent`.
        capacity: rows there are; less than `limit` only where memory is not sparse.
        backing: the memory.
        arrays: ``[capacity, *row_shape]`` each.
        counts: int64 ``[capacity]``.

    Raises:
        ResourceExhausted: there is no room for a single extent.
    """

    def __init__(self, specs: Sequence[ArraySpec], reserve_bytes: int | None, backing: type[Backing]) -> None:
        self._described = _described(specs)
        self._kind = backing
        self._formats = [_format(spec) for spec in specs]
        widths = [math.prod(shape) * dtype.itemsize for dtype, shape in self._formats]
        self._widths = (*widths, _COUNT_BYTES)
        self.row_bytes = sum(widths)
        self.extent = min(EXTENT_ROWS, 1 << max(EXTENT_BYTES // self.width, 1).bit_length() - 1)
        nbytes = reserve_bytes or min(2 * physical_memory(), _MAX_RESERVE)
        self.limit = self._whole_extents(nbytes // self.width)
        if self.limit == 0:
            raise ResourceExhausted(
                f"rows of {self._described} have {self.row_bytes} bytes: too large for a store of {nbytes} bytes"
            )
        self._refused = ""
        while True:
            try:
                self._lay_out(self.limit if backing.sparse else min(self.limit, _FIRST_EXTENTS * self.extent))
                return
            except ResourceExhausted as error:
                # Address space can be scarce (ulimit -v, -f): then stores that come late are smaller.
                self._refused = f"; {error}"
                self.limit = self._whole_extents(self.limit // 2)
                if reserve_bytes is not None or self.limit == 0:
                    raise

    @property
    def width(self) -> int:
        """Bytes a row takes in all."""
        return self.row_bytes + _COUNT_BYTES

    @property
    def offsets(self) -> list[int]:
        """Where each array begins in the memory."""
        return self._offsets[:-1]

    def _whole_extents(self, rows: int) -> int:
        return min(MAX_ROWS, rows) // self.extent * self.extent

    def _lay_out(self, rows: int) -> None:
        """Each array begins at a page, so that 4096 rows of any array are whole pages."""
        ends = [0]
        for width in self._widths:
            ends.append(ends[-1] + round_up(rows * width, PAGE))
        self.backing = self._kind(ends.pop())
        self._offsets = ends
        memory = self.backing.array
        self.arrays: list[Column] = [
            np.ndarray((rows, *shape), dtype, memory, offset)
            for (dtype, shape), offset in zip(self._formats, ends, strict=False)
        ]
        self.counts: NDArray[np.int64] = np.ndarray((rows,), np.int64, memory, ends[-1])
        self.capacity = rows

    def grow(self, needed: int, reached: int) -> None:
        """Make room for `needed` rows by moving the `reached` first ones to a larger piece of memory.

        Raises:
            ResourceExhausted: that is beyond the limit; nothing has changed.
        """
        if needed > self.limit:
            raise ResourceExhausted(
                f"the store of {self._described} is full: it has room for {self.limit} rows of {self.row_bytes} bytes, "
                f"{needed} are needed{self._refused}"
            )
        old = (*self.arrays, self.counts)
        self._lay_out(min(self.limit, self._whole_extents(max(2 * self.capacity, needed + self.extent - 1))))
        for source, target in zip(old, (*self.arrays, self.counts), strict=True):
            target[:reached] = source[:reached]

    def give_back(self, first: int, stop: int, low: int, high: int) -> None:
        """Give back the memory of the free rows ``[first, stop)``.

        Small rows share pages with their neighbours: pages at the edges go too, as far as ``[low, high)`` is free.
        """
        for offset, width in zip(self._offsets, self._widths, strict=True):
            start = max(first * width // PAGE * PAGE, low * width)
            end = min(round_up(stop * width, PAGE), high * width)
            self.backing.release(offset + start, offset + end)


def _format(spec: ArraySpec) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    """Return dtype and shape of a column's rows in memory."""
    if spec.is_variable:
        return np.dtype(np.uint64), ()
    return spec.dtype, tuple(extent for extent in spec.shape if extent is not None)


def _described(specs: Sequence[ArraySpec]) -> str:
    shown = [str(spec) for spec in specs[:4]]
    if len(specs) > len(shown):
        shown.append(f"and {len(specs) - len(shown)} more columns")
    return f"({', '.join(shown)})"
