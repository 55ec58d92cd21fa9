"""A stream of a handler whose messages are bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpclib.server import Stream

from reverb_async.compat.scanning import Data, as_data
from reverb_async.errors import Unavailable
from reverb_async.wire.codec import Encoded
from reverb_async.wire.http2 import JOINED_BYTES, Stalled, peer_name, transport_of
from reverb_async.wire.status import TRANSPORT_ERRORS, cause_of, from_grpc_error


class BytesStream:
    """The server's end of a stream; when the client leaves, grpclib cancels the handler."""

    def __init__(self, stream: Stream[Any, Any]) -> None:
        self._stream = stream
        self._transport = transport_of(stream)
        self.peer = peer_name(stream.peer)
        """Where the client is."""

    def ready(self, most: int, nbytes: int) -> list[Data]:
        """Return the next messages that are here already, at most so many, and none behind so many bytes."""
        return [as_data(body) for body in self._transport.ready(most, nbytes)]

    def finish_reading(self) -> None:
        """Have `receive` return None after what has been received, or has begun to be; see `OpenStreams`."""
        self._transport.finish_reading()

    @property
    def is_cut_short(self) -> bool:
        """Whether `finish_reading` ended the client's messages before it did."""
        return self._transport.is_cut_short

    async def receive(self) -> Data | None:
        """Return the next message, None once the client has ended its side.

        Raises:
            ResourceExhausted: it is too long.
            Unavailable: the client is gone.
        """
        try:
            body = await self._transport.receive()
        except TRANSPORT_ERRORS as error:
            raise from_grpc_error(error, "the client") from cause_of(error)
        return None if body is None else as_data(body)

    def try_send(self, chunks: Sequence[bytes]) -> bool:
        """Send a short message, given in pieces, if window and transport take it now; return whether they did."""
        size = sum(map(len, chunks))
        # The first message goes another way: it comes after the headers.
        if size > JOINED_BYTES or not self._stream._send_message_done:
            return False
        return self._transport.try_send_message(Encoded([*chunks], size))

    async def send(self, chunks: Sequence[bytes]) -> None:
        """Send a message, given in pieces; waits while the client's window is full.

        Raises:
            Unavailable: the client is gone, or has read nothing for too long.
        """
        if self.try_send(chunks):
            return
        try:
            if not self._stream._send_initial_metadata_done:
                await self._stream.send_initial_metadata()
            await self._transport.send_message(Encoded([*chunks], sum(map(len, chunks))))
            self._stream._send_message_done = True
        except Stalled as error:  # a learner that pauses: these clients silently try again when they are told this
            raise Unavailable(error.message or "") from error
        except TRANSPORT_ERRORS as error:
            raise from_grpc_error(error, "the client") from cause_of(error)
