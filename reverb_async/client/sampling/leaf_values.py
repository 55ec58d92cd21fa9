"""One column of a sampled batch: stacked where items agree, row after row where they differ in length, else a list."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.ragged import Ragged
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage.backing import aligned_empty
from reverb_async.core.variable import VariableRows, decode_rows
from reverb_async.protocol.inserting import Column

_OBJECT = np.dtype(object)


@dataclass(slots=True)
class Stacked:
    """Items of one shape.

    Attributes:
        values: ``[m, *item_shape]``.
        varies: the first axis of an item may be longer or shorter in another batch.
    """

    values: NDArray[Any]
    varies: bool

    def items(self) -> list[Any]:
        """Return the items."""
        return list(self.values)


@dataclass(slots=True)
class Rows:
    """Items that differ in the length of their first axis only.

    Attributes:
        values: ``[sum(lengths), *row_shape]``.
        lengths: int64 ``[m]``.
    """

    values: NDArray[Any]
    lengths: NDArray[np.int64]

    def offsets(self) -> NDArray[np.int64]:
        """Return where the items begin, and where the last one ends: int64 ``[m + 1]``."""
        offsets = np.zeros(len(self.lengths) + 1, np.int64)
        np.cumsum(self.lengths, out=offsets[1:])
        return offsets

    def items(self) -> list[Any]:
        """Return the items, as views."""
        ends = self.offsets().tolist()
        return [self.values[start:stop] for start, stop in itertools.pairwise(ends)]


@dataclass(slots=True)
class Listed:
    """Items that have nothing in common but their column."""

    values: list[Any]

    def items(self) -> list[Any]:
        """Return the items."""
        return self.values


Values: TypeAlias = Stacked | Rows | Listed


def leaf_values(spec: ArraySpec, squeeze: bool, length: int | NDArray[np.int64], column: Column, count: int) -> Values:
    """Return what `count` items of one layout have in a column, without copying fixed rows.

    Args:
        spec: of one row.
        squeeze: each item is its single row, without a time axis.
        length: rows of each item.
        column: the rows.
        count: the number of items.
    """
    varies = not squeeze
    if isinstance(column, VariableRows):
        if spec.dtype.itemsize == 0:
            column = _objects(decode_rows(column, spec))
        else:
            shape = _common_shape(column.shapes, spec)
            if shape is None:
                return _variable_items(column, spec) if squeeze else _variable_steps(column, spec, length, count)
            column = _writable(column.data).view(spec.dtype).reshape(len(column), *shape)
            varies = varies or spec.shape[0] is None
    if squeeze:
        return Stacked(column, varies)
    if isinstance(length, int):
        return Stacked(column.reshape(count, length, *column.shape[1:]), True)
    return Rows(column, length)


def single_value(spec: ArraySpec, squeeze: bool, column: Column) -> Any:
    """Return the value of a column that holds one item: a NumPy scalar, an array, a str or a bytes.

    An item of several variable rows is an array if they agree, a `Ragged` if they differ in length only, else a list.
    """
    if isinstance(column, np.ndarray):
        return column[0] if squeeze else column
    values = leaf_values(spec, squeeze, len(column), column, 1)
    if isinstance(values, Rows):
        return values.values
    return values.items()[0]


def merged(parts: Sequence[tuple[NDArray[np.int64], Values]], size: int) -> Values:
    """Return the values of several layouts in the order of the batch; all positions together are ``range(size)``."""
    values = [part for _, part in parts]
    stacks = [part for part in values if isinstance(part, Stacked)]
    dtypes = {part.values.dtype for part in values if not isinstance(part, Listed)}
    if len(stacks) == len(values) and len(dtypes) == 1 and len({part.values.shape[1:] for part in stacks}) == 1:
        out = empty((size, *stacks[0].values.shape[1:]), stacks[0].values.dtype)
        for positions, part in parts:
            out[positions] = part.values
        return Stacked(out, any(part.varies for part in stacks))
    items: list[Any] = [None] * size
    for positions, part in parts:
        for position, item in zip(positions.tolist(), part.items(), strict=True):
            items[position] = item
    first = items[0]
    if len(dtypes) == 1 and all(
        isinstance(item, np.ndarray) and item.ndim and item.shape[1:] == first.shape[1:] for item in items
    ):
        return Rows(np.concatenate(items), np.fromiter(map(len, items), np.int64, size))
    return Listed(items)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array to be filled; 64-byte aligned, unless it holds objects."""
    return np.empty(shape, dtype) if dtype == _OBJECT else aligned_empty(shape, dtype)


def owned(array: NDArray[Any]) -> NDArray[Any]:
    """Return an aligned, writable, C-contiguous copy."""
    copy = empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def _objects(leaves: Sequence[object]) -> NDArray[Any]:
    out = np.empty(len(leaves), object)
    out[:] = leaves
    return out


def _writable(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return data if data.flags.writeable else owned(data)


def _common_shape(shapes: NDArray[np.int32], spec: ArraySpec) -> tuple[int, ...] | None:
    """Return the shape all rows have; None if they differ."""
    if not len(shapes):
        return tuple(extent or 0 for extent in spec.shape)
    return tuple(shapes[0].tolist()) if (shapes == shapes[0]).all() else None


def _variable_items(rows: VariableRows, spec: ArraySpec) -> Rows | Listed:
    """Return items that are a row each."""
    if (shape := _common_row_shape(rows.shapes)) is None:
        return Listed(decode_rows(rows, spec))
    lengths = rows.shapes[:, 0].astype(np.int64)
    return Rows(_writable(rows.data).view(spec.dtype).reshape(int(lengths.sum()), *shape), lengths)


def _variable_steps(rows: VariableRows, spec: ArraySpec, length: int | NDArray[np.int64], count: int) -> Values:
    """Return items of several rows which are not all alike."""
    lengths = np.full(count, length) if isinstance(length, int) else length
    stops = np.cumsum(lengths).tolist()
    leaves = decode_rows(rows, spec)
    items = [_steps(leaves[stop - n : stop]) for stop, n in zip(stops, lengths.tolist(), strict=True)]
    if all(isinstance(item, np.ndarray) and item.shape[1:] == items[0].shape[1:] for item in items):
        return Rows(np.concatenate(items), lengths)
    return Listed(items)


def _steps(rows: list[Any]) -> Any:
    """Join the rows of one item."""
    if not rows or all(row.shape == rows[0].shape for row in rows):
        return np.stack(rows) if rows else np.empty(0)
    if rows[0].ndim and all(row.shape[1:] == rows[0].shape[1:] for row in rows):
        return Ragged.from_list(rows)
    return rows


def _common_row_shape(shapes: NDArray[np.int32]) -> tuple[int, ...] | None:
    """Return the shape of all rows without its first extent; None if they differ."""
    rest = shapes[:, 1:]
    return tuple(rest[0].tolist()) if (rest == rest[0]).all() else None
