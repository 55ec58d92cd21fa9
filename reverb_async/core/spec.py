"""What one column holds (`ArraySpec`), and what a table's items must look like (`Signature`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from reverb_async.core.dtypes import (
    BYTES,
    MAX_ROW_BYTES,
    TEXT,
    DType,
    as_dtype,
    check_values,
    dtype_from_name,
    dtype_name,
)
from reverb_async.core.leaf import Leaf, as_leaf
from reverb_async.core.nest import Path, Structure, flatten
from reverb_async.errors import InvalidArgument, SignatureMismatch

__all__ = ["ArraySpec", "Leaf", "Signature", "as_leaf", "check_values", "dtype_from_name", "dtype_name", "leaf_spec"]

MAX_RANK = 32
"""Dimensions of a row; numpy allows 64, and batches add some."""
MAX_VARIABLE_RANK = 8
"""Dimensions of a row whose shape is free: each row keeps its own."""


@dataclass(frozen=True, slots=True, init=False, repr=False)
class ArraySpec:
    """Shape and dtype of one value, or of one row of a column.

    Attributes:
        shape: extents; None is any. Without a None all rows have the same size.
        dtype: a supported dtype. ``str`` and ``bytes`` (``np.dtype("U")``, ``np.dtype("S")``) are Python values of any
            length: one has the shape ``()``, a slice of a history of them ``(None,)``. ``"U16"`` and ``"S16"`` are
            elements of arrays.
    """

    shape: tuple[int | None, ...]
    dtype: DType

    # A spec is a value in nests of specs, although it is a dataclass.
    __nest_leaf__: ClassVar[bool] = True

    def __init__(self, shape: Iterable[int | None], dtype: object) -> None:
        object.__setattr__(self, "shape", _as_shape(shape))
        object.__setattr__(self, "dtype", as_dtype(dtype))
        self._check()

    def _check(self) -> None:
        limit = MAX_VARIABLE_RANK if self.is_variable else MAX_RANK
        if len(self.shape) > limit:
            raise InvalidArgument(
                f"shape {_short(self.shape)} has {len(self.shape)} dimensions, at most {limit} are allowed"
            )
        if spanned_bytes(self.shape, self.dtype) > MAX_ROW_BYTES:
            raise InvalidArgument(f"a value of {self} has more than {MAX_ROW_BYTES} bytes")

    @property
    def is_variable(self) -> bool:
        """Whether rows differ in size."""
        return self.dtype.itemsize == 0 or None in self.shape

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        """The shape of one row; only of a spec that is not variable."""
        assert not self.is_variable, f"rows of {self} have no fixed shape"
        return tuple(extent for extent in self.shape if extent is not None)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; only of a spec that is not variable."""
        return math.prod(self.fixed_shape) * self.dtype.itemsize

    def admits(self, shape: Sequence[int | None]) -> bool:
        """Whether values of this shape fit; None, here or there, is any extent."""
        return len(shape) == len(self.shape) and all(
            wanted is None or got is None or wanted == got for wanted, got in zip(self.shape, shape, strict=True)
        )

    def to_wire(self) -> list[object]:
        """Return plain values MessagePack knows: ``[dtype name, [extent or None, ...]]``."""
        return [dtype_name(self.dtype), list(self.shape)]

    @classmethod
    def from_wire(cls, wire: object) -> ArraySpec:
        """Rebuild what `to_wire` returned.

        Raises:
            InvalidArgument: it is anything else.
        """
        if not isinstance(wire, list | tuple) or len(wire) != 2 or not isinstance(wire[1], list | tuple):
            raise InvalidArgument("a spec must be [dtype name, [extents]]")
        return cls(wire[1], dtype_from_name(wire[0]))

    def __str__(self) -> str:
        extents = ", ".join("any" if extent is None else str(extent) for extent in self.shape)
        return (
            dtype_name(self.dtype)
            if self.dtype.itemsize == 0 and not self.shape
            else f"{dtype_name(self.dtype)} [{extents}]"
        )

    def __repr__(self) -> str:
        return f"ArraySpec({self.shape}, {dtype_name(self.dtype)!r})"


def _as_shape(shape: Iterable[int | None]) -> tuple[int | None, ...]:
    if isinstance(shape, str | bytes) or not isinstance(shape, Iterable):
        raise InvalidArgument(f"a shape is a tuple of extents, as in (4,), got {type(shape).__name__}")
    extents: list[int | None] = []
    for extent in shape:
        if len(extents) == MAX_RANK:
            raise InvalidArgument(f"a shape has at most {MAX_RANK} dimensions, got {_short(extents)} and more")
        if extent is None:
            extents.append(None)
            continue
        if not isinstance(extent, int | np.integer) or isinstance(extent, bool):
            raise InvalidArgument(f"extents are integers or None (any), got a {type(extent).__name__}")
        length = int(extent)
        if not 0 <= length < 1 << 31:
            raise InvalidArgument(f"an extent lies between 0 and 2**31 - 1, got {_short(length)}")
        extents.append(length)
    return tuple(extents)


def spanned_bytes(shape: Sequence[int | None], dtype: DType) -> int:
    """Bytes of one value, extents of 0 and None counted as 1: numpy refuses empty arrays with huge other extents."""
    return math.prod(extent or 1 for extent in shape) * dtype.itemsize


def leaf_spec(leaf: Leaf) -> ArraySpec:
    """Return the exact spec of what `as_leaf` returned."""
    if isinstance(leaf, str):
        return _TEXT_SPEC
    if isinstance(leaf, bytes):
        return _BYTES_SPEC
    return _exact_spec(leaf.shape, leaf.dtype)


@lru_cache(maxsize=4096)
def _exact_spec(shape: tuple[int, ...], dtype: DType) -> ArraySpec:
    return ArraySpec(shape, dtype)


_TEXT_SPEC = ArraySpec((), TEXT)
_BYTES_SPEC = ArraySpec((), BYTES)


def _short(value: object) -> str:
    try:
        text = str(value)
    except ValueError:  # an int of more than 4300 digits
        text = "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True, slots=True)
class Signature:
    """What a table's items look like: a column's name (its path) to its spec.

    Attributes:
        structure: the nest the specs stand in.
        specs: one per column, in the structure's order.
    """

    structure: Structure
    specs: tuple[ArraySpec, ...]

    @staticmethod
    def of(nest: object) -> Signature | None:
        """Read a signature from a nest of `ArraySpec`; anything with `shape` and `dtype` will do. None is no signature.

        A `Signature` is returned as it is.

        Raises:
            InvalidArgument: a leaf is something else, or there is none.
        """
        if nest is None or isinstance(nest, Signature):
            return nest
        leaves, structure = flatten(nest)
        if not leaves:
            raise InvalidArgument(f"the signature {structure.describe()} has no columns; pass None for no signature")
        specs = [_as_spec(leaf, path) for leaf, path in zip(leaves, structure.paths, strict=True)]
        return Signature(structure, tuple(specs))

    @property
    def nest(self) -> object:
        """The specs in their structure."""
        return self.structure.unflatten(self.specs)

    def check(self, structure: Structure, specs: Sequence[ArraySpec], *, what: str) -> None:
        """Refuse an item whose columns are not these, whatever their order; `specs` stand in the order of `structure`.

        Args:
            structure: the item's.
            specs: one per column. None in a shape says that the extent differs from item to item; whoever sees the
                items checks it.
            what: who is checked, for the message: "table 'replay'".

        Raises:
            SignatureMismatch: naming the columns that are missing, unexpected, or of another dtype or shape.
        """
        if structure == self.structure and tuple(specs) == self.specs:
            return
        wanted = dict(zip(self.structure.paths, self.specs, strict=True))
        got = dict(zip(structure.paths, specs, strict=True))
        missing = [path for path in wanted if path not in got]
        unexpected = [path for path in got if path not in wanted]
        if missing or unexpected:
            for path in missing:
                if count := listed_columns(path, unexpected):
                    raise SignatureMismatch(
                        f"{what}: {_named(path)!r} is a list of {count} columns; the signature wants one, "
                        f"{wanted[path]}: {_converted(_named(path), wanted[path])}"
                    )
            raise SignatureMismatch(
                f"{what}: {_columns_differ(missing, unexpected)}; the signature has {_listed(wanted)}"
            )
        for path, spec in got.items():
            if spec.dtype != wanted[path].dtype or not wanted[path].admits(spec.shape):
                raise SignatureMismatch(
                    f"{what}: column {path} is {spec}, the signature wants {wanted[path]}; "
                    f"{_fitted(spec, wanted[path])}"
                )

    def to_wire(self) -> list[object]:
        """Return plain values MessagePack knows."""
        return [self.structure.to_wire(), [spec.to_wire() for spec in self.specs]]

    @classmethod
    def from_wire(cls, wire: object) -> Signature:
        """Rebuild what `to_wire` returned.

        Raises:
            InvalidArgument: it is anything else.
        """
        if not isinstance(wire, list | tuple) or len(wire) != 2 or not isinstance(wire[1], list | tuple):
            raise InvalidArgument("a signature must be [structure, [specs]]")
        structure = Structure.from_wire(wire[0])
        if len(wire[1]) != structure.num_leaves or not structure.num_leaves:
            raise InvalidArgument(f"a signature of {structure.num_leaves} columns came with {len(wire[1])} specs")
        return cls(structure, tuple(ArraySpec.from_wire(spec) for spec in wire[1]))


def _as_spec(leaf: object, path: Path) -> ArraySpec:
    if isinstance(leaf, ArraySpec):
        return leaf
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if isinstance(leaf, type) or shape is None or dtype is None:
        raise InvalidArgument(
            f"signature column {path} is a {type(leaf).__name__}; "
            "pass ArraySpec(shape, dtype), for a scalar ArraySpec((), np.float32)"
        )
    try:
        return ArraySpec(shape, dtype)
    except InvalidArgument as error:
        raise InvalidArgument(f"signature column {path}: {error}") from error


def listed_columns(path: Path, paths: Iterable[Path]) -> int:
    """Return how many of `paths` are elements of a list at `path`, which was probably meant to be one array."""
    depth = len(path)
    return sum(len(one) == depth + 1 and one[:depth] == path and isinstance(one[depth], int) for one in paths)


def _named(path: Path) -> str:
    """Return what a user may call the value at `path`."""
    return next((part for part in reversed(path) if isinstance(part, str)), "x")


def listed_hint(path: Path, paths: Iterable[Path], dtype: DType) -> str:
    """Return what to do when the column at `path` is an element of a list that should be an array; or nothing.

    Args:
        path: the column's.
        paths: all columns'.
        dtype: of the values; text makes no array.
    """
    count = listed_columns(path[:-1], paths) if path and isinstance(path[-1], int) else 0
    if not count or dtype.kind in "SU":
        return ""
    name = _named(path)
    return f"{name!r} is a list of {count} columns; for one, pass np.asarray({name}, {_written(dtype)})"


def _written(dtype: DType) -> str:
    """Return a dtype as users write it."""
    is_numpy = dtype.type.__module__ == "numpy" and dtype.kind not in "SU"
    return f"np.{dtype.name}" if is_numpy else f"np.dtype({dtype_name(dtype)!r})"


def _columns_differ(missing: Sequence[Path], unexpected: Sequence[Path]) -> str:
    parts = []
    if missing:
        parts.append(f"missing {_listed(missing)}")
    if unexpected:
        parts.append(f"unexpected {_listed(unexpected)}")
    return ", ".join(parts)


def _listed(paths: Iterable[Path], most: int = 16) -> str:
    known = list(paths)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ("column " if len(known) == 1 else "columns ") + ", ".join(map(str, known[:most])) + more


def _converted(name: str, wanted: ArraySpec) -> str:
    if wanted.dtype.itemsize == 0:
        return f"a Python {dtype_name(wanted.dtype)}"
    return f"np.asarray({name}, {_written(wanted.dtype)})"


def _fitted(got: ArraySpec, wanted: ArraySpec) -> str:
    if got.dtype != wanted.dtype:
        return "pass " + _converted("x", wanted)
    return "np.reshape it, or put None into the signature's shape where extents differ"
