"""What the columns of incoming items are, and how native readers are shown them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from reverb_async.compat.tensors import dtype_of
from reverb_async.core.dtypes import BYTES, DType
from reverb_async.core.encoded import EncodedItems
from reverb_async.core.item import ItemLayout
from reverb_async.core.spec import ArraySpec, Signature
from reverb_async.core.structure import Structure
from reverb_async.core.tree import LEAF, MAX_LEAVES, Node
from reverb_async.errors import InvalidArgument, SignatureMismatch
from reverb_async.table import Table

MAX_CACHED_COLUMNS = 1 << 16
"""Columns of all the layouts that are remembered for the next items like them."""


class Kind:
    """Dtype and row shape of a tensor: there is one object for all tensors alike, so identity compares them.

    Attributes:
        spec: of one row; arrays of strings get their width from the items (see `spec_of`).
        row_bytes: of one decoded row; 0 where rows differ in size.
        is_string_array: rows are arrays of strings.
    """

    __slots__ = ("__weakref__", "is_string_array", "row_bytes", "spec")

    def __init__(self, dtype: DType, row_shape: tuple[int, ...]) -> None:
        self.is_string_array = dtype == BYTES and bool(row_shape)
        self.spec = ArraySpec(row_shape, np.dtype("S1") if self.is_string_array else dtype)
        self.row_bytes = 0 if dtype == BYTES else self.spec.row_bytes

    def spec_of(self, width: int) -> ArraySpec:
        """Return the spec of one row, of strings of at most `width` bytes."""
        if not self.is_string_array:
            return self.spec
        return ArraySpec(self.spec.shape, np.dtype(f"S{1 << max(width - 1, 0).bit_length()}"))


_kinds: WeakValueDictionary[tuple[int, tuple[int, ...]], Kind] = WeakValueDictionary()


@lru_cache(maxsize=1024)
def kind_of(dtype: int, row_shape: tuple[int, ...]) -> Kind:
    """Return the kind of a tensor, its dtype given as DeepMind's clients number it.

    Raises:
        InvalidArgument: such values cannot be kept.
    """
    kind = _kinds.get((dtype, row_shape))
    if kind is None:
        kind = _kinds[dtype, row_shape] = Kind(dtype_of(dtype), row_shape)
    return kind


class ColumnHead(NamedTuple):
    """What matters of an item's column for its layout.

    Attributes:
        kind: of its rows.
        squeeze: the client marked its only row as one without a time axis.
        width: of its longest string, if its rows are arrays of strings; else 0.
    """

    kind: Kind
    squeeze: bool
    width: int = 0


@dataclass(frozen=True, slots=True)
class Fit:
    """How the items of a table whose columns are alike are kept.

    Attributes:
        layout: the layout.
        lengths: per column, the only number of steps the signature allows, or None; None altogether: any.
    """

    layout: ItemLayout
    lengths: tuple[int | None, ...] | None

    def check(self, table: Table, lengths: Sequence[int]) -> None:
        """Raise `SignatureMismatch` unless these are numbers of steps the signature allows."""
        if self.lengths is None:
            return
        for number, (wanted, length) in enumerate(zip(self.lengths, lengths, strict=True)):
            if wanted is not None and wanted != length:
                raise SignatureMismatch(
                    f"table {table.name!r}: column {number} has {length} steps, the signature wants {wanted}"
                )


class ColumnLayouts:
    """Finds the layout of items, and remembers it for the next ones."""

    def __init__(self, encoded: EncodedItems) -> None:
        self._encoded = encoded
        self._fits: OrderedDict[tuple[object, ...], Fit] = OrderedDict()
        self._num_cached = 0

    def find(self, table: Table, heads: tuple[ColumnHead, ...], *, is_one_step: bool) -> Fit:
        """Return how items with these columns are kept in `table`.

        Args:
            table: where they go.
            heads: one per column.
            is_one_step: every column has one step.

        Raises:
            SignatureMismatch: they are not what the table's signature says.
        """
        key = (table, is_one_step, *heads)
        fit = self._fits.get(key)
        if fit is not None:
            self._fits.move_to_end(key)
            return fit
        signature = table.signature
        if signature is None:
            specs = [head.kind.spec_of(head.width) for head in heads]
            squeezed = [head.squeeze for head in heads]
            fit = Fit(self._encoded.layout(_list_of(len(heads)), specs, squeezed), None)
        else:
            fit = self._fit(table.name, signature, heads, is_one_step)
        self._fits[key] = fit
        self._num_cached += len(heads)
        while self._num_cached > MAX_CACHED_COLUMNS and len(self._fits) > 1:
            self._num_cached -= len(self._fits.popitem(last=False)[0]) - 2
        return fit

    def _fit(self, table: str, signature: Signature, heads: Sequence[ColumnHead], is_one_step: bool) -> Fit:
        """Match columns with a signature by their order, the only thing DeepMind's clients tell of them."""
        if len(heads) != len(signature.specs):
            raise SignatureMismatch(
                f"table {table!r}: the item has {len(heads)} columns, the signature {len(signature.specs)}"
            )
        specs, squeezed, lengths = [], [], []
        for path, wanted, head in zip(signature.structure.paths, signature.specs, heads, strict=True):
            row = head.kind.spec_of(head.width)
            is_step = head.squeeze or len(wanted.shape) == len(row.shape)
            shape = wanted.shape if is_step else wanted.shape[1:]
            if len(shape) != len(row.shape) or not ArraySpec(shape, row.dtype).admits(row.shape):
                raise SignatureMismatch(
                    f"table {table!r}: column {path} has rows of {row}, the signature wants {wanted}"
                )
            if wanted.dtype != row.dtype and not (row.dtype.kind == "S" and wanted.dtype.kind in "SU"):
                raise SignatureMismatch(
                    f"table {table!r}: column {path} has the dtype {row.dtype}, the signature wants {wanted.dtype}"
                )
            specs.append(ArraySpec(row.shape, _shown_dtype(wanted.dtype, row)))
            # Rows without a time axis in the signature may come as a sequence: DeepMind's older writer allows that.
            squeezed.append(head.squeeze or (is_step and is_one_step))
            lengths.append(None if is_step else wanted.shape[0])
        layout = self._encoded.layout(signature.structure, specs, squeezed)
        return Fit(layout, None if all(length is None for length in lengths) else tuple(lengths))


def _shown_dtype(wanted: DType, row: ArraySpec) -> DType:
    """Return the dtype native readers are shown: strings in arrays have a width, whatever the signature says."""
    return np.dtype(f"{wanted.kind}{row.dtype.itemsize}") if row.shape and not wanted.itemsize else wanted


@lru_cache(maxsize=64)
def _list_of(count: int) -> Structure:
    if count > MAX_LEAVES:
        raise InvalidArgument(f"an item has {count} columns; at most {MAX_LEAVES} can be")
    return Structure(Node("list", "", (), (LEAF,) * count))
