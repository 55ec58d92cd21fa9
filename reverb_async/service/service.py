"""The native service: what a server does for its clients, whatever carries their messages."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.core.draw import MutateResult
from reverb_async.core.info import ServerStatus, TableInfo
from reverb_async.errors import CheckpointError, InvalidArgument
from reverb_async.protocol import lending
from reverb_async.protocol.hello import PROTOCOL_VERSION, Hello
from reverb_async.protocol.message import Duplex
from reverb_async.protocol.updating import MAX_KEYS
from reverb_async.replay import Replay
from reverb_async.service.insert_stream import InsertStream
from reverb_async.service.leases import Leases
from reverb_async.service.row_intake import RowIntake
from reverb_async.service.sample_stream import SampleStream
from reverb_async.service.update_stream import serve_updates

FEATURES = ("sessions", "credits", "parts")


@dataclass(frozen=True, slots=True)
class TransportStatus:
    """What a server's transports know of its status.

    Attributes:
        connections: peers connected.
        received_bytes: messages that are being received.
        cached_bytes: items kept encoded.
        others: further fields of `ServerStatus`.
    """

    connections: int = 0
    received_bytes: int = 0
    cached_bytes: int = 0
    others: Mapping[str, Any] = field(default_factory=dict)


class ReplayService:
    """Serves one `Replay`. Every method raises `ReplayError`s only, as far as the client is concerned."""

    def __init__(self, replay: Replay, max_message_bytes: int) -> None:
        self.replay = replay
        self.leases = Leases.of_this_process()
        """What clients on this host may read in our memory."""
        self._intake = RowIntake(replay)
        # Of a stream's batches one is gathered, others wait for the transport to pass them on. Streams share them: most
        # rest most of the time.
        self._pool = BufferPool(max_buffers=32, max_bytes=replay.limits.pooled_bytes)
        self._num_samplers = 0
        self._max_message_bytes = max_message_bytes
        self._started_at = time.monotonic()
        self.transport_status: Callable[[], TransportStatus] = TransportStatus
        """Tells what the transports know; set by the server."""
        self.save: Callable[[], Awaitable[str]] | None = None
        """Writes a checkpoint, if there is a checkpointer."""
        self.closing = False
        """The server is stopping: streams that end now end because of that."""

    def hello(self, protocol_version: int) -> Hello:
        """Answer a client that introduces itself; grants it a block of keys."""
        if protocol_version != PROTOCOL_VERSION:
            raise InvalidArgument(
                f"the client speaks protocol version {protocol_version}, this server {PROTOCOL_VERSION}; "
                f"install the same major version of reverb_async on both sides"
            )
        offer = self.leases.offer()
        return Hello(
            PROTOCOL_VERSION,
            FEATURES if offer is None else (*FEATURES, lending.FEATURE),
            self.replay.epoch,
            self.replay.grant_keys(),
            self._max_message_bytes,
            offer,
        )

    async def insert(self, duplex: Duplex) -> None:
        """Serve an Insert stream to its end."""
        await InsertStream(self.replay, self._intake, duplex).run()

    async def sample(self, duplex: Duplex) -> None:
        """Serve a Sample stream to its end."""
        self._num_samplers += 1
        try:
            await SampleStream(self.replay, duplex, self.leases, self._pool).run()
        finally:
            self._num_samplers -= 1
            if not self._num_samplers:
                self._pool.clear()

    async def update(self, duplex: Duplex) -> None:
        """Serve an Update stream to its end."""
        await serve_updates(self.replay, duplex)

    async def mutate_priorities(
        self, table: str, keys: Sequence[int], priorities: Sequence[float], deletes: Sequence[int]
    ) -> MutateResult:
        """Set priorities, then delete: the unary way, for clients without an Update stream."""
        if len(keys) != len(priorities):
            raise InvalidArgument(f"{len(keys)} keys and {len(priorities)} priorities: there must be one each")
        if len(keys) + len(deletes) > MAX_KEYS:
            raise InvalidArgument(
                f"one call changes at most {MAX_KEYS} keys, got {len(keys) + len(deletes)}: cut it up"
            )
        result = self.replay.table(table).mutate(_keys(keys), np.asarray(priorities, np.float64), _keys(deletes))
        await self.replay.logged()
        return result

    async def reset(self, table: str) -> None:
        """Empty a table."""
        self.replay.table(table).reset()
        await self.replay.logged()

    def server_info(self) -> list[TableInfo]:
        """Describe all tables."""
        rows = self.replay.storage.usage().live_rows
        return [replace(table.info, stored_rows=rows) for table in self.replay.tables.values()]

    def server_status(self) -> ServerStatus:
        """Describe the server itself."""
        replay, transport = self.replay, self.transport_status()
        cached = replay.encoded.tensors.nbytes + transport.cached_bytes
        return ServerStatus(
            epoch=replay.epoch,
            uptime=time.monotonic() - self._started_at,
            memory_used=replay.memory.used + transport.received_bytes + cached,
            memory_limit=replay.limits.max_bytes or 0,
            stored_bytes=replay.memory.used,
            staged_rows=replay.storage.usage().staged_rows,
            received_bytes=transport.received_bytes,
            cached_bytes=cached,
            num_refused=replay.memory.num_refused,
            connections=transport.connections,
            max_connections=replay.limits.max_connections,
            writers=replay.memory.num_writers,
            alarms=tuple(replay.alarms),
            **transport.others,
        )

    async def checkpoint(self) -> str:
        """Have everything written to disk; return where."""
        if self.save is None:
            raise CheckpointError("this server has no checkpointer: what it holds lives in memory only")
        return await self.save()


def _keys(keys: Sequence[int]) -> NDArray[np.uint64]:
    return np.asarray(keys, np.uint64)
