"""A network that can be cut, and a look behind the curtain: what a server still holds when everybody has left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reverb_async as ra
from reverb_async.core.slots import FREE, LIVE
from reverb_async.core.storage import RowStore, StoreUsage
from reverb_async.core.storage.holds import REFERENCES
from reverb_async.service.service import ReplayService
from reverb_async.testing import until

in_process_and_tcp = pytest.mark.parametrize("way", ["in-process", "tcp"])


@asynccontextmanager
async def serving(tables: Sequence[ra.Table], way: str) -> AsyncIterator[tuple[ra.Server, ra.Client]]:
    """Give a server and a client of it, over TCP or in process."""
    async with ra.Server(tables) as server, another_client(server, way) as client:
        yield server, client


def another_client(server: ra.Server, way: str, **options: Any) -> ra.Client:
    return server.client() if way == "in-process" else ra.Client(server.address, **options)


# -- looking behind the curtain ---------------------------------------------------------------------------------------


def service_of(server: ra.Server) -> ReplayService:
    return server._service


def usage_of(server: ra.Server) -> StoreUsage:
    return service_of(server).replay.storage.usage()


def num_connections(server: ra.Server) -> int:
    return sum(listening.num_connections for listening in server._listening)


def num_streams(server: ra.Server) -> int:
    """Streams that are being served, over whatever way."""
    handlers = server._handlers
    over_grpc = 0 if handlers is None else len(handlers._streams)
    return over_grpc + sum(len(transport._streams) for transport in server._transports)


def num_waiters(server: ra.Server) -> int:
    return sum(waiter.count for table in server.tables.values() for waiter in table.info.waiters)


def references(server: ra.Server) -> dict[RowStore, NDArray[np.int64]]:
    """Count from the items how often each row of each store is referred to."""
    counted: dict[RowStore, list[NDArray[np.int64]]] = defaultdict(list)
    for table in server.tables.values():
        slots = table.state.slots
        used = np.flatnonzero(slots.state[: slots.high_water] != FREE)
        for layout_id, positions in slots.by_layout(used):
            layout = slots.layouts[layout_id]
            assert layout is not None
            for view, store in enumerate(layout.stores):
                chosen = used if positions is None else used[positions]
                counted[store].append(slots.runs(view, chosen).rows())
    return {store: np.bincount(np.concatenate(rows)) for store, rows in counted.items()}


def check_counts(server: ra.Server) -> None:
    """Every number that is kept equals one counted anew from the items."""
    counted = references(server)
    for store in list(service_of(server).replay.storage._groups.values()):
        kept = store._holds.counts[: store._extents.reached_rows] & REFERENCES
        counts = counted.get(store, np.zeros(0, np.int64))
        np.testing.assert_array_equal(kept[: len(counts)], counts)
        assert not kept[len(counts) :].any()
    for table in server.tables.values():
        state = table.state
        live = int(np.count_nonzero(state.slots.state[: state.slots.high_water] == LIVE))
        assert live == state.size == state.limiter.size, (table.name, live, state.size, state.limiter.size)
        assert state.limiter.inserts - state.limiter.deletes == state.size
        assert state.slots.num_free + int(np.count_nonzero(state.slots.state)) == state.slots.capacity


def check_nothing_waits_or_is_held(server: ra.Server) -> None:
    """No waiter, no pin, no row that no item shows."""
    usage = usage_of(server)
    assert num_waiters(server) == 0, [table.info.waiters for table in server.tables.values()]
    assert (usage.staged_rows, usage.pinned_rows) == (0, 0), usage
    assert usage.live_rows == sum(int(np.count_nonzero(counts)) for counts in references(server).values())
    check_counts(server)


async def until_nothing_waits_or_is_held(server: ra.Server, timeout: float = 10.0) -> None:
    """Wait until what was given up has been taken down, then check that all of it was."""

    def is_quiet() -> bool:
        usage = usage_of(server)
        return num_waiters(server) == 0 and usage.staged_rows == usage.pinned_rows == 0

    with contextlib.suppress(TimeoutError):  # The check says what is left.
        await until(is_quiet, timeout)
    check_nothing_waits_or_is_held(server)


class Baseline:
    """What there was before; `settle` waits until nothing more is left."""

    def __init__(self, server: ra.Server) -> None:
        self._server = server
        self._tasks = _tasks()
        self._streams = num_streams(server)
        self._connections = num_connections(server)

    async def settle(self, timeout: float = 10.0, *, tasks: bool = True) -> None:
        """Check that tasks, streams and connections are those of before."""
        gc.collect()  # Iterators that were left bare end when they are collected.
        with contextlib.suppress(TimeoutError):
            await until(lambda: not self._surplus(tasks), timeout)
        assert not self._surplus(tasks)

    def _surplus(self, tasks: bool) -> list[Any]:
        surplus: list[Any] = [task for task in _tasks() - self._tasks] if tasks else []
        streams, connections = num_streams(self._server), num_connections(self._server)
        if streams > self._streams:
            surplus.append(f"{streams} streams, before {self._streams}")
        if connections > self._connections:
            surplus.append(f"{connections} connections, before {self._connections}")
        return surplus


def _tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if not task.done()}


# -- cancelling -------------------------------------------------------------------------------------------------------


async def cancel_after_turns(coro: Any, turns: int | None) -> Any:
    """Run a coroutine for some turns of the loop (None: to its end), then cancel it; return what came of it."""
    task = asyncio.ensure_future(coro)
    if turns is None:
        await asyncio.wait({task})
    for _ in range(turns or 0):
        if task.done():
            break
        await asyncio.sleep(0)
    task.cancel()
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    return outcome


# -- a network that can be cut ----------------------------------------------------------------------------------------


class Proxy:
    """Stands between clients and a server on TCP.

    Attributes:
        num_cut: connections that were cut.
        deaf: what the server says is swallowed: it applies what it is sent, and nobody learns of it.
        refusing: new connections are closed at once.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listening: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._cutting: asyncio.Task[None] | None = None
        self.num_cut = 0
        self.deaf = False
        self.refusing = False

    async def __aenter__(self) -> Proxy:
        self._listening = await asyncio.start_server(self._link, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.stop_cutting()
        assert self._listening is not None
        self._listening.close()
        while self._links:
            self.cut()
            await asyncio.wait(list(self._links))

    @property
    def address(self) -> str:
        assert self._listening is not None
        return f"127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"

    @property
    def num_links(self) -> int:
        return len(self._links)

    def cut(self) -> None:
        """Reset every connection at both ends, now."""
        for writers in self._links.values():
            self.num_cut += 1
            for writer in writers:
                writer.transport.abort()

    def cut_every(self, least: float, most: float, seed: int = 0) -> None:
        """Cut all connections again and again, after random times."""
        rng = random.Random(seed)

        async def cut_again() -> None:
            while True:
                await asyncio.sleep(rng.uniform(least, most))
                self.cut()

        self._cutting = asyncio.create_task(cut_again())

    def stop_cutting(self) -> None:
        if self._cutting is not None:
            self._cutting.cancel()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = self._links[task] = [writer]
        try:
            if self.refusing:
                return
            with contextlib.suppress(OSError):
                their_reader, their_writer = await asyncio.open_connection(*self._target)
                writers.append(their_writer)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pump(reader, their_writer, writers, answers=False))
                    tasks.create_task(self._pump(their_reader, writer, writers, answers=True))
        finally:
            for one in writers:
                one.transport.abort()
            del self._links[task]

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        writers: list[asyncio.StreamWriter],
        *,
        answers: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if not (answers and self.deaf):
                    writer.write(data)
                    await writer.drain()
        for one in writers:
            one.transport.abort()
