"""Exported items as NumPy's ``.npz``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.variable import VariableRows

if TYPE_CHECKING:
    from reverb_async.checkpoint.export import ExportedColumn


def write_npz(path: Path, info: Mapping[str, NDArray[Any]], columns: Sequence[ExportedColumn]) -> None:
    """Write items: ``info.key`` and so on ``[n]``; per column ``data.<path>``.

    Columns of even length are ``[n, *shape]``. Others are all rows one after the other, and ``.offsets`` ``[n + 1]``
    tell where each item's begin. Values of varying size are bytes (UTF-8 for text), ``.ends`` tells where each ends,
    and ``.shapes`` the shape of each, if they are arrays.
    """
    arrays: dict[str, NDArray[Any]] = {f"info.{name}": values for name, values in info.items()}
    for column in columns:
        name, values, lengths = f"data.{column.name}", column.values, column.lengths
        if isinstance(values, VariableRows):
            arrays[name] = values.data
            arrays[f"{name}.ends"] = np.cumsum(values.sizes)
            if values.shapes.shape[1]:
                arrays[f"{name}.shapes"] = values.shapes
        elif lengths is not None and len(lengths) and bool((lengths == lengths[0]).all()):
            values = values.reshape(len(lengths), int(lengths[0]), *values.shape[1:])
            lengths = None
        if isinstance(values, np.ndarray):
            arrays[name] = values
        if lengths is not None:
            arrays[f"{name}.offsets"] = np.concatenate([[0], np.cumsum(lengths)])
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stubs take names for options
