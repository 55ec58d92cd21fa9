"""Where the inserts of a table wait: a queue whose head is served in steps of the event loop, not in a task."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Protocol

from reverb_async.errors import ResourceExhausted
from reverb_async.logs import Repeats
from reverb_async.waiting import first_peers

logger = logging.getLogger("reverb_async")

MAX_SERVED = 64
MAX_SERVED_ROWS = 4096
"""After so many waiting inserts, or rows of them, others have a turn of the loop."""


class Waiting(Protocol):
    """Rows that wait.

    Attributes:
        since: since when, on the event loop's clock.
    """

    since: float

    def give_up(self, error: ResourceExhausted) -> None:
        """End the wait with an error."""

    @property
    def peer(self) -> str:
        """Where they come from."""

    def serve(self) -> int:
        """Insert what the tables admit now, and leave the queues if that is all; called when at the head of one.

        Returns:
            How many rows need not wait any more; 0 if there is nothing to do before somebody calls `wake` again.
        """


class InsertQueue:
    """Inserts in the order of their coming. Nobody overtakes; a change serves all whom it admits in one step.

    Attributes:
        repeats: for warnings of long waits.
    """

    def __init__(self) -> None:
        self.repeats = Repeats(logger)
        self._since: dict[Waiting, float] = {}
        self._is_due = False

    def __len__(self) -> int:
        return len(self._since)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._since)

    @property
    def oldest(self) -> float:
        """When the longest wait began, in seconds since the epoch."""
        return next(iter(self._since.values()))

    @property
    def peers(self) -> tuple[str, ...]:
        """Where the first few come from."""
        return first_peers(waiting.peer for waiting in self._since)

    @property
    def head(self) -> Waiting | None:
        """Who came first."""
        return next(iter(self._since), None)

    def join(self, waiting: Waiting) -> None:
        """Stand at the end."""
        self._since[waiting] = time.time()

    def leave(self, waiting: Waiting) -> None:
        """Stand here no longer, which may be another's turn. Idempotent."""
        if self._since.pop(waiting, None) is not None:
            self.wake()

    def wake(self) -> None:
        """Have the head look again, soon: whoever calls this ends the step first."""
        if self._since and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._is_due = False
        rows = 0
        for _ in range(MAX_SERVED):
            head = self.head
            served = 0 if head is None else head.serve()
            if not served:
                return
            rows += served
            if rows >= MAX_SERVED_ROWS:
                break
        self.wake()
