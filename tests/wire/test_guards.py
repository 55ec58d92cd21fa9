"""Limits of connections: floods, resets, caps, and what each costs others."""

from __future__ import annotations

import asyncio
import logging
import time

import grpc
import grpc.aio
import pytest
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame, HeadersFrame, SettingsFrame
from raw_peer import HELLO, INSERT, raw_peer
from wire_rig import Rig, frame, message
from wire_services import Service, channel_to, echo, hello, ignore, say_hello, serving, until

from reverb_async.errors import InvalidArgument
from reverb_async.protocol.message import Message
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.grpc_codec import GrpcCodec
from reverb_async.wire.http2 import ConnectionStats, Guards, ReplayChannel
from reverb_async.wire.http2.guards import Bucket, peer_name

on_both_paths = pytest.mark.usefixtures("data_path")

CALM = ("GoAwayFrame", 11)
FEW = Guards(max_resets=50, resets_per_second=1, max_control_frames=500, control_frames_per_second=10)


@pytest.mark.parametrize("wrong", [{"send_timeout": 0}, {"max_connections": -1}, {"dead_after": float("nan")}])
def test_limits_are_positive(wrong):
    with pytest.raises(InvalidArgument, match=f"{next(iter(wrong))} must be positive"):
        Guards(**wrong)


def test_no_more_connections_are_admitted_than_files_can_be_open(monkeypatch):
    resource = pytest.importorskip("resource")
    assert Guards(max_connections=3).connections_at_most == 3
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    assert Guards().connections_at_most == 1024 - 128
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert Guards().connections_at_most == 4096


def test_a_bucket_admits_a_burst_and_then_its_rate(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    bucket = Bucket(10, 2.0)
    assert [bucket.take(4) for _ in range(3)] == [True, True, False]
    now = 1.0
    assert bucket.take(0)
    assert not bucket.take(1)
    now = 1000.0
    assert bucket.take(10)
    assert not bucket.take(1)


def test_connections_dropped_for_one_reason_are_reported_together(caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stats = ConnectionStats()
    for at in (100.0, 101.0, 102.0, 111.0):
        now = at
        stats.drop("too loud", "10.0.0.1")
    stats.drop("too late", "10.0.0.2")
    assert [record.getMessage() for record in caplog.records] == [
        "a connection was dropped: too loud (10.0.0.1)",
        "a connection was dropped: too loud (10.0.0.1); so were 2 before it",
        "a connection was dropped: too late (10.0.0.2)",
    ]
    assert stats.snapshot()["dropped"] == {"too loud": 4, "too late": 1}


def test_peers_are_named_by_their_address():
    assert peer_name(("10.0.0.1", 5)) == "10.0.0.1"
    assert peer_name(("::1", 5, 0, 0)) == "::1"
    assert peer_name("") == peer_name(None) == "unix"


# -- floods -----------------------------------------------------------------------------------------------------------


async def rapid_resets(peer):
    for _ in range(100):
        stream_id = peer.request()
        peer.h2.reset_stream(stream_id, 8)
    return peer.h2.data_to_send()


async def made_resets(peer):
    """Have the server reset: credit for a stream that overflows its window."""
    data = b""
    for _ in range(100):
        stream_id = peer.request()
        data += peer.h2.data_to_send() + frame(8, 0, stream_id, b"\x7f\xff\xff\xff")
    return data


async def bad_requests(peer):
    """Have the server reset: requests without a path."""
    for _ in range(100):
        stream_id = peer.h2.get_next_available_stream_id()
        peer.h2.send_headers(stream_id, [(":method", "POST"), (":scheme", "http")])
    return peer.h2.data_to_send()


async def same(data, peer):
    peer.request()
    return peer.h2.data_to_send() + data * 1000


FLOODS = {
    "calls given up at once": (rapid_resets, "too many resets"),
    "calls that break a rule": (made_resets, "too many resets"),
    "calls that are none": (bad_requests, "too many resets"),
    "pings": (lambda peer: same(frame(6, 0, 0, bytes(8)), peer), "too many control frames"),
    "answers to pings": (lambda peer: same(frame(6, 1, 0, bytes(8)), peer), "too many control frames"),
    "settings": (lambda peer: same(frame(4, 0, 0), peer), "too many control frames"),
    "settings that change": (
        lambda peer: same(frame(4, 0, 0, b"\0\4\0\0\0\1") + frame(4, 0, 0, b"\0\4\0\0\0\2"), peer),
        "too many control frames",
    ),
    "empty data": (lambda peer: same(frame(0, 0, 1), peer), "too many control frames"),
    "priorities": (lambda peer: same(frame(2, 0, 7, bytes(5)), peer), "too many control frames"),
    "credit": (lambda peer: same(frame(8, 0, 0, b"\0\0\0\1") * 20, peer), "too many control frames"),
    "resets of nothing": (lambda peer: same(frame(3, 0, 77, bytes(4)) * 3, peer), "too many control frames"),
    "unknown frames": (lambda peer: same(frame(0xEE, 0, 0), peer), "too many control frames"),
}


@on_both_paths
@pytest.mark.parametrize(("made", "reason"), FLOODS.values(), ids=FLOODS)
async def test_a_flood_ends_the_connection_and_no_other(made, reason, caplog):
    service = Service(Insert=ignore, Hello=hello)
    async with serving(service, guards=FEW) as (server, address):
        good = channel_to(address)
        await say_hello(good)
        async with raw_peer(address) as peer:
            await peer.greet()
            await peer.write(await made(peer))
            await peer.read_to_the_end()
        await until(lambda: server.stats.open == 1)
        assert server.stats.snapshot()["dropped"] == {reason: 1}
        await say_hello(good)
        good.close()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warnings] == [f"a connection was dropped: {reason} (127.0.0.1)"]


@on_both_paths
async def test_the_peer_is_told_why():
    async with serving(Service(Insert=ignore), guards=FEW) as (_, address), raw_peer(address) as peer:
        await peer.greet()
        await peer.read_until(SettingsFrame)
        for _ in range(60):
            stream_id = peer.request()
            peer.h2.reset_stream(stream_id, 8)
            await peer.flush()
            await asyncio.sleep(0)
        goaway = await peer.read_until(GoAwayFrame)
        assert (goaway.error_code, goaway.additional_data) == (11, b"too many resets")


async def answer_once(duplex):
    received = await duplex.receive()
    await duplex.send(received)
    await asyncio.Event().wait()


async def test_calls_that_are_given_up_after_an_answer_are_no_flood():
    async with serving(Service(Insert=answer_once), guards=FEW) as (server, address), raw_peer(address) as peer:
        await peer.greet()
        body = GrpcCodec().encode(Message({}), v1.Frame)
        for _ in range(100):
            stream_id = peer.request()
            peer.h2.send_data(stream_id, message(body))
            await peer.flush()
            await peer.read_until(HeadersFrame, stream_id=stream_id)
            peer.h2.reset_stream(stream_id, 8)
        await peer.flush()
        await asyncio.sleep(0.05)
        assert server.stats.open == 1


@pytest.mark.parametrize("path", ["fast", "stock"])
async def test_one_turn_of_the_loop_works_off_so_much_and_then_others_have_theirs(path):
    rig = Rig(path)
    pings = frame(6, 0, 0, bytes(8)) * 100
    if path == "stock":
        rig.protocol.data_received(pings)
    else:
        rig.protocol.get_buffer(-1)[: len(pings)] = pings
        rig.protocol.buffer_updated(len(pings))
    answered = []
    for _ in range(6):
        answered.append((len(rig.transport.written) // 17, rig.transport.paused))
        await asyncio.sleep(0)
    assert answered == [(32, True), (64, True), (96, True), (100, False), (100, False), (100, False)]


async def test_plain_frames_have_their_turns_too():
    rig = Rig("fast")
    stream_id = rig.open()
    data = frame(0, 0, stream_id, message(b"x")) * 2500
    rig.protocol.get_buffer(-1)[: len(data)] = data
    rig.protocol.buffer_updated(len(data))
    assert rig.transport.paused
    for _ in range(2):
        assert rig.transport.paused
        await asyncio.sleep(0)
    assert not rig.transport.paused
    assert len(await rig.read(stream_id)) == 2501


async def test_what_waits_for_its_turn_is_all_worked_off():
    async with serving(Service(Insert=echo, Hello=hello)) as (_, address):
        channel = channel_to(address)
        call, other = await channel.open_call(INSERT), await channel.open_call(INSERT)
        connection = call._stream.connection
        body = message(b"\x0a\x01\x80")
        ping = frame(6, 0, 0, bytes(8))
        mixed = b"".join(
            ping + frame(0, 0, stream._stream.id, body[:3]) + frame(0, 0, stream._stream.id, body[3:])
            for _ in range(700)
            for stream in (call, other)
        )
        await call._stream._writable()
        connection._transport.write(mixed)
        for _ in range(700):
            async with asyncio.timeout(10):
                assert (await call.receive(v1.Frame)).header == {}
                assert (await other.receive(v1.Frame)).header == {}
        await say_hello(channel)
        call.abort()
        other.abort()
        channel.close()


# -- caps -------------------------------------------------------------------------------------------------------------


@on_both_paths
async def test_calls_beyond_the_limit_are_refused_and_the_connection_lives():
    options = Guards(max_streams=100)
    async with serving(Service(Insert=ignore, Hello=hello), guards=options) as (server, address):
        async with raw_peer(address) as peer:
            await peer.greet()
            streams = [peer.request() for _ in range(300)]
            await peer.flush()
            await until(lambda: server.stats.refused_streams == 200)
            while len(peer.complaints()) < 200:
                await peer.read()
            assert set(peer.complaints()) == {("RstStreamFrame", 7)}
            assert peer.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] == 100
            for stream_id in streams[:100]:
                peer.h2.reset_stream(stream_id, 8)
            stream_id = peer.request(HELLO)
            peer.h2.send_data(stream_id, message(b""), end_stream=True)
            await peer.flush()
            await peer.read_until(HeadersFrame, stream_id=stream_id)
            (connection,) = server._endpoint.connections
            assert not connection.processor.streams
        await until(lambda: server.stats.open == 0)


async def test_streams_that_only_the_server_has_ended_are_not_kept_for_ever():
    options = Guards(max_streams=50)
    async with serving(Service(Hello=hello), guards=options) as (server, address), raw_peer(address) as peer:
        await peer.greet()
        await peer.read_until(SettingsFrame)
        peer.h2.remote_settings = Settings(client=False)  # it does not heed the limit
        for _ in range(300):
            stream_id = peer.request(HELLO)
            peer.h2.send_data(stream_id, message(b""))
            await peer.flush()
            await peer.read_until(HeadersFrame, stream_id=stream_id)
        (connection,) = server._endpoint.connections
        assert len(connection.connection.h2.streams) <= 110
        assert set(peer.complaints()) == {("RstStreamFrame", 0)}


async def test_a_client_waits_for_a_place_among_the_streams():
    async with serving(Service(Insert=ignore, Hello=hello), guards=Guards(max_streams=2)) as (server, address):
        channel = channel_to(address)
        await say_hello(channel)
        calls = [await channel.open_call(INSERT) for _ in range(2)]
        waiting = asyncio.create_task(say_hello(channel))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        calls[0].abort()
        await waiting
        assert server.stats.refused_streams == 0
        calls[1].abort()
        channel.close()


@on_both_paths
async def test_connections_beyond_the_limit_are_refused_and_counted():
    options = Guards(max_connections=2)
    async with serving(Service(Hello=hello), guards=options) as (server, address):
        channels = [channel_to(address) for _ in range(2)]
        for channel in channels:
            await say_hello(channel)
        async with raw_peer(address) as peer:
            assert await peer.read_to_the_end() == [CALM]
            assert peer.frames[-1].additional_data == b"too many connections"
        await until(lambda: server.stats.open == 2)
        assert server.stats.snapshot()["refused"] == {"too many connections": 1}
        channels.pop().close()
        await until(lambda: server.stats.open == 1)
        late = channel_to(address)
        await say_hello(late)
        for channel in [*channels, late]:
            channel.close()


async def test_connections_of_one_address_can_be_limited():
    options = Guards(max_connections_per_peer=2)
    async with serving(Service(Hello=hello), guards=options) as (server, address):
        channels = [channel_to(address) for _ in range(2)]
        for channel in channels:
            await say_hello(channel)
        async with raw_peer(address) as peer:
            assert await peer.read_to_the_end() == [CALM]
        assert server.stats.snapshot()["refused"] == {"too many connections from this address": 1}
        for channel in channels:
            channel.close()
        await until(lambda: not server.stats.by_peer)


async def test_connections_over_a_unix_socket_have_no_address_to_limit(tmp_path):
    path = str(tmp_path / "socket")
    async with serving(Service(Hello=hello), path=path, guards=Guards(max_connections_per_peer=1)):
        channels = [ReplayChannel(path=path) for _ in range(3)]
        for channel in channels:
            await say_hello(channel)
            channel.close()


# -- ordinary clients -------------------------------------------------------------------------------------------------


async def test_a_client_of_ours_may_cancel_a_thousand_calls():
    async with serving(Service(Insert=ignore, Hello=hello)) as (server, address):
        channel = channel_to(address)
        for _ in range(2):
            calls = [await channel.open_call(INSERT) for _ in range(1000)]
            for call in calls:
                call.abort()
        await say_hello(channel)
        assert (server.stats.accepted, server.stats.snapshot()["dropped"]) == (1, {})
        channel.close()


async def test_a_grpcio_client_may_cancel_a_thousand_calls():
    async with serving(Service(Insert=ignore, Hello=hello)) as (server, address):
        async with grpc.aio.insecure_channel(address) as channel:
            stream = channel.stream_stream(INSERT)
            for _ in range(2):
                calls = [stream() for _ in range(500)]
                await asyncio.sleep(0.05)
                for call in calls:
                    call.cancel()
            await channel.unary_unary(HELLO)(b"", timeout=5)
        assert (server.stats.accepted, server.stats.snapshot()["dropped"]) == (1, {})


async def test_a_refused_grpcio_client_does_not_hammer():
    async with serving(Service(Hello=hello), guards=Guards(max_connections=1)) as (server, address):
        good = channel_to(address)
        await say_hello(good)
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(HELLO)(b"", timeout=2, wait_for_ready=True)
            assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert server.stats.refused["too many connections"] < 100
        good.close()
