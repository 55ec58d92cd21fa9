"""The fast DATA path: what is sent, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from grpclib.exceptions import StreamTerminatedError
from h2.events import DataReceived, ResponseReceived, StreamEnded, TrailersReceived
from h2.exceptions import ProtocolError, StreamClosedError
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, WindowUpdateFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_rig import Rig, Transport, message, settings_of
from wire_services import settle

from reverb_async.wire.codec import Encoded
from reverb_async.wire.http2.fast_stream import JOINED_BYTES

ANSWER = [(":status", "200"), ("content-type", "application/grpc")]

PATHS = pytest.mark.parametrize("path", ["fast", "stock"])


async def answered(path):
    """Return a rig, an open stream of it whose headers are sent, and the stream's id."""
    rig = Rig(path)
    stream_id = rig.open()
    stream = rig.handler.streams[stream_id]
    await stream.send_headers(ANSWER)
    await asyncio.sleep(0)  # Headers wait a turn of the loop for what goes out with them.
    rig.exchange()
    return rig, stream, stream_id


def encoded(*chunks):
    return Encoded(list(chunks), sum(map(len, chunks)))


def read_by_peer(rig, size):
    """Let the peer give credit for what it has."""
    for stream_id in list(rig.peer.streams):
        rig.peer.acknowledge_received_data(size, stream_id)
    rig.exchange()


def windows(rig, stream_id):
    return (
        (rig.h2.outbound_flow_control_window, rig.h2.streams[stream_id].outbound_flow_control_window),
        (
            rig.peer._inbound_flow_control_window_manager.current_window_size,
            rig.peer.streams[stream_id]._inbound_window_manager.current_window_size,
        ),
    )


chunk_sizes = st.lists(
    st.one_of(st.integers(0, 50), st.sampled_from([JOINED_BYTES - 1, JOINED_BYTES]), st.integers(0, 120_000)),
    max_size=6,
)


@settings(max_examples=60)
@given(chunk_sizes, st.integers(16384, 100_000), st.booleans(), st.lists(st.integers(2000, 70_000), min_size=1))
def test_a_message_arrives_as_its_chunks_joined_whatever_the_windows_and_frames(sizes, max_frame, end, credits):
    async def scenario():
        rig, stream, stream_id = await answered("fast")
        settings_of(rig, {SettingCodes.MAX_FRAME_SIZE: max_frame})
        chunks = [np.random.default_rng(n).bytes(size) for n, size in enumerate(sizes)]
        chunks = [memoryview(chunk) if n % 2 else chunk for n, chunk in enumerate(chunks)]
        sending = asyncio.ensure_future(stream.send_message(encoded(*chunks), end_stream=end))
        granted = iter(credits * 1000)
        while not sending.done():
            await settle(3)
            rig.exchange()
            if not sending.done():
                rig.peer.increment_flow_control_window(next(granted), stream_id)
                rig.peer.increment_flow_control_window(20_000)
                rig.exchange()
        await sending
        rig.exchange()
        assert rig.sent_data(stream_id) == message(b"".join(chunks))
        assert max(frame.body_len for frame in rig.frames if isinstance(frame, DataFrame)) <= max_frame
        ours, theirs = windows(rig, stream_id)
        assert ours == theirs
        ended = [frame for frame in rig.frames if isinstance(frame, DataFrame) and "END_STREAM" in frame.flags]
        assert len(ended) == end

    asyncio.run(scenario())


@PATHS
async def test_a_window_that_became_negative_must_open_first(path):
    rig, stream, stream_id = await answered(path)
    await stream.send_message(encoded(bytes(60_000)))
    settings_of(rig, {SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    assert rig.h2.streams[stream_id].outbound_flow_control_window < 0
    sending = asyncio.ensure_future(stream.send_message(encoded(b"abc")))
    await settle()
    for grown in (30_000, 20_000):  # still negative
        rig.peer.increment_flow_control_window(grown, stream_id)
        rig.exchange()
        await settle()
        assert not sending.done()
    settings_of(rig, {SettingCodes.INITIAL_WINDOW_SIZE: 20_000})
    await sending
    rig.exchange()
    assert rig.sent_data(stream_id).endswith(message(b"abc"))
    ours, theirs = windows(rig, stream_id)
    assert ours == theirs


@PATHS
async def test_the_connections_window_holds_up_all_its_streams(path):
    rig, stream, _ = await answered(path)
    other_id = rig.open()
    other = rig.handler.streams[other_id]
    await other.send_headers(ANSWER)
    rig.exchange()
    await stream.send_message(encoded(bytes(65_000)))
    sending = asyncio.ensure_future(other.send_message(encoded(bytes(5000))))
    await settle()
    rig.exchange()
    assert len(rig.sent_data(other_id)) == 65_535 - 65_005
    read_by_peer(rig, 40_000)
    await sending
    rig.exchange()
    assert rig.sent_data(other_id) == message(bytes(5000))


@PATHS
async def test_a_smaller_frame_size_holds_for_a_message_that_is_being_sent(path):
    rig, stream, stream_id = await answered(path)
    settings_of(rig, {SettingCodes.MAX_FRAME_SIZE: 50_000})
    sending = asyncio.ensure_future(stream.send_message(encoded(memoryview(bytes(100_000)))))
    await settle()
    settings_of(rig, {SettingCodes.MAX_FRAME_SIZE: 20_000})
    rig.frames.clear()
    rig.peer.increment_flow_control_window(100_000)
    rig.peer.increment_flow_control_window(100_000, stream_id)
    rig.exchange()
    await sending
    rig.exchange()
    assert max(frame.body_len for frame in rig.frames if isinstance(frame, DataFrame)) == 20_000


@PATHS
async def test_a_transport_that_is_full_makes_senders_wait(path):
    rig, stream, stream_id = await answered(path)
    rig.protocol.pause_writing()
    sending = asyncio.ensure_future(stream.send_message(encoded(b"abc")))
    await settle()
    rig.exchange()
    assert rig.sent_data(stream_id) == b""
    rig.protocol.resume_writing()
    await sending
    rig.exchange()
    assert rig.sent_data(stream_id) == message(b"abc")


class FullTransport(Transport):
    """Is full after each write, until it is emptied."""

    protocol: Any = None

    def write(self, data: Any) -> None:
        super().write(data)
        if self.protocol is not None:
            self.protocol.pause_writing()


@PATHS
async def test_senders_who_wait_for_the_transport_take_turns(path):
    rig = Rig(path)
    rig.transport = transport = FullTransport()
    rig.protocol.connection._transport = rig.protocol._transport = transport
    settings_of(rig, {SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    rig.peer.increment_flow_control_window(1 << 24)
    rig.exchange()
    streams = {}
    for _ in range(20):
        stream_id = rig.open()
        streams[stream_id] = stream = rig.handler.streams[stream_id]
        stream._transport = transport
        await stream.send_headers(ANSWER)
    rig.exchange()
    transport.protocol = rig.protocol
    rig.protocol.pause_writing()

    async def send(stream):
        for _ in range(3):  # nothing in between lets others have their turn
            await stream.send_message(encoded(bytes(40_000)))

    sending = [asyncio.ensure_future(send(stream)) for stream in streams.values()]
    rounds = 0
    while not all(task.done() for task in sending):
        rig.protocol.resume_writing()
        await settle()
        assert len(transport.written) <= 2 * (16_384 + 9), "all wrote at once, and the transport holds it all"
        rig.exchange()
        rounds += 1
        sent = [len(rig.sent_data(stream_id)) for stream_id in streams]
        assert max(sent) - min(sent) <= 40_005, "some have to wait for long while others send"
        assert rounds < 1000


async def test_who_cancels_a_message_that_is_half_sent_resets_the_stream():
    rig, stream, stream_id = await answered("fast")
    sending = asyncio.ensure_future(stream.send_message(encoded(bytes(100_000))))
    await settle()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    rig.exchange()
    assert rig.errors() == [("RstStreamFrame", stream_id, 8)]
    with pytest.raises(StreamTerminatedError, match="cut short"):
        await stream.send_message(encoded(b"abc"))


async def test_who_cancels_a_message_that_is_not_yet_sent_does_no_harm():
    rig, stream, stream_id = await answered("fast")
    rig.protocol.pause_writing()
    sending = asyncio.ensure_future(stream.send_message(encoded(bytes(100))))
    await settle()
    sending.cancel()
    rig.protocol.resume_writing()
    await asyncio.gather(sending, return_exceptions=True)
    await stream.send_message(encoded(b"abc"))
    rig.exchange()
    assert rig.sent_data(stream_id) == message(b"abc")


@PATHS
@pytest.mark.parametrize("how", ["reset", "ended", "aborted", "lost"])
async def test_nothing_is_sent_on_a_stream_that_is_over(path, how):
    rig, stream, stream_id = await answered(path)
    if how == "reset":
        rig.peer.reset_stream(stream_id)
    elif how == "ended":
        await stream.end()
    elif how == "aborted":
        stream.abort("enough")
    else:
        rig.transport.close()
        rig.protocol.connection_lost(None)
    if how != "lost":
        rig.exchange()
    with pytest.raises((StreamTerminatedError, ProtocolError)):
        await stream.send_message(encoded(b"abc"))
    assert message(b"abc") not in bytes(rig.transport.written)


async def test_large_buffers_are_handed_over_as_they_are():
    rig, stream, stream_id = await answered("fast")
    rig.peer.increment_flow_control_window(1 << 24)
    rig.peer.increment_flow_control_window(1 << 24, stream_id)
    settings_of(rig, {SettingCodes.MAX_FRAME_SIZE: 1 << 20})
    written = []
    rig.transport.write, rig.transport.writelines = written.append, written.extend
    array = np.arange(500_000, dtype=np.int64)
    await stream.send_message(encoded(b"header", memoryview(array).cast("B"), b"tail"))
    large = [chunk for chunk in written if len(chunk) > 1000]
    assert all(np.shares_memory(np.frombuffer(chunk, np.uint8), array) for chunk in large)
    assert sum(map(len, large)) == array.nbytes
    assert (
        b"".join(chunk for chunk in written if len(chunk) == 11) == b"\0" + (4_000_010).to_bytes(4, "big") + b"header"
    )


async def test_a_stream_that_is_unknown_to_h2_is_refused():
    rig, stream, stream_id = await answered("fast")
    del rig.h2.streams[stream_id]
    with pytest.raises(StreamClosedError):
        await stream.send_message(encoded(b"abc"))


async def test_a_message_that_fits_goes_out_at_once_and_is_counted_as_h2_counts_it():
    rig, stream, stream_id = await answered("fast")
    assert stream.try_send_message(encoded(b"short", memoryview(b"er")))
    rig.exchange()
    assert rig.sent_data(stream_id) == message(b"shorter")
    ours, theirs = windows(rig, stream_id)
    assert ours == theirs


@pytest.mark.parametrize("blocked", ["window", "transport", "long", "reset", "stock"])
async def test_a_message_that_would_have_to_wait_is_not_tried(blocked):
    rig, stream, stream_id = await answered("stock" if blocked == "stock" else "fast")
    size = 1000
    if blocked == "window":
        settings_of(rig, {SettingCodes.INITIAL_WINDOW_SIZE: 1000})  # five bytes of prefix too small
    elif blocked == "transport":
        rig.protocol.pause_writing()
    elif blocked == "long":
        size = JOINED_BYTES
    elif blocked == "reset":
        rig.peer.reset_stream(stream_id)
        rig.exchange()
    rig.exchange()
    assert not stream.try_send_message(encoded(bytes(size)))
    rig.exchange()
    assert rig.sent_data(stream_id) == b""


async def test_no_message_overtakes_one_that_waits_or_goes_between_its_frames():
    rig, stream, stream_id = await answered("fast")
    sending = [asyncio.ensure_future(stream.send_message(encoded(bytes([n]) * 60_000))) for n in (1, 2)]
    while not all(task.done() for task in sending):
        await settle(3)
        if not all(task.done() for task in sending):
            assert not stream.try_send_message(encoded(b"x"))
        rig.exchange()
        read_by_peer(rig, 10_000)
    assert stream.try_send_message(encoded(b"x"))
    rig.exchange()
    assert rig.sent_data(stream_id) == message(b"\1" * 60_000) + message(b"\2" * 60_000) + message(b"x")


async def two_answered():
    """Return a rig whose transport notes each write, and two open streams with their ids."""
    rig, first, first_id = await answered("fast")
    second_id = rig.open()
    second = rig.handler.streams[second_id]
    await second.send_headers(ANSWER)
    rig.exchange()
    writes = []
    write = rig.transport.write
    rig.transport.write = lambda data: (writes.append(bytes(data)), write(data))
    return rig, (first, first_id), (second, second_id), writes


async def test_short_messages_that_streams_send_in_one_turn_go_out_in_one_write():
    rig, (first, first_id), (second, second_id), writes = await two_answered()
    for stream in (first, second, first):
        assert stream.try_send_message(encoded(b"short"))
    assert not writes
    await settle()
    assert len(writes) == 1
    rig.exchange()
    assert rig.sent_data(first_id) == 2 * message(b"short")
    assert rig.sent_data(second_id) == message(b"short")
    assert windows(rig, first_id)[0] == windows(rig, first_id)[1]


async def test_short_messages_that_become_many_do_not_wait_for_the_end_of_the_turn(monkeypatch):
    monkeypatch.setattr("reverb_async.wire.http2.data_path.MAX_HELD_BYTES", 10_000)
    _, (first, _), (second, _), writes = await two_answered()
    for stream in (first, second, first):
        assert stream.try_send_message(encoded(bytes(4000)))
    assert len(writes) == 1


@pytest.mark.parametrize("later", ["long", "end", "reset", "close"])
async def test_nothing_overtakes_a_short_message_that_waits_for_the_end_of_the_turn(later):
    rig, (first, first_id), (_, _), writes = await two_answered()
    assert first.try_send_message(encoded(b"short"))
    expected = message(b"short")
    if later == "long":
        await first.send_message(encoded(bytes(60_000)))
        expected += message(bytes(60_000))
    elif later == "end":
        await first.send_headers([("grpc-status", "0")], end_stream=True)
        await asyncio.sleep(0)
    elif later == "reset":
        first.reset_nowait()
    else:
        rig.protocol.connection.close()
    rig.exchange()
    assert rig.sent_data(first_id) == expected
    count = len(writes)
    await settle()
    assert len(writes) == count


async def test_headers_a_message_and_the_end_go_out_in_one_write():
    rig = Rig("fast")
    stream_id = rig.open()
    stream = rig.handler.streams[stream_id]
    written = []
    rig.transport.write = written.append
    await stream.send_headers(ANSWER)
    await stream.send_message(encoded(b"short"))
    await stream.send_headers([("grpc-status", "0")], end_stream=True)
    assert not written
    await asyncio.sleep(0)
    assert len(written) == 1
    events = rig.peer.receive_data(b"".join(written))
    assert [type(event) for event in events] == [ResponseReceived, DataReceived, TrailersReceived, StreamEnded]
    with pytest.raises(ProtocolError):
        await stream.send_message(encoded(b"too late"))


async def test_headers_too_long_for_one_frame_go_out_in_several():
    rig, stream, _ = await answered("fast")
    text = "~" * 40_000
    await stream.send_headers([("grpc-status", "2"), ("grpc-message", text)], end_stream=True)
    await asyncio.sleep(0)
    rig.exchange()
    (trailers,) = [event for event in rig.events if isinstance(event, TrailersReceived)]
    assert dict(trailers.headers)["grpc-message"] == text


@pytest.mark.parametrize("of_stream", [False, True])
@pytest.mark.parametrize("increment", [1, 1000, (1 << 31) - 1, 0])
async def test_credit_is_counted_as_h2_counts_it_and_too_much_of_it_answered_as_h2_answers(of_stream, increment):
    seen = []
    for path in ("fast", "stock"):
        rig, _, stream_id = await answered(path)
        frame = WindowUpdateFrame(stream_id if of_stream else 0)
        frame.window_increment = increment or 1
        h2_stream = rig.h2.streams[stream_id]
        rig.feed(frame.serialize()[:-4] + increment.to_bytes(4, "big"))
        windows = rig.h2.outbound_flow_control_window, h2_stream.outbound_flow_control_window
        seen.append((windows, h2_stream.closed, bytes(rig.transport.written), rig.protocol.processor.closed))
    assert seen[0] == seen[1]
