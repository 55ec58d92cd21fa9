"""What inserting needs of a client's connector."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.events import Event
from reverb_async.core.info import TableInfo
from reverb_async.errors import Unavailable
from reverb_async.logs import Repeats
from reverb_async.protocol.message import Duplex


class Connection(Protocol):
    """A client's way to its server."""

    @property
    def repeats(self) -> Repeats:
        """For warnings that many streams may have at the same time."""

    @property
    def address(self) -> str:
        """Where the server is."""

    async def open(self, kind: Literal["insert"]) -> Duplex:
        """Open a stream; retries until the server has not answered for too long, then raises `Unavailable`."""

    @property
    def known_tables(self) -> dict[str, TableInfo] | None:
        """What `tables` returns from memory; None when it would have to ask."""

    async def tables(self, refresh: bool = False) -> dict[str, TableInfo]:
        """Describe the server's tables, from memory unless `refresh`."""

    async def next_keys(self, n: int) -> NDArray[np.uint64]:
        """Return `n` consecutive new keys."""

    def try_next_keys(self, n: int) -> NDArray[np.uint64] | None:
        """Return `n` consecutive new keys if the server need not be asked for them."""

    def try_next_key(self) -> int | None:
        """Return a new key if the server need not be asked for one."""

    def lost(self, error: Unavailable, since: float) -> None:
        """Learn that a stream broke that was opened at `since`: the server may be another process when it answers."""

    def gives_up(self, error: Unavailable) -> bool:
        """Whether callers are to be told of this error at once, instead of waiting for the server."""

    def emit(self, event: Event) -> None:
        """Tell whoever listens to the client's events."""

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task that ends with the client at the latest."""
