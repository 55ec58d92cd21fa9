"""A worker's side of its rounds, without asyncio and without `reverb_async`: peers' workers use it too."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def say(answer: dict[str, Any]) -> None:
    """Print a line for the harness."""
    print(json.dumps(answer), flush=True)


def answer(
    seconds: float, cpu: float, items: int, nbytes: int, latencies_us: list[float], details: dict[str, Any]
) -> dict[str, Any]:
    """Return what a worker says at the end of a round."""
    return {
        "seconds": seconds,
        "cpu": cpu,
        "items": items,
        "nbytes": nbytes,
        "latencies_us": [round(us, 1) for us in latencies_us],
        "details": details,
    }


def work_in_rounds(work: Callable[[float], tuple[int, int, list[float]]], ready: dict[str, Any]) -> None:
    """Say that we are ready, then do a round per line of standard input, until it ends.

    Args:
        work: works for so many seconds; returns items, bytes and latencies in microseconds.
        ready: what to say before the first round.
    """
    say({"ready": True, **ready})
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        items, nbytes, latencies_us = work(float(json.loads(line)["seconds"]))
        seconds = time.perf_counter() - started
        say(answer(seconds, time.process_time() - cpu, items, nbytes, latencies_us, {}))
