"""Reads the frequent messages other than insert requests, of both directions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.insert_reading import read_chunk, read_item
from reverb_async.compat.limits import MAX_KEYS, PartCounter
from reverb_async.compat.messages import ChunkView, SampleEntry, SampleInfo, SampleRequest
from reverb_async.compat.scanning import (
    FIXED64,
    LENGTH,
    VARINT,
    Received,
    add_numbers,
    as_data,
    double,
    expect,
    fields,
    int32,
    int64,
    text,
)
from reverb_async.errors import InvalidArgument


def read_insert_response(message: Received) -> NDArray[np.uint64]:
    """Return the keys of an `InsertStreamResponse`, uint64 ``[n]``.

    Raises:
        InvalidArgument: it is malformed.
    """
    data = as_data(message)
    keys: list[int] = []
    for number, wire_type, value, stop in fields(data, 0, len(data), "InsertStreamResponse"):
        if number == 1:
            add_numbers(keys, data, (wire_type, value, stop), "InsertStreamResponse.keys", limit=MAX_KEYS)
    return np.array(keys, np.uint64)


def read_sample_request(message: Received) -> SampleRequest:
    """Read a `SampleStreamRequest`.

    Raises:
        InvalidArgument: it is malformed.
    """
    data = as_data(message)
    table, num_samples, timeout_ms = "", 0, None
    for number, wire_type, value, stop in fields(data, 0, len(data), "SampleStreamRequest"):
        if number == 1:
            expect(wire_type, LENGTH, "SampleStreamRequest.table", stop)
            table = text(data, value, stop, "SampleStreamRequest.table")
        elif number == 2:
            expect(wire_type, VARINT, "SampleStreamRequest.num_samples", stop)
            num_samples = int64(value)
        elif number == 3:
            expect(wire_type, LENGTH, "SampleStreamRequest.rate_limiter_timeout", stop)
            timeout_ms = timeout_ms or 0
            for inner, inner_type, milliseconds, end in fields(data, value, stop, "Timeout"):
                if inner == 1:
                    expect(inner_type, VARINT, "Timeout.milliseconds", end)
                    timeout_ms = int64(milliseconds)
    return SampleRequest(table, num_samples, timeout_ms)


def read_sample_response(message: Received) -> list[SampleEntry]:
    """Read a `SampleStreamResponse`; the raw parts of what is returned are views of `message`.

    Raises:
        InvalidArgument: it is malformed, or has too many parts.
    """
    data = memoryview(as_data(message))
    parts = PartCounter(len(data))
    entries: list[SampleEntry] = []
    for number, wire_type, value, stop in fields(data, 0, len(data), "SampleStreamResponse"):
        if number == 1:
            expect(wire_type, LENGTH, "SampleStreamResponse.entries", stop)
            parts.add(1)
            entries.append(_read_entry(data, value, stop, parts))
    return entries


def _read_entry(data: memoryview, start: int, stop: int, parts: PartCounter) -> SampleEntry:
    info: SampleInfo | None = None
    chunks: list[ChunkView] = []
    last = False
    for number, wire_type, value, end in fields(data, start, stop, "SampleEntry"):
        if number == 1:
            expect(wire_type, LENGTH, "SampleEntry.info", end)
            if info is not None:
                raise InvalidArgument(f"SampleEntry.info occurs again before byte {end}")
            info = _read_info(data, value, end, parts)
        elif number == 2:
            expect(wire_type, LENGTH, "SampleEntry.data", end)
            chunks.append(read_chunk(data, value, end, parts))
        elif number == 3:
            expect(wire_type, VARINT, "SampleEntry.end_of_sequence", end)
            last = value != 0
    return SampleEntry(info, chunks, last)


def _read_info(data: memoryview, start: int, stop: int, parts: PartCounter) -> SampleInfo:
    item: tuple[int, int] | None = None
    probability, table_size, rate_limited = 0.0, 0, False
    for number, wire_type, value, end in fields(data, start, stop, "SampleInfo"):
        if number == 1:
            expect(wire_type, LENGTH, "SampleInfo.item", end)
            if item is not None:
                raise InvalidArgument(f"SampleInfo.item occurs again before byte {end}")
            item = value, end
        elif number == 2:
            expect(wire_type, FIXED64, "SampleInfo.probability", end)
            probability = double(data, value)
        elif number == 3:
            expect(wire_type, VARINT, "SampleInfo.table_size", end)
            table_size = int64(value)
        elif number == 4:
            expect(wire_type, VARINT, "SampleInfo.rate_limited", end)
            rate_limited = value != 0
    begin, end = item or (stop, stop)
    inserted_at = _inserted_at(data, begin, end)
    return SampleInfo(read_item(data, begin, end, parts), probability, table_size, rate_limited, inserted_at)


def _inserted_at(data: memoryview, start: int, stop: int) -> float:
    """Return when the item in ``data[start:stop]`` was inserted; only servers say it."""
    seconds = nanoseconds = 0
    for number, wire_type, value, end in fields(data, start, stop, "PrioritizedItem"):
        if number == 7:
            expect(wire_type, LENGTH, "PrioritizedItem.inserted_at", end)
            for inner, inner_type, part, inner_end in fields(data, value, end, "Timestamp"):
                if inner <= 2:
                    expect(inner_type, VARINT, f"Timestamp's field {inner}", inner_end)
                if inner == 1:
                    seconds = int64(part)
                elif inner == 2:
                    nanoseconds = int32(part)
    return seconds + nanoseconds * 1e-9
