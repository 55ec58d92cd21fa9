"""grpclib's channel on our connections, and calls that are read and written message by message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import grpclib.client
from grpclib.const import Status
from grpclib.encoding.base import GRPC_CONTENT_TYPE, CodecBase
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.metadata import USER_AGENT, decode_bin_value, decode_grpc_message
from grpclib.protocol import H2Protocol

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.security.tls import HANDSHAKE_S, SHUTDOWN_S, ClientTLS
from reverb_async.wire.codec import Body, Encoded
from reverb_async.wire.grpc_codec import GrpcCodec, decode_body, encode_chunks
from reverb_async.wire.http2.connection import MAX_MESSAGE_BYTES, Endpoint, Protocol
from reverb_async.wire.http2.data_path import chosen_protocol
from reverb_async.wire.http2.stream import Stream
from reverb_async.wire.http2.window import LARGEST_WINDOW
from reverb_async.wire.status import ERROR_KEY, unpack_details


class ReplayChannel(grpclib.client.Channel):
    """A connection to a server, made by the first call and again by the first after it was lost.

    Args:
        host, port, path: a TCP address or the path of a Unix socket.
        codec: `GrpcCodec(owned=True)` unless given.
        connect_timeout: seconds until an attempt to connect is given up.
        max_message_bytes: longer messages from the server are refused.
        tls: how to encrypt, over TCP; None: not at all.
        silence_s: a connection on which nothing was heard for so long is given up, half of it after a PING; None: it is
            not watched, and asked nothing.
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        path: str | None = None,
        codec: CodecBase | None = None,
        tls: ClientTLS | None = None,
        connect_timeout: float | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        silence_s: float | None = None,
    ) -> None:
        chosen_protocol()  # refuses a choice that is none now, instead of the first call
        self._connect_timeout = connect_timeout
        self._endpoint = Endpoint(
            stream_window=LARGEST_WINDOW, max_message_bytes=max_message_bytes, silence_s=silence_s
        )
        codec = codec or GrpcCodec(owned=True)
        super().__init__(host, port, path=path, codec=codec, config=self._endpoint.config)
        self._tls = tls
        self._scheme = "http" if tls is None else "https"

    def _protocol_factory(self) -> H2Protocol:
        made = super()._protocol_factory()
        return cast("H2Protocol", chosen_protocol()(made.handler, made.config, made.h2_config, self._endpoint))

    async def _create_connection(self) -> H2Protocol:
        if self._tls is None:
            return await super()._create_connection()
        _, protocol = await asyncio.get_running_loop().create_connection(
            cast("Callable[[], asyncio.Protocol]", self._protocol_factory),
            self._host,
            self._port,
            ssl=self._tls.load(),
            server_hostname=self._tls.server_name or self._host,
            ssl_handshake_timeout=HANDSHAKE_S,
            ssl_shutdown_timeout=SHUTDOWN_S,
        )
        return cast("H2Protocol", protocol)

    async def __connect__(self) -> H2Protocol:
        """Return the connection, made now if there is none.

        Raises:
            OSError: there is no connection to be had.
        """
        if self._connected:
            return await super().__connect__()
        try:
            async with asyncio.timeout(self._connect_timeout) as deadline:
                return await super().__connect__()
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise ConnectionError(f"no connection within {self._connect_timeout} s") from error

    def close(self) -> None:
        """Close all connections, also those that only wait for the end of their streams."""
        for protocol in list(self._endpoint.connections):
            protocol.processor.close()
        super().close()

    async def open_call(self, path: str, more_headers: Sequence[tuple[str, str]] = ()) -> Call:
        """Send the headers of a call of method `path`.

        Raises:
            OSError: there is no connection to be had.
            StreamTerminatedError: it was lost just now.
        """
        protocol = cast("Protocol", await self.__connect__())
        stream = protocol.connection.create_stream()
        headers = [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", GRPC_CONTENT_TYPE),
            ("user-agent", USER_AGENT),
            *more_headers,
        ]
        release = await stream.send_request(headers, _processor=protocol.processor)
        return Call(stream, release, self._codec)


class Call:
    """A gRPC call from the client's side.

    grpclib's own class cancels the task that waits for a stream when the stream ends; this one delivers everything that
    arrived before the end, can be left without waiting, and keeps the error's details.
    """

    def __init__(self, stream: Stream, release: Callable[[], None], codec: CodecBase) -> None:
        self._stream = stream
        self._release = release
        self._codec = codec
        self._ended = False

    @property
    def pool(self) -> BufferPool:
        """Where its connection takes the memory of long messages from."""
        return self._stream.connection.pool

    async def send(self, message: Any, message_type: type, *, end: bool = False) -> None:
        """Send a message, and with it the end of this side.

        Raises:
            GRPCError: the server has ended the call with an error.
            StreamTerminatedError: the stream is gone.
        """
        await self.send_encoded(encode_chunks(self._codec, message, message_type), end=end)

    async def send_encoded(self, message: Encoded, *, end: bool = False) -> None:
        """Send a message that is encoded already; see `send`."""
        assert not self._ended
        try:
            await self._stream.send_message(message, end_stream=end)
        except StreamTerminatedError:
            self._raise_for_status()
            raise
        self._ended = end

    def try_send_encoded(self, message: Encoded) -> bool:
        """Send a message if all of it can go out now; return whether it did."""
        assert not self._ended
        return self._stream.try_send_message(message)

    @property
    def has_unread(self) -> bool:
        """Whether the server has sent more than was received: perhaps only a part of a message."""
        return self._stream.buffer.has_unread

    async def receive(self, message_type: type) -> Any:
        """Return the next message, None once the server has ended the call with success. Cancelling loses nothing.

        Raises:
            GRPCError: the call has failed, or the message is malformed or too long.
            StreamTerminatedError: the stream is gone.
        """
        body = await self.receive_body()
        return None if body is None else decode_body(self._codec, body, message_type)

    async def receive_body(self) -> Body | None:
        """Return the next message as it was received; see `receive`."""
        stream = self._stream
        body = await stream.receive()
        if body is None and not self._raise_for_status():
            raise StreamTerminatedError(stream.terminated or "the server ended the stream without a status")
        return body

    def listen(self, take: Callable[[Body], bool]) -> None:
        """Offer short messages that somebody waits for to `take`, which returns whether it took them; or offer none."""
        self._stream.listen(take)

    async def end(self) -> None:
        """End this side.

        Raises:
            GRPCError: the server has ended the call with an error.
            StreamTerminatedError: the stream is gone.
        """
        if self._ended:
            return
        try:
            await self._stream.end()
        except StreamTerminatedError:
            if not self._raise_for_status():
                raise
        self._ended = True

    def abort(self, reason: str = "aborted") -> None:
        """End the call if it has not ended; whoever waits for it meets `StreamTerminatedError`. Never waits."""
        self._stream.abort(reason)
        self._release()

    def _raise_for_status(self) -> bool:
        """Raise the error the server ended the call with; return whether it has ended with success."""
        headers = dict(self._stream.headers or ())
        if headers.get(":status", "200") != "200":
            status = grpclib.client._H2_TO_GRPC_STATUS_MAP.get(headers[":status"], Status.UNKNOWN)
            raise GRPCError(status, f"the server answered with HTTP status {headers[':status']}")
        last = dict(self._stream.trailers or self._stream.headers or ())
        if "grpc-status" not in last:
            return False
        code = last["grpc-status"]
        if code == "0":
            return True
        known = {str(status.value): status for status in Status}
        message = decode_grpc_message(last["grpc-message"]) if "grpc-message" in last else None
        raise GRPCError(known.get(code, Status.UNKNOWN), message, _details(last))


def _details(trailers: dict[str, str]) -> dict[str, Any] | None:
    try:
        return unpack_details(decode_bin_value(trailers.get(ERROR_KEY, "").encode("ascii")))
    except ValueError:  # no base64
        return None
