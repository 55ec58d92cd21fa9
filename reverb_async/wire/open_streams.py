"""The streams a server's handlers serve, so that closing the server ends them with a reason."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from reverb_async.errors import ReplayError, TableClosed

Result = TypeVar("Result")


class Incoming(Protocol):
    """What a stream's handler receives."""

    def finish_reading(self) -> None:
        """Have the handler meet the end after what has been received, or has begun to be; never waits."""

    @property
    def is_cut_short(self) -> bool:
        """Whether that ended the client's messages before it did."""


def _let_go_of_messages(error: BaseException) -> None:
    """Clear the frames an error has passed: grpclib's errors refer to themselves, and would keep what these hold."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__


class OpenStreams:
    """Runs handlers of streams until their clients leave or the server closes."""

    def __init__(self) -> None:
        self._closing = False
        self._breaking_off = False
        self._open: dict[asyncio.Task[Any], Incoming | None] = {}

    def __len__(self) -> int:
        """Return how many streams are served now."""
        return len(self._open)

    async def serve(self, incoming: Incoming | None, handle: Callable[[], Awaitable[Result]]) -> Result:
        """Run a stream's handler in the current task, which grpclib cancels when the client leaves.

        Args:
            incoming: what it receives; None if that has been received.
            handle: the handler.

        Raises:
            TableClosed: the server is stopping.
            ReplayError: the handler's.
        """
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = incoming
        try:
            self.refuse_when_closing()
            try:
                result = await handle()
            except (asyncio.CancelledError, ReplayError) as error:
                _let_go_of_messages(error)
                if not task.cancelling():
                    if incoming is not None and incoming.is_cut_short:  # Whatever it misses, that is why.
                        self.refuse_when_closing()
                    raise
                if self._breaking_off and task.uncancel() == 0:
                    self.refuse_when_closing()  # `close` ended the stream: its client shall know why.
                # grpclib waits for this when the client left, whatever the stream was just failing with: a task
                # group tells what its tasks died of, not that it was cancelled.
                raise asyncio.CancelledError from None
            if incoming is not None and incoming.is_cut_short:
                self.refuse_when_closing()
            return result
        finally:
            del self._open[task]

    def refuse_when_closing(self) -> None:
        """Raise `TableClosed` once `finish` or `close` was called."""
        if self._closing:
            raise TableClosed("the server is stopping")

    def finish(self) -> None:
        """Refuse new streams, and let those there are do what they have been asked for, then end with `TableClosed`."""
        self._closing = True
        for incoming in self._open.values():
            if incoming is not None:
                incoming.finish_reading()

    async def wait(self, timeout: float) -> None:
        """Wait until all streams have ended, for so many seconds at most."""
        if self._open:
            await asyncio.wait(list(self._open), timeout=timeout)

    async def close(self, timeout: float) -> None:
        """End all streams now, with `TableClosed`, and refuse new ones.

        Args:
            timeout: seconds the streams have for telling their clients.
        """
        self._closing = self._breaking_off = True
        for task in self._open:
            task.cancel()
        await self.wait(timeout)
