"""What native clients write, as DeepMind's clients read it."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import numpy as np
import pytest

import reverb_async as ra
from tests.compat.deepmind_rig import Sample, served, status, until

Pair = namedtuple("Pair", "first second")


def squeezed(sample: Sample) -> list[bool]:
    assert sample.info.flat_trajectory is not None
    return [each.squeeze for each in sample.info.flat_trajectory.columns]


async def test_an_inserted_value_is_a_sequence_of_one_step() -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        async with ra.Client(server.address) as native:
            await native.insert({"obs": np.ones((3, 3), np.float32), "a": np.int64(4)}, {"t": 2.5})
        (sample,) = await client.sample("t")
    assert squeezed(sample) == [False, False]
    assert sample.info.priority == 2.5
    assert sample.columns[0].tolist() == [4]
    assert sample.columns[1].shape == (1, 3, 3)
    assert len({each.chunk_key for each in sample.chunks}) == 2


async def test_columns_come_in_the_order_of_dm_tree() -> None:
    data = OrderedDict([("z", np.int32(1)), ("b", Pair(np.int32(2), None)), ("a", [np.int32(3), {"y": np.int32(4)}])])
    async with served(ra.Table("t", max_size=10)) as (server, client):
        async with ra.Client(server.address) as native:
            await native.insert(data, {"t": 1.0})
        (sample,) = await client.sample("t")
    assert [each.tolist() for each in sample.columns] == [[3], [4], [2], [1]]


async def test_a_trajectory_keeps_its_time_axes() -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        async with ra.Client(server.address) as native, native.trajectory_writer(num_keep_alive_refs=4) as writer:
            for at in range(4):
                writer.append({"x": np.full(2, at, np.float32), "y": np.int64(at)})
            history = writer.history
            await writer.create_item("t", priority=1.0, trajectory={"x": history["x"][-3:], "last": history["y"][-1]})
            await writer.flush()
        (sample,) = await client.sample("t")
    assert squeezed(sample) == [True, False]
    assert sample.columns[0].tolist() == 3
    assert sample.columns[1].tolist() == [[1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize(
    "value",
    [
        *(np.arange(6).reshape(2, 3).astype(kind) for kind in ("u1", "i2", "u8", "f2", "f8", "c8", "?")),
        np.zeros((0, 3), np.float32),
        np.array(["ab", "c"], "S4"),
        "grüße",
        b"\x00\xff",
        np.arange(300_000, dtype=np.float64),
    ],
    ids=lambda value: f"{getattr(value, 'dtype', type(value).__name__)}{getattr(value, 'shape', '')}",
)
async def test_every_dtype_arrives_bit_for_bit(value) -> None:
    async with served(ra.Table("t", max_size=10)) as (server, client):
        async with ra.Client(server.address) as native:
            await native.insert({"x": value}, {"t": 1.0})
        for _ in range(2):  # encoded, then remembered
            (sample,) = await client.sample("t")
            (got,) = sample.columns
            wanted = np.asarray(value)
            if isinstance(value, str | bytes):
                assert got.tolist() == [value.encode() if isinstance(value, str) else value]
            elif wanted.dtype.kind == "S":
                assert got.tolist() == [[b"ab", b"c"]]
            else:
                assert got.dtype == wanted.dtype
                assert np.array_equal(got[0], wanted)


async def test_rows_of_different_shapes_cannot_be_expressed() -> None:
    signature = {"x": ra.ArraySpec((None, None), np.int32)}
    async with served(ra.Table("t", max_size=10, signature=signature)) as (server, client):
        async with ra.Client(server.address) as native, native.trajectory_writer(num_keep_alive_refs=4) as writer:
            for size in (2, 3):
                writer.append({"x": np.arange(size, dtype=np.int32)})
            await writer.create_item("t", priority=1.0, trajectory={"x": writer.history["x"][:]})
            await writer.flush()
        stream = client.sampling()
        await stream.ask("t", 1)
        code, text = await status(stream.call)
        assert (code, "different shapes" in text) == ("INVALID_ARGUMENT", True)
        await until(lambda: not server.tables["t"].num_samplers)


async def test_an_item_in_a_reused_slot_is_not_taken_for_its_predecessor() -> None:
    async with served(ra.Table("t", max_size=1)) as (server, client), ra.Client(server.address) as native:
        for number in range(5):
            await native.insert(np.int32(number), {"t": 1.0})
            (sample,) = await client.sample("t")
            assert sample.columns[0].tolist() == [number]


async def test_many_rows_come_in_the_order_of_their_draw() -> None:
    async with served(ra.Table.queue("q", 1000)) as (server, client):
        async with ra.Client(server.address) as native:
            for number in range(300):
                await native.insert({"x": np.full(number % 3 + 1, number)}, {"q": 1.0})
        samples = await client.sample("q", 300)
    assert [each.columns[0].tolist() for each in samples] == [[[at] * (at % 3 + 1)] for at in range(300)]
