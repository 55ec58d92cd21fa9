"""Reads requests to change priorities: hundreds of keys in one message, mostly."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.limits import MAX_KEYS, MAX_SINGLE_UPDATES
from reverb_async.compat.messages import MutateRequest
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
    text,
)
from reverb_async.errors import InvalidArgument

_TAG = 0x12
_PRIORITY = 1 + 8  # bytes of the field, as those of the key's are 2 to 11
_SHORTEST, _LONGEST = 2, 11 + _PRIORITY
_RUN = 4096
_WORTHWHILE = 8
_PLACES = np.arange(10)
_SHIFTS: NDArray[np.uint64] = (7 * _PLACES).astype(np.uint64)


def read_mutate_request(message: Received) -> MutateRequest:
    """Read a `MutatePrioritiesRequest`.

    Raises:
        InvalidArgument: it is malformed, or has more than 2**20 updates or deletes.
    """
    data = as_data(message)
    table = ""
    keys, priorities = array("Q"), array("d")
    deletes: list[int] = []
    singles = 0
    at, in_runs = 0, True
    while at < len(data):
        if in_runs and data[at] == _TAG and len(data) - at > _WORTHWHILE * _LONGEST:
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
            singles += 1
        elif number == 3:
            add_numbers(deletes, data, (wire_type, value, at), "MutatePrioritiesRequest.delete_keys", limit=MAX_KEYS)
        if len(keys) > MAX_KEYS or singles > MAX_SINGLE_UPDATES:
            raise InvalidArgument(f"MutatePrioritiesRequest.updates: more than {MAX_KEYS}, or {singles} unusual ones")
    return MutateRequest(
        table, np.frombuffer(keys, np.uint64), np.frombuffer(priorities, np.float64), np.array(deletes, np.uint64)
    )


def _read_run(data: Data, at: int, keys: array[int], priorities: array[float]) -> tuple[int, bool]:
    """Read the updates from `at` on, as long as each has a key, then perhaps a priority, and nothing else.

    Returns:
        The position behind them, and whether it was worth trying: that depends on how many were looked at in vain.
    """
    begin = at
    raw = np.frombuffer(data, np.uint8)
    places, at = _find_starts(raw, at)
    if len(places) < _WORTHWHILE:
        return begin, False
    digits = raw.take(places[:, None] + np.arange(3, 13), mode="clip")
    key_sizes = (digits < 0x80).argmax(axis=1) + 1
    tags = places + 3 + key_sizes
    rest = places + 2 + raw[places + 1] - tags
    prioritized = (rest == _PRIORITY) & (raw.take(tags, mode="clip") == 0x11)
    last = digits[np.arange(len(places)), key_sizes - 1]
    sound = (raw[places + 2] == 0x08) & (last < 0x80) & (prioritized | (rest == 0)) & ((key_sizes < 10) | (last < 2))
    count = len(places) if sound.all() else int(sound.argmin())
    if 2 * count < len(places):
        return begin, False
    bits = np.where(key_sizes[:count, None] > _PLACES, digits[:count] & 0x7F, 0).astype(np.uint64) << _SHIFTS
    keys.frombytes(np.bitwise_or.reduce(bits, axis=1).tobytes())
    found = np.zeros((count, 8), np.uint8)
    found[prioritized[:count]] = raw[tags[:count][prioritized[:count], None] + np.arange(1, 9)]
    priorities.frombytes(found.tobytes())
    return int(places[count]) if count < len(places) else at, True


def _find_starts(raw: NDArray[np.uint8], at: int) -> tuple[NDArray[np.intp], int]:
    """Return where neighbouring updates of usual sizes begin, and the position behind the last of them."""
    window = raw[at : at + _RUN * (2 + _LONGEST)]
    places = np.flatnonzero((window[:-2] == _TAG) & (window[2:] == 0x08))
    ends = places + 2 + window[places + 1]
    # The same bytes may stand within keys and priorities; hardly so if each place is where the update before ends.
    if len(places) and not places[0] and bool((places[1:] == ends[:-1]).all()):
        sizes = window[places + 1]
        if sizes.min() >= _SHORTEST and sizes.max() <= _LONGEST:
            if ends[-1] > len(window):
                places = places[:-1]
            return places + at, at + int(ends[len(places) - 1]) if len(places) else at
    starts: list[int] = []
    end = len(raw)
    data = raw.data
    while at < end - 1 and data[at] == _TAG and len(starts) < _RUN:
        size = data[at + 1]
        if not _SHORTEST <= size <= _LONGEST:
            break
        starts.append(at)
        at += 2 + size
    if at > end:
        at = starts.pop()
    return np.array(starts, np.intp), at


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
