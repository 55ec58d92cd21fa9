"""Rows on an Insert stream, as records.

A row is an item that shows one step of its own. As `Steps` and `Items` it takes a dozen small arrays; many clients that
insert single rows would spend their time on those. A `RowBlock` says the same with one buffer: a record per row with
its keys, its priorities and the values of all columns, so that a server joins the rows of many clients by joining
bytes. It is for layouts of one view whose leaves have no time axis and whose columns have a fixed size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.spec import ArraySpec

MAX_RECORD_BYTES = 4096
"""Longer rows go as `Steps` and `Items`: their copies cost more than their number."""

Records = NDArray[np.void]


class RecordFormat:
    """How a record is laid out: uint64 keys and float64 priorities, one of each per table, then the columns.

    Each field begins at the next multiple of its dtype's alignment, and records are as long as a multiple of 8, like a
    C struct.

    Attributes:
        dtype: of records; its fields are ``key``, ``priority`` and one per column, ``0``, ``1``, ...
        columns: the names of the columns' fields.
        unsafe: those whose bytes may be no value: see `check_values`.
    """

    __slots__ = ("columns", "dtype", "unsafe")

    def __init__(self, specs: Sequence[ArraySpec], num_tables: int) -> None:
        self.columns = tuple(map(str, range(len(specs))))
        fields: list[Any] = [("key", np.uint64, (num_tables,)), ("priority", np.float64, (num_tables,))]
        fields += [(name, spec.dtype, spec.fixed_shape) for name, spec in zip(self.columns, specs, strict=True)]
        self.dtype = np.dtype(fields, align=True)
        self.unsafe = tuple(name for name, spec in zip(self.columns, specs, strict=True) if spec.dtype.kind in "bU")

    @classmethod
    def of(cls, specs: Sequence[ArraySpec], num_tables: int) -> RecordFormat | None:
        """Return the format; None if such rows do not travel as records."""
        # Dtypes that other packages define (isbuiltin 2) are no fields of records.
        if not all(spec.dtype.isbuiltin != 2 and not spec.is_variable and spec.row_bytes for spec in specs):
            return None
        if 16 * num_tables + sum(spec.row_bytes for spec in specs) > MAX_RECORD_BYTES:
            return None
        return cls(specs, num_tables)


@dataclass(slots=True)
class RowBlock:
    """Items ``[seq, seq + count)`` of the session, each a new row that enters all of `tables` in one step.

    Attributes:
        layout: their layout.
        seq: sequence number of the first.
        count: how many.
        tables: distinct names.
        timeout: seconds to wait for the rate limiters; None waits.
        records: uint8 ``[count * itemsize]``, see `RecordFormat`; a priority of NaN asks for the highest so far.
    """

    layout: int
    seq: int
    count: int
    tables: tuple[str, ...]
    timeout: float | None
    records: NDArray[np.uint8]
