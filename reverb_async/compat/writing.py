"""Writes the frequent messages, of both directions; serialized parts are taken as they are."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reverb_async.compat.messages import ColumnView
from reverb_async.compat.scanning import Data, padded_varints, varint

_DOUBLE = struct.Struct("<d")
_END_OF_SEQUENCE = b"\x18\x01"
_MAX_LEADS = 4096
_INFO_WIDTH = 1 + 8 + 1 + 5 + 2
"""Bytes of a `SampleInfo`'s fields but its item."""


class SampleInfos(NamedTuple):
    """What samples say beside their data, one value per sample or, but for keys, one for all.

    Attributes:
        keys: uint64 ``[n]``.
        priorities: float64 ``[n]``.
        times_sampled: int ``[n]``, this time included; below 2**35, as all whole numbers here.
        probabilities: float64.
        table_sizes: int, items in the table when each was drawn.
        rate_limited: whether the draw had to wait; one for all.
        inserted_at: float64, when each item was inserted, in seconds since the epoch, not before.
    """

    keys: NDArray[np.uint64]
    priorities: ArrayLike
    times_sampled: ArrayLike
    probabilities: ArrayLike
    table_sizes: ArrayLike
    rate_limited: bool
    inserted_at: ArrayLike


@lru_cache(maxsize=_MAX_LEADS)
def _lead(tag: int, size: int) -> bytes:
    """Return tag and length of a field of `size` bytes."""
    return bytes([tag]) + varint(size)


class _Leads(dict[int, bytes]):
    """Tag and length of a field by its size; those that occurred, within bounds."""

    def __init__(self, tag: int) -> None:
        super().__init__()
        self._tag = tag

    def __missing__(self, size: int) -> bytes:
        if len(self) >= _MAX_LEADS:
            self.clear()
        lead = self[size] = bytes([self._tag]) + varint(size)
        return lead


_FIRST, _SECOND, _EIGHTH = _Leads(0x0A), _Leads(0x12), _Leads(0x42)


def _text(tag: int, value: str) -> bytes:
    encoded = value.encode()
    return _lead(tag, len(encoded)) + encoded if encoded else b""


def _number(tag: int, value: int) -> bytes:
    return bytes([tag]) + varint(value) if value else b""


def _double(tag: int, value: float) -> bytes:
    packed = _DOUBLE.pack(value)
    return bytes([tag]) + packed if any(packed) else b""  # -0.0 is not left out


def _packed(tag: int, values: NDArray[np.uint64]) -> bytes:
    """Return a packed field of uint64 ``[n]``, 10 bytes each: random keys take hardly less."""
    return _lead(tag, 10 * len(values)) + padded_varints(values, 10).tobytes() if len(values) else b""


def _joined(tag: int, messages: Iterable[Data]) -> list[Data]:
    """Return a repeated field of serialized messages as pieces."""
    pieces: list[Data] = []
    for message in messages:
        pieces += (_lead(tag, len(message)), message)
    return pieces


def write_chunk(
    key: int,
    episode_id: int,
    steps: tuple[int, int],
    tensors: Sequence[Data],
    *,
    sparse: bool = False,
    delta_encoded: bool = False,
    uncompressed_bytes: int = 0,
) -> bytes:
    """Return a serialized `ChunkData`.

    Args:
        key: uint64, unique among the chunks of a server.
        episode_id: uint64.
        steps: numbers of the first and of the last step in the episode.
        tensors: serialized `TensorProto` messages (`tensors.encode_tensor`).
        sparse: steps are missing in between.
        delta_encoded: the tensors were encoded so.
        uncompressed_bytes: size of the tensors before compression, which readers may show.
    """
    inner = b"".join(_joined(0x0A, tensors))
    steps_range = _number(0x08, episode_id) + _number(0x10, steps[0]) + _number(0x18, steps[1]) + _number(0x20, sparse)
    return b"".join(
        (
            _number(0x08, key),
            *(_lead(0x12, len(steps_range)), steps_range),
            _number(0x20, delta_encoded),
            *(_lead(0x2A, len(inner)), inner),
            *(_number(0x30, len(tensors)), _number(0x38, uncompressed_bytes)),
        )
    )


def write_trajectory(columns: Iterable[ColumnView]) -> bytes:
    """Return a serialized `FlatTrajectory`."""
    written = []
    for slices, squeeze in columns:
        pieces = _joined(
            0x0A,
            (
                _number(0x08, key) + _number(0x10, offset) + _number(0x18, length) + _number(0x20, index)
                for key, offset, length, index in slices
            ),
        )
        written.append(b"".join((*pieces, _number(0x10, squeeze))))
    return b"".join(_joined(0x0A, written))


def write_item(key: int, table: str, priority: float, trajectory: Data, *, times_sampled: int = 0) -> bytes:
    """Return a serialized `PrioritizedItem`; `trajectory` is a serialized `FlatTrajectory`."""
    return b"".join(
        (
            *(_number(0x08, key), _text(0x12, table), _double(0x29, priority), _number(0x30, times_sampled)),
            *(_lead(0x42, len(trajectory)), trajectory),
        )
    )


def write_insert_request(chunks: Iterable[Data], items: Iterable[Data], keep_chunk_keys: NDArray[np.uint64]) -> bytes:
    """Return an `InsertStreamRequest` of serialized chunks and items, and of keys of chunks to keep, ``[n]``."""
    return b"".join((*_joined(0x0A, chunks), *_joined(0x12, items), _packed(0x1A, keep_chunk_keys)))


def write_insert_response(keys: NDArray[np.uint64]) -> bytes:
    """Return an `InsertStreamResponse` of keys ``[n]``."""
    return _packed(0x0A, keys)


def write_sample_request(table: str, num_samples: int, timeout_ms: int | None) -> bytes:
    """Return a `SampleStreamRequest`; without a timeout the field is absent."""
    timeout = b""
    if timeout_ms is not None:
        inner = _number(0x08, timeout_ms)
        timeout = _lead(0x1A, len(inner)) + inner
    return _text(0x0A, table) + _number(0x10, num_samples) + timeout


def write_mutate_request(
    table: str, keys: NDArray[np.uint64], priorities: NDArray[np.float64], deletes: NDArray[np.uint64]
) -> bytes:
    """Return a `MutatePrioritiesRequest`: keys ``[n]`` with priorities ``[n]``, and keys to delete ``[m]``."""
    updates = _records(len(keys), b"\x12\x14\x08", padded_varints(keys, 10), b"\x11", _doubles(priorities, len(keys)))
    return b"".join((_text(0x0A, table), updates.tobytes(), _packed(0x1A, deletes)))


def write_sample_response(table: str, infos: SampleInfos, samples: Sequence[tuple[Data, Sequence[Data]]]) -> bytes:
    """Return a `SampleStreamResponse` of complete samples.

    Args:
        table: where they were drawn.
        infos: what they say beside their data.
        samples: for each its serialized `FlatTrajectory`, and every serialized `ChunkData` it refers to, once.
    """
    pieces: list[Data] = []
    heads = _sample_heads(table, infos)
    for head, (trajectory, chunks) in zip(heads, samples, strict=True):
        trajectory_lead = _EIGHTH[len(trajectory)]
        item_size = len(head) - _INFO_WIDTH + len(trajectory_lead) + len(trajectory)
        item_lead = _FIRST[item_size]
        info_lead = _FIRST[_INFO_WIDTH + len(item_lead) + item_size]
        data: list[Data] = []
        size = len(_END_OF_SEQUENCE) + len(info_lead) + _INFO_WIDTH + len(item_lead) + item_size
        for chunk in chunks:
            length = len(chunk)
            lead = _SECOND[length]
            data += (lead, chunk)
            size += len(lead) + length
        pieces += (_FIRST[size], _END_OF_SEQUENCE, info_lead, head[:_INFO_WIDTH], item_lead, head[_INFO_WIDTH:])
        pieces += (trajectory_lead, trajectory, *data)
    return b"".join(pieces)


def _sample_heads(table: str, infos: SampleInfos) -> list[bytes]:
    """Return for each sample the fields of its `SampleInfo` but the item, and those of the item but the trajectory."""
    count = len(infos.keys)
    since_epoch = np.asarray(infos.inserted_at, np.float64)
    numbers = np.empty((count, 4), np.uint64)
    numbers[:, 0] = infos.table_sizes
    numbers[:, 1] = infos.times_sampled
    numbers[:, 2] = since_epoch
    numbers[:, 3] = 1e9 * (since_epoch - np.floor(since_epoch))
    varints = padded_varints(numbers.reshape(-1), 5).reshape(count, 4, 5)
    doubles = np.empty((count, 2), "<f8")
    doubles[:, 0] = infos.probabilities
    doubles[:, 1] = infos.priorities
    doubles_bytes = doubles.view(np.uint8).reshape(count, 2, 8)
    fields: list[bytes | NDArray[np.uint8]] = [
        *(b"\x11", doubles_bytes[:, 0], b"\x18", varints[:, 0], b"\x20" + (b"\1" if infos.rate_limited else b"\0")),
        *(b"\x08", padded_varints(infos.keys, 10), _text(0x12, table), b"\x29", doubles_bytes[:, 1]),
        *(b"\x30", varints[:, 1], b"\x3a\x0c\x08", varints[:, 2], b"\x10", varints[:, 3]),
    ]
    return _rows(_records(count, *fields))


def _records(count: int, *parts: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return uint8 ``[count, width]``, made of bytes that all records have and of arrays ``[count, width of it]``."""
    widths = [len(part) if isinstance(part, bytes) else part.shape[1] for part in parts]
    records = np.empty((count, sum(widths)), np.uint8)
    at = 0
    for part, width in zip(parts, widths, strict=True):
        records[:, at : at + width] = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
        at += width
    return records


def _rows(records: NDArray[np.uint8]) -> list[bytes]:
    """Return every row of ``[n, width]`` as bytes."""
    width, whole = records.shape[1], records.tobytes()
    return [whole[start : start + width] for start in range(0, len(whole), width)]


def _doubles(values: ArrayLike, count: int) -> NDArray[np.uint8]:
    """Return the bytes of doubles, uint8 ``[count, 8]``."""
    return np.ascontiguousarray(np.broadcast_to(np.asarray(values, "<f8"), (count,))).view(np.uint8).reshape(count, 8)
