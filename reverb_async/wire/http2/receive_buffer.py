"""What one stream has received, as frames: for the DATA path on which h2 handles every frame."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class ReceiveBuffer:
    """What a stream has received and nobody has read; reading returns the credit for it to the sender.

    Unlike grpclib's own it bears empty DATA frames and streams that end early.
    """

    def __init__(self, acknowledge: Callable[[int], None]) -> None:
        self._acknowledge = acknowledge
        self._unread: deque[tuple[memoryview, int]] = deque()
        self._taken: deque[memoryview] = deque()
        self._taken_size = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def add(self, data: bytes, ack_size: int) -> None:
        """Append a frame's data; `ack_size` is its data and padding."""
        if ack_size:
            self._unread.append((memoryview(data), ack_size))
            self._wake()

    def eof(self) -> None:
        """Tell readers that nothing more will come."""
        self._ended = True
        self._wake()

    @property
    def has_unread(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._unread or self._taken)

    async def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end of the stream. Cancelling loses nothing."""
        while self._taken_size < size:
            if self._unread:
                self._take(size)
            elif self._ended:
                break
            else:
                self._waiter = asyncio.get_running_loop().create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
        return self._pop(min(size, self._taken_size))

    def unacked_size(self) -> int:
        """Drop what was not read and return the credit owed for it."""
        credit = sum(ack_size for _, ack_size in self._unread)
        self._unread.clear()
        return credit

    def _take(self, size: int) -> None:
        credit = 0
        while self._unread and self._taken_size < size:
            data, ack_size = self._unread.popleft()
            self._taken.append(data)
            self._taken_size += len(data)
            credit += ack_size
        self._acknowledge(credit)

    def _pop(self, size: int) -> bytes:
        self._taken_size -= size
        pieces = []
        while size:
            piece = self._taken.popleft()
            if len(piece) > size:
                self._taken.appendleft(piece[size:])
                piece = piece[:size]
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
