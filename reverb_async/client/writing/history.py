"""Selecting from what a writer has appended: ``writer.history["obs"][-4:]``."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from reverb_async.client.writing.columns import ColumnBuffer
from reverb_async.errors import InvalidArgument

Range = tuple[int, int]
"""(first step, number of steps)."""
Selection = SupportsIndex | slice | Sequence[SupportsIndex] | NDArray[np.integer[Any]]


class TrajectoryColumn:
    """Some steps of one column: what an item is made of.

    It refers to the writer's steps; it holds no copy. An int index has no time axis, slices and lists have one.
    """

    __slots__ = ("_length", "_squeeze", "code", "column", "first", "ranges", "version")

    __nest_leaf__: ClassVar[bool] = True

    def __init__(self, column: ColumnBuffer, ranges: tuple[Range, ...], first: int, length: int, squeeze: bool) -> None:
        self.column = column
        self.ranges = ranges
        """The steps, as ranges of consecutive ones."""
        self.first = first
        """The lowest of them."""
        self.code = 2 * column.index + squeeze
        """Column and squeeze in one number."""
        self.version = column.clock.version if length else -1
        """When the steps were last seen to be there; never for none."""
        self._length = length
        self._squeeze = squeeze

    def __len__(self) -> int:
        """Return the number of steps: 1 without a time axis."""
        return self._length

    def __repr__(self) -> str:
        return f"<TrajectoryColumn {self.column.path}: {self._length} steps, {self.dtype} {list(self.shape)}>"

    @property
    def squeeze(self) -> bool:
        """Whether it has no time axis."""
        return self._squeeze

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of `numpy()`: ``[len, *step_shape]``, or ``step_shape``; None where steps may differ."""
        shape = self.column.spec.shape
        return shape if self._squeeze else (self._length, *shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The column's dtype."""
        return self.column.spec.dtype

    def check(self) -> None:
        """Refuse steps that are not kept any more.

        Raises:
            ExpiredReference: naming how many steps would have to be kept.
        """
        if self._length and self.version != self.column.clock.version:
            for first, length in self.ranges:
                self.column.check(first, length)
            self.version = self.column.clock.version

    def numpy(self) -> Any:
        """Return a copy of the values: an array, or for text and bytes the value itself or a list of them.

        Raises:
            ExpiredReference: some steps are not kept any more.
            InvalidArgument: the steps have different shapes, so no array holds them.
        """
        self.check()
        leaves = [leaf for first, length in self.ranges for leaf in self.column.leaves(first, length)]
        spec = self.column.spec
        if spec.dtype.itemsize == 0:
            return leaves[0] if self._squeeze else leaves
        if self._squeeze:
            return np.array(leaves[0])
        if not leaves:
            return np.empty((0, *(extent or 0 for extent in spec.shape)), spec.dtype)
        try:
            return np.stack([np.asarray(leaf) for leaf in leaves])
        except ValueError:
            shapes = sorted({np.shape(leaf) for leaf in leaves})[:4]
            raise InvalidArgument(
                f"column {self.column.path} has steps of the shapes {shapes}; take them one by one"
            ) from None

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the values of a TrajectoryColumn are always copied")
        return np.asarray(self.numpy(), dtype)

    def __getitem__(self, index: Selection) -> TrajectoryColumn:
        """Select among these steps, as `ColumnHistory` does."""
        if self._squeeze:
            raise InvalidArgument(
                f"column {self.column.path} was selected with an int, so it has no time axis to select from"
            )
        self.check()
        steps = [step for first, length in self.ranges for step in range(first, first + length)]
        return _select(self.column, steps, index)

    def __iter__(self) -> Iterator[TrajectoryColumn]:
        if self._squeeze:
            raise InvalidArgument(
                f"column {self.column.path} was selected with an int, so it has no time axis to iterate over"
            )
        return (self[at] for at in range(self._length))


class ColumnHistory:
    """All steps of one column since the last clear, an open one included; those not kept cannot be selected."""

    __slots__ = ("_column",)

    __nest_leaf__: ClassVar[bool] = True

    def __init__(self, column: ColumnBuffer) -> None:
        self._column = column

    def __len__(self) -> int:
        """Return the number of steps, for all columns the same."""
        clock = self._column.clock
        return clock.end - clock.origin

    @property
    def dtype(self) -> np.dtype[Any]:
        """The column's dtype."""
        return self._column.spec.dtype

    def __repr__(self) -> str:
        return f"<ColumnHistory {self._column.path}: {len(self)} steps of {self._column.spec}>"

    def __getitem__(self, index: Selection) -> TrajectoryColumn:
        """Select steps by Python's indexing: an int drops the time axis, slices and lists keep it.

        Raises:
            IndexError: past the end.
            ExpiredReference: a step is not kept any more.
            InvalidArgument: a step has no value in this column, or it is no index.
        """
        column = self._column
        clock = column.clock
        if type(index) is slice:
            start, stop, stride = index.indices(clock.end - clock.origin)
            if stride == 1:
                length = stop - start if stop > start else 0
                first = clock.origin + start
                if length:
                    column.check(first, length)
                return TrajectoryColumn(column, ((first, length),), first, length, False)
        elif type(index) is int:
            length = clock.end - clock.origin
            if not -length <= index < length:
                raise IndexError(f"step {index} of column {column.path}, whose history has {length} steps")
            first = (clock.end if index < 0 else clock.origin) + index
            column.check(first, 1)
            return TrajectoryColumn(column, ((first, 1),), first, 1, True)
        return _select(column, range(clock.origin, clock.end), index)

    def __iter__(self) -> Iterator[TrajectoryColumn]:
        return (self[at] for at in range(len(self)))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        name = self._column.path[-1] if self._column.path else "x"
        raise TypeError(f"column {self._column.path} is a whole history: select steps, as in history[{name!r}][-3:]")


def _select(column: ColumnBuffer, steps: Sequence[int], index: Selection) -> TrajectoryColumn:
    """Select among `steps`."""
    squeeze = False
    if isinstance(index, slice):
        chosen = list(steps[index])
    else:
        try:
            if hasattr(index, "__index__") and not isinstance(index, np.ndarray):
                chosen = [steps[_position(index)]]
                squeeze = True
            else:
                chosen = [steps[_position(at)] for at in index]
        except IndexError:
            raise IndexError(f"{str(index)[:60]} of column {column.path}, which has {len(steps)} steps there") from None
        except TypeError:
            raise InvalidArgument(
                f"column {column.path} is selected from with an int, a slice or a list of ints, got {str(index)[:60]!r}"
            ) from None
    ranges: list[Range] = []
    for step in chosen:
        if ranges and step == ranges[-1][0] + ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
        else:
            ranges.append((step, 1))
    for first, length in ranges:
        column.check(first, length)
    return TrajectoryColumn(column, tuple(ranges), min(chosen, default=0), len(chosen), squeeze)


def _position(at: SupportsIndex) -> int:
    if isinstance(at, bool | np.bool_ | str):
        raise TypeError
    return operator.index(at)
