"""Calls of DeepMind's service, as bytes."""

from __future__ import annotations

from reverb_async.compat.scanning import Data, as_data
from reverb_async.errors import Unavailable
from reverb_async.wire.codec import Encoded
from reverb_async.wire.http2 import Call, ReplayChannel
from reverb_async.wire.status import status_as_errors

SERVICE = "deepmind.reverb.ReverbService"

MAX_MESSAGE_BYTES = 2 << 30
"""The largest message gRPC knows: dm-reverb's servers cut theirs between items, not within a large one."""


class ForeignCall:
    """A call, message by message; every method fails with a `ReplayError` only."""

    def __init__(self, call: Call, address: str) -> None:
        self._call = call
        self._address = address

    @classmethod
    async def open(cls, channel: ReplayChannel, method: str, address: str) -> ForeignCall:
        """Open a call of `method`, on a connection made now if there is none. Whoever gets it calls `abort` at last.

        Raises:
            Unavailable: the server at `address` cannot be reached.
        """
        with status_as_errors(address):
            return cls(await channel.open_call(f"/{SERVICE}/{method}"), address)

    async def send(self, message: bytes, *, end: bool = False) -> None:
        """Send a message, and with it the end of this side; waits while the server's window is full."""
        with status_as_errors(self._address):
            await self._call.send_encoded(Encoded([message], len(message)), end=end)

    async def receive(self) -> Data | None:
        """Return the next message; None once the server has ended the call with success."""
        with status_as_errors(self._address):
            body = await self._call.receive_body()
        return None if body is None else as_data(body)

    async def end(self) -> None:
        """End this side."""
        with status_as_errors(self._address):
            await self._call.end()

    def abort(self) -> None:
        """End the call if it has not ended; never waits."""
        self._call.abort()


async def unary(channel: ReplayChannel, method: str, request: bytes, address: str) -> Data:
    """Make a unary call; cancelling it ends it at the server, too.

    Raises:
        Unavailable: the server cannot be reached, or was lost before it answered.
        ReplayError: the server's refusal.
    """
    call = await ForeignCall.open(channel, method, address)
    try:
        await call.send(request, end=True)
        answer = await call.receive()
        if answer is None or await call.receive() is not None:
            raise Unavailable(f"{address} did not answer {method} once")
        return answer
    finally:
        call.abort()
