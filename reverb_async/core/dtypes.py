"""The dtypes that travel, by name, and what to do with the others."""

from __future__ import annotations

import importlib
import re
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.errors import InvalidArgument

DType = np.dtype[Any]

TEXT: DType = np.dtype("U")
"""Text of any length, one Python `str` per row; fixed-width text is ``np.dtype("U16")``."""
BYTES: DType = np.dtype("S")
"""Bytes of any length, one Python `bytes` per row; fixed-width bytes are ``np.dtype("S16")``."""

MAX_ROW_BYTES = 1 << 30
"""No row of a column is larger: it is the largest size class of the blob store."""
MAX_WIDTH_BYTES = 1 << 20
"""Bytes of one element of a fixed-width text or bytes array."""

_BUILTIN: dict[str, DType] = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
} | {"str": TEXT, "bytes": BYTES}
_NAME_OF = {dtype: name for name, dtype in _BUILTIN.items()}

_FROM_ML_DTYPES = frozenset(
    {
        *("bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
        *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    }
)
_FIXED_WIDTH = re.compile(r"([SU])([1-9][0-9]{0,6})")


def dtype_name(dtype: DType) -> str:
    """Return the name under which `dtype` travels: "float32", "bfloat16", "U16", "str"...

    Raises:
        InvalidArgument: it is none of the supported dtypes.
    """
    name = _name_of(dtype)
    if name is None:
        raise InvalidArgument(f"dtype {dtype} is not supported; {way_out(dtype)}")
    return name


def is_supported(dtype: DType) -> bool:
    """Whether arrays of `dtype` can be stored."""
    return dtype in _NAME_OF or _name_of(dtype) is not None


@lru_cache(maxsize=1024)
def _name_of(dtype: DType) -> str | None:
    name = _NAME_OF.get(dtype)
    if name is not None:
        return name
    if dtype.kind in "SU" and dtype.isnative and dtype.itemsize <= MAX_WIDTH_BYTES:
        return f"{dtype.kind}{dtype.itemsize // (4 if dtype.kind == 'U' else 1)}"
    if dtype.type.__module__ == "ml_dtypes" and dtype.name in _FROM_ML_DTYPES:
        return dtype.name
    return None


def dtype_from_name(name: object) -> DType:
    """Return the dtype that `dtype_name` named; `name` may come from a stranger.

    Raises:
        InvalidArgument: no dtype has this name, or it needs `ml_dtypes`, which is not installed.
    """
    if isinstance(name, str):
        if name in _BUILTIN:
            return _BUILTIN[name]
        if name in _FROM_ML_DTYPES:
            dtype = _ml_dtype(name)
            if dtype is None:
                raise InvalidArgument(
                    f"dtype {name!r} needs the package ml_dtypes: pip install 'reverb_async[bfloat16]'"
                )
            return dtype
        fixed = _FIXED_WIDTH.fullmatch(name)
        if fixed and int(fixed[2]) * (4 if fixed[1] == "U" else 1) <= MAX_WIDTH_BYTES:
            return np.dtype(name)
    raise InvalidArgument(
        f"{_shown(name)} names no supported dtype; these are {', '.join(_BUILTIN)}, bfloat16, float8_*, "
        f"'S<n>' and 'U<n>' (up to {MAX_WIDTH_BYTES} bytes per element)"
    )


@cache
def _ml_dtype(name: str) -> DType | None:
    try:
        module = importlib.import_module("ml_dtypes")
    except ImportError:
        return None
    scalar = getattr(module, name, None)
    return None if scalar is None else np.dtype(scalar)


def as_dtype(dtype: object) -> DType:
    """Turn what users call a dtype into a supported `np.dtype`; `str` and `bytes` mean variable length.

    Raises:
        InvalidArgument: it is no dtype, or none of the supported ones.
    """
    if isinstance(dtype, str) and dtype in _FROM_ML_DTYPES:
        return dtype_from_name(dtype)
    if dtype is None:
        raise InvalidArgument("a dtype is missing; pass np.float32, np.uint8, str...")
    try:
        known: DType = np.dtype(dtype)  # type: ignore[call-overload]  # whatever it is: numpy decides
    except (TypeError, ValueError, SyntaxError) as error:  # SyntaxError: "i4,," and the like
        raise InvalidArgument(f"{_shown(dtype)} is no dtype; pass np.float32, np.uint8, str...") from error
    dtype_name(known)
    return known


def way_out(dtype: DType) -> str:
    """Say what a user does whose array `x` has this unsupported dtype."""
    if dtype.kind == "O":
        return "make it np.asarray(x, np.float32), or pass text as str"
    if dtype.fields is not None:
        return "pass its fields as a dict: {name: x[name] for name in x.dtype.names}"
    if dtype.kind in "mM":
        return "pass x.astype(np.int64)"
    if not dtype.isnative:
        return "pass x.astype(x.dtype.newbyteorder('='))"
    if dtype.kind in "fc":
        return "pass x.astype(np.float64)" if dtype.kind == "f" else "pass x.astype(np.complex128)"
    if dtype.kind in "SU":
        return f"elements are at most {MAX_WIDTH_BYTES} bytes wide; pass longer text as str, longer bytes as bytes"
    if dtype.kind == "T":
        return "pass x.astype('U16') (fixed width), or a single text as str"
    return "pass x.astype(np.float32), or x.view(np.uint8) for its bytes"


def check_values(values: NDArray[Any], what: str) -> None:
    """Refuse bytes that no sound array of this dtype holds: bools other than 0 and 1, code points beyond Unicode.

    Arrays that users pass need no check; bytes from a stranger viewed as an array do: numpy trusts them.

    Raises:
        InvalidArgument: naming `what`.
    """
    if values.size == 0:
        return
    if values.dtype.kind == "b":
        stored = values.view(np.uint8)
        if (stored.item() if stored.size == 1 else stored.max()) > 1:
            raise InvalidArgument(f"{what}: bools must be stored as 0 or 1, got {stored.max()}")
    if values.dtype.kind == "U":
        highest = np.ascontiguousarray(values).reshape(-1).view(np.uint32).max()
        if highest > 0x10FFFF:
            raise InvalidArgument(f"{what}: text with the code point {highest:#x}, Unicode ends at 0x10ffff")


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | type) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
