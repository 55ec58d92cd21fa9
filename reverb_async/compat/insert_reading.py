"""Reads insert requests: chunks and items, whose own messages stay as they came."""

from __future__ import annotations

from reverb_async.compat.limits import MAX_COLUMNS, MAX_KEYS, MAX_SLICES, PartCounter
from reverb_async.compat.messages import ChunkView, ColumnView, InsertRequest, ItemView, Slice, shape_of
from reverb_async.compat.scanning import (
    FIXED64,
    LENGTH,
    VARINT,
    Data,
    Received,
    add_numbers,
    as_data,
    double,
    expect,
    fields,
    int32,
    text,
)
from reverb_async.compat.tensors import TensorHead, read_head
from reverb_async.compat.usual_layout import match_chunk, match_item
from reverb_async.errors import InvalidArgument

_CHUNK_TAG, _ITEM_TAG = 0x0A, 0x12
_FREQUENT_TAGS = (_CHUNK_TAG, _ITEM_TAG)


def read_insert_request(message: Received) -> InsertRequest:
    """Read an `InsertStreamRequest`; long chunks are views of `message`.

    Raises:
        InvalidArgument: it is malformed, or has too many parts.
    """
    data = as_data(message)
    parts = PartCounter(len(data))
    chunks: list[ChunkView] = []
    items: list[ItemView] = []
    kept: list[int] = []
    position, end = 0, len(data)
    while position + 3 < end and (tag := data[position]) in _FREQUENT_TAGS:  # of fields of less than 16 KiB
        start, size = position + 2, data[position + 1]
        if size >= 0x80:
            high = data[start]
            start, size = start + 1, size - 0x80 + (high << 7)
            if high >= 0x80:
                break
        if start + size > end:
            break
        position = start + size
        if tag == _CHUNK_TAG:
            chunks.append(read_chunk(data, start, position, parts))
        else:
            items.append(read_item(data, start, position, parts))
    for number, wire_type, value, stop in fields(data, position, end, "InsertStreamRequest"):
        if number == 1:
            expect(wire_type, LENGTH, "InsertStreamRequest.chunks", stop)
            chunks.append(read_chunk(data, value, stop, parts))
        elif number == 2:
            expect(wire_type, LENGTH, "InsertStreamRequest.items", stop)
            items.append(read_item(data, value, stop, parts))
        elif number == 3:
            add_numbers(kept, data, (wire_type, value, stop), "InsertStreamRequest.keep_chunk_keys", limit=MAX_KEYS)
    return InsertRequest(chunks, items, kept)


def read_chunk(data: Data, start: int, stop: int, parts: PartCounter) -> ChunkView:
    """Read the `ChunkData` in ``data[start:stop]``.

    Raises:
        InvalidArgument: it is malformed, or has too many tensors.
    """
    usual = match_chunk(data, start, stop)
    if usual is not None:
        parts.add(1 + len(usual.tensors))
        return usual
    key = episode_id = 0
    heads: list[TensorHead] = []
    for number, wire_type, value, end in fields(data, start, stop, "ChunkData"):
        if number == 1:
            expect(wire_type, VARINT, "ChunkData.chunk_key", end)
            key = value
        elif number == 2:
            expect(wire_type, LENGTH, "ChunkData.sequence_range", end)
            for inner, inner_type, number_there, inner_end in fields(data, value, end, "SequenceRange"):
                if 1 <= inner <= 3:
                    expect(inner_type, VARINT, f"SequenceRange's field {inner}", inner_end)
                if inner == 1:
                    episode_id = number_there
        elif number == 4:
            expect(wire_type, VARINT, "ChunkData.delta_encoded", end)
        elif number == 5:
            expect(wire_type, LENGTH, "ChunkData.data", end)
            for inner, inner_type, begin, inner_end in fields(data, value, end, "ChunkData.Data"):
                if inner == 1:
                    expect(inner_type, LENGTH, "ChunkData.Data.tensors", inner_end)
                    heads.append(read_head(data, begin, inner_end))
                    parts.add(1)
            if len(heads) > MAX_COLUMNS:
                raise InvalidArgument(f"ChunkData before byte {stop} has {len(heads)} tensors, more than {MAX_COLUMNS}")
    parts.add(1)
    return ChunkView(key, episode_id, data[start:stop], tuple(heads))


def read_item(data: Data, start: int, stop: int, parts: PartCounter) -> ItemView:
    """Read the `PrioritizedItem` in ``data[start:stop]``.

    Raises:
        InvalidArgument: it is malformed, or has too many columns or slices.
    """
    usual = match_item(data, start, stop)
    if usual is not None:
        parts.add(1 + usual.shape.num_slices)
        return usual
    key, table, priority, times_sampled = 0, "", 0.0, 0
    trajectory: tuple[int, int] | None = None
    for number, wire_type, value, end in fields(data, start, stop, "PrioritizedItem"):
        if number == 1:
            expect(wire_type, VARINT, "PrioritizedItem.key", end)
            key = value
        elif number == 2:
            expect(wire_type, LENGTH, "PrioritizedItem.table", end)
            table = text(data, value, end, "PrioritizedItem.table")
        elif number == 5:
            expect(wire_type, FIXED64, "PrioritizedItem.priority", end)
            priority = double(data, value)
        elif number == 6:
            expect(wire_type, VARINT, "PrioritizedItem.times_sampled", end)
            times_sampled = int32(value)
        elif number == 8:
            expect(wire_type, LENGTH, "PrioritizedItem.flat_trajectory", end)
            if trajectory is not None:  # two of them mean one that is nowhere in the message as it stands
                raise InvalidArgument(f"PrioritizedItem.flat_trajectory occurs again before byte {end}")
            trajectory = value, end
    parts.add(1)
    begin, end = trajectory or (stop, stop)
    shape, chunk_keys = shape_of(_read_columns(data, begin, end, parts))
    return ItemView(key, table, priority, times_sampled, bytes(data[begin:end]), shape, chunk_keys)


def _read_columns(data: Data, start: int, stop: int, parts: PartCounter) -> list[ColumnView]:
    """Read the `FlatTrajectory` in ``data[start:stop]``."""
    columns: list[ColumnView] = []
    count = 0
    for number, wire_type, value, end in fields(data, start, stop, "FlatTrajectory"):
        if number != 1:
            continue
        expect(wire_type, LENGTH, "FlatTrajectory.columns", end)
        if len(columns) == MAX_COLUMNS:
            raise InvalidArgument(f"FlatTrajectory before byte {stop} has more than {MAX_COLUMNS} columns")
        columns.append(_read_column(data, value, end, MAX_SLICES - count))
        slices = len(columns[-1].slices)
        count += slices
        parts.add(slices or 1)
    return columns


def _read_column(data: Data, start: int, stop: int, limit: int) -> ColumnView:
    slices: list[Slice] = []
    squeeze = False
    for number, wire_type, value, end in fields(data, start, stop, "FlatTrajectory.Column"):
        if number == 1:
            expect(wire_type, LENGTH, "FlatTrajectory.Column.chunk_slices", end)
            if len(slices) == limit:
                raise InvalidArgument(f"FlatTrajectory around byte {end} has more than {MAX_SLICES} slices")
            slices.append(_read_slice(data, value, end))
        elif number == 2:
            expect(wire_type, VARINT, "FlatTrajectory.Column.squeeze", end)
            squeeze = value != 0
    return ColumnView(slices, squeeze)


def _read_slice(data: Data, start: int, stop: int) -> Slice:
    key = offset = length = index = 0
    for number, wire_type, value, end in fields(data, start, stop, "FlatTrajectory.ChunkSlice"):
        if number > 4:
            continue
        expect(wire_type, VARINT, f"FlatTrajectory.ChunkSlice's field {number}", end)
        if number == 1:
            key = value
        elif number == 2:
            offset = int32(value)
        elif number == 3:
            length = int32(value)
        else:
            index = int32(value)
    return key, offset, length, index
