"""Rows that differ in size: their bytes back to back, with size and shape beside them."""

from __future__ import annotations

import codecs
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.dtypes import MAX_ROW_BYTES, TEXT, check_values
from reverb_async.core.leaf import Leaf
from reverb_async.core.spec import ArraySpec, leaf_spec, spanned_bytes
from reverb_async.errors import InvalidArgument

_UTF8_SLICE = 1 << 20
_SLICED_FROM = 64
"""Mean row size in bytes from which copying row by row beats one gather by byte index."""


@dataclass(slots=True)
class VariableRows:
    """n rows of one variable column.

    Attributes:
        data: uint8 ``[total]``, the rows' bytes back to back: C order, or UTF-8 for text.
        sizes: int64 ``[n]``, bytes per row.
        shapes: int32 ``[n, rank]``; rank is 0 for text and bytes.
    """

    data: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    shapes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each row begins, and where the last one ends: int64 ``[n + 1]``."""
        offsets = np.zeros(len(self.sizes) + 1, np.int64)
        np.cumsum(self.sizes, out=offsets[1:])
        return offsets

    def split(self) -> list[NDArray[np.uint8]]:
        """Return each row's bytes, uint8 ``[size]``, as views of `data`."""
        ends = self.offsets.tolist()
        return [self.data[start:end] for start, end in itertools.pairwise(ends)]

    def take(self, indices: NDArray[np.integer[Any]]) -> VariableRows:
        """Return copies of the rows at `indices`, in that order; repeats and negative indices are allowed."""
        sizes = self.sizes[indices]
        offsets = self.offsets
        starts = offsets[:-1][indices]
        total = int(sizes.sum())
        if total >= _SLICED_FROM * len(sizes):
            data = np.empty(total, np.uint8)
            at = 0
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
                data[at : at + size] = self.data[start : start + size]
                at += size
        else:
            shifts = starts - (np.cumsum(sizes) - sizes)  # from a byte's place in the result to its place in `data`
            data = self.data[np.arange(total) + np.repeat(shifts, sizes)]
        return VariableRows(data, sizes, self.shapes[indices])

    def validate(self, spec: ArraySpec) -> None:
        """Refuse rows that are no rows of `spec`: they may come from a stranger.

        Raises:
            InvalidArgument: array types, sizes, shapes, or content (UTF-8, bools, code points) are wrong.
        """
        _check_row_spec(spec)
        self._check_arrays(len(spec.shape))
        self._check_sizes()
        if spec.dtype.itemsize:
            self._check_shapes(spec)
            check_values(self.data.view(spec.dtype), "rows")
        elif spec.dtype == TEXT:
            self._check_utf8()

    def _check_arrays(self, rank: int) -> None:
        for name, ndim in (("data", 1), ("sizes", 1), ("shapes", 2)):
            array, dtype = getattr(self, name), _DTYPES[name]
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
                raise InvalidArgument(
                    f"{name} of variable rows must be {dtype} with {ndim} dimensions, got {_kind(array)}"
                )
        if not self.data.flags.c_contiguous:
            raise InvalidArgument("data of variable rows must be contiguous")
        if self.shapes.shape != (len(self.sizes), rank):
            raise InvalidArgument(
                f"{len(self.sizes)} rows of rank {rank} need shapes [{len(self.sizes)}, {rank}], "
                f"got {list(self.shapes.shape)}"
            )

    def _check_sizes(self) -> None:
        if len(self.sizes) and (self.sizes.min() < 0 or self.sizes.max() > MAX_ROW_BYTES):
            raise InvalidArgument(
                f"sizes must lie between 0 and {MAX_ROW_BYTES}, got {self.sizes.min()} to {self.sizes.max()}"
            )
        total = int(self.sizes.sum())  # cannot overflow: 2**33 rows of 2**30 bytes do not fit into memory
        if total != len(self.data):
            raise InvalidArgument(f"sizes add up to {total} bytes, data have {len(self.data)}")

    def _check_shapes(self, spec: ArraySpec) -> None:
        if len(self.shapes) == 0:
            return
        lowest, highest = self.shapes.min(axis=0).tolist(), self.shapes.max(axis=0).tolist()
        if min(lowest, default=0) < 0:
            raise InvalidArgument(f"shapes must not be negative, got {min(lowest)}")
        for axis, wanted in enumerate(spec.shape):
            if wanted is not None and (lowest[axis] != wanted or highest[axis] != wanted):
                odd = lowest[axis] if lowest[axis] != wanted else highest[axis]
                raise InvalidArgument(f"rows must be {spec}, one has the extent {odd} in dimension {axis}")
        # In float64: products of extents overflow int64, but are exact here up to 2**53, far above MAX_ROW_BYTES.
        extents = self.shapes.astype(np.float64)
        spanned = np.maximum(extents, 1.0).prod(axis=1) * spec.dtype.itemsize
        if spanned.max() > MAX_ROW_BYTES:
            raise InvalidArgument(
                f"shape {self.shapes[spanned.argmax()].tolist()} is more than {MAX_ROW_BYTES} bytes of {spec.dtype}"
            )
        needed = extents.prod(axis=1) * spec.dtype.itemsize
        wrong = np.flatnonzero(needed != self.sizes)
        if len(wrong):
            row = int(wrong[0])
            raise InvalidArgument(
                f"row {row} of shape {self.shapes[row].tolist()} has {self.sizes[row]} bytes, "
                f"{spec.dtype} needs {int(needed[row])}"
            )

    def _check_utf8(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        raw = self.data.data
        try:
            for start in range(0, len(raw), _UTF8_SLICE):  # in slices: decoded text can take four times the bytes
                decoder.decode(raw[start : start + _UTF8_SLICE])
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"text is not valid UTF-8: {error.reason}") from error
        # The whole being valid, each row is as soon as none begins within a character.
        starts = self.offsets[:-1][self.sizes > 0]
        if np.any((self.data[starts] & 0xC0) == 0x80):
            raise InvalidArgument("text is not valid UTF-8: a row begins within a character")


_DTYPES = {"data": np.dtype(np.uint8), "sizes": np.dtype(np.int64), "shapes": np.dtype(np.int32)}


def _check_row_spec(spec: ArraySpec) -> None:
    if spec.dtype.itemsize == 0 and spec.shape:
        raise InvalidArgument(
            f"a row holds one {spec.dtype.name}, not {spec}; "
            f"for arrays fix the width, as in ArraySpec((4,), '{spec.dtype.kind}16')"
        )


def encode_rows(leaves: Sequence[Leaf], spec: ArraySpec) -> VariableRows:
    """Copy values, as `as_leaf` returns them, into rows of `spec`.

    Raises:
        InvalidArgument: one of them does not fit `spec`; the message has its position.
    """
    _check_row_spec(spec)
    n = len(leaves)
    if spec.dtype.itemsize == 0:
        parts = [_encoded(leaf, position, spec) for position, leaf in enumerate(leaves)]
        data = np.frombuffer(b"".join(parts), np.uint8)
        return VariableRows(data, np.fromiter(map(len, parts), np.int64, n), np.zeros((n, 0), np.int32))
    for position, leaf in enumerate(leaves):
        if not isinstance(leaf, np.ndarray) or leaf.dtype != spec.dtype or not spec.admits(leaf.shape):
            raise InvalidArgument(f"row {position} is {leaf_spec(leaf)}, the column is {spec}")
        if spanned_bytes(leaf.shape, leaf.dtype) > MAX_ROW_BYTES:
            raise InvalidArgument(f"row {position} of shape {leaf.shape} has more than {MAX_ROW_BYTES} bytes")
    arrays = [leaf for leaf in leaves if isinstance(leaf, np.ndarray)]
    sizes = np.fromiter((array.nbytes for array in arrays), np.int64, n)
    shapes = np.array([array.shape for array in arrays], np.int32).reshape(n, len(spec.shape))
    data = np.empty(int(sizes.sum()), np.uint8)
    at = 0
    for array in arrays:
        data[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        at += array.nbytes
    return VariableRows(data, sizes, shapes)


def _encoded(leaf: Leaf, position: int, spec: ArraySpec) -> bytes:
    if isinstance(leaf, str) and spec.dtype == TEXT:
        try:
            row = leaf.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"row {position}: text with a lone surrogate is not valid Unicode") from error
    elif isinstance(leaf, bytes) and spec.dtype != TEXT:
        row = leaf
    else:
        raise InvalidArgument(f"row {position} is {leaf_spec(leaf)}, the column is {spec}")
    if len(row) > MAX_ROW_BYTES:
        raise InvalidArgument(f"row {position} has {len(row)} bytes, at most {MAX_ROW_BYTES} are allowed")
    return row


def decode_rows(rows: VariableRows, spec: ArraySpec) -> list[Leaf]:
    """Return each row as a value of its own: a `str`, a `bytes`, or a writable, 64-byte aligned array.

    The rows are trusted: what came from a stranger goes through `VariableRows.validate` first.
    """
    if spec.dtype == TEXT:
        return [str(row.data, "utf-8") for row in rows.split()]
    if spec.dtype.itemsize == 0:
        return [row.tobytes() for row in rows.split()]
    return [_owned(row, shape, spec) for row, shape in zip(rows.split(), map(tuple, rows.shapes.tolist()), strict=True)]


def _owned(row: NDArray[np.uint8], shape: tuple[int, ...], spec: ArraySpec) -> NDArray[Any]:
    room = np.empty(len(row) + 63, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + len(row)]
    copy[:] = row
    assert math.prod(shape) * spec.dtype.itemsize == len(row), "rows were not validated"
    return copy.view(spec.dtype).reshape(shape)


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
