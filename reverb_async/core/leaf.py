"""From what users pass as a value to what columns hold: an array, a `str` or a `bytes`."""

from __future__ import annotations

import cmath
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.dtypes import DType, is_supported, way_out
from reverb_async.errors import InvalidArgument

if TYPE_CHECKING:
    from reverb_async.core.nest import Path
    from reverb_async.core.spec import ArraySpec

Leaf = NDArray[Any] | str | bytes

_NATURAL: dict[type, DType] = {
    bool: np.dtype(np.bool_),
    int: np.dtype(np.int64),
    float: np.dtype(np.float64),
    complex: np.dtype(np.complex128),
}
_OVERFLOW_RAISES = frozenset({np.dtype(kind) for kind in "?bhilqBHILQ"} | set(_NATURAL.values()))
_LIMITS = {dtype: float(np.finfo(dtype).max) for dtype in map(np.dtype, ("float16", "float32"))}
# Which dtypes a Python number may take from a signature without losing its meaning.
_TAKEN_BY: dict[type, str] = {bool: "biufcV", int: "iufcV", float: "fcV", complex: "c"}


def as_leaf(value: object, path: Path, spec: ArraySpec | None = None) -> Leaf:
    """Return `value` as an array of a supported dtype, or as a Python `str` or `bytes`; no copy unless it must be.

    Python numbers become int64, float64, bool or complex128, or take the dtype of `spec` where it can hold their kind;
    text and bytes are widened to a fixed width that `spec` asks for. Nothing else is converted, and shapes are not
    checked.

    Args:
        value: an array, a NumPy scalar, a Python number, str, bytes, or what offers itself as an array (torch on the
            CPU, JAX).
        path: the column's, for the message.
        spec: what the signature says of the column.

    Raises:
        InvalidArgument: naming the path, the type or value, and the way out.
    """
    if type(value) is np.ndarray and is_supported(value.dtype) and value.dtype.kind not in "SU":
        return value
    kind = type(value)
    if kind in _NATURAL:
        return _number(value, kind, path, spec)
    if isinstance(value, str):
        return _text(value, path, spec)
    if isinstance(value, bytes):
        return _bytes(value, path, spec)
    array = _as_array(value, path)
    if not is_supported(array.dtype):
        raise InvalidArgument(f"column {path} has the unsupported dtype {array.dtype}; {way_out(array.dtype)}")
    return _widened(array, spec) if array.dtype.kind in "SU" else array


def _number(value: Any, kind: type, path: Path, spec: ArraySpec | None) -> NDArray[Any]:
    dtype = _NATURAL[kind]
    if spec is not None and spec.dtype.kind in _TAKEN_BY[kind]:
        dtype = spec.dtype
    limit = _LIMITS.get(dtype)
    try:
        if dtype in _OVERFLOW_RAISES or (limit is not None and -limit <= value <= limit):
            return np.asarray(value, dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # told below, and for every dtype alike
            array = np.asarray(value, dtype)
        kept = cmath.isfinite(array.item()) or not cmath.isfinite(value)
    except OverflowError as error:
        raise InvalidArgument(
            f"column {path}: {_shown(value)} does not fit {dtype}; "
            "pass np.uint64(x) or np.float64(x), and let the signature say so"
        ) from error
    if not kept:
        raise InvalidArgument(
            f"column {path}: {_shown(value)} is beyond the range of {dtype}; pass np.float64(x), or scale it"
        )
    return array


def _text(value: str, path: Path, spec: ArraySpec | None) -> Leaf:
    text = value if type(value) is str else str.__str__(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(
                f"column {path}: text with the lone surrogate {error.object[error.start]!r} is not valid Unicode; "
                "pass text.encode('utf-8', 'surrogateescape') as bytes"
            ) from error
    if spec is None or spec.dtype.kind != "U" or not spec.dtype.itemsize:
        return text
    return _fixed(text, path, spec.dtype, spec.dtype.itemsize // 4, text.endswith("\0"))


def _bytes(value: bytes, path: Path, spec: ArraySpec | None) -> Leaf:
    data = value if type(value) is bytes else bytes(value)
    if spec is None or spec.dtype.kind != "S" or not spec.dtype.itemsize:
        return data
    return _fixed(data, path, spec.dtype, spec.dtype.itemsize, data.endswith(b"\0"))


def _fixed(value: str | bytes, path: Path, dtype: DType, width: int, ends_in_nul: bool) -> NDArray[Any]:
    if len(value) > width:
        raise InvalidArgument(
            f"column {path}: {_shown(value)} has length {len(value)}, the signature's {dtype} holds {width}; "
            f"make the signature's dtype {type(value).__name__}, which holds any length"
        )
    if ends_in_nul:  # numpy would drop it silently
        raise InvalidArgument(
            f"column {path}: {_shown(value)} ends in a NUL, which {dtype} cannot tell from padding; "
            f"make the signature's dtype {type(value).__name__}"
        )
    return np.array(value, dtype)


def _widened(array: NDArray[Any], spec: ArraySpec | None) -> Leaf:
    if array.dtype.itemsize == 0:  # "U0" would be read as text of any length
        array = array.astype(f"{array.dtype.kind}1")
    if spec is None or spec.dtype.kind != array.dtype.kind:
        return array
    if spec.dtype.itemsize == 0 and array.ndim == 0:
        single: str | bytes = array.item()
        return single
    return array.astype(spec.dtype) if array.dtype.itemsize < spec.dtype.itemsize else array


def _as_array(value: object, path: Path) -> NDArray[Any]:
    if isinstance(value, np.generic):
        return np.asarray(value)
    if isinstance(value, np.ma.MaskedArray):
        raise InvalidArgument(
            f"column {path} is a masked array, whose mask would be lost; pass x.filled(0) and the mask beside it"
        )
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if type(value).__module__.partition(".")[0] == "torch":
        _check_torch(value, path)
    elif isinstance(value, bool | int | float | complex):  # subclasses, IntEnum for one
        return np.asarray(value)
    if not hasattr(type(value), "__array__"):
        raise InvalidArgument(f"column {path} is {_kind(value)}")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            f"column {path}: this {type(value).__name__} does not convert to an array ({error}); "
            "pass np.asarray(x, np.float32)"
        ) from error


def _check_torch(tensor: object, path: Path) -> None:
    device = getattr(getattr(tensor, "device", None), "type", "cpu")
    if device != "cpu":
        raise InvalidArgument(f"column {path} is a torch tensor on {device!r}; pass x.detach().cpu().numpy()")
    if getattr(tensor, "requires_grad", False):
        raise InvalidArgument(f"column {path} is a torch tensor that requires grad; pass x.detach().cpu().numpy()")


def _kind(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, Awaitable):
        return f"a {name}, did you forget 'await'?"
    if isinstance(value, set | frozenset):
        return f"a {name}, which has no order; use a tuple or a dict"
    if isinstance(value, bytearray | memoryview):
        return f"a {name}; pass bytes(x), or np.frombuffer(x, np.uint8)"
    if value is None:
        return "None; leave the column out"
    if isinstance(value, Iterable):
        return f"a {name}, not an array; pass np.asarray(x, np.float32)"
    return f"a {name}, not an array, a number, a str or bytes; pass np.asarray(x, np.float32), or its parts as a dict"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of more than 4300 digits
        return f"this {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
