"""`Frame` messages as bytes and back, without a protobuf library in between.

The generated class would copy every buffer several times and take tens of microseconds for the rest. Both write the
same wire form (``protos/reverb_async/v1/replay.proto``), and each reads the other's.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from reverb_async.core.storage.backing import aligned_empty
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.message import Message

ALIGNMENT = 64
"""Every buffer starts at a multiple of this many bytes from the start of its message."""

MAX_HEADER_BYTES = 1 << 20
MAX_HEADER_ARRAY = 1 << 16
MAX_BUFFERS = 1 << 16
"""More buffers in one message are refused: two hostile bytes each would become an array object each."""

_HEADER, _PAD, _BUFFER = 0x0A, 0x12, 0x1A  # field number << 3 | wire type 2 (length-delimited)

_SHORT_TAGS = [bytes([_BUFFER, size]) for size in range(0x80)]
"""What goes before a buffer of so many bytes."""

_UINT8 = np.dtype(np.uint8)

_COPIED_BYTES = 1024


def _padding(distance: int) -> bytes:
    """Return a `pad` field of `distance` bytes, tag and length included; one byte is impossible, so 1 means 65."""
    if distance == 0:
        return b""
    size = (distance if distance > 1 else distance + ALIGNMENT) - 2
    return bytes([_PAD, size]) + bytes(size)


_PADDINGS = [_padding(distance) for distance in range(ALIGNMENT)]


Body = bytes | NDArray[np.uint8]
"""A received message: bytes, or a writable, 64-byte aligned array that belongs to whoever has it."""


class Encoded(NamedTuple):
    """A message as the chunks that make it up when joined.

    Attributes:
        chunks: bytes and byte views of the message's buffers, which must not change until they are sent.
        nbytes: size of the whole.
    """

    chunks: list[bytes | memoryview]
    nbytes: int

    def join(self) -> bytes:
        """Return the message in one piece; the only copy that encoding makes."""
        return b"".join(self.chunks)


def encode(message: Message) -> Encoded:
    """Encode a message; its buffers are not copied, but for those so small that a view of them would cost more.

    Raises:
        InvalidArgument: the header is longer than 1 MiB, or there are more than 65,536 buffers.
    """
    header = pack_map(message.header)
    if len(header) > MAX_HEADER_BYTES:
        raise InvalidArgument(f"a header of {len(header)} bytes exceeds {MAX_HEADER_BYTES}; put arrays in buffers")
    if len(message.buffers) > MAX_BUFFERS:
        raise InvalidArgument(
            f"{len(message.buffers)} buffers in one message exceed {MAX_BUFFERS}; send several messages"
        )
    start = b"\x0a" + _varint(len(header))
    chunks: list[bytes | memoryview] = [start, header]
    position = len(start) + len(header)
    for buffer in message.buffers:
        size = buffer.nbytes
        if not size:
            chunks.append(b"\x1a\x00")
            position += 2
            continue
        tag = _SHORT_TAGS[size] if size < 0x80 else b"\x1a" + _varint(size)
        lead = _PADDINGS[-(position + len(tag)) % ALIGNMENT] + tag
        if size <= _COPIED_BYTES:
            chunks.append(lead + buffer.tobytes())
        else:
            chunks.append(lead)
            # Through uint8: not every dtype (bfloat16, complex, str) can be cast to bytes by memoryview itself.
            chunks.append(buffer.reshape(-1).view(np.uint8).data)
        position += len(lead) + size
    return Encoded(chunks, position)


def decode(data: bytes | bytearray | memoryview | NDArray[np.uint8], *, owned: bool = False) -> Message:
    """Decode a message whose buffers become uint8 arrays ``[n]``, each 64-byte aligned in memory or viewing `data`.

    Args:
        data: one whole message; an array, which must be writable and 64-byte aligned, is taken over.
        owned: buffers are writable and aligned: they view the array that was taken over, or a copy of `data`.
            Otherwise they view `data`, read-only, and are as aligned as `data` is (one that lies askew in the message
            is copied).

    Raises:
        InvalidArgument: `data` is not a well-formed `Frame`.
    """
    size = len(data)
    if not size:
        raise InvalidArgument("an empty message")
    received = data
    if isinstance(data, np.ndarray):
        data = data.data
    whole: NDArray[np.uint8] | None = None
    header: bytes | bytearray | memoryview | None = None
    buffers: list[NDArray[Any]] = []
    position = 0
    while position < size:
        tag = data[position]
        position += 1
        if tag != _BUFFER and tag != _PAD and tag != _HEADER:
            position = _skip_field(data, position - 1, known=3)
            continue
        if position < size and data[position] < 0x80:  # a one-byte length
            length = data[position]
            position += 1
        else:
            length, position = _read_varint(data, position)
        end = position + length
        if end > size:
            raise InvalidArgument(
                f"truncated message: a field of {length} bytes begins {size - position} bytes before the end"
            )
        if tag == _BUFFER:
            if len(buffers) == MAX_BUFFERS:
                raise InvalidArgument(f"a message of more than {MAX_BUFFERS} buffers")
            if whole is None:  # many messages have no buffers, and are done sooner without
                whole = _viewable(received, owned)
            buffer = whole[position:end]
            if position % ALIGNMENT and length:  # another encoder's message, without our padding
                askew = buffer
                buffer = aligned_bytes(length)
                buffer[...] = askew
                buffer.flags.writeable = owned
            buffers.append(buffer)
        elif tag == _HEADER:
            header = data[position:end]
        position = end
    if header is None:
        raise InvalidArgument("a message without a header")
    return Message(unpack_map(header), buffers)


def _viewable(received: bytes | bytearray | memoryview | NDArray[np.uint8], owned: bool) -> NDArray[np.uint8]:
    """Return a received message as uint8 ``[n]``: writable and aligned if `owned`, else read-only."""
    if isinstance(received, np.ndarray):
        if owned:
            return received
        whole = received[:]
    elif owned:
        whole = aligned_bytes(len(received))
        whole[...] = np.frombuffer(received, np.uint8)
        return whole
    else:
        whole = np.frombuffer(received, np.uint8)
    whole.flags.writeable = False
    return whole


def aligned_bytes(size: int) -> NDArray[np.uint8]:
    """Return uninitialised, writable, 64-byte aligned uint8 ``[size]``."""
    return cast("NDArray[np.uint8]", aligned_empty((size,), _UINT8))


def pack_map(described: dict[str, Any]) -> bytes:
    """Encode a map of plain values as MessagePack.

    Raises:
        InvalidArgument: a string in it cannot be encoded as UTF-8.
    """
    try:
        packed: bytes = msgpack.packb(described, use_bin_type=True)
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{error.object!r:.80} is no valid Unicode: {error.reason}") from error
    return packed


def unpack_map(packed: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Decode a MessagePack map with string keys, of at most 1 MiB, without extension types.

    Raises:
        InvalidArgument: it is anything else.
    """
    if len(packed) > MAX_HEADER_BYTES:
        raise InvalidArgument(f"a header of {len(packed)} bytes exceeds {MAX_HEADER_BYTES}")
    # An array's memory is taken before its elements are seen: a few nested bytes could ask for much of it.
    longest = min(len(packed), MAX_HEADER_ARRAY)
    try:
        value = msgpack.unpackb(packed, max_array_len=longest, max_ext_len=0, ext_hook=_refuse_extension)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"malformed header: {str(error) or type(error).__name__}") from error
    if type(value) is not dict:
        raise InvalidArgument(f"a header must be a map, got {type(value).__name__}")
    for key in value:
        if type(key) is not str:
            raise InvalidArgument(f"a header's keys must be strings, got {key!r:.80}")
    return value


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} of {len(data)} bytes")


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes | bytearray | memoryview, position: int) -> tuple[int, int]:
    """Return the number that begins at `position` and the position behind it."""
    value = 0
    for shift, byte in enumerate(bytes(data[position : position + 10])):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            if value >> 64:
                break
            return value, position + shift + 1
    raise InvalidArgument(f"a number at byte {position} is cut off or longer than 64 bits")


def check_fields(data: bytes | bytearray | memoryview) -> None:
    """Check that `data` are the fields of some protobuf message, the last of them complete.

    Raises:
        InvalidArgument: they are not.
    """
    position = 0
    while position < len(data):
        position = _skip_field(data, position)


def _skip_field(data: bytes | bytearray | memoryview, position: int, known: int = 0) -> int:
    """Return the position behind the field at `position`, whose number is above `known`."""
    tag, start = _read_varint(data, position)
    number, wire_type = tag >> 3, tag & 7
    if not 1 <= number < 1 << 29:
        raise InvalidArgument(f"field number {number} at byte {position} is not one")
    if number <= known:
        raise InvalidArgument(
            f"field {number} at byte {position} needs a tag of one byte and wire type 2, got {tag:#x}"
        )
    if wire_type == 0:
        _, end = _read_varint(data, start)
    elif wire_type == 1:
        end = start + 8
    elif wire_type == 2:
        length, start = _read_varint(data, start)
        end = start + length
    elif wire_type == 5:
        end = start + 4
    else:
        raise InvalidArgument(f"field {number} at byte {position} has wire type {wire_type}, which no field may have")
    if end > len(data):
        raise InvalidArgument(f"truncated message: field {number} at byte {position} goes beyond the end")
    return end
