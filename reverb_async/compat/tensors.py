"""Arrays as TensorFlow's `TensorProto`, the way DeepMind's clients put them into chunks, and back.

The elements of all dtypes but strings are one raw Snappy block; integers may be differences between rows. Strings are
never compressed. What is read may be hostile: nothing is allocated before head, lengths and content agree.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import cramjam
import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.scanning import (
    LENGTH,
    VARINT,
    Data,
    Received,
    as_data,
    expect,
    fields,
    int64,
    read_varint,
    unpack_varints,
    varint,
)
from reverb_async.core.dtypes import MAX_WIDTH_BYTES, DType, check_values, dtype_from_name, dtype_name
from reverb_async.errors import InvalidArgument

DT_STRING = 7

NAMES = {
    **{1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", DT_STRING: "bytes", 8: "complex64"},
    **{9: "int64", 10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32"},
    **{23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn"},
}
"""TensorFlow's numbers of the dtypes that can be stored, with our names."""

NUMBERS = {name: number for number, name in NAMES.items()}

MAX_RANK = 32
MAX_STRINGS = 1 << 20
"""Strings per tensor: each costs far more than its one byte in a message."""

MAX_STRINGS_BYTES = 64 << 20
"""Strings of rank 2 and above become arrays of one width for all elements, which must not exceed this many bytes."""

_ITEM_SIZES = {
    **{1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 8: 8, 9: 8, 10: 1, 14: 2, 17: 2, 18: 16, 19: 2, 22: 4, 23: 8, 24: 1, 25: 1}
}
_MAX_ELEMENTS = 1 << 48
_WORTH_REMEMBERING = 16
_MAX_EXPANSION = 22
"""A Snappy block holds at most this many times its size: 3 bytes copy 64."""


class TensorHead(NamedTuple):
    """All of a tensor but its elements: TensorFlow's number of its dtype, and its shape with the rows in front."""

    dtype: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded elements; of strings, 0."""
        return math.prod(self.shape) * _ITEM_SIZES.get(self.dtype, 0)


@cache
def dtype_of(number: int) -> DType:
    """Return the numpy dtype of one of TensorFlow's; strings are bytes of any length.

    Raises:
        InvalidArgument: it is not supported, or needs `ml_dtypes`, which is not installed.
    """
    _check_dtype(number, "TensorProto.dtype")
    return dtype_from_name(NAMES[number])


def number_of(dtype: DType) -> int:
    """Return TensorFlow's number of a numpy dtype; text and bytes of any width are strings.

    Raises:
        InvalidArgument: TensorFlow has none.
    """
    if dtype.kind in "SU":
        return DT_STRING
    name = dtype_name(dtype)
    if name not in NUMBERS:
        raise InvalidArgument(f"dtype {name} has no counterpart in DeepMind's protocol")
    return NUMBERS[name]


def _check_dtype(number: int, what: str) -> None:
    if number not in NAMES:
        raise InvalidArgument(f"{what} is {number}, which is not supported; these are {NAMES}")


def read_head(data: Data, start: int, stop: int) -> TensorHead:
    """Return the head of the `TensorProto` in ``data[start:stop]``; the elements are not looked at.

    Raises:
        InvalidArgument: it is malformed, has no axis, or an unsupported dtype.
    """
    return _scan(data, start, stop)[0]


def decode_tensor(proto: Received, *, delta: bool = False) -> NDArray[Any] | list[bytes]:
    """Return the array of a serialized `TensorProto`; strings of rank 1 are a list, of higher rank an array of bytes.

    Such an array has one width for all elements, a power of two, and loses NUL bytes at the end of an element as all
    numpy's do.

    Args:
        proto: the message.
        delta: the chunk is delta encoded; that concerns integers of rank 2 and above only.

    Raises:
        InvalidArgument: head and content disagree, the content is damaged, or the dtype is not available.
    """
    data = as_data(proto)
    return _decode(data, 0, len(data), delta)


def decode_chunk_tensor(chunk: Received, index: int) -> NDArray[Any] | list[bytes]:
    """Return one tensor ``[rows, ...]`` of a serialized `ChunkData`, as `decode_tensor` does.

    Raises:
        InvalidArgument: the chunk has no such tensor, or is damaged.
    """
    data = as_data(chunk)
    places, delta = _remembered_tensors(chunk, data)
    if not 0 <= index < len(places):
        raise InvalidArgument(f"tensor {index} of a chunk that has {len(places)}")
    return _decode(data, *places[index], delta)


def string_widths(chunk: Received) -> list[int]:
    """Return the bytes per string of each tensor of a serialized `ChunkData` that is an array of strings; else 0.

    Raises:
        InvalidArgument: the chunk is damaged, or strings are too long to be an array of one width.
    """
    data = as_data(chunk)
    widths = []
    for start, stop in _tensors(data)[0]:
        head = read_head(data, start, stop)
        _check_strings(head)
        is_array = head.dtype == DT_STRING and len(head.shape) > 1
        widths.append(np.asarray(_decode(data, start, stop, False)).dtype.itemsize if is_array else 0)
    return widths


_last: tuple[Any, tuple[list[tuple[int, int]], bool]] = (lambda: None, ([], False))
"""The chunk read last, weakly, and what `_tensors` returned of it: readers want all tensors, one after the other."""


def _remembered_tensors(chunk: Received, data: Data) -> tuple[list[tuple[int, int]], bool]:
    global _last
    last, found = _last
    if last() is not chunk:
        found = _tensors(data)
        if isinstance(chunk, memoryview) and len(found[0]) > _WORTH_REMEMBERING:
            _last = weakref.ref(chunk), found
    return found


def _tensors(data: Data) -> tuple[list[tuple[int, int]], bool]:
    """Return where each tensor of a `ChunkData` lies, and whether they are delta encoded."""
    delta = False
    places: list[tuple[int, int]] = []
    for number, wire_type, value, stop in fields(data, 0, len(data), "ChunkData"):
        if number == 4:
            expect(wire_type, VARINT, "ChunkData.delta_encoded", stop)
            delta = value != 0
        elif number == 5:
            expect(wire_type, LENGTH, "ChunkData.data", stop)
            for inner, inner_type, begin, end in fields(data, value, stop, "ChunkData.Data"):
                if inner == 1:
                    expect(inner_type, LENGTH, "ChunkData.Data.tensors", end)
                    places.append((begin, end))
    return places, delta


def _decode(data: Data, start: int, stop: int, delta: bool) -> NDArray[Any] | list[bytes]:
    head, content, strings = _scan(data, start, stop)
    if head.dtype == DT_STRING:
        _check_strings(head)
        if content is not None:
            strings = _split_strings(data, *content, math.prod(head.shape))
        if len(strings) != math.prod(head.shape):
            raise InvalidArgument(f"TensorProto: {len(strings)} strings for the shape {head.shape}")
        return strings if len(head.shape) == 1 else _strings_array(strings, head.shape)
    dtype = dtype_of(head.dtype)
    values = _decompressed(data, *(content or (stop, stop)), head).view(dtype).reshape(head.shape)
    check_values(values, "TensorProto")
    if delta and _is_delta_encoded(values):
        steps = values.view(f"u{dtype.itemsize}")
        np.add.accumulate(steps, axis=0, dtype=steps.dtype, out=steps)
    return values


def encode_tensor(values: NDArray[Any] | Sequence[bytes], *, delta: bool = False) -> bytes:
    """Return a serialized `TensorProto` of an array ``[rows, ...]``, or of one `bytes` per row.

    Args:
        values: an array of a supported dtype, in any memory order; arrays of text become UTF-8.
        delta: write integers of rank 2 and above as differences between rows.

    Raises:
        InvalidArgument: DeepMind's protocol has no such dtype.
    """
    if not isinstance(values, np.ndarray):
        return _join_head(DT_STRING, (len(values),), _join_strings(values))
    number = number_of(values.dtype)
    if number == DT_STRING:
        flat: list[Any] = values.reshape(-1).tolist()
        encoded = [each.encode() for each in flat] if values.dtype.kind == "U" else flat
        return _join_head(number, values.shape, _join_strings(encoded))
    values = np.ascontiguousarray(values).reshape(values.shape)
    if delta and _is_delta_encoded(values):
        rows = values.view(f"u{values.dtype.itemsize}")
        values = rows.copy()
        values[1:] -= rows[:-1]
    raw = values.reshape(-1).view(np.uint8)
    return _join_head(number, values.shape, cramjam.snappy.compress_raw(raw.data) if len(raw) else b"\0")


def _check_strings(head: TensorHead) -> None:
    if head.dtype == DT_STRING and math.prod(head.shape) > MAX_STRINGS:
        raise InvalidArgument(f"TensorProto: more than {MAX_STRINGS} strings, of the shape {head.shape}")


def _is_delta_encoded(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "iu" and values.ndim >= 2 and values.size > 0


def _join_head(number: int, shape: tuple[int, ...], content: Any) -> bytes:
    """Return a serialized `TensorProto`; `content` is any buffer of bytes."""
    dims = []
    for size in shape:
        dim = b"\x08" + varint(size) if size else b""
        dims.append(b"\x12" + varint(len(dim)) + dim)
    joined = b"".join(dims)
    head = b"\x08" + varint(number) + b"\x12" + varint(len(joined)) + joined
    return b"".join((head, b"\x22", varint(len(content)), content))


def _scan(data: Data, start: int, stop: int) -> tuple[TensorHead, tuple[int, int] | None, list[bytes]]:
    """Return a tensor's head, where its content lies, if it has any, and its `string_val`."""
    dtype = 0
    shape: list[int] = []
    content: tuple[int, int] | None = None
    strings: list[bytes] = []
    for number, wire_type, value, end in fields(data, start, stop, "TensorProto"):
        if number == 1:
            expect(wire_type, VARINT, "TensorProto.dtype", end)
            dtype = value
        elif number == 2:
            expect(wire_type, LENGTH, "TensorProto.tensor_shape", end)
            _read_shape(data, value, end, shape)
        elif number == 4:
            expect(wire_type, LENGTH, "TensorProto.tensor_content", end)
            content = value, end
        elif number == 8:
            expect(wire_type, LENGTH, "TensorProto.string_val", end)
            strings.append(bytes(data[value:end]))
    _check_dtype(dtype, f"TensorProto.dtype before byte {stop}")
    if not shape:
        raise InvalidArgument(f"a TensorProto that ends at byte {stop} has no axis; the leading one are the rows")
    if math.prod(size or 1 for size in shape) > _MAX_ELEMENTS:  # an empty array's other axes matter to numpy, too
        raise InvalidArgument(f"TensorProto.tensor_shape {tuple(shape)} before byte {stop} is too large")
    return TensorHead(dtype, tuple(shape)), content, strings


def _read_shape(data: Data, start: int, stop: int, shape: list[int]) -> None:
    """Append the sizes of a serialized `TensorShapeProto` to `shape`."""
    unknown = False
    for number, wire_type, value, end in fields(data, start, stop, "TensorShapeProto"):
        if number == 2:
            expect(wire_type, LENGTH, "TensorShapeProto.dim", end)
            if len(shape) == MAX_RANK:
                raise InvalidArgument(f"a tensor's shape before byte {end} has more than {MAX_RANK} axes")
            shape.append(_read_size(data, value, end))
        elif number == 3:
            expect(wire_type, VARINT, "TensorShapeProto.unknown_rank", end)
            unknown = value != 0
    if unknown:
        raise InvalidArgument(f"a tensor's shape before byte {stop} is of unknown rank")


def _read_size(data: Data, start: int, stop: int) -> int:
    size = 0
    for number, wire_type, value, end in fields(data, start, stop, "TensorShapeProto.Dim"):
        if number == 1:
            expect(wire_type, VARINT, "TensorShapeProto.Dim.size", end)
            size = int64(value)
    if size < 0:
        raise InvalidArgument(f"an axis of a tensor's shape before byte {stop} has the size {size}")
    return size


def _decompressed(data: Data, start: int, stop: int, head: TensorHead) -> NDArray[np.uint8]:
    """Return the bytes of a Snappy block that must hold exactly the elements of `head`."""
    nbytes, size = head.nbytes, stop - start
    if nbytes == size == 0:
        return np.empty(0, np.uint8)
    length, _ = read_varint(data, start, stop, "TensorProto.tensor_content")
    if length != nbytes:
        raise InvalidArgument(f"TensorProto.tensor_content holds {length} bytes, {head} needs {nbytes}")
    if nbytes > _MAX_EXPANSION * size:
        raise InvalidArgument(f"TensorProto.tensor_content of {size} bytes cannot hold the {nbytes} bytes of {head}")
    raw = np.empty(nbytes, np.uint8)
    try:
        written = cramjam.snappy.decompress_raw_into(data[start:stop], raw.data)
    except cramjam.DecompressionError as error:
        raise InvalidArgument(f"TensorProto.tensor_content is damaged: {error}") from error
    if written != nbytes:
        raise InvalidArgument(f"TensorProto.tensor_content holds {written} bytes, {head} needs {nbytes}")
    return raw


def _split_strings(data: Data, start: int, stop: int, count: int) -> list[bytes]:
    """Return the strings of a content: every length as a varint of up to 5 bytes, then all their bytes."""
    head = np.frombuffer(data, np.uint8, min(5 * count, stop - start), start)
    ends = np.flatnonzero(head < 0x80)[:count]
    if len(ends) < count:
        raise InvalidArgument(f"TensorProto.tensor_content has the lengths of {len(ends)} strings, not {count}")
    at = start + int(ends[-1]) + 1 if count else start
    lengths = unpack_varints(data, start, at, "TensorProto.tensor_content", limit=count)
    if lengths.max(initial=0) > stop - at or int(lengths.sum()) != stop - at:
        raise InvalidArgument(f"TensorProto.tensor_content: strings of {lengths.sum()} bytes in {stop - at}")
    strings = []
    for length in lengths.tolist():
        strings.append(bytes(data[at : at + length]))
        at += length
    return strings


def _strings_array(values: list[bytes], shape: tuple[int, ...]) -> NDArray[Any]:
    longest = max(map(len, values), default=1)
    width = 1 << (max(longest, 1) - 1).bit_length()
    if width > MAX_WIDTH_BYTES or width * len(values) > MAX_STRINGS_BYTES:
        raise InvalidArgument(
            f"{len(values)} strings {shape} of up to {longest} bytes are too long to be an array of one width"
        )
    return np.array(values, f"S{width}").reshape(shape)


def _join_strings(values: Sequence[bytes]) -> bytes:
    return b"".join((*(varint(len(each)) for each in values), *values))
