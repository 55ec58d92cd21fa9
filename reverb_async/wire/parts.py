"""Messages too long for one gRPC message travel as several parts; short ones pass untouched.

A part's header is a map with

- ``part``, ``parts``: its number, from 0, and how many there are;
- ``pieces``: ``[[buffer index, offset, length], ...]``: where the bytes of the part's buffers belong in the whole
  message; in order, without gaps or overlaps, over all parts;
- in part 0 only ``header``, the header of the whole message, and ``sizes``, the size of each of its buffers in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.errors import InvalidArgument, ResourceExhausted
from reverb_async.protocol.message import Message
from reverb_async.wire.codec import ALIGNMENT, MAX_BUFFERS

PART_BYTES = 8 << 20
MAX_UNIT_BYTES = 1 << 30


def split(message: Message, limit: int = PART_BYTES) -> Iterator[Message]:
    """Yield the messages to send for `message`: itself, or parts with at most `limit` bytes that view its memory."""
    assert "parts" not in message.header, "the key 'parts' is taken"
    if message.nbytes <= limit:
        yield message
        return
    cuts = list(_cuts(message, limit))
    for number, pieces in enumerate(cuts):
        header: dict[str, Any] = {"part": number, "parts": len(cuts), "pieces": pieces}
        if number == 0:
            header["header"] = message.header
            header["sizes"] = [buffer.nbytes for buffer in message.buffers]
        views = [message.buffers[index].reshape(-1).view(np.uint8) for index, _, _ in pieces]
        yield Message(header, [view[start : start + n] for view, (_, start, n) in zip(views, pieces, strict=True)])


def _cuts(message: Message, limit: int) -> Iterator[list[list[int]]]:
    """Yield the pieces of each part."""
    pieces: list[list[int]] = []
    room = limit
    for index, buffer in enumerate(message.buffers):
        start = 0
        while start < buffer.nbytes:
            if not room:
                yield pieces
                pieces, room = [], limit
            length = min(room, buffer.nbytes - start)
            pieces.append([index, start, length])
            start += length
            room -= length
    yield pieces


class Assembler:
    """Puts the parts of one stream's messages together again, each message's buffers in one piece of memory.

    Args:
        max_unit_bytes: the largest whole message that is taken.
        pool: where the memory comes from.
    """

    def __init__(self, max_unit_bytes: int = MAX_UNIT_BYTES, pool: BufferPool | None = None) -> None:
        self._max_unit_bytes = max_unit_bytes
        self._pool = BufferPool() if pool is None else pool
        self._unit: _Unit | None = None

    def feed(self, message: Message) -> Message | None:
        """Take the next message of the stream; return the whole it is or completes, None while parts are missing.

        Raises:
            InvalidArgument: the parts contradict each other or themselves.
            ResourceExhausted: the whole would exceed `max_unit_bytes`.
        """
        if "parts" not in message.header:
            if self._unit is not None:
                raise InvalidArgument(f"part {self._unit.next_part} of {self._unit.parts} is missing")
            return message
        part, parts = _number(message.header, "part"), _number(message.header, "parts")
        if self._unit is None:
            self._unit = _Unit(message.header, parts, self._max_unit_bytes, self._pool)
        unit = self._unit
        if part != unit.next_part or parts != unit.parts:
            raise InvalidArgument(f"expected part {unit.next_part} of {unit.parts}, got part {part} of {parts}")
        unit.fill(message)
        if unit.next_part < unit.parts:
            return None
        self._unit = None
        return unit.finish()

    @property
    def nbytes(self) -> int:
        """Size of the message of which parts are missing."""
        return 0 if self._unit is None else self._unit.nbytes

    def clear(self) -> None:
        """Forget a message that is incomplete."""
        self._unit = None


class _Unit:
    """A message in the making; its bytes arrive strictly in order, so one cursor proves them complete."""

    def __init__(self, header: dict[str, Any], parts: int, max_unit_bytes: int, pool: BufferPool) -> None:
        sizes, whole_header = header.get("sizes"), header.get("header")
        if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
            raise InvalidArgument(f"the first part's 'sizes' must be a list of numbers >= 0, got {sizes!r:.80}")
        if not isinstance(whole_header, dict) or not all(type(key) is str for key in whole_header):
            raise InvalidArgument(f"the first part's 'header' must be a map with string keys, got {whole_header!r:.80}")
        if len(sizes) > MAX_BUFFERS:
            raise InvalidArgument(f"{len(sizes)} buffers in one message exceed {MAX_BUFFERS}")
        if sum(sizes) > max_unit_bytes:
            raise ResourceExhausted(
                f"a message of {sum(sizes)} bytes exceeds the limit of {max_unit_bytes} (16 times max_message_bytes)"
            )
        self.parts = parts
        self.next_part = 0
        self._header = whole_header
        starts = [0, *accumulate(size + -size % ALIGNMENT for size in sizes)]
        self.nbytes = starts[-1]
        memory = pool.take(self.nbytes)
        self._buffers = [memory[start : start + size] for start, size in zip(starts, sizes, strict=False)]
        self._index = 0
        self._offset = 0

    def fill(self, message: Message) -> None:
        """Copy a part's buffers to where they belong."""
        pieces = message.header.get("pieces")
        if not isinstance(pieces, list) or len(pieces) != len(message.buffers):
            raise InvalidArgument(
                f"'pieces' must list one piece per buffer ({len(message.buffers)}), got {pieces!r:.80}"
            )
        for piece, data in zip(pieces, message.buffers, strict=True):
            self._skip_full()
            if self._index == len(self._buffers):
                raise InvalidArgument(f"piece {piece!r:.80} is beyond the end of the message")
            buffer = self._buffers[self._index]
            expected = [self._index, self._offset, data.nbytes]
            if piece != expected or not 0 < data.nbytes <= buffer.nbytes - self._offset:
                raise InvalidArgument(
                    f"expected 1 to {buffer.nbytes - self._offset} bytes as a piece at {expected[:2]}, "
                    f"got {piece!r:.80} and {data.nbytes} bytes"
                )
            buffer[self._offset : self._offset + data.nbytes] = data.reshape(-1).view(np.uint8)
            self._offset += data.nbytes
        self.next_part += 1

    def finish(self) -> Message:
        """Return the whole message."""
        self._skip_full()
        if self._index < len(self._buffers):
            raise InvalidArgument(f"the last part leaves buffer {self._index} incomplete at byte {self._offset}")
        return Message(self._header, list(self._buffers))

    def _skip_full(self) -> None:
        while self._index < len(self._buffers) and self._offset == self._buffers[self._index].nbytes:
            self._index += 1
            self._offset = 0


def _number(header: dict[str, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise InvalidArgument(f"{key!r} must be a number >= 0, got {value!r:.80}")
    return value
