"""Reads requests to change priorities: hundreds of keys in one message, mostly."""

from __future__ import annotations

from array import array

import numpy as np

from reverb_async.compat.limits import MAX_KEYS
from reverb_async.compat.messages import MutateRequest
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
    text,
    unpack_varints,
)
from reverb_async.errors import InvalidArgument

_TAG = 0x12
_PRIORITY = 1 + 8
_SIZES = range(1 + 1 + _PRIORITY, 1 + 10 + _PRIORITY + 1)
_RUN = 4096
_WORTHWHILE = 8


def read_mutate_request(message: Data) -> MutateRequest:
    """Read a `MutatePrioritiesRequest`.

    Raises:
        InvalidArgument: it is malformed, or has more than 2**20 updates or deletes.
    """
    data = as_data(message)
    table = ""
    keys, priorities = array("Q"), array("d")
    deletes: list[int] = []
    at, in_runs = 0, True
    while at < len(data):
        if in_runs and data[at] == _TAG:
            at, in_runs = _read_run(data, at, keys, priorities)
            number = 0
        else:
            number, wire_type, value, at = next(fields(data, at, len(data), "MutatePrioritiesRequest"))
        if number == 1:
            expect(wire_type, LENGTH, "MutatePrioritiesRequest.table", at)
            table = text(data, value, at, "MutatePrioritiesRequest.table")
        elif number == 2:
            expect(wire_type, LENGTH, "MutatePrioritiesRequest.updates", at)
            key, priority = _read_update(data, value, at)
            keys.append(key)
            priorities.append(priority)
        elif number == 3:
            add_numbers(deletes, data, (wire_type, value, at), "MutatePrioritiesRequest.delete_keys", limit=MAX_KEYS)
        if len(keys) > MAX_KEYS:
            raise InvalidArgument(f"MutatePrioritiesRequest.updates: more than {MAX_KEYS}; send several messages")
    return MutateRequest(
        table, np.frombuffer(keys, np.uint64), np.frombuffer(priorities, np.float64), np.array(deletes, np.uint64)
    )


def _read_run(data: Data, at: int, keys: array[int], priorities: array[float]) -> tuple[int, bool]:
    """Read the updates from `at` on, as long as each has a key and then a priority and nothing else.

    Returns:
        The position behind them, and whether it was worth trying: that depends on how many were looked at in vain.
    """
    begin = at
    starts: list[int] = []
    end = len(data)
    while at < end - 1 and data[at] == _TAG and data[at + 1] in _SIZES and len(starts) < _RUN:
        starts.append(at)
        at += 2 + data[at + 1]
    if at > end:
        at = starts.pop()
    if len(starts) < _WORTHWHILE:
        return begin, False
    raw = np.frombuffer(data, np.uint8)
    places = np.array(starts)
    key_ends = places + raw[places + 1] - (_PRIORITY - 2)
    sound = (raw[places + 2] == 0x08) & (raw[key_ends] == 0x11) & (raw[key_ends - 1] < 0x80)
    count = len(starts) if sound.all() else int(sound.argmin())
    if 2 * count < len(starts):
        return begin, False
    places, key_ends = places[:count], key_ends[:count]
    digits = places[:, None] + np.arange(3, 13)
    packed = raw.take(digits, mode="clip")[digits < key_ends[:, None]]
    if np.count_nonzero(packed < 0x80) != count:
        return begin, False
    found = unpack_varints(packed.data, 0, len(packed), "MutatePrioritiesRequest.updates", limit=count)
    keys.frombytes(found.tobytes())
    priorities.frombytes(raw[key_ends[:, None] + np.arange(1, 9)].tobytes())
    return starts[count] if count < len(starts) else at, True


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
