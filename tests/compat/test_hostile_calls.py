"""Malformed calls on DeepMind's service: their callers get a status, nobody else notices, nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import logging

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.wire.generated.deepmind.reverb import (
    FlatTrajectory,
    InsertStreamRequest,
    MutatePrioritiesRequest,
    SampleStreamRequest,
)
from tests.compat.deepmind_rig import PREFIX, DeepMindClient, chunk, column, held, item, row_item, served, status, until

SENSIBLE = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED", "CANCELLED"}


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def mutations(message: bytes, rng: np.random.Generator, count: int) -> list[bytes]:
    """Return copies of a message with bytes changed, cut out, doubled or cut off."""
    changed = []
    for _ in range(count):
        data = bytearray(message)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(data) + 1))
            match int(rng.integers(5)):
                case 0:
                    del data[at:]
                case 1:
                    del data[at : at + int(rng.integers(1, 9))]
                case 2:
                    data[at:at] = data[at : at + int(rng.integers(1, 30))]
                case 3:
                    data[at : at + 1] = rng.bytes(1)
                case _:
                    data[at : at + 1] = b"\xff" * int(rng.integers(1, 11))
            if not data:
                break
        changed.append(bytes(data))
    return changed


async def throw(client: DeepMindClient, method: str, messages: list[bytes]) -> set[str]:
    """Send each message on a stream of its own that then ends; return the codes."""
    codes: set[str] = set()

    async def one(message: bytes) -> None:
        call = client.stream(method)
        await call.write(message)
        await call.done_writing()
        codes.add((await asyncio.wait_for(status(call), 10))[0])

    for start in range(0, len(messages), 20):
        await asyncio.gather(*(one(message) for message in messages[start : start + 20]))
    return codes


async def assert_alive(server: ra.Server, client: DeepMindClient) -> None:
    """Check that the tables work, and that nothing but their items is stored."""
    await client.insert(row_item(2**60, "ok", np.int32(3)))
    assert [each.columns[0].tolist() for each in await client.sample("ok", 2)] == [[3], [3]]
    for name in ("t", "ok"):
        await client.reset(name)
    await until(lambda: held(server) == (0, 0))
    assert not len(server.tables["t"].inserters)


def tables() -> list[ra.Table]:
    return [ra.Table("t", max_size=1000, sampler=ra.selectors.Prioritized(1.0)), ra.Table("ok", max_size=10)]


@pytest.mark.parametrize("seed", range(3))
async def test_damaged_inserts(seed, caplog) -> None:
    rng = np.random.default_rng(seed)
    chunks = [chunk(5, np.arange(12).reshape(4, 3), [b"a", b"bc", b"", b"d"]), chunk(300, np.zeros(2, np.float32))]
    shown = [column((5, 1, 2, 0)), column((5, 0, 1, 1), squeeze=True), column((300, 0, 2))]
    request = bytes(InsertStreamRequest(chunks=chunks, items=[item(1, "t", *shown)], keep_chunk_keys=[5]))
    messages = [*mutations(request, rng, 300), *(rng.bytes(int(size)) for size in rng.integers(0, 200, 100))]
    with caplog.at_level(logging.WARNING):
        async with served(*tables()) as (server, client):
            assert await throw(client, "InsertStream", messages) <= SENSIBLE
            # What got in can be sampled, or removed as damaged.
            if server.tables["t"].state.size:
                await client.sample("t", 200)
                async with ra.Client(server.address) as native:
                    for _ in range(50):
                        try:
                            await native.sample_one("t", timeout=0.05)
                        except ra.errors.DeadlineExceeded:
                            break
            await assert_alive(server, client)
    assert not [record for record in caplog.records if "Application error" in record.message]


@pytest.mark.parametrize("seed", range(2))
async def test_damaged_sample_requests_and_calls(seed, caplog) -> None:
    rng = np.random.default_rng(seed)
    asked = bytes(SampleStreamRequest(table="ok", num_samples=3)) + field(3, b"\x08\x00")
    mutate = MutatePrioritiesRequest(table="t", delete_keys=[1, 2, 2**63])
    async with served(*tables()) as (server, client):
        await client.insert(row_item(1, "ok", np.int32(3)))
        messages = mutations(asked, rng, 100)
        calls = [client.stream("SampleStream") for _ in messages]
        for call, message in zip(calls, messages, strict=True):
            await call.write(message)
            await call.done_writing()
        await asyncio.sleep(0.2)
        for call in calls:
            call.cancel()
        codes = set()
        valid = (("MutatePriorities", bytes(mutate)), ("Reset", b"\x0a\x01t"), ("ServerInfo", b"\x08\x01"))
        for method, message in valid:
            for changed in mutations(message, rng, 100):
                codes.add((await client.channel.unary_unary(PREFIX + method)(changed).code()).name)
        assert codes <= SENSIBLE
        await client.reset("ok")
        await assert_alive(server, client)
        await until(lambda: not server.tables["ok"].num_samplers)
    assert not [record for record in caplog.records if "error" in record.message.lower()]


async def test_a_million_columns_are_refused() -> None:
    shown = field(1, b"\x08\x05\x18\x01")
    many = field(1, field(1, shown)) * 1_000_000
    request = bytes(InsertStreamRequest(chunks=[chunk(5, np.zeros(1, np.int8))]))
    request += field(2, b"\x08\x01" + field(2, b"t") + field(8, many))
    async with served(*tables()) as (server, client):
        stream = client.inserting()
        await stream.send(request)
        assert (await status(stream.call))[0] == "INVALID_ARGUMENT"
        await assert_alive(server, client)


async def test_an_item_of_4096_columns_passes() -> None:
    shown = FlatTrajectory.parse(field(1, field(1, b"\x08\x05\x18\x01")) * 4096)
    made = item(1, "t")
    made.flat_trajectory = shown
    async with served(*tables()) as (server, client):
        await client.insert(InsertStreamRequest(chunks=[chunk(5, np.zeros(1, np.int8))], items=[made]))
        (sample,) = await client.sample("t")
        assert sample.info.flat_trajectory == shown
        await assert_alive(server, client)


async def test_an_item_that_shows_the_same_rows_too_often_is_refused() -> None:
    big = np.zeros((1, 8 << 20), np.uint8)
    slices = [(5, 0, 1)] * 1000
    async with served(*tables()) as (server, client):
        stream = client.inserting()
        await stream.send(InsertStreamRequest(chunks=[chunk(5, big)], items=[item(1, "t", column(*slices))]))
        code, text = await status(stream.call)
        assert (code, "8388608000 bytes" in text) == ("INVALID_ARGUMENT", True)
        await assert_alive(server, client)


@pytest.mark.parametrize("shape", [(2**31 - 1, 2**31 - 1), (2**62,), (1, *[2**10] * 5), (1,) * 40])
async def test_a_tensor_that_claims_an_impossible_shape(shape) -> None:
    dims = b"".join(field(2, b"\x08" + varint(size)) for size in shape)
    tensor = b"\x08\x01" + field(2, dims) + field(4, b"\x04\x0c\x00\x00\x80\x3f")
    request = field(1, b"\x08\x05" + field(5, field(1, tensor)))
    request += bytes(InsertStreamRequest(items=[item(1, "t", column((5, 0, 1)))]))
    async with served(*tables()) as (server, client):
        stream = client.inserting()
        await stream.send(request)
        await stream.call.done_writing()
        assert (await status(stream.call))[0] in {"INVALID_ARGUMENT", "OK"}
        async with ra.Client(server.address) as native:
            if server.tables["t"].state.size:
                with pytest.raises(ra.errors.DeadlineExceeded):
                    await native.sample_one("t", timeout=0.3)
        await assert_alive(server, client)


@pytest.mark.parametrize("dtype", [20, 21, 101, 121, 255])
async def test_a_tensor_that_is_no_plain_array_does_not_get_in(dtype) -> None:
    tensor = b"\x08" + varint(dtype) + field(2, field(2, b"\x08\x01")) + field(15, field(1, b"builtins.eval"))
    request = field(1, b"\x08\x05" + field(5, field(1, tensor)))
    request += bytes(InsertStreamRequest(items=[item(1, "t", column((5, 0, 1)))]))
    async with served(*tables()) as (server, client):
        stream = client.inserting()
        await stream.send(request)
        assert (await status(stream.call))[0] == "INVALID_ARGUMENT"
        assert not server.tables["t"].state.size
        await assert_alive(server, client)


async def test_streams_that_come_and_go_leave_nothing() -> None:
    async with served(ra.Table.queue("t", 30), ra.Table("ok", max_size=10)) as (server, client):
        for turn in range(10):
            streams = [client.inserting() for _ in range(20)]
            for number, stream in enumerate(streams):
                await stream.send(
                    row_item(100 * turn + number, "t", np.zeros(1000)), b"\xff" if number % 2 else b"\x08"
                )
            for stream in streams[::3]:
                stream.call.cancel()
            samplers = [client.sampling() for _ in range(10)]
            for sampler in samplers:
                await sampler.ask("t", 2**40)
            for call in [*samplers, *streams]:
                call.call.cancel()
        await until(lambda: not server.tables["t"].num_samplers and not len(server.tables["t"].inserters))
        await until(lambda: not server.tables["t"].num_writers)
        gc.collect()
        await assert_alive(server, client)
