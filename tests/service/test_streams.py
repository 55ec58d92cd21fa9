"""What the server's ends of streams promise beyond what their messages say."""

from __future__ import annotations

import asyncio
import gc
import re

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.core.nest import flatten
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument, ReplayError, ResourceExhausted
from reverb_async.protocol.inserting import Group, InsertRequest, InsertResponse, Items, Layout, Segments, Steps
from reverb_async.protocol.rows import RowBlock
from reverb_async.protocol.sampling import SampleRequest, Subscription
from reverb_async.protocol.updating import MAX_KEYS
from reverb_async.service import insert_stream
from reverb_async.testing import settle
from reverb_async.wire.transport import GrpcTransport

STRUCTURE = flatten({"x": 0})[1]


ONE_ROW = {
    "layout": 0,
    "seq": 1,
    "count": 1,
    "tables": ("t",),
    "timeout": None,
    "records": np.zeros(24, np.uint8),
}


def transport_of(server: ra.Server):
    client = server.client()
    return client, next(iter(server._transports))


def kinds(count: int) -> list[Group]:
    return [Group(at, (ArraySpec((at + 1,), np.float32),)) for at in range(count)]


def one_block(count: int, **changes) -> InsertRequest:
    ones = np.ones(count, np.int64)
    fields = {
        "seq": 1,
        "layout": 0,
        "tables": ("t",),
        "keys": np.arange(count, dtype=np.uint64)[None],
        "priorities": np.ones((1, count)),
        "views": [Segments(np.zeros(count, np.int64), ones)],
    }
    return InsertRequest(
        groups=[Group(0, (ArraySpec((), np.int64),))],
        layouts=[Layout(0, STRUCTURE, (0,), ((0, 0, True),))],
        steps=[Steps(0, 0, 1, [np.zeros(1, np.int64)])],
        items=[Items(**{**fields, **changes})],
    )


def rows_request(**fields) -> InsertRequest:
    return InsertRequest(
        groups=[Group(0, (ArraySpec((), np.int64),))], layouts=[Layout(0, STRUCTURE, (0,), ((0, 0, True),))], **fields
    )


def one_row(key: int, **changes) -> RowBlock:
    records = np.zeros(3, np.uint64)
    records[0] = key
    return RowBlock(**{**ONE_ROW, "records": records.view(np.uint8), **changes})


async def refusal_of(server: ra.Server, request: InsertRequest) -> ReplayError:
    client, transport = transport_of(server)
    stream = await transport.open("insert")
    await stream.send(InsertRequest(session=b"x" * 16).to_message())
    await stream.send(request.to_message())
    error: ReplayError | None = None
    while error is None:
        try:
            message = await stream.receive()
        except ReplayError as ended:
            error = ended
        else:
            assert message is not None, "the server has nothing against it"
            if "refused" in message.header:
                error = ra.errors.from_map(message.header["refused"][0][2])
    await client.close()
    return error


class TestInserting:
    async def test_rows_of_many_streams_are_in_and_answered_though_their_clients_end_at_once(self):
        async with ra.Server([ra.Table("t", max_size=1000)], port=0) as server:
            transport = GrpcTransport(server.address)
            streams = [await transport.open("insert") for _ in range(10)]
            for at, stream in enumerate(streams):
                await stream.send(InsertRequest(session=bytes([at]) * 16).to_message())
                assert (await stream.receive()).header["applied_through"] == 0
                await stream.send(rows_request(rows=[one_row(at)]).to_message())
            for turn in range(1, 20):  # in one turn of the loop: they are inserted together
                for at, stream in enumerate(streams):
                    row = one_row(10 * turn + at, seq=turn + 1)
                    assert stream.try_send(InsertRequest(rows=[row]).to_message())
                await settle()
            for stream in streams:
                await stream.end()
            for stream in streams:
                acknowledged = 0
                while (message := await stream.receive()) is not None:
                    acknowledged += sum(count for _, count in InsertResponse.from_message(message).acks)
                assert acknowledged == 20
            assert server.tables["t"].info.current_size == 200
            await transport.close()

    async def test_a_message_that_breaks_a_rule_ends_its_stream_alone(self):
        async with ra.Server([ra.Table("t", max_size=10)], port=0) as server:
            transport = GrpcTransport(server.address)
            wrong, right = await transport.open("insert"), await transport.open("insert")
            for at, stream in enumerate((wrong, right)):
                await stream.send(InsertRequest(session=bytes([at]) * 16).to_message())
                await stream.receive()
            await wrong.send(InsertRequest(rows=[one_row(1)]).to_message())
            with pytest.raises(InvalidArgument, match="layout 0 was not declared"):
                await wrong.receive()
            await right.send(rows_request(rows=[one_row(2)]).to_message())
            assert InsertResponse.from_message(await right.receive()).acks == [(1, 1)]
            await transport.close()

    async def test_a_stream_that_breaks_lets_go_of_its_stores_at_once(self):
        gc.disable()
        try:
            async with ra.Server([ra.Table("t", max_size=10)], port=None) as server:
                client, transport = transport_of(server)
                storage = server._replay.storage
                own = len(storage._groups)  # of encoded items
                for malformed in (False, True):
                    stream = await transport.open("insert")
                    await stream.send(InsertRequest(session=b"x" * 16, groups=kinds(60)).to_message())
                    await settle()
                    assert len(storage._groups) == own + 60
                    if malformed:
                        await stream.send(InsertRequest(release=[(99, 1)]).to_message())
                    else:
                        stream.abort()
                    await settle()
                    assert len(storage._groups) == own
                await client.close()
        finally:
            gc.enable()

    async def test_kinds_beyond_the_servers_limit_are_refused(self):
        async with ra.Server([ra.Table("t", max_size=10)], port=None) as server:
            error = await refusal_of(server, InsertRequest(groups=kinds(300)))
            assert isinstance(error, ResourceExhausted)
            async with server.client() as other:
                await other.insert({"x": 1}, {"t": 1.0}, timeout=5)

    async def test_blocks_have_a_largest_size(self):
        async with ra.Server([ra.Table("t", max_size=10)], port=None) as server:
            error = await refusal_of(server, one_block(insert_stream.MAX_ITEMS_PER_BLOCK + 1))
            assert isinstance(error, InvalidArgument)
            assert "cut it up" in str(error)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"count": 2}, "2 rows of 24 bytes each cannot come as 24 bytes"),
            ({"layout": 5}, "layout 5 was not declared"),
            ({"layout": 1}, "does not make rows that come as records"),
            ({"layout": 2}, "does not make rows that come as records"),
            ({"layout": 3}, "does not make rows that come as records"),
            ({"tables": ("t", "t")}, "distinct tables"),
            ({"tables": ("u",)}, "no table named 'u'"),
            ({"count": 0}, "count >= 1"),
            ({"seq": 0}, "sent before"),
            ({"records": np.full(24, 255, np.uint8)}, "finite|bool"),
        ],
    )
    async def test_rows_that_are_none_are_refused(self, change, message):
        request = InsertRequest(
            groups=[Group(0, (ArraySpec((), np.bool_),)), Group(1, (ArraySpec((None,), np.int64),))],
            layouts=[
                Layout(0, STRUCTURE, (0,), ((0, 0, True),)),
                Layout(1, STRUCTURE, (0,), ((0, 0, False),)),
                Layout(2, flatten({"x": 0, "y": 0})[1], (0, 0), ((0, 0, True), (1, 0, True))),
                Layout(3, STRUCTURE, (1,), ((0, 0, True),)),
            ],
            rows=[RowBlock(**{**ONE_ROW, **change})],
        )
        async with ra.Server([ra.Table("t", max_size=10)], port=None) as server:
            error = await refusal_of(server, request)
            assert re.search(message, str(error)), str(error)
            assert server.tables["t"].info.current_size == 0
            assert server._replay.storage.usage().staged_rows == 0

    async def test_rows_and_items_of_one_message_enter_in_the_order_of_their_numbers(self):
        request = one_block(1, seq=2)
        row = {**ONE_ROW, "records": np.zeros(24, np.uint8)}
        request.rows = [RowBlock(**{**row, "seq": 1}), RowBlock(**{**row, "seq": 3})]
        for block, key in zip(request.rows, (70, 71), strict=True):
            block.records = block.records.copy()
            block.records.view(np.uint64)[0] = key
        async with ra.Server([ra.Table.queue("t", 10)], port=None) as server:
            client, transport = transport_of(server)
            stream = await transport.open("insert")
            request.session = b"x" * 16
            await stream.send(request.to_message())
            await stream.receive()
            keys = [sample.info.key async for sample in client.sample("t", num_samples=3)]
            assert keys == [70, 0, 71]
            await client.close()

    async def test_rows_that_are_withdrawn_in_the_message_that_brings_them_do_not_wait(self):
        async with ra.Server([ra.Table.queue("t", 1)], port=None) as server:
            client, transport = transport_of(server)
            streams = [await transport.open("insert") for _ in range(3)]
            for at, stream in enumerate(streams):
                await stream.send(rows_request(session=bytes([at]) * 16).to_message())
                await stream.receive()
            for at, stream in enumerate(streams):  # In one turn: the first row fills the table, the others come later.
                await stream.send(InsertRequest(rows=[one_row(at)], cancel=[1] if at else []).to_message())
            for at, stream in enumerate(streams):
                async with asyncio.timeout(5):
                    answer = InsertResponse.from_message(await stream.receive())
                assert [refusal.seq for refusal in answer.refused] == ([1] if at else [])
            assert server.tables["t"].info.waiters == ()
            await client.close()

    @pytest.mark.parametrize("with_items", [False, True])
    async def test_a_message_of_very_many_items_is_worked_off_in_steps(self, with_items, monkeypatch):
        monkeypatch.setattr(insert_stream, "MAX_STEP_ROWS", 2)
        async with ra.Server([ra.Table("t", max_size=10)], port=None) as server:
            client, transport = transport_of(server)
            stream = await transport.open("insert")
            request = rows_request(session=b"x" * 16)
            request.rows = [one_row(at, seq=1 + at) for at in range(6)]
            if with_items:
                more = one_block(1, seq=7, keys=np.array([[9]], np.uint64))
                request.items, request.steps = more.items, more.steps
            sizes = [0]
            await stream.send(request.to_message())
            async with asyncio.timeout(5):
                while sizes[-1] < 6 + with_items:
                    sizes.append(server.tables["t"].info.current_size)
                    assert sizes[-1] - sizes[-2] <= 2
                    await asyncio.sleep(0)
            first = InsertResponse.from_message(await stream.receive())
            assert sum(count for _, count in first.acks) <= 2, "the answers to each step go out for themselves"
            await client.close()

    async def test_row_formats_are_limited_like_other_declarations(self, monkeypatch):
        monkeypatch.setattr(insert_stream, "MAX_DECLARATIONS", 2)
        request = rows_request()
        request.rows = [one_row(0, tables=tuple(map(str, range(1 + at))), seq=1 + at) for at in range(3)]
        for at, block in enumerate(request.rows):
            block.records = np.zeros(8 + 16 * (1 + at), np.uint8)
        async with ra.Server([ra.Table("t", max_size=10)], port=None) as server:
            assert "more than 2" in str(await refusal_of(server, request))

    async def test_items_cannot_stand_for_countless_episodes(self):
        episodes = np.tile(np.array([[0, 1000]]), (17, 1))
        async with ra.Server([ra.Table("t", max_size=100)], port=None) as server:
            error = await refusal_of(server, one_block(17, episodes=episodes))
            assert "17000 ends" in str(error)

    async def test_a_batch_that_waits_holds_up_no_other_table_and_can_be_cancelled(self):
        tables = [ra.Table.queue("q", 10), ra.Table("r", max_size=10)]
        async with ra.Server(tables, port=None) as server, server.client() as client:
            waiting = asyncio.create_task(client.insert_batch(np.arange(100_000.0), {"q": 1.0}))
            await settle(200)
            await client.insert(1.0, {"r": 1.0}, timeout=5)
            waiting.cancel()
            await asyncio.wait([waiting])
            await settle(50)
            assert server.tables["q"].info.waiters == ()


class TestSampling:
    async def test_updates_that_ride_along_are_limited_like_others(self):
        async with ra.Server([ra.Table("t", max_size=10)], port=None) as server:
            client, transport = transport_of(server)
            stream = await transport.open("sample")
            keys = np.zeros(MAX_KEYS + 1, np.uint64)
            request = SampleRequest(Subscription("t", 1), keys=keys, priorities=np.ones(len(keys)))
            await stream.send(request.to_message())
            with pytest.raises(InvalidArgument, match="at most 65536"):
                await stream.receive()
            await client.close()

    async def test_variable_rows_are_aligned_in_process_too(self):
        async with ra.Server([ra.Table("t", max_size=10)], port=None) as server, server.client() as client:
            for length in (3, 5, 7):
                await client.insert({"x": np.arange(length)}, {"t": 1.0})
                sample = await client.sample_one("t")
                assert sample.data["x"].ctypes.data % 64 == 0


async def test_clients_in_process_are_forgotten_once_closed():
    async with ra.Server([ra.Table("t", max_size=10)], port=None) as server:
        for _ in range(20):
            async with server.client() as client:
                await client.insert({"x": 1}, {"t": 1.0})
        del client
        await settle()
        gc.collect()
        assert len(server._clients) == 0
