"""Reads the frequent messages other than insert requests, of both directions."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.insert_reading import PartCounter, read_chunk, read_item
from reverb_async.compat.messages import ChunkView, MutateRequest, SampleEntry, SampleInfo, SampleRequest
from reverb_async.compat.scanning import (
    FIXED64,
    LENGTH,
    VARINT,
    Data,
    add_numbers,
    as_data,
    double,
    expect,
    fields,
    int64,
    text,
)
from reverb_async.errors import InvalidArgument

MAX_KEYS = 1 << 20
"""More keys, updates or deletes in one message are refused."""


def read_insert_response(message: Data) -> NDArray[np.uint64]:
    """Return the keys of an `InsertStreamResponse`, uint64 ``[n]``.

    Raises:
        InvalidArgument: it is malformed.
    """
    data = as_data(message)
    keys = array("Q")
    for number, wire_type, value, stop in fields(data, 0, len(data), "InsertStreamResponse"):
        if number == 1:
            add_numbers(keys, data, (wire_type, value, stop), "InsertStreamResponse.keys", limit=MAX_KEYS)
    return np.frombuffer(keys, np.uint64)


def read_sample_request(message: Data) -> SampleRequest:
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


def read_sample_response(message: Data) -> list[SampleEntry]:
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
    return SampleInfo(read_item(data, *(item or (stop, stop)), parts), probability, table_size, rate_limited)


def read_mutate_request(message: Data) -> MutateRequest:
    """Read a `MutatePrioritiesRequest`.

    Raises:
        InvalidArgument: it is malformed, or has more than 2**20 updates or deletes.
    """
    data = as_data(message)
    table = ""
    keys, priorities, deletes = array("Q"), array("d"), array("Q")
    for number, wire_type, value, stop in fields(data, 0, len(data), "MutatePrioritiesRequest"):
        if number == 1:
            expect(wire_type, LENGTH, "MutatePrioritiesRequest.table", stop)
            table = text(data, value, stop, "MutatePrioritiesRequest.table")
        elif number == 2:
            expect(wire_type, LENGTH, "MutatePrioritiesRequest.updates", stop)
            if len(keys) == MAX_KEYS:
                raise InvalidArgument(f"MutatePrioritiesRequest.updates: more than {MAX_KEYS}; send several messages")
            key, priority = _read_update(data, value, stop)
            keys.append(key)
            priorities.append(priority)
        elif number == 3:
            add_numbers(deletes, data, (wire_type, value, stop), "MutatePrioritiesRequest.delete_keys", limit=MAX_KEYS)
    return MutateRequest(
        table, np.frombuffer(keys, np.uint64), np.frombuffer(priorities, np.float64), np.frombuffer(deletes, np.uint64)
    )


def _read_update(data: Data, start: int, stop: int) -> tuple[int, float]:
    key, priority = 0, 0.0
    for number, wire_type, value, end in fields(data, start, stop, "KeyWithPriority"):
        if number == 1:
            expect(wire_type, VARINT, "KeyWithPriority.key", end)
            key = value
        elif number == 2:
            expect(wire_type, FIXED64, "KeyWithPriority.priority", end)
            priority = double(data, value)
    return key, priority
