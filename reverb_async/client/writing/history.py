"""Selecting from what a writer has appended: ``writer.history["obs"][-4:]``."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from reverb_async.client.writing.columns import ColumnBuffer
from reverb_async.client.writing.windows import Range, Window
from reverb_async.errors import InvalidArgument

Selection = SupportsIndex | slice | Sequence[SupportsIndex] | NDArray[np.integer[Any]]

_new = object.__new__


class TrajectoryColumn:
    """Some steps of one column: what an item is made of.

    It refers to the writer's steps; it holds no copy. An int index has no time axis, slices and lists have one.
    """

    __slots__ = ("first", "version", "window")

    __nest_leaf__: ClassVar[bool] = True

    def __init__(self, window: Window, first: int, version: int) -> None:
        self.window = window
        """What it shows of its column."""
        self.first = first
        """The lowest step."""
        self.version = version
        """When the steps were last seen to be there; -1 for none."""

    def __len__(self) -> int:
        """Return the number of steps: 1 without a time axis."""
        return self.window.length

    def __repr__(self) -> str:
        return f"<TrajectoryColumn {self.column.path}: {len(self)} steps, {self.dtype} {list(self.shape)}>"

    @property
    def column(self) -> ColumnBuffer:
        """The column."""
        return self.window.column

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The steps, as ranges of consecutive ones."""
        return tuple((self.first + start, length) for start, length in self.window.ranges)

    @property
    def squeeze(self) -> bool:
        """Whether it has no time axis."""
        return self.window.squeeze

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Shape of `numpy()`: ``[len, *step_shape]``, or ``step_shape``; None where steps may differ."""
        shape = self.column.spec.shape
        return shape if self.squeeze else (len(self), *shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The column's dtype."""
        return self.column.spec.dtype

    def check(self) -> None:
        """Refuse steps that are not kept any more.

        Raises:
            ExpiredReference: naming how many steps would have to be kept.
        """
        column = self.column
        if len(self) and self.version != column.clock.version:
            for first, length in self.ranges:
                column.check(first, length)
            self.version = column.clock.version

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
            return leaves[0] if self.squeeze else leaves
        if self.squeeze:
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
        if self.squeeze:
            raise InvalidArgument(
                f"column {self.column.path} was selected with an int, so it has no time axis to select from"
            )
        self.check()
        steps = [step for first, length in self.ranges for step in range(first, first + length)]
        return _select(self.column, steps, index)

    def __iter__(self) -> Iterator[TrajectoryColumn]:
        if self.squeeze:
            raise InvalidArgument(
                f"column {self.column.path} was selected with an int, so it has no time axis to iterate over"
            )
        return (self[at] for at in range(len(self)))


class ColumnHistory:
    """All steps of one column since the last clear, an open one included; those not kept cannot be selected."""

    __slots__ = ("_clock", "_column", "_spans", "_step")

    __nest_leaf__: ClassVar[bool] = True

    def __init__(self, column: ColumnBuffer) -> None:
        self._column = column
        self._clock = column.clock
        self._step = column.windows.step
        self._spans = column.windows.spans

    def __len__(self) -> int:
        """Return the number of steps, for all columns the same."""
        return self._clock.end - self._clock.origin

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
        clock = self._clock
        end = clock.end
        window: Window | None = None
        if type(index) is int:
            first = index + (end if index < 0 else clock.origin)
            stop = first + 1
            window = self._step
        elif type(index) is slice and index.step is None:
            if index.stop is None and type(index.start) is int and index.start < 0:
                first, stop = end + index.start, end
            else:
                origin = clock.origin
                first, stop, _ = index.indices(end - origin)
                first, stop = origin + first, origin + stop
            window = self._spans.get(stop - first)
        if window is not None and stop <= column.stop and first >= column.floor and first >= end - column.keep:
            # Steps that are there, cut as others were before: the same as below, in a tenth of the time.
            selected = _new(TrajectoryColumn)
            selected.window = window
            selected.first = first
            selected.version = clock.version
            return selected
        return _select(column, range(clock.origin, end), index)

    def __iter__(self) -> Iterator[TrajectoryColumn]:
        return (self[at] for at in range(len(self)))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        name = self._column.path[-1] if self._column.path else "x"
        raise TypeError(f"column {self._column.path} is a whole history: select steps, as in history[{name!r}][-3:]")


def _select(column: ColumnBuffer, steps: Sequence[int], index: Selection) -> TrajectoryColumn:
    """Select among `steps`, whatever the index."""
    squeeze = False
    chosen: Sequence[int]
    if isinstance(index, slice):
        chosen = steps[index]
    else:
        try:
            if hasattr(index, "__index__") and not isinstance(index, np.ndarray):
                chosen = [steps[_position(index)]]
                squeeze = True
            else:
                chosen = [steps[_position(at)] for at in index]
        except IndexError:
            what = str(index) if isinstance(index, Sequence | np.ndarray) else f"step {index}"
            raise IndexError(f"{what:.60} of column {column.path}, which has {len(steps)} steps there") from None
        except TypeError:
            raise InvalidArgument(
                f"column {column.path} is selected from with an int, a slice or a list of ints, got {str(index)[:60]!r}"
            ) from None
    ranges = _ranges(chosen)
    for first, length in ranges:
        column.check(first, length)
    lowest = min(chosen, default=0)
    windows = column.windows
    window = windows.step if squeeze else windows.of(tuple((first - lowest, length) for first, length in ranges))
    return TrajectoryColumn(window, lowest, column.clock.version if chosen else -1)


def _ranges(steps: Sequence[int]) -> list[Range]:
    """Return steps as ranges of consecutive ones."""
    if isinstance(steps, range) and steps.step == 1:
        return [(steps.start, len(steps))] if steps else []
    ranges: list[Range] = []
    for step in steps:
        if ranges and step == ranges[-1][0] + ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
        else:
            ranges.append((step, 1))
    return ranges


def _position(at: SupportsIndex) -> int:
    if isinstance(at, bool | np.bool_ | str):
        raise TypeError
    return operator.index(at)
