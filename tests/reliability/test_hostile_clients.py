"""Clients that lie: each is refused, nobody else notices, and nothing of theirs stays."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from reliability_rig import num_streams, until_nothing_waits_or_is_held, usage_of

import reverb_async as ra
from reverb_async.client.transport import StreamKind, Transport
from reverb_async.core.nest import flatten
from reverb_async.protocol.inserting import Group, InsertRequest, InsertResponse, Items, Layout, Segments, Steps
from reverb_async.protocol.message import Duplex, Message
from reverb_async.protocol.sampling import SampleRequest, SampleResponseReader, Subscription
from reverb_async.protocol.updating import UpdateRequest, UpdateResponse
from reverb_async.testing import until

STRUCTURE = flatten({"x": 0, "y": 0})[1]
LEAVES = ((0, 0, True), (0, 1, True))
SPECS = (ra.ArraySpec((2,), np.float32), ra.ArraySpec((), np.int64))
SESSION = b"0123456789abcdef"
NO_KEYS = np.zeros(0, np.uint64)


class Service:
    """A server with an honest client, and a bare transport for the others."""

    def __init__(self, server: ra.Server) -> None:
        self.server = server
        self.honest = server.client()
        self._transport = _transport_of(server.client())

    async def open(self, kind: StreamKind) -> Duplex:
        return await self._transport.open(kind)

    async def inserting(self, session: bytes = SESSION) -> Duplex:
        """Open an insert stream, and wait for its greeting."""
        stream = await self.open("insert")
        await stream.send(InsertRequest(session=session).to_message())
        assert InsertResponse.from_message(await received(stream)).applied_through is not None
        return stream

    async def check_honest(self) -> None:
        """The honest client inserts, samples and updates at once."""
        async with asyncio.timeout(10):
            key = (await self.honest.insert({"x": np.zeros(2, np.float32), "y": 9}, {"t": 1.0}))["t"]
            assert (await self.honest.sample_batch("t", 4)).data["x"].shape == (4, 2)
            assert (await self.honest.mutate_priorities("t", {key: 2.0}, [key])).deleted == 1


@pytest.fixture(params=["in-process", "tcp"])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """A service which in the end must be as if nothing had been."""
    signature = {"x": SPECS[0], "y": SPECS[1]}
    prioritized = ra.Table("t", max_size=100, sampler=ra.selectors.Prioritized(1.0), signature=signature)
    tables = [prioritized, ra.Table.queue("q", 2)]
    async with ra.Server(tables) as server:
        service = Service(server)
        if request.param == "tcp":
            service._transport = _transport_of(ra.Client(server.address))
        await service.honest.insert({"x": np.zeros(2, np.float32), "y": 7}, {"t": 1.0})
        await service.honest.sample_one("t")
        yield service
        await service.check_honest()
        await service.honest.close()
        await service._transport.close()
        await until(lambda: num_streams(server) == 0)
        await until_nothing_waits_or_is_held(server)
        assert server.tables["t"].info.num_unique_samples >= 1


def _transport_of(client: ra.Client) -> Transport:
    return client._use().connector.transport


async def received(stream: Duplex) -> Message:
    async with asyncio.timeout(20):
        message = await stream.receive()
    assert message is not None, "the stream has ended"
    return message


async def error_of(stream: Duplex) -> ra.ReplayError:
    """Return the error the stream ends with."""
    async with asyncio.timeout(20):
        try:
            while await stream.receive() is not None:
                pass
        except ra.ReplayError as error:
            return error
    raise AssertionError("the stream ended well")


def request(n: int = 3, **parts: Any) -> InsertRequest:
    """A request that declares everything and inserts `n` items; parts of it replaced."""
    whole: dict[str, Any] = {
        "groups": [Group(0, SPECS)],
        "layouts": [Layout(0, STRUCTURE, (0,), LEAVES)],
        "steps": [Steps(0, 0, n, [np.ones((n, 2), np.float32), np.arange(n)])],
        "items": [items(n)],
    }
    return InsertRequest(**{**whole, **parts})


def items(n: int = 3, **fields: Any) -> Items:
    whole: dict[str, Any] = {
        "seq": 1,
        "layout": 0,
        "tables": ("t",),
        "keys": np.arange(n, dtype=np.uint64)[None],
        "priorities": np.ones((1, n)),
        "views": [Segments(np.arange(n), np.ones(n, np.int64))],
    }
    return Items(**{**whole, **fields})


# -- insert streams ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"session": None},
        {"session": "0123456789abcdef"},
        {"session": b"short"},
        {"session": [SESSION]},
        {"groups": []},
    ],
)
async def test_a_stream_must_begin_with_a_session(service: Service, header: dict[str, Any]) -> None:
    stream = await service.open("insert")
    await stream.send(Message(header or {"none": 1}))
    assert isinstance(await error_of(stream), ra.InvalidArgument)


def changed(change: Callable[[Message], None]) -> Message:
    message = request().to_message()
    change(message)
    return message


def put(*path: Any) -> Callable[[Message], None]:
    """Return a change of a header: everything but the last is the way, the last is the new value."""

    def change(message: Message) -> None:
        at: Any = message.header
        for part in path[:-2]:
            if isinstance(at[part], tuple):
                at[part] = list(at[part])
            at = at[part]
        at[path[-2]] = path[-1]

    return change


def _deep(levels: int) -> Any:
    nest: Any = 0
    for _ in range(levels):
        nest = ["list", [nest]]
    return nest


MALFORMED: dict[str, Message] = {
    "groups are no list": changed(put("groups", 7)),
    "a group of no columns": changed(put("groups", [[0, []]])),
    "a group of a wild shape": changed(put("groups", [[0, [["float32", [2**40, 2**40]]]]])),
    "a group of a negative shape": changed(put("groups", [[0, [["float32", [-1]]]]])),
    "a group of objects": changed(put("groups", [[0, [["object", []]]]])),
    "a group of a made-up dtype": changed(put("groups", [[0, [["O8; import os", []]]]])),
    "a group declared twice": request(groups=[Group(0, SPECS), Group(0, SPECS)]).to_message(),
    "an undeclared group": request(steps=[Steps(5, 0, 1, [np.ones((1, 2), np.float32), np.arange(1)])]).to_message(),
    "a layout of an undeclared group": request(layouts=[Layout(0, STRUCTURE, (9,), LEAVES)]).to_message(),
    "a layout of a wild view": request(
        layouts=[Layout(0, STRUCTURE, (0,), ((2**40, 0, True), (0, 1, True)))]
    ).to_message(),
    "a layout of a wild column": request(
        layouts=[Layout(0, STRUCTURE, (0,), ((0, 2**40, True), (0, 1, True)))]
    ).to_message(),
    "a layout of too few leaves": request(layouts=[Layout(0, STRUCTURE, (0,), ((0, 0, True),))]).to_message(),
    "a layout that is deep": changed(put("layouts", 0, 1, _deep(500))),
    "a layout that is no nest": changed(put("layouts", 0, 1, {"a": 1})),
    "steps that are not there": changed(lambda message: message.buffers.__delitem__(slice(0, 2))),
    "no buffers at all": changed(lambda message: message.buffers.clear()),
    "one buffer too short": changed(lambda message: message.buffers.__setitem__(0, np.ones(3, np.uint8))),
    "a huge count of steps": changed(put("steps", 0, 2, 2**62)),
    "a negative count of steps": changed(put("steps", 0, 2, -1)),
    "a first step far away": changed(put("steps", 0, 1, 2**62)),
    "a step that is no number": changed(put("steps", 0, 1, "0")),
    "a bool for a number": changed(put("steps", 0, 2, True)),
    "a huge count of items": changed(put("items", 0, "count", 2**62)),
    "no items": changed(put("items", 0, "count", 0)),
    "no tables": changed(put("items", 0, "tables", [])),
    "a table twice": changed(put("items", 0, "tables", ["t", "t"])),
    "tables that are no names": changed(put("items", 0, "tables", [7])),
    "items that are no map": changed(put("items", [7])),
    "a timeout that is nan": changed(put("items", 0, "timeout", float("nan"))),
    "a timeout that is text": changed(put("items", 0, "timeout", "soon")),
    "a sequence number below 0": changed(put("items", 0, "seq", -1)),
    "sequence number 0": changed(put("items", 0, "seq", 0)),
    "a huge sequence number": changed(put("items", 0, "seq", 2**63)),
    "ranges that do not add up": changed(put("items", 0, "segments", [[2**40, False]])),
    "counted ranges without counts": changed(put("items", 0, "segments", [[3, True]])),
    "a release of an undeclared group": request(release=[(9, 1)]).to_message(),
    "a cancellation of text": changed(put("cancel", ["x"])),
    "bools that are neither": request(
        groups=[Group(0, (ra.ArraySpec((), np.bool_),))],
        layouts=[],
        steps=[Steps(0, 0, 1, [np.full(1, 7, np.uint8).view(np.bool_)])],
        items=[],
    ).to_message(),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_message_ends_its_stream_only(service: Service, name: str) -> None:
    stream = await service.inserting()
    await stream.send(MALFORMED[name])
    error = await error_of(stream)
    assert isinstance(error, ra.InvalidArgument | ra.ResourceExhausted), repr(error)
    assert len(str(error)) < 600


REFUSED: dict[str, tuple[Items, type[ra.ReplayError]]] = {
    "an unknown table": (items(tables=("nope",)), ra.TableNotFound),
    "an undeclared layout": (items(layout=5), ra.InvalidArgument),
    "steps that were never sent": (
        items(views=[Segments(np.array([0, 1, 3]), np.ones(3, np.int64))]),
        ra.InvalidArgument,
    ),
    "steps before the first": (items(views=[Segments(np.array([0, 1, -1]), np.ones(3, np.int64))]), ra.InvalidArgument),
    "wild steps": (items(views=[Segments(np.full(3, 2**62), np.ones(3, np.int64))]), ra.InvalidArgument),
    "wild lengths": (items(views=[Segments(np.zeros(3, np.int64), np.full(3, 2**62))]), ra.InvalidArgument),
    "lengths whose sum overflows": (
        items(views=[Segments(np.zeros(3, np.int64), np.array([2**62, 2**62, 2**62 + 1]))]),
        ra.InvalidArgument,
    ),
    "first and length that overflow": (
        items(views=[Segments(np.full(3, 2**63 - 1), np.full(3, 1))]),
        ra.InvalidArgument,
    ),
    "no steps": (items(views=[Segments(np.zeros(3, np.int64), np.zeros(3, np.int64))]), ra.InvalidArgument),
    "two steps in a column without a time axis": (
        items(views=[Segments(np.zeros(3, np.int64), np.full(3, 2))]),
        ra.InvalidArgument,
    ),
    "too many views": (items(views=[Segments(np.arange(3), np.ones(3, np.int64))] * 2), ra.InvalidArgument),
    "no views": (items(views=[]), ra.InvalidArgument),
    "episodes backwards": (items(episodes=np.array([[3, 1]] * 3)), ra.InvalidArgument),
    "negative episodes": (items(episodes=np.array([[-3, -1]] * 3)), ra.InvalidArgument),
    "a span of all episodes": (items(episodes=np.array([[0, 2**31 - 1]] * 3)), ra.InvalidArgument),
    "wild episodes": (items(episodes=np.full((3, 2), 2**62)), ra.InvalidArgument),
    "a span that overflows": (items(episodes=np.array([[-(2**63), 2**63 - 1]] * 3)), ra.InvalidArgument),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_items_that_name_what_is_not_there_are_refused_and_others_follow(service: Service, name: str) -> None:
    stream = await service.inserting()
    block, kind = REFUSED[name]
    await stream.send(request(items=[block]).to_message())
    answer = InsertResponse.from_message(await received(stream))
    assert [(refusal.seq, refusal.count) for refusal in answer.refused] == [(1, 3)]
    assert answer.refused[0].error["type"] == kind.__name__
    await stream.send(InsertRequest(items=[items(seq=4)]).to_message())
    assert InsertResponse.from_message(await received(stream)).acks == [(4, 3)]
    stream.abort()


@pytest.mark.parametrize("priority", [-1.0, np.inf, -np.inf, 1e308])
async def test_a_bad_priority_harms_only_its_item(service: Service, priority: float) -> None:
    stream = await service.inserting()
    priorities = np.array([[1.0, priority, 1.0]])
    await stream.send(request(items=[items(priorities=priorities)]).to_message())
    acks: list[tuple[int, int]] = []
    refused: list[tuple[int, int]] = []
    while sum(count for _, count in acks + refused) < 3:
        answer = InsertResponse.from_message(await received(stream))
        acks += answer.acks
        refused += [(refusal.seq, refusal.count) for refusal in answer.refused]
    assert refused == [(2, 1)]
    assert sorted(acks) == [(1, 1), (3, 1)]
    assert service.server.tables["t"].info.current_size == 3
    stream.abort()


async def test_sequence_numbers_cannot_be_used_again(service: Service) -> None:
    stream = await service.inserting()
    await stream.send(request().to_message())
    assert InsertResponse.from_message(await received(stream)).acks == [(1, 3)]
    await stream.send(InsertRequest(items=[items(seq=3, keys=np.array([[50, 51, 52]], np.uint64))]).to_message())
    error = await error_of(stream)
    assert "was sent before" in str(error)
    again = await service.open("insert")
    await again.send(InsertRequest(session=SESSION).to_message())
    assert InsertResponse.from_message(await received(again)).applied_through == 3
    await again.send(request(items=[items(seq=2)]).to_message())
    assert isinstance(await error_of(again), ra.InvalidArgument)
    assert service.server.tables["t"].info.current_size == 4


async def test_a_session_that_is_opened_twice_ends_on_the_older_stream(service: Service) -> None:
    """What waited there is withdrawn first, so that it cannot come in behind its successor's back."""
    older = await service.inserting()
    await older.send(request(n=5, items=[items(5, tables=("q",))]).to_message())
    assert InsertResponse.from_message(await received(older)).acks == [(1, 2)]
    await until(lambda: bool(service.server.tables["q"].info.waiters))
    newer = await service.open("insert")
    await newer.send(InsertRequest(session=SESSION).to_message())
    assert InsertResponse.from_message(await received(newer)).applied_through == 2
    assert isinstance(await error_of(older), ra.Unavailable)
    assert not service.server.tables["q"].info.waiters
    assert usage_of(service.server).staged_rows == 0
    await newer.send(request(n=3, items=[items(seq=3, tables=("q",))]).to_message())
    await service.honest.sample_one("q")
    assert InsertResponse.from_message(await received(newer)).acks == [(3, 1)]
    newer.abort()


async def test_a_thousand_openings_of_one_session_end_in_one_stream(service: Service) -> None:
    streams = []
    for _ in range(100):
        stream = await service.open("insert")
        await stream.send(InsertRequest(session=SESSION).to_message())
        streams.append(stream)
    answers = await asyncio.gather(*(error_or_greeting(stream) for stream in streams))
    assert sum(answer is None for answer in answers) >= 1
    await until(lambda: service.server._service.replay._num_writers == 2)  # The honest one is the other.
    for stream in streams:
        stream.abort()


async def error_or_greeting(stream: Duplex) -> ra.ReplayError | None:
    try:
        await received(stream)
    except ra.ReplayError as error:
        return error
    return None


async def test_a_client_that_never_takes_its_answers_is_read_no_further(service: Service) -> None:
    stream = await service.inserting()
    await stream.send(request(n=1, items=[items(1)]).to_message())

    async def flood() -> None:
        for seq in range(2, 20_000):
            block = items(1, seq=seq, tables=("nope",), views=[Segments(np.zeros(1, np.int64), np.ones(1, np.int64))])
            await stream.send(InsertRequest(items=[block]).to_message())

    flooding = asyncio.create_task(flood())
    await asyncio.wait({flooding}, timeout=0.3)
    await service.check_honest()
    flooding.cancel()
    await asyncio.wait({flooding})
    stream.abort()


async def test_steps_without_items_are_bounded_and_go_with_their_stream(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.server._replay, "limits", ra.Limits(max_client_bytes=16 << 20))
    stream = await service.inserting()
    await stream.send(InsertRequest(groups=[Group(0, (ra.ArraySpec((1 << 20,), np.uint8),))]).to_message())
    frame = np.zeros((4, 1 << 20), np.uint8)
    error = None
    for first in range(0, 100, 4):
        try:
            await stream.send(InsertRequest(steps=[Steps(0, first, 4, [frame])]).to_message())
        except ra.ReplayError as raised:
            error = raised
            break
    assert isinstance(error, ra.ReplayError)
    assert first <= 60
    await until(lambda: usage_of(service.server).staged_rows == 0)
    stream.abort()


async def test_more_kinds_of_data_than_a_server_keeps_are_refused(service: Service) -> None:
    stream = await service.inserting()
    groups = [Group(number, (ra.ArraySpec((number + 1,), np.float32),)) for number in range(300)]
    await stream.send(InsertRequest(groups=groups).to_message())
    assert isinstance(await error_of(stream), ra.ResourceExhausted)
    await service.check_honest()


# -- sample streams ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"credits": 1},
        {"subscribe": 7},
        {"subscribe": {"table": 7, "batch_size": 1}},
        {"subscribe": {"table": "t", "batch_size": 0}},
        {"subscribe": {"table": "t", "batch_size": 2**40}},
        {"subscribe": {"table": "t", "batch_size": True}},
        {"subscribe": {"table": "t", "batch_size": 1, "columns": [[["x"]]]}, "credits": 1},
        {"subscribe": {"table": "t", "batch_size": 1, "columns": [["nope"]]}, "credits": 1},
        {"subscribe": {"table": "t", "batch_size": 1}, "credits": -1},
        {"subscribe": {"table": "t", "batch_size": 1}, "credits": 2**63},
        {"subscribe": {"table": "t", "batch_size": 1}, "consumed": "x"},
        {"subscribe": {"table": "t", "batch_size": 1}, "updates": 2**40},
        {"subscribe": {"table": "t", "batch_size": 1}, "updates": 5},
    ],
)
async def test_a_malformed_request_for_samples_is_refused(service: Service, header: dict[str, Any]) -> None:
    before = service.server.tables["t"].info.rate_limiter_info.sample_stats
    stream = await service.open("sample")
    await stream.send(Message(header))
    assert isinstance(await error_of(stream), ra.InvalidArgument)
    assert service.server.tables["t"].info.rate_limiter_info.sample_stats == before


async def test_credit_without_end_fills_no_more_than_the_network(service: Service) -> None:
    """It is a number; batches are drawn as they can be sent, and those not acknowledged are bounded."""
    before = service.server.tables["t"].info.rate_limiter_info.sample_stats
    stream = await service.open("sample")
    await stream.send(SampleRequest(Subscription("t", 8), credits=2**62).to_message())
    await stream.send(SampleRequest(credits=2**62, consumed=2**62, withdraw=2**62).to_message())
    reader = SampleResponseReader()
    assert len(reader.read(await received(stream)).batches[0].keys) == 8
    await asyncio.sleep(0.1)
    await service.check_honest()
    stream.abort()
    await until(lambda: service.server.tables["t"].num_samplers <= 2)
    assert service.server.tables["t"].info.rate_limiter_info.sample_stats.completed <= before.completed + 4 + 4200 * 8


async def test_whoever_reads_and_never_acknowledges_is_ended(service: Service) -> None:
    before = service.server.tables["t"].info.rate_limiter_info.sample_stats
    stream = await service.open("sample")
    await stream.send(SampleRequest(Subscription("t", 1), credits=2**62).to_message())
    error = await error_of_long(stream)
    assert isinstance(error, ra.ResourceExhausted)
    await until(lambda: service.server.tables["t"].info.rate_limiter_info.sample_stats == before)  # All handed back.


async def error_of_long(stream: Duplex) -> ra.ReplayError:
    async with asyncio.timeout(20):
        try:
            while await stream.receive() is not None:
                pass
        except ra.ReplayError as error:
            return error
    raise AssertionError("the stream ended well")


async def test_acknowledging_what_was_never_sent_keeps_nothing(service: Service) -> None:
    await service.honest.insert_batch({"x": np.zeros((2, 2), np.float32), "y": np.arange(2)}, {"q": 1.0})
    stream = await service.open("sample")
    await stream.send(SampleRequest(Subscription("q", 1), credits=1, consumed=2**62).to_message())
    await received(stream)
    stream.abort()
    await until(lambda: service.server.tables["q"].info.current_size == 2)
    assert (await service.honest.sample_batch("q", 2)).data["y"].tolist() == [0, 1]


@pytest.mark.parametrize("priority", [-1.0, np.nan, np.inf])
async def test_a_bad_update_on_a_sample_stream_changes_nothing(service: Service, priority: float) -> None:
    stream = await service.open("sample")
    keys = service.server.tables["t"].state.slots.key[:1].copy()
    wanted = SampleRequest(Subscription("t", 1), keys=keys, priorities=np.array([priority])).to_message()
    await stream.send(wanted)
    assert isinstance(await error_of(stream), ra.InvalidArgument)
    assert (await service.honest.sample_one("t")).info.priority == 1.0


# -- update streams ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [{}, {"seq": 1}, {"seq": 1, "table": 7}, {"seq": "a", "table": "t"}, {"seq": 1, "table": "t", "updates": 2**50}],
)
async def test_a_malformed_update_ends_its_stream(service: Service, header: dict[str, Any]) -> None:
    stream = await service.open("update")
    await stream.send(Message(header or {"x": 1}))
    assert isinstance(await error_of(stream), ra.InvalidArgument)


async def test_bad_updates_are_refused_one_by_one(service: Service) -> None:
    stream = await service.open("update")
    keys = service.server.tables["t"].state.slots.key[:1].copy()
    many = np.zeros(70_000, np.uint64)
    for seq, (table, updates, priorities, deletes) in enumerate(
        [
            ("nope", keys, np.ones(1), NO_KEYS),
            ("t", keys, np.full(1, -1.0), keys),
            ("t", keys, np.full(1, np.nan), keys),
            ("t", many, np.ones(70_000), NO_KEYS),
            ("t", NO_KEYS, np.zeros(0), many),
        ]
    ):
        await stream.send(UpdateRequest(seq, table, updates, priorities, deletes).to_message())
        answer = UpdateResponse.from_message(await received(stream))
        assert [refused for refused, _ in answer.refused] == [seq]
        assert not answer.done
    await stream.send(UpdateRequest(9, "t", keys, np.ones(1), NO_KEYS).to_message())
    assert UpdateResponse.from_message(await received(stream)).done[0][1].updated == 1
    stream.abort()


# -- anything ---------------------------------------------------------------------------------------------------------

_WILD_NUMBERS = [True, -1, 0, 1, 7, 2**31, 2**62, 2**63 - 1, 1.5, np.nan]
_WILD = [*_WILD_NUMBERS, None, "", "t", "x" * 99, b"", SESSION, [], [[]], {}, [1, 2, 3]]
_WILD_WORDS = [number.to_bytes(8, "little", signed=True) for number in (0, 1, -1, 5, 2**62, -(2**63))]


def _one_thing_changed(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: one for name, one in value.items() if name != key}
        return {**value, key: _one_thing_changed(rng, value[key])}
    if isinstance(value, list | tuple) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        middle = rng.choice([[], [value[at]] * 2, *[[_one_thing_changed(rng, value[at])]] * 8])
        return [*value[:at], *middle, *value[at + 1 :]]
    return rng.choice(_WILD)


def _one_buffer_changed(rng: random.Random, buffers: list[np.ndarray]) -> list[np.ndarray]:
    at = rng.randrange(len(buffers))
    raw = buffers[at].reshape(-1).view(np.uint8).copy()
    if rng.random() < 0.5:
        raw = np.frombuffer(rng.randbytes(rng.choice([0, 7, 8, len(raw), len(raw) + 8])), np.uint8).copy()
    elif len(raw) >= 8:
        word = rng.randrange(len(raw) // 8) * 8
        raw[word : word + 8] = np.frombuffer(rng.choice(_WILD_WORDS), np.uint8)
    return [*buffers[:at], raw, *buffers[at + 1 :]]


async def _fuzz(service: Service, seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    for number in range(rounds):
        kind: StreamKind = rng.choice(["insert", "insert", "sample", "update"])
        if kind == "insert":
            message = request(release=[(0, 2)], cancel=[1], items=[items(tables=(rng.choice("tq"),))]).to_message()
        elif kind == "sample":
            subscription = Subscription("t", 4, [("x",)])
            updates = {"keys": np.arange(3, dtype=np.uint64), "priorities": np.ones(3)}
            message = SampleRequest(subscription, credits=2, withdraw=1, **updates).to_message()
        else:
            keys = np.arange(3, dtype=np.uint64)
            message = UpdateRequest(1, "t", keys, np.ones(3), keys[:1]).to_message()
        header = _one_thing_changed(rng, message.header)
        buffers = _one_buffer_changed(rng, message.buffers) if rng.random() < 0.5 else message.buffers
        stream = await service.open(kind)
        try:
            if kind == "insert":
                session = SESSION if rng.random() < 0.5 else rng.randbytes(16)
                await stream.send(InsertRequest(session=session).to_message())
            await stream.send(Message(header if isinstance(header, dict) and header else {"x": 1}, buffers))
            async with asyncio.timeout(0.01):
                while await stream.receive() is not None:
                    pass
        except (ra.ReplayError, TimeoutError):
            pass
        stream.abort()
        if number % 50 == 0:
            await service.check_honest()


async def test_what_is_almost_right_is_refused_or_done_and_harms_nobody(service: Service) -> None:
    await _fuzz(service, 1, 400)


@pytest.mark.soak
async def test_almost_right_again_and_again(service: Service) -> None:
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    await _fuzz(service, seed, 10_000)
