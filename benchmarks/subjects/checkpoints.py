"""Checkpoints: how long they take, what they write, and how long the event loop stands still meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

import reverb_async as ra
from benchmarks.payloads import SMALL_BYTES, small
from benchmarks.result import Result, simple_result
from benchmarks.subject import GROWTH, Measure, Options, Subject
from benchmarks.subjects.work import BATCH, TABLE
from reverb_async.serve import loop_factory, rare_full_collections

T = TypeVar("T")

ITEMS = 100_000
PAUSE_ITEMS = 1_000_000
FULL_PAUSE_ITEMS = 24_000_000
WARM_UP_S = 1.0
_AT_ONCE = 65_536
_PROBE_S = 0.001

SECONDS = Measure("duration", "s", "lower")
PAUSE_MS = Measure("duration", "ms", "lower")


@asynccontextmanager
async def serving(path: Path, items: int) -> AsyncIterator[ra.Client]:
    """Serve a table for so many items in this process, with checkpoints."""
    table = ra.Table(TABLE, max_size=items, sampler=ra.selectors.Prioritized(0.6))
    async with ra.Server([table], port=None, checkpointer=ra.Checkpointer(path, keep=2)) as server:
        yield server.client()


async def insert(client: ra.Client, items: int) -> None:
    """Insert so many small items."""
    rng = np.random.default_rng(0)
    for start in range(0, items, _AT_ONCE):
        count = min(_AT_ONCE, items - start)
        await client.insert_batch(small(rng, count), {TABLE: rng.random(count) + 0.1})


async def write_and_restore(path: Path, items: int) -> tuple[float, float]:
    """Return how many seconds the first checkpoint takes, and starting a server from one."""
    async with serving(path, items) as client:
        await insert(client, items)
        before = time.perf_counter()
        await client.checkpoint()
        written = time.perf_counter() - before
    before = time.perf_counter()
    async with serving(path, items) as client:
        restored = time.perf_counter() - before
        if (await client.server_info())[TABLE].current_size != items:
            raise RuntimeError("not all items were restored")
    return written, restored


async def share_of_bytes(path: Path, items: int) -> float:
    """Return the bytes that a second checkpoint writes after 1 % new items, per byte of the first."""
    async with serving(path, items) as client:
        await insert(client, items)
        await client.checkpoint()
        first = _bytes_in(path)
        await insert(client, items // 100)
        await client.checkpoint()
        return (_bytes_in(path) - first) / first


async def longest_pause(path: Path, items: int) -> tuple[float, dict[str, float]]:
    """Return the longest pause of the event loop, in ms, while a checkpoint is written beside other work."""
    async with serving(path, items) as client:
        await insert(client, items)
        await _longest(WARM_UP_S, client)
        idle, _ = await _longest(WARM_UP_S, client)
        before = time.perf_counter()
        saving = asyncio.ensure_future(client.checkpoint())
        longest, batches = await _longest(saving, client)
        seconds = time.perf_counter() - before
    return longest, {
        "seconds": round(seconds, 3),
        "bytes": _bytes_in(path),
        "longest_without_ms": round(idle, 3),
        "batches_per_s": round(batches / seconds, 1),
    }


async def _longest(until: float | asyncio.Future[str], client: ra.Client) -> tuple[float, int]:
    """Return the longest pause in ms, and how many batches were inserted and sampled meanwhile."""
    batches = 0

    async def work() -> None:
        nonlocal batches
        rng = np.random.default_rng(1)
        rows = small(rng, BATCH)
        while True:
            await client.insert_batch(rows, {TABLE: 1.0})
            batch = await client.sample_batch(TABLE, BATCH)
            await batch.update_priorities(np.full(BATCH, 0.5))
            batches += 1
            await asyncio.sleep(0.002)

    task = asyncio.create_task(work())
    end = asyncio.ensure_future(asyncio.sleep(until)) if isinstance(until, float) else until
    longest = 0.0
    while not end.done():
        before = time.perf_counter()
        await asyncio.sleep(_PROBE_S)
        longest = max(longest, time.perf_counter() - before - _PROBE_S)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await end
    return longest * 1000, batches


def _bytes_in(path: Path) -> int:
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def _run(work: Callable[[Path], Awaitable[T]]) -> T:
    async def run() -> T:
        return await work(Path(directory))

    with (
        tempfile.TemporaryDirectory(prefix="reverb-async-") as directory,
        rare_full_collections(),
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        return runner.run(run())


def measure_times(subject: Subject, options: Options) -> Iterable[Result]:
    """Write and restore, a few times."""
    times = [_run(partial(write_and_restore, items=ITEMS)) for _ in range(options.rounds)]
    yield simple_result(subject, [written for written, _ in times])
    yield simple_result(
        subject,
        [restored for _, restored in times],
        name="checkpoint-restore",
        title="starting a server from a checkpoint of 100k small items",
        target=0.2,
    )


def measure_pauses(subject: Subject, options: Options) -> Iterable[Result]:
    """Save many items beside other work."""
    items = FULL_PAUSE_ITEMS if options.full else PAUSE_ITEMS
    runs = [_run(partial(longest_pause, items=items)) for _ in range(1 if options.full else options.rounds)]
    details = {"items": items, **runs[-1][1], "median_seconds": statistics.median(run["seconds"] for _, run in runs)}
    yield simple_result(subject, [longest for longest, _ in runs], details=details)


def measure_increment(subject: Subject, options: Options) -> Iterable[Result]:
    """Save, change one item in a hundred, save."""
    yield simple_result(subject, [_run(partial(share_of_bytes, items=ITEMS))])


SUBJECTS = (
    Subject(
        "checkpoint-write",
        "first checkpoint of 100k small items, Prioritized(0.6), on disk with fsync",
        SECONDS,
        0.2,
        sizes={"payload_bytes": SMALL_BYTES, "items": ITEMS},
        run=measure_times,
    ),
    Subject(
        "checkpoint-pause",
        "longest pause of the event loop while 1M small items (--full: 24M) are saved beside inserts and samples",
        PAUSE_MS,
        20,
        sizes={"payload_bytes": SMALL_BYTES},
        run=measure_pauses,
    ),
    Subject(
        "checkpoint-increment",
        "bytes of a second checkpoint after 1% new items, per byte of the first, 100k small items",
        GROWTH,
        0.05,
        sizes={"payload_bytes": SMALL_BYTES, "items": ITEMS},
        run=measure_increment,
    ),
)
