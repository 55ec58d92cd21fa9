"""The steps a writer keeps: one array per column, a row per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.writing.outgoing import stack_rows
from reverb_async.core.leaf import Leaf
from reverb_async.core.nest import Path
from reverb_async.core.spec import ArraySpec, as_leaf, dtype_name, leaf_spec
from reverb_async.errors import ExpiredReference, InvalidArgument
from reverb_async.protocol.inserting import Column

Loosen = Callable[[Path, ArraySpec, tuple[int, ...]], ArraySpec | None]
"""Whether tables let extents differ: a column's path and spec, the shape of a value that does not fit -> a spec."""

_SLACK_BYTES = 1 << 20
_MAX_RANK = 8


class Clock:
    """Where a writer is. Steps are numbered from 0 over its whole life.

    Attributes:
        origin: the first step of `history`: the first one after the last clear.
        end: the number of steps so far, an open one included.
        is_open: the last step still takes columns.
        version: changes with every step and clear.
        needed_from: says the first step that something queued may need again.
    """

    __slots__ = ("end", "is_open", "needed_from", "origin", "version")

    def __init__(self, needed_from: Callable[[], int]) -> None:
        self.origin = 0
        self.end = 0
        self.is_open = False
        self.version = 0
        self.needed_from = needed_from


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

    Args:
        first: the step of its first value.
    """

    __slots__ = (
        "_array",
        "_base",
        "_capacity",
        "_dtype",
        "_expired_before",
        "_leaves",
        "_present",
        "_scalar",
        "_shape",
        "clock",
        "index",
        "keep",
        "path",
        "spec",
    )

    def __init__(self, path: Path, index: int, clock: Clock, keep: int, spec: ArraySpec, first: int) -> None:
        self.path = path
        self.index = index
        self.clock = clock
        self.keep = keep
        self._base = self._expired_before = first
        self._capacity = 0
        self._present = bytearray()
        self._leaves: list[Leaf | None] = []
        self._become(spec)

    def _become(self, spec: ArraySpec) -> None:
        self.spec = spec
        self._dtype = spec.dtype
        # Values of these types are stored as they are; None fits no type.
        self._shape = None if spec.is_variable else spec.fixed_shape
        self._scalar: tuple[type, ...] = ()
        self._array: NDArray[Any] = np.empty((0, *(self._shape or ())), spec.dtype)
        if self._shape == ():
            python = {"float64": (float,), "bool": (bool,)}.get(spec.dtype.name, ())
            self._scalar = (spec.dtype.type, *python)

    # -- writing ------------------------------------------------------------------------------------------------------

    def put(self, step: int, value: object, loosen: Loosen) -> None:
        """Store a copy of the column's value at `step`, the last one or the one after it.

        Raises:
            InvalidArgument: the value does not fit, or the step has one already; nothing changed.
        """
        row = step - self._base
        if row >= self._capacity:
            row = self._make_room(step)
        if self._present[row]:
            raise InvalidArgument(f"column {self.path} has already been set in the active step")
        if type(value) is np.ndarray:
            if value.shape == self._shape and value.dtype == self._dtype:
                self._array[row] = value
            else:
                self._put_leaf(row, self.checked(value, loosen))
        elif type(value) in self._scalar:
            self._array[row] = value
        else:
            self._put_leaf(row, self.checked(value, loosen))
        self._present[row] = 1

    def unput(self, step: int) -> None:
        """Take back what `put` stored at `step`, before anybody saw it."""
        self._present[step - self._base] = 0

    def _put_leaf(self, row: int, leaf: Leaf) -> None:
        if self._shape is None:
            self._leaves[row] = leaf.copy() if isinstance(leaf, np.ndarray) else leaf
        else:
            self._array[row] = leaf

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
            self._leaves = [rows[row].copy() if there else None for row, there in enumerate(self._present)]
        self._become(spec)

    def _make_room(self, step: int) -> int:
        """Make the row of `step` exist; steps that nobody can name or needs are dropped. Returns the row."""
        kept_from = max(self._base, min(max(step - self.keep, self.clock.origin), self.clock.needed_from()))
        kept = min(max(self._capacity - (kept_from - self._base), 0), step - kept_from)
        row_bytes = 64 if self._shape is None else max(self.spec.row_bytes, 1)
        slack = max(16, self.keep // 2, min(1024, _SLACK_BYTES // row_bytes))
        capacity = step - kept_from + slack
        at = kept_from - self._base
        present = bytearray(capacity)
        present[:kept] = self._present[at : at + kept]
        self._present = present
        if self._shape is None:
            self._leaves = self._leaves[at : at + kept] + [None] * (capacity - kept)
        else:
            array = np.empty((capacity, *self._shape), self._dtype)
            array[:kept] = self._array[at : at + kept]
            self._array = array
        self._base = kept_from
        self._capacity = capacity
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

    def check(self, first: int, count: int) -> None:
        """Refuse steps ``[first, first + count)`` that cannot be named.

        Raises:
            ExpiredReference: some are not kept any more.
            InvalidArgument: some have no value.
        """
        clock = self.clock
        start = first - self._base
        if first < clock.end - self.keep or first < clock.origin or first < self._expired_before:
            raise self._expired(first)
        if start + count > self._capacity or self._present.find(0, start, start + count) >= 0:
            missing = next(step for step in range(first, first + count) if not self._has(step))
            raise InvalidArgument(
                f"column {self.path} has no value at step {missing - clock.origin} of the history; "
                f"select steps that have one"
            )

    def _has(self, step: int) -> bool:
        row = step - self._base
        return row < self._capacity and bool(self._present[row])

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
        start = first - self._base
        assert 0 <= start <= start + count <= self._capacity, (
            f"steps {first} to {first + count} of {self.path} are gone"
        )
        if self._shape is not None:
            return self._array[start : start + count]
        return stack_rows(self._taken(start, count), spec)

    def leaves(self, first: int, count: int) -> Sequence[Leaf]:
        """Return the values of steps that are there, one by one; not copied."""
        start = first - self._base
        return list(self._array[start : start + count]) if self._shape is not None else self._taken(start, count)

    def _taken(self, start: int, count: int) -> list[Leaf]:
        return [leaf for leaf in self._leaves[start : start + count] if leaf is not None]
