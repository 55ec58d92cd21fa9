"""Server: hosts tables on TCP, a Unix socket and for clients in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakSet

from reverb_async.checkpoint import Checkpointer, Durability
from reverb_async.checkpoint.write_ahead import check_durability
from reverb_async.client.client import Client
from reverb_async.compat import rpc as compat
from reverb_async.compat.rpc import DeepMindHandlers
from reverb_async.errors import Closed, InvalidArgument
from reverb_async.hosts import is_loopback
from reverb_async.inprocess import InProcessTransport
from reverb_async.replay import Replay
from reverb_async.server.ending import GRACE_S, Ending, check_grace
from reverb_async.server.rpc import SERVICE, HealthHandlers, ReplayHandlers
from reverb_async.service.service import ReplayService
from reverb_async.table import Table
from reverb_async.wire.http2 import MAX_MESSAGE_BYTES, ReplayServer, WindowBudget

if TYPE_CHECKING:
    from grpclib._typing import IServable

logger = logging.getLogger("reverb_async")

RECEIVE_BUDGET_BYTES = 256 << 20
"""What all insert streams together may have received and the server not yet worked off."""

_TICK_S = 1.0


class Server:
    """Hosts tables.

    Args:
        tables: at least one; names are distinct.
        host: address to listen on; anything but the loopback needs `insecure`.
        port: 0 picks a free one (see `Server.port`); None: no TCP.
        unix_path: path of a Unix socket to listen on as well.
        insecure: accept connections from other machines although nothing is encrypted and nobody is asked who they are.
        reverb_compat: serve clients of DeepMind's Reverb as well, on the same port and with the same tables.
        checkpointer: saves the tables, and restores them in `start`; without one they live in memory only.
        durability: which acknowledged inserts, updates, deletes and resets there are after an end that was not orderly:
            ``"memory"``, those before the last checkpoint; ``"wal"``, all, unless the machine ended, too;
            ``"wal_fsync"``, all. The latter two need a checkpointer.

    Raises:
        InvalidArgument: no tables, duplicate names, a host that needs `insecure`, or a durability that is none or
            needs a checkpointer.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        host: str = "127.0.0.1",
        port: int | None = 0,
        unix_path: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        reverb_compat: bool = True,
        checkpointer: Checkpointer | None = None,
        durability: Durability = "memory",
    ) -> None:
        self._replay = Replay(tables)
        self._service = ReplayService(self._replay, MAX_MESSAGE_BYTES)
        self._host = host
        self._port = port
        self._unix_path = None if unix_path is None else os.fspath(unix_path)
        if port is not None and not insecure and not is_loopback(host):
            raise InvalidArgument(
                f"host={host!r} can be reached from other machines, and nothing is encrypted yet: "
                f"use host='127.0.0.1', or insecure=True if everybody on that network may read and change the tables"
            )
        if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536):
            raise InvalidArgument(f"port must be an int from 0 (any free one) to 65535, or None, got {port!r}")
        self._listening: list[ReplayServer] = []
        self._handlers: ReplayHandlers | None = None
        self._reverb_compat = reverb_compat
        self._deepmind: DeepMindHandlers | None = None
        self._checkpointer = checkpointer
        check_durability(durability, checkpointer)
        self._durability: Durability = durability
        self._health: HealthHandlers | None = None
        self._clients: WeakSet[Client] = WeakSet()
        self._transports: WeakSet[InProcessTransport] = WeakSet()
        self._stopped: asyncio.Event | None = None
        self._closed = False
        self._tick: asyncio.TimerHandle | None = None
        self.last_steps: list[Callable[[], Awaitable[None]]] = []
        """What `close` does at last, in this order: every call has ended, and nothing changes the tables any more."""

    async def __aenter__(self) -> Server:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Restore the newest checkpoint, if there is a checkpointer, and listen. A server starts once.

        Raises:
            CheckpointError: what is on disk cannot be restored, see `Checkpointer`.
            InvalidArgument: the port or the path is taken, or cannot be used; or another server has one of the tables.
            Closed: it was started or closed before.
        """
        if self._stopped is not None or self._closed:
            raise Closed("this server was started before: make a new one")
        self._replay.open()
        self._stopped = asyncio.Event()
        try:
            await self._restore()
            await self._open_doors()
        except BaseException:
            await self.close()
            raise
        self._look_after(asyncio.get_running_loop().time())

    async def _restore(self) -> None:
        checkpointer = self._checkpointer
        if checkpointer is None:
            return
        await checkpointer.start(self._replay, self._durability)
        self._service.save = checkpointer.save
        # What was restored is on disk: a server that could not listen has nothing to add.
        self.last_steps.append(lambda: checkpointer.close(save=self._tick is not None))

    async def _open_doors(self) -> None:
        self._handlers = ReplayHandlers(self._service)
        if self._reverb_compat:
            self._deepmind = DeepMindHandlers(self._replay, self._service.save)
        self._health = HealthHandlers([SERVICE] if self._deepmind is None else [SERVICE, compat.SERVICE])
        handlers: list[IServable] = [self._handlers, self._health]
        if self._deepmind is not None:
            handlers.append(self._deepmind)
        budget = WindowBudget(RECEIVE_BUDGET_BYTES)

        def listener() -> ReplayServer:
            return ReplayServer(handlers, message_limits=compat.MESSAGE_LIMITS, window_budget=budget)

        if self._port is not None:
            server = listener()
            await _listen(server, self._host, self._port)
            self._listening.append(server)
            self._port = server.sockets[0].getsockname()[1]
        if self._unix_path is not None:
            server = listener()
            await _listen_unix(server, self._unix_path)
            self._listening.append(server)

    async def wait(self) -> None:
        """Wait until the server is closed."""
        if self._stopped is None:
            raise Closed("the server is not running: `await server.start()` first, or use `async with`")
        await self._stopped.wait()

    async def close(self, *, grace: float = GRACE_S) -> None:
        """Stop. Idempotent: a call that comes while another one closes the server waits for that.

        New calls are refused. What waits for a rate limiter ends at once with `TableClosed`; inserts that were received
        are done and confirmed, batches that are being sent go out, and streams then end with `TableClosed`, all at the
        same time: with peers that read and write this takes milliseconds.

        Args:
            grace: seconds after which everything else is broken off, with `TableClosed` as far as the peer still reads.
                Cancelling breaks it off, too.

        Raises:
            ReplayError: a last step after that, such as the final checkpoint, has failed; the server is closed.
        """
        check_grace(grace)
        was_closed, self._closed = self._closed, True
        if self._stopped is None:
            return
        if was_closed:
            await self._stopped.wait()
            return
        if self._tick is not None:
            self._tick.cancel()
        if self._health is not None:
            self._health.close()
        doors = [door for door in (self._handlers, self._deepmind, *self._transports) if door is not None]
        ending = Ending(self._replay, self._service, self._listening, doors)
        try:
            try:
                await ending.finish(grace)
                for client in list(self._clients):
                    await client._close_with_server()
            finally:
                await ending.break_off()
            for step in self.last_steps:
                await step()
        finally:
            if self._unix_path is not None and len(self._listening) == 1 + (self._port is not None):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._unix_path)
            self._stopped.set()

    def client(self) -> Client:
        """Return a client in this process: the same calls and waits, no bytes on a wire. Closed with the server."""
        if self._stopped is None or self._closed:
            raise Closed("the server is not running: `await server.start()` first, or use `async with`")
        transport = InProcessTransport(self._service, "the server in this process")
        client = Client._over(transport)
        self._transports.add(transport)
        self._clients.add(client)
        return client

    @property
    def tables(self) -> dict[str, Table]:
        """The tables, by name."""
        return dict(self._replay.tables)

    @property
    def port(self) -> int | None:
        """The TCP port; with ``port=0`` the real one once the server has started."""
        return self._port

    @property
    def address(self) -> str:
        """What to give to `Client`: ``host:port``, or ``unix:///path`` when there is no TCP.

        Raises:
            InvalidArgument: there is neither.
        """
        if self._port is not None:
            return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        if self.unix_address is None:
            raise InvalidArgument(
                "this server listens nowhere: use server.client(), or give it a port (0: any) or a unix_path"
            )
        return self.unix_address

    @property
    def unix_address(self) -> str | None:
        """The Unix socket as an address for `Client`."""
        return None if self._unix_path is None else f"unix://{os.path.abspath(self._unix_path)}"

    def _look_after(self, expected: float) -> None:
        """Once a second: return freed memory; log if something blocked the event loop, for then all clients waited."""
        loop = asyncio.get_running_loop()
        late = loop.time() - expected
        if late > _TICK_S:
            logger.warning("the server's event loop was blocked for %.1f s; every client waited for it", late)
        self._revoke_old_leases()
        self._replay.storage.trim()
        self._tick = loop.call_later(_TICK_S, self._look_after, loop.time() + _TICK_S)

    def _revoke_old_leases(self) -> None:
        if self._service.leases.expire():
            asyncio.get_running_loop().call_soon(self._revoke_old_leases)


async def _listen(server: ReplayServer, host: str, port: int) -> None:
    try:
        await server.start(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InvalidArgument(
                f"port {port} of {host} is taken by another process: stop that one, choose another port, "
                f"or let port=0 pick a free one"
            ) from error
        raise InvalidArgument(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


async def _listen_unix(server: ReplayServer, path: str) -> None:
    _make_way(path)
    try:
        await server.start(path=path)
    except OSError as error:
        raise InvalidArgument(f"cannot listen on {path}: {error.strerror or error}") from error


def _make_way(path: str) -> None:
    """Remove the socket file that a killed server left behind; refuse anything else in its place."""
    if not hasattr(socket, "AF_UNIX"):
        raise InvalidArgument("this platform has no Unix sockets: use TCP")
    if not os.path.exists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise InvalidArgument(f"{path} exists and is not a socket: choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(path) == 0:
            raise InvalidArgument(f"another server listens on {path}: stop it, or choose another path")
    os.unlink(path)
