"""A client's way to its server: retries, keys, what the tables are like, and the tasks that end with the client."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.keys import KeyAllocator
from reverb_async.client.shared import Shared
from reverb_async.client.shared_memory import SharedMemory
from reverb_async.client.transport import StreamKind, Transport
from reverb_async.core.info import TableInfo
from reverb_async.errors import (
    Closed,
    DeadlineExceeded,
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

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
NOW_S = 2.0
"""What a timeout of 0 still allows a server for its answer: "now" is about waiting, not about the network."""

FIRST_REPORT_S = 1.0
"""A server that is just starting answers within this; one that does not is worth a line in the log."""

_CLOSE_S = 1.0


class Retry:
    """Attempts at one thing while nothing answers: pauses between them, and the end of patience.

    Args:
        connector: whose server does not answer.
        what: what is attempted, for messages.
    """

    def __init__(self, connector: Connector, what: str) -> None:
        self._connector = connector
        self._what = what
        self._since: float | None = None
        self._tries = 0

    async def after(self, error: Unavailable) -> None:
        """Sleep until the next attempt: 50 ms and more each time, up to 2 s, less a random part.

        Raises:
            Unavailable: attempts have failed for `connect_timeout`; names the address, the last cause and the tries.
        """
        self._connector.lost(error)
        now = asyncio.get_running_loop().time()
        if self._since is None:
            self._since = now
        self._tries += 1
        tried_for, patience = now - self._since, self._connector.connect_timeout
        if patience is not None and tried_for >= patience:
            tries = "1 try" if self._tries == 1 else f"{self._tries} tries"
            raise Unavailable(
                f"{self._what}: {self._connector.address} does not answer, {tries} in {tried_for:.1f} s; "
                f"the last one: {error}"
            ) from error
        if tried_for >= FIRST_REPORT_S:
            self._connector.report(error)
        pause = min(FIRST_PAUSE_S * 2 ** min(self._tries - 1, 16), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
        await asyncio.sleep(pause if patience is None else min(pause, patience - tried_for))


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
        self._tasks: set[asyncio.Task[None]] = set()
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
        retry = Retry(self, what)

        def wait() -> str:
            return f"{what} at {self.address}" + ("" if self.failure is None else f": {self.failure}")

        with reported(wait, repeats=self.repeats):
            while True:
                try:
                    await self._introduce()
                    result = await fn()
                except TableClosed:
                    raise
                except Unavailable as error:
                    await retry.after(error)
                else:
                    self._answered()
                    return result
                self.check_usable()

    def report(self, error: Unavailable) -> None:
        """Log that attempts go on, once until the server answers again."""
        if self._is_reported:
            return
        self._is_reported = True
        is_refused = isinstance(error.__cause__, ConnectionRefusedError)
        patience = "ever" if self.connect_timeout is None else f"up to {self.connect_timeout:g} s"
        logger.warning(
            "%s; trying for %s (connect_timeout)",
            f"{self.address} refuses connections" if is_refused else error,
            patience,
        )

    def lost(self, error: Unavailable) -> None:
        """Note that the server did not answer: it may be another process when it does."""
        self.failure = error
        self._introduced = False

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
        if self._epoch is not None and hello.server_epoch != self._epoch:
            logger.warning("the server at %s came back as a new process: what it did not save is gone", self.address)
            self._keys.clear()
            self._tables = None
        self._epoch = hello.server_epoch
        self._keys.grant(hello.key_block)
        self.memory.learn(hello.memory)
        self._introduced = True
        self._answered()

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
        task = asyncio.get_running_loop().create_task(coro, name=f"{name} ({self.address})")
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel all tasks and close the transport; takes at most a second or so. Idempotent."""
        self.closed = True
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
        await self.transport.close()


@asynccontextmanager
async def time_limit(timeout: float | None, connector: Connector, what: str) -> AsyncIterator[None]:
    """Give the body `timeout` seconds; with 0, it may still wait 2 s for an answer.

    Raises:
        DeadlineExceeded: the time is up; says what was asked of whom, and why nothing came if that is known.
    """
    try:
        async with asyncio.timeout(timeout or (None if timeout is None else NOW_S)):
            yield
    except TimeoutError as error:
        if isinstance(error, ReplayError):
            raise
        why = "" if connector.failure is None else f": {connector.failure}"
        raise DeadlineExceeded(f"{what}: {connector.address} did not answer within {timeout:g} s{why}") from None
