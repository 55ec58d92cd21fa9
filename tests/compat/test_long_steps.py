"""What takes long on DeepMind's service is done in parts, between which other streams have their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.compat import tensors
from reverb_async.compat.columns import ColumnLayouts
from reverb_async.compat.episodes import EpisodeBook
from reverb_async.compat.incoming import HeldChunks
from reverb_async.compat.insert_stream import InsertStream
from reverb_async.compat.recipes import Recipes
from reverb_async.compat.service import MAX_STEP_KEYS, DeepMindService, to_be_set
from reverb_async.compat.wire_format import MutateRequest, read_insert_request
from reverb_async.core.encoded import EncodedItems
from reverb_async.core.storage import Storage
from reverb_async.replay import Replay
from reverb_async.wire.generated.deepmind.reverb import InsertStreamRequest
from tests.compat.deepmind_rig import chunk, column, held, item, row_item, served, status, until
from tests.compat.test_hostile_calls import field, varint


async def turns_of_others(work: Awaitable[Any], look: Callable[[], int] | None = None) -> int:
    """Return how often another task that always wants to run did so until `work` was done.

    Args:
        work: what is to be done.
        look: count only turns in which this returns something new.
    """
    turns, last = 0, -1

    async def other() -> None:
        nonlocal turns, last
        while True:
            seen = last + 1 if look is None else look()
            turns, last = turns + (seen != last), seen
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    try:
        await work
    finally:
        task.cancel()
    return turns


class Messages:
    """A stream that has a few messages and takes all answers."""

    peer = ""

    def __init__(self, *messages: bytes) -> None:
        self._messages = [*messages]

    async def receive(self) -> bytes | None:
        return self._messages.pop(0) if self._messages else None

    def ready(self, most: int, nbytes: int) -> list[bytes]:
        return []

    async def send(self, chunks: list[bytes]) -> None:
        pass


@pytest.fixture
def replay() -> Replay:
    opened = Replay([ra.Table("t", max_size=10_000, sampler=ra.selectors.Prioritized(1.0))])
    opened.open()
    return opened


async def test_a_long_chunk_is_stored_in_slices_and_whole() -> None:
    encoded = EncodedItems(Storage())
    chunks = HeldChunks(encoded, Recipes(ColumnLayouts(encoded)), EpisodeBook().stream())
    content = np.random.default_rng(0).integers(0, 256, (1, 40 << 20), np.uint8)
    message = bytes(InsertStreamRequest(chunks=[chunk(5, np.zeros(1)), chunk(6, content), chunk(7, np.ones(1))]))
    views = read_insert_request(message).chunks
    assert await turns_of_others(chunks.store(views)) >= 10
    assert [bytes(each) for each in encoded.stores[1].views(0, np.arange(3))] == [bytes(view.raw) for view in views]


async def test_a_long_chunk_whose_stream_is_cancelled_is_dropped() -> None:
    encoded = EncodedItems(Storage())
    chunks = HeldChunks(encoded, Recipes(ColumnLayouts(encoded)), EpisodeBook().stream())
    content = np.random.default_rng(0).integers(0, 256, (1, 20 << 20), np.uint8)
    message = bytes(InsertStreamRequest(chunks=[chunk(6, content)]))
    task = asyncio.create_task(chunks.store(read_insert_request(message).chunks))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    chunks.close()
    usage = encoded.stores[1].usage()
    assert (usage.live_rows, usage.staged_rows) == (0, 0)


async def test_items_of_many_slices_are_inserted_a_few_at_a_time(replay: Replay) -> None:
    shown = field(1, b"".join(field(1, b"\x08\x05\x18" + varint(1 + at % 7)) for at in range(1000)))
    request = bytes(InsertStreamRequest(chunks=[chunk(5, np.zeros(9, np.int8))]))
    for key in range(1, 101):
        request += field(2, b"\x08" + varint(key) + field(2, b"t") + field(8, shown))
    request += field(15, bytes(len(request)))  # messages of so many parts must be longer
    stream = InsertStream(DeepMindService(replay), Messages(request))  # type: ignore[arg-type]
    state = replay.tables["t"].state
    assert await turns_of_others(stream.run(), lambda: state.size) >= 10
    assert state.size == 100


async def test_many_wrong_priorities_are_looked_at_in_parts(replay: Replay) -> None:
    keys = np.arange(4 * MAX_STEP_KEYS, dtype=np.uint64)
    request = MutateRequest("t", keys, np.full(len(keys), -1.0), keys[::2])
    assert await turns_of_others(to_be_set(replay.tables["t"], request)) >= 4


async def test_a_tensor_of_too_many_strings_is_refused() -> None:
    count = 2_000_000
    shape = field(2, b"\x08\x01") + field(2, b"\x08" + varint(count))
    tensor = b"\x08\x07" + field(2, shape) + field(4, bytes(count))
    async with served(ra.Table("t", max_size=10)) as (_, client):
        stream = client.inserting()
        await stream.send(field(1, b"\x08\x05" + field(5, field(1, tensor))))
        code, text = await status(stream.call)
        assert (code, "more than 1048576 strings" in text) == ("INVALID_ARGUMENT", True)


def test_the_tensors_of_a_wide_chunk_are_found_once(monkeypatch) -> None:
    looked = []
    found = tensors._tensors
    monkeypatch.setattr(tensors, "_tensors", lambda data: looked.append(len(data)) or found(data))
    wide = memoryview(bytes(chunk(5, *(np.full(1, number) for number in range(100)))))
    other = memoryview(bytes(chunk(6, *(np.full(1, -number) for number in range(50)))))
    for each, sign in ((wide, 1), (other, -1), (wide, 1)):
        for number in range(50):
            assert tensors.decode_chunk_tensor(each, number).tolist() == [sign * number]
    assert looked == [len(wide), len(other), len(wide)]


async def test_arrays_of_strings_are_measured_in_a_thread() -> None:
    encoded = EncodedItems(Storage())
    chunks = HeldChunks(encoded, Recipes(ColumnLayouts(encoded)), EpisodeBook().stream())
    strings = np.array([b"a", b"bcd"] * 150_000, "S3").reshape(1, -1)
    views = read_insert_request(bytes(InsertStreamRequest(chunks=[chunk(5, strings)]))).chunks
    assert await turns_of_others(chunks.store(views)) >= 10


async def test_streams_do_not_leave_more_than_so_many_bytes_behind(monkeypatch) -> None:
    monkeypatch.setattr("reverb_async.compat.service.MAX_ADOPTED_BYTES", 1000)
    async with served(ra.Table.queue("t", 1)) as (server, client):
        await client.insert(row_item(0, "t", np.zeros(100)))
        streams = [client.inserting() for _ in range(3)]
        for key, stream in enumerate(streams, 1):
            await stream.send(row_item(key, "t", np.zeros(100)))
            await until(lambda key=key: len(server.tables["t"].inserters) == key)
            await stream.call.done_writing()
            if key == 1:
                assert (await status(stream.call))[0] == "OK"
        for key in range(1, 3):  # their streams go on until the items are in
            assert not streams[key].call.done()
            streams[key].call.cancel()
        await until(lambda: held(server) == (2, 2))
        assert [sample.info.key for sample in await client.sample("t", 2)] == [0, 1]


async def test_an_item_keeps_its_chunk_when_many_are_dropped_at_once(replay: Replay) -> None:
    chunks = [chunk(key, np.float32([key])) for key in range(1, 10_001)]
    message = bytes(InsertStreamRequest(chunks=chunks[:1], items=[item(1, "t", column((1, 0, 1)))]))
    lead = bytes(InsertStreamRequest(chunks=chunks[1:]))
    service = DeepMindService(replay)
    await InsertStream(service, Messages(lead, message)).run()  # type: ignore[arg-type]
    usage = service.encoded.stores[1].usage
    await until(lambda: usage().staged_rows == 0)
    assert usage().live_rows == 1
