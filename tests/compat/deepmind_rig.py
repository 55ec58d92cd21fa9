"""A client of DeepMind's service that knows nothing but bytes: grpcio's channel and the generated messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import numpy as np

import reverb_async as ra
from reverb_async.compat.tensors import decode_chunk_tensor, encode_tensor
from reverb_async.wire.generated import tensorflow as tf
from reverb_async.wire.generated.deepmind.reverb import (
    ChunkData,
    ChunkDataData,
    FlatTrajectory,
    FlatTrajectoryChunkSlice,
    FlatTrajectoryColumn,
    InsertStreamRequest,
    InsertStreamResponse,
    KeyWithPriority,
    MutatePrioritiesRequest,
    PrioritizedItem,
    ResetRequest,
    SampleStreamRequest,
    SampleStreamResponse,
    SequenceRange,
    ServerInfoResponse,
    Timeout,
)

PREFIX = "/deepmind.reverb.ReverbService/"
MESSAGE_BYTES = 600 << 20


def chunk(key: int, *tensors: Any, episode: int = 7, start: int = 0, delta: bool = False) -> ChunkData:
    """Return a chunk of tensors ``[rows, ...]``."""
    rows = len(tensors[0])
    protos = [tf.TensorProto.parse(encode_tensor(tensor, delta=delta)) for tensor in tensors]
    return ChunkData(
        chunk_key=key,
        sequence_range=SequenceRange(episode_id=episode, start=start, end=start + rows - 1),
        delta_encoded=delta,
        data=ChunkDataData(tensors=protos),
        data_tensors_len=len(protos),
    )


def column(*slices: tuple[int, ...], squeeze: bool = False) -> FlatTrajectoryColumn:
    """Return a column of (chunk key, offset, length, index) each."""
    names = ("chunk_key", "offset", "length", "index")
    parts = [FlatTrajectoryChunkSlice(**dict(zip(names, part, strict=False))) for part in slices]
    return FlatTrajectoryColumn(chunk_slices=parts, squeeze=squeeze)


def item(key: int, table: str, *columns: FlatTrajectoryColumn, priority: float = 1.0) -> PrioritizedItem:
    """Return an item of columns."""
    return PrioritizedItem(key=key, table=table, priority=priority, flat_trajectory=FlatTrajectory(columns=[*columns]))


def row_item(key: int, table: str, *values: Any, priority: float = 1.0) -> InsertStreamRequest:
    """Return what DeepMind's `Client.insert` sends: one chunk of one row, and an item that shows all of it."""
    tensors = [np.asarray(value)[None] for value in values]
    columns = [column((key, 0, 1, index)) for index in range(len(tensors))]
    return InsertStreamRequest(
        chunks=[chunk(key, *tensors, episode=key)], items=[item(key, table, *columns, priority=priority)]
    )


def decoded(sample: Sample) -> list[Any]:
    """Return the columns of a sample as DeepMind's client rebuilds them."""
    chunks = {each.chunk_key: bytes(each) for each in sample.chunks}
    columns = []
    assert sample.info.flat_trajectory is not None
    for each in sample.info.flat_trajectory.columns:
        parts = []
        for part in each.chunk_slices:
            tensor = decode_chunk_tensor(chunks[part.chunk_key], part.index)
            parts.append(np.asarray(tensor, object if isinstance(tensor, list) else None)[part.offset :][: part.length])
        joined = np.concatenate(parts)
        columns.append(joined[0] if each.squeeze else joined)
    return columns


class Sample:
    """A sample, glued together from its entries."""

    def __init__(self, entries: Sequence[Any]) -> None:
        self.whole = entries[0].info
        self.info = entries[0].info.item
        self.chunks = [each for entry in entries for each in entry.data]

    @property
    def columns(self) -> list[Any]:
        """The data."""
        return decoded(self)


class Inserting:
    """An InsertStream."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def send(self, *requests: Any) -> None:
        """Send requests: messages, or any bytes."""
        for request in requests:
            await self.call.write(request if isinstance(request, bytes) else bytes(request))

    async def keys(self, count: int) -> list[int]:
        """Return the next `count` confirmed keys."""
        keys: list[int] = []
        while len(keys) < count:
            answer = await self.call.read()
            assert answer is not grpc.aio.EOF, await status(self.call)
            keys += InsertStreamResponse.parse(answer).keys
        return keys

    async def end(self) -> list[int]:
        """Half-close; return the keys that came before the end, which must be a success."""
        await self.call.done_writing()
        keys: list[int] = []
        while (answer := await self.call.read()) is not grpc.aio.EOF:
            keys += InsertStreamResponse.parse(answer).keys
        assert await self.call.code() == grpc.StatusCode.OK, await status(self.call)
        return keys


class Sampling:
    """A SampleStream."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def ask(self, table: str, count: int, timeout_ms: int | None = None) -> None:
        """Send a request."""
        timeout = None if timeout_ms is None else Timeout(milliseconds=timeout_ms)
        request = SampleStreamRequest(table=table, num_samples=count, rate_limiter_timeout=timeout)
        await self.call.write(bytes(request))

    async def read(self, count: int) -> list[Sample]:
        """Return the next `count` samples."""
        samples: list[Sample] = []
        entries: list[Any] = []
        while len(samples) < count:
            answer = await self.call.read()
            assert answer is not grpc.aio.EOF, await status(self.call)
            for entry in SampleStreamResponse.parse(answer).entries:
                entries.append(entry)
                if entry.end_of_sequence:
                    samples.append(Sample(entries))
                    entries = []
        assert not entries
        assert len(samples) == count
        return samples


async def status(call: Any) -> tuple[str, str]:
    """Return code and text of a call that ends."""
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return (await call.code()).name, await call.details()


class DeepMindClient:
    """The seven methods, by bytes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def stream(self, method: str) -> Any:
        """Open a stream."""
        return self.channel.stream_stream(PREFIX + method)()

    async def call(self, method: str, request: Any = b"") -> bytes:
        """Make a call."""
        answer: bytes = await self.channel.unary_unary(PREFIX + method)(bytes(request))
        return answer

    def inserting(self) -> Inserting:
        """Open an InsertStream."""
        return Inserting(self.stream("InsertStream"))

    def sampling(self) -> Sampling:
        """Open a SampleStream."""
        return Sampling(self.stream("SampleStream"))

    async def insert(self, *requests: InsertStreamRequest) -> None:
        """Insert items, and wait until all are confirmed."""
        stream = self.inserting()
        await stream.send(*requests)
        wanted = [each.key for request in requests for each in request.items]
        assert sorted(await stream.keys(len(wanted))) == sorted(wanted)
        assert await stream.end() == []

    async def sample(self, table: str, count: int = 1, timeout_ms: int = 10_000) -> list[Sample]:
        """Return samples."""
        stream = self.sampling()
        await stream.ask(table, count, timeout_ms)
        samples = await stream.read(count)
        await stream.call.done_writing()
        assert await status(stream.call) == ("OK", "")
        return samples

    async def mutate(self, table: str, updates: dict[int, float], deletes: Sequence[int] = ()) -> None:
        """Set priorities, and delete."""
        pairs = [KeyWithPriority(key=key, priority=priority) for key, priority in updates.items()]
        request = MutatePrioritiesRequest(table=table, updates=pairs, delete_keys=[*deletes])
        assert await self.call("MutatePriorities", request) == b""

    async def reset(self, table: str) -> None:
        """Empty a table."""
        assert await self.call("Reset", ResetRequest(table=table)) == b""

    async def info(self) -> ServerInfoResponse:
        """Describe the server."""
        return ServerInfoResponse.parse(await self.call("ServerInfo"))


@asynccontextmanager
async def served(*tables: ra.Table, **options: Any) -> AsyncIterator[tuple[ra.Server, DeepMindClient]]:
    """Serve tables, and connect."""
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = ra.Server([*tables], **options)
    async with server, grpc.aio.insecure_channel(server.address, options=limits) as channel:
        yield server, DeepMindClient(channel)


async def until(condition: Any) -> None:
    """Wait until something holds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come about")


def held(server: ra.Server) -> tuple[int, int]:
    """Return how many records of items and chunks are stored."""
    encoded = server._replay.encoded
    return tuple(store.usage().live_rows + store.usage().staged_rows for store in encoded.stores)  # type: ignore[return-value]
