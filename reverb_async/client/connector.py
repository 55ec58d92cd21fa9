"""A client's way to its server: retries, keys, what the tables are like, and the tasks that end with the client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.event_hub import EventHub
from reverb_async.client.events import Blocked, Connected, Disconnected, Event, Reconnected
from reverb_async.client.keys import KeyAllocator
from reverb_async.client.retry import NOW_S, Retry
from reverb_async.client.shared import Shared
from reverb_async.client.shared_memory import SharedMemory
from reverb_async.client.tasks import Tasks
from reverb_async.client.transport import StreamKind, Transport
from reverb_async.core.info import TableInfo
from reverb_async.errors import (
    Closed,
    InvalidArgument,
    ReplayError,
    TableClosed,
    TableNotFound,
    Unavailable,
)
from reverb_async.logs import Repeats
from reverb_async.protocol.hello import KEYS_PER_BLOCK, Hello
from reverb_async.protocol.message import Duplex
from reverb_async.waiting import reported

logger = logging.getLogger("reverb_async")

_T = TypeVar("_T")


class Connector:
    """What all parts of one client share; the client closes it.

    Args:
        transport: connects, without retrying.
        connect_timeout: seconds for which attempts to reach a server are repeated; None: for ever.
        memory: the client's access to the server's memory; by default it has none.

    Attributes:
        failure: why the latest attempt failed; None once one has succeeded.
        repeats: for warnings that many parts of a client may have at the same time.
        closed: nothing can be asked any more.
        is_server_closed: because the server in this process was closed.
    """

    def __init__(
        self, transport: Transport, connect_timeout: float | None = 60.0, memory: SharedMemory | None = None
    ) -> None:
        self.transport = transport
        self.memory = memory or SharedMemory(False)
        self.connect_timeout = connect_timeout
        self.failure: Unavailable | None = None
        self.repeats = Repeats(logger)
        self.closed = False
        self.is_server_closed = False
        self._is_reported = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks = Tasks()
        self.events = EventHub()
        self._met_at = 0.0
        self._lost_at: float | None = None
        self._introducing: Shared[None] = Shared()
        self._introduced = False
        self._epoch: bytes | None = None
        self._keys = KeyAllocator()
        self._refilling = False
        self._tables: dict[str, TableInfo] | None = None
        self._describing: Shared[dict[str, TableInfo]] = Shared()

    @property
    def address(self) -> str:
        """Where the server is."""
        return self.transport.address

    def check_usable(self) -> None:
        """Raise `Closed` after the client was closed, `InvalidArgument` on another event loop than the first."""
        if self.closed:
            raise self.closed_error()
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        elif self.is_elsewhere():
            raise InvalidArgument(
                f"the client of {self.address} belongs to another event loop: make a Client in each loop that needs one"
            )

    def closed_error(self) -> ReplayError:
        """Return what calls get once the client is closed: by its owner, or by its server in the same process."""
        if self.is_server_closed:
            return TableClosed("the server of this client was closed")
        return Closed(f"the client of {self.address} was closed; make another one")

    def is_elsewhere(self) -> bool:
        """Whether another event loop than the running one made the first call."""
        return self._loop is not None and self._loop is not asyncio.get_running_loop()

    # -- calls --------------------------------------------------------------------------------------------------------

    async def open(self, kind: StreamKind) -> Duplex:
        """Open a stream.

        Raises:
            Unavailable: nothing answered for `connect_timeout`.
        """
        return await self.call(lambda: self.transport.open(kind), f"opening the {kind} stream")

    async def call(self, fn: Callable[[], Awaitable[_T]], what: str = "calling") -> _T:
        """Await ``fn()``, again and again while the server cannot be reached.

        Args:
            fn: makes one attempt; what it does may then happen more than once.
            what: what it does, for messages.

        Raises:
            Unavailable: nothing answered for `connect_timeout`; `TableClosed` is raised at once.
        """
        self.check_usable()
        retry, loop = Retry(self, what), asyncio.get_running_loop()

        def wait() -> str:
            return f"{what} at {self.address}" + ("" if self.failure is None else f": {self.failure}")

        with reported(wait, repeats=self.repeats):
            while True:
                since = loop.time()
                try:
                    await self._introduce()
                    since = loop.time()
                    result = await fn()
                except TableClosed as error:
                    self.lost(error, since)
                    raise
                except Unavailable as error:
                    await retry.after(error, since)
                else:
                    self._answered()
                    return result
                self.check_usable()

    def report(self, error: Unavailable) -> None:
        """Log that attempts go on, once until the server answers again."""
        if self._is_reported:
            return
        self._is_reported = True
        self.emit(Blocked(f"connecting to {self.address}", str(error)))
        is_refused = isinstance(error.__cause__, ConnectionRefusedError)
        patience = "ever" if self.connect_timeout is None else f"up to {self.connect_timeout:g} s"
        logger.warning(
            "%s; trying for %s (connect_timeout)",
            f"{self.address} refuses connections" if is_refused else error,
            patience,
        )

    def lost(self, error: Unavailable, since: float) -> None:
        """Note that a stream or a call of `since` broke: the server may be another process when it answers again."""
        self.failure = error
        if since < self._met_at:
            return  # The server has been met since then.
        self._introduced = False
        if self._lost_at is None and self._epoch is not None:
            self._lost_at = asyncio.get_running_loop().time()
            self.emit(Disconnected(self.address, str(error)))

    def gives_up(self, error: Unavailable) -> bool:
        """Whether callers are to be told of this error at once, instead of waiting for the server.

        The server stops, or was silent for so long that waiting for it as for one that is starting makes no sense; but
        a client without a `connect_timeout` waits for that, too.
        """
        return isinstance(error, TableClosed) or (error.after_silence and self.connect_timeout is not None)

    def emit(self, event: Event) -> None:
        """Tell whoever listens to the client's events."""
        self.events.emit(event)

    async def _introduce(self) -> None:
        """Say hello, unless that was done since the connection was last lost."""
        if not self._introduced:
            await self._introducing.join(self.hello)

    async def hello(self) -> None:
        """Say hello once: learn whether the server is still the same process, get a block of keys.

        Raises:
            Unavailable: it does not answer within `connect_timeout`.
        """
        patience = None if self.connect_timeout is None else max(self.connect_timeout, NOW_S)
        try:
            async with asyncio.timeout(patience):
                hello = await self.transport.hello()
        except TimeoutError as error:
            if isinstance(error, ReplayError):
                raise
            raise Unavailable(f"{self.address} did not answer within {patience:g} s") from None
        self._learn(hello)

    def _learn(self, hello: Hello) -> None:
        self._greet(hello.server_epoch)
        if self._epoch is not None and hello.server_epoch != self._epoch:
            logger.warning("the server at %s came back as a new process: what it did not save is gone", self.address)
            self._keys.clear()
            self._tables = None
        self._epoch = hello.server_epoch
        self._keys.grant(hello.key_block)
        self.memory.learn(hello.memory)
        self._introduced = True
        self._answered()

    def _greet(self, epoch: bytes) -> None:
        """Tell of a server that was met for the first time, or again."""
        now = asyncio.get_running_loop().time()
        if self._epoch is None:
            self.emit(Connected(self.address))
        elif self._lost_at is not None:
            self.emit(Reconnected(self.address, epoch != self._epoch, now - self._lost_at))
        if not self._introduced:
            self._met_at, self._lost_at = now, None

    def _answered(self) -> None:
        self.failure = None
        self._is_reported = False

    # -- keys ---------------------------------------------------------------------------------------------------------

    def try_next_keys(self, n: int) -> NDArray[np.uint64] | None:
        """Return `n` consecutive new keys, uint64 ``[n]``; None when the server must be asked first."""
        keys = self._keys.take(n)
        self._keep_stocked()
        return keys

    def try_next_key(self) -> int | None:
        """Return a new key; None when the server must be asked first."""
        key = self._keys.take_one()
        self._keep_stocked()
        return key

    def _keep_stocked(self) -> None:
        if self._keys.runs_low and self._introduced and not self._refilling:
            self._refilling = True
            self.spawn(self._refill(), "granting keys")

    async def next_keys(self, n: int) -> NDArray[np.uint64]:
        """Return `n` new keys, uint64 ``[n]``: consecutive, if they are no more than a block (2**20).

        Raises:
            Unavailable: the server was asked for more keys and did not answer.
        """
        self.check_usable()
        if n > KEYS_PER_BLOCK:
            sizes = [min(KEYS_PER_BLOCK, n - start) for start in range(0, n, KEYS_PER_BLOCK)]
            return np.concatenate([await self.next_keys(size) for size in sizes])
        while (keys := self.try_next_keys(n)) is None:
            await self._fetch_keys(n)
        return keys

    async def _fetch_keys(self, n: int) -> None:
        async def fetch() -> None:
            if not self._keys.has(n):  # Introducing the client may just have brought a block.
                await self._introducing.join(self.hello)

        await self.call(fetch, "asking for keys")

    async def _refill(self) -> None:
        try:
            await self._fetch_keys(KEYS_PER_BLOCK)
        except ReplayError as error:
            logger.debug("no further keys from %s yet: %s", self.address, error)
        finally:
            self._refilling = False

    # -- tables -------------------------------------------------------------------------------------------------------

    @property
    def known_tables(self) -> dict[str, TableInfo] | None:
        """What `tables` returns from memory; None when it would have to ask."""
        return self._tables

    async def tables(self, refresh: bool = False) -> dict[str, TableInfo]:
        """Describe the server's tables by name, from memory unless `refresh`; counts and sizes may be old.

        Raises:
            Unavailable: nothing answered for `connect_timeout`.
        """
        if self._tables is None or refresh:
            return await self.call(lambda: self._describing.join(self._look_up), "describing the tables")
        return self._tables

    async def describe(self) -> dict[str, TableInfo]:
        """Describe the server's tables as they are now."""
        return await self.call(self._look_up, "describing the tables")

    async def _look_up(self) -> dict[str, TableInfo]:
        self._tables = {info.name: info for info in await self.transport.server_info()}
        return self._tables

    async def check_table(self, name: str) -> TableInfo:
        """Describe a table, from memory.

        Raises:
            TableNotFound: not even a fresh answer of the server has it.
        """
        for refresh in (False, True):
            tables = await self.tables(refresh)
            if name in tables:
                return tables[name]
        raise TableNotFound(name, tables)

    # -- tasks --------------------------------------------------------------------------------------------------------

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task that ends with the client at the latest."""
        try:
            self.check_usable()
        except ReplayError:
            coro.close()
            raise
        return self._tasks.spawn(coro, f"{name} ({self.address})")

    async def close(self) -> None:
        """Cancel all tasks and close the transport; takes at most a second or so. Idempotent."""
        self.closed = True
        await self._tasks.close()
        await self.transport.close()
        self.events.close()
