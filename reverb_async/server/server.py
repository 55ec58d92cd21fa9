"""Server: hosts tables on TCP, a Unix socket and for clients in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakSet

from reverb_async.checkpoint import Checkpointer, Durability
from reverb_async.checkpoint.write_ahead import check_durability
from reverb_async.client.client import Client
from reverb_async.compat import rpc as compat
from reverb_async.compat.rpc import DeepMindHandlers
from reverb_async.core.buffer_pool import BufferPool
from reverb_async.errors import Closed, InvalidArgument
from reverb_async.hosts import is_loopback
from reverb_async.inprocess import InProcessTransport
from reverb_async.limits import Limits
from reverb_async.replay import Replay
from reverb_async.security import ServerContext, ServerTLS, Tokens
from reverb_async.server.access import Access
from reverb_async.server.ending import GRACE_S, Ending, check_grace
from reverb_async.server.listening import LOOPBACK, checked_tls, listen, listen_unix, reverb_port
from reverb_async.server.rpc import INSERT, SERVICE, HealthHandlers, ReplayHandlers
from reverb_async.service.service import ReplayService, TransportStatus
from reverb_async.table import Table
from reverb_async.wire.http2 import ConnectionStats, Guards, ReplayServer, WindowBudget

if TYPE_CHECKING:
    from grpclib._typing import IServable

logger = logging.getLogger("reverb_async")

_TICK_S = 1.0
_TRIM_AGAIN_S = 0.05


class Server:
    """Hosts tables.

    Args:
        tables: at least one; names are distinct.
        host: address to listen on; anything but the loopback needs `tls`, or `insecure`.
        port: 0 picks a free one (see `Server.port`); None: no TCP.
        unix_path: path of a Unix socket to listen on as well.
        insecure: accept connections from other machines although nothing is encrypted.
        tls: encrypt what goes over TCP, and perhaps ask clients for certificates.
        tokens: path of a file of tokens, see `python -m reverb_async.tokens`: every call must show one that allows it.
            Clients in this process (`client`) need none.
        reverb_compat: serve clients of DeepMind's Reverb as well, on the same port and with the same tables. They know
            neither TLS nor tokens: with either, they are not served.
        reverb_compat_insecure: serve them nevertheless, on a port of their own (True: any free one) of 127.0.0.1,
            unencrypted and whoever they are; see `reverb_address`.
        limits: what it takes at most: memory, messages, connections.
        checkpointer: saves the tables, and restores them in `start`; without one they live in memory only.
        durability: which acknowledged inserts, updates, deletes and resets there are after an end that was not orderly:
            ``"memory"``, those before the last checkpoint; ``"wal"``, all, unless the machine ended, too;
            ``"wal_fsync"``, all. The latter two need a checkpointer.

    Raises:
        InvalidArgument: no tables, duplicate names, a host that needs `tls`, files that cannot be used, or a durability
            that is none or needs a checkpointer.

    Attributes:
        access: what is checked of every call; None without `tokens`.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        host: str = "127.0.0.1",
        port: int | None = 0,
        unix_path: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        tls: ServerTLS | None = None,
        tokens: str | os.PathLike[str] | None = None,
        reverb_compat: bool = True,
        reverb_compat_insecure: bool | int = False,
        limits: Limits | None = None,
        checkpointer: Checkpointer | None = None,
        durability: Durability = "memory",
    ) -> None:
        if limits is not None and not isinstance(limits, Limits):
            raise InvalidArgument(f"limits must be reverb_async.Limits(...), got {limits!r:.60}")
        self._replay = Replay(tables, limits)
        self._service = ReplayService(self._replay, self._replay.limits.max_message_bytes)
        self._host = host
        self._port = port
        self._unix_path = None if unix_path is None else os.fspath(unix_path)
        if port is not None and not insecure and tls is None and not is_loopback(host):
            raise InvalidArgument(
                f"host={host!r} can be reached from other machines, and nothing is encrypted: use host='127.0.0.1', "
                f"or tls=ServerTLS(...), or insecure=True if everybody on that network may read and change the tables"
            )
        if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536):
            raise InvalidArgument(f"port must be an int from 0 (any free one) to 65535, or None, got {port!r}")
        self._tls = None if tls is None else ServerContext(checked_tls(tls))
        self.access = None if tokens is None else Access(Tokens(tokens))
        self._is_protected = tls is not None or tokens is not None
        self._reverb_port = reverb_port(reverb_compat_insecure, reverb_compat, self._is_protected)
        self._listening: list[ReplayServer] = []
        self._budget = WindowBudget(self._replay.limits.received_bytes // 2)
        self._budget.may_store = self._replay.memory.may_store
        self._service.transport_status = self._transport_status
        self._guards = Guards(max_connections=self._replay.limits.max_connections)
        self._stats = ConnectionStats()
        self._handlers: ReplayHandlers | None = None
        if checkpointer is not None and not isinstance(checkpointer, Checkpointer):
            raise InvalidArgument(
                f"checkpointer must be a reverb_async.Checkpointer, such as Checkpointer('checkpoints'), "
                f"got {checkpointer!r:.60}"
            )
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
        self._is_at_path = False
        self._tick: asyncio.TimerHandle | None = None
        self.last_steps: list[Callable[[], Awaitable[None]]] = []
        """What `close` does at last, in this order: every call has ended, and nothing changes the tables any more.

        Also after `start` has failed; whether it had succeeded `self._tick` tells, which is set by then.
        """

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
        self._replay.memory.add_queue(self._budget)
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
        native: list[IServable] = [self._handlers, self._health]
        deepmind: list[IServable] = [] if self._deepmind is None else [self._deepmind]
        limits = self._replay.limits
        pool = BufferPool(max_bytes=min(128 << 20, limits.pooled_bytes))

        def listener(handlers: list[IServable]) -> ReplayServer:
            return ReplayServer(
                handlers,
                max_message_bytes=limits.max_message_bytes,
                message_limits=compat.message_limits(limits),
                storing=(INSERT, compat.INSERT),
                window_budget=self._budget,
                pool=pool,
                guards=self._guards,
                stats=self._stats,
            )

        for_all = native if self._is_protected else [*native, *deepmind]
        if self._port is not None:
            server = self._protected(listener(for_all))
            await listen(server, self._host, self._port, None if self._tls is None else self._tls.context)
            self._listening.append(server)
            self._port = server.sockets[0].getsockname()[1]
        if self._unix_path is not None:
            server = self._protected(listener(for_all))
            await listen_unix(server, self._unix_path)
            self._listening.append(server)
            self._is_at_path = True
        if self._reverb_port is not None:
            server = listener([self._health, *deepmind])
            await listen(server, LOOPBACK, self._reverb_port)
            self._listening.append(server)
            self._reverb_port = server.sockets[0].getsockname()[1]

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
            if self._unix_path is not None and self._is_at_path:
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
    def stats(self) -> ConnectionStats:
        """How many connections from other processes there are, and how many were refused or dropped, by reason."""
        return self._stats

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
    def reverb_address(self) -> str | None:
        """Where clients of DeepMind's Reverb connect to, ``host:port``; None if they are not served over TCP."""
        if self._reverb_port is not None:
            return f"{LOOPBACK}:{self._reverb_port}"
        return None if self._deepmind is None or self._is_protected or self._port is None else self.address

    @property
    def unix_address(self) -> str | None:
        """The Unix socket as an address for `Client`."""
        return None if self._unix_path is None else f"unix://{os.path.abspath(self._unix_path)}"

    def _protected(self, server: ReplayServer) -> ReplayServer:
        if self.access is not None:
            self.access.protect(server)
        return server

    def _look_after(self, expected: float) -> None:
        """Once a second: return freed memory, read certificates and tokens that have changed.

        Log if something blocked the event loop, for then all clients waited.
        """
        loop = asyncio.get_running_loop()
        late = loop.time() - expected
        if late > _TICK_S:
            logger.warning("the server's event loop was blocked for %.1f s; every client waited for it", late)
        self._revoke_old_leases()
        self._replay.encoded.forget_what_is_gone()
        if self._deepmind is not None:
            self._deepmind.forget_what_is_gone()
        self._trim(loop)
        self._replay.memory.look_after()
        self._budget.look_after()
        if self._tls is not None:
            self._tls.refresh()
        if self.access is not None:
            self.access.refresh()
        self._tick = loop.call_later(_TICK_S, self._look_after, loop.time() + _TICK_S)

    def _trim(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give freed memory back, a few milliseconds' work at a time."""
        if self._replay.storage.trim() and not self._closed:
            loop.call_later(_TRIM_AGAIN_S, self._trim, loop)

    def _transport_status(self) -> TransportStatus:
        return TransportStatus(
            connections=sum(listening.num_connections for listening in self._listening),
            received_bytes=self._budget.held,
            cached_bytes=0 if self._deepmind is None else self._deepmind.cached_bytes,
            others={
                "refused_connections": dict(self._stats.refused),
                "dropped_connections": dict(self._stats.dropped),
                "stalled_streams": self._stats.stalled_streams,
                "unauthenticated": 0 if self.access is None else self.access.counts.unauthenticated,
                "denied": 0 if self.access is None else self.access.counts.denied,
                "last_checkpoint": (self._checkpointer and self._checkpointer.last_path) or "",
                "checkpointed_at": (self._checkpointer and self._checkpointer.last_saved) or 0.0,
            },
        )

    def _revoke_old_leases(self) -> None:
        if self._service.leases.expire():
            asyncio.get_running_loop().call_soon(self._revoke_old_leases)
