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
        self.finishing = False
        """See `finish`."""
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

    def finish(self) -> None:
        """End for a reader that is between messages, once all that arrived is read."""
        self.finishing = True
        self._wake()

    @property
    def has_unread(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._unread or self._taken)

    @property
    def stopped(self) -> bool:
        """Whether the stream has ended for its reader, though not for its sender."""
        return self.finishing and not self._ended and not self.has_unread

    async def read(self, size: int, *, is_first: bool = False) -> bytes:
        """Return the next `size` bytes, fewer only at the end of the stream. Cancelling loses nothing.

        Args:
            size: how many.
            is_first: they begin a message.
        """
        while self._taken_size < size:
            if self._unread:
                self._take(size)
            elif self._ended or (is_first and self.stopped):
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
