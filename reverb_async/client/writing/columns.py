"""The steps a writer keeps: one array per column, a row per step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.writing.clock import Clock
from reverb_async.client.writing.outgoing import stack_rows
from reverb_async.client.writing.windows import Windows
from reverb_async.core.dtypes import DType
from reverb_async.core.leaf import Leaf
from reverb_async.core.nest import Path
from reverb_async.core.spec import ArraySpec, as_leaf, dtype_name, leaf_spec
from reverb_async.errors import ExpiredReference, InvalidArgument
from reverb_async.protocol.inserting import Column

Loosen = Callable[[Path, ArraySpec, tuple[int, ...]], ArraySpec | None]
"""Whether tables let extents differ: a column's path and spec, the shape of a value that does not fit -> a spec."""

Target: TypeAlias = (
    "tuple[ColumnBuffer, NDArray[Any], frozenset[type], tuple[int, ...] | None, DType]"  # for use in loops
)
"""A column, rows of it, types of the scalars that fit as they stand, and the shape and dtype of arrays that do."""

_SLACK_BYTES = 1 << 20


class ColumnBuffer:
    """The last steps of one column.

    A row, once it is visible, is never written again: making room copies what is kept into a new array, so slices
    handed to a stream stay as they are.

    Attributes:
        path: its name.
        index: its number among the writer's columns.
        clock: the writer's.
        keep: how many steps stay nameable.
        spec: dtype and shape of a row.
        base: the first step that has a row.
        room: the first step after it that has none yet.
        start: the first of the latest steps in a row that have values.
        stop: the step after the last value.
        floor: from here on to `stop`, steps have values and were not cleared; they may have expired.
        windows: what its selections look like.

    Args:
        first: the step of its first value.
    """

    __slots__ = (
        "_array",
        "_dtype",
        "_earlier",
        "_expired_before",
        "_highest",
        "_leaves",
        "_lowest",
        "_number",
        "_scalars",
        "_shape",
        "base",
        "clock",
        "floor",
        "index",
        "keep",
        "path",
        "room",
        "spec",
        "start",
        "stop",
        "windows",
    )

    def __init__(self, path: Path, index: int, clock: Clock, keep: int, spec: ArraySpec, first: int) -> None:
        self.path = path
        self.index = index
        self.clock = clock
        self.keep = keep
        self.base = self.room = self._expired_before = first
        self.start = self.stop = self.floor = first
        self._earlier: list[tuple[int, int]] = []
        """Ranges of steps (first, stop) with values before `start`, ascending, with gaps between them."""
        self._leaves: list[Leaf | None] = []
        self.windows = Windows(self)
        self._become(spec)

    def _become(self, spec: ArraySpec) -> None:
        self.clock.moves += 1
        self.spec = spec
        self._dtype = spec.dtype
        self._shape = None if spec.is_variable else spec.fixed_shape
        self._array: NDArray[Any] = np.empty((0, *(self._shape or ())), spec.dtype)
        # Values of these types are stored as they stand: NumPy's own, and Python numbers between the bounds.
        self._scalars: frozenset[type] = frozenset()
        self._number: type = type(None)  # which no value is
        self._lowest = self._highest = 0.0
        if self._shape == () and spec.dtype.kind in "biufc":
            self._scalars = scalar_types(spec.dtype)
            if spec.dtype.kind in "iu":
                integers = np.iinfo(spec.dtype)
                self._number, self._lowest, self._highest = int, int(integers.min), int(integers.max)
            elif spec.dtype.name in ("float16", "float32"):
                self._number, self._highest = float, float(np.finfo(spec.dtype).max)
                self._lowest = -self._highest

    # -- writing ------------------------------------------------------------------------------------------------------

    def put(self, step: int, value: Any, loosen: Loosen) -> None:
        """Store a copy of the column's value at `step`, the last one or the one after it.

        Raises:
            InvalidArgument: the value does not fit, or the step has one already; nothing changed.
        """
        if step < self.stop:
            raise InvalidArgument(f"column {self.path} has already been set in the active step")
        leaf = value if self._takes(value) else self.checked(value, loosen)
        row = step - self.base if step < self.room else self._make_room(step)
        if self._shape is None:
            self._leaves[row] = leaf.copy() if isinstance(leaf, np.ndarray) else leaf
        else:
            self._array[row] = leaf
        if step > self.stop:
            if self.start < self.stop:
                self._earlier.append((self.start, self.stop))
            self.start = self.floor = step
        self.stop = step + 1

    def _takes(self, value: Any) -> bool:
        """Whether a value can be stored as it stands."""
        kind = type(value)
        if kind is np.ndarray:
            return bool(value.shape == self._shape and value.dtype == self._dtype)
        return kind in self._scalars or (kind is self._number and self._lowest <= value <= self._highest)

    def unput(self, step: int) -> None:
        """Take back what was stored at `step`, before anybody saw it."""
        self.stop = step
        if self.start == step and self._earlier:
            self.start, self.stop = self._earlier.pop()
        self._set_floor()

    def _set_floor(self) -> None:
        self.floor = max(self.start, self.clock.origin, self._expired_before)

    def checked(self, value: object, loosen: Loosen) -> Leaf:
        """Return `value` as a leaf that fits the column, which may become variable for it.

        Raises:
            InvalidArgument: it does not fit.
        """
        leaf = as_leaf(value, self.path, self.spec)
        got = leaf_spec(leaf)
        if got.dtype != self._dtype:
            raise InvalidArgument(
                f"column {self.path} is {self.spec}, got {got}; a column keeps the dtype of its first value: "
                f"convert with np.asarray(x, np.dtype({dtype_name(self._dtype)!r}))"
            )
        shape = got.fixed_shape if got.dtype.itemsize else ()
        if not self.spec.admits(shape):
            loosened = loosen(self.path, self.spec, shape)
            if loosened is None:
                raise InvalidArgument(
                    f"column {self.path} is {self.spec}, got {got}; a column keeps the shape of its first value, "
                    f"unless the table's signature has None there (known inside `async with`)"
                )
            self.loosen(loosened)
        return leaf

    def loosen(self, spec: ArraySpec) -> None:
        """Let extents differ from now on."""
        if self._shape is not None:
            rows = self._array
            base = self.base
            self._leaves = [rows[at].copy() if self._has(base + at) else None for at in range(len(rows))]
        self._become(spec)

    def target(self, step: int) -> Target:
        """Return where values go, from a step on that has a row, until the clock counts a move."""
        return self, self._array[step - self.base :], self._scalars, self._shape, self._dtype

    def _make_room(self, step: int) -> int:
        """Make the row of `step` exist; steps that nobody can name or needs are dropped. Returns the row."""
        kept_from = max(self.base, min(max(step - self.keep, self.clock.origin), self.clock.needed_from()))
        kept = min(max(self.room - kept_from, 0), step - kept_from)
        row_bytes = 64 if self._shape is None else max(self.spec.row_bytes, 1)
        slack = max(16, self.keep // 2, min(1024, _SLACK_BYTES // row_bytes))
        capacity = step - kept_from + slack
        at = kept_from - self.base
        if self._shape is None:
            self._leaves = self._leaves[at : at + kept] + [None] * (capacity - kept)
        else:
            array = np.empty((capacity, *self._shape), self._dtype)
            array[:kept] = self._array[at : at + kept]
            self._array = array
        self._earlier = [(first, stop) for first, stop in self._earlier if stop > kept_from]
        self.clock.moves += 1
        self.base = kept_from
        self.room = kept_from + capacity
        return step - kept_from

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def first_kept(self) -> int:
        """The first step that may be named."""
        return max(self._expired_before, self.clock.origin, self.clock.end - self.keep)

    def configure(self, keep: int) -> None:
        """Keep the last `keep` steps from now on; what was not kept before does not come back."""
        self._expired_before = self.first_kept
        self.keep = keep
        self._set_floor()

    def cleared(self) -> None:
        """Learn that the clock's origin has moved."""
        self._set_floor()

    def check(self, first: int, count: int) -> None:
        """Refuse steps ``[first, first + count)`` that cannot be named.

        Raises:
            ExpiredReference: some are not kept any more.
            InvalidArgument: some have no value.
        """
        clock = self.clock
        if first < clock.end - self.keep or first < clock.origin or first < self._expired_before:
            raise self._expired(first)
        if first < self.start or first + count > self.stop:
            for step in range(first, first + count):
                if not self._has(step):
                    raise InvalidArgument(
                        f"column {self.path} has no value at step {step - clock.origin} of the history; "
                        f"select steps that have one"
                    )

    def _has(self, step: int) -> bool:
        if step >= self.start:
            return step < self.stop
        at = bisect_right(self._earlier, step, key=itemgetter(0)) - 1
        return at >= 0 and step < self._earlier[at][1]

    def _expired(self, first: int) -> ExpiredReference:
        clock = self.clock
        if first < clock.origin:
            return ExpiredReference(
                f"column {self.path}: these steps were cleared by end_episode; select before it, or keep "
                f"them with end_episode(clear_buffers=False)"
            )
        return ExpiredReference(
            f"column {self.path}: step {first - clock.origin} of {clock.end - clock.origin} is not kept any more: "
            f"this needs num_keep_alive_refs >= {clock.end - first}, is {self.keep}"
        )

    def rows(self, first: int, count: int, spec: ArraySpec) -> Column:
        """Return the values of steps that are there as rows of `spec`, the column's or an earlier one of it."""
        start = first - self.base
        assert 0 <= start <= start + count <= self.room - self.base, (
            f"steps {first} to {first + count} of {self.path} are gone"
        )
        if self._shape is not None:
            return self._array[start : start + count]
        return stack_rows(self._taken(start, count), spec)

    def leaves(self, first: int, count: int) -> Sequence[Leaf]:
        """Return the values of steps that are there, one by one; not copied."""
        start = first - self.base
        return list(self._array[start : start + count]) if self._shape is not None else self._taken(start, count)

    def _taken(self, start: int, count: int) -> list[Leaf]:
        return [leaf for leaf in self._leaves[start : start + count] if leaf is not None]


def scalar_types(dtype: DType) -> frozenset[type]:
    """Return the types of scalars that are of this dtype, or are stored as such without a thought."""
    if dtype.kind not in "biufc":
        return frozenset()
    python: dict[str, type] = {"float64": float, "complex128": complex, "bool": bool}
    return frozenset({dtype.type, python.get(dtype.name, dtype.type)})
