"""Plain values as bytes: MessagePack, and integers of any size."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np


def pack(value: object) -> bytes:
    """Encode plain values: None, bool, int of any size, float, str, bytes, lists and maps."""
    packed: bytes = msgpack.packb(value, default=_pack_other)
    return packed


def unpack(packed: bytes) -> Any:
    """Decode what `pack` returned.

    Raises:
        ValueError: it is something else.
    """
    try:
        return msgpack.unpackb(packed, ext_hook=_unpack_other, strict_map_key=False)
    except msgpack.UnpackException as error:
        raise ValueError(f"no MessagePack: {error!r}") from error


_LONG_INT = 1


def _pack_other(value: object) -> object:
    if isinstance(value, int):  # more than 64 bits, as states of random generators have
        return msgpack.ExtType(_LONG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a checkpoint holds plain values, not a {type(value).__name__}")


def _unpack_other(code: int, data: bytes) -> object:
    if code != _LONG_INT:
        raise ValueError(f"extension type {code}")
    return int.from_bytes(data, "little", signed=True)
