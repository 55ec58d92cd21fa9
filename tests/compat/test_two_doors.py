"""One table, two doors: what DeepMind's clients write, native clients read, and the other way round."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import reverb_async as ra
from reverb_async.wire.generated.deepmind.reverb import InsertStreamRequest
from tests.compat.deepmind_rig import chunk, column, item, row_item, served, status

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]


async def read(server: ra.Server, table: str = "t"):
    async with ra.Client(server.address) as native:
        return (await native.sample_one(table)).data


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, ml_dtypes.bfloat16], ids=str)
async def test_every_dtype_passes_from_door_to_door(dtype, delta) -> None:
    values = np.random.default_rng(0).integers(0, 100, (5, 4, 3)).astype(dtype)
    async with served(ra.Table("t", max_size=10)) as (server, client):
        chunks = [chunk(1, values, values[:, 0], values[:, 0, 0], delta=delta)]
        columns = [column((1, 1, 3, 0)), column((1, 0, 5, 1)), column((1, 2, 1, 2), squeeze=True)]
        await client.insert(InsertStreamRequest(chunks=chunks, items=[item(1, "t", *columns)]))
        data = await read(server)
    assert isinstance(data, list)
    for got, wanted in zip(data, [values[1:4], values[:, 0], values[2, 0, 0]], strict=True):
        assert got.dtype == values.dtype
        assert np.array_equal(got, wanted)


async def test_a_chunk_per_column_and_slices_of_several_chunks() -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        chunks = [chunk(key, np.arange(10 * key, 10 * key + 4, dtype=np.float32)) for key in (5, 3, 4)]
        shown = [column((5, 2, 2), (3, 0, 1), (4, 1, 3)), column((3, 3, 1), squeeze=True)]
        await client.insert(InsertStreamRequest(chunks=chunks, items=[item(1, "t", *shown)]))
        data = await read(server)
    assert [each.tolist() for each in data] == [[52, 53, 30, 41, 42, 43], 33]


async def test_strings_and_empty_tensors() -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        texts = [b"a", b"", "ü".encode() * 3]
        chunks = [chunk(1, texts, np.zeros((3, 0, 2), np.float32), np.array([[b"xy", b"z"]] * 3))]
        shown = [column((1, 0, 3, 0)), column((1, 0, 3, 1)), column((1, 1, 1, 2))]
        await client.insert(InsertStreamRequest(chunks=chunks, items=[item(1, "t", *shown)]))
        data = await read(server)
    assert list(data[0]) == texts
    assert data[1].shape == (3, 0, 2)
    assert data[2].tolist() == [[b"xy", b"z"]]


SIGNATURE = {"obs": ra.ArraySpec((2,), np.float32), "act": ra.ArraySpec((), np.int64)}


async def test_a_row_in_a_table_of_steps_is_shown_as_its_signature_says() -> None:
    async with served(ra.Table("t", max_size=10, signature=SIGNATURE)) as (server, client):
        await client.insert(row_item(1, "t", np.int64(4), np.float32([1, 2])))
        data = await read(server)
        assert (data["act"], data["obs"].tolist()) == (4, [1, 2])
        async with ra.Client(server.address) as native:
            await native.insert({"obs": np.float32([3, 4]), "act": np.int64(5)}, {"t": 1.0})
        samples = await client.sample("t", 30)
        columns = {sample.columns[0].item(): sample.columns[1].tolist() for sample in samples}
        assert columns == {4: [[1, 2]], 5: [[3, 4]]}


async def test_a_sequence_in_a_table_of_steps_keeps_its_time_axis() -> None:
    async with served(ra.Table("t", max_size=10, signature=SIGNATURE)) as (server, client):
        chunks = [chunk(1, np.arange(3), np.zeros((3, 2), np.float32))]
        shown = [column((1, 0, 3, 0)), column((1, 0, 3, 1))]
        await client.insert(InsertStreamRequest(chunks=chunks, items=[item(1, "t", *shown)]))
        data = await read(server)
    assert (data["act"].tolist(), data["obs"].shape) == ([0, 1, 2], (3, 2))


async def test_a_table_of_sequences_takes_what_its_signature_says() -> None:
    signature = {"x": ra.ArraySpec((3, 2), np.float32), "last": ra.ArraySpec((), "str")}
    async with served(ra.Table("t", max_size=10, signature=signature)) as (server, client):
        chunks = [chunk(1, np.arange(8, dtype=np.float32).reshape(4, 2)), chunk(2, ["é".encode(), b"b"])]
        shown = [column((2, 0, 1), squeeze=True), column((1, 1, 3))]
        await client.insert(InsertStreamRequest(chunks=chunks, items=[item(1, "t", *shown)]))
        data = await read(server)
    assert (data["last"], data["x"].tolist()) == ("é", [[2, 3], [4, 5], [6, 7]])


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ([np.int64([1])], "1 columns, the signature 2"),
        ([np.int32([1]), np.zeros((1, 2), np.float32)], "int32"),
        ([np.int64([1]), np.zeros((1, 3), np.float32)], "3"),
        ([np.int64([1]), np.zeros((1, 2, 2), np.float32)], "2, 2"),
    ],
)
async def test_what_does_not_fit_the_signature_is_refused(columns, what) -> None:
    async with served(ra.Table("t", max_size=10, signature=SIGNATURE)) as (server, client):
        stream = client.inserting()
        shown = [column((1, 0, 1, index)) for index in range(len(columns))]
        await stream.send(InsertStreamRequest(chunks=[chunk(1, *columns)], items=[item(1, "t", *shown)]))
        code, text = await status(stream.call)
        assert (code, what in text) == ("INVALID_ARGUMENT", True), text
        assert server.tables["t"].state.size == 0


async def test_a_wrong_number_of_steps_is_refused() -> None:
    async with served(ra.Table("t", max_size=10, signature=ra.ArraySpec((3,), np.float32))) as (_, client):
        stream = client.inserting()
        shown = item(1, "t", column((1, 0, 2)))
        await stream.send(InsertStreamRequest(chunks=[chunk(1, np.zeros(3, np.float32))], items=[shown]))
        code, text = await status(stream.call)
        assert (code, "2 steps" in text) == ("INVALID_ARGUMENT", True), text


async def test_items_of_both_doors_stand_in_one_table_and_one_batch() -> None:
    table = ra.Table("q", max_size=100, sampler=ra.selectors.Fifo(), max_times_sampled=2, signature=SIGNATURE)
    async with served(table) as (server, client), ra.Client(server.address) as native:
        for number in range(10):
            if number % 2:
                await native.insert({"obs": np.float32([number, 0]), "act": np.int64(number)}, {"q": 1.0})
            else:
                await client.insert(row_item(number, "q", np.int64(number), np.float32([number, 0])))
        samples = await client.sample("q", 5)
        assert [sample.columns[0].tolist() for sample in samples] == [[0], [0], [1], [1], [2]]
        batch = await native.sample_batch("q", 5)
        assert batch.data["act"].tolist() == [2, 3, 3, 4, 4]


async def test_a_damaged_chunk_is_handed_back_as_it_came() -> None:
    request = row_item(1, "t", np.arange(100))
    whole = bytes(request.chunks[0])
    async with served(ra.Table("t", max_size=10)) as (server, client):
        damaged = InsertStreamRequest.parse(bytes(request).replace(whole, whole))
        tensor = damaged.chunks[0].data.tensors[0]
        tensor.tensor_content = tensor.tensor_content[:4] + bytes(len(tensor.tensor_content) - 4)
        await client.insert(damaged)
        (sample,) = await client.sample("t")
        assert bytes(sample.chunks[0]) == bytes(damaged.chunks[0])
        with pytest.raises(ra.errors.DeadlineExceeded):
            async with ra.Client(server.address) as native:
                await native.sample_one("t", timeout=0.3)
        assert server.tables["t"].state.size == 0
