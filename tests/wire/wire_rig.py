"""A connection without a network: our server's end of it, fed with bytes, and a peer made with plain h2."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any

import grpclib.protocol
from grpclib.exceptions import GRPCError, StreamTerminatedError
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, RstStreamFrame

from reverb_async.wire.http2.connection import Endpoint, Protocol, StockProtocol
from reverb_async.wire.http2.data_path import FastProtocol
from reverb_async.wire.http2.stream import Stream

PATHS = {"fast": FastProtocol, "stock": StockProtocol}

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.Service/Method"),
    (":authority", "here"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closing = False
        self.paused = False

    def write(self, data: Any) -> None:
        assert not self.closing
        self.written += data

    def writelines(self, chunks: Iterable[Any]) -> None:
        for chunk in chunks:
            self.write(chunk)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def close(self) -> None:
        self.closing = True

    abort = close

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Handler(grpclib.protocol.AbstractHandler):
    """Keeps the streams that are opened."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.releases: dict[int, Any] = {}

    def accept(self, stream: Any, headers: Any, release_stream: Any) -> None:
        self.streams[stream.id] = stream
        self.releases[stream.id] = release_stream

    def cancel(self, stream: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Rig:
    """Our end and its peer; lives within a running loop.

    Args:
        path: "fast" or "stock".
        endpoint: of our end.
    """

    def __init__(self, path: str, endpoint: Endpoint | None = None) -> None:
        self.transport = Transport()
        self.handler = Handler()
        config = H2Configuration(client_side=False, header_encoding="ascii")
        made: type[Protocol] = PATHS[path]
        self.endpoint = endpoint or Endpoint(stream_window=16 << 20)
        self.protocol = made(self.handler, self.endpoint.config.__for_server__(), config, self.endpoint)
        self.protocol.connection_made(self.transport)
        self.peer = H2Connection(H2Configuration(client_side=True, header_encoding="ascii"))
        self.peer.initiate_connection()
        self.frames: list[Frame] = []
        self.events: list[Any] = []
        self.exchange()

    @property
    def h2(self) -> H2Connection:
        """Our end's state machine."""
        return self.protocol.connection._connection

    def open(self, *, more_headers: Iterable[tuple[str, str]] = ()) -> int:
        """Let the peer open a stream; return its id."""
        stream_id = self.peer.get_next_available_stream_id()
        self.peer.send_headers(stream_id, [*HEADERS, *more_headers])
        self.exchange()
        return stream_id

    def exchange(self, cuts: Iterable[int] = ()) -> None:
        """Deliver what both have to say, the peer's in pieces of these sizes."""
        while data := self.peer.data_to_send():
            self.feed(data, cuts)
            self.answer()
        self.answer()

    def answer(self) -> None:
        """Deliver what our end has said."""
        written, self.transport.written = bytes(self.transport.written), bytearray()
        self.frames += parse(written)
        self.events += self.peer.receive_data(written)

    def feed(self, data: bytes, cuts: Iterable[int] = ()) -> None:
        """Let our end receive `data`, in pieces of these sizes, the rest as one."""
        protocol = self.protocol
        left = memoryview(data)
        for cut in chain(cuts, repeat(len(data) or 1)):
            if not left or self.transport.closing:
                break
            piece, left = left[:cut], left[cut:]
            if isinstance(protocol, StockProtocol):
                protocol.data_received(bytes(piece))
                self._catch_up()
                continue
            assert isinstance(protocol, FastProtocol)
            while piece and not self.transport.closing:
                room = protocol.get_buffer(-1)
                assert len(room), "asyncio refuses an empty buffer"
                taken = min(len(room), len(piece))
                room[:taken] = piece[:taken]
                protocol.buffer_updated(taken)
                piece = piece[taken:]
                self._catch_up()

    def _catch_up(self) -> None:
        """Let our end work off what it has put off until later turns of the loop."""
        while self.transport.paused and not self.transport.closing:
            self.protocol.go_on()

    async def read(self, stream_id: int) -> list[Any]:
        """Return all messages of a stream that are there, and how it ended: None, a status, or "open"."""
        stream = self.handler.streams[stream_id]
        found: list[Any] = []
        while True:
            reading = asyncio.ensure_future(stream.receive())
            for _ in range(3):
                await asyncio.sleep(0)
            if not reading.done():
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                return [*found, "open"]
            try:
                body = reading.result()
            except GRPCError as error:
                return [*found, error.message]
            except StreamTerminatedError:
                return [*found, "terminated"]
            if body is None:
                return [*found, None]
            found.append(bytes(body))

    def errors(self) -> list[tuple[str, int, int]]:
        """Return what our end complained of: kind, stream and error code."""
        return [
            (type(frame).__name__, frame.stream_id, frame.error_code)
            for frame in self.frames
            if isinstance(frame, GoAwayFrame | RstStreamFrame)
        ]

    def sent_data(self, stream_id: int) -> bytes:
        """Return the payload our end has sent on a stream."""
        return b"".join(
            frame.data for frame in self.frames if isinstance(frame, DataFrame) and frame.stream_id == stream_id
        )

    def check_credit(self) -> None:
        """Check that every byte's credit has been returned and that both ends count alike."""
        self.answer()
        managers = {0: self.h2._inbound_flow_control_window_manager}
        managers |= {key: stream._inbound_window_manager for key, stream in self.h2.streams.items() if stream.open}
        for stream_id, manager in managers.items():
            owed = manager.max_window_size - manager.current_window_size
            # h2 forgets some of a maximum that is raised while the window is not full, hence not ==.
            assert manager._bytes_processed >= owed, f"stream {stream_id} owes {owed - manager._bytes_processed}"
            if stream_id:
                peers = self.peer.streams[stream_id].outbound_flow_control_window
            else:
                peers = self.peer.outbound_flow_control_window
            assert peers == manager.current_window_size


def parse(data: bytes) -> Iterator[Frame]:
    """Yield the frames in `data`."""
    position = 0
    while position < len(data):
        frame, length = Frame.parse_frame_header(memoryview(data)[position : position + 9])
        frame.parse_body(memoryview(data)[position + 9 : position + 9 + length])
        position += 9 + length
        yield frame


def message(body: bytes, flag: int = 0) -> bytes:
    """Return a gRPC message as it travels."""
    return bytes([flag]) + len(body).to_bytes(4, "big") + body


def frame(kind: int, flags: int, stream_id: int, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a frame, its length a lie if given."""
    size = len(body) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + body


def settings_of(rig: Rig, changes: dict[SettingCodes, int]) -> None:
    """Let the peer change its settings."""
    rig.peer.update_settings(changes)
    rig.exchange()
