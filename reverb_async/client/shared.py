"""One attempt for all who need its outcome at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """Makes an attempt once, however many ask for it while it lasts.

    Those who come while it is under way wait for its outcome, also if that is a failure. With a lock, each would find
    out for itself, one after the other, that nothing answers.
    """

    def __init__(self) -> None:
        self._attempt: asyncio.Task[_T] | None = None
        self._waiting = 0

    async def join(self, attempt: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Return what ``attempt()`` returns, or raise what it raises; it is given up when nobody waits any more."""
        task = self._attempt
        if task is None or task.done():
            task = self._attempt = asyncio.get_running_loop().create_task(attempt())
            task.add_done_callback(_look_at)
            self._waiting = 0
        self._waiting += 1
        try:
            await asyncio.wait({task})
        finally:
            if task is self._attempt:
                self._waiting -= 1
                if not self._waiting:
                    self._attempt = None
                    task.cancel()
        return task.result()


def _look_at(task: asyncio.Task[Any]) -> None:
    """Take note of a failure that nobody waits for any more, so that asyncio does not complain."""
    if not task.cancelled():
        task.exception()
