"""What a client needs of whatever connects it to a server."""

from __future__ import annotations

from typing import Literal, Protocol

from reverb_async.core.info import ServerStatus, TableInfo
from reverb_async.protocol.hello import Hello
from reverb_async.protocol.message import Duplex

StreamKind = Literal["insert", "sample", "update"]


class Transport(Protocol):
    """Connects at the first call and again after a failure; every method fails with `Unavailable` at once if it cannot.

    Retrying is not its business.
    """

    address: str
    """Where the server is, as the user wrote it."""

    name: str
    """``"tcp"``, ``"tls"``, ``"unix"`` or ``"in-process"``."""

    async def hello(self) -> Hello:
        """Introduce the client; grants a new block of keys."""

    async def open(self, kind: StreamKind) -> Duplex:
        """Open a stream."""

    async def reset(self, table: str) -> None:
        """Empty a table."""

    async def server_info(self) -> list[TableInfo]:
        """Describe all tables."""

    async def server_status(self) -> ServerStatus:
        """Describe the server itself."""

    async def checkpoint(self) -> str:
        """Write a checkpoint and return its path."""

    async def close(self) -> None:
        """End all connections and streams. Idempotent."""
