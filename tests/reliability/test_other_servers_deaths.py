"""What ended, or held up, replay servers elsewhere, done to the server program as one would from outside."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import numpy as np
import pytest

import reverb_async as ra
from tests.compat.deepmind_rig import PREFIX, DeepMindClient, row_item, status


@dataclass
class Program:
    """`python -m reverb_async.serve`, and what it has logged once it was told to stop."""

    process: subprocess.Popen[str]
    address: str

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log


@pytest.fixture
def program() -> Iterator[Program]:
    command = [sys.executable, "-W", "error", "-m", "reverb_async.serve", "--port", "0", "--grace", "1"]
    command += ["--table", "t:sampler=prioritized,priority_exponent=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
    assert found is not None
    yield Program(process, found[0])
    process.kill()
    process.communicate()


async def check_honest(client: ra.Client) -> None:
    """An honest client gets on, within a second."""
    async with asyncio.timeout(1):
        await client.insert({"x": np.int64(1)}, {"t": 1.0})
        assert (await client.sample_one("t")).data["x"] == 1


def few_bytes(seed: int) -> list[bytes]:
    """Return bodies of 4 and 5 bytes: each first byte (any field and wire type) with random ones behind it."""
    rng = random.Random(seed)
    return [bytes([first]) + rng.randbytes(3 + first % 2) for first in range(256)] + [
        rng.choice([b"\x0a", b"\x12", b"\x1a"]) + rng.randbytes(rng.choice([3, 4])) for _ in range(256)
    ]


async def test_no_four_or_five_bytes_at_deepminds_door_end_a_server(program: Program) -> None:
    codes: set[str] = set()
    async with grpc.aio.insecure_channel(program.address) as channel, ra.Client(program.address) as honest:
        await check_honest(honest)
        for method in ("MutatePriorities", "Reset"):
            call = channel.unary_unary(PREFIX + method)

            async def throw(body: bytes, call: grpc.aio.UnaryUnaryMultiCallable = call) -> None:
                codes.add((await call(body, timeout=10).code()).name)

            bodies = few_bytes(seed=5)
            for start in range(0, len(bodies), 64):
                await asyncio.gather(*map(throw, bodies[start : start + 64]))
        await check_honest(honest)
        assert (await honest.server_info())["t"].current_size == 2
    assert "INVALID_ARGUMENT" in codes
    assert codes <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    returncode, log = program.stop()
    assert (returncode, "Traceback" in log, "ERROR" in log) == (0, False, False), log


async def test_a_priority_that_cannot_be_at_deepminds_door_stops_no_table(program: Program) -> None:
    async with grpc.aio.insecure_channel(program.address) as channel, ra.Client(program.address) as honest:
        door = DeepMindClient(channel)
        await door.insert(row_item(1, "t", np.int64(1)))
        for priority in (-1.0, math.nan, math.inf):
            stream = door.inserting()
            await stream.send(row_item(2, "t", np.int64(1), priority=priority))
            async with asyncio.timeout(1):  # The offender is told; it does not hang.
                assert (await status(stream.call))[0] == "INVALID_ARGUMENT"
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await door.mutate("t", {1: priority})
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            async with asyncio.timeout(1):
                samples = await door.sample("t", 4)
            assert {(sample.info.key, sample.info.priority) for sample in samples} == {(1, 1.0)}
        await honest.insert({"x": np.int64(1)}, {"t": 1.0}, timeout=1)
        await honest.sample_one("t", timeout=1)
        assert (await honest.server_info())["t"].current_size == 2


async def test_300_connections_that_send_garbage_harm_nobody(program: Program) -> None:
    rng = random.Random(3)
    host, _, port = program.address.rpartition(":")
    async with ra.Client(program.address) as honest:
        await check_honest(honest)
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                garbage = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
                with contextlib.suppress(ConnectionError):  # It may have been told to go away already.
                    garbage.sendall(rng.randbytes(rng.randrange(1, 4000)))
            await check_honest(honest)
        await check_honest(honest)
        if os.path.isdir(files := f"/proc/{program.process.pid}/fd"):  # noqa: ASYNC240
            async with asyncio.timeout(5):
                while len(os.listdir(files)) > 40:  # noqa: ASYNC110  # the kernel tells nobody
                    await asyncio.sleep(0.02)
    returncode, log = program.stop()
    assert (returncode, "Traceback" in log, "ERROR" in log) == (0, False, False), log
