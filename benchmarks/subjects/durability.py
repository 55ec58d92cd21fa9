"""What a log that is written ahead of acknowledgements costs."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np

import reverb_async as ra
from benchmarks.payloads import SMALL_BYTES, small
from benchmarks.processes import serving
from benchmarks.result import Result, simple_result
from benchmarks.subject import SHARE, Options, Subject
from benchmarks.subjects.work import BATCH, TABLE, UNIFORM, repeat
from benchmarks.usage import cpu_seconds
from reverb_async.serve import loop_factory

DURABILITIES = ("memory", "wal", "wal_fsync")


async def rates(path: Path, options: Options) -> dict[str, list[tuple[float, float]]]:
    """Return items/s, and server CPU in µs per item, of each round with each durability, in turns."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in DURABILITIES}
    data = small(np.random.default_rng(0), BATCH)
    async with AsyncExitStack() as stack:
        contestants = []
        for name in DURABILITIES:
            arguments = ["--table", UNIFORM, "--checkpoint-dir", str(path / name), "--durability", name]
            address, pid = stack.enter_context(serving(arguments))
            contestants.append((name, await stack.enter_async_context(ra.Client(address)), pid))
        for number in range(options.rounds + 1):
            for name, client, pid in contestants:

                async def step(client: ra.Client = client) -> int:
                    await client.insert_batch(data, {TABLE: 1.0})
                    return BATCH

                before = cpu_seconds(pid) or 0.0
                tally = await repeat(options.seconds, step, parallel=4)
                spent = (cpu_seconds(pid) or 0.0) - before
                if number:  # everything has run once
                    found[name].append((tally.items / options.seconds, 1e6 * spent / tally.items))
    return found


def measure_cost(subject: Subject, options: Options) -> Iterable[Result]:
    """Insert with and without a log, in turns."""
    with (
        tempfile.TemporaryDirectory(prefix="reverb-async-") as directory,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        found = runner.run(rates(Path(directory), options))
    details: dict[str, float] = {}
    for name, rounds in found.items():
        details[f"{name}_items_per_s"] = round(statistics.median(rate for rate, _ in rounds))
        details[f"{name}_server_us_per_item"] = round(statistics.median(spent for _, spent in rounds), 3)
    for name, title, target in (
        ("wal-cost", subject.title, 0.75),
        ("wal-fsync-cost", subject.title.replace("wal", "wal_fsync"), None),
    ):
        pairs = zip(found[name.removesuffix("-cost").replace("-", "_")], found["memory"], strict=True)
        shares = [with_log[0] / without[0] for with_log, without in pairs]
        yield simple_result(subject, shares, name=name, title=title, target=target, details=details)


SUBJECTS = (
    Subject(
        "wal-cost",
        "insert_batch(256), small, 4 calls in flight, TCP: throughput with durability wal per throughput without",
        SHARE,
        0.75,
        sizes={"batch": BATCH, "payload_bytes": SMALL_BYTES},
        run=measure_cost,
    ),
)
