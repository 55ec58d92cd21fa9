"""A small encoding of chunks for the tests: per tensor its dtype, shape and bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.encoded.tensor_cache import Tensor
from reverb_async.errors import InvalidArgument

_DAMAGED = b"damaged"


def encode(tensors: Sequence[NDArray[Any] | list[bytes]]) -> bytes:
    """Return a chunk of these tensors."""
    parts = []
    for tensor in tensors:
        if isinstance(tensor, list):
            head, body = "strings", b"".join(struct.pack("<I", len(value)) + value for value in tensor)
        else:
            head, body = f"{tensor.dtype.str} {','.join(map(str, tensor.shape))}", tensor.tobytes()
        parts.append(struct.pack("<II", len(head), len(body)) + head.encode() + body)
    return b"".join(parts)


def damaged(like: bytes) -> bytes:
    """Return a chunk as long as another, whose tensors cannot be decoded."""
    return (_DAMAGED * (len(like) // len(_DAMAGED) + 1))[: max(len(like), len(_DAMAGED))]


def decode(chunk: memoryview, tensor: int) -> Tensor:
    """Return one tensor of a chunk."""
    if bytes(chunk[: len(_DAMAGED)]) == _DAMAGED:
        raise InvalidArgument("the chunk is damaged")
    at = 0
    for _ in range(tensor + 1):
        head_size, body_size = struct.unpack_from("<II", chunk, at)
        head = bytes(chunk[at + 8 : at + 8 + head_size]).decode()
        body = chunk[at + 8 + head_size : at + 8 + head_size + body_size]
        at += 8 + head_size + body_size
    if head == "strings":
        values, start = [], 0
        while start < len(body):
            (size,) = struct.unpack_from("<I", body, start)
            values.append(bytes(body[start + 4 : start + 4 + size]))
            start += 4 + size
        return values
    dtype, shape = head.split(" ")
    return np.frombuffer(body, dtype).reshape([int(extent) for extent in shape.split(",")])
