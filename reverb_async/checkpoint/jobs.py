"""Work for a thread, a little of it ahead of time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")

_AHEAD = 2
"""Jobs that may wait or run; their arguments lie in memory."""


async def until_done(future: Future[T]) -> T:
    """Return a job's result; whoever is cancelled meanwhile still waits for its end, so that nothing goes on unseen."""
    waiting = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        while not waiting.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([waiting])
        waiting.exception()
        raise


class Jobs:
    """Hands jobs to a thread that runs one at a time; one waits while another runs."""

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self._pending: deque[Future[Any]] = deque()

    async def add(self, work: Callable[..., T], *args: Any) -> list[T]:
        """Hand over a job, waiting until there is room; return the results of those that ended meanwhile.

        Raises:
            Exception: what an earlier job raised.
        """
        self._pending.append(self._thread.submit(work, *args))
        results = []
        while len(self._pending) > _AHEAD:
            results.append(await until_done(self._pending.popleft()))
        await asyncio.sleep(0)
        return results

    async def finish(self) -> list[Any]:
        """Wait for all jobs; return the results that `add` did not."""
        results = []
        while self._pending:
            results.append(await until_done(self._pending.popleft()))
        return results
