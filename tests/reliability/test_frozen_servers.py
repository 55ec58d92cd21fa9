"""A server that is stopped in its tracks (SIGSTOP), or behind a network that swallows everything."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest
from reliability_rig import Proxy

import reverb_async as ra
from reverb_async.client.events import Disconnected, Reconnected

SILENCE_S = 0.8


@pytest.fixture
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("transport", "shared_channels"):
        monkeypatch.setattr(f"reverb_async.wire.{module}.SILENCE_S", SILENCE_S)


@pytest.fixture
def frozen() -> Iterator[Callable[[int], str]]:
    """Return what sends a signal to a server program; called with 0 it returns its address."""
    command = [sys.executable, "-m", "reverb_async.serve", "--port", "0", "--table", "t:max_size=100000"]
    process = subprocess.Popen([*command, "--table", "empty"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().rpartition(" on ")[2].partition(";")[0]

    def signalled(number: int) -> str:
        os.kill(process.pid, number)
        return address

    yield signalled
    process.kill()
    process.communicate()


def calls_without_timeout(client: ra.Client) -> dict[str, Awaitable[object]]:
    return {
        "insert": client.insert({"x": 2}, {"t": 1.0}),
        "insert_batch": client.insert_batch({"x": np.arange(3)}, {"t": 1.0}),
        "sample_one": client.sample_one("t"),
        "sample_batch": client.sample_batch("empty", 2),
        "anext": anext(client.sample("t")),
        "mutate": client.mutate_priorities("t", {1: 1.0}, timeout=None),
        "reset": client.reset("t", timeout=None),
        "server_info": client.server_info(timeout=None),
    }


async def writing(client: ra.Client) -> tuple[ra.TrajectoryWriter, Callable[[], Awaitable[None]]]:
    writer = client.trajectory_writer(1)
    await writer.__aenter__()

    async def write() -> None:
        writer.append({"x": 1})
        await writer.create_item("t", 1.0, trajectory={"x": writer.history["x"][-1]})
        await writer.flush()

    await write()
    return writer, write


async def outcomes_of_all(client: ra.Client, write: Callable[[], Awaitable[None]]) -> dict[str, object]:
    calls = {**calls_without_timeout(client), "writer": write()}
    return dict(zip(calls, await asyncio.gather(*calls.values(), return_exceptions=True), strict=True))


async def check_calls_end(client: ra.Client, freeze: Callable[[], object], thaw: Callable[[], object], silence: float):
    """Every call ends as `Unavailable` when the silence was long enough; afterwards everything works again."""
    await client.insert({"x": 1}, {"t": 1.0})
    events = client.events()
    writer, write = await writing(client)
    freeze()
    started = time.monotonic()
    outcomes = await outcomes_of_all(client, write)
    assert time.monotonic() - started < 1.25 * silence + 0.5
    for name, outcome in outcomes.items():
        assert type(outcome) is ra.Unavailable, (name, outcome)
        assert "nothing was heard of it for" in str(outcome), (name, outcome)
    started = time.monotonic()
    with pytest.raises(ra.Unavailable):  # It still accepts connections, and says nothing.
        await client.server_info(timeout=None)
    assert time.monotonic() - started < 1.25 * silence + 0.5
    thaw()
    async with asyncio.timeout(5):
        assert "t" in await client.server_info()
        await client.insert({"x": 3}, {"t": 1.0})
        await write()
        await writer.close()
    assert isinstance(await anext(events), Disconnected)
    met_again = await anext(events)
    assert isinstance(met_again, Reconnected)
    assert not met_again.epoch_changed


async def test_calls_without_a_timeout_end_when_the_server_is_silent_for_too_long(short_silence, frozen) -> None:
    async with ra.Client(frozen(0)) as client:
        await check_calls_end(client, lambda: frozen(signal.SIGSTOP), lambda: frozen(signal.SIGCONT), SILENCE_S)


@pytest.mark.soak
async def test_calls_to_a_frozen_server_end_within_25_s(frozen) -> None:
    async with ra.Client(frozen(0)) as client:
        await check_calls_end(client, lambda: frozen(signal.SIGSTOP), lambda: frozen(signal.SIGCONT), 20.0)


async def test_calls_go_on_when_the_server_comes_back_in_time(short_silence, frozen) -> None:
    async with ra.Client(frozen(0)) as client:
        await client.insert({"x": 1}, {"t": 1.0})
        writer, write = await writing(client)
        frozen(signal.SIGSTOP)
        calls = {**calls_without_timeout(client), "writer": write()}
        for name in ("reset", "sample_batch"):  # would leave the others nothing to sample; waits in any case
            calls.pop(name).close()  # type: ignore[attr-defined]
        running = [asyncio.ensure_future(call) for call in calls.values()]
        await asyncio.sleep(0.6 * SILENCE_S)
        assert not any(call.done() for call in running)
        frozen(signal.SIGCONT)
        async with asyncio.timeout(5):
            await asyncio.gather(*running)
        await writer.close()


@pytest.mark.soak
async def test_a_client_that_waits_for_ever_waits_for_a_frozen_server_too(short_silence, frozen) -> None:
    async with ra.Client(frozen(0), connect_timeout=None) as client:
        await client.insert({"x": 1}, {"t": 1.0})
        frozen(signal.SIGSTOP)
        inserting = asyncio.create_task(client.insert({"x": 2}, {"t": 1.0}))
        asking = asyncio.create_task(client.server_info(timeout=None))
        await asyncio.sleep(1.6 * SILENCE_S)
        assert not inserting.done()
        assert not asking.done()
        frozen(signal.SIGCONT)
        async with asyncio.timeout(5):
            await inserting
            await asking


@pytest.mark.soak
async def test_a_network_that_swallows_everything_is_noticed(short_silence) -> None:
    async with (
        ra.Server([ra.Table("t", max_size=10), ra.Table("empty", max_size=10)]) as server,
        Proxy(server.address) as proxy,
        ra.Client(proxy.address) as client,
    ):

        def swallow(on: bool) -> None:
            proxy.deaf = on

        await check_calls_end(client, lambda: swallow(True), lambda: swallow(False), SILENCE_S)
