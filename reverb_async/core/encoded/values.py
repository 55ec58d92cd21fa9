"""Rows of a decoded tensor as rows of a column."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.dtypes import BYTES, TEXT
from reverb_async.core.encoded.tensor_cache import Tensor
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument


def fitted(tensor: Tensor, offset: int, length: int, spec: ArraySpec) -> NDArray[Any] | list[Any]:
    """Return rows of a tensor as rows of `spec`; bytes become text if that is what `spec` says.

    Bytes that are no UTF-8 show as U+FFFD.

    Raises:
        InvalidArgument: there are no such rows, or they are something else.
    """
    stop = offset + length
    if stop > len(tensor):
        raise InvalidArgument(f"rows {offset} to {stop - 1} are shown of a tensor that has {len(tensor)}")
    rows = tensor[offset:stop]
    if isinstance(rows, list):
        if not spec.shape:
            if spec.dtype == BYTES:
                return rows
            texts = rows if spec.dtype.kind == "S" else [row.decode("utf-8", "replace") for row in rows]
            if spec.dtype == TEXT:
                return texts
            if spec.dtype.kind in "SU":
                return _narrowed(np.array(texts), spec)
        raise InvalidArgument(f"a tensor of strings is shown as {spec}")
    shape = rows.shape[1:]
    if shape != spec.shape and not spec.admits(shape):
        raise InvalidArgument(f"a tensor has rows of shape {shape}, they are shown as {spec}")
    if rows.dtype == spec.dtype:
        return rows
    if rows.dtype.kind == "S" and spec.dtype.itemsize and spec.dtype.kind in "SU":
        return _narrowed(rows if spec.dtype.kind == "S" else np.char.decode(rows, "utf-8", "replace"), spec)
    raise InvalidArgument(f"a tensor of {rows.dtype} is shown as {spec}")


def _narrowed(strings: NDArray[Any], spec: ArraySpec) -> NDArray[Any]:
    """Return fixed-width strings of another width."""
    if strings.dtype.itemsize > spec.dtype.itemsize:
        width = int(np.char.str_len(strings).max())
        if width > spec.dtype.itemsize // (4 if spec.dtype.kind == "U" else 1):
            raise InvalidArgument(f"a string of length {width} is shown as {spec}")
    return strings.astype(spec.dtype)
