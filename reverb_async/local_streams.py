"""Streams within one process: what one end sends the other receives, without bytes on a wire."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from reverb_async.errors import ReplayError, TableClosed, Unavailable
from reverb_async.protocol.message import Duplex, Message
from reverb_async.waiting import make_condition

_QUEUED_MESSAGES = 8
"""A sender waits while so many messages have not been received."""


class _Pipe:
    """Messages in one direction."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._changed = make_condition()
        self._ended = False
        self._broken: ReplayError | None = None
        self._num_putting = 0

    def try_put(self, message: Message) -> bool:
        """Queue a message if there is room and nobody waits to; return whether that was done."""
        if self._broken or self._ended or self._num_putting or len(self._messages) >= _QUEUED_MESSAGES:
            return False
        self._messages.append(message)
        self._changed.notify_all()
        return True

    async def put(self, message: Message) -> None:
        """Queue a message; waits while the queue is full."""
        self._num_putting += 1
        try:
            await self._changed.wait_for(lambda: len(self._messages) < _QUEUED_MESSAGES or self._broken or self._ended)
        finally:
            self._num_putting -= 1
        if self._broken is not None:
            raise self._broken
        if self._ended:
            raise Unavailable("the stream has ended")
        self._messages.append(message)
        self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._messages)

    async def get(self) -> Message | None:
        """Return the next message, or None after the last."""
        await self._changed.wait_for(lambda: self._messages or self._broken or self._ended)
        if self._messages:
            message = self._messages.popleft()
            self._changed.notify_all()
            return message
        if self._broken is not None:
            raise self._broken
        return None

    def end(self) -> None:
        """Let no message follow."""
        self._ended = True
        self._changed.notify_all()

    def cut_short(self) -> bool:
        """Let no message follow, unless that was said before; return whether it was not."""
        is_cut = not self._ended and self._broken is None
        self.end()
        return is_cut

    def break_off(self, error: ReplayError) -> None:
        """Raise `error` at both ends, once what is queued has been received."""
        if self._broken is None:
            self._broken = error
            self._changed.notify_all()


class _End(Duplex):
    """One end of a stream; `aborted` is called when this end gives it up."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, aborted: Callable[[], object]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._aborted = aborted
        self.is_cut_short = False

    @property
    def peer(self) -> str:
        return "the server's process"

    async def send(self, message: Message) -> None:
        await self._outgoing.put(message)

    def try_send(self, message: Message) -> bool:
        return self._outgoing.try_put(message)

    @property
    def has_unread(self) -> bool:
        return len(self._incoming) > 0

    async def receive(self) -> Message | None:
        return await self._incoming.get()

    async def end(self) -> None:
        self._outgoing.end()

    def finish_reading(self) -> None:
        self.is_cut_short = self._incoming.cut_short()

    def abort(self) -> None:
        error = Unavailable("the stream was aborted")
        self._incoming.break_off(error)
        self._outgoing.break_off(error)
        self._aborted()


class LocalStreams:
    """Streams whose other ends are served by tasks of this process.

    Args:
        is_closing: whether streams that are cancelled now end because whatever serves them is closed.
    """

    def __init__(self, is_closing: Callable[[], bool]) -> None:
        self._is_closing = is_closing
        self._tasks: dict[asyncio.Task[None], _End] = {}

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._tasks)

    def open(self, serve: Callable[[Duplex], Awaitable[None]], name: str) -> Duplex:
        """Return one end of a new stream; a task runs ``serve(other end)``, and its errors end the stream."""
        upwards, downwards = _Pipe(), _Pipe()
        theirs = _End(upwards, downwards, lambda: None)
        task = asyncio.create_task(self._serve(serve, theirs, upwards, downwards), name=name)
        self._tasks[task] = theirs
        task.add_done_callback(self._tasks.pop)
        return _End(downwards, upwards, task.cancel)

    async def _serve(
        self, serve: Callable[[Duplex], Awaitable[None]], end: _End, upwards: _Pipe, downwards: _Pipe
    ) -> None:
        ending: ReplayError | None = Unavailable("the server ended the stream")
        try:
            await serve(end)
            ending = TableClosed("the server is stopping") if end.is_cut_short else None
        except ReplayError as error:
            ending = TableClosed("the server is stopping") if end.is_cut_short else error
        except asyncio.CancelledError:
            if self._is_closing():
                ending = TableClosed("the server is stopping")
            raise
        finally:
            upwards.break_off(ending or Unavailable("the stream has ended"))
            if ending is None:
                downwards.end()
            else:
                downwards.break_off(ending)

    def finish(self) -> None:
        """Let all streams do what they have been asked for, then end with `TableClosed`."""
        for end in self._tasks.values():
            end.finish_reading()

    async def wait(self, timeout: float | None) -> None:
        """Wait until all streams have ended, for so many seconds at most."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout)

    async def close(self, timeout: float | None = None) -> None:
        """End all streams and wait until they have ended, for `timeout` seconds at most. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await self.wait(timeout)
