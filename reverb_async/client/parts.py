"""What a client consists of once it has been used."""

from __future__ import annotations

import asyncio
import weakref

from reverb_async.client.connector import Connector
from reverb_async.client.sampling.batch_stream import HURRIED_LEAVE_S, BatchStream
from reverb_async.client.sampling.sampler import StreamPool
from reverb_async.client.shared_memory import SharedMemory
from reverb_async.client.transport import Transport
from reverb_async.client.updates import UpdateStream
from reverb_async.client.writing.rows import RowInserter
from reverb_async.protocol.sampling import Subscription


class Parts:
    """The streams of one client, and what they share."""

    def __init__(self, transport: Transport, connect_timeout: float | None, memory: SharedMemory) -> None:
        self.connector = Connector(transport, connect_timeout, memory)
        self.rows = RowInserter(self.connector)
        self.updates = UpdateStream(self.connector)
        self.pool = StreamPool(self.open_stream)
        # Streams that are open live by their tasks.
        self._streams: weakref.WeakSet[BatchStream] = weakref.WeakSet()

    def open_stream(self, wanted: Subscription, *, prefetch: int = 0, limit: int | None = None) -> BatchStream:
        """Return a stream that opens when it is first used."""
        stream = BatchStream(self.connector, self.updates, wanted, prefetch=prefetch, limit=limit)
        self._streams.add(stream)
        return stream

    async def close(self) -> None:
        """Close everything, streams first."""
        try:
            leaving = [stream.leave(HURRIED_LEAVE_S) for stream in self._streams]
            await asyncio.gather(*leaving, self.rows.close())
            await self.updates.close()
        finally:
            await self.connector.close()
