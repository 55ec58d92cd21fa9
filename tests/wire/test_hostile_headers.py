"""Headers and requests that are wrong: answered as gRPC or HTTP/2 has it, and no reason for a traceback."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hpack import Encoder
from hyperframe.frame import HeadersFrame
from raw_peer import HELLO, INSERT, PREFACE, SETTINGS, raw_peer
from wire_rig import HEADERS, frame, message
from wire_services import Service, channel_to, echo, hello, say_hello, serving, until

pytestmark = pytest.mark.usefixtures("data_path")

REQUEST = [(name, HELLO if name == ":path" else value) for name, value in HEADERS]
INVALID_ARGUMENT, UNIMPLEMENTED, UNKNOWN = 3, 12, 2


def block(headers):
    return Encoder().encode(headers)


def bomb():
    encoder = Encoder()
    long = ("x", "y" * 4000)
    return b"".join(encoder.encode([long]) for _ in range(100))


FATAL = {
    "endless empty continuations": (frame(1, 0, 1) + frame(9, 0, 1) * 70, 1),
    "endless full continuations": (frame(1, 0, 1, bytes(16_000)) + frame(9, 0, 1, bytes(16_000)) * 20, 1),
    "a small block that becomes long headers": (frame(1, 5, 1, bomb()), 11),
    "long headers": (frame(1, 5, 1, block([*REQUEST, ("x", "~" * 70_000)])), 11),
    "many headers": (frame(1, 5, 1, block([*REQUEST, *[(f"x{n}", "y") for n in range(3000)]])), 11),
    "no HPACK": (frame(1, 5, 1, b"\xff" * 20), 1),
}


@pytest.mark.parametrize(("sent", "code"), FATAL.values(), ids=FATAL)
async def test_headers_that_endanger_the_connection_end_it_alone(sent, code, caplog):
    async with serving(Service(Hello=hello)) as (server, address):
        good = channel_to(address)
        await say_hello(good)
        async with raw_peer(address) as peer:
            await peer.write(PREFACE + SETTINGS + sent)
            assert await peer.read_to_the_end() in ([("GoAwayFrame", code)], [])
        await until(lambda: server.stats.open == 1)
        assert server.stats.snapshot()["dropped"] == {"protocol error": 1}
        await say_hello(good)
        good.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def changed(**changes):
    names = {"method": ":method", "path": ":path"}
    changes = {names.get(name, name.replace("_", "-")): value for name, value in changes.items()}
    return [(name, changes.pop(name, value)) for name, value in REQUEST] + list(changes.items())


ODD = {
    "an unknown method": (
        changed(path="/no/such"),
        message(b""),
        {":status": "200", "grpc-status": str(UNIMPLEMENTED)},
    ),
    "no path at all": (changed(path=""), message(b""), {":status": "200", "grpc-status": str(UNIMPLEMENTED)}),
    "GET": (changed(method="GET"), message(b""), {":status": "405"}),
    "another content": (changed(content_type="text/html"), message(b""), {":status": "415"}),
    "another codec": (changed(content_type="application/grpc+json"), message(b""), {":status": "415"}),
    "no deadline": (changed(grpc_timeout="soon"), message(b""), {":status": "200", "grpc-status": str(UNKNOWN)}),
    "a compressed message": (changed(grpc_encoding="gzip"), message(b"x", 1), {"grpc-status": str(UNIMPLEMENTED)}),
    "an unknown flag": (REQUEST, message(b"x", 7), {"grpc-status": str(INVALID_ARGUMENT)}),
    "half a message": (REQUEST, message(b"abc")[:-1], {"grpc-status": str(INVALID_ARGUMENT)}),
    "half a prefix": (REQUEST, b"\0\0", {"grpc-status": str(INVALID_ARGUMENT)}),
    "no message": (REQUEST, b"", {"grpc-status": str(INVALID_ARGUMENT)}),
    "an unused encoding": (changed(grpc_encoding="gzip"), message(b""), {"grpc-status": "0"}),
    "what one may send too": (changed(content_length="5"), message(b""), {"grpc-status": "0"}),
}


@pytest.mark.parametrize(("headers", "body", "expected"), ODD.values(), ids=ODD)
async def test_odd_requests_are_answered_and_their_connection_lives(headers, body, expected, caplog):
    async with serving(Service(Hello=hello)) as (server, address), raw_peer(address) as peer:
        await peer.greet()
        for stream_id in (1, 3):
            peer.h2.send_headers(stream_id, headers)
            peer.h2.send_data(stream_id, body, end_stream=True)
            await peer.flush()
            async with asyncio.timeout(5):
                while not expected.keys() <= peer.answers.get(stream_id, {}).keys():
                    assert not peer.ended
                    await peer.read()
            assert expected.items() <= peer.answers[stream_id].items()
        assert server.stats.open == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("length", ["3", "99", "x", "-1"])
async def test_a_wrong_content_length_is_a_fault_of_its_stream(length):
    async with serving(Service(Hello=hello)) as (server, address), raw_peer(address) as peer:
        await peer.greet()
        stream_id = peer.request(HELLO, more=[("content-length", length)])
        peer.h2.send_data(stream_id, message(b""), end_stream=True)
        good = peer.request(HELLO)
        peer.h2.send_data(good, message(b""), end_stream=True)
        await peer.flush()
        await peer.read_until(HeadersFrame, stream_id=good)
        assert ("RstStreamFrame", 1) in peer.complaints()
        assert server.stats.open == 1


async def test_a_hundred_and_thirty_streams_of_one_connection_are_served_at_once():
    async with serving(Service(Insert=echo, Hello=hello)) as (server, address), raw_peer(address) as peer:
        await peer.greet()
        streams = [peer.request(INSERT) for _ in range(130)]
        for stream_id in streams:
            peer.h2.send_data(stream_id, message(b"\x0a\x01\x80"))
        await peer.flush()
        for stream_id in streams:
            await peer.read_until(HeadersFrame, stream_id=stream_id)
        assert server.stats.refused_streams == 0
