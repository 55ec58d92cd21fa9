"""What one stream has received: messages, each put together in memory of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from grpclib.exceptions import GRPCError
from numpy.typing import NDArray

from reverb_async.errors import ResourceExhausted
from reverb_async.wire.codec import Body
from reverb_async.wire.http2.stream import PREFIX_BYTES
from reverb_async.wire.http2.window import Hold
from reverb_async.wire.status import to_grpc_error

if TYPE_CHECKING:
    from reverb_async.wire.http2.fast_stream import FastStream

ARRAY_BYTES = 16 << 10
"""Shorter messages become bytes if they arrive in one piece."""

TRUSTED_FACTOR = 4
"""A message gets its memory once this many times what was received or may be received of it exceeds its length.

Until then its bytes are kept as they come: a length alone, which costs a peer five bytes, takes no memory.
"""

MAX_TAKEN = 32
"""No more messages of a connection are offered to listeners at once: others have their turn."""

MAX_UNREAD = 256
"""Beyond so many unread messages bytes are kept as they come: tiny messages take many times as much as objects."""


class MessageBuffer:
    """Puts a stream's messages together and returns credit for what is read.

    Credit for a message returns when it is read, while somebody waits for it: as it arrives, as soon as there is room
    for a long one. What is not read is thus bounded by the stream's window.

    Args:
        stream: whose messages these are.
    """

    def __init__(self, stream: FastStream) -> None:
        self._stream = stream
        self._messages: deque[tuple[Body, int, bool]] = deque()  # body, credit owed, whether the window knows of it
        self._backlog = bytearray()  # what comes after them, if they are many
        self._prefix = b""
        self._size = -1  # of the message that is coming; -1 while its prefix is
        self._memory: memoryview | None = None
        self._body: NDArray[np.uint8] | None = None
        self._kept = bytearray()
        self._filled = 0
        self._credited = 0
        self._expected = False
        self._hold: Hold | None = None  # room for the message that is coming
        self._failure: GRPCError | None = None
        self._refused = b""  # the prefix of a message that is not taken
        self._withheld = 0
        self._ended = False
        self._finishing = False
        self.stopped = False
        """Nothing more is taken, for `finish` was called and what had begun to arrive is here."""
        self._dropped = False
        self._is_deaf = False  # stopped or dropped: credit for what comes goes back at once
        self._most_unread = MAX_UNREAD
        self._waiter: asyncio.Future[None] | None = None
        self.take: Callable[[Body], bool] | None = None
        """Is offered short messages while somebody waits for one; returns whether it took it."""

    @property
    def has_unread(self) -> bool:
        """Whether there is a whole message, or more than is looked at before some were read."""
        return bool(self._messages or self._backlog)

    async def message(self) -> Body | None:
        """Return the next message, None at the end of the stream. Cancelling loses nothing.

        Raises:
            GRPCError: the message is too long, compressed, or cut off by the end of the stream.
            StreamTerminatedError: the stream was reset or its connection lost in the midst of it.
        """
        while not self._messages:
            if self._failure is not None:
                raise self._failure
            if self._backlog:
                self._parse_backlog()
                if self._finishing:
                    self._stop_if_whole()
                continue
            if self._refused:
                refusal = self._stream.refusal_of(self._refused)
                assert refusal is not None
                raise refusal
            if self._ended:
                if not self.stopped and (self._size >= 0 or self._prefix):
                    wanted = PREFIX_BYTES - len(self._prefix) if self._size < 0 else self._size - self._filled
                    raise self._stream.cut_off(wanted)
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            if self._size >= 0:
                self._expect()
                self._credit_arrived()
            try:
                await self._waiter
            finally:
                self._waiter = None
        body, owed, expected = self._messages.popleft()
        if not expected:
            self._stream.expect(len(body))
        self._stream.credit(owed)
        return body

    def ready(self, most: int, nbytes: int) -> list[Body]:
        """Return the next messages that are here whole: at most so many, and none behind so many bytes."""
        bodies: list[Body] = []
        credit = 0
        while self._messages and len(bodies) < most and nbytes > 0:
            body, owed, expected = self._messages.popleft()
            if not expected:
                self._stream.expect(len(body))
            credit += owed
            nbytes -= len(body)
            bodies.append(body)
        self._stream.credit(credit)
        return bodies

    def room(self, limit: int) -> memoryview | None:
        """Return where the next bytes of the current message belong, at most `limit`; None if they must be fed."""
        if self._memory is None or self._backlog:
            return None
        return self._memory[self._filled : self._filled + limit]

    def filled(self, nbytes: int) -> None:
        """Count bytes that were written to `room`."""
        if self._dropped:
            self._stream.credit(nbytes)
            return
        self._filled += nbytes
        if self._filled == self._size:
            self._finish(self._body)
        elif self._waiter is not None:
            self._credit_arrived()

    def feed(self, data: memoryview) -> None:
        """Take the stream's next bytes; they are copied."""
        if self._is_deaf:
            self._stream.credit(len(data))
            return
        if self._backlog:
            self._backlog += data
            return
        taken = self._parse(data)
        if self._refused:
            self._withheld += len(data) - taken
        elif self.stopped:
            self._stream.credit(len(data) - taken)
        elif taken < len(data):
            self._backlog += data[taken:]

    def _parse_backlog(self) -> None:
        with memoryview(self._backlog) as data:
            taken = self._parse(data)
        if self._refused:
            self._withheld += len(self._backlog) - taken
            self._backlog.clear()
        else:
            del self._backlog[:taken]

    def _parse(self, data: memoryview) -> int:
        """Take the stream's next bytes until too many messages are unread or one is refused; return how many."""
        position, end = 0, len(data)
        while position < end and not self._refused and len(self._messages) < self._most_unread:
            if self._size < 0:
                stop = min(end, position + PREFIX_BYTES - len(self._prefix))
                self._prefix += data[position:stop]
                position = stop
                if len(self._prefix) == PREFIX_BYTES:
                    position += self._begin(data[position:])
                continue
            stop = min(end, position + self._size - self._filled)
            if self._memory is not None:
                self._memory[self._filled : self._filled + stop - position] = data[position:stop]
            else:
                self._kept += data[position:stop]
            self._filled += stop - position
            position = stop
            if self._filled == self._size:
                self._finish(self._body if self._body is not None else bytes(self._kept))
            elif self._memory is None:
                self._take_memory()
        if self._waiter is not None and self._size >= 0:
            self._credit_arrived()
        return position

    def add(self, data: bytes, ack_size: int) -> None:
        """Take a frame that h2 has handled; `ack_size` is its data and padding. The padding is read at once."""
        self._stream.credit_connection(ack_size)
        self._stream.credit(ack_size - len(data))
        self.feed(memoryview(data))

    def eof(self) -> None:
        """Tell readers that nothing more will come."""
        self._ended = True
        self._wake()

    def finish(self) -> None:
        """End for the reader once it has what arrived so far, and the message that has begun to; drop the rest."""
        self._finishing = True
        self._stop_if_whole()

    def _stop_if_whole(self) -> None:
        if self._size < 0 and not (self._prefix or self._backlog or self._ended):
            self.stopped = self._is_deaf = True
            self._most_unread = 0
            self.eof()

    def drop(self) -> None:
        """Forget everything, now and what is to come, and return the credit for it."""
        if self._dropped:
            return
        self._dropped = self._is_deaf = True
        self._let_go()
        self.take = None
        owed = sum(owed for _, owed, _ in self._messages) + self._withheld + len(self._backlog)
        owed += len(self._prefix) if self._size < 0 else PREFIX_BYTES + self._filled - self._credited
        self._messages.clear()
        self._kept, self._backlog = bytearray(), bytearray()
        self._body = self._memory = None
        self._stream.credit(owed)

    def _begin(self, data: memoryview) -> int:
        """Begin the message whose prefix is complete; return how much of `data` is its body, taken already."""
        prefix = self._prefix
        size = int.from_bytes(prefix[1:], "big")
        if prefix[0] or size > self._stream.max_message_bytes:
            self._refused = prefix
            self._withheld = PREFIX_BYTES
            self._prefix = b""
            self._wake()
            return 0
        self._size = size
        if size <= len(data) and size < ARRAY_BYTES:
            self._filled = size
            self._finish(bytes(data[:size]))
            return size
        if self._waiter is not None:
            self._expect()
        else:
            self._take_memory()
        return 0

    def _expect(self) -> None:
        """Prepare for the message that comes: somebody waits for it."""
        if not self._expected:
            self._expected = True
            self._hold = self._stream.hold(self._size, self._granted, self._fail)
            if self._hold is None or self._hold.is_granted:
                self._stream.expect(self._size)
        self._take_memory()

    def _granted(self) -> None:
        """Let the message come: there is room for it now."""
        self._stream.expect(self._size)
        self._credit_arrived()

    def _fail(self, error: ResourceExhausted) -> None:
        self._failure = to_grpc_error(error)
        self._wake()

    def _let_go(self) -> None:
        if self._hold is not None:
            hold, self._hold = self._hold, None
            self._stream.release(hold)

    def _take_memory(self) -> None:
        """Give the message its memory if it is due."""
        if self._memory is not None or self._size > TRUSTED_FACTOR * (self._filled + self._stream.window_size):
            return
        self._body = self._stream.connection.pool.take(self._size)
        self._memory = self._body.data
        self._memory[: self._filled] = self._kept
        self._kept = bytearray()

    def _credit_arrived(self) -> None:
        if self._hold is not None and not self._hold.is_granted:
            return
        arrived = PREFIX_BYTES + self._filled
        self._stream.credit(arrived - self._credited)
        self._credited = arrived

    def _finish(self, body: Body | None) -> None:
        assert body is not None
        self._let_go()
        owed, expected = PREFIX_BYTES + self._size - self._credited, self._expected
        self._prefix = b""
        self._size = -1
        self._body = self._memory = None
        self._filled = self._credited = 0
        self._expected = False
        if self._finishing:
            self._stop_if_whole()
        if self.take is not None and self._is_awaited() and len(body) < ARRAY_BYTES and self.take(body):
            self._stream.connection.num_taken += 1
            if not expected:
                self._stream.expect(len(body))
            self._stream.credit(owed)
            return
        self._messages.append((body, owed, expected))
        self._wake()

    def _is_awaited(self) -> bool:
        """Whether the message that is complete is the one that somebody waits for, and may be offered."""
        return (
            self._waiter is not None
            and not self._waiter.done()
            and self._stream.connection.num_taken < MAX_TAKEN
            and not self._messages
        )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
