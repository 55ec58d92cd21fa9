"""Runs a subject: a server and a client in processes of their own, several timed rounds, one JSON line."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import reverb_async as ra

ROUNDS = 5
ROUND_S = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")

Work = Callable[[float], Awaitable[int]]
"""Works for about so many seconds; returns how many items (or keys) it moved."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        name: on the command line, and in docs/benchmarks.md.
        title: one line for humans.
        tables: ``--table`` flags of the server.
        prepare: fills the tables and returns the work of a round.
        target: items per second that the project promises at least.
        unit: what is counted.
        shared_memory: what its client is made with.
    """

    name: str
    title: str
    tables: tuple[str, ...]
    prepare: Callable[[ra.Client], Awaitable[Work]]
    target: float
    unit: str = "items/s"
    shared_memory: Literal["auto", False] = "auto"


@dataclass
class Result:
    """One subject's line."""

    subject: str
    title: str
    unit: str
    rate: float
    rate_min: float
    rate_max: float
    target: float
    rounds: list[float]
    server_cpu_s_per_million: float
    client_cpu_s_per_million: float
    foreign_load: float
    machine: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the line."""
        return json.dumps(asdict(self))


def run(subject: Subject, *, rounds: int = ROUNDS, seconds: float = ROUND_S) -> Result:
    """Measure a subject."""
    with serving(subject.tables) as (address, server_pid):
        command = [sys.executable, "-m", "benchmarks", "--client", address, "--server-pid", str(server_pid)]
        command += ["--rounds", str(rounds), "--seconds", str(seconds), subject.name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    lines = [json.loads(line) for line in output.splitlines()]
    rates = [line["items"] / line["seconds"] for line in lines]
    millions = sum(line["items"] for line in lines) / 1e6
    return Result(
        subject.name,
        subject.title,
        subject.unit,
        round(statistics.median(rates)),
        round(min(rates)),
        round(max(rates)),
        subject.target,
        [round(rate) for rate in rates],
        round(sum(line["server_cpu"] for line in lines) / millions, 3),
        round(sum(line["client_cpu"] for line in lines) / millions, 3),
        round(statistics.mean(line["foreign_load"] for line in lines), 2),
        machine(),
    )


async def run_client(subject: Subject, address: str, server_pid: int, rounds: int, seconds: float) -> None:
    """Be the client process: prepare, then print a JSON line per round."""
    async with ra.Client(address, shared_memory=subject.shared_memory) as client:
        work = await subject.prepare(client)
        await work(seconds / 4)
        for _ in range(rounds):
            before = _usage(server_pid)
            items = await work(seconds)
            after = _usage(server_pid)
            wall, server, own, busy = (late - early for late, early in zip(after, before, strict=True))
            print(
                json.dumps(
                    {
                        "items": items,
                        "seconds": wall,
                        "server_cpu": server,
                        "client_cpu": own,
                        "foreign_load": max(0.0, (busy - server - own) / wall),
                    }
                ),
                flush=True,
            )


@contextmanager
def serving(tables: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Run a server on a free port while the body runs; gives its address and process id."""
    command = [sys.executable, "-m", "reverb_async.serve", "--port", "0"]
    for table in tables:
        command += ["--table", table]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            address = re.search(r"127\.0\.0\.1:\d+", ready)
            if address is None:
                raise RuntimeError(f"the server did not start: {ready!r}")
            yield address.group(), process.pid
        finally:
            process.terminate()


def machine() -> dict[str, str]:
    """Name the machine and the versions."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found.group(1) if found else model
    return {
        "cpu": f"{os.cpu_count()} x {model}",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version(name) for name in ("reverb_async", "grpclib", "h2", "numpy", "msgpack", "uvloop")},
    }


def _usage(server_pid: int) -> tuple[float, float, float, float]:
    """Return wall seconds, and CPU seconds of the server, of this process, and of the whole machine."""
    fields = Path(f"/proc/{server_pid}/stat").read_text().rpartition(")")[2].split()
    busy = sum(
        int(ticks)
        for at, ticks in enumerate(Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
        if at not in (3, 4)
    )
    return (
        time.perf_counter(),
        (int(fields[11]) + int(fields[12])) / _TICKS,
        time.process_time(),
        busy / _TICKS,
    )


async def repeat(seconds: float, step: Callable[[], Awaitable[int]], *, parallel: int = 1) -> int:
    """Repeat a step for a while, several at a time; return the sum of what the steps return."""
    deadline = time.perf_counter() + seconds
    total = 0

    async def one_after_the_other() -> None:
        nonlocal total
        while time.perf_counter() < deadline:
            items = await step()
            total += items

    async with asyncio.TaskGroup() as tasks:
        for _ in range(parallel):
            tasks.create_task(one_after_the_other())
    return total
