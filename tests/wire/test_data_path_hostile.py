"""The fast DATA path: frames that break a rule are answered as h2 answers them."""

from __future__ import annotations

import pytest
from wire_rig import Rig, frame, message, parse

from reverb_async.wire.http2 import connection
from reverb_async.wire.http2.connection import Endpoint
from reverb_async.wire.http2.window import INITIAL_WINDOW


def lying_headers(stream_id):
    return frame(1, 0, stream_id, b"")  # END_HEADERS is missing


HOSTILE = {
    "data on stream 0": frame(0, 0, 0, b"abc"),
    "data on a stream nobody opened": frame(0, 0, 5, b"abc"),
    "data on a stream of ours": frame(0, 0, 2, b"abc"),
    "data within a header block": lying_headers(3) + frame(0, 0, 1, b"abc"),
    "too long a frame": frame(0, 0, 1, bytes((1 << 20) + 1)),
    "too long a frame on stream 0": frame(0, 0, 0, bytes((1 << 20) + 1)),
    "too long a frame of another type": frame(6, 0, 0, bytes((1 << 20) + 1)),
    "more than the stream's window": frame(0, 0, 1, bytes(INITIAL_WINDOW + 1)),
    "more than the stream's window, padded": frame(0, 8, 1, b"\xff" + bytes(INITIAL_WINDOW)),
    "more than the stream's window in two frames": frame(0, 0, 1, message(bytes(70_000))[:60_000])
    + frame(0, 0, 1, bytes(6_000)),
    "padding longer than the frame": frame(0, 8, 1, b"\x05abc"),
    "padding without a length": frame(0, 8, 1, b""),
    "data after the end": frame(0, 1, 1, message(b"a")) + frame(0, 0, 1, b"abc"),
    "an end after the end": frame(0, 1, 1, message(b"a")) + frame(0, 1, 1, b""),
    "data after a reset": frame(3, 0, 1, b"\0\0\0\x08") + frame(0, 0, 1, b"abc"),
    "a window that grows too much": frame(8, 0, 1, b"\x7f\xff\xff\xff"),
    "a window that grows by nothing": frame(8, 0, 1, bytes(4)),
    "settings of a stream": frame(4, 0, 1, b""),
    "a continuation of nothing": frame(9, 4, 1, b""),
    "unknown flags": frame(0, 0xF6 & ~8, 1, message(b"abc")),
    "an unknown type": frame(0xEE, 0xFF, 1, b"abcd"),
    "a reserved bit": frame(0, 0, 1 | 1 << 31, message(b"abc")),
    "an empty frame": frame(0, 0, 1, b""),
    "only padding": frame(0, 8, 1, b"\3abc"),
}


@pytest.mark.parametrize("cut", [(), (1,) * 40, (9, 1, 4, 100, 9)], ids=["whole", "byte by byte", "odd"])
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
async def test_frames_that_break_a_rule_are_answered_as_h2_answers_them(data, cut):
    async def answer(path):
        rig = Rig(path, Endpoint())
        stream_id = rig.open()
        rig.feed(frame(0, 0, stream_id, message(b"first")))
        rig.feed(data, cut)
        rig.feed(frame(0, 0, stream_id, message(b"last")))
        rig.frames += parse(bytes(rig.transport.written))
        dropped = rig.transport.closing
        stream = rig.handler.streams[stream_id]
        whole = [found for found in await rig.read(stream_id) if isinstance(found, bytes)]
        return rig.errors(), dropped, stream.terminated, whole

    assert await answer("fast") == await answer("stock")


@pytest.mark.parametrize("path", ["fast", "stock"])
@pytest.mark.parametrize("kind", [0, 1, 6])
async def test_too_long_a_frame_is_refused_before_it_is_received(path, kind):
    rig = Rig(path)
    rig.feed(frame(kind, 0, rig.open() if kind < 6 else 0, length=(1 << 20) + 1))
    rig.frames += parse(bytes(rig.transport.written))
    assert rig.errors() == [("GoAwayFrame", 0, 6)]
    assert rig.transport.closing


async def test_a_buffer_that_was_asked_for_may_be_left_empty():
    rig = Rig("fast")
    stream_id, other = rig.open(), rig.open()
    whole = frame(0, 0, stream_id, message(bytes(100_000)))
    rig.feed(whole[:100])
    assert len(rig.protocol.get_buffer(-1)) == len(whole) - 100
    rig.handler.releases[stream_id]()  # now nobody wants the message, and its memory is gone
    rig.feed(whole[100:])
    rig.feed(frame(0, 0, other, message(b"abc")))
    assert await rig.read(other) == [b"abc", "open"]


async def test_a_frame_beyond_the_connections_window_ends_the_connection_as_with_h2():
    async def answer(path):
        rig = Rig(path)
        stream_id = rig.open()
        rig.h2._inbound_flow_control_window_manager.current_window_size = 10
        rig.feed(frame(0, 0, stream_id, message(b"1234567")))
        rig.frames += parse(bytes(rig.transport.written))
        return rig.errors(), rig.transport.closing

    assert await answer("fast") == await answer("stock") == ([("GoAwayFrame", 0, 3)], True)


@pytest.mark.parametrize("length", [3, 8, 9])
async def test_a_content_length_is_checked_as_by_h2(length):
    async def answer(path):
        rig = Rig(path)
        stream_id = rig.open(more_headers=[("content-length", str(length))])
        rig.feed(frame(0, 1, stream_id, message(b"abc")))
        rig.frames += parse(bytes(rig.transport.written))
        return rig.errors(), rig.transport.closing

    assert await answer("fast") == await answer("stock")


@pytest.mark.parametrize("path", ["fast", "stock"])
@pytest.mark.parametrize("asked", [frame(6, 0, 0, bytes(8)), frame(4, 0, 0)], ids=["pings", "settings"])
async def test_a_peer_that_asks_and_asks_and_never_reads_is_dropped(path, asked, monkeypatch):
    monkeypatch.setattr(connection, "MAX_UNSENT_BYTES", 100_000)
    rig = Rig(path)
    rig.protocol.pause_writing()
    monkeypatch.setattr(rig.transport, "get_write_buffer_size", lambda: len(rig.transport.written), raising=False)
    for _ in range(200):
        rig.feed(asked * 100)
        if rig.transport.closing:
            break
    assert rig.transport.closing
    assert 100_000 < len(rig.transport.written) < 110_000


@pytest.mark.parametrize("path", ["fast", "stock"])
async def test_headers_without_end_are_not_kept(path):
    rig = Rig(path)
    for kind in (1, 9):
        rig.feed(frame(kind, 0, 1, bytes(100_000)))
        assert not rig.transport.closing
    rig.feed(frame(9, 0, 1, bytes(100_000)))
    rig.frames += parse(bytes(rig.transport.written))
    assert rig.transport.closing
    assert rig.errors() == [("GoAwayFrame", 0, 1)]
