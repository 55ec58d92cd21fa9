"""``reverb://host:port``: a genuine dm-reverb server behind the interface of our own."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from reverb_async.client.transport import StreamKind
from reverb_async.compat.scanning import Data
from reverb_async.compat.table_info import read_server_info, read_state_id
from reverb_async.core.info import ServerStatus, TableInfo
from reverb_async.errors import Closed, InvalidArgument, TableNotFound
from reverb_async.foreign.call import MAX_MESSAGE_BYTES, ForeignCall, unary
from reverb_async.foreign.inserting import ForeignInsert
from reverb_async.foreign.sampling import ForeignSample
from reverb_async.foreign.updating import serve_updates
from reverb_async.local_streams import LocalStreams
from reverb_async.protocol.hello import KEYS_PER_BLOCK, PROTOCOL_VERSION, Hello
from reverb_async.protocol.message import Duplex
from reverb_async.sessions import Sessions
from reverb_async.wire.generated.deepmind import reverb
from reverb_async.wire.http2 import ReplayChannel
from reverb_async.wire.transport import parse_address

_BLOCKS = (1 << 63) // KEYS_PER_BLOCK


class ForeignTransport:
    """Connections to one dm-reverb server, each made when it is first needed and again when it was lost.

    A `client.transport.Transport`: streams are served by tasks of this process, which translate. What a dm-reverb
    server cannot do is refused by name, or done as well as it can be; docs/migration.md lists it.

    Args:
        address: ``"reverb://host:port"``.
        connect_timeout: seconds until an attempt to connect is given up.

    Raises:
        InvalidArgument: `address` is none.

    Attributes:
        address: the server's, as given.
        name: ``"reverb"``.
    """

    name = "reverb"

    def __init__(self, address: str, connect_timeout: float | None = None) -> None:
        self.address = address
        self._host, self._port, path = parse_address(address.removeprefix("reverb://"))
        if path is not None or not address.startswith("reverb://"):
            raise InvalidArgument(f"{address!r} is no address of a dm-reverb server; 'reverb://host:port' is")
        self._connect_timeout = connect_timeout
        self._channels: dict[str, ReplayChannel] = {}
        self._closed = False
        self._streams = LocalStreams(lambda: False)
        self._sessions = Sessions()
        self._known: dict[str, TableInfo] = {}
        self._highest: dict[str, float] = {}

    async def hello(self) -> Hello:
        """Look at the server; blocks of keys are random, as dm-reverb's clients' keys are."""
        answer = await self._unary("ServerInfo", b"")
        self._known = read_server_info(answer)
        block = secrets.randbelow(_BLOCKS) * KEYS_PER_BLOCK
        return Hello(PROTOCOL_VERSION, (), read_state_id(answer), block, MAX_MESSAGE_BYTES)

    async def open(self, kind: StreamKind) -> Duplex:
        """Open a stream; the server is called by the task that serves it."""
        self._check_open()
        serve: dict[StreamKind, Callable[[Duplex], Awaitable[None]]] = {
            "insert": self._insert,
            "sample": self._sample,
            "update": lambda duplex: serve_updates(self._unary, self._table, duplex),
        }
        return self._streams.open(serve[kind], f"{kind} stream of {self.address}")

    async def _insert(self, duplex: Duplex) -> None:
        await ForeignInsert(duplex, self._opener("insert"), self._table, self._sessions, self._highest).run()

    async def _sample(self, duplex: Duplex) -> None:
        await ForeignSample(duplex, self._opener("sample"), self._unary, self._table).run()

    def _opener(self, channel: str) -> Callable[[str], Awaitable[ForeignCall]]:
        return lambda method: ForeignCall.open(self._channel(channel), method, self.address)

    async def reset(self, table: str) -> None:
        """Remove all items of a table."""
        await self._table(table)
        await self._unary("Reset", bytes(reverb.ResetRequest(table=table)))

    async def server_info(self) -> list[TableInfo]:
        """Describe the server's tables; what dm-reverb does not tell is 0."""
        self._known = read_server_info(await self._unary("ServerInfo", b""))
        return list(self._known.values())

    async def _table(self, name: str) -> TableInfo:
        """Describe a table, from memory if it is known."""
        if name not in self._known:
            await self.server_info()
        if name not in self._known:
            raise TableNotFound(name, self._known)
        return self._known[name]

    async def server_status(self) -> ServerStatus:
        """Refuse: dm-reverb does not tell."""
        raise InvalidArgument(f"{self.address} is a dm-reverb server: it tells nothing about itself but its tables")

    async def checkpoint(self) -> str:
        """Have the server write a checkpoint; return its path there."""
        answer = await self._unary("Checkpoint", b"")
        path: str = reverb.CheckpointResponse.parse(bytes(answer)).checkpoint_path
        return path

    async def close(self) -> None:
        """Close all connections; streams and calls on them fail. Does nothing the second time."""
        self._closed = True
        await self._streams.close()
        while self._channels:
            self._channels.popitem()[1].close()

    async def _unary(self, method: str, request: bytes) -> Data:
        return await unary(self._channel("control"), method, request, self.address)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the connection to {self.address} was closed")

    def _channel(self, name: str) -> ReplayChannel:
        self._check_open()
        if name not in self._channels:
            self._channels[name] = ReplayChannel(
                self._host, self._port, connect_timeout=self._connect_timeout, max_message_bytes=MAX_MESSAGE_BYTES
            )
        return self._channels[name]
