"""What several subjects do: fill a table, sample it, repeat a call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import reverb_async as ra
from benchmarks.payloads import Columns, small
from benchmarks.subject import Tally

ITEMS = 100_000
BATCH = 256
TABLE = "replay"

UNIFORM = "replay:max_size=1000000"
PRIORITIZED = "replay:sampler=prioritized,priority_exponent=0.6,max_size=1000000"

Make = Callable[[np.random.Generator, int], Columns]

_FILL_BYTES = 8 << 20
_FILL_ROWS = 1_000


async def fill(client: ra.Client, n: int = ITEMS, make: Make = small, table: str = TABLE) -> None:
    """Insert `n` items with random priorities, unless another process did already."""
    rng = np.random.default_rng(0)
    present = (await client.server_info())[table].current_size
    row_bytes = sum(column.nbytes for column in make(rng, 1).values())
    at_once = max(1, min(_FILL_ROWS, _FILL_BYTES // row_bytes))
    for start in range(present, n, at_once):
        count = min(at_once, n - start)
        await client.insert_batch(make(rng, count), {table: rng.random(count) + 0.1})


async def sample_for(
    client: ra.Client,
    seconds: float,
    batch_size: int = BATCH,
    *,
    table: str = TABLE,
    item_bytes: int = 0,
    priorities: NDArray[np.float64] | None = None,
    **options: Any,
) -> Tally:
    """Sample batches for a while, and drop them; give every item a new priority if there are any.

    `item_bytes` 0: the bytes of the arrays that came are counted.
    """
    tally = Tally()
    deadline = time.perf_counter() + seconds
    async with client.sample_batches(table, batch_size, **options) as batches:
        async for batch in batches:
            if priorities is not None:
                await batch.update_priorities(priorities)
            tally.items += len(batch.info.key)
            tally.nbytes += item_bytes * len(batch.info.key) or _nbytes(batch.data)
            if time.perf_counter() > deadline:
                break
    return tally


def _nbytes(data: Any) -> int:
    if isinstance(data, ra.Ragged):
        return int(data.values.nbytes)
    if isinstance(data, dict):
        return sum(_nbytes(value) for value in data.values())
    return int(data.nbytes)


async def repeat(
    seconds: float, step: Callable[[], Awaitable[int]], *, parallel: int = 1, item_bytes: int = 0
) -> Tally:
    """Repeat a step for a while, several at a time; count what the steps return."""
    deadline = time.perf_counter() + seconds
    tally = Tally()

    async def one_after_the_other() -> None:
        while time.perf_counter() < deadline:
            items = await step()
            tally.items += items
            tally.nbytes += items * item_bytes

    if parallel == 1:
        await one_after_the_other()
        return tally
    async with asyncio.TaskGroup() as tasks:
        for _ in range(parallel):
            tasks.create_task(one_after_the_other())
    return tally


async def time_each(seconds: float, step: Callable[[], Awaitable[object]]) -> Tally:
    """Repeat a step for a while, one at a time, and note how long each took."""
    tally = Tally()
    clock = time.perf_counter_ns
    deadline = clock() + int(seconds * 1e9)
    started = clock()
    while started < deadline:
        await step()
        ended = clock()
        tally.latencies_us.append((ended - started) / 1000)
        tally.items += 1
        started = clock()
    return tally
