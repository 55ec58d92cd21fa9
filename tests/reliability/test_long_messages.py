"""What peers announce costs nothing: long messages are refused, or received a few at a time."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import TrailersReceived
from test_full_server import Process, linux_only, process

import reverb_async as ra

assert process

NATIVE, DEEPMIND = "/reverb_async.v1.Replay/Insert", "/deepmind.reverb.ReverbService/InsertStream"
MIB = 1 << 20
STREAMS = 500


class Peer:
    """A connection whose streams send a part of a message each, as far as the server lets them."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._left: dict[int, bytes] = {}
        self.refused: list[dict[str, str]] = []

    def open(self, path: str, declared: int, sent: int) -> None:
        stream_id = self._h2.get_next_available_stream_id()
        names = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
        self._h2.send_headers(stream_id, [*names.items(), ("content-type", "application/grpc")])
        self._left[stream_id] = b"\0" + declared.to_bytes(4, "big") + bytes(sent)

    def run(self, seconds: float, answers: int = STREAMS + 1) -> None:
        """Send and receive for a while, or until so many streams were answered."""
        until = time.monotonic() + seconds
        while len(self.refused) < answers and time.monotonic() < until:
            for stream_id, data in list(self._left.items()):
                size = min(len(data), self._h2.local_flow_control_window(stream_id), 1 << 14)
                if not size:
                    continue
                self._h2.send_data(stream_id, data[:size])
                self._left[stream_id] = data[size:]
                if size == len(data):
                    del self._left[stream_id]
            self._socket.sendall(self._h2.data_to_send())
            self._receive()

    def _receive(self) -> None:
        self._socket.settimeout(0.01)
        try:
            events = self._h2.receive_data(self._socket.recv(MIB))
        except TimeoutError:
            return
        finally:
            self._socket.settimeout(None)
        for event in events:
            headers = dict(getattr(event, "headers", None) or ())
            if isinstance(event, TrailersReceived) or "grpc-status" in headers:
                self.refused.append(headers)
            if hasattr(event, "stream_id") and type(event).__name__ in {"StreamReset", "StreamEnded"}:
                self._left.pop(event.stream_id, None)

    def close(self) -> None:
        self._socket.close()


@linux_only
@pytest.mark.parametrize("process", [()], indirect=True)
async def test_too_long_messages_are_refused_by_their_length(process: Process) -> None:
    async with ra.Client(process.address) as client:
        await client.insert({"x": np.zeros(10)}, {"replay": 1.0})
        before = process.rss
        peer = Peer(process.address)
        peer.open(NATIVE, 1900 * MIB, MIB)
        peer.run(20.0, answers=1)
        assert len(peer.refused) == 1
        assert process.rss - before <= MIB
        peer.close()
    for path, limit, streams in ((NATIVE, 64 * MIB, STREAMS), (DEEPMIND, 512 * MIB, 20)):
        before = process.rss
        peer = Peer(process.address)
        for _ in range(streams):
            peer.open(path, (1 << 32) - 1, MIB)
        peer.run(20.0, answers=streams)
        assert process.rss - before <= 64 * MIB
        assert len(peer.refused) == streams
        for headers in peer.refused:
            assert headers["grpc-status"] == "8"
            assert f"4294967295 bytes exceeds the limit of {limit} (max_message_bytes)" in headers["grpc-message"]
        peer.close()


@linux_only
@pytest.mark.parametrize("process", [("--max-bytes", "256MiB")], indirect=True)
async def test_messages_that_are_never_finished_leave_room_for_others(process: Process) -> None:
    before = process.rss
    peer = Peer(process.address)
    for _ in range(STREAMS):
        peer.open(NATIVE, 60 * MIB, MIB)
    peer.run(2.0)
    assert process.rss - before <= 64 * MIB
    async with ra.Client(process.address) as client:
        await client.insert({"x": np.zeros(5000, np.uint8)}, {"replay": 1.0}, timeout=5)
        assert (await client.sample_one("replay", timeout=5)).data["x"].shape == (5000,)
        status = await client.server_status()
        assert status.received_bytes <= 60 * MIB
    peer.close()
