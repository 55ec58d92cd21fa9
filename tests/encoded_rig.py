"""Encoded items for the tests: a small encoding of chunks, and a writer of items."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reverb_async.core.encoded import EncodedItem, EncodedItems, EncodedLayout
from reverb_async.core.encoded.tensor_cache import Tensor
from reverb_async.core.item import ItemBlock
from reverb_async.core.nest import flatten
from reverb_async.core.runs import Rows
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument

_DAMAGED = b"damaged"

Column = Sequence[tuple[int, int, int, int]]


def encode(*tensors: NDArray[Any] | list[bytes]) -> bytes:
    """Return a chunk of these tensors: for each the sizes of its head and body, its dtype and shape, its bytes."""
    parts = []
    for tensor in tensors:
        if isinstance(tensor, list):
            head, body = "strings", b"".join(struct.pack("<I", len(value)) + value for value in tensor)
        else:
            head, body = f"{tensor.dtype.str} {','.join(map(str, tensor.shape))}", tensor.tobytes()
        parts.append(struct.pack("<II", len(head), len(body)) + head.encode() + body)
    return b"".join(parts)


def damaged(size: int = 64) -> bytes:
    """Return a chunk whose tensors cannot be decoded."""
    return _DAMAGED.ljust(size, b"!")


def decode(chunk: memoryview, tensor: int) -> Tensor:
    """Return one tensor of a chunk, arrays as views of the chunk."""
    if bytes(chunk[: len(_DAMAGED)]) == _DAMAGED:
        raise InvalidArgument("its bytes are damaged")
    at = 0
    for _ in range(tensor):
        at += 8 + sum(struct.unpack_from("<II", chunk, at))
    head_size, body_size = struct.unpack_from("<II", chunk, at)
    head = bytes(chunk[at + 8 : at + 8 + head_size]).decode()
    body = chunk[at + 8 + head_size : at + 8 + head_size + body_size]
    if head == "strings":
        values, start = [], 0
        while start < len(body):
            (size,) = struct.unpack_from("<I", body, start)
            values.append(bytes(body[start + 4 : start + 4 + size]))
            start += 4 + size
        return values
    dtype, shape = head.split(" ")
    return np.frombuffer(body, dtype).reshape([int(extent) for extent in shape.split(",")])


def layout_of(encoded: EncodedItems, nest: dict[str, tuple[ArraySpec, bool]]) -> EncodedLayout:
    """Return the layout of items that look like `nest`: per name one row, and whether there is no time axis."""
    leaves, structure = flatten({name: number for number, name in enumerate(sorted(nest))})
    parts = [nest[name] for name in sorted(nest)]
    assert leaves == list(range(len(parts)))
    return encoded.layout(structure, [spec for spec, _ in parts], [squeezed for _, squeezed in parts])


def add(encoded: EncodedItems, *chunks: bytes) -> Rows:
    """Store chunks, pinned, under keys that do not matter."""
    return encoded.add_chunks(chunks, np.arange(len(chunks), dtype=np.uint64))


def item(chunks: ArrayLike, *columns: Column, trajectory: bytes = b"", nbytes: int = 8) -> EncodedItem:
    shown = tuple(tuple(column) for column in columns)
    return EncodedItem(np.asarray(chunks, np.int64).tolist(), shown, trajectory, nbytes)


def block(
    encoded: EncodedItems, layout: EncodedLayout, items: Sequence[EncodedItem], keys: Sequence[int] | None = None
) -> ItemBlock:
    """Write items down."""
    named = np.array(range(1, 1 + len(items)) if keys is None else keys, np.uint64)
    return encoded.block(layout, named, np.ones(len(items)), items, None)


def stored(encoded: EncodedItems) -> tuple[int, int]:
    """Return how many records and chunks are stored."""
    records, chunks = (store.usage() for store in encoded.stores)
    return records.live_rows + records.staged_rows, chunks.live_rows + chunks.staged_rows


def pinned(encoded: EncodedItems) -> tuple[int, int]:
    """Return how many records and chunks have pins."""
    records, chunks = encoded.stores
    return records.usage().pinned_rows, chunks.usage().pinned_rows
