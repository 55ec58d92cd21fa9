"""Reading the batches that `Client.insert_batch` takes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from reverb_async.client.writing.copies import Copies
from reverb_async.client.writing.row_values import ragged_rows
from reverb_async.core.nest import Path, Structure, flatten
from reverb_async.core.ragged import Ragged
from reverb_async.core.spec import ArraySpec, as_leaf, leaf_spec, listed_hint
from reverb_async.core.variable import encode_rows
from reverb_async.errors import InvalidArgument, SignatureMismatch
from reverb_async.protocol.inserting import Column

_MAX_DEPTH = 64


class BatchColumns:
    """A batch's columns; arrays are the caller's until `keep` copies them.

    Attributes:
        structure: of one row.
        columns: one per leaf, of `count` rows each.
        specs: of their rows.
        count: how many rows.

    Raises:
        InvalidArgument: no columns, columns of different lengths, or something that is no column.
    """

    def __init__(self, batch: object, copies: Copies) -> None:
        self._copies = copies
        leaves, self.structure = _flatten(batch)
        self.columns: list[Column] = []
        self.specs: list[ArraySpec] = []
        self._lengths: dict[int, tuple[int, int]] = {}
        self._borrowed: list[int] = []
        for at, (leaf, path) in enumerate(zip(leaves, self.structure.paths, strict=True)):
            self._add(leaf, path, at)
        counts = {len(column) for column in self.columns}
        if not counts:
            raise InvalidArgument("the batch has no columns; pass a nest of arrays [B, ...]")
        if len(counts) > 1:
            sizes = ", ".join(
                f"{path}: {len(one)}" for path, one in zip(self.structure.paths, self.columns, strict=True)
            )
            raise InvalidArgument(f"all columns of a batch need the same number of rows, got {sizes}")
        (self.count,) = counts
        if not self.count:
            raise InvalidArgument("the batch has no rows; all its columns have length 0")

    def _add(self, leaf: object, path: Path, at: int) -> None:
        if isinstance(leaf, Ragged):
            lengths = leaf.lengths
            if len(lengths):
                self._lengths[at] = (int(lengths.min()), int(lengths.max()))
            self.columns.append(ragged_rows(leaf.values, lengths))
            self.specs.append(ArraySpec((None, *leaf.values.shape[1:]), leaf.values.dtype))
        elif isinstance(leaf, _Texts):
            values = [as_leaf(value, path) for value in leaf.values]
            spec = ArraySpec((), str if isinstance(values[0], str) else bytes)
            self.columns.append(encode_rows(values, spec))
            self.specs.append(spec)
        else:
            array = as_leaf(leaf, path)
            if not isinstance(array, np.ndarray) or array.ndim == 0:
                dtype = array.dtype if isinstance(array, np.ndarray) else np.dtype(type(array))
                hint = listed_hint(path, self.structure.paths, dtype)
                raise InvalidArgument(
                    f"column {path} has no leading axis; "
                    + (hint or "a batch has arrays [B, ...], a Ragged or a list of str. insert() takes a single row")
                )
            self.columns.append(array)
            self._borrowed.append(at)
            self.specs.append(
                leaf_spec(array[:1].reshape(array.shape[1:])) if len(array) else ArraySpec((), array.dtype)
            )

    async def keep(self) -> None:
        """Copy the caller's arrays, which may change once the call waits."""
        while self._borrowed:
            at = self._borrowed.pop()
            if isinstance(column := self.columns[at], np.ndarray):
                self.columns[at] = await self._copies.of(column)

    def fit_texts(self, wanted: Sequence[ArraySpec | None]) -> None:
        """Make arrays of fixed-width text Python text where the signature wants that."""
        for at, (column, spec, want) in enumerate(zip(self.columns, self.specs, wanted, strict=True)):
            is_text = isinstance(column, np.ndarray) and column.ndim == 1 and spec.dtype.kind in "SU"
            if is_text and want is not None and want.dtype.kind == spec.dtype.kind and not want.dtype.itemsize:
                self.columns[at] = encode_rows(column.tolist(), want)  # type: ignore[union-attr]  # an array
                self.specs[at] = want

    def check(self, wanted: Sequence[ArraySpec | None], what: str) -> None:
        """Refuse elements of a `Ragged` whose length a signature does not admit; the rest is the signature's to check.

        Raises:
            SignatureMismatch: naming the column and the lengths.
        """
        for at, (shortest, longest) in self._lengths.items():
            want = wanted[at]
            extent = want.shape[0] if want is not None and want.shape else None
            if extent is not None and not shortest == longest == extent:
                raise SignatureMismatch(
                    f"{what}: column {self.structure.paths[at]} has elements of length {shortest} to {longest}, "
                    f"the signature wants {extent}"
                )


class _Texts:
    """A list of str, or of bytes: one column, although it is a list."""

    __slots__ = ("values",)

    __nest_leaf__: ClassVar[bool] = True

    def __init__(self, values: Sequence[object]) -> None:
        self.values = values


def _flatten(batch: object) -> tuple[list[object], Structure]:
    try:
        leaves, structure = flatten(batch)
    except InvalidArgument:  # A long list of str looks like too many columns.
        return flatten(_with_texts(batch, 0))
    if any(isinstance(leaf, str | bytes) for leaf in leaves):
        return flatten(_with_texts(batch, 0))
    return leaves, structure


def _with_texts(value: Any, depth: int) -> Any:
    """Return the nest with lists of str, or of bytes, as leaves."""
    if depth > _MAX_DEPTH:
        return value
    kind = type(value)
    if kind is list or kind is tuple:
        if value and (all(isinstance(one, str) for one in value) or all(isinstance(one, bytes) for one in value)):
            return _Texts(value)
        return kind(_with_texts(one, depth + 1) for one in value)
    if isinstance(value, dict):
        return {key: _with_texts(one, depth + 1) for key, one in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind._make(_with_texts(one, depth + 1) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not hasattr(kind, "__nest_leaf__"):
        changed = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(changed, field.name, _with_texts(getattr(value, field.name), depth + 1))
        return changed
    return value
