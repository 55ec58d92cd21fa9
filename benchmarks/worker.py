"""One process of a subject: ``python -m benchmarks.worker SUBJECT ROLE NUMBER ADDRESS``; see `Worker`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import Literal

import uvloop

import reverb_async as ra
from benchmarks.rounds import answer, say
from benchmarks.subject import Session
from benchmarks.subjects import ALL_SUBJECTS


async def work_in_rounds(name: str, role_at: int, number: int, address: str) -> None:
    """Prepare a role's work, then do a round of it per line of standard input, until it ends."""
    role = ALL_SUBJECTS[name].roles[role_at]
    loop = asyncio.get_running_loop()
    # The subjects that need no server make their own in this process and leave this client alone: it is lazy.
    where = "127.0.0.1:1" if address == "none" else address
    shared: Literal["auto", False] = "auto" if role.shared_memory else False
    async with ra.Client(where, shared_memory=shared) as client, AsyncExitStack() as stack:
        work = await role.prepare(Session(client, number, stack))
        say({"ready": True, "transport": client.transport})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            started, cpu = time.perf_counter(), time.process_time()
            tally = await work(float(json.loads(line)["seconds"]))
            seconds = time.perf_counter() - started
            spent = time.process_time() - cpu
            if role.shared_memory:
                tally.details["transport"] = client.transport
            say(answer(seconds, spent, tally.items, tally.nbytes, tally.latencies_us, tally.details))


def main() -> int:
    """Run."""
    name, role, number, address = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work_in_rounds(name, int(role), int(number), address))
    return 0


if __name__ == "__main__":
    sys.exit(main())
