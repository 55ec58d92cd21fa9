"""Storing steps of one structure, all columns at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reverb_async.client.writing.clock import Clock
from reverb_async.client.writing.columns import ColumnBuffer, Loosen, Target


class Plan:
    """The columns of steps of one structure.

    Attributes:
        columns: in the structure's order.
    """

    __slots__ = ("_clock", "_moves", "_offset", "_room", "_stop", "_targets", "columns")

    def __init__(self, columns: Sequence[ColumnBuffer], clock: Clock) -> None:
        self.columns = tuple(columns)
        self._clock = clock
        self._stop = -1  # the step after the last one that was put here
        # While the columns' rows stay where they are: from which step on, before which, and where they are.
        self._moves = self._offset = self._room = -1
        self._targets: list[Target] = []

    def put(self, step: int, values: Sequence[Any], loosen: Loosen) -> None:
        """Store copies of a step's values, one per column; all or none.

        Raises:
            InvalidArgument: one does not fit, or its column has a value at the step.
        """
        if self._stop == step < self._room and self._moves == self._clock.moves and not self._clock.is_open:
            self._put_next(step, values, loosen)
        else:
            self._put_each(step, values, loosen)
            if self._stop == step:
                self._prepare()
        self._stop = step + 1

    def _put_next(self, step: int, values: Sequence[Any], loosen: Loosen) -> None:
        """Store the step after the last one that was put here, when all columns have a row for it and no value."""
        row, after = step - self._offset, step + 1
        try:
            for (column, rows, scalars, shape, dtype), value in zip(self._targets, values, strict=True):
                kind = type(value)
                if kind in scalars or (kind is np.ndarray and value.shape == shape and value.dtype == dtype):
                    rows[row] = value
                    column.stop = after
                else:
                    column.put(step, value, loosen)
        except BaseException:
            for column in self.columns:
                if column.stop == step:
                    break
                column.unput(step)
            raise

    def _put_each(self, step: int, values: Sequence[Any], loosen: Loosen) -> None:
        put = 0
        try:
            for column, value in zip(self.columns, values, strict=True):
                column.put(step, value, loosen)
                put += 1
        except BaseException:
            for column in self.columns[:put]:
                column.unput(step)
            raise

    def _prepare(self) -> None:
        self._moves = self._clock.moves
        self._offset = max((column.base for column in self.columns), default=0)
        self._room = min((column.room for column in self.columns), default=0)
        self._targets = [column.target(self._offset) for column in self.columns]
