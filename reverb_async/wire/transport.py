"""The client's way to a server in another process: gRPC over TCP or a Unix socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args
from weakref import WeakSet

from reverb_async.core.info import ServerStatus, TableInfo
from reverb_async.errors import Closed, InvalidArgument, Unavailable
from reverb_async.protocol.hello import PROTOCOL_VERSION, Hello
from reverb_async.protocol.message import Duplex
from reverb_async.security import Credentials
from reverb_async.wire.duplex import GrpcClientDuplex, open_duplex
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.http2 import SILENCE_S, ReplayChannel
from reverb_async.wire.memory_offer import memory_offer_from_proto
from reverb_async.wire.parts import PART_BYTES
from reverb_async.wire.server_status import status_from_proto
from reverb_async.wire.shared_channels import SharedChannel, shared_channel
from reverb_async.wire.status import status_as_errors
from reverb_async.wire.table_info import table_info_from_proto

SERVICE = "reverb_async.v1.Replay"

StreamKind = Literal["insert", "sample", "update"]

_NO_CREDENTIALS = Credentials()


class GrpcTransport:
    """Connections to one server, each made when it is first needed and again when it was lost.

    Control calls and updates, inserts, and samples have a connection each, so that none waits behind another's bulk.
    The one for inserts is shared by all clients of an event loop that speak to the server: what they say in one turn
    travels in one packet, and so do the answers. Nothing is retried here: what fails raises at once.

    Args:
        address: ``"host:port"`` or ``"unix:///path"``.
        connect_timeout: seconds until an attempt to connect is given up.
        credentials: how connections are encrypted and calls signed.

    Raises:
        InvalidArgument: `address` is neither.

    Attributes:
        address: the server's, as given.
        name: ``"tcp"``, ``"tls"`` or ``"unix"``.
    """

    def __init__(
        self, address: str, connect_timeout: float | None = None, credentials: Credentials = _NO_CREDENTIALS
    ) -> None:
        self.address = address
        self.name = "unix" if address.startswith("unix:") else "tcp" if credentials.tls is None else "tls"
        self._target = parse_address(address)
        self._connect_timeout = connect_timeout
        self._credentials = credentials
        self._channels: dict[str, ReplayChannel] = {}
        self._inserting: SharedChannel | None = None
        self._insert_streams: WeakSet[GrpcClientDuplex] = WeakSet()
        self._part_bytes = PART_BYTES
        self._closed = False

    async def hello(self, *, features: Sequence[str] = (), client_name: str = "") -> Hello:
        """Introduce this client; every call grants it a new block of keys."""
        request = v1.HelloRequest(protocol_version=PROTOCOL_VERSION, features=list(features), client_name=client_name)
        answer = await self._call("Hello", request, v1.HelloResponse)
        if answer.max_message_bytes:  # A part has a header, too.
            self._part_bytes = min(PART_BYTES, answer.max_message_bytes // 2)
        return Hello(
            protocol_version=answer.protocol_version,
            features=tuple(answer.features),
            server_epoch=answer.server_epoch,
            key_block=answer.key_block,
            max_message_bytes=answer.max_message_bytes,
            memory=None if answer.shared_memory is None else memory_offer_from_proto(answer.shared_memory),
        )

    async def open(self, kind: StreamKind) -> Duplex:
        """Open a stream. Whoever gets it calls `abort` on it at last.

        Raises:
            Unavailable: the server cannot be reached.
        """
        assert kind in get_args(StreamKind), kind
        path, headers = f"/{SERVICE}/{kind.title()}", self._credentials.headers()
        if kind != "insert":
            channel = self._channel("control" if kind == "update" else kind)
            return await open_duplex(channel, path, self.address, headers=headers, part_bytes=self._part_bytes)
        self._check_open()
        if self._inserting is None:
            self._inserting = shared_channel(self._target, self._connect_timeout, self._credentials.tls)
        stream = await open_duplex(
            self._inserting.channel, path, self.address, headers=headers, part_bytes=self._part_bytes
        )
        if self._closed:
            stream.abort()
            self._check_open()
        self._insert_streams.add(stream)
        return stream

    async def mutate(
        self, table: str, update_keys: Sequence[int], update_priorities: Sequence[float], delete_keys: Sequence[int]
    ) -> tuple[int, int, int]:
        """Update priorities, then delete; return how many keys were updated, deleted, unknown."""
        request = v1.MutatePrioritiesRequest(
            table=table,
            update_keys=list(update_keys),
            update_priorities=list(update_priorities),
            delete_keys=list(delete_keys),
        )
        answer = await self._call("MutatePriorities", request, v1.MutatePrioritiesResponse)
        return answer.updated, answer.deleted, answer.unknown

    async def reset(self, table: str) -> None:
        """Remove all items of a table."""
        await self._call("Reset", v1.ResetRequest(table=table), v1.ResetResponse)

    async def server_info(self) -> list[TableInfo]:
        """Describe the server's tables."""
        answer = await self._call("ServerInfo", v1.ServerInfoRequest(), v1.ServerInfoResponse)
        return [table_info_from_proto(table) for table in answer.tables]

    async def server_status(self) -> ServerStatus:
        """Describe the server itself."""
        return status_from_proto(await self._call("ServerStatus", v1.ServerStatusRequest(), v1.ServerStatusResponse))

    async def checkpoint(self) -> str:
        """Write a checkpoint; return its path on the server."""
        answer = await self._call("Checkpoint", v1.CheckpointRequest(), v1.CheckpointResponse)
        path: str = answer.path
        return path

    async def close(self) -> None:
        """Close all connections; streams and calls on them fail. Does nothing the second time."""
        self._closed = True
        while self._channels:
            self._channels.popitem()[1].close()
        for stream in list(self._insert_streams):
            stream.abort()
        inserting, self._inserting = self._inserting, None
        if inserting is not None:
            inserting.leave()

    async def _call(self, method: str, request: Any, answer_type: type) -> Any:
        """Make a unary call; cancelling it ends it at the server, too.

        Raises:
            Unavailable: the server cannot be reached, or was lost before it answered.
            ReplayError: the server's refusal.
        """
        channel = self._channel("control")
        with status_as_errors(self.address):
            call = await channel.open_call(f"/{SERVICE}/{method}", self._credentials.headers())
            try:
                await call.send(request, type(request), end=True)
                answer = await call.receive(answer_type)
                if answer is None:
                    raise Unavailable(f"{self.address} ended {method} without an answer")
                # The status comes behind the answer; a second answer would be a fault of the server's.
                if await call.receive(answer_type) is not None:
                    raise Unavailable(f"{self.address} answered {method} twice")
                return answer
            finally:
                call.abort()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the connection to {self.address} was closed")

    def _channel(self, name: str) -> ReplayChannel:
        self._check_open()
        if name not in self._channels:
            host, port, path = self._target
            self._channels[name] = ReplayChannel(
                host,
                port,
                path=path,
                connect_timeout=self._connect_timeout,
                tls=self._credentials.tls,
                silence_s=SILENCE_S,
            )
        return self._channels[name]


def parse_address(address: str) -> tuple[str | None, int | None, str | None]:
    """Return host and port, or the path of a Unix socket.

    Raises:
        InvalidArgument: `address` is neither ``"host:port"`` nor ``"unix:///path"``.
    """
    if address.startswith("unix://") and len(address) > len("unix://"):
        return None, None, address.removeprefix("unix://")
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise InvalidArgument(f"{address!r} is no address; 'host:port' and 'unix:///path' are")
    return host, int(port), None
