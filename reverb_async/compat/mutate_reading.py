"""Reads requests to change priorities: hundreds of keys in one message, mostly."""

from __future__ import annotations

from array import array
from typing import Any

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
_READ = 3 + 10
"""Bytes of an update that are looked at, whatever its size."""


def _repeated(byte: int, count: int) -> int:
    return int.from_bytes(bytes([byte]) * count, "little")


_KEY_SIZES = np.array([max(0, size - 1 if size <= 1 + 10 else size - 1 - _PRIORITY) for size in range(256)])
"""By an update's size; one of 11 bytes may as well have a key of one byte and a priority."""

# By the key's size. In varints all bytes but the last begin with a 1; of the tenth byte only the lowest bit counts.
_LOW_ENDS = np.array([_repeated(0x80, min(size, 8)) for size in range(11)], np.uint64)
_LOW_WANTED = np.array([_repeated(0x80, min(max(size - 1, 0), 8)) for size in range(11)], np.uint64)
_LOW_KEPT = np.array([_repeated(0x7F, min(size, 8)) for size in range(11)], np.uint64)
_HIGH_ENDS = np.array([*[0] * 9, 0x80, 0xFE80], np.uint16)
_HIGH_WANTED = np.array([*[0] * 9, 0, 0x80], np.uint16)
_HIGH_KEPT = np.array([*[0] * 9, 0x7F, 0xFF], np.uint16)
_PUSHES = [
    (np.uint64(lower), np.uint64(lower << 8 * shift), np.uint64(shift))
    for lower, shift in ((0x007F007F007F007F, 1), (0x00003FFF00003FFF, 2), (0x0FFFFFFF, 4))
]
"""Which digits stay, which come down to them, and how far."""


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
    if places[-1] + _READ > len(raw):
        places, at = places[:-1], int(places[-1])
    sizes, keys_at = raw[places + 1], places + 3
    key_sizes = _KEY_SIZES[sizes]
    key_sizes[(sizes == 1 + 10) & (raw[keys_at] < 0x80)] = 1  # and a priority
    prioritized, tags = key_sizes + 1 < sizes, keys_at + key_sizes
    low, high = _at_any_byte(raw, "<u8")[keys_at], _at_any_byte(raw, "<u2")[keys_at + 8]
    sound = low & _LOW_ENDS[key_sizes] == _LOW_WANTED[key_sizes]
    sound &= high & _HIGH_ENDS[key_sizes] == _HIGH_WANTED[key_sizes]
    sound &= raw[places + 2] == 0x08
    sound &= ~prioritized | (raw.take(tags, mode="clip") == 0x11)
    if not sound.all():
        count = int(sound.argmin())
        if 2 * count < len(places):
            return begin, False
        at = int(places[count])
        low, high, key_sizes, tags, prioritized = (each[:count] for each in (low, high, key_sizes, tags, prioritized))
    upper = (high & 0x7F | high >> 1 & 0x80) & _HIGH_KEPT[key_sizes]
    keys.frombytes((_packed(low & _LOW_KEPT[key_sizes]) | upper.astype(np.uint64) << np.uint64(56)).tobytes())
    found = _at_any_byte(raw, "<f8")[np.where(prioritized, tags + 1, 0)]
    found[~prioritized] = 0.0
    priorities.frombytes(found.tobytes())
    return at, True


def _at_any_byte(raw: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Return the numbers that begin at each byte; they overlap."""
    width = np.dtype(dtype).itemsize
    return np.ndarray((len(raw) - width + 1,), dtype, raw, strides=(1,))


def _packed(digits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Push together the seven bits that each of eight bytes has."""
    for lower, higher, shift in _PUSHES:
        digits = digits & lower | (digits & higher) >> shift
    return digits


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
