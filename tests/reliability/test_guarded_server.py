"""What the guards of connections are worth to a whole server: resumed learners, and a thousand peers beside."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.testing import until
from reverb_async.wire.http2 import Guards

SERVER = """
    import asyncio, json, re, sys
    from pathlib import Path
    import reverb_async as ra
    from reverb_async.wire.http2 import Guards

    async def main():
        server = ra.Server([ra.Table("t", max_size=1000)])
        server._guards = Guards(first_request_timeout=1.0)
        async with server:
            loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
            print(server.port, flush=True)
            while await reader.readline():
                # Not ru_maxrss, which begins with what the parent process had.
                peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
                print(json.dumps({"peak": peak, **server.stats.snapshot()}), flush=True)

    asyncio.run(main())
"""

LEARNER = """
    import asyncio, sys
    import numpy as np
    import reverb_async as ra

    async def main():
        async with ra.Client(sys.argv[1], shared_memory=False) as client:
            async with client.trajectory_writer(num_keep_alive_refs=1) as writer:
                number = 0
                async for batch in client.sample_batches("frames", 16, prefetch=4):
                    assert batch.data["x"].shape == (16, 100_000)
                    writer.append({"n": np.int64(number)})
                    await writer.create_item("written", trajectory={"n": writer.history["n"][-1]})
                    print(number, flush=True)
                    number += 1
                    if number == 60:
                        break

    asyncio.run(main())
"""


@asynccontextmanager
async def program(text, *arguments):
    command = [sys.executable, "-c", textwrap.dedent(text), *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP")
async def test_a_learner_that_was_stopped_for_too_long_resumes_without_error_loss_or_double():
    """Its connections are dropped while it is stopped, and it does not notice."""
    tables = [ra.Table("frames", max_size=100), ra.Table.queue("written", 1000)]
    server = ra.Server(tables)
    server._guards = Guards(keepalive_interval=0.1, silence_timeout=0.4, send_timeout=0.4)
    async with server, server.client() as local:
        await local.insert_batch({"x": np.zeros((50, 100_000), np.float32)}, {"frames": 1.0})
        async with program(LEARNER, server.address) as learner:
            for _ in range(5):
                await learner.stdout.readline()
            os.kill(learner.pid, signal.SIGSTOP)
            await until(lambda: sum(server.stats.dropped.values()) >= 2)
            os.kill(learner.pid, signal.SIGCONT)
            async with asyncio.timeout(60):
                rest = (await learner.stdout.read()).split()
                assert await learner.wait() == 0
            assert rest[-1] == b"59"
        assert set(server.stats.dropped) <= {"silent", "reads nothing"}
        assert server.tables["written"].info.current_size == 60
        written = await local.sample_batch("written", 60)
        assert written.data["n"].tolist() == list(range(60))


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="needs to know what was acknowledged")
async def test_a_learner_that_is_blocked_for_ninety_seconds_keeps_its_connections_for_small_data():
    server = ra.Server([ra.Table("frames", max_size=100), ra.Table.queue("written", 1000)])
    async with server, server.client() as local:
        await local.insert_batch({"x": np.zeros((50, 100_000), np.float32)}, {"frames": 1.0})
        async with program(LEARNER, server.address) as learner:
            for _ in range(5):
                await learner.stdout.readline()
            os.kill(learner.pid, signal.SIGSTOP)
            await asyncio.sleep(95)
            dropped = dict(server.stats.dropped)
            os.kill(learner.pid, signal.SIGCONT)
            rest = (await learner.stdout.read()).split()
            assert await learner.wait() == 0
        assert rest[-1] == b"59"
        assert set(dropped) <= {"reads nothing"}, "what is silent and takes nothing is dropped, what is silent is not"
        written = await local.sample_batch("written", 60)
        assert written.data["n"].tolist() == list(range(60))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process's own peak of memory")
@pytest.mark.parametrize(("num_silent", "num_clients"), [(150, 15), pytest.param(900, 100, marks=pytest.mark.soak)])
async def test_many_connections_cost_little_and_the_silent_ones_are_dropped(num_silent, num_clients):
    async with program(SERVER) as server:
        port = int(await server.stdout.readline())

        async def stats():
            server.stdin.write(b"\n")
            return json.loads(await server.stdout.readline())

        loop = asyncio.get_running_loop()
        before = await stats()
        silent = [socket.socket() for _ in range(num_silent)]
        clients = [ra.Client(f"127.0.0.1:{port}", shared_memory=False) for _ in range(num_clients)]
        try:
            for sock in silent:
                sock.setblocking(False)
                await loop.sock_connect(sock, ("127.0.0.1", port))
            await asyncio.gather(*[client.server_info() for client in clients])
            full = await stats()
            assert full["accepted"] >= num_silent + num_clients
            assert full["peak"] < 150e6
            assert full["peak"] - before["peak"] < 80e6
            took = []
            for _ in range(100):
                begun = time.perf_counter()
                await clients[0].server_info()
                took.append(time.perf_counter() - begun)
            async with asyncio.timeout(30):
                while (now := await stats())["dropped"] != {"no request in time": num_silent}:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert now["open"] <= full["accepted"] - num_silent
            assert np.median(took) < 0.02
            await asyncio.gather(*[client.server_info() for client in clients])
        finally:
            for client in clients:
                await client.close()
            for sock in silent:
                sock.close()
