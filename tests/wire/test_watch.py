"""The look after connections: who is silent, blocked, dead, or does not take what it asked for."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time

import grpc
import numpy as np
import pytest
from h2.settings import SettingCodes
from hyperframe.frame import HeadersFrame, PingFrame, RstStreamFrame
from raw_peer import HELLO, INSERT, PREFACE, SETTINGS, raw_peer
from wire_rig import message
from wire_services import Service, channel_to, echo, hello, ignore, say_hello, serving, until

from reverb_async.errors import Unavailable
from reverb_async.protocol.message import Message
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.grpc_codec import GrpcCodec
from reverb_async.wire.http2 import Guards, watch
from reverb_async.wire.transport import GrpcTransport

on_both_paths = pytest.mark.usefixtures("data_path")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what was acknowledged")


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(caplog):
    yield
    assert not [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]


def guards(**options):
    """Return guards that wait for next to nothing where the test is about it, and long elsewhere."""
    return Guards(**{"first_request_timeout": 60.0, "send_timeout": 60.0, "dead_after": 60.0, **options})


async def flood(duplex):
    """Send without end."""
    while True:
        await duplex.send(Message({}, [np.zeros(100_000, np.uint8)]))


@pytest.mark.parametrize("said", [b"", PREFACE[:10], PREFACE, PREFACE + SETTINGS + b"\0\0\4\1\0\0\0\0\1abcd"])
async def test_who_makes_no_request_is_told_to_leave(said):
    async with serving(Service(Hello=hello), guards=guards(first_request_timeout=0.1)) as (server, address):
        async with raw_peer(address) as peer:
            await peer.write(said)
            assert await peer.read_to_the_end() == [("GoAwayFrame", 0)]
            assert peer.frames[-1].additional_data == b"no request in time"
        assert server.stats.snapshot()["dropped"] == {"no request in time": 1}
        await until(lambda: server.stats.open == 0)


async def test_who_made_a_request_may_be_idle_for_ever():
    async with serving(Service(Hello=hello), guards=guards(first_request_timeout=0.1)) as (server, address):
        channel = channel_to(address)
        await say_hello(channel)
        await asyncio.sleep(0.3)
        await say_hello(channel)
        assert (server.stats.accepted, server.stats.snapshot()["dropped"]) == (1, {})
        channel.close()


async def test_a_silent_peer_is_pinged_and_one_that_answers_stays():
    options = guards(keepalive_interval=0.05, silence_timeout=0.3)
    async with serving(Service(Insert=ignore), guards=options) as (server, address), raw_peer(address) as peer:
        await peer.greet()
        peer.request()
        await peer.flush()
        async with asyncio.timeout(5):
            while sum(isinstance(frame, PingFrame) for frame in peer.frames) < 8:
                await peer.read()
        assert server.stats.open == 1


async def test_a_peer_whose_program_is_blocked_stays_for_long_but_not_for_ever():
    options = guards(keepalive_interval=0.05, dead_after=0.1, silence_timeout=0.6)
    service = Service(Insert=ignore)
    async with serving(service, guards=options) as (server, address), raw_peer(address) as peer:
        await peer.greet()
        peer.request()
        await peer.flush()
        begun = time.monotonic()
        await until(lambda: server.stats.open == 1)
        await until(lambda: server.stats.open == 0)
        assert time.monotonic() - begun > 0.5
        assert server.stats.snapshot()["dropped"] == {"silent": 1}
        async with asyncio.timeout(5):
            await service.cancelled.wait()


async def test_a_silent_peer_without_calls_stays():
    options = guards(keepalive_interval=0.05, dead_after=0.1, silence_timeout=0.2)
    async with serving(Service(Hello=hello), guards=options) as (server, address), raw_peer(address) as peer:
        await peer.greet()
        peer.request("/no/such", end=True)
        await peer.flush()
        await asyncio.sleep(0.5)
        assert server.stats.open == 1


@on_linux
@pytest.mark.parametrize("is_served", [False, True], ids=["idle", "in the midst of much data"])
async def test_a_host_that_is_gone_is_noticed(is_served):
    options = guards(keepalive_interval=0.3, dead_after=0.8, silence_timeout=60.0)
    service = Service(Insert=flood if is_served else ignore)
    async with serving(service, guards=options) as (server, address), raw_peer(address) as peer:
        await peer.greet()
        peer.request()
        await peer.flush()
        for _ in range(5 if is_served else 1):
            await peer.read()
        peer.vanish()
        begun = time.monotonic()
        await until(lambda: server.stats.open == 0)
        assert server.stats.snapshot()["dropped"] == {"its host is gone": 1}
        assert 0.5 < time.monotonic() - begun < 4.5


@on_linux
async def test_a_stopped_client_process_goes_on_where_it_was():
    """What a training step in the event loop is to the server."""
    program = """
        import asyncio, sys
        import numpy as np
        from reverb_async.protocol.message import Message
        from reverb_async.wire.transport import GrpcTransport

        async def main():
            transport = GrpcTransport(sys.argv[1])
            stream = await transport.open("insert")
            for number in range(12):
                message = Message({"n": number}, [np.zeros(1_000_000, np.uint8)])
                await stream.send(message)
                assert (await stream.receive()).header == {"n": number}
                print(number, flush=True)
            await transport.close()

        asyncio.run(main())
    """
    options = guards(keepalive_interval=0.1, dead_after=0.3, send_timeout=20.0, silence_timeout=20.0)
    async with serving(Service(Insert=echo), guards=options) as (server, address):
        command = [sys.executable, "-c", textwrap.dedent(program), address]
        client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        try:
            await client.stdout.readline()
            os.kill(client.pid, signal.SIGSTOP)
            await asyncio.sleep(1.5)
            os.kill(client.pid, signal.SIGCONT)
            rest, _ = await client.communicate()
        finally:
            if client.returncode is None:
                client.kill()
        assert client.returncode == 0
        assert rest.split()[-1] == b"11"
        assert (server.stats.accepted, server.stats.snapshot()["dropped"]) == (1, {})


@on_both_paths
@pytest.mark.parametrize("is_talking", [False, True], ids=["silent", "answers pings"])
async def test_a_stream_without_credit_ends_with_a_status(is_talking):
    options = guards(send_timeout=0.2, keepalive_interval=0.05)
    service = Service(Insert=flood, Hello=hello)
    async with serving(service, guards=options) as (server, address), raw_peer(address) as peer:
        await peer.greet({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        peer.request()
        await peer.flush()
        if is_talking:
            await peer.read_until(RstStreamFrame)
        complaints = await peer.read_to_the_end()
        assert complaints == [("RstStreamFrame", 0), ("GoAwayFrame", 0)]
        _, trailers = [frame for frame in peer.frames if isinstance(frame, HeadersFrame)]
        assert "END_STREAM" in trailers.flags
        assert server.stats.stalled_streams == 1
        await until(lambda: server.stats.open == 0)


@on_both_paths
async def test_a_stream_that_stalls_does_not_end_its_connection():
    options = guards(send_timeout=0.3, keepalive_interval=0.05)
    service = Service(Insert=flood, Sample=echo, Hello=hello)
    async with serving(service, guards=options) as (server, address), raw_peer(address) as peer:
        await peer.greet({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        stalled, living = peer.request(), peer.request(INSERT.replace("Insert", "Sample"))
        await peer.flush()
        await peer.read_until(RstStreamFrame, stream_id=stalled)
        body = GrpcCodec().encode(Message({"n": 1}), v1.Frame)
        peer.h2.send_data(living, message(body))
        await peer.flush()
        await peer.read_until(HeadersFrame, stream_id=living)
        assert server.stats.open == 1
        assert server.stats.snapshot()["dropped"] == {}


@on_both_paths
async def test_a_handler_that_does_not_heed_is_cut_off(monkeypatch):
    monkeypatch.setattr(watch, "LAST_WORDS_S", 0.1)

    async def stubborn(duplex):
        while True:
            try:
                await duplex.send(Message({}, [np.zeros(100_000, np.uint8)]))
            except Exception:
                await asyncio.sleep(3600)

    options = guards(send_timeout=0.1)
    service = Service(Insert=stubborn)
    async with serving(service, guards=options) as (_, address), raw_peer(address) as peer:
        await peer.greet({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        peer.request()
        await peer.flush()
        assert await peer.read_to_the_end() == [("RstStreamFrame", 8), ("GoAwayFrame", 0)]
        async with asyncio.timeout(5):
            await service.cancelled.wait()


async def test_a_peer_that_takes_a_little_now_and_then_is_no_stalled_one():
    options = guards(send_timeout=0.2, keepalive_interval=0.05)
    service = Service(Insert=flood)
    async with serving(service, guards=options) as (server, address), raw_peer(address) as peer:
        await peer.greet({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        stream_id = peer.request()
        await peer.flush()
        for _ in range(10):
            await asyncio.sleep(0.06)
            peer.h2.increment_flow_control_window(20_000, stream_id)
            peer.h2.increment_flow_control_window(20_000)
            await peer.flush()
        assert server.stats.stalled_streams == 0
        for _ in range(10):
            await asyncio.sleep(0.06)
            peer.h2.increment_flow_control_window(10, stream_id)
            await peer.flush()
        assert server.stats.stalled_streams == 1


@on_both_paths
async def test_a_peer_that_reads_nothing_is_dropped_with_what_was_not_sent():
    options = guards(send_timeout=0.3)
    service = Service(Insert=flood)
    async with serving(service, guards=options) as (server, address):
        async with raw_peer(address, receive_buffer=4096) as peer:
            await peer.greet({SettingCodes.INITIAL_WINDOW_SIZE: (1 << 31) - 1})
            peer.h2.increment_flow_control_window((1 << 31) - 1 - 65535)
            peer.request()
            await peer.flush()
            await until(lambda: server.stats.open == 1)
            (connection,) = server._endpoint.connections
            await until(lambda: not connection.connection.write_ready.is_set())
            assert connection.unsent_bytes <= (1 << 20) + 100_000 + (64 << 10), "a buffer, a message, and some more"
            await until(lambda: server.stats.open == 0)
        assert server.stats.snapshot()["dropped"] == {"reads nothing": 1}
        async with asyncio.timeout(5):
            await service.cancelled.wait()


async def test_a_peer_that_reads_nothing_is_dropped_though_little_is_left_for_it():
    async def say_much(duplex):
        await duplex.send(Message({}, [np.zeros(4 << 20, np.uint8)]))
        await asyncio.Event().wait()

    options = guards(send_timeout=0.3)
    async with serving(Service(Insert=say_much), guards=options) as (server, address):
        async with raw_peer(address, receive_buffer=4096) as peer:
            await peer.greet({SettingCodes.INITIAL_WINDOW_SIZE: (1 << 31) - 1})
            peer.h2.increment_flow_control_window((1 << 31) - 1 - 65535)
            peer.request()
            await peer.flush()
            await until(lambda: server.stats.open == 1)
            await until(lambda: server.stats.open == 0)
        assert server.stats.snapshot()["dropped"] == {"reads nothing": 1}


async def test_time_in_which_the_server_itself_was_blocked_does_not_count():
    options = guards(keepalive_interval=0.05, silence_timeout=0.4, send_timeout=0.4, first_request_timeout=0.4)
    async with serving(Service(Insert=ignore), guards=options) as (server, address), raw_peer(address) as peer:
        await peer.greet()
        peer.request()
        await peer.flush()
        await until(lambda: server.stats.open == 1)
        time.sleep(0.6)  # noqa: ASYNC251 - that is the point
        for _ in range(3):
            await asyncio.sleep(0.02)
        assert server.stats.snapshot()["dropped"] == {}


async def test_a_server_without_connections_does_not_look():
    async with serving(Service(Hello=hello), guards=guards()) as (server, address):
        watch = server._endpoint.watch
        assert watch._timer is None
        channel = channel_to(address)
        await say_hello(channel)
        assert watch._timer is not None
        channel.close()
        await until(lambda: server.num_connections == 0)
        assert watch._timer is None


def test_grpcio_clients_are_not_disturbed_by_any_of_it():
    async def scenario():
        options = guards(
            first_request_timeout=0.1, keepalive_interval=0.05, dead_after=0.2, silence_timeout=0.2, send_timeout=0.5
        )
        async with serving(Service(Hello=hello), guards=options) as (server, address):

            def talk():
                with grpc.insecure_channel(address) as channel:
                    grpc.channel_ready_future(channel).result(timeout=5)
                    call = channel.unary_unary(HELLO)
                    for pause in (0.5, 0.5, 0.0):  # it connects, is sent away for its silence, and connects again
                        time.sleep(pause)
                        call(v1.HelloRequest(client_name="me").SerializeToString(), timeout=5)

            await asyncio.to_thread(talk)
            assert set(server.stats.dropped) <= {"no request in time"}

    asyncio.run(scenario())


async def test_a_dropped_client_of_ours_is_told_that_the_server_is_unavailable():
    async with serving(Service(Insert=ignore)) as (server, address):
        transport = GrpcTransport(address)
        stream = await transport.open("insert")
        await until(lambda: server.stats.open == 1)
        (connection,) = server._endpoint.connections
        connection.drop_now("test")
        with pytest.raises(Unavailable):
            await stream.receive()
        stream.abort()
        await transport.close()
