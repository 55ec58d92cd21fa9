"""Servers that are killed within this process, by a clock and a disk of the test: same seed, same history."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from checkpoint_rig import Stopped, StoppingDisk

import reverb_async as ra
from reverb_async.checkpoint import checkpointer as checkpointers
from reverb_async.checkpoint import saving
from reverb_async.client.transport import StreamKind
from reverb_async.core.info import ServerStatus, TableInfo
from reverb_async.inprocess import InProcessTransport
from reverb_async.protocol.hello import Hello
from reverb_async.protocol.message import Duplex


class _NoWaiting(selectors.SelectSelector):
    """Instead of waiting, moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everybody waits, and nothing is left that could wake them")
        self.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in which time passes only while nothing can run."""

    def __init__(self) -> None:
        self._clock = _NoWaiting()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


class SlowThread(Executor):
    """Runs its jobs on the loop, each a while after the one before: what happens meanwhile is always the same."""

    job_s = 0.0

    def __init__(self, *_: object) -> None:
        self._free_at = 0.0

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time()) + self.job_s

        def run() -> None:
            try:
                future.set_result(work(*args, **named))
            except BaseException as error:
                future.set_exception(error)

        loop.call_at(self._free_at, run)
        return future


def use_slow_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checkpoints be written by `SlowThread`, in small blocks, so that much can happen between two of them."""
    monkeypatch.setattr(checkpointers, "ThreadPoolExecutor", SlowThread)
    monkeypatch.setattr(saving, "BLOCK_SLOTS", 3)
    monkeypatch.setattr(saving, "RECORD_BYTES", 32)


class Killed:
    """A server that can be killed, and what a client needs to find its successor.

    Attributes:
        server: the one that runs; None: none does.
    """

    def __init__(self, path: Path, tables: Callable[[], list[ra.Table]]) -> None:
        self.server: ra.Server | None = None
        self._path = path
        self._tables = tables

    async def start(self, *, power_cut: bool) -> ra.Checkpointer:
        """Start a server from what is on disk, which nobody can reach yet; `serve` opens the door."""
        self.checkpointer = ra.Checkpointer(self._path, keep=2)
        self.disk = StoppingDisk(1 << 60, power_cut=power_cut)
        self.checkpointer._directory.files = self.disk
        server = ra.Server(self._tables(), port=None, checkpointer=self.checkpointer)
        await server.start()
        self._starting = server
        return self.checkpointer

    async def fail_to_start(self, calls: int, *, power_cut: bool) -> None:
        """Start a server that is killed before it serves, or, at the latest, after so many calls of the disk."""
        disk = StoppingDisk(calls, power_cut=power_cut)
        checkpointer = ra.Checkpointer(self._path, keep=2)
        checkpointer._directory.files = disk
        server = ra.Server(self._tables(), port=None, checkpointer=checkpointer)
        with contextlib.suppress(Stopped):
            await server.start()
            self.server, self.checkpointer, self.disk = server, checkpointer, disk
            self.kill(answers_arrive=True)

    @property
    def replay(self) -> Any:
        """What the server holds."""
        return self._starting._replay

    def serve(self) -> None:
        self.server = self._starting

    def kill_after(self, calls: int) -> None:
        """Let the disk take so many more calls, and none after them."""
        self.disk.left = self.disk.calls + calls

    def kill(self, *, answers_arrive: bool) -> None:
        """Leave the server as kill -9 would: what it has not said by now is never said."""
        server, self.server = self.server, None
        assert server is not None
        self.kill_after(0)
        with contextlib.suppress(Stopped):
            self.disk.make_directory(self._path / "never")
        for transport in server._transports:
            for task, end in list(transport._streams._tasks.items()):
                if not answers_arrive:
                    end._outgoing._messages.clear()
                end._outgoing.break_off(ra.Unavailable("the server was killed"))
                task.cancel()
        self.checkpointer._directory._lock.release()
        if server._tick is not None:
            server._tick.cancel()


class Line:
    """A client's transport to whichever server runs; fails while none does, or once it is `cut`."""

    address = "the server that is killed"
    name = "in-process"

    def __init__(self, killed: Killed) -> None:
        self._killed = killed
        self._over: InProcessTransport | None = None
        self._is_cut = False

    def _there(self) -> InProcessTransport:
        server = self._killed.server
        if server is None or self._is_cut:
            raise ra.Unavailable("nobody answers")
        if self._over is None or self._over._service is not server._service:
            self._over = InProcessTransport(server._service, self.address)
            server._transports.add(self._over)
        return self._over

    def cut(self) -> None:
        """Break all streams off, and let nothing through any more."""
        self._is_cut = True
        if self._over is not None:
            for task in list(self._over._streams._tasks):
                task.cancel()

    async def hello(self) -> Hello:
        return await self._there().hello()

    async def open(self, kind: StreamKind) -> Duplex:
        return await self._there().open(kind)

    async def reset(self, table: str) -> None:
        await self._there().reset(table)

    async def server_info(self) -> list[TableInfo]:
        return await self._there().server_info()

    async def server_status(self) -> ServerStatus:
        return await self._there().server_status()

    async def checkpoint(self) -> str:
        try:
            return await self._there().checkpoint()
        except Stopped:
            raise ra.Unavailable("the server was killed") from None

    async def close(self) -> None:
        self.cut()
