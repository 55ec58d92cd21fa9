"""A server goes away and another one comes to its port: clients wait, then go on with what the new one has."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator

import numpy as np
import pytest
from reliability_rig import Proxy, num_connections, until_nothing_waits_or_is_held, usage_of

import reverb_async as ra
from reverb_async.testing import until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tables() -> list[ra.Table]:
    return [ra.Table.queue("q", 100), ra.Table("t", max_size=1000, sampler=ra.selectors.Prioritized(1.0))]


# -- in this process --------------------------------------------------------------------------------------------------


async def test_a_client_made_before_its_server_waits_for_it() -> None:
    port = free_port()
    async with ra.Client(f"127.0.0.1:{port}") as client:
        inserting = asyncio.create_task(client.insert({"x": 1}, {"t": 1.0}))
        sampling = asyncio.create_task(client.sample_one("t"))
        describing = asyncio.create_task(client.server_info(timeout=None))
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in (inserting, sampling, describing))
        async with ra.Server(tables(), port=port):
            await asyncio.wait_for(inserting, 10)
            assert (await asyncio.wait_for(sampling, 10)).data["x"] == 1
            assert set(await asyncio.wait_for(describing, 10)) == {"q", "t"}


async def test_closing_a_server_fails_waiting_calls_at_once_and_the_next_ones_find_its_successor() -> None:
    async with ra.Server(tables()) as server, ra.Client(server.address) as client:
        port = server.port
        waiting = [
            asyncio.create_task(client.sample_one("q")),
            asyncio.create_task(client.sample_batch("t", 2)),
            asyncio.create_task(anext(client.sample("q"))),
        ]
        await until(lambda: len(server.tables["q"].info.waiters) and len(server.tables["t"].info.waiters) > 0)
        started = time.monotonic()
        await server.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, ra.TableClosed) for outcome in outcomes), outcomes
        assert time.monotonic() - started < 3
        coming = asyncio.create_task(client.insert({"x": 3}, {"t": 1.0}))
        await asyncio.sleep(0.05)
        async with ra.Server(tables(), port=port) as successor:
            await asyncio.wait_for(coming, 10)
            assert (await client.sample_one("t", timeout=10)).data["x"] == 3
            assert (await client.mutate_priorities("t", {1: 1.0})).unknown == 1
            assert (await client.server_info())["t"].current_size == 1
            await client.close()
            await until_nothing_waits_or_is_held(successor)


async def test_streams_that_are_open_go_on_with_the_successor() -> None:
    """Items that the old server confirmed went with it; those it had not confirmed enter the new one once."""
    server = ra.Server(tables())
    await server.start()
    port = server.port
    client = ra.Client(server.address)
    seen: set[int] = set()
    confirmed: list[int] = []

    async def write() -> None:
        for number in range(1000):
            while True:
                try:
                    await client.insert({"x": np.int64(number)}, {"t": 1.0})
                    break
                except ra.TableClosed:  # It was not inserted, and may be tried again.
                    await asyncio.sleep(0.01)
            confirmed.append(number)

    async def learn() -> None:
        while True:
            try:
                async for batch in client.sample_batches("t", 8):
                    seen.update(batch.data["x"].tolist())
                    await batch.update_priorities(np.ones(8))
                    await asyncio.sleep(0)
            except ra.TableClosed:
                await asyncio.sleep(0.01)

    working = [asyncio.create_task(write()), asyncio.create_task(learn())]
    for _ in range(3):
        target = len(confirmed) + 200
        await until(lambda target=target: len(confirmed) >= target)
        await server.close()
        lost_before = len(confirmed)
        server = ra.Server(tables(), port=port)
        await server.start()
        await until(lambda lost_before=lost_before: any(number >= lost_before for number in seen))
    await working[0]
    assert confirmed == list(range(1000))
    info = server.tables["t"].info
    stored = info.rate_limiter_info.insert_stats.completed
    async with server.client() as local:
        batch = await local.sample_batch("t", 4000)
    assert stored <= 1000 - lost_before + 1
    assert set(batch.data["x"].tolist()) <= set(range(lost_before - 1, 1000))
    working[1].cancel()
    await asyncio.wait(working)
    await client.close()
    await until_nothing_waits_or_is_held(server)
    await server.close()


async def test_a_writer_brings_what_was_not_confirmed_to_the_successor() -> None:
    async with (
        ra.Server(tables()) as server,
        Proxy(server.address) as proxy,
        ra.Client(proxy.address) as client,
        client.trajectory_writer(3) as writer,
    ):
        for number in range(50):
            writer.append({"x": np.int64(number)})
            await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][-1]})
        await writer.flush()
        proxy.refusing = True
        proxy.cut()
        for number in range(50, 100):
            writer.append({"x": np.int64(number)})
            await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][-2:]})
        async with ra.Server(tables()) as successor:
            proxy._target = ("127.0.0.1", successor.port or 0)
            proxy.refusing = False
            await writer.flush(timeout=10)
            async with successor.client() as local:
                batch = await local.sample_batch("t", 2000)
            assert successor.tables["t"].info.current_size == 50
            assert set(batch.data["x"][:, 1].tolist()) == set(range(50, 100))
            await writer.close()
            await client.close()


@pytest.mark.parametrize("down_s", [0.5, pytest.param(10.0, marks=pytest.mark.soak)])
async def test_within_3_s_of_its_servers_return_a_client_works_again_and_tells_what_was_lost(down_s: float) -> None:
    port = free_port()
    first = ra.Server(tables(), port=port)
    await first.start()
    async with ra.Client(f"127.0.0.1:{port}") as client:
        events = client.events()
        writer = client.trajectory_writer(1)

        async def write(count: int) -> None:
            for number in range(count):
                writer.append({"x": np.int64(number)})
                await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][-1]})

        await write(120)
        await writer.flush()
        await client.insert_batch({"x": np.arange(7)}, {"t": 1.0})
        await first.close()
        await write(30)
        coming = asyncio.create_task(client.insert({"x": np.int64(1)}, {"t": 1.0}))
        await asyncio.sleep(down_s)
        async with ra.Server(tables(), port=port) as second:
            back = time.monotonic()
            await asyncio.gather(writer.flush(), coming)
            assert time.monotonic() - back < 3
            assert second.tables["t"].info.current_size == 31
            await writer.close()
            await client.close()
    told = [event async for event in events if not isinstance(event, ra.events.Blocked)]
    connected, lost, met_again, *losses = told
    assert isinstance(connected, ra.events.Connected)
    assert isinstance(lost, ra.events.Disconnected)
    assert isinstance(met_again, ra.events.Reconnected)
    assert met_again.epoch_changed
    assert down_s - 0.1 < met_again.downtime_s < down_s + 3
    assert {(loss.writer.partition(" ")[0], loss.count) for loss in losses} == {("trajectory", 120), ("insert()", 7)}


async def test_unavailable_names_address_cause_and_tries_after_connect_timeout() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with ra.Client(address, connect_timeout=0.3) as client:
        calls = {
            "insert": lambda: client.insert({"x": 1}, {"t": 1.0}),
            "insert_batch": lambda: client.insert_batch({"x": np.arange(2)}, {"t": 1.0}),
            "sample_one": lambda: client.sample_one("t"),
            "sample_batch": lambda: client.sample_batch("t", 2),
            "anext": lambda: anext(client.sample("t")),
            "mutate": lambda: client.mutate_priorities("t", {1: 1.0}),
            "reset": lambda: client.reset("t"),
            "server_info": lambda: client.server_info(),
            "checkpoint": lambda: client.checkpoint(),
            "writer": lambda: client.trajectory_writer(1).__aenter__(),
        }
        started = time.monotonic()
        outcomes = await asyncio.gather(*(call() for call in calls.values()), return_exceptions=True)
        assert time.monotonic() - started < 1  # All at the same time: none waits for the others' patience to end.
        for name, outcome in zip(calls, outcomes, strict=True):
            assert isinstance(outcome, ra.Unavailable), (name, outcome)
            assert address in str(outcome), name
            assert re.search(r"[2-9]\d* tries in 0\.\d s", str(outcome)), (name, str(outcome))
            assert "Connect call failed" in str(outcome), str(outcome)


async def test_at_whatever_moment_a_server_dies_calls_fail_with_errors_of_this_package() -> None:
    async with ra.Server(tables()) as server:
        for turns in range(0, 60, 4):
            async with Proxy(server.address) as proxy, ra.Client(proxy.address, connect_timeout=0.02) as client:
                if turns % 8:
                    await client.insert({"x": 0}, {"t": 1.0})

                def calls(client: ra.Client = client) -> list[Awaitable[object]]:
                    return [
                        client.insert({"x": 1}, {"t": 1.0}),
                        client.insert_batch({"x": np.arange(3)}, {"t": 1.0}),
                        client.sample_one("t"),
                        client.sample_batch("t", 2, timeout=0.5),
                        client.mutate_priorities("t", {1: 1.0}),
                        client.server_info(),
                        client.reset("q"),
                    ]

                running = [asyncio.ensure_future(call) for call in calls()]
                for _ in range(turns):
                    await asyncio.sleep(0)
                proxy.refusing = True
                proxy.cut()
                outcomes = await asyncio.gather(*running, *calls(), return_exceptions=True)
                raised = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
                assert len(raised) >= 7
                assert all(isinstance(error, ra.Unavailable | ra.DeadlineExceeded) for error in raised), raised


async def test_after_patience_ended_the_client_still_works_when_the_server_comes() -> None:
    port = free_port()
    async with ra.Client(f"127.0.0.1:{port}", connect_timeout=0.1) as client:
        iterator = client.sample("t")
        for _ in range(2):
            with pytest.raises(ra.Unavailable):
                await client.insert({"x": 1}, {"t": 1.0})
            with pytest.raises(ra.Unavailable):
                await anext(iterator)
        async with ra.Server(tables(), port=port):
            await client.insert({"x": 1}, {"t": 1.0})
            assert (await anext(iterator)).data["x"] == 1
            await iterator.aclose()


# -- clients that die -------------------------------------------------------------------------------------------------

DOOMED = """
import asyncio, sys
import numpy as np
import reverb_async as ra

async def main():
    client = ra.Client(sys.argv[1])
    await client.insert({"x": 1}, {"t": 1.0})
    batches = client.sample_batches("q", 2, prefetch=4)
    await anext(batches)
    writer = client.trajectory_writer(100)
    for step in range(100):
        writer.append({"x": np.ones(1000)})
        await writer.create_item("full", 1.0, trajectory={"x": writer.history["x"][-1]}) if step < 10 else None
    waiting = [asyncio.create_task(client.insert_batch({"x": np.arange(50)}, {"full": 1.0})),
               asyncio.create_task(client.sample_batch("empty", 3))]
    await asyncio.sleep(0.1)
    print("ready", flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


def start_doomed(address: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", DOOMED, address], stdout=subprocess.PIPE, text=True)


async def test_clients_that_are_killed_leave_nothing_and_their_queue_items_go_back() -> None:
    full = ra.Table.queue("full", 1)
    async with ra.Server([*tables(), full, ra.Table("empty", max_size=9)]) as server, server.client() as local:
        await local.insert({"x": 0}, {"full": 1.0})
        await local.insert_batch({"x": np.arange(30)}, {"q": 1.0})
        doomed = [start_doomed(server.address) for _ in range(2)]
        for one in doomed:
            assert one.stdout is not None
            assert await asyncio.to_thread(one.stdout.readline) == "ready\n"
        assert num_connections(server) >= 4
        assert usage_of(server).staged_rows > 0
        for one in doomed:
            one.kill()
            await asyncio.to_thread(one.communicate)
        await until(lambda: num_connections(server) == 0, timeout=2)
        await until_nothing_waits_or_is_held(server, timeout=2)
        assert server.tables["q"].info.current_size >= 26  # Two each may have been acknowledged.
        numbers = (await local.sample_batch("q", server.tables["q"].info.current_size)).data["x"].tolist()
        assert numbers == sorted(numbers)
        assert server.tables["full"].info.current_size == 1


async def test_two_hundred_connections_with_a_blocked_sampler_each_cost_nobody_anything() -> None:
    async with ra.Server(tables()) as server:
        clients = [ra.Client(server.address) for _ in range(200)]
        blocked = [asyncio.create_task(client.sample_one("t")) for client in clients]
        await until(lambda: sum(waiter.count for waiter in server.tables["t"].info.waiters) == 200)
        async with ra.Client(server.address) as client:
            for _ in range(5):
                started = time.monotonic()
                await client.insert({"x": 1}, {"q": 1.0}, timeout=5)
                await client.server_info()
                assert time.monotonic() - started < 1
            await client.insert({"x": 5}, {"t": 1.0})
            assert all(sample.data["x"] == 5 for sample in await asyncio.gather(*blocked))
        for client in clients:
            await client.close()
        await until(lambda: num_connections(server) == 0)
        await until_nothing_waits_or_is_held(server)


# -- as a process of its own ------------------------------------------------------------------------------------------


class Process:
    """`python -m reverb_async.serve` on a port of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "reverb_async.serve", "--port", str(self.port), "--table", "t:max_size=100000"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert "serving" in self.process.stdout.readline()

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture
def process() -> Iterator[Process]:
    running = Process(free_port())
    running.start()
    yield running
    running.kill()


async def test_killed_and_started_again_the_server_is_found_and_nothing_hangs(process: Process) -> None:
    async with ra.Client(f"127.0.0.1:{process.port}") as client:
        confirmed: list[int] = []
        seen: list[int] = []

        async def write() -> None:
            for number in range(10**9):
                await client.insert({"x": np.int64(number)}, {"t": 1.0})
                confirmed.append(number)

        async def write_trajectories() -> None:
            async with client.trajectory_writer(2) as writer:
                for number in range(10**9):
                    writer.append({"x": np.int64(-number)})
                    await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][-1]})

        async def learn() -> None:
            async with client.sample_batches("t", 16) as batches:
                async for batch in batches:
                    seen.extend(batch.data["x"].tolist())
                    await batch.update_priorities(np.ones(16))

        working = [asyncio.create_task(work()) for work in (write, write_trajectories, learn)]
        for _ in range(2):
            progress = len(confirmed) + 100, len(seen) + 100
            await until(lambda progress=progress: len(confirmed) >= progress[0] and len(seen) >= progress[1])
            await asyncio.to_thread(process.kill)
            await asyncio.sleep(0.2)
            assert not any(work.done() for work in working), working
            await asyncio.to_thread(process.start)
            last = len(confirmed)
            started = time.monotonic()
            await until(lambda last=last: len(confirmed) > last and any(number > last for number in seen))
            assert time.monotonic() - started < 4  # Backoff is 2 s at most.
        assert not any(work.done() for work in working), working
        for work in working:
            work.cancel()
        await asyncio.wait(working)


async def test_calls_to_a_frozen_server_end_in_time(process: Process) -> None:
    async with ra.Client(f"127.0.0.1:{process.port}") as client:
        await client.insert({"x": 1}, {"t": 1.0})
        process.signal(signal.SIGSTOP)
        try:
            calls = [
                client.server_info(timeout=0.5),
                client.mutate_priorities("t", {1: 1.0}, timeout=0.5),
                client.sample_one("t", timeout=0.5),
                client.insert({"x": 2}, {"t": 1.0}, timeout=0.5),
                client.reset("t", timeout=0.5),
            ]
            started = time.monotonic()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - started < 6
            assert all(isinstance(outcome, ra.DeadlineExceeded) for outcome in outcomes), outcomes
            assert all(f"127.0.0.1:{process.port}" in str(outcome) for outcome in outcomes), outcomes
        finally:
            process.signal(signal.SIGCONT)
        assert "t" in await client.server_info()
        await client.insert({"x": 3}, {"t": 1.0}, timeout=10)
