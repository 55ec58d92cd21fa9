"""One HTTP/2 stream, as grpclib's servers and clients use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import grpclib.protocol
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.utils import Wrapper
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import StreamClosedError, TooManyStreamsError

from reverb_async.errors import InvalidArgument, ResourceExhausted
from reverb_async.wire.codec import Body, Encoded
from reverb_async.wire.http2.guards import Stalled
from reverb_async.wire.http2.receive_buffer import ReceiveBuffer
from reverb_async.wire.http2.window import INITIAL_WINDOW, Hold, StreamWindow
from reverb_async.wire.status import to_grpc_error

if TYPE_CHECKING:
    from reverb_async.wire.http2.connection import Connection

PREFIX_BYTES = 5
"""What gRPC puts before each message: a byte that says whether it is compressed, and its length."""

Headers = list[tuple[str, str]]


def message_prefix(size: int) -> bytes:
    """Return what goes before an uncompressed message of `size` bytes."""
    return b"\0" + size.to_bytes(4, "big")


class Stream(grpclib.protocol.Stream):
    """A stream that bounds its messages, grows its window, and whose waits all end with it.

    Attributes:
        is_stored: whether what its messages bring is stored by the server.
    """

    buffer: ReceiveBuffer  # type: ignore[assignment]
    connection: Connection

    needs_message = False
    """Whether a call that ends now has ended too early."""
    answered = False
    """Whether this side has sent headers."""
    framed = 0
    """Bytes of messages handed to the transport."""
    stalled: float | None = None
    """For how many seconds the peer gave no credit, once that was too long."""

    def __init__(
        self,
        connection: Connection,
        h2_connection: H2Connection,
        transport: asyncio.Transport,
        *,
        stream_id: int | None = None,
        wrapper: Wrapper | None = None,
    ) -> None:
        self.max_message_bytes = connection.max_message_bytes
        self.terminated: str | None = None
        self.is_stored = False
        self._window = StreamWindow(connection.window_budget)
        self._unit: Hold | None = None
        self._prefix = b""
        self._body_is_next = False
        super().__init__(connection, h2_connection, transport, stream_id=stream_id, wrapper=wrapper)

    def init_stream(self, stream_id: int, connection: grpclib.protocol.Connection) -> None:
        """Take an id, and with it a buffer."""
        self.id = stream_id
        self.buffer = ReceiveBuffer(partial(connection.ack, stream_id))
        connection.streams_started += 1
        self.created = connection.last_stream_created = time.monotonic()

    async def recv_data(self, size: int) -> bytes:
        """Return a message's prefix or, called next, its body. A cancelled call can be repeated from the prefix on.

        Raises:
            GRPCError: the message is too long, compressed, or cut off by the end of the stream.
        """
        if self._body_is_next:
            self._body_is_next = False
            body = await self.buffer.read(size)
            if len(body) < size:
                raise self.cut_off(size - len(body))
            self._prefix = b""
            return body
        if not self._prefix:
            prefix = await self.buffer.read(PREFIX_BYTES, is_first=True)
            if not prefix:
                self._check_end()
                return b""
            self.needs_message = False
            self._check_prefix(prefix)
            self._prefix = prefix
        self._body_is_next = True
        return self._prefix

    def ready(self, most: int, nbytes: int) -> list[Body]:
        """Return the next messages that are known to be here whole, at most so many, and none behind so many bytes."""
        return []

    async def receive(self) -> Body | None:
        """Return the next message's body, None at the end of the stream. Cancelling loses nothing.

        Raises:
            GRPCError: the message is too long, compressed, or cut off by the end of the stream.
        """
        prefix = await self.recv_data(PREFIX_BYTES)
        return await self.recv_data(int.from_bytes(prefix[1:], "big")) if prefix else None

    def listen(self, take: Callable[[Body], bool]) -> None:
        """Offer short messages that somebody waits for to `take`, which returns whether it took them; or offer none."""

    def _check_end(self) -> None:
        """Refuse a call of a unary method that has ended without a message."""
        if self.needs_message:
            raise to_grpc_error(InvalidArgument("the call ended without a message"))

    def finish_reading(self) -> None:
        """Let the reader come to an end after what has been received, or has begun to be; never waits."""
        self.buffer.finish()

    @property
    def is_cut_short(self) -> bool:
        """Whether `finish_reading` ended the messages before their sender did."""
        return self.buffer.stopped

    def _check_prefix(self, prefix: bytes) -> None:
        if len(prefix) < PREFIX_BYTES:
            raise self.cut_off(PREFIX_BYTES - len(prefix))
        refusal = self.refusal_of(prefix)
        if refusal is not None:
            raise refusal
        self.expect(int.from_bytes(prefix[1:], "big"))

    def refusal_of(self, prefix: bytes) -> GRPCError | None:
        """Return why a message that begins with this prefix is not taken."""
        if prefix[0] == 1:
            refusal = InvalidArgument("compressed messages are not supported; send them uncompressed")
            return GRPCError(Status.UNIMPLEMENTED, str(refusal), refusal.to_map())
        if prefix[0]:
            return to_grpc_error(InvalidArgument(f"a message begins with {prefix[0]}, expected 0"))
        length = int.from_bytes(prefix[1:], "big")
        if length > self.max_message_bytes:
            return to_grpc_error(
                ResourceExhausted(
                    f"a message of {length} bytes exceeds the limit of {self.max_message_bytes} (max_message_bytes)"
                )
            )
        return None

    def expect(self, length: int) -> None:
        """Make room in the window for a message of this length, which somebody reads."""
        raised = self._window.grow(length)
        if raised and self.closable:
            assert self.id is not None
            self._h2_connection.increment_flow_control_window(raised, self.id)
            self.connection.flush()

    def hold(
        self, length: int, granted: Callable[[], object], failed: Callable[[ResourceExhausted], object]
    ) -> Hold | None:
        """Ask for room for a long message that is about to come; None if it may come in any case.

        Args:
            length: the message's.
            granted: called when there is room, unless there is now.
            failed: called when there will be none.
        """
        budget = self._window.budget
        if budget is None or length <= INITIAL_WINDOW or self._unit is not None:
            return None
        hold = Hold(length, self.is_stored, granted, failed)
        budget.hold(hold)
        return hold

    def release(self, hold: Hold) -> None:
        """Return the room for a message, or do without."""
        assert self.connection.window_budget is not None
        self.connection.window_budget.release(hold)

    async def hold_unit(self, length: int) -> None:
        """Wait for room for a message of this length, of which a part has come; `release_unit` when it is complete.

        Its parts need no room of their own.

        Raises:
            GRPCError: there will be none.
        """
        if self._window.budget is None or self._unit is not None:
            return
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def grant() -> None:
            if not room.done():
                room.set_result(None)

        def fail(error: ResourceExhausted) -> None:
            if not room.done():
                room.set_exception(to_grpc_error(error))

        self._unit = self.hold(length, grant, fail)
        if self._unit is not None and not self._unit.is_granted:
            await room

    def release_unit(self) -> None:
        """Return what `hold_unit` took, if it did."""
        if self._unit is not None:
            unit, self._unit = self._unit, None
            self.release(unit)

    def cut_off(self, missing: int) -> Exception:
        """Return what a reader is to meet whose message has ended before its end."""
        if self.terminated is not None:
            return StreamTerminatedError(self.terminated)
        return to_grpc_error(InvalidArgument(f"the stream ended {missing} bytes before its message did"))

    async def send_request(
        self, headers: Headers, end_stream: bool = False, *, _processor: grpclib.protocol.EventsProcessor
    ) -> Callable[[], None]:
        """Open the stream; waits while the peer admits no more streams."""
        while True:
            await self._writable()
            if self.connection.is_leaving:
                raise StreamTerminatedError("the server goes away")
            try:
                stream_id = self._h2_connection.get_next_available_stream_id()
                self._h2_connection.send_headers(stream_id, headers, end_stream=end_stream)
            except TooManyStreamsError:
                self.connection.stream_close_waiter.clear()
                await self.connection.stream_close_waiter.wait()
                continue
            self.init_stream(stream_id, self.connection)
            release_stream = _processor.register(self)
            self.connection.flush()
            self.connection.headers_send_process()
            return release_stream

    async def send_headers(self, headers: Headers, end_stream: bool = False) -> None:
        """Send headers or trailers.

        Raises:
            StreamClosedError: the stream is gone; grpclib's server expects this error.
        """
        assert self.id is not None
        await self.connection.write_ready.wait()
        if self.terminated is not None or self.id not in self._h2_connection.streams:
            raise StreamClosedError(self.id)
        self.answered = True
        self._h2_connection.send_headers(self.id, headers, end_stream=end_stream)
        self.connection.flush()
        self.connection.headers_send_process()

    async def send_message(self, message: Encoded, *, end_stream: bool = False) -> None:
        """Send a message; waits for the peer's window and the transport. Cancelling may break the stream."""
        await self.send_data(message_prefix(message.nbytes) + message.join(), end_stream)

    def try_send_message(self, message: Encoded) -> bool:
        """Send a message if all of it can go out now, in one frame; return whether it did."""
        return False

    async def send_data(self, data: bytes, end_stream: bool = False) -> None:
        """Send all of `data`; waits for the peer's window and the transport."""
        assert self.id is not None
        view = memoryview(data)
        h2_connection = self._h2_connection
        if end_stream and not view:
            return await self.end()
        try:
            while view:
                await self._writable()
                window = h2_connection.local_flow_control_window(self.id)
                if window <= 0:
                    await self._starve()
                    continue
                size = min(len(view), window, h2_connection.max_outbound_frame_size)
                chunk, view = view[:size], view[size:]
                h2_connection.send_data(self.id, chunk, end_stream=end_stream and not view)
                self.connection.flush()
                self.framed += size
                self.connection.framed += size
                self.data_sent += size
                self.connection.data_sent += size
                self.connection.data_send_process()
        finally:
            self.connection.starving.pop(self, None)

    @property
    def send_window(self) -> int:
        """The peer's credit for this stream alone."""
        h2_stream = self._h2_connection.streams.get(cast("int", self.id))
        return 0 if h2_stream is None else h2_stream.outbound_flow_control_window

    async def _starve(self) -> None:
        """Wait for credit.

        Raises:
            Stalled: there was none for too long.
        """
        if self.stalled is None:
            self.window_updated.clear()
            self.connection.starving.setdefault(self, None)
            await self.window_updated.wait()
        if self.stalled is not None:
            raise Stalled(self.stalled)

    def stall(self, timeout: float) -> None:
        """Let whoever sends fail: there was no credit for `timeout` seconds."""
        self.stalled = timeout
        self.window_updated.set()

    async def end(self) -> None:
        """End this side."""
        assert self.id is not None
        await self._writable()
        self._h2_connection.end_stream(self.id)
        self.connection.flush()

    async def _writable(self) -> None:
        """Wait until the transport takes data.

        Raises:
            StreamTerminatedError: the stream or its connection is gone.
        """
        async with self.connection.turn:
            await self.connection.write_ready.wait()
        if self.connection.is_closing():
            if self.id is None:
                raise StreamTerminatedError(self.connection.end_reason)
            while self.terminated is None:  # soon: then grpclib knows it too, and takes it for no fault of the handler
                self.window_updated.clear()
                await self.window_updated.wait()
        if self.terminated is not None:
            raise StreamTerminatedError(self.terminated)

    async def reset(self, error_code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Tell the peer that the stream is over, unless it is already."""
        await self.connection.write_ready.wait()
        if self.closable:
            self.reset_nowait(error_code)

    def reset_nowait(self, error_code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Tell the peer that the stream is over; never waits."""
        assert self.id is not None
        self._h2_connection.reset_stream(self.id, error_code=error_code)
        self.connection.flush()

    def abort(self, reason: str) -> None:
        """End the stream at once, on both sides; whoever waits for it on this side is woken."""
        if self.id is not None and self.closable:
            self.reset_nowait(ErrorCodes.CANCEL)
        self._end_waits(reason)

    def drop_unread(self) -> None:
        """Forget what nobody will read, and return the credit for it to the peer."""
        assert self.id is not None
        unread = self.buffer.unacked_size()
        if not self.connection.is_closing():
            self.connection.ack(self.id, unread)

    def close_window(self) -> None:
        """Return what the stream holds of the window budget."""
        self.release_unit()
        self._window.close()

    def __terminated__(self, reason: str) -> None:
        """Learn from the connection that the stream is no more."""
        if self.terminated is None:
            super().__terminated__(reason)
            self._end_waits(reason)

    def _end_waits(self, reason: str) -> None:
        if self.terminated is None:
            self.terminated = reason
        if self.id is not None:
            self.buffer.eof()
        self.window_updated.set()
        self.headers_received.set()
        self.trailers_received.set()
