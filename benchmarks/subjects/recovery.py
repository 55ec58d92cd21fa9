"""Servers that die and networks that break: how soon writers go on, with every item once."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import numpy as np

import reverb_async as ra
from benchmarks.cutting_proxy import cutting
from benchmarks.processes import ROOT, serving, stop
from benchmarks.result import Result, simple_result
from benchmarks.subject import Measure, Options, Subject
from benchmarks.subjects.work import TABLE

SECONDS = Measure("duration", "s", "lower")

ITEMS = 20_000
_LEAST_S, _MOST_S = 0.3, 0.9
_TOGETHER = 10
"""Items per confirmation: 2,000 round trips, so that many are cut."""

_TABLE = f"{TABLE}:kind=queue,max_size=1000000"
_DOWN_S = (0.3, 1.0, 3.0, 6.0, 10.0)


async def insert(client: ra.Client, numbers: range) -> None:
    """Insert items one by one, some at the same time."""
    await asyncio.gather(*(client.insert({"x": np.int64(number)}, {TABLE: 1.0}) for number in numbers))


async def insert_batch(client: ra.Client, numbers: range) -> None:
    """Insert them together."""
    await client.insert_batch({"x": np.array(numbers)}, {TABLE: 1.0})


async def through_cuts(
    write: Callable[[ra.Client, range], Awaitable[None]] | None, address: str, seed: int
) -> tuple[float, int]:
    """Write all items through a proxy that cuts; return the seconds this took, and how many connections were cut.

    Raises:
        AssertionError: an item is missing, or is there twice.
    """
    async with ra.Client(address) as direct:
        await direct.reset(TABLE)
        async with cutting(address, _LEAST_S, _MOST_S, seed) as proxy, ra.Client(proxy.address) as client:
            started = time.perf_counter()
            if write is None:
                await trajectories(client)
            else:
                for start in range(0, ITEMS, _TOGETHER):
                    await write(client, range(start, start + _TOGETHER))
            seconds = time.perf_counter() - started
            cuts = proxy.cuts
        numbers = (await direct.sample_batch(TABLE, ITEMS, timeout=10)).data["x"]
        assert np.array_equal(np.sort(numbers), np.arange(ITEMS)), "every item once"
        assert (await direct.server_info())[TABLE].current_size == 0
    return seconds, cuts


async def trajectories(client: ra.Client) -> None:
    """Write them with a trajectory writer."""
    async with client.trajectory_writer(1) as writer:
        for number in range(ITEMS):
            writer.append({"x": np.int64(number)})
            await writer.create_item(TABLE, 1.0, trajectory={"x": writer.history["x"][-1]})
            if number % _TOGETHER == 0:
                await writer.flush()


def measure_cuts(
    subject: Subject, options: Options, *, write: Callable[[ra.Client, range], Awaitable[None]] | None
) -> Iterable[Result]:
    """Write through cuts, once per round."""
    seconds, cuts = [], []
    with serving(["--table", _TABLE]) as (address, _):
        for seed in range(options.rounds):
            took, cut = asyncio.run(through_cuts(write, address, seed))
            seconds.append(took)
            cuts.append(cut)
    yield simple_result(subject, seconds, details={"connections_cut": cuts})


def measure_recovery(subject: Subject, options: Options) -> Iterable[Result]:
    """Kill a server with a busy writer; from the moment its successor listens: how long until an item is confirmed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    downs = _DOWN_S[: options.rounds]
    values = [asyncio.run(recovery(port, down_s)) for down_s in downs]
    yield simple_result(subject, values, details={"down_s": list(downs)})


async def recovery(port: int, down_s: float) -> float:
    """Return the seconds a writer needed after its server was away for `down_s`."""
    process = await asyncio.to_thread(_start, port)
    confirmed = 0
    async with ra.Client(f"127.0.0.1:{port}") as client, client.trajectory_writer(1) as writer:

        async def write() -> None:
            nonlocal confirmed
            while True:
                writer.append({"x": np.int64(confirmed)})
                await writer.create_item(TABLE, 1.0, trajectory={"x": writer.history["x"][-1]})
                await writer.flush()
                confirmed += 1

        writing = asyncio.create_task(write())
        while confirmed < 100:  # noqa: ASYNC110 - it is the writer that is measured, not this
            await asyncio.sleep(0.01)
        process.kill()
        await asyncio.to_thread(process.communicate)
        before = confirmed
        await asyncio.sleep(down_s)
        process = await asyncio.to_thread(_start, port)
        back = time.perf_counter()
        while confirmed == before:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        seconds = time.perf_counter() - back
        writing.cancel()
        await asyncio.wait({writing})
    process.terminate()
    await asyncio.to_thread(stop, process)
    assert process.stdout is not None
    process.stdout.close()
    return seconds


def _start(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "reverb_async.serve", "--port", str(port), "--table", _TABLE]
    process = subprocess.Popen([*command, "--log-level", "error"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert "serving" in process.stdout.readline()
    return process


_CUTS = f"proxy that resets all connections every {_LEAST_S} to {_MOST_S} s, each item exactly once"
_SIZES = {"items": ITEMS, "batch": _TOGETHER}

SUBJECTS = (
    Subject(
        "recovery",
        "seconds from a killed server's successor listening to a writer's next confirmed item; away for 0.3 to 10 s",
        SECONDS,
        3,
        run=measure_recovery,
    ),
    *(
        Subject(name, f"{ITEMS:,} items with {title} through a {_CUTS}", SECONDS, 60, sizes=_SIZES, run=run)
        for name, title, run in (
            ("cuts-insert", f"insert, {_TOGETHER} at a time", partial(measure_cuts, write=insert)),
            ("cuts-insert-batch", f"insert_batch of {_TOGETHER}", partial(measure_cuts, write=insert_batch)),
            ("cuts-writer", f"a trajectory writer, flushed every {_TOGETHER}", partial(measure_cuts, write=None)),
        )
    ),
)
