"""Whatever bytes a peer sends, the server lives, serves others, keeps nothing, and writes no traceback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys

import pytest
from h2.settings import SettingCodes
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from raw_peer import HELLO, INSERT, PREFACE, SETTINGS, raw_peer
from wire_rig import HEADERS, frame, message
from wire_services import SERVICE, until

import reverb_async as ra

pytestmark = pytest.mark.usefixtures("data_path")

THEIRS = [f"/deepmind.reverb.ReverbService/{name}" for name in ("SampleStream", "InsertStream", "MutatePriorities")]
IDS = st.sampled_from([0, 1, 1, 1, 2, 3, 3, 5, 7, 1 << 31, (1 << 31) - 1])
BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", bytes(4), bytes(5), bytes(8), b"\xff" * 4, b"\0\4\x7f\xff\xff\xff", b"\x7f\xff\xff\xff"]),
    st.binary(max_size=200).map(message),
)
KINDS = st.sampled_from([*range(11), 10, 12, 0xEE, 0xFF])
FLAGS = st.one_of(st.sampled_from([0, 1, 4, 5, 8, 0x20]), st.integers(0, 255))
FRAMES = st.builds(frame, KINDS, FLAGS, IDS, BODIES)
SOME_NAMES = (
    ":method :path :scheme :authority :status te content-type grpc-timeout grpc-encoding x-bin grpc-tags-bin "
    "content-length x X-Upper connection \xe4"
)
SOME_VALUES = (
    "POST GET / trailers application/grpc application/grpc+json text/html 1S 0n -1S 99999999H x gzip identity AAE= A "
    "\xff 7 -1 1e9"
)
NAMES = st.sampled_from([*SOME_NAMES.split(), "", "a b"])
VALUES = st.one_of(
    st.sampled_from([*SOME_VALUES.split(), "", "a\r\nb: c", HELLO, INSERT]),
    st.text(alphabet=st.characters(max_codepoint=255), max_size=20),
)
EDITS = st.lists(st.tuples(NAMES, st.none() | VALUES), max_size=4)
PATHS = [HELLO, INSERT, *(f"{SERVICE}/{name}" for name in ("Reset", "Nothing", "Sample", "ServerInfo")), *THEIRS]
MESSAGES = st.one_of(st.binary(max_size=30), st.binary(max_size=30).map(message), st.just(b"\1\0\0\0\1x"))
ENDS = st.sampled_from(["end", "reset", "leave open"])
CALLS = st.tuples(EDITS, st.sampled_from(PATHS), st.lists(MESSAGES, max_size=3), ENDS)


def edited(edits, path):
    headers = [(name, path if name == ":path" else value) for name, value in HEADERS]
    for name, value in edits:
        headers = [header for header in headers if header[0] != name]
        if value is not None:
            headers.append((name, value))
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def descriptors():
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


async def attack_with_bytes(address, data):
    async with raw_peer(address) as peer:
        await peer.write(PREFACE + SETTINGS + data)
        with contextlib.suppress(OSError):  # it is closed already
            peer.sock.shutdown(socket.SHUT_WR)
        await peer.read_to_the_end()


async def attack_with_calls(address, calls):
    """Make odd calls; the connection must survive them, and every call must be answered or reset."""
    async with raw_peer(address) as peer:
        await peer.greet({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
        due = []
        for edits, path, bodies, end in calls:
            stream_id = peer.h2.get_next_available_stream_id()
            peer.h2.send_headers(stream_id, edited(edits, path))
            for body in bodies:
                peer.h2.send_data(stream_id, body)
            if end == "end":
                peer.h2.end_stream(stream_id)
                due.append(stream_id)
            elif end == "reset":
                peer.h2.reset_stream(stream_id, 8)
        await peer.flush()
        async with asyncio.timeout(20):
            while due:
                assert not peer.ended, peer.frames
                over = {seen.stream_id for seen in peer.frames if seen.type == 3 or "END_STREAM" in seen.flags}
                due = [stream_id for stream_id in due if stream_id not in over]
                if due:
                    await peer.read()


async def survives(attack, examples, caplog):
    """Attack again and again: each time a good client is served, and in the end nothing is left."""
    async with ra.Server([ra.Table("t", max_size=100)]) as server, ra.Client(server.address) as good:
        await good.insert({"x": 1}, {"t": 1.0})
        gc.collect()  # What earlier tests left behind must neither go nor speak while this one listens.
        caplog.clear()
        tasks, files, connections = len(asyncio.all_tasks()), descriptors(), server.stats.open
        for example in examples:
            async with asyncio.timeout(30):
                await attack(server.address, example)
            async with asyncio.timeout(5):
                await good.insert({"x": 2}, {"t": 1.0})
            assert not errors(caplog), example
        await until(lambda: server.stats.open == connections)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        gc.collect()
        assert descriptors() <= files


ANY_BYTES = st.one_of(st.binary(max_size=100), st.lists(FRAMES, max_size=12).map(b"".join))
MANY_BYTES = st.lists(ANY_BYTES, min_size=5, max_size=5)
MANY_CALLS = st.lists(st.lists(CALLS, min_size=1, max_size=4), min_size=5, max_size=5)


def fuzz(attack, strategy, max_examples, caplog):
    # An attack that fails takes half a minute: hundreds of simpler ones are not worth the wait.
    @settings(max_examples=max_examples, phases=(Phase.explicit, Phase.reuse, Phase.generate))
    @given(strategy)
    def each(examples):
        with asyncio.Runner() as runner:
            runner.run(survives(attack, examples, caplog))

    each()


def test_any_frames(caplog):
    fuzz(attack_with_bytes, MANY_BYTES, 4, caplog)


def test_any_calls(caplog):
    fuzz(attack_with_calls, MANY_CALLS, 4, caplog)


@pytest.mark.soak
def test_any_frames_for_long(caplog):
    fuzz(attack_with_bytes, MANY_BYTES, 500, caplog)


@pytest.mark.soak
def test_any_calls_for_long(caplog):
    fuzz(attack_with_calls, MANY_CALLS, 500, caplog)
