"""Waiting without a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def settle(turns: int = 20) -> None:
    """Let everything that can run in this process run until it waits; no wall-clock time passes."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait until a condition holds that another process or thread, or the network, brings about.

    Raises:
        TimeoutError: it did not hold in time.
    """
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110  # nobody here could set an event
            await asyncio.sleep(0.001)
