"""Blocks of updates that travel together."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.core.draw import MutateResult
from reverb_async.protocol.updating import MAX_KEYS, UpdateRequest, UpdateResponse, pack
from reverb_async.testing import until

NONE = np.zeros(0, np.uint64)


def request(seq, table, keys, priorities=None, deletes=()):
    keys = np.asarray(keys, np.uint64)
    values = np.ones(len(keys)) if priorities is None else np.asarray(priorities, np.float64)
    return UpdateRequest(seq, table, keys, values, np.asarray(deletes, np.uint64))


@pytest.fixture
async def server():
    tables = [ra.Table("t", max_size=10, sampler=ra.selectors.Prioritized(1.0)), ra.Table("u", max_size=10)]
    async with ra.Server(tables, port=None) as server:
        yield server


async def answer(server, message):
    stream = await next(iter(server._transports)).open("update")
    await stream.send(message)
    response = UpdateResponse.from_message(await stream.receive())
    stream.abort()
    return dict(response.done), dict(response.refused)


async def inserted(client, count, **priorities):
    return [(await client.insert({"x": at}, priorities)) for at in range(count)]


async def test_a_bad_block_is_refused_alone(server):
    async with server.client() as client:
        keys = await inserted(client, 3, t=1.0, u=1.0)
        t, u = [key["t"] for key in keys], [key["u"] for key in keys]
        requests = [
            request(1, "t", t[:2], [5.0, 6.0]),
            request(2, "t", t, [1.0, -1.0, 1.0]),
            request(3, "nowhere", t),
            request(4, "t", [*t, 99], [7.0, 8.0, 9.0, 1.0], deletes=t[2:]),
            request(5, "u", u[:1]),
            request(6, "u", np.zeros(MAX_KEYS + 1, np.uint64)),
            request(7, "t", t[2:]),
        ]
        done, refused = await answer(server, pack(requests))
        assert done == {
            1: MutateResult(2, 0, 0),
            4: MutateResult(3, 1, 1),
            5: MutateResult(1, 0, 0),
            7: MutateResult(0, 0, 1),
        }
        assert {seq: error["type"] for seq, error in refused.items()} == {
            2: "InvalidArgument",
            3: "TableNotFound",
            6: "InvalidArgument",
        }
        state = server.tables["t"].state
        assert state.slots.priority[state.find(np.array(t[:2], np.uint64))].tolist() == [7.0, 8.0]


async def test_long_messages_are_applied_in_steps(server):
    async with server.client() as client:
        key = (await inserted(client, 1, t=1.0))[0]["t"]
        state = server.tables["t"].state
        steps = []
        plain = state.mutate_all

        def noting(calls):
            steps.append([len(call.keys) for call in calls])
            return plain(calls)

        state.mutate_all = noting
        sizes = [40_000, 30_000, 30_000, MAX_KEYS, 1]
        requests = [request(at, "t", np.full(size, key), np.full(size, at + 1.0)) for at, size in enumerate(sizes)]
        done, _ = await answer(server, pack(requests))
        assert steps == [[40_000], [30_000, 30_000], [MAX_KEYS], [1]]
        assert list(done.values()) == [MutateResult(1, 0, 0)] * 5
        assert state.slots.priority[state.live_slots()].tolist() == [5.0]


async def test_calls_in_flight_travel_together(server):
    async with server.client() as client:
        keys = [key["t"] for key in await inserted(client, 8, t=1.0)]
        state, groups = server.tables["t"].state, []
        plain = state.mutate_all
        state.mutate_all = lambda calls: groups.append(len(calls)) or plain(calls)
        calls = [client.mutate_priorities("t", {key: 2.0}) for key in keys]
        assert await asyncio.gather(*calls) == [MutateResult(1, 0, 0)] * 8
        await until(lambda: sum(groups) == 8)
        assert groups == [8]
