"""Exported items as Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.dtypes import TEXT
from reverb_async.core.variable import VariableRows, decode_rows
from reverb_async.errors import InvalidArgument

if TYPE_CHECKING:
    from reverb_async.checkpoint.export import ExportedColumn

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise InvalidArgument("Parquet needs the package pyarrow: pip install 'reverb_async[parquet]'") from None


def write_parquet(path: Path, info: Mapping[str, NDArray[Any]], columns: Sequence[ExportedColumn]) -> None:
    """Write items: a row each; arrays are lists, within lists for each further axis.

    Raises:
        InvalidArgument: Arrow has no such dtype.
    """
    arrays = {f"info.{name}": pa.array(values) for name, values in info.items()}
    for column in columns:
        rows = _variable(column, column.values) if isinstance(column.values, VariableRows) else _fixed(column)
        if column.lengths is not None:
            rows = pa.LargeListArray.from_arrays(_offsets(column.lengths), rows)
        arrays[f"data.{column.name}"] = rows
    pq.write_table(pa.table(arrays), path)


def _fixed(column: ExportedColumn) -> Any:
    values = column.values
    assert isinstance(values, np.ndarray)
    flat = values.reshape(-1)
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    if flat.dtype.kind == "V" or flat.dtype.type.__module__ == "ml_dtypes":
        flat = flat.astype(np.float32)
    array = pa.array(flat.tolist() if flat.dtype.kind in "SU" else flat)
    shape = values.shape[1:] if values.dtype.kind != "c" else (*values.shape[1:], 2)
    for extent in reversed(shape):
        if extent == 0:
            raise InvalidArgument(f"column {column.name}: Parquet has no empty arrays of shape {list(shape)}: use NPZ")
        array = pa.FixedSizeListArray.from_arrays(array, extent)
    return array


def _variable(column: ExportedColumn, values: VariableRows) -> Any:
    if column.spec.dtype.itemsize == 0 and not column.spec.shape:
        return pa.array(
            decode_rows(values, column.spec), pa.large_string() if column.spec.dtype == TEXT else pa.large_binary()
        )
    rows = [row.tolist() for row in decode_rows(values, column.spec) if isinstance(row, np.ndarray)]
    return pa.array(rows)


def _offsets(lengths: NDArray[np.int64]) -> Any:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]))
