"""Clients in the server's own process: the same streams, without bytes on a wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from reverb_async.client.transport import StreamKind
from reverb_async.core.info import ServerStatus, TableInfo
from reverb_async.errors import TableClosed
from reverb_async.local_streams import LocalStreams
from reverb_async.protocol.hello import PROTOCOL_VERSION, Hello
from reverb_async.protocol.message import Duplex
from reverb_async.service.service import ReplayService


class InProcessTransport:
    """A `client.transport.Transport` that calls a service directly."""

    name = "in-process"

    def __init__(self, service: ReplayService, address: str) -> None:
        self.address = address
        self._service = service
        self._closed = False
        self._streams = LocalStreams(lambda: service.closing)

    async def hello(self) -> Hello:
        """Introduce the client."""
        self._check_open()
        return self._service.hello(PROTOCOL_VERSION)

    async def open(self, kind: StreamKind) -> Duplex:
        """Open a stream: a task serves its other end."""
        self._check_open()
        serve: Callable[[Duplex], Awaitable[None]] = getattr(self._service, kind)
        return self._streams.open(serve, f"in-process {kind} stream")

    async def reset(self, table: str) -> None:
        """Empty a table."""
        self._check_open()
        await self._service.reset(table)

    async def server_info(self) -> list[TableInfo]:
        """Describe all tables."""
        self._check_open()
        return self._service.server_info()

    async def server_status(self) -> ServerStatus:
        """Describe the server itself."""
        self._check_open()
        return self._service.server_status()

    async def checkpoint(self) -> str:
        """Write a checkpoint and return its path."""
        self._check_open()
        return await self._service.checkpoint()

    def finish(self) -> None:
        """Let all streams do what they have been asked for, then end."""
        self._streams.finish()

    async def wait(self, timeout: float) -> None:
        """Wait until all streams have ended, for so many seconds at most."""
        await self._streams.wait(timeout)

    async def close(self, timeout: float | None = None) -> None:
        """End all streams and wait until they have ended, for `timeout` seconds at most. Idempotent."""
        self._closed = True
        await self._streams.close(timeout)

    def _check_open(self) -> None:
        if self._closed or self._service.closing:
            raise TableClosed("the server is stopping")
