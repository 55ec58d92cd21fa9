"""Mistakes that a newcomer makes: each is answered at once, by what is wrong and what would be right."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from reliability_rig import serving

import reverb_async as ra

P = {"replay": 1.0}
SIGNATURE = {"obs": ra.ArraySpec((4,), np.float32), "action": ra.ArraySpec((), np.int32)}
KNOWN = "this server has: 'q', 'replay', 'signed', 'warm'"


@pytest.fixture(params=["in-process", "tcp"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[ra.Client]:
    tables = [
        ra.Table("replay", max_size=100, sampler=ra.selectors.Prioritized(0.6)),
        ra.Table("signed", max_size=10, signature=SIGNATURE),
        ra.Table.queue("q", 1),
        ra.Table("warm", max_size=1000, rate_limiter=ra.rate_limiters.MinSize(50)),
    ]
    async with serving(tables, request.param) as (_, client):
        await client.insert({"x": 7}, P)
        yield client
        if client.transport and not client._is_closed:  # Whatever was done wrong, the next call is right.
            assert (await client.sample_one("replay", timeout=5)).data["x"] == 7


class ArrayLike:
    """Like a column of a data frame: it becomes an array when asked."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array([1.5, 2.5], dtype)


class DataFrame:
    """Like a data frame without `__array__`."""


async def forgotten_await(client: ra.Client) -> None:
    sample = client.sample_one("replay")
    try:
        await client.insert({"x": sample}, P)
    finally:
        sample.close()  # Else Python says it too, later and elsewhere.


async def made(call: Callable[[Any], Any], subject: object) -> None:
    """Make a call, which may be asynchronous."""
    result = call(subject)
    if inspect.isawaitable(result):
        await result


# (the call, the error, what its text must say)
MISTAKES: dict[str, tuple[Callable[[ra.Client], Any], type[Exception], str]] = {
    # tables
    "insert, wrong table": (lambda c: c.insert({"x": 1}, {"Replay": 1.0}), ra.TableNotFound, f"'Replay'.*{KNOWN}"),
    "sample_one, wrong table": (lambda c: c.sample_one("Replay"), ra.TableNotFound, f"'Replay'.*{KNOWN}"),
    "sample, wrong table": (lambda c: anext(c.sample("Replay")), ra.TableNotFound, f"'Replay'.*{KNOWN}"),
    "sample_batch, wrong table": (lambda c: c.sample_batch("Replay", 2), ra.TableNotFound, f"'Replay'.*{KNOWN}"),
    "mutate, wrong table": (lambda c: c.mutate_priorities("Replay", {1: 1.0}), ra.TableNotFound, f"'Replay'.*{KNOWN}"),
    "reset, wrong table": (lambda c: c.reset("Replay"), ra.TableNotFound, f"'Replay'.*{KNOWN}"),
    "table is None": (lambda c: c.sample_one(None), ra.InvalidArgument, "named by a str, got None"),
    # data
    "dtype": (
        lambda c: c.insert({"obs": np.zeros(4), "action": 1}, {"signed": 1.0}),
        ra.SignatureMismatch,
        r"'signed': column \('obs',\) is float64 \[4\], the signature wants float32 \[4\]; pass np.asarray",
    ),
    "shape": (
        lambda c: c.insert({"obs": np.zeros(3, np.float32), "action": 1}, {"signed": 1.0}),
        ra.SignatureMismatch,
        r"'signed': column \('obs',\) is float32 \[3\], the signature wants float32 \[4\]; np.reshape",
    ),
    "name": (
        lambda c: c.insert({"observation": np.zeros(4, np.float32), "action": 1}, {"signed": 1.0}),
        ra.SignatureMismatch,
        r"missing column \('obs',\), unexpected column \('observation',\)",
    ),
    "dtype of a batch": (
        lambda c: c.insert_batch({"obs": np.zeros((2, 4)), "action": np.ones(2, np.int32)}, {"signed": 1.0}),
        ra.SignatureMismatch,
        r"\('obs',\) is float64 \[4\], the signature wants float32 \[4\]",
    ),
    "a list instead of an array": (
        lambda c: c.insert({"tokens": list(range(512))}, P),
        ra.InvalidArgument,
        r"'tokens' is 512 columns; pass np.asarray\(tokens, np.int32\)",
    ),
    "a list instead of an array in a batch": (
        lambda c: c.insert_batch({"tokens": [0.5] * 512}, P),
        ra.InvalidArgument,
        r"'tokens' is 512 columns; pass np.asarray\(tokens, np.float32\)",
    ),
    "forgotten await": (forgotten_await, ra.InvalidArgument, r"\('x',\) is a coroutine, did you forget 'await'"),
    "object array": (lambda c: c.insert({"x": np.array([1, None])}, P), ra.InvalidArgument, "dtype object; make it"),
    "data frame": (lambda c: c.insert({"x": DataFrame()}, P), ra.InvalidArgument, "DataFrame.*np.asarray"),
    "set": (lambda c: c.insert({"x": {1, 2}}, P), ra.InvalidArgument, "is a set; use a tuple or a dict"),
    "generator": (lambda c: c.insert({"x": (i for i in "ab")}, P), ra.InvalidArgument, r"np.asarray\(list\(x\)\)"),
    "int names": (lambda c: c.insert({1: 2}, P), ra.InvalidArgument, r"key 1 of type int; keys are str: pass \{str"),
    "nothing": (lambda c: c.insert({}, P), ra.InvalidArgument, "nothing to insert"),
    "None": (lambda c: c.insert(None, P), ra.InvalidArgument, "nothing to insert"),
    "datetime": (lambda c: c.insert({"x": np.datetime64("2020-01-01")}, P), ra.InvalidArgument, "astype"),
    "a huge int": (lambda c: c.insert({"x": 2**70}, P), ra.InvalidArgument, "does not fit int64; pass np.uint64"),
    "a batch of unequal columns": (
        lambda c: c.insert_batch({"x": np.arange(3), "y": np.arange(4)}, P),
        ra.InvalidArgument,
        r"same number of rows, got \('x',\): 3, \('y',\): 4",
    ),
    "a batch of one": (lambda c: c.insert_batch({"x": 3}, P), ra.InvalidArgument, r"leading axis.*insert\(\) takes"),
    # priorities
    "priority -1": (lambda c: c.insert({"x": 1}, {"replay": -1}), ra.InvalidArgument, "'replay'.*must be >= 0, got -1"),
    "priority nan": (lambda c: c.insert({"x": 1}, {"replay": np.nan}), ra.InvalidArgument, "must be finite, got nan"),
    "priority inf": (lambda c: c.insert({"x": 1}, {"replay": np.inf}), ra.InvalidArgument, "must be finite, got inf"),
    "priority str": (lambda c: c.insert({"x": 1}, {"replay": "1"}), ra.InvalidArgument, "is a number, or None.*'1'"),
    "no dict": (lambda c: c.insert({"x": 1}, 1.0), ra.InvalidArgument, r"priorities=\{'replay': 1.0\}, got 1.0"),
    "only a name": (lambda c: c.insert({"x": 1}, "replay"), ra.InvalidArgument, r"priorities=\{'replay': 1.0\}"),
    "an empty dict": (lambda c: c.insert({"x": 1}, {}), ra.InvalidArgument, r"priorities=\{'replay': 1.0\}, got {}"),
    "priorities of a batch": (
        lambda c: c.insert_batch({"x": np.arange(3)}, {"replay": np.ones(4)}),
        ra.InvalidArgument,
        r"3 rows needs one priority, or 3, got shape \[4\]",
    ),
    "one bad priority of a batch": (
        lambda c: c.insert_batch({"x": np.arange(3)}, {"replay": [1, -2, 1]}),
        ra.InvalidArgument,
        "must be >= 0, got -2",
    ),
    # keys
    "a float key": (lambda c: c.mutate_priorities("replay", {1.0: 2.0}), ra.InvalidArgument, "got a float: 1.0"),
    "float keys": (
        lambda c: c.mutate_priorities("replay", (np.ones(2), np.ones(2))),
        ra.InvalidArgument,
        "integers, got float64",
    ),
    "a float key to delete": (lambda c: c.mutate_priorities("replay", deletes=[1.5]), ra.InvalidArgument, "float: 1.5"),
    "one key to delete": (lambda c: c.mutate_priorities("replay", deletes=3), ra.InvalidArgument, "a list or an array"),
    "pairs": (lambda c: c.mutate_priorities("replay", [(1, 2.0)]), ra.InvalidArgument, r"dict\(zip\(keys, priorities"),
    "updates with nan": (lambda c: c.mutate_priorities("replay", {1: np.nan}), ra.InvalidArgument, "finite.*nan"),
    "updates with -1": (lambda c: c.mutate_priorities("replay", {1: -1.0}), ra.InvalidArgument, "-1.0.*>= 0"),
    # sampling
    "an empty table": (
        lambda c: c.sample_one("q", timeout=0.02),
        ra.RateLimiterTimeout,
        r"'q' needs 1 more insert \(.*holds 0\); \d+ writers? connected",
    ),
    "a table that is warming up": (
        lambda c: c.sample_batch("warm", 8, timeout=0),
        ra.RateLimiterTimeout,
        r"'warm' needs 50 more inserts \(min_size_to_sample 50, holds 0\)",
    ),
    "an iterator on an empty table": (
        lambda c: anext(c.sample("q", timeout=0.02)),
        ra.RateLimiterTimeout,
        "'q' needs 1 more insert",
    ),
    "batch_size=0": (lambda c: c.sample_batches("replay", 0), ra.InvalidArgument, "batch_size .* from 1 .*got 0"),
    "batch_size=32.0": (lambda c: c.sample_batch("replay", 32.0), ra.InvalidArgument, "batch_size .* an int.*32.0"),
    "num_samples=0": (lambda c: c.sample("replay", num_samples=0), ra.InvalidArgument, "num_samples .*>= 1"),
    "prefetch=-1": (lambda c: c.sample("replay", prefetch=-1), ra.InvalidArgument, "prefetch .* from 0"),
    "timeout=-1": (lambda c: c.sample_one("replay", timeout=-1), ra.InvalidArgument, "seconds >= 0, or None"),
    "timeout='1'": (lambda c: c.insert({"x": 1}, P, timeout="1"), ra.InvalidArgument, "seconds >= 0, or None"),
    "an unknown column": (
        lambda c: c.sample_one("replay", columns=["y"], timeout=5),
        ra.InvalidArgument,
        r"no column \('y',\); there are \('x',\)",
    ),
    "for": (lambda c: list(c.sample("replay")), TypeError, "use `async for sample in"),
    "for over batches": (lambda c: list(c.sample_batches("replay", 2)), TypeError, "async for batch in"),
    "await sample": (lambda c: c.sample("replay").__await__(), TypeError, "`async for .*await client.sample_one"),
    "await sample_batches": (lambda c: c.sample_batches("replay", 2).__await__(), TypeError, "client.sample_batch"),
    "with sample": (lambda c: c.sample("replay").__enter__(), TypeError, "async with"),
    "with client": (lambda c: c.__enter__(), TypeError, "async with"),
    "checkpoint without one": (lambda c: c.checkpoint(), ra.CheckpointError, "no checkpointer"),
    # writers
    "nothing kept": (lambda c: c.trajectory_writer(0), ra.InvalidArgument, "num_keep_alive_refs must be an int >= 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_is_answered_with_what_would_be_right(client: ra.Client, mistake: str) -> None:
    call, kind, text = MISTAKES[mistake]
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        await made(call, client)
    assert re.search(text, str(caught.value)), str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.monotonic() - started < 1.5


async def test_what_is_like_an_array_is_taken_as_one(client: ra.Client) -> None:
    await client.insert({"x": ArrayLike()}, {"q": 1.0})
    assert (await client.sample_one("q")).data["x"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("priorities", "text"),
    [
        (np.ones(3), r"priorities are \[4\], one per key, got the shape \[3\]"),
        (np.ones((4, 1)), "np.ravel"),
        (1.0, r"priorities are \[4\]"),
        ([1, 2, 3, np.nan], "must be finite, number 3 is nan"),
        ([1, 2, 3, -1], "-1.0 at position 3 is negative"),
        ("abcd", r"numbers \[4\], got a str"),
    ],
)
async def test_bad_new_priorities_of_a_batch_are_refused_before_they_are_sent(
    client: ra.Client, priorities: Any, text: str
) -> None:
    batch = await client.sample_batch("replay", 4)
    with pytest.raises(ra.InvalidArgument) as caught:
        await batch.update_priorities(priorities)
    assert re.search(text, str(caught.value)), str(caught.value)
    async with client.sample_batches("replay", 4) as batches:
        batch = await anext(batches)
        with pytest.raises(ra.InvalidArgument) as caught:
            await batch.update_priorities(priorities)
        assert re.search(text, str(caught.value)), str(caught.value)
        await batch.update_priorities(np.full(4, 3.0))
    assert (await client.sample_one("replay")).info.priority == 3.0


WRITER_MISTAKES: dict[str, tuple[Callable[[ra.TrajectoryWriter], Any], type[Exception], str]] = {
    "expired": (lambda w: w.history["x"][-4:], ra.ExpiredReference, "needs num_keep_alive_refs >= 4, is 2"),
    "past the end": (lambda w: w.history["x"][9], IndexError, "step 9 .* has 5 steps"),
    "a float index": (lambda w: w.history["x"][1.0], ra.InvalidArgument, "an int, a slice or a list of ints"),
    "None": (
        lambda w: w.create_item("replay", trajectory={"x": w.history["x"][-1], "y": None}),
        ra.InvalidArgument,
        r"\('y',\) is None; leave it out",
    ),
    "the whole history": (lambda w: w.create_item("replay", trajectory=w.history), ra.InvalidArgument, r"\[-4:\]"),
    "an empty slice": (
        lambda w: w.create_item("replay", trajectory={"x": w.history["x"][5:]}),
        ra.InvalidArgument,
        "is empty: select at least one step",
    ),
    "no columns": (lambda w: w.create_item("replay", trajectory={}), ra.InvalidArgument, "at least one column"),
    "table": (lambda w: w.create_item("rep", trajectory={"x": w.history["x"][-1]}), ra.TableNotFound, KNOWN),
    "priority": (
        lambda w: w.create_item("replay", -1, trajectory={"x": w.history["x"][-1]}),
        ra.InvalidArgument,
        "must be >= 0, got -1",
    ),
    "signature": (
        lambda w: w.create_item("signed", trajectory={"obs": w.history["o"][-1], "action": np.int32(1)}),
        ra.SignatureMismatch,
        r"'signed': column \('obs',\) is float64 \[3\], the signature wants float32 \[4\]",
    ),
    "dtype": (lambda w: w.append({"x": "text"}), ra.InvalidArgument, r"\('x',\) is float32 \[\], got str; .*convert"),
    "shape": (lambda w: w.append({"o": np.zeros(4)}), ra.InvalidArgument, r"float64 \[3\], got float64 \[4\]"),
    "list": (lambda w: w.append({"t": [1] * 512}), ra.InvalidArgument, r"512 columns; pass np.asarray\(t, np.int32\)"),
    "flush(-1)": (lambda w: w.flush(-1), ra.InvalidArgument, "must be >= 0, got -1"),
}


@pytest.mark.parametrize("mistake", WRITER_MISTAKES)
async def test_a_mistake_with_a_writer_is_answered_and_the_writer_goes_on(client: ra.Client, mistake: str) -> None:
    call, kind, text = WRITER_MISTAKES[mistake]
    async with client.trajectory_writer(2) as writer:
        for step in range(5):
            writer.append({"x": np.float32(step), "o": np.zeros(3)})
        with pytest.raises(kind) as caught:
            await made(call, writer)
        assert re.search(text, str(caught.value)), str(caught.value)
        assert writer.episode_steps == 5
        await writer.create_item("q", 1.0, trajectory={"x": writer.history["x"][-1]})
    assert (await client.sample_one("q", timeout=5)).data["x"] == 4


async def test_an_expired_column_is_named_when_the_item_is_made(client: ra.Client) -> None:
    async with client.trajectory_writer(2) as writer:
        for step in range(5):
            writer.append({"x": np.float32(step)})
        old = writer.history["x"][-2:]
        for step in range(5, 8):
            writer.append({"x": np.float32(step)})
        with pytest.raises(ra.ExpiredReference, match=r"\('x',\).*num_keep_alive_refs >= 5, is 2"):
            await writer.create_item("replay", 1.0, trajectory={"x": old})


async def test_what_is_closed_says_so_and_what_to_do(client: ra.Client) -> None:
    iterator = client.sample("replay")
    await iterator.aclose()
    with pytest.raises(ra.Closed, match="iterator was closed"):
        await anext(iterator)
    writer = client.trajectory_writer(2)
    await writer.close()
    for use in (lambda: writer.append({"x": 1}), lambda: writer.configure("x", num_keep_alive_refs=2)):
        with pytest.raises(ra.Closed, match=r"TrajectoryWriter is closed; make another one"):
            use()
    with pytest.raises(ra.Closed, match=r"TrajectoryWriter is closed; make another one"):
        await writer.flush()
    await client.close()
    for call in (
        lambda: client.insert({"x": 1}, P),
        lambda: client.insert_batch({"x": np.arange(2)}, P),
        lambda: client.sample_one("replay"),
        lambda: client.mutate_priorities("replay", {1: 1.0}),
        lambda: client.server_info(),
        lambda: client.__aenter__(),
    ):
        with pytest.raises(ra.Closed, match="was closed; make another one"):
            await call()
    for make in (lambda: client.sample("replay"), lambda: client.trajectory_writer(2)):
        with pytest.raises(ra.Closed, match="was closed; make another one"):
            make()


# -- servers ----------------------------------------------------------------------------------------------------------


async def test_two_servers_on_one_port() -> None:
    async with ra.Server([ra.Table("t", max_size=1)]) as server:
        second = ra.Server([ra.Table("t", max_size=1)], port=server.port)
        with pytest.raises(ra.InvalidArgument, match=rf"port {server.port} .* is taken .*port=0"):
            await second.start()
        async with ra.Client(server.address) as client:
            assert set(await client.server_info()) == {"t"}


async def test_a_server_that_was_not_started() -> None:
    server = ra.Server([ra.Table("t", max_size=1)])
    with pytest.raises(ra.Closed, match=r"await server.start\(\).*async with"):
        server.client()
    with pytest.raises(ra.Closed, match=r"await server.start\(\).*async with"):
        await server.wait()
    with pytest.raises(ra.InvalidArgument, match=r"server.address once the server has started"):
        ra.Client(server.address)
    await server.close()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda t: ra.Server([]), "at least one table, such as Table"),
        (lambda t: ra.Server(t), r"Server\(\[table\]\)"),
        (lambda t: ra.Server([t, t]), "two tables are named 't'"),
        (lambda t: ra.Server(["t"]), "must be reverb_async.Table objects, got 't'"),
        (lambda t: ra.Server([t], host="0.0.0.0"), "insecure=True"),
        (lambda t: ra.Server([t], port="8000"), "port must be an int from 0.*'8000'"),
        (lambda t: ra.Table("t", max_size=1e6), "max_size must be an int .*1000000.0"),
        (lambda t: ra.Table("t", max_size=9, sampler="uniform"), r"such as Uniform\(\), got 'uniform'"),
        (lambda t: ra.Table("t", max_size=9, sampler=ra.selectors.Fifo), r"such as Uniform\(\), got <class"),
        (lambda t: ra.Table("t", max_size=9, rate_limiter=10), r"such as MinSize\(1\), got 10"),
        (lambda t: ra.Table("t", max_size=9, rate_limiter=ra.rate_limiters.MinSize(10)), "never be reached"),
        (lambda t: ra.Table("t", max_size=9, signature={"a": np.float32}), r"ArraySpec\(\(\), np.float32\)"),
        (lambda t: ra.Client("http://localhost:1"), "pass 'localhost:1'"),
        (lambda t: ra.Client("localhost"), "'host:port'"),
        (lambda t: ra.Client(8000), "got a int"),
    ],
)
def test_a_definition_that_cannot_work(make: Callable[[ra.Table], object], text: str) -> None:
    with pytest.raises(ra.InvalidArgument) as caught:
        make(ra.Table("t", max_size=1))
    assert re.search(text, str(caught.value)), str(caught.value)


async def test_an_address_where_nobody_answers_is_told_within_connect_timeout() -> None:
    for address, cause in (("127.0.0.1:9", "127.0.0.1"), ("unix:///no/such.sock", "No such file")):
        async with ra.Client(address, connect_timeout=0.2) as client:
            started = time.monotonic()
            with pytest.raises(ra.Unavailable) as caught:
                await client.sample_one("replay")
            assert time.monotonic() - started < 1
            assert address in str(caught.value)
            assert cause in str(caught.value)
            assert "tries in 0.2 s" in str(caught.value)
