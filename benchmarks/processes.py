"""Servers and workers: processes that are told when a round begins, and say what they did in it."""

from __future__ import annotations

import json
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import usage
from benchmarks.subject import Measure, Round, Subject

ROOT = Path(__file__).resolve().parent.parent

PREPARE_S = 600.0
"""A worker that is not ready by then hangs."""

_LATE_S = 120.0
"""A worker that has not answered so long after the end of its round hangs."""

_LEAVE_S = 15.0

_SAID_BYTES = 4_000


class WorkerError(RuntimeError):
    """A worker ended, or hangs; its own words are on standard error."""


class Worker:
    """A process that works in rounds: a line on its standard input begins one, a line on its output ends it.

    The first line it prints says that it is ready; then, for each ``{"seconds": s}``, it prints a `Tally` with the
    wall and CPU seconds it took.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        counted: bool = True,
        environment: dict[str, str] | None = None,
        is_talkative: bool = False,
    ) -> None:
        self.counted = counted
        self._command = " ".join(command)
        # What a talkative program says on standard error is shown when it fails.
        self._said = tempfile.TemporaryFile() if is_talkative else None  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self.ready: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait for the first line."""
        self.ready = self._receive(PREPARE_S)

    def begin(self, seconds: float) -> None:
        """Begin a round."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"seconds": seconds}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("it has ended") from None

    def end(self, seconds: float) -> dict[str, Any]:
        """Wait for what the round gave."""
        return self._receive(seconds + _LATE_S)

    def _receive(self, patience_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        # One line per exchange: nothing can be left in Python's buffer when select looks at the descriptor.
        if not select.select([self._process.stdout], [], [], patience_s)[0]:
            raise self._failed(f"it said nothing for {patience_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._failed(f"it ended, exit status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self, what: str) -> WorkerError:
        said = b""
        if self._said is not None:
            self._said.seek(0)
            said = self._said.read()[-_SAID_BYTES:]
        return WorkerError(f"{what}: {self._command}\n{said.decode(errors='replace')}".rstrip())

    def close(self) -> None:
        """End of input is the sign to leave; who does not is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        stop(self._process)
        self._process.stdout.close()
        if self._said is not None:
            self._said.close()


def stop(process: subprocess.Popen[str]) -> None:
    """Wait for a process that was told to end; kill it when that takes too long."""
    try:
        process.wait(_LEAVE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def serving(arguments: Sequence[str], inside: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    """Run our server on a free port while the body runs; gives its address and process id.

    Args:
        arguments: of its command line.
        inside: words before the command, which must become the command itself, as nsenter does.
    """
    command = [*inside, sys.executable, "-m", "reverb_async.serve", "--port", "0", "--log-level", "warning", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        address = re.search(r"127\.0\.0\.1:\d+", ready)
        if address is None:
            raise WorkerError(f"the server did not start: {ready!r}")
        yield address.group(), process.pid
    finally:
        process.terminate()
        stop(process)
        process.stdout.close()


class Contestant:
    """A library at a subject's work: its server, if any, and its workers; a context manager."""

    def __init__(self, name: str, measure: Measure) -> None:
        self.name = name
        self._measure = measure
        self.stack = ExitStack()
        self.server_pid: int | None = None
        self.workers: list[Worker] = []

    def add(self, worker: Worker) -> Worker:
        """Take a worker in and wait until it is ready."""
        self.stack.callback(worker.close)
        worker.wait_until_ready()
        self.workers.append(worker)
        return worker

    def play(self, seconds: float) -> Round:
        """Have all workers work for a round."""
        before = self._usage()
        for worker in self.workers:
            worker.begin(seconds)
        answers = [worker.end(seconds) for worker in self.workers]
        after = self._usage()
        wall = after[0] - before[0]
        server = _difference(before[1], after[1])
        clients = sum(answer["cpu"] for answer in answers)
        busy = _difference(before[2], after[2])
        own = after[3] - before[3]
        counted = [answer for answer, worker in zip(answers, self.workers, strict=True) if worker.counted]
        latencies = [us for answer in counted for us in answer["latencies_us"]]
        details: dict[str, Any] = {}
        others = [answer for answer, worker in zip(answers, self.workers, strict=True) if not worker.counted]
        if beside := sum(answer["items"] / answer["seconds"] for answer in others):
            details["others_items_per_s"] = round(beside)
        for answer in answers:
            details |= answer["details"]
        return Round(
            value=value_of(self._measure, counted, latencies),
            items=sum(answer["items"] for answer in counted),
            seconds=wall,
            server_cpu=server,
            client_cpu=clients,
            foreign_load=None if busy is None else max(0.0, (busy - (server or 0.0) - clients - own) / wall),
            latencies_us=latencies,
            details=details,
        )

    def _usage(self) -> tuple[float, float | None, float | None, float]:
        server = None if self.server_pid is None else usage.cpu_seconds(self.server_pid)
        return time.perf_counter(), server, usage.busy_seconds(), time.process_time()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()


def value_of(measure: Measure, answers: Sequence[dict[str, Any]], latencies_us: Sequence[float]) -> float:
    """Return a round's figure: rates add up over processes, each over its own seconds."""
    if measure.kind == "latency":
        if not latencies_us:
            raise WorkerError("no operation ended within the round: make it longer (--seconds)")
        ordered = sorted(latencies_us)
        rank = min(len(ordered) - 1, round(measure.percentile / 100 * (len(ordered) - 1)))
        return ordered[rank] / (1000 if measure.unit == "ms" else 1)
    amount, scale = ("nbytes", 1e6) if measure.unit == "MB/s" else ("items", 1.0)
    return sum(float(answer[amount]) / float(answer["seconds"]) / scale for answer in answers)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def worker_command(subject: Subject, role: int, number: int, address: str) -> list[str]:
    """Return the command of our worker: one process of a subject's role."""
    return [sys.executable, "-m", "benchmarks.worker", subject.name, str(role), str(number), address]


def table_flags(subject: Subject) -> list[str]:
    """Return the arguments of our server for a subject's tables."""
    return [word for table in subject.tables for word in ("--table", table)]


@contextmanager
def ours(subject: Subject) -> Iterator[Contestant]:
    """Run our server and the subject's workers, prepared and ready."""
    with Contestant("reverb_async", subject.measure) as contestant:
        address = "none"
        if subject.tables:
            address, contestant.server_pid = contestant.stack.enter_context(serving(table_flags(subject)))
        for at, role in enumerate(subject.roles):
            for number in range(role.processes):
                contestant.add(Worker(worker_command(subject, at, number, address), counted=role.counted))
        yield contestant
