"""The parts of protobuf's wire form: numbers, tags, fields.

Whatever comes may be hostile: every read stays within the message, and every refusal names the message and the byte.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from operator import getitem
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.errors import InvalidArgument

Data = bytes | memoryview
"""A message, or a part of one; memoryviews are of bytes, contiguous."""

Received = Data | bytearray | NDArray[np.uint8]
"""A message in any of the forms in which it may arrive."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types: a varint, 8 bytes, a length and as many bytes, 4 bytes."""

_WIRE_TYPES = {VARINT: "a varint", FIXED64: "8 bytes", LENGTH: "a length and bytes", FIXED32: "4 bytes"}
_MAX_FIELD = (1 << 29) - 1
_FEW_BYTES = 100
_BLOCK = 1 << 14
_MAX_REMEMBERED = 4096

_DOUBLE = struct.Struct("<d")
_VARINTS = re.compile(rb"[\x80-\xff]*[\x00-\x7f]").findall

_SMALL = [bytes([value]) for value in range(0x80)]

_WORTH = [[(byte & 0x7F) << 7 * place for byte in range(256)] for place in range(10)]
"""What each byte adds to a varint, by its place."""


class _Numbers(dict[bytes | None, int]):
    """Numbers by the bytes of their varints, 0 by none: keys occur in chunks, in slices, and again in later messages.

    Looking one up that is longer than 64 bits raises InvalidArgument.
    """

    def __missing__(self, raw: bytes | None) -> int:
        if len(self) >= _MAX_REMEMBERED:
            self.clear()
        value = sum(map(getitem, _WORTH, raw)) if raw else 0
        if raw and (len(raw) > 10 or value >= 1 << 64):
            raise InvalidArgument(f"the number of the bytes {raw[:11].hex()} is longer than 64 bits")
        self[raw] = value
        return value


numbers = _Numbers()


def as_data(message: Received) -> Data:
    """Return a received message as what the readers take; nothing is copied."""
    if isinstance(message, bytes):
        return message
    view = memoryview(message)  # type: ignore[arg-type]  # arrays are buffers; typed so from Python 3.12 on
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def read_varint(data: Data, position: int, end: int, what: str) -> tuple[int, int]:
    """Return the number that begins at `position`, below 2**64, and the position behind it.

    Raises:
        InvalidArgument: it is not complete before `end`, or exceeds 64 bits.
    """
    value = 0
    for shift, byte in enumerate(data[position : min(position + 10, end)]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            if value >> 64:
                break
            return value, position + shift + 1
    raise InvalidArgument(f"{what}: the number at byte {position} is cut off or longer than 64 bits")


def fields(data: Data, position: int, end: int, what: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of the message that lies in ``data[position:end]``, in their order.

    Yields:
        Field number, wire type, and of a varint its value and the position behind it; of all others where the content
        begins and ends.

    Raises:
        InvalidArgument: the message is no sequence of complete fields; groups are none.
    """
    while position < end:
        start = position
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = read_varint(data, start, end, what)
        number, wire_type = tag >> 3, tag & 7
        if not 1 <= number <= _MAX_FIELD:
            raise InvalidArgument(f"{what}: {number} at byte {start} is no field number")
        if wire_type == VARINT:
            if position < end and data[position] < 0x80:
                yield number, wire_type, data[position], position + 1
                position += 1
            else:
                value, position = read_varint(data, position, end, what)
                yield number, wire_type, value, position
            continue
        if wire_type == LENGTH:
            if position < end and data[position] < 0x80:
                size = data[position]
                position += 1
            elif position + 1 < end and data[position + 1] < 0x80:
                size = data[position] - 0x80 + (data[position + 1] << 7)
                position += 2
            else:
                size, position = read_varint(data, position, end, what)
        elif wire_type == FIXED64:
            size = 8
        elif wire_type == FIXED32:
            size = 4
        else:
            raise InvalidArgument(
                f"{what}: field {number} at byte {start} has wire type {wire_type}, a group's or none"
            )
        stop = position + size
        if stop > end:
            raise InvalidArgument(
                f"{what}: field {number} at byte {start} needs {size} bytes, of which {end - position} are there"
            )
        yield number, wire_type, position, stop
        position = stop


def expect(wire_type: int, wanted: int, name: str, stop: int) -> None:
    """Refuse a known field that came as something else.

    Raises:
        InvalidArgument: naming the field.
    """
    if wire_type != wanted:
        raise InvalidArgument(
            f"{name}, which ends at byte {stop}, must be {_WIRE_TYPES[wanted]}, got {_WIRE_TYPES[wire_type]}"
        )


def text(data: Data, start: int, stop: int, name: str) -> str:
    """Return a string field.

    Raises:
        InvalidArgument: it is no UTF-8.
    """
    try:
        return str(data[start:stop], "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name} at byte {start} is no UTF-8: {error}") from error


def double(data: Data, start: int) -> float:
    """Return the double at `start`, whose 8 bytes are known to be there."""
    value: float = _DOUBLE.unpack_from(data, start)[0]
    return value


def int32(value: int) -> int:
    """Return what a varint means in an int32 field: its lowest 32 bits, with a sign."""
    return value if value < 1 << 31 else (value + (1 << 31)) % (1 << 32) - (1 << 31)


def int64(value: int) -> int:
    """Return what a varint means in an int64 field."""
    return value if value < 1 << 63 else value - (1 << 64)


def add_numbers(found: list[int], data: Data, field: tuple[int, int, int], name: str, *, limit: int) -> None:
    """Append what one field of a repeated uint64 holds, packed or not.

    Args:
        found: what previous fields held.
        data: the message.
        field: wire type, value and stop as `fields` yields them.
        name: of the field.
        limit: how many numbers there may be in all.

    Raises:
        InvalidArgument: it is malformed, or there are more.
    """
    wire_type, value, stop = field
    if wire_type == VARINT:
        found.append(value)
    else:
        expect(wire_type, LENGTH, name, stop)
        if stop - value > _FEW_BYTES:
            found += unpack_varints(data, value, stop, name, limit=limit).tolist()
        elif stop > value:
            _check_last(data[stop - 1], name, stop)
            found += [numbers[each] for each in _VARINTS(data[value:stop])]
    _check_count(len(found), name, limit)


def unpack_varints(data: Data, start: int, stop: int, name: str, *, limit: int) -> NDArray[np.uint64]:
    """Return the numbers of a packed field, uint64 ``[n]``.

    Raises:
        InvalidArgument: the last one is cut off, one exceeds 64 bits, or there are more than `limit`.
    """
    if start == stop:
        return np.empty(0, np.uint64)
    _check_last(data[stop - 1], name, stop)
    raw = np.frombuffer(data, np.uint8, stop - start, start)
    last = raw < 0x80
    count = int(np.count_nonzero(last))
    _check_count(count, name, limit)
    values = np.empty(count, np.uint64)
    ends = np.flatnonzero(last)
    for done in range(0, count, _BLOCK):  # what is needed in between takes far more memory than the message
        block = ends[done : done + _BLOCK]
        begin = int(ends[done - 1]) + 1 if done else 0
        _join(raw[begin : int(block[-1]) + 1], block - begin, values[done : done + _BLOCK], name, start + begin)
    return values


def _check_last(byte: int, name: str, stop: int) -> None:
    if byte >= 0x80:
        raise InvalidArgument(f"{name}: the last number before byte {stop} is cut off")


def _check_count(count: int, name: str, limit: int) -> None:
    if count > limit:
        raise InvalidArgument(f"{name}: more than {limit} numbers in one message; send several")


def _join(raw: NDArray[np.uint8], ends: NDArray[np.int64], values: NDArray[np.uint64], name: str, offset: int) -> None:
    """Write the numbers of varints, whose last bytes are at `ends`, to `values`."""
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    sizes = ends - starts + 1
    longest = int(sizes.max())
    if longest > 10 or (longest == 10 and (raw[ends[sizes == 10]] > 1).any()):
        wrong = int(starts[(sizes > 10) | ((sizes == 10) & (raw[ends] > 1))][0])
        raise InvalidArgument(f"{name}: the number at byte {offset + wrong} is longer than 64 bits")
    places = np.arange(len(raw)) - np.repeat(starts, sizes)
    bits = (raw & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64)
    np.bitwise_or.reduceat(bits, starts, out=values)


def varint(value: int) -> bytes:
    """Return the shortest form of a number from -2**63 to 2**64 - 1; negative ones take 10 bytes."""
    if 0 <= value < 0x80:
        return _SMALL[value]
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_SHIFTS: NDArray[np.uint64] = np.arange(0, 70, 7, dtype=np.uint64)


def padded_varints(values: NDArray[np.integer[Any]], width: int) -> NDArray[np.uint8]:
    """Return numbers as varints of `width` bytes each, uint8 ``[n, width]``: longer than need be, and just as valid.

    Args:
        values: whole numbers ``[n]``, of which only the lowest ``7 * width`` bits are written.
        width: bytes per number, at most 10.
    """
    spread = (values.astype(np.uint64, copy=False)[:, None] >> _SHIFTS[:width]).astype(np.uint8)
    spread[:, :-1] |= 0x80
    spread[:, -1] &= 0x01 if width == 10 else 0x7F
    return spread
