"""grpclib's server on our connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl as tls
import struct
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import grpclib.server
from grpclib.encoding.base import CodecBase
from grpclib.events import RecvRequest, SendTrailingMetadata, listen
from grpclib.protocol import H2Protocol, Peer

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.errors import TableClosed
from reverb_async.security.tls import HANDSHAKE_S, SHUTDOWN_S
from reverb_async.wire.grpc_codec import GrpcCodec
from reverb_async.wire.http2.connection import MAX_MESSAGE_BYTES, Endpoint
from reverb_async.wire.http2.data_path import chosen_protocol
from reverb_async.wire.http2.guards import ConnectionStats, Guards
from reverb_async.wire.http2.stream import Stream
from reverb_async.wire.http2.unary import CallHandler
from reverb_async.wire.http2.window import WindowBudget
from reverb_async.wire.status import ERROR_KEY, pack_details, to_grpc_error

if TYPE_CHECKING:
    from grpclib._typing import IServable

WINDOW_BYTES = 256 << 20

_CREDENTIALS = struct.Struct("3i")
"""Process, user and group of a Unix socket's peer."""
LINGER_S = 0.5
"""A peer without a call has so long to leave, having been told to, before its connection is closed."""

HANDLERS_S = 2.0
"""Handlers that do not end when they are cancelled are waited for no longer than this."""

_HEALTH = "/grpc.health."


class ReplayServer(grpclib.server.Server):
    """A gRPC server with bounded messages and bounded receive windows.

    Args:
        handlers: the services.
        codec: `GrpcCodec` unless given.
        max_message_bytes: longer messages are refused with RESOURCE_EXHAUSTED before they are read.
        message_limits: other limits for some services, by full name, or for some methods, by path.
        storing: paths of the methods whose messages bring what is stored; see `WindowBudget.may_store`.
        window_budget: what streams may receive unread beyond 64 KiB each; servers may share one.
        pool: memory for long messages; servers may share one.
        guards: limits of connections.
        stats: counts connections; servers may share one, and with it the limit on connections.
    """

    def __init__(
        self,
        handlers: Collection[IServable],
        *,
        codec: CodecBase | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        message_limits: Mapping[str, int] | None = None,
        storing: Collection[str] = (),
        window_budget: WindowBudget | None = None,
        pool: BufferPool | None = None,
        guards: Guards | None = None,
        stats: ConnectionStats | None = None,
    ) -> None:
        self.window_budget = WindowBudget(WINDOW_BYTES) if window_budget is None else window_budget
        self._endpoint = Endpoint(
            max_message_bytes=max_message_bytes,
            message_limits=dict(message_limits or {}),
            storing=frozenset(storing),
            window_budget=self.window_budget,
            pool=pool or BufferPool(),
            entered=lambda connection: self._handlers.add(cast("grpclib.server.Handler", connection.handler)),
            guards=guards or Guards(),
            stats=stats or ConnectionStats(),
        )
        chosen_protocol()  # refuses a choice that is none now, instead of every connection later
        super().__init__(handlers, codec=codec or GrpcCodec(), config=self._endpoint.config)
        # As grpclib's, but a header that is not ASCII is a fault of one stream's: `Processor` looks for it.
        self._h2_config.header_encoding = "latin-1"
        listen(self, SendTrailingMetadata, _add_details)
        self._endpoint.unary = frozenset(
            path for path, handler in self._mapping.items() if not handler.cardinality.client_streaming
        )

    def _protocol_factory(self) -> H2Protocol:
        self.__gc_step__()
        # It joins the others in `connection_made`: a TLS handshake that fails would leave it behind.
        handler = CallHandler(self._mapping, self._codec, self._status_details_codec, self.__dispatch__)
        return cast("H2Protocol", chosen_protocol()(handler, self._config, self._h2_config, self._endpoint))

    async def start(  # type: ignore[override]
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        path: str | None = None,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        """Listen on a TCP address, with TLS if there is a context for it, or on a Unix socket.

        Raises:
            OSError: the address is taken, or none.
        """
        if ssl is None or port is None:
            await super().start(host, port, path=path)
            return
        self._server = await self._loop.create_server(
            self._protocol_factory,
            host,
            port,
            ssl=ssl,
            ssl_handshake_timeout=HANDSHAKE_S,
            ssl_shutdown_timeout=SHUTDOWN_S,
        )
        self._server_closed_fut = self._loop.create_future()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The sockets that listen; empty before `start` and after `close`."""
        return () if self._server is None else tuple(cast("asyncio.Server", self._server).sockets)

    @property
    def stats(self) -> ConnectionStats:
        """How many connections there are, and what became of others."""
        return self._endpoint.stats

    @property
    def num_connections(self) -> int:
        """How many peers are connected."""
        return len(self._endpoint.connections)

    def stop_accepting(self) -> None:
        """Listen no more; what is connected stays."""
        if self._server is not None:
            self._server.close()

    def abort_all(self) -> None:
        """Close every connection at once, unsent data lost; handlers are cancelled."""
        for connection in list(self._endpoint.connections):
            connection.abort()

    def go_away(self) -> None:
        """Refuse new calls, and tell the peers to make none; those that run go on."""
        listen(self, RecvRequest, _refuse)
        for connection in list(self._endpoint.connections):
            connection.go_away()

    @property
    def num_calls(self) -> int:
        """How many calls run."""
        return sum(len(connection.processor.streams) for connection in self._endpoint.connections)

    async def calls_ended(self, timeout: float) -> None:
        """Wait until no call runs, for so many seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for connection in list(self._endpoint.connections):
                    while connection.processor.streams:
                        connection.connection.stream_close_waiter.clear()
                        await connection.connection.stream_close_waiter.wait()

    async def see_off(self, timeout: float) -> None:
        """Let peers take what was sent to them, and leave, having been told to; close the connections of the others.

        Args:
            timeout: seconds after which connections that cannot get rid of their data are left to `wait_closed`.
        """
        deadline = self._loop.time() + timeout
        if not await self._idle_by(min(deadline, self._loop.time() + LINGER_S)):
            for connection in list(self._endpoint.connections):
                connection.part()
            await self._idle_by(deadline)

    async def _idle_by(self, deadline: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._endpoint.idle.wait()
                return True
        return False

    async def wait_closed(self) -> None:
        """Wait, after `close`, until the handlers have ended, then drop the connections.

        It does not wait for peers to leave, as asyncio's servers do since Python 3.12.
        """
        await self._handlers_ended()
        self.abort_all()
        await self._endpoint.idle.wait()
        await self._handlers_ended()

    async def _handlers_ended(self) -> None:
        ending = {task for handler in self._handlers for task in handler._cancelled}
        if ending:
            await asyncio.wait(ending, timeout=HANDLERS_S)


async def _refuse(event: RecvRequest) -> None:
    if not event.method_name.startswith(_HEALTH):
        raise to_grpc_error(TableClosed("the server is stopping"))


async def _add_details(event: SendTrailingMetadata) -> None:
    if isinstance(event.status_details, dict):
        event.metadata[ERROR_KEY] = pack_details(event.status_details)


def transport_of(stream: grpclib.server.Stream[Any, Any]) -> Stream:
    """Return the HTTP/2 stream under a handler's stream."""
    assert isinstance(stream._stream, Stream)
    return stream._stream


def peer_name(peer: Peer) -> str:
    """Return where a peer is, for people: ``"host:port"``, or its process behind a Unix socket."""
    address = peer.addr()
    if isinstance(address, tuple) and len(address) >= 2:
        return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    sock = peer._transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "SO_PEERCRED"):
        with contextlib.suppress(OSError):
            return f"process {_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]}"
    return "a process of this machine"


def abort_server_stream(stream: grpclib.server.Stream[Any, Any]) -> None:
    """Reset a stream from within its handler; never waits. What the handler does afterwards reaches nobody."""
    stream._cancel_done = True
    transport_of(stream).abort("aborted")
