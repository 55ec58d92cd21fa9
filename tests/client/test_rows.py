"""Inserting rows into a server in this process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import settle
from insert_rig import Rig

from reverb_async.client.writing.copies import Copies
from reverb_async.core.ragged import Ragged
from reverb_async.core.selectors import Prioritized
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import (
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    RateLimiterTimeout,
    SignatureMismatch,
    TableClosed,
    TableNotFound,
    Unavailable,
)
from reverb_async.table import Table


def queue(name: str = "t", size: int = 100_000, **options: Any) -> Table:
    return Table.queue(name, size, **options)


@pytest.fixture
async def rig():
    async with Rig(queue(), Table("prioritized", max_size=100_000, sampler=Prioritized(1.0))) as rig:
        yield rig


class Pair(NamedTuple):
    a: Any
    b: Any


@dataclass
class Example:
    text: Any
    label: Any


def size(rig: Rig, table: int = 0) -> int:
    return rig.tables[table].info.current_size


# -- one row ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        np.ones((3, 3)),
        7,
        2.5,
        "text",
        b"\x00\xff",
        np.float32(1),
        {"b": np.arange(4), "a": (1, "x", [np.zeros(0)])},
        Pair(np.int8(3), {"x": True}),
        np.zeros((2, 0, 3), np.int16),
        {"some": 1, "none": None},
    ],
    ids=str,
)
async def test_what_was_inserted_is_sampled_as_it_was(rig: Rig, data: Any) -> None:
    await rig.rows.insert(data, {"t": 1.0})
    (sampled,) = await rig.data("t", 1)
    if isinstance(data, dict | Pair):
        assert str(sampled).replace("np.int8(3)", "3") == str(sampled).replace("np.int8(3)", "3")
        assert type(sampled) is type(data)
    else:
        np.testing.assert_array_equal(sampled, data)
        assert np.asarray(sampled).dtype == np.asarray(data).dtype


async def test_one_row_enters_several_tables_under_keys_of_their_own(rig: Rig) -> None:
    keys = await rig.rows.insert({"x": 1}, {"t": 1.0, "prioritized": 2.0})
    assert keys["prioritized"] != keys["t"]
    (sample,) = await rig.read("prioritized", 1)
    assert sample.info.key == keys["prioritized"]
    assert sample.info.priority == 2.0
    assert type(keys["t"]) is int


async def test_no_priority_is_the_highest_so_far(rig: Rig) -> None:
    await rig.rows.insert(1, {"prioritized": 3.0})
    await rig.rows.insert(2, {"prioritized": None})
    assert {sample.info.priority for sample in await rig.read("prioritized", 20)} == {3.0}


async def test_shapes_that_differ_make_a_column_variable(rig: Rig) -> None:
    lengths = [3, 3, 5, 0, 4]
    for length in lengths:
        await rig.rows.insert({"x": np.full((length, 2), length, np.int16), "y": 1}, {"t": 1.0})
    assert [data["x"].shape for data in await rig.data("t", 5)] == [(length, 2) for length in lengths]
    declared = sum(len(message.header.get("groups", ())) for message in rig.transport.messages)
    assert declared == 2


async def test_other_dtypes_and_ranks_are_other_columns(rig: Rig) -> None:
    values = [np.zeros(3), np.zeros(3, np.int8), np.zeros((3, 1)), np.zeros(3), 1.0, "x"]
    for value in values:
        await rig.rows.insert({"x": value}, {"t": 1.0})
    for value, data in zip(values, await rig.data("t", 6), strict=True):
        np.testing.assert_array_equal(data["x"], value)


async def test_the_row_is_copied_before_the_call_waits(rig: Rig) -> None:
    x = np.zeros(4)
    call = asyncio.ensure_future(rig.rows.insert({"x": x}, {"t": 1.0}))
    await asyncio.sleep(0)
    x[:] = 9
    await call
    (data,) = await rig.data("t", 1)
    assert data["x"].tolist() == [0] * 4


async def test_calls_of_one_turn_travel_in_one_message(rig: Rig) -> None:
    await rig.rows.insert(0, {"t": 1.0})
    before = len(rig.transport.messages)
    keys = await asyncio.gather(*(rig.rows.insert(at, {"t": float(at)}) for at in range(50)))
    assert len(rig.transport.messages) == before + 1
    samples = await rig.read("t", 51)
    assert [sample.info.key for sample in samples[1:]] == [key["t"] for key in keys]
    assert [sample.info.priority for sample in samples[1:]] == list(range(50))


# -- batches ----------------------------------------------------------------------------------------------------------


async def test_a_batch_is_its_rows(rig: Rig) -> None:
    batch = {"x": np.arange(6).reshape(3, 2), "y": np.arange(3, dtype=np.float32)}
    keys = await rig.rows.insert_batch(batch, {"t": [1.0, 2.0, 3.0], "prioritized": None})
    assert keys["t"].dtype == np.uint64
    assert len({*keys["t"].tolist(), *keys["prioritized"].tolist()}) == 6
    samples = await rig.read("t", 3)
    assert [sample.info.key for sample in samples] == keys["t"].tolist()
    assert [sample.info.priority for sample in samples] == [1, 2, 3]
    assert [sample.data["x"].tolist() for sample in samples] == [[0, 1], [2, 3], [4, 5]]
    assert samples[2].data["y"] == 2
    assert size(rig, 1) == 3


async def test_columns_of_rows_that_differ(rig: Rig) -> None:
    ragged = Ragged(np.arange(12).reshape(6, 2), np.array([0, 1, 1, 6]))
    batch = {"r": ragged, "text": ["a", "", "ééé"], "raw": (b"1", b"22", b""), "n": np.arange(3)}
    await rig.rows.insert_batch(batch, {"t": 1.0})
    await rig.rows.insert({"r": np.zeros((4, 2), np.int64), "text": "b", "raw": b"", "n": 3}, {"t": 1.0})
    data = await rig.data("t", 4)
    assert [row["r"].tolist() for row in data[:3]] == [ragged[at].tolist() for at in range(3)]
    assert [row["text"] for row in data] == ["a", "", "ééé", "b"]
    assert [row["raw"] for row in data] == [b"1", b"22", b"", b""]
    assert data[3]["r"].shape == (4, 2)


async def test_equal_rows_go_into_a_column_that_became_variable(rig: Rig) -> None:
    for length in (2, 3):
        await rig.rows.insert({"x": np.full(length, 7)}, {"t": 1.0})
    await rig.rows.insert_batch({"x": np.arange(8).reshape(2, 4)}, {"t": 1.0})
    assert [row["x"].tolist() for row in await rig.data("t", 4)] == [[7] * 2, [7] * 3, [0, 1, 2, 3], [4, 5, 6, 7]]


async def test_long_lists_of_text_are_one_column(rig: Rig) -> None:
    texts = [str(at) for at in range(20_000)]
    await rig.rows.insert_batch(Example(texts, np.arange(20_000)), {"t": 1.0})
    data = await rig.data("t", 3)
    assert isinstance(data[0], Example)
    assert [row.text for row in data] == ["0", "1", "2"]


async def test_fixed_width_text_becomes_text_where_the_signature_wants_it() -> None:
    async with Rig(queue(signature={"x": ArraySpec((), str)})) as rig:
        await rig.rows.insert_batch({"x": np.array(["a", "bcd"])}, {"t": 1.0})
        assert await rig.data("t", 2) == [{"x": "a"}, {"x": "bcd"}]


async def test_a_large_batch_enters_in_order(rig: Rig) -> None:
    count = 2000
    batch = {"n": np.arange(count), "pad": np.zeros((count, 1000), np.uint8)}
    keys = await rig.rows.insert_batch(batch, {"t": 1.0})
    samples = await rig.read("t", count)
    assert [sample.info.key for sample in samples] == keys["t"].tolist()
    assert [int(sample.data["n"]) for sample in samples] == list(range(count))


async def test_concurrent_batches_do_not_mix(rig: Rig) -> None:
    await asyncio.gather(*(rig.rows.insert_batch(np.full((256, 2), at), {"t": 1.0}) for at in range(8)))
    assert [int(data[0]) for data in await rig.data("t", 2048)] == [at for at in range(8) for _ in range(256)]


async def test_the_batch_is_copied_before_the_call_waits(rig: Rig) -> None:
    x, values = np.zeros(4), np.zeros(4)
    ragged = Ragged(values, np.array([0, 1, 2, 3, 4]))
    call = asyncio.ensure_future(rig.rows.insert_batch({"x": x, "r": ragged}, {"t": 1.0}))
    await asyncio.sleep(0)
    x[:] = values[:] = 9
    await call
    for data in await rig.data("t", 4):
        assert data["x"] == 0
        assert data["r"].tolist() == [0]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "no columns"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, r"\('a',\): 2, \('b',\): 3"),
        ({"a": np.zeros(2), "b": 1}, r"\('b',\) has no leading axis"),
        ({"a": np.zeros((0, 4))}, "no rows"),
        ({"a": [1.0, 2.0]}, r"no leading axis; 'a' is a list of 2 columns; .*np.asarray\(a, np.float64\)"),
        ({"a": "text"}, "no leading axis"),
        (np.array([None]), "dtype"),
    ],
)
async def test_batches_that_are_none_are_refused(rig: Rig, batch: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        await rig.rows.insert_batch(batch, {"t": 1.0})
    assert rig.transport.opened == 0


@pytest.mark.parametrize("limit", [None, 0], ids=["records", "columns"])
async def test_rows_are_the_same_however_they_travel(monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    """Every dtype a record can hold, singly and in batches, into one and two tables, from strided arrays too."""
    if limit is not None:
        monkeypatch.setattr("reverb_async.protocol.rows.MAX_RECORD_BYTES", limit)
    rng = np.random.default_rng(0)
    dtypes = ["?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16", "S3", "U2"]
    batch: dict[str, Any] = {dtype: (rng.random((40, 3)) * 9).astype(dtype)[::2] for dtype in dtypes}
    batch |= {"scalar": np.arange(40)[::2], "matrix": np.asfortranarray(rng.random((20, 4, 2)))}
    priorities = rng.random(20)
    async with Rig(queue(), queue("u")) as rig:
        for _ in range(2):
            await rig.rows.insert_batch(batch, {"t": priorities, "u": None})
            for at in range(20):
                row = {name: column[at] for name, column in batch.items()}
                await rig.rows.insert(row, {"t": float(priorities[at])})
        kinds = {key for message in rig.transport.messages for key in message.header if key in ("rows", "items")}
        assert kinds == ({"rows"} if limit is None else {"items"})
        samples = await rig.read("t", 80)
        assert len(await rig.data("u", 40)) == 40
    for at, sample in enumerate(samples):
        assert sample.info.priority == priorities[at % 20]
        for name, column in batch.items():
            assert sample.data[name].dtype == column.dtype
            np.testing.assert_array_equal(sample.data[name], column[at % 20])


async def test_large_arrays_are_copied_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others have their turn between the slices; what arrives is the same, and a cancelled call leaves nothing."""
    for where in (
        "client.writing.copies.MAX",
        "client.writing.rows.MAX",
        "client.writing.row_values.MAX",
        "service.insert_stream.MAX",
        "service.step_rows.MAX",
    ):
        monkeypatch.setattr(f"reverb_async.{where}_COPY_BYTES", 10_000)
    x = np.arange(50_001.0)
    async with Rig(queue()) as rig:
        await rig.rows.insert({"x": x[:1], "s": "warm"}, {"t": 1.0})
        for turns in range(30):
            call = asyncio.ensure_future(rig.rows.insert({"x": x, "s": "a"}, {"t": 1.0}))
            for _ in range(turns):
                await asyncio.sleep(0)
            assert not call.done()
            call.cancel()
            await asyncio.wait([call])
        await rig.rows.insert({"x": x, "s": "b"}, {"t": 1.0})
        await rig.rows.insert_batch({"x": np.stack([x, x + 1, x + 2])}, {"t": 1.0})
        data = await rig.data("t", size(rig))
        for row, expected in zip(data[-3:], (x, x + 1, x + 2), strict=True):
            np.testing.assert_array_equal(row["x"], expected)
        for row in data[1:-3]:
            np.testing.assert_array_equal(row["x"], x)
        assert data[-4]["s"] == "b"
    usage = rig.service.replay.storage.usage()
    assert usage.staged_rows == usage.live_rows == 0


async def test_the_records_of_long_batches_are_made_as_they_are_sent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("client.writing.copies", "client.writing.rows", "client.writing.row_values"):
        monkeypatch.setattr(f"reverb_async.{where}.MAX_COPY_BYTES", 10_000)
    n = np.arange(1500)
    for x in (n, n[::-1]):
        await rig.rows.insert_batch({"x": x, "y": n}, {"t": 1.0})
    data = await rig.data("t", 3000)
    assert [int(row["x"]) for row in data] == [*n.tolist(), *n[::-1].tolist()]
    assert [int(row["y"]) for row in data] == 2 * n.tolist()


async def test_python_numbers_go_as_what_the_signature_or_the_first_row_says() -> None:
    async with Rig(queue(signature={"x": ArraySpec((), np.float32), "n": ArraySpec((), np.int64)})) as rig:
        for x in (1.5, 2, np.float32(3.5)):
            await rig.rows.insert({"x": x, "n": 1}, {"t": 1.0})
        with pytest.raises(InvalidArgument, match="beyond the range of float32"):
            await rig.rows.insert({"x": 1e300, "n": 1}, {"t": 1.0})
        with pytest.raises(SignatureMismatch):
            await rig.rows.insert({"x": 1.0, "n": 1.5}, {"t": 1.0})
        assert [data["x"] for data in await rig.data("t", 3)] == [1.5, 2.0, 3.5]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priorities", [{}, None, 1.0, [("t", 1.0)], "t"])
async def test_priorities_name_the_tables(rig: Rig, priorities: Any) -> None:
    with pytest.raises(InvalidArgument, match="priorities="):
        await rig.rows.insert(1, priorities)


@pytest.mark.parametrize("priority", [float("nan"), float("inf"), -1, "1", object()])
async def test_priorities_must_be_such(rig: Rig, priority: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"table 'prioritized'.*priorit"):
        await rig.rows.insert(1, {"prioritized": priority})
    with pytest.raises(InvalidArgument, match=r"table 'prioritized'.*priorit"):
        await rig.rows.insert_batch(np.zeros(2), {"prioritized": [1.0, priority]})


async def test_a_batch_needs_one_priority_or_one_each(rig: Rig) -> None:
    with pytest.raises(InvalidArgument, match="3 rows needs one priority, or 3"):
        await rig.rows.insert_batch(np.zeros(3), {"t": [1.0, 2.0]})


async def test_nothing_and_no_seconds_are_refused(rig: Rig) -> None:
    with pytest.raises(InvalidArgument, match="nothing to insert"):
        await rig.rows.insert({"a": None}, {"t": 1.0})
    for timeout in (-1, "1", True):
        with pytest.raises(InvalidArgument, match="timeout"):
            await rig.rows.insert(1, {"t": 1.0}, timeout=timeout)  # type: ignore[arg-type]


async def test_unknown_tables_are_named(rig: Rig) -> None:
    with pytest.raises(TableNotFound, match="'nope'"):
        await rig.rows.insert(1, {"t": 1.0, "nope": 1.0})
    assert size(rig) == 0


async def test_data_must_fit_the_signature() -> None:
    signature = {"x": ArraySpec((2,), np.float32), "r": ArraySpec((3, None), np.int64), "g": ArraySpec((), np.float32)}
    async with Rig(queue(signature=signature)) as rig:
        good = {"x": np.zeros(2, np.float32), "r": np.zeros((3, 5), np.int64), "g": 1.5}
        for change in (
            {"x": np.zeros(3, np.float32)},
            {"x": np.zeros(2)},
            {"r": np.zeros((2, 5), np.int64)},
            {"new": 1},
        ):
            with pytest.raises(SignatureMismatch, match="table 't'"):
                await rig.rows.insert({**good, **change}, {"t": 1.0})
        await rig.rows.insert(good, {"t": 1.0})
        await rig.rows.insert({**good, "r": np.zeros((3, 0), np.int64)}, {"t": 1.0})
        with pytest.raises(SignatureMismatch, match=r"\('x',\)") as caught:
            await rig.rows.insert({**good, "x": np.zeros(3, np.float32)}, {"t": 1.0})
        assert caught.value.__context__ is None  # although it looked at the tables twice
        data = await rig.data("t", 2)
        assert data[0]["g"].dtype == np.float32
        assert [row["r"].shape for row in data] == [(3, 5), (3, 0)]
        declared = sum(len(message.header.get("groups", ())) for message in rig.transport.messages)
        assert declared == 1


async def test_elements_of_a_ragged_must_fit_the_signature() -> None:
    async with Rig(queue(signature=ArraySpec((2,), np.float64))) as rig:
        with pytest.raises(SignatureMismatch, match="length 1 to 2"):
            await rig.rows.insert_batch(Ragged.from_list([np.zeros(1), np.zeros(2)]), {"t": 1.0})
        await rig.rows.insert_batch(Ragged.from_list([np.zeros(2), np.zeros(2)]), {"t": 1.0})
        assert size(rig) == 2


# -- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.02])
async def test_a_refusal_in_time_says_what_was_admitted(timeout: float) -> None:
    async with Rig(queue(size=3), queue("u", 100)) as rig:
        with pytest.raises(RateLimiterTimeout, match="table 't' needs") as caught:
            await rig.rows.insert_batch(np.arange(5), {"t": 1.0, "u": 1.0}, timeout=timeout)
        assert {name: len(keys) for name, keys in caught.value.keys.items()} == {"t": 3, "u": 3}
        samples = await rig.read("t", 3)
        assert [sample.info.key for sample in samples] == caught.value.keys["t"].tolist()
        for _ in range(3):
            await rig.rows.insert(1, {"t": 1.0}, timeout=timeout)
        with pytest.raises(RateLimiterTimeout) as caught:
            await rig.rows.insert(1, {"t": 1.0}, timeout=timeout)
        assert caught.value.keys["t"].shape == (0,)
        assert size(rig) == 3


async def test_a_batch_of_many_messages_keeps_its_first_rows_when_time_is_up() -> None:
    async with Rig(queue(size=5000)) as rig:
        with pytest.raises(RateLimiterTimeout) as caught:
            await rig.rows.insert_batch(np.arange(9000), {"t": 1.0}, timeout=0.02)
        samples = await rig.read("t", 5000)
        assert [int(sample.data) for sample in samples] == list(range(5000))
        assert [sample.info.key for sample in samples] == caught.value.keys["t"].tolist()


async def test_a_full_table_does_not_hold_up_another_one() -> None:
    async with Rig(queue(size=1), queue("u", 100)) as rig:
        await rig.rows.insert(0, {"t": 1.0})
        waiting = asyncio.create_task(rig.rows.insert(1, {"t": 1.0}))
        await asyncio.sleep(0.01)
        await asyncio.wait_for(rig.rows.insert(2, {"u": 1.0}), 1)
        assert not waiting.done()
        assert [int(data) for data in await rig.data("t", 2)] == [0, 1]
        await waiting


async def test_a_cancelled_call_leaves_nothing_behind_and_takes_nobody_along() -> None:
    async with Rig(queue(size=1)) as rig:
        await rig.rows.insert(0, {"t": 1.0})
        calls = [asyncio.create_task(rig.rows.insert(at, {"t": 1.0})) for at in range(1, 6)]
        batch = asyncio.create_task(rig.rows.insert_batch(np.arange(10, 20), {"t": 1.0}))
        await asyncio.sleep(0.01)
        for task in (calls[1], calls[3], batch):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert sorted([int(data) for data in await rig.data("t", 4)]) == [0, 1, 3, 5]
        await asyncio.gather(calls[0], calls[2], calls[4])
        await asyncio.sleep(0.01)
        assert size(rig) == 0


async def test_a_call_is_withdrawn_however_many_rows_of_the_client_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reverb_async.client.writing.rows.CLOSE_S", 60.0)  # Giving up unheard would take a minute.
    async with Rig(queue(size=1)) as rig:
        await rig.rows.insert(0, {"t": 1.0})
        calls = [asyncio.create_task(rig.rows.insert_batch(np.arange(30_000), {"t": 1.0})) for _ in range(4)]
        one = asyncio.create_task(rig.rows.insert(1, {"t": 1.0}))
        for _ in range(10):
            await settle()
        for call in (one, *calls):
            call.cancel()
        await asyncio.wait_for(asyncio.gather(*calls, one, return_exceptions=True), 20)
        assert [int(data) for data in await rig.data("t", 1)] == [0]
        assert size(rig) == 0


async def test_a_call_cancelled_before_it_was_sent_is_not_sent() -> None:
    async with Rig(queue()) as rig:
        await rig.rows.insert(0, {"t": 1.0})
        rig.transport.is_down = True
        rig.transport.break_streams()
        await asyncio.sleep(0.01)
        calls = [asyncio.create_task(rig.rows.insert(at, {"t": 1.0})) for at in range(1, 4)]
        calls.append(asyncio.create_task(rig.rows.insert_batch(np.arange(9), {"t": 1.0})))
        await asyncio.sleep(0.01)
        for call in (calls[1], calls[3]):
            call.cancel()
        await asyncio.wait(calls[1::2])
        rig.transport.is_down = False
        await asyncio.gather(calls[0], calls[2])
        assert [int(data) for data in await rig.data("t", 3)] == [0, 1, 3]
        assert size(rig) == 0


async def test_tables_with_and_without_a_signature_get_columns_that_fit_them() -> None:
    async with Rig(
        queue(),
        queue("fixed", signature=ArraySpec((2,), np.float64)),
        queue("free", signature=ArraySpec((None,), np.float64)),
    ) as rig:
        for length in (2, 3):
            await rig.rows.insert(np.zeros(length), {"t": 1.0, "free": 1.0})
        await rig.rows.insert(np.zeros(2), {"t": 1.0, "free": 1.0, "fixed": 1.0})
        await rig.rows.insert_batch(Ragged.from_list([np.ones(2)] * 2), {"fixed": 1.0})
        with pytest.raises(SignatureMismatch):
            await rig.rows.insert(np.zeros(3), {"free": 1.0, "fixed": 1.0})
        assert [len(data) for data in await rig.data("fixed", 3)] == [2, 2, 2]
        assert [len(data) for data in await rig.data("free", 3)] == [2, 3, 2]


async def test_cancelling_at_random_points_inserts_all_or_nothing() -> None:
    rng = np.random.default_rng(3)
    async with Rig(queue(size=40)) as rig:
        await rig.rows.insert(-1, {"t": 1.0})
        before = asyncio.all_tasks()
        confirmed: set[int] = set()
        seen: set[int] = set()

        async def act(at: int) -> None:
            confirmed.add((await rig.rows.insert(at, {"t": 1.0}))["t"])

        for turn in range(150):
            tasks = [asyncio.create_task(act(turn)) for _ in range(4)]
            for _ in range(int(rng.integers(0, 14))):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            if size(rig):
                samples = await rig.read("t", size(rig))
                seen |= {sample.info.key for sample in samples}
            await asyncio.wait(tasks, timeout=2)
            assert all(task.done() for task in tasks)
        seen |= {sample.info.key for sample in await rig.read("t", size(rig))}
        assert confirmed <= seen
        assert not rig.rows._unsettled
        assert asyncio.all_tasks() == before


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["unsent", "sent", "unheard"])
@pytest.mark.parametrize("number", [1, 2, 4])
async def test_each_row_enters_once_however_the_connection_breaks(rig: Rig, where: str, number: int) -> None:
    rig.transport.cuts.extend([(where, number)] * 5)

    async def act(actor: int) -> None:
        for at in range(10):
            if actor % 2:
                await rig.rows.insert(actor * 100 + at, {"t": 1.0})
            else:
                await rig.rows.insert_batch(np.array([actor * 100 + at]), {"t": 1.0})

    await asyncio.gather(*(act(actor) for actor in range(8)))
    assert rig.transport.opened > 3
    data = [int(one) for one in await rig.data("t", 80)]
    assert sorted(data) == [actor * 100 + at for actor in range(8) for at in range(10)]
    assert size(rig) == 0


async def test_when_nothing_answers_calls_fail_and_leave_nothing_behind() -> None:
    async with Rig(queue(), connect_timeout=0.05) as rig:
        await rig.rows.insert(0, {"t": 1.0})
        rig.transport.is_down = True
        rig.transport.break_streams()
        results = await asyncio.gather(*(rig.rows.insert(at, {"t": 1.0}) for at in range(1, 4)), return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable] * 3
        rig.transport.is_down = False
        await rig.rows.insert(4, {"t": 1.0})
        assert [int(data) for data in await rig.data("t", 2)] == [0, 4]
        assert size(rig) == 0


async def test_a_timeout_ends_the_wait_for_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reverb_async.client.writing.rows.NOW_S", 0.05)
    async with Rig(queue()) as rig:
        await rig.rows.insert(0, {"t": 1.0})
        rig.transport.is_down = True
        rig.transport.break_streams()
        with pytest.raises(DeadlineExceeded, match="did not answer"):
            await rig.rows.insert(1, {"t": 1.0}, timeout=0.02)
        rig.transport.is_down = False
        await rig.rows.insert(2, {"t": 1.0})
        assert [int(data) for data in await rig.data("t", 2)] == [0, 2]


async def test_a_closed_table_fails_those_who_wait_and_a_later_call_works_when_it_is_open_again() -> None:
    async with Rig(queue(size=1)) as rig:
        await rig.rows.insert(0, {"t": 1.0})
        waiting = asyncio.create_task(rig.rows.insert(1, {"t": 1.0}))
        await asyncio.sleep(0.01)
        rig.tables[0].close()
        with pytest.raises(TableClosed):
            await waiting
        rig.tables[0].open()
        assert len(await rig.data("t", 1)) == 1
        await rig.rows.insert(2, {"t": 1.0})


async def test_close_fails_those_who_wait_and_those_who_come() -> None:
    async with Rig(queue(size=1)) as rig:
        await rig.rows.insert(0, {"t": 1.0})
        waiting = asyncio.create_task(rig.rows.insert(1, {"t": 1.0}))
        await asyncio.sleep(0.01)
        await rig.rows.close()
        await rig.rows.close()
        for call in (waiting, rig.rows.insert(2, {"t": 1.0}), rig.rows.insert_batch(np.zeros(1), {"t": 1.0})):
            with pytest.raises(Closed):
                await call


async def test_arrays_of_elements_longer_than_a_slice_are_copied() -> None:
    array = np.array([b"a" * 5_000_000, b"b" * 4_999_999])
    copy = await Copies().of(array)
    array[:] = b""
    assert copy.tolist() == [b"a" * 5_000_000, b"b" * 4_999_999]
