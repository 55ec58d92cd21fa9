"""Waits that end when they should and say what they wait for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import Protocol

from reverb_async.logs import Repeats

logger = logging.getLogger("reverb_async")

FIRST_WARNING_S = 10.0
"""A wait is reported after this long, then at doubling intervals."""


class LoopLock:
    """The lock of an `asyncio.Condition` on a single event loop: code between two awaits is alone anyway.

    With it a condition can be notified from synchronous code, and a woken waiter runs at once instead of queueing for a
    lock that nobody holds for longer than a step.
    """

    async def acquire(self) -> bool:
        """Succeed at once."""
        return True

    def release(self) -> None:
        """Do nothing."""

    def locked(self) -> bool:
        """Say yes: whoever asks is running, so it has the loop."""
        return True


def make_condition() -> asyncio.Condition:
    """Return a condition that synchronous steps may notify."""
    return asyncio.Condition(LoopLock())  # type: ignore[arg-type]


class Deadline:
    """A time limit that can also be ended from outside, with ``expire``.

    Used as an asynchronous context manager it raises `TimeoutError` in its body when the time is up. A `timeout` of 0
    still lets the body run up to its first real wait.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._scope: asyncio.Timeout | None = None
        self.expired = False
        """The time is up, or `expire` was called: whoever is about to wait need not start."""

    async def __aenter__(self) -> Deadline:
        if self._timeout is not None and self._timeout <= 0:
            self.expired = True
        when = None if self._timeout is None or self.expired else asyncio.get_running_loop().time() + self._timeout
        self._scope = asyncio.timeout_at(when)
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        scope, self._scope = self._scope, None
        assert scope is not None
        await scope.__aexit__(kind, error, trace)

    def expire(self) -> None:
        """End the wait now, as if the time were up; without effect on one that has ended."""
        self.expired = True
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    def check(self) -> None:
        """Raise `TimeoutError` if there is no time left to wait."""
        if self.expired:
            raise TimeoutError


class Crowd(Protocol):
    """Where calls wait for the same."""

    repeats: Repeats
    """For warnings of their waits."""

    @property
    def peers(self) -> tuple[str, ...]:
        """Where the first few come from."""

    def __len__(self) -> int: ...

    @property
    def oldest(self) -> float:
        """When the longest wait began, in seconds since the epoch."""


@contextmanager
def reported(
    describe: Callable[[], str],
    also: Callable[[str], None] | None = None,
    repeats: Repeats | None = None,
    crowd: Crowd | None = None,
) -> Iterator[None]:
    """Log a warning when the body takes long: after 10 s, 20 s, 40 s, ..., with what `describe` says at that time.

    Args:
        describe: what is being waited for.
        also: called with every warning, to pass it on to whoever asked for the wait.
        repeats: shared by those who may wait for the same: there is one line for all of them.
        crowd: where they stand; the line says how many they are.
    """
    repeats = crowd.repeats if crowd is not None else repeats or Repeats(logger)
    loop = asyncio.get_running_loop()
    started = loop.time()
    timer: asyncio.TimerHandle

    def warn(interval: float) -> None:
        nonlocal timer
        text = f"{describe()}; has waited {loop.time() - started:.0f} s"
        everybody, peers = "", () if crowd is None else crowd.peers
        if crowd is not None and len(crowd) > 1:
            everybody = f"; {len(crowd)} calls wait, the longest for {time.time() - crowd.oldest:.0f} s"
        repeats.warning(text + everybody, count=crowd is None, now=loop.time(), event="waiting", peers=peers)
        if also is not None:
            also(text)
        timer = loop.call_later(interval, warn, 2 * interval)

    timer = loop.call_later(FIRST_WARNING_S, warn, FIRST_WARNING_S)
    try:
        yield
    finally:
        timer.cancel()


def first_peers(peers: Iterable[str]) -> tuple[str, ...]:
    """Return up to 8 distinct names, in order, of those that are known among the first 64."""
    return tuple(islice(dict.fromkeys(filter(None, islice(peers, 64))), 8))


class Gate:
    """Where calls of one kind wait: a FIFO of tasks, whose head stands at a condition.

    Attributes:
        turn: the place at the head; held while waiting at the condition.
        repeats: for warnings of long waits.
    """

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self._changed = make_condition()
        self.repeats = Repeats(logger)
        self._since: dict[object, float] = {}
        self._peers: dict[object, str] = {}

    def __len__(self) -> int:
        return len(self._since)

    @property
    def oldest(self) -> float:
        """When the longest wait began, in seconds since the epoch."""
        return next(iter(self._since.values()))

    @property
    def peers(self) -> tuple[str, ...]:
        """Where the first few calls come from."""
        return first_peers(self._peers.values())

    @contextmanager
    def standing(self, peer: str = "") -> Iterator[None]:
        """Count the caller, a call from `peer`, as waiting while the body runs."""
        token = object()
        self._since[token], self._peers[token] = time.time(), peer
        try:
            yield
        finally:
            del self._since[token], self._peers[token]

    async def wait(self) -> None:
        """Wait, as the holder of `turn`, until `wake` is called."""
        await self._changed.wait()

    def wake(self) -> None:
        """Let the head look again."""
        self._changed.notify_all()
