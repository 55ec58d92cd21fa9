"""Filling an empty store with rows that have numbers already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.runs import Rows
from reverb_async.core.storage.columns import MAX_ROWS
from reverb_async.core.storage.row_store import RowStore
from reverb_async.core.variable import VariableRows
from reverb_async.errors import InvalidArgument


class RestoringStore:
    """Takes first what refers to rows, then the rows; `finish` makes the store one that was always used.

    Whoever does not get that far calls `abandon`.

    Args:
        store: nobody has rows of it.
        num_rows: all rows are below this number.

    Raises:
        InvalidArgument: the store is in use, or can never have so many rows.
        ResourceExhausted: there is no room.
    """

    def __init__(self, store: RowStore, num_rows: int) -> None:
        if store.reached_rows:
            raise InvalidArgument("rows are restored into stores that nobody has used")
        if not 0 <= num_rows <= MAX_ROWS:
            raise InvalidArgument(f"a store has at most {MAX_ROWS} rows, not {num_rows}")
        self.store = store
        self._num_rows = num_rows
        store.make_room_for(num_rows)
        # How many more references each row has than the one before it.
        self._steps = np.zeros(num_rows + 1, np.int64)
        self._references: NDArray[np.int64] | None = None
        self._is_written = np.zeros(num_rows, np.bool_)

    def retain(self, first: Rows, length: Rows) -> None:
        """Count a reference to each row of the runs given by `first` and `length`, int64 ``[n]`` each.

        Raises:
            InvalidArgument: there are no such rows.
        """
        if not len(first):
            return
        end = first + length
        if int(first.min()) < 0 or int(length.min()) < 1 or int(end.max()) > self._num_rows:
            raise InvalidArgument(f"items refer to rows that are not among the {self._num_rows} of their store")
        np.add.at(self._steps, first, 1)
        np.subtract.at(self._steps, end, 1)

    def fill(self, rows: Rows, columns: Sequence[NDArray[np.generic] | VariableRows], segment: int) -> None:
        """Write rows, of which those that nothing refers to are left out; after all calls of `retain`.

        Args:
            rows: int64 ``[n]``, distinct.
            columns: one per column of the store, see `RowStore.write`.
            segment: which holds them on disk.

        Raises:
            InvalidArgument: there are no such rows, they come twice, or the columns are others.
            ResourceExhausted: there is no room.
        """
        store, references = self.store, self._counted()
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self._num_rows):
            raise InvalidArgument(f"rows {int(rows.min())} to {int(rows.max())} of a store of {self._num_rows}")
        wanted = references[rows] > 0
        if np.count_nonzero(self._is_written[rows[wanted]]):
            raise InvalidArgument("rows were saved twice")
        _check_columns(store, columns, len(rows))
        is_all = bool(wanted.all())
        at = np.flatnonzero(wanted)
        kept = rows if is_all else rows[at]
        if not len(kept):
            return
        for column, values in enumerate(columns):
            store.write(column, kept, values if is_all else _taken(values, at))
        self._is_written[kept] = True
        if store.watch is not None:
            store.watch.segments[kept] = segment

    def _counted(self) -> NDArray[np.int64]:
        if self._references is None:
            np.cumsum(self._steps, out=self._steps)
            self._references = self._steps[:-1]
        return self._references

    def check(self) -> None:
        """Raise `InvalidArgument` unless all rows that items refer to were written."""
        missing = np.flatnonzero((self._counted() > 0) & ~self._is_written)
        if len(missing):
            raise InvalidArgument(
                f"items refer to {len(missing)} rows that were not saved, row {int(missing[0])} first"
            )

    def finish(self) -> None:
        """Let the store be used."""
        self.store.adopt(self._counted())

    def abandon(self) -> None:
        """Let go of what was written."""
        self.store.forget(np.flatnonzero(self._is_written))
        self._is_written[:] = False


def _check_columns(store: RowStore, columns: Sequence[NDArray[np.generic] | VariableRows], count: int) -> None:
    if len(columns) != len(store.specs):
        raise InvalidArgument(f"rows of {len(columns)} columns in a store of {len(store.specs)}")
    for values, spec in zip(columns, store.specs, strict=True):
        if isinstance(values, VariableRows) is not spec.is_variable or len(values) != count:
            raise InvalidArgument(f"{len(values)} rows of {type(values).__name__} where {count} of {spec} belong")
        if isinstance(values, VariableRows):
            values.validate(spec)
        elif values.dtype != spec.dtype or values.shape[1:] != spec.shape:
            raise InvalidArgument(f"rows of {values.dtype} {list(values.shape[1:])} where {spec} belongs")


def _taken(values: NDArray[np.generic] | VariableRows, at: NDArray[np.intp]) -> NDArray[np.generic] | VariableRows:
    return values.take(at) if isinstance(values, VariableRows) else values[at]
