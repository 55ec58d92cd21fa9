"""The fast DATA path against h2's own: the same bytes must have the same effect, however they are cut."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_rig import Rig, frame, message

from reverb_async.errors import InvalidArgument
from reverb_async.wire.http2 import ReplayChannel, ReplayServer
from reverb_async.wire.http2.connection import Endpoint, StockProtocol
from reverb_async.wire.http2.data_path import DATA_PATH_VARIABLE, DIRECT_BYTES, FastProtocol, chosen_protocol
from reverb_async.wire.http2.message_buffer import MAX_UNREAD
from reverb_async.wire.http2.window import INITIAL_WINDOW, WindowBudget


def body_of(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


sizes = st.one_of(
    st.integers(0, 40), st.sampled_from([16 << 10, (16 << 10) - 1, DIRECT_BYTES]), st.integers(0, 150_000)
)
frames = st.tuples(st.one_of(st.integers(0, 40), st.integers(0, 90_000)), st.none() | st.integers(0, 255))
cuts = st.lists(st.one_of(st.integers(1, 30), st.integers(1, 100_000)), max_size=60)


@st.composite
def conversations(draw):
    """Draw what each of a few streams carries, and how it is put into frames, interleaved."""
    bodies = draw(st.lists(st.lists(sizes, max_size=4), min_size=1, max_size=3))
    streams = [b"".join(message(body_of(size, 7 * n + m)) for m, size in enumerate(s)) for n, s in enumerate(bodies)]
    if draw(st.booleans()):
        streams.append(b"".join(message(b"%d" % n) for n in range(draw(st.integers(0, 3 * MAX_UNREAD)))))
    if draw(st.booleans()):
        spoilt = draw(st.integers(0, len(streams) - 1))
        ends = [
            message(b"abc", flag=1),
            message(b"abc", flag=9),
            b"\0\xff\xff\xff\xff" + bytes(70),
            b"\0\0",
            b"\0\0\0\0\x05a",
        ]
        streams[spoilt] += draw(st.sampled_from(ends))
    steps = draw(st.lists(st.tuples(st.integers(0, len(streams) - 1), frames), max_size=30))
    ended = draw(st.lists(st.booleans(), min_size=len(streams), max_size=len(streams)))
    return streams, steps, ended, draw(cuts), draw(st.lists(st.booleans(), min_size=30, max_size=30))


async def run(path, conversation):
    """Return what the readers of each stream got, and our end's complaints."""
    streams, steps, ended, cut, read_now = conversation
    rig = Rig(path)
    ids = [rig.open() for _ in streams]
    left = [memoryview(data) for data in streams]
    got = {stream_id: [] for stream_id in ids}

    async def read(stream_id):
        if got[stream_id][-1:] == ["open"]:
            got[stream_id].pop()
        if not (got[stream_id] and isinstance(got[stream_id][-1], str)):  # nobody reads on after a refusal
            got[stream_id] += await rig.read(stream_id)

    for (which, (size, padding)), now in zip(steps, read_now, strict=False):
        data, left[which] = left[which][:size], left[which][size:]
        rig.peer.send_data(ids[which], bytes(data), pad_length=padding)
        rig.exchange(cut)
        if now:
            await read(ids[which])
    for stream_id, data, end in zip(ids, left, ended, strict=True):
        while data:
            size = rig.peer.max_outbound_frame_size
            rig.peer.send_data(stream_id, bytes(data[:size]))
            data = data[size:]
        if end:
            rig.peer.end_stream(stream_id)
    rig.exchange(cut)
    for stream_id in ids:
        await read(stream_id)
    for stream_id in ids:
        rig.handler.releases[stream_id]()
    rig.check_credit()
    return got, rig.errors()


@settings(max_examples=150)
@given(conversations())
def test_streams_carry_the_same_as_with_h2_however_frames_are_sized_padded_interleaved_and_cut(conversation):
    assert asyncio.run(run("fast", conversation)) == asyncio.run(run("stock", conversation))


@settings(max_examples=60)
@given(st.lists(sizes, min_size=1, max_size=4), st.lists(st.integers(1, 90_000), max_size=30), cuts)
def test_a_reader_who_waits_gets_every_message_whole_and_the_credit_returns_as_they_arrive(bodies, frame_sizes, cut):
    async def scenario():
        rig = Rig("fast", Endpoint(window_budget=WindowBudget(1 << 20)))
        stream_id = rig.open()
        stream = rig.handler.streams[stream_id]
        sent = [body_of(size, size) for size in bodies]
        reading = asyncio.ensure_future(read_all(stream))
        left = b"".join(map(message, sent))
        wanted = iter(frame_sizes)
        while left:
            size = min(next(wanted, 16384), rig.peer.local_flow_control_window(stream_id), 1 << 20)
            assert size > 0, "the window does not open although somebody reads"
            rig.peer.send_data(stream_id, left[:size])
            left = left[size:]
            rig.exchange(cut)
            await asyncio.sleep(0)
            rig.answer()
        rig.peer.end_stream(stream_id)
        rig.exchange()
        assert await reading == sent
        assert rig.endpoint.window_budget.reserved == max(0, min(2 * max(bodies), 1 << 20) - INITIAL_WINDOW)
        rig.check_credit()
        rig.handler.releases[stream_id]()
        assert rig.endpoint.window_budget.reserved == 0

    asyncio.run(scenario())


async def read_all(stream):
    got = []
    while (body := await stream.receive()) is not None:
        got.append(bytes(body))
    return got


async def test_a_declared_length_takes_no_memory():
    rig = Rig("fast", Endpoint(max_message_bytes=1 << 30, window_budget=WindowBudget(0)))
    stream_id = rig.open()
    buffer = rig.handler.streams[stream_id].buffer
    rig.peer.send_data(stream_id, b"\0" + (1 << 30).to_bytes(4, "big") + bytes(1000))
    rig.exchange()
    assert buffer.room(1) is None
    assert len(buffer._kept) == 1000
    reading = asyncio.ensure_future(rig.handler.streams[stream_id].receive())
    await asyncio.sleep(0)
    assert buffer.room(1) is None, "not even if somebody reads: the budget is empty"
    reading.cancel()
    rig.handler.releases[stream_id]()
    rig.check_credit()


@pytest.mark.parametrize("read", [False, True])
async def test_tiny_messages_that_nobody_reads_are_kept_as_bytes(read):
    rig = Rig("fast")
    stream_id = rig.open()
    stream = rig.handler.streams[stream_id]
    bodies = [b"%d" % n for n in range(10 * MAX_UNREAD)] + [body_of(100_000, 1), body_of(100_000, 2)]
    data = b"".join(map(message, bodies))
    rig.peer.increment_flow_control_window(1 << 20)
    rig.exchange()
    while data:
        size = min(10_000, rig.peer.local_flow_control_window(stream_id))
        rig.peer.send_data(stream_id, data[:size])
        data = data[size:]
        rig.exchange()
    assert len(stream.buffer._messages) == MAX_UNREAD
    if read:
        assert await rig.read(stream_id) == [*bodies, "open"]
    rig.handler.releases[stream_id]()
    rig.check_credit()


async def test_a_message_gets_its_memory_once_much_of_it_is_there():
    rig = Rig("fast", Endpoint(max_message_bytes=1 << 30, window_budget=WindowBudget(0)))
    stream_id = rig.open()
    stream = rig.handler.streams[stream_id]
    body = body_of(1 << 20, 1)
    reading = asyncio.ensure_future(stream.receive())
    await asyncio.sleep(0)
    rooms = []
    left = message(body)
    while left:
        rig.peer.send_data(stream_id, left[:16384])
        left = left[16384:]
        rig.exchange()
        rooms.append(stream.buffer.room(1) is not None)
    assert rooms[0] is False
    assert rooms[-2] is True
    received = await reading
    assert received.tobytes() == body
    assert received.ctypes.data % 64 == 0
    assert received.flags.writeable
    rig.check_credit()


async def test_much_of_a_frame_is_received_where_the_message_lies():
    rig = Rig("fast")
    stream_id = rig.open()
    body = body_of(500_000, 2)
    rig.feed(frame(0, 0, stream_id, message(body)), (9 + 5 + 100,))
    room = rig.protocol.get_buffer(-1)
    received = await rig.handler.streams[stream_id].receive()
    assert received.tobytes() == body
    assert len(room) < len(body), "nothing of a frame is missing now: the scratch is back"
    rig.feed(frame(0, 0, stream_id, message(body))[: 9 + 5 + 100])
    room = rig.protocol.get_buffer(-1)
    assert len(room) == len(body) - 100


@pytest.mark.parametrize("path", ["fast", "stock"])
@pytest.mark.parametrize("leave", ["reset by the peer", "reset by us", "released", "aborted", "refused", "read"])
@pytest.mark.parametrize("midway", [False, True])
async def test_credit_returns_whatever_becomes_of_a_stream(path, leave, midway):
    rig = Rig(path, Endpoint(window_budget=WindowBudget(1 << 20)))
    stream_id, other = rig.open(), rig.open()
    stream = rig.handler.streams[stream_id]
    data = (
        message(bytes(20_000)) + (message(bytes(100), flag=2) if leave == "refused" else b"") + message(bytes(30_000))
    )
    whole = frame(0, 0, stream_id, data)
    rig.peer.outbound_flow_control_window -= len(data)
    rig.peer.streams[stream_id].outbound_flow_control_window -= len(data)
    rig.feed(whole[: len(whole) - 5000] if midway else whole)
    if leave == "reset by the peer" and not midway:
        rig.peer.reset_stream(stream_id)
        rig.exchange()
    elif leave == "reset by us":
        stream.reset_nowait()
    elif leave == "aborted":
        stream.abort("enough")
    elif leave in ("refused", "read"):
        await rig.read(stream_id)
    rig.handler.releases[stream_id]()
    if midway:
        rig.feed(whole[len(whole) - 5000 :])
    rig.peer.send_data(other, message(b"still alive"))
    rig.exchange()
    assert await rig.read(other) == [b"still alive", "open"]
    rig.check_credit()
    assert rig.endpoint.window_budget.reserved == 0


def test_the_choice_of_the_path_is_checked(monkeypatch):
    assert chosen_protocol() in (FastProtocol, StockProtocol)
    monkeypatch.delenv(DATA_PATH_VARIABLE, raising=False)
    assert chosen_protocol() is FastProtocol
    monkeypatch.setenv(DATA_PATH_VARIABLE, "stock")
    assert chosen_protocol() is StockProtocol
    monkeypatch.setenv(DATA_PATH_VARIABLE, "quick")
    for make in (lambda: ReplayServer([]), lambda: ReplayChannel("127.0.0.1", 1)):
        with pytest.raises(InvalidArgument, match="'quick'; it can be 'fast', 'stock' or unset"):
            make()


def test_the_protocol_is_none_of_those_that_uvloop_asks_for_no_buffers():
    assert not issubclass(FastProtocol, asyncio.Protocol)
    assert issubclass(FastProtocol, asyncio.BufferedProtocol)


async def test_connections_share_what_they_receive_into_without_mixing_it_up():
    endpoint = Endpoint(stream_window=16 << 20)
    rigs = [Rig("fast", endpoint) for _ in range(3)]
    ids = [rig.open() for rig in rigs]
    bodies = [bytes([at + 1]) * 20_000 for at in range(3)]
    left = [
        b"".join(
            frame(0, 0, stream_id, message(body)[start : start + 700]) for start in range(0, len(message(body)), 700)
        )
        for stream_id, body in zip(ids, bodies, strict=True)
    ]
    step = 0
    while any(left):
        for at, rig in enumerate(rigs):
            step += 1
            size = 1 + step * 7 % 23  # most cuts are in frame headers or in prefixes sooner or later
            rig.feed(left[at][:size])
            left[at] = left[at][size:]
    for rig, stream_id, body in zip(rigs, ids, bodies, strict=True):
        assert await rig.read(stream_id) == [body, "open"]
    assert len({id(rig.protocol.get_buffer(-1).obj) for rig in rigs}) == 1


async def test_an_endpoint_without_connections_keeps_no_memory():
    rig = Rig("fast")
    rig.endpoint.pool.take(1 << 20)
    rig.protocol.connection_lost(None)
    assert rig.endpoint.pool._rooms == []


@pytest.mark.parametrize("path", ["fast", "stock"])
def test_messages_that_are_here_are_taken_together_within_bounds_and_their_credit_returns(path):
    async def scenario():
        rig = Rig(path)
        stream_id = rig.open()
        stream = rig.handler.streams[stream_id]
        sent = [body_of(size, size) for size in (100, 200, 300, 400)]
        rig.peer.send_data(stream_id, b"".join(map(message, sent)))
        rig.peer.end_stream(stream_id)
        rig.exchange()
        taken = [bytes(body) for body in [*stream.ready(3, 101), *stream.ready(1, 5000), *stream.ready(5, 0)]]
        assert taken == (sent[:3] if path == "fast" else [])
        assert taken + await read_all(stream) == sent
        rig.handler.releases[stream_id]()
        rig.check_credit()

    asyncio.run(scenario())
