"""What travels on a stream: a small header and raw buffers, whatever carries them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from reverb_async.errors import InvalidArgument

_UINT8 = np.dtype(np.uint8)

Buffer = NDArray[Any]
"""A C-contiguous array. What the wire delivers is uint8 ``[n]``; in process the sender's own arrays arrive, typed."""


@dataclass(slots=True)
class Message:
    """A header of plain values (what MessagePack knows) and the buffers it speaks of.

    Attributes:
        header: string keys; a reader ignores keys it does not know.
        buffers: C-contiguous arrays; the sender does not touch them again.
    """

    header: dict[str, Any]
    buffers: list[Buffer] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Size of all buffers in bytes."""
        return sum([buffer.nbytes for buffer in self.buffers])


class BufferReader:
    """Takes a received message's buffers in order and checks each against what the header says of it."""

    def __init__(self, message: Message) -> None:
        self._buffers = message.buffers
        self._next = 0

    def array(self, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the next buffer as an array of this dtype and shape, without a copy.

        Raises:
            InvalidArgument: there is none, or it has another size.
        """
        if self._next >= len(self._buffers):
            raise InvalidArgument(f"the message has {len(self._buffers)} buffers, its header speaks of more")
        buffer = self._buffers[self._next]
        self._next += 1
        wanted = np.dtype(dtype)
        count = 1
        for extent in shape:
            if extent < 0:
                count = -1
                break
            count *= extent
        if count < 0 or buffer.nbytes != count * wanted.itemsize:
            raise InvalidArgument(
                f"buffer {self._next - 1} has {buffer.nbytes} bytes, {wanted} of shape {list(shape)} needs "
                f"{count * wanted.itemsize}"
            )
        if buffer.dtype is _UINT8 and buffer.ndim == 1 and wanted is not _UINT8:  # from the wire
            typed = buffer.view(wanted)
            return typed if len(shape) == 1 else typed.reshape(shape)
        if buffer.dtype == wanted and buffer.shape == shape:
            return buffer
        flat = buffer if buffer.dtype == np.uint8 and buffer.ndim == 1 else buffer.reshape(-1).view(np.uint8)
        typed = flat.view(wanted)
        return typed if len(shape) == 1 else typed.reshape(shape)

    def bytes(self) -> NDArray[np.uint8]:
        """Return the next buffer as bytes, uint8 ``[n]``, whatever its size."""
        if self._next >= len(self._buffers):
            raise InvalidArgument(f"the message has {len(self._buffers)} buffers, its header speaks of more")
        buffer = self._buffers[self._next]
        self._next += 1
        return buffer.reshape(-1).view(np.uint8)


class Duplex(Protocol):
    """One stream, seen from one of its ends.

    Every method but `abort` may be cancelled; a cancelled `send` breaks the stream.
    """

    @property
    def peer(self) -> str:
        """Where the other end is, for people; empty if that is not known."""
        return ""

    async def send(self, message: Message) -> None:
        """Hand a message over; waits while the peer's window or queue is full."""

    def try_send(self, message: Message) -> bool:
        """Hand a message over if that can be done whole, at once and after all earlier ones; return whether it was."""
        return False

    @property
    def has_unread(self) -> bool:
        """Whether the peer has sent more than was received: perhaps only a part of a message."""
        return False

    async def receive(self) -> Message | None:
        """Return the next message, or None once the peer has ended its side."""

    def listen(self, take: Callable[[Message], bool]) -> None:
        """Offer short messages that come while `receive` waits to `take`, in the very step that received them.

        A message for which it returns True is done with; `receive` returns the others. What it raises `receive` raises.
        Not every stream offers any, and none offers all: a listener only saves the turn it takes to wake a task.
        """
        return

    def finish_reading(self) -> None:
        """Have `receive` return None after what has been received, or has begun to be: at the server's end only."""
        return

    async def end(self) -> None:
        """End this side; the peer's `receive` then returns None."""

    def abort(self) -> None:
        """End both sides at once; never waits. The peer sees a broken stream."""
