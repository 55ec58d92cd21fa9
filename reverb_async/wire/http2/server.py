"""grpclib's server on our connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

import grpclib.server
from grpclib.encoding.base import CodecBase
from grpclib.events import SendTrailingMetadata, listen
from grpclib.protocol import H2Protocol

from reverb_async.wire.grpc_codec import GrpcCodec
from reverb_async.wire.http2.connection import MAX_MESSAGE_BYTES, Endpoint
from reverb_async.wire.http2.data_path import chosen_protocol
from reverb_async.wire.http2.guards import ConnectionStats, Guards
from reverb_async.wire.http2.stream import Stream
from reverb_async.wire.http2.window import WindowBudget
from reverb_async.wire.status import ERROR_KEY, pack_details

if TYPE_CHECKING:
    from grpclib._typing import IServable

WINDOW_BYTES = 256 << 20


class ReplayServer(grpclib.server.Server):
    """A gRPC server with bounded messages and bounded receive windows.

    Args:
        handlers: the services.
        codec: `GrpcCodec` unless given.
        max_message_bytes: longer messages are refused with RESOURCE_EXHAUSTED before they are read.
        message_limits: other limits for some services, by full name, or for some methods, by path.
        window_budget: what streams may receive unread beyond 64 KiB each; servers may share one.
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
        window_budget: WindowBudget | None = None,
        guards: Guards | None = None,
        stats: ConnectionStats | None = None,
    ) -> None:
        self.window_budget = WindowBudget(WINDOW_BYTES) if window_budget is None else window_budget
        self._endpoint = Endpoint(
            max_message_bytes=max_message_bytes,
            message_limits=dict(message_limits or {}),
            window_budget=self.window_budget,
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
        made = super()._protocol_factory()
        return cast("H2Protocol", chosen_protocol()(made.handler, made.config, made.h2_config, self._endpoint))

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

    async def wait_closed(self) -> None:
        """Wait, after `close`, until the handlers have ended, then drop the connections.

        It does not wait for peers to leave, as asyncio's servers do since Python 3.12.
        """
        await self._handlers_ended()
        self.abort_all()
        await self._endpoint.idle.wait()
        await self._handlers_ended()

    async def _handlers_ended(self) -> None:
        for handler in list(self._handlers):
            await handler.wait_closed()


async def _add_details(event: SendTrailingMetadata) -> None:
    if isinstance(event.status_details, dict):
        event.metadata[ERROR_KEY] = pack_details(event.status_details)


def transport_of(stream: grpclib.server.Stream[Any, Any]) -> Stream:
    """Return the HTTP/2 stream under a handler's stream."""
    assert isinstance(stream._stream, Stream)
    return stream._stream


def abort_server_stream(stream: grpclib.server.Stream[Any, Any]) -> None:
    """Reset a stream from within its handler; never waits. What the handler does afterwards reaches nobody."""
    stream._cancel_done = True
    transport_of(stream).abort("aborted")
