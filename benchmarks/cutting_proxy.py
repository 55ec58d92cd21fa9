"""A network between a client and a server whose connections live for a moment only."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CuttingProxy:
    """Passes bytes on, and resets all its connections at both ends after random times.

    Attributes:
        cuts: connections that were cut.
        address: where clients connect to.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self.cuts = 0
        self.address = ""

    async def start(self) -> asyncio.Server:
        """Listen."""
        server = await asyncio.start_server(self._link, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def cut_for_ever(self, least_s: float, most_s: float, seed: int) -> None:
        """Cut again and again."""
        rng = random.Random(seed)
        while True:
            await asyncio.sleep(rng.uniform(least_s, most_s))
            self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for writers in self._links.values():
            self.cuts += 1
            for writer in writers:
                writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = self._links[task] = [writer]
        try:
            with contextlib.suppress(OSError):
                other_reader, other_writer = await asyncio.open_connection(*self._target)
                writers.append(other_writer)
                await asyncio.gather(
                    _pump(reader, other_writer, writers), _pump(other_reader, writer, writers), return_exceptions=True
                )
        finally:
            del self._links[task]
            for one in writers:
                one.transport.abort()

    async def wait_closed(self) -> None:
        """End all connections."""
        while self._links:
            self.cut()
            await asyncio.wait(list(self._links))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, both: list[asyncio.StreamWriter]) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    finally:
        for one in both:
            one.transport.abort()


@asynccontextmanager
async def cutting(target: str, least_s: float, most_s: float, seed: int) -> AsyncIterator[CuttingProxy]:
    """Run a proxy to `target` that cuts while the body runs."""
    proxy = CuttingProxy(target)
    server = await proxy.start()
    cutter = asyncio.create_task(proxy.cut_for_ever(least_s, most_s, seed))
    try:
        yield proxy
    finally:
        cutter.cancel()
        server.close()
        await proxy.wait_closed()
