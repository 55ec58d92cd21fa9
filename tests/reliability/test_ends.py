"""A server is told to stop: what runs comes to its end, what waits is told, what is stuck is broken off in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import h2.connection
import h2.events
import numpy as np
import pytest
from reliability_rig import num_connections, num_streams

import reverb_async as ra
from reverb_async.core.nest import flatten
from reverb_async.protocol.inserting import Group, InsertRequest, InsertResponse, Items, Layout, Segments, Steps
from reverb_async.testing import until
from reverb_async.wire.codec import encode
from reverb_async.wire.duplex import GrpcClientDuplex
from reverb_async.wire.http2 import ReplayChannel
from reverb_async.wire.transport import parse_address

GRACE_S = 1.0


def tables() -> list[ra.Table]:
    return [
        ra.Table("t", max_size=100_000),
        ra.Table("big", max_size=1000),
        ra.Table("empty", max_size=10),
        ra.Table.queue("full", 1),
        ra.Table.queue("q", 100_000),
    ]


# -- peers that make no progress --------------------------------------------------------------------------------------


class DeafLearner:
    """Asks for large batches and reads nothing."""

    async def start(self, address: str) -> None:
        self._client = ra.Client(address, shared_memory=False)
        self._batches = self._client.sample_batches("big", 256, prefetch=3)
        await anext(self._batches)
        channel: ReplayChannel = self._client._use().connector.transport._channels["sample"]
        channel._protocol._transport.pause_reading()
        await asyncio.sleep(0)

    async def stop(self) -> None:
        await self._client.close()


class SlowTalker:
    """Has sent a part of a message on an Insert stream; says the rest when told to."""

    async def start(self, address: str) -> None:
        host, port, path = parse_address(address)
        self.channel = ReplayChannel(host, port, path=path)
        self.call = await self.channel.open_call("/reverb_async.v1.Replay/Insert")
        stream = self.call._stream
        await stream.send_data(struct.pack(">BI", 0, 1000) + bytes(10))

    async def stop(self) -> None:
        self.call.abort()
        self.channel.close()


class SilentConnection:
    """Has connected, and says nothing at all."""

    async def start(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))

    async def stop(self) -> None:
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def stuck(address: str) -> AsyncIterator[None]:
    peers = [DeafLearner(), SlowTalker(), SilentConnection()]
    for peer in peers:
        await peer.start(address)
    try:
        yield
    finally:
        for peer in peers:
            await peer.stop()


class Busy:
    """A client of every kind at once; `outcomes` says how their calls ended."""

    def __init__(self, address: str) -> None:
        self.idle = ra.Client(address)
        self.client = ra.Client(address)
        self.confirmed: list[int] = []
        self.failed: list[int] = []
        self.written: list[int] = []
        self.num_sampled = 0

    async def start(self) -> None:
        await self.idle.server_info()
        await self.client.insert({"x": 0}, {"full": 1.0})
        await self.client.insert_batch({"x": np.zeros((256, 1 << 14), np.uint8)}, {"big": 1.0})
        self.waiting = [
            asyncio.create_task(self.client.sample_one("empty")),
            asyncio.create_task(self.client.sample_batch("empty", 3)),
            asyncio.create_task(anext(self.client.sample("empty"))),
            asyncio.create_task(self.client.insert({"x": 1}, {"full": 1.0})),
            asyncio.create_task(self.client.insert_batch({"x": np.arange(3)}, {"full": 1.0})),
        ]
        self.running = [asyncio.create_task(work()) for work in (self._insert, self._learn, self._update)]

    async def _insert(self) -> None:
        async def insert(number: int) -> None:
            try:
                await self.client.insert({"x": np.int64(number)}, {"t": 1.0})
            except ra.Unavailable:
                self.failed.append(number)
                raise
            self.confirmed.append(number)

        for start in range(0, 10**9, 16):
            async with asyncio.TaskGroup() as tasks:
                for number in range(start, start + 16):
                    tasks.create_task(insert(number))

    async def _learn(self) -> None:
        async for batch in self.client.sample_batches("t", 16):
            self.num_sampled += 16
            await batch.update_priorities(np.ones(16))

    async def _update(self) -> None:
        while True:
            await self.client.mutate_priorities("t", {1: 1.0})

    async def check_all_were_told(self, within_s: float) -> None:
        """Every call has failed with `TableClosed`, or, cut off, with `Unavailable`."""
        done, pending = await asyncio.wait([*self.waiting, *self.running], timeout=within_s)
        assert not pending, pending
        for task in done:
            error = task.exception()
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            assert isinstance(error, ra.Unavailable), (task, error)
        for task in self.waiting:
            assert isinstance(task.exception(), ra.TableClosed), task

    async def close(self) -> None:
        await self.client.close()
        await self.idle.close()


# -- in this process --------------------------------------------------------------------------------------------------


async def test_closing_finishes_what_runs_tells_who_waits_and_confirms_exactly_what_happened() -> None:
    content: list[int] = []
    server = ra.Server(tables())
    await server.start()

    async def look() -> None:
        assert num_connections(server) == num_streams(server) == 0
        state = server.tables["t"].state
        content.append(state.limiter.inserts)

    server.last_steps.append(look)
    busy = Busy(server.address)
    await busy.start()
    await until(lambda: len(busy.confirmed) > 200 and busy.num_sampled > 200)
    started = time.monotonic()
    await server.close(grace=10)
    assert time.monotonic() - started < 1.5, "peers that read and write delay nothing"
    await busy.check_all_were_told(within_s=1)
    assert content == [len(busy.confirmed)], "nothing happened that was not confirmed, and nothing else was confirmed"
    assert not set(busy.failed) & set(busy.confirmed)
    await busy.close()


async def test_peers_that_are_stuck_end_with_the_grace() -> None:
    async with ra.Server(tables()) as server, ra.Client(server.address) as client:
        await client.insert_batch({"x": np.zeros((256, 1 << 16), np.uint8)}, {"big": 1.0})
        async with stuck(server.address):
            waiting = asyncio.create_task(client.sample_one("empty"))
            await until(lambda: server.tables["empty"].info.waiters and num_streams(server) >= 4)
            started = time.monotonic()
            closing = asyncio.create_task(server.close(grace=GRACE_S))
            with pytest.raises(ra.TableClosed):
                await waiting
            assert time.monotonic() - started < 0.5, "whoever waits for a limiter need not wait for others"
            await closing
            assert GRACE_S * 0.7 < time.monotonic() - started < GRACE_S + 0.5
            assert num_connections(server) == num_streams(server) == 0


async def test_an_insert_of_which_a_part_has_arrived_is_done_and_confirmed() -> None:
    server = ra.Server([ra.Table("t", max_size=10)])
    await server.start()
    host, port, path = parse_address(server.address)
    channel = ReplayChannel(host, port, path=path)
    stream = GrpcClientDuplex(await channel.open_call("/reverb_async.v1.Replay/Insert"), server.address)
    await stream.send(InsertRequest(session=bytes(16)).to_message())
    await stream.receive()
    structure = flatten({"x": 0})[1]
    items = Items(1, 0, ("t",), np.array([[7]], np.uint64), np.ones((1, 1)), [Segments(np.arange(1), np.ones(1, int))])
    request = InsertRequest(
        groups=[Group(0, (ra.ArraySpec((), np.int64),))],
        layouts=[Layout(0, structure, (0,), ((0, 0, True),))],
        steps=[Steps(0, 0, 1, [np.array([5])])],
        items=[items],
    )
    body = encode(request.to_message()).join()
    whole = struct.pack(">BI", 0, len(body)) + body
    await stream._call._stream.send_data(whole[:40])
    (connection,) = server._listening[0]._endpoint.connections
    await until(lambda: any(one.buffer._size > 0 for one in connection.processor.streams.values()))
    closing = asyncio.create_task(server.close(grace=10))
    await until(lambda: connection.connection.is_closing() or server._closed)
    await asyncio.sleep(0.05)
    assert not closing.done()
    await stream._call._stream.send_data(whole[40:] + whole)  # what is sent behind it comes too late
    answer = await stream.receive()
    assert answer is not None
    assert InsertResponse.from_message(answer).acks == [(1, 1)]
    with pytest.raises(ra.TableClosed):
        await stream.receive()
    stream.abort()
    channel.close()
    await closing
    assert server.tables["t"].state.size == 1


async def test_a_last_step_that_fails_is_raised_once_the_server_is_closed() -> None:
    server = ra.Server([ra.Table("t", max_size=10)])
    await server.start()

    async def fail() -> None:
        raise ra.CheckpointError("disk full")

    server.last_steps.append(fail)
    with pytest.raises(ra.CheckpointError, match="disk full"):
        await server.close()
    await server.wait()
    await server.close()


@pytest.mark.parametrize("grace", [-1, float("inf"), float("nan"), "long", True])
async def test_a_grace_that_is_none_is_refused(grace: object) -> None:
    async with ra.Server([ra.Table("t", max_size=10)], port=None) as server:
        with pytest.raises(ra.InvalidArgument, match="grace is a finite number of seconds"):
            await server.close(grace=grace)  # type: ignore[arg-type]
        async with server.client() as client:
            await client.insert({"x": 1}, {"t": 1.0})


async def test_calls_of_clients_in_the_same_process_end_alike() -> None:
    server = ra.Server(tables())
    await server.start()
    async with server.client() as client:
        inserts = [asyncio.create_task(client.insert({"x": number}, {"t": 1.0})) for number in range(100)]
        waiting = asyncio.create_task(client.sample_one("empty"))
        await until(lambda: bool(server.tables["empty"].info.waiters))
        await server.close(grace=10)
        outcomes = await asyncio.gather(*inserts, waiting, return_exceptions=True)
    assert isinstance(outcomes.pop(), ra.TableClosed)
    confirmed = sum(not isinstance(outcome, Exception) for outcome in outcomes)
    assert confirmed == server.tables["t"].state.limiter.inserts


# -- on the wire ------------------------------------------------------------------------------------------------------


class Peer:
    """A client made with plain h2, which answers PINGs only when it is told to."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=5)
        self._h2 = h2.connection.H2Connection()
        self._h2.initiate_connection()
        self._socket.sendall(self._h2.data_to_send())
        self.headers: dict[str, str] = {}

    def call(self, path: str, stream: int, body: bytes = bytes(5)) -> None:
        headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
        self._h2.send_headers(stream, [*headers, ("te", "trailers"), ("content-type", "application/grpc")])
        self._h2.send_data(stream, body, end_stream=True)
        self._socket.sendall(self._h2.data_to_send())

    def answer_ping(self, data: bytes) -> None:
        self._socket.sendall(struct.pack(">HBBBL", 0, 8, 6, 1, 0) + data)

    def read(self) -> tuple[int, int, bytes]:
        """Return the next frame: type, stream, payload."""
        header = self._exactly(9)
        high, low, kind, _, stream = struct.unpack(">HBBBL", header)
        payload = self._exactly(high << 8 | low)
        if kind == HEADERS:
            self.headers = dict(self._h2.decoder.decode(payload))
        return kind, stream, payload

    def read_until(self, kind: int) -> tuple[int, bytes]:
        while True:
            got, stream, payload = self.read()
            if got == kind:
                return stream, payload

    def at_end(self) -> bool:
        return self._socket.recv(1) == b""

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            assert part, "the connection has ended"
            data += part
        return data

    def close(self) -> None:
        self._socket.close()


HEADERS, PING, GOAWAY = 1, 6, 7
HELLO = "/reverb_async.v1.Replay/Hello"
HEALTH = "/grpc.health.v1.Health/Check"


async def test_goaway_comes_twice_and_calls_on_their_way_are_refused_not_lost() -> None:
    server = ra.Server([ra.Table("t", max_size=10)])
    await server.start()
    peer = Peer(server.address)

    def before() -> None:
        peer.call(HELLO, 1, b"\0\0\0\0\2\x08\1")
        assert peer.read_until(HEADERS)[0] == 1

    def meanwhile() -> None:
        _, first = peer.read_until(GOAWAY)
        assert struct.unpack(">LL", first) == ((1 << 31) - 1, 0)
        _, data = peer.read_until(PING)
        peer.call(HELLO, 3)
        assert peer.read_until(HEADERS)[0] == 3
        assert peer.headers["grpc-status"] == "14"
        assert peer.headers["grpc-message"] == "the server is stopping"
        peer.call(HEALTH, 5)
        stream, _ = peer.read_until(HEADERS)
        _, status = peer.read_until(0)
        assert (stream, status) == (5, b"\0\0\0\0\2\x08\2"), "NOT_SERVING"
        peer.answer_ping(data)
        _, second = peer.read_until(GOAWAY)
        assert struct.unpack(">LL", second) == (5, 0)
        assert peer.at_end(), "a peer that does not leave is left"

    await asyncio.to_thread(before)
    looking = asyncio.create_task(asyncio.to_thread(meanwhile))
    await server.close(grace=5)
    await looking
    peer.close()


# -- as a process of its own ------------------------------------------------------------------------------------------


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "error", "-m", "reverb_async.serve", "--port", "0", "--grace", str(GRACE_S)]
    for table in ("t", "big", "empty", "full:kind=queue,max_size=1", "q:kind=queue,max_size=100000"):
        command += ["--table", table]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rpartition(" on ")[2].partition(";")[0]


async def test_one_signal_ends_it_within_the_grace_whatever_its_clients_do(program: subprocess.Popen[str]) -> None:
    address = await asyncio.to_thread(address_of, program)
    busy = Busy(address)
    await busy.start()
    async with stuck(address):
        await until(lambda: len(busy.confirmed) > 200 and busy.num_sampled > 200)
        started = time.monotonic()
        os.kill(program.pid, signal.SIGTERM)
        await busy.check_all_were_told(within_s=GRACE_S)
        _, log = await asyncio.to_thread(program.communicate)
        assert (program.returncode, "Traceback" in log, "ERROR" in log) == (0, False, False), log
        assert time.monotonic() - started < GRACE_S + 1.5
        assert "breaking off" in log
    await busy.close()


async def test_a_second_signal_ends_it_now(program: subprocess.Popen[str]) -> None:
    address = await asyncio.to_thread(address_of, program)
    async with ra.Client(address) as client:
        await client.insert_batch({"x": np.zeros((256, 1 << 16), np.uint8)}, {"big": 1.0})
    async with stuck(address):
        os.kill(program.pid, signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert program.poll() is None
        started = time.monotonic()
        os.kill(program.pid, signal.SIGINT)
        await asyncio.to_thread(program.communicate)
        assert program.returncode == 130
        assert time.monotonic() - started < 0.5
