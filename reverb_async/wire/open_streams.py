"""The streams a server's handlers serve, so that closing the server ends them with a reason."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from reverb_async.errors import ReplayError, TableClosed

_FAREWELL_S = 2.0


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
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """Return how many streams are served now."""
        return len(self._tasks)

    async def serve(self, handle: Callable[[], Awaitable[None]]) -> None:
        """Run a stream's handler in the current task, which grpclib cancels when the client leaves.

        Raises:
            TableClosed: the server is stopping.
            ReplayError: the handler's.
        """
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.refuse_when_closing()
            try:
                await handle()
            except (asyncio.CancelledError, ReplayError) as error:
                _let_go_of_messages(error)
                if not task.cancelling():
                    raise
                if self._closing and task.uncancel() == 0:
                    self.refuse_when_closing()  # `close` ended the stream: its client shall know why.
                # grpclib waits for this when the client left, whatever the stream was just failing with: a task
                # group tells what its tasks died of, not that it was cancelled.
                raise asyncio.CancelledError from None
        finally:
            self._tasks.discard(task)

    def refuse_when_closing(self) -> None:
        """Raise `TableClosed` once `close` was called."""
        if self._closing:
            raise TableClosed("the server is stopping")

    async def close(self) -> None:
        """End all streams with `TableClosed` and refuse new ones."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_FAREWELL_S)
