"""A client that can break every rule: h2 makes its frames, or they are written by hand."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived, TrailersReceived
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame
from wire_rig import HEADERS, parse
from wire_services import HELLO, INSERT

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


class RawPeer:
    """One connection to a server.

    Attributes:
        frames: what the server has sent, as far as it was read.
        answers: headers and trailers that were read, by stream.
        ended: whether the server has ended the connection.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="latin-1", **UNCHECKED))
        self.frames: list[Frame] = []
        self.answers: dict[int, dict[str, str]] = {}
        self.ended = False
        self._unparsed = b""
        self._greeted = False

    async def greet(self, settings: dict[SettingCodes, int] | None = None) -> None:
        """Send preface and settings."""
        self._greeted = True
        self.h2.local_settings = Settings(client=True, initial_values={SettingCodes.ENABLE_PUSH: 0, **(settings or {})})
        self.h2.initiate_connection()
        await self.flush()

    def request(self, path: str = INSERT, *, end: bool = False, more: Iterable[tuple[str, str]] = ()) -> int:
        """Note the headers of a call; return its stream."""
        stream_id = self.h2.get_next_available_stream_id()
        headers = [(name, path if name == ":path" else value) for name, value in HEADERS]
        self.h2.send_headers(stream_id, [*headers, *more], end_stream=end)
        return stream_id

    async def flush(self) -> None:
        """Send what was noted."""
        await self.write(self.h2.data_to_send())

    async def write(self, data: bytes) -> bool:
        """Send bytes; return whether the connection took them."""
        try:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)
        except OSError:
            self.ended = True
        return not self.ended

    async def read(self) -> list[Frame]:
        """Wait for something from the server and return it; nothing once the connection has ended."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return []
        self._unparsed += data
        whole = 0
        while len(self._unparsed) - whole >= 9:
            size = 9 + int.from_bytes(self._unparsed[whole : whole + 3], "big")
            if len(self._unparsed) - whole < size:
                break
            whole += size
        new = list(parse(self._unparsed[:whole]))
        if self._greeted:
            with contextlib.suppress(Exception):  # it may have been told lies about the state of things
                for event in self.h2.receive_data(self._unparsed[:whole]):
                    if isinstance(event, ResponseReceived | TrailersReceived):
                        self.answers.setdefault(event.stream_id, {}).update(event.headers)
            await self.flush()
        self._unparsed = self._unparsed[whole:]
        self.frames += new
        return new

    async def read_until(self, kind: type[Frame], timeout: float = 5.0, **fields: int) -> Frame:
        """Read until a frame of a kind comes."""
        async with asyncio.timeout(timeout):
            seen = 0
            while True:
                for frame in self.frames[seen:]:
                    seen += 1
                    if isinstance(frame, kind) and all(getattr(frame, key) == value for key, value in fields.items()):
                        return frame
                assert not self.ended, f"the connection ended without {kind.__name__}: {self.frames[-5:]}"
                await self.read()

    async def read_to_the_end(self, timeout: float = 5.0) -> list[tuple[str, int]]:
        """Read until the connection ends; return what the server complained of: kind and error code."""
        async with asyncio.timeout(timeout):
            while not self.ended:
                await self.read()
        return self.complaints()

    def complaints(self) -> list[tuple[str, int]]:
        """Return the kind and error code of each complaint that was read."""
        return [
            (type(frame).__name__, frame.error_code)
            for frame in self.frames
            if isinstance(frame, GoAwayFrame | RstStreamFrame)
        ]

    def vanish(self) -> None:
        """Let the kernel drop whatever comes in for this socket: no acknowledgement leaves this host any more."""
        drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0 bytes
        program = struct.pack("HL", 1, ctypes.addressof(drop_all))
        self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


SO_ATTACH_FILTER = 26
UNCHECKED = {
    "validate_outbound_headers": False,
    "normalize_outbound_headers": False,
    "validate_inbound_headers": False,
}


@asynccontextmanager
async def raw_peer(address: str, *, receive_buffer: int | None = None) -> AsyncIterator[RawPeer]:
    """Yield a connection over which nothing was said yet."""
    host, _, port = address.rpartition(":")
    with socket.socket() as sock:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        yield RawPeer(sock)


__all__ = ["HELLO", "INSERT", "PREFACE", "SETTINGS", "RawPeer", "raw_peer"]
