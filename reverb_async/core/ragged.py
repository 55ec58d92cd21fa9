"""Values of unequal length in one array."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.leaf import as_leaf
from reverb_async.errors import InvalidArgument


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """B values, one after the other; value i is ``values[offsets[i]:offsets[i + 1]]``.

    Attributes:
        values: ``[total, *row_shape]``.
        offsets: int64 ``[B + 1]``, from 0 to total, never falling.

    Raises:
        InvalidArgument: `values` has no leading axis or an unsupported dtype, or `offsets` do not divide it.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    # One column of a nest, although it is a dataclass.
    __nest_leaf__: ClassVar[bool] = True

    def __post_init__(self) -> None:
        values = as_leaf(self.values, ("values",))
        if not isinstance(values, np.ndarray) or values.ndim == 0:
            raise InvalidArgument("the values of a Ragged are one array [total, ...], the rows of all its elements")
        offsets = np.asarray(self.offsets)
        if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) == 0:
            raise InvalidArgument(
                f"the offsets of a Ragged are integers [B + 1], got {offsets.dtype} {list(offsets.shape)}; "
                "np.concatenate([[0], np.cumsum(lengths)]) makes them"
            )
        # Compared before the cast, which would turn huge uint64 negative.
        falls = np.flatnonzero(offsets[1:] < offsets[:-1])
        if len(falls):
            raise InvalidArgument(
                f"the offsets of a Ragged must not fall, {offsets[falls[0]]} precedes {offsets[falls[0] + 1]}"
            )
        if offsets[0] != 0 or offsets[-1] != len(values):
            raise InvalidArgument(
                f"the offsets of a Ragged go from 0 to {len(values)}, the length of its values; "
                f"these go from {offsets[0]} to {offsets[-1]}"
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", offsets.astype(np.int64, copy=False))

    @classmethod
    def from_list(cls, arrays: Sequence[NDArray[Any]]) -> Ragged:
        """Join arrays ``[length_i, *row_shape]`` of one dtype and row shape; copies.

        Raises:
            InvalidArgument: there is none (whose dtype would it be?), or dtypes, ranks or row shapes differ.
        """
        if not len(arrays):
            raise InvalidArgument(
                "from_list needs an array to know the dtype; for B = 0 pass Ragged(np.empty((0, ...)), [0])"
            )
        parts = [as_leaf(array, (index,)) for index, array in enumerate(arrays)]
        rows: list[NDArray[Any]] = []
        for index, part in enumerate(parts):
            if not isinstance(part, np.ndarray) or part.ndim == 0:
                raise InvalidArgument(f"element {index} has no leading axis; pass an array [length, ...]")
            if rows and (part.dtype != rows[0].dtype or part.shape[1:] != rows[0].shape[1:]):
                raise InvalidArgument(
                    f"element {index} has rows of {part.dtype} {list(part.shape[1:])}, "
                    f"element 0 of {rows[0].dtype} {list(rows[0].shape[1:])}; all must agree"
                )
            rows.append(part)
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(part) for part in rows], out=offsets[1:])
        return cls(np.concatenate(rows), offsets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The elements' lengths: int64 ``[B]``."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: SupportsIndex) -> NDArray[Any]:
        """Return one element ``[length, *row_shape]``, a view of `values`; negative indices count from the end."""
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"index {at} of a Ragged of {len(self)} elements")
        at %= len(self)
        return self.values[self.offsets[at] : self.offsets[at + 1]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[index] for index in range(len(self)))
