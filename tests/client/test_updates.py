import asyncio
import random

import numpy as np
import pytest
from helpers import settle
from sampling_rig import BreakableTransport, PlayedServer, tasks_beside

import reverb_async as ra
from reverb_async.client.updates import UpdateStream, as_keys, as_priorities, as_updates
from reverb_async.core.draw import MutateResult
from reverb_async.errors import Closed, DeadlineExceeded, InvalidArgument, TableNotFound, Unavailable
from reverb_async.protocol.updating import MAX_KEYS, UpdateResponse, unpack
from reverb_async.replay import Replay
from reverb_async.service.service import ReplayService
from reverb_async.testing import until

NONE = np.zeros(0, np.uint64)


def keys(*numbers):
    return np.array(numbers, np.uint64)


def ones(n):
    return np.ones(n)


def update(stream, *numbers, timeout=None, table="t"):
    return asyncio.create_task(stream.mutate(table, keys(*numbers), ones(len(numbers)), NONE, timeout=timeout))


def requests(played):
    return [request for message in played.sent for request in unpack(message)]


# -- the stream -------------------------------------------------------------------------------------------------------


async def test_calls_share_a_stream_and_do_not_wait_for_each_other():
    server = PlayedServer()
    connector = server.connector()
    stream = UpdateStream(connector)
    calls = [update(stream, number) for number in range(5)]
    await settle()
    (played,) = server.streams
    assert [request.keys.tolist() for request in requests(played)] == [[0], [1], [2], [3], [4]]
    numbers = [request.seq for request in requests(played)]
    played.answer(UpdateResponse([(seq, MutateResult(seq, 0, 0)) for seq in reversed(numbers)]))
    assert [(await call).updated for call in calls] == numbers
    await connector.close()


async def test_a_refused_call_harms_no_other():
    server = PlayedServer()
    connector = server.connector()
    stream = UpdateStream(connector)
    good, bad = update(stream, 1), update(stream, 2, table="x")
    await settle()
    server.streams[0].answer(UpdateResponse([(1, MutateResult(1, 0, 0))], [(2, TableNotFound("x", ["t"]).to_map())]))
    assert await good == MutateResult(1, 0, 0)
    with pytest.raises(TableNotFound, match="this server has: 't'"):
        await bad
    await connector.close()


async def test_large_calls_are_cut_and_their_counts_added():
    server = PlayedServer()
    connector = server.connector()
    stream = UpdateStream(connector)
    many = np.arange(MAX_KEYS + 10, dtype=np.uint64)
    call = asyncio.create_task(stream.mutate("t", many, ones(len(many)), many[:5], timeout=None))
    await settle()
    sent = requests(server.streams[0])
    assert [(len(request.keys), len(request.deletes)) for request in sent] == [(MAX_KEYS, 0), (10, 0), (0, 5)]
    assert np.concatenate([request.keys for request in sent]).tolist() == many.tolist()
    for request in sent:
        counts = MutateResult(len(request.keys), len(request.deletes), 1)
        server.streams[0].answer(UpdateResponse([(request.seq, counts)]))
    assert await call == MutateResult(MAX_KEYS + 10, 5, 3)
    await connector.close()


async def test_what_has_no_answer_is_said_again_on_a_new_connection():
    server = PlayedServer()
    connector = server.connector()
    stream = UpdateStream(connector)
    calls = [update(stream, number) for number in range(3)]
    await settle()
    server.streams[0].answer(UpdateResponse([(1, MutateResult(1, 0, 0))]))
    await calls[0]
    server.streams[0].answer(Unavailable("the connection broke"))
    await until(lambda: len(server.streams) == 2)
    calls.append(update(stream, 3))
    await settle()
    assert [request.keys.tolist() for request in requests(server.streams[1])] == [[1], [2], [3]]
    server.streams[1].answer(UpdateResponse([(seq, MutateResult(1, 0, 0)) for seq in (2, 3, 4)]))
    await asyncio.gather(*calls)
    await connector.close()


async def test_a_call_that_was_given_up_is_not_said_again():
    server = PlayedServer()
    connector = server.connector()
    stream = UpdateStream(connector)
    calls = [update(stream, number) for number in range(2)]
    await settle()
    calls[0].cancel()
    await settle()
    server.streams[0].answer(Unavailable("the connection broke"))
    await until(lambda: len(server.streams) == 2)
    await settle()
    assert [request.keys.tolist() for request in requests(server.streams[1])] == [[1]]
    await connector.close()
    with pytest.raises(Closed):
        await calls[1]


async def test_an_idle_stream_that_breaks_is_opened_again_only_when_needed():
    server = PlayedServer()
    connector = server.connector()
    stream = UpdateStream(connector)
    call = update(stream, 1)
    await settle()
    server.streams[0].answer(UpdateResponse([(1, MutateResult(1, 0, 0))]))
    await call
    server.streams[0].answer(Unavailable("the connection broke"))
    await settle()
    assert not stream.running
    call = update(stream, 2)
    await settle()
    server.streams[1].answer(UpdateResponse([(2, MutateResult(1, 0, 0))]))
    assert (await call).updated == 1
    await connector.close()


async def test_nothing_answers_until_patience_ends():
    server = PlayedServer()
    connector = server.connector(connect_timeout=0)
    stream = UpdateStream(connector)
    server.down = Unavailable("connection refused")
    with pytest.raises(Unavailable, match="connection refused"):
        await update(stream, 1)
    server.down = None
    call = update(stream, 1)
    await settle()
    server.streams[0].answer(UpdateResponse([(2, MutateResult(1, 0, 0))]))
    await call
    await connector.close()


async def test_a_timeout_says_who_did_not_answer():
    server = PlayedServer()
    connector = server.connector()
    stream = UpdateStream(connector)
    with pytest.raises(DeadlineExceeded, match=r"updating priorities in 't': played:1 did not answer within 0.01 s"):
        await update(stream, 1, timeout=0.01)
    server.streams[0].answer(UpdateResponse([(1, MutateResult(1, 0, 0))]))  # Too late, and nobody's any more.
    call = update(stream, 2)
    await settle()
    server.streams[0].answer(UpdateResponse([(2, MutateResult(5, 0, 0))]))
    assert (await call).updated == 5
    await connector.close()


async def test_closing_lets_answers_arrive_first():
    server = PlayedServer()
    connector = server.connector()
    stream = UpdateStream(connector)
    call = update(stream, 1)
    await settle()
    closing = asyncio.create_task(stream.close())
    await settle()
    assert server.streams[0].ended
    server.streams[0].answer(UpdateResponse([(1, MutateResult(1, 0, 0))]))
    server.streams[0].answer(None)
    await closing
    assert (await call).updated == 1
    with pytest.raises(Closed):
        await update(stream, 2)
    await connector.close()


async def test_calls_may_be_cancelled_anywhere():
    table = ra.Table("t", max_size=10)
    transport = BreakableTransport(ReplayService(Replay([table]), 1 << 26))
    async with ra.Client._over(transport) as client:
        await client.mutate_priorities("t", {1: 1.0})
        baseline, rng = asyncio.all_tasks(), random.Random(0)
        for _ in range(100):
            calls = [asyncio.create_task(client.mutate_priorities("t", {n: 1.0}, [n])) for n in range(3)]
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            if rng.random() < 0.05:
                transport.cut_all()
        assert (await client.mutate_priorities("t", {1: 1.0, 2: 1.0}, [3])).unknown == 3
        await settle()
        assert len(tasks_beside(baseline)) <= 3  # One new stream instead of a cut one, at most.


async def test_updates_reach_a_server_through_a_broken_connection():
    table = ra.Table("t", max_size=10)
    transport = BreakableTransport(ReplayService(Replay([table]), 1 << 26))
    async with ra.Client._over(transport) as client:
        named = (await client.insert_batch({"x": np.arange(4)}, {"t": 1.0}))["t"]
        for round in range(5):
            calls = [client.mutate_priorities("t", {int(key): round + 2.0}) for key in named]
            answers = asyncio.gather(*calls)
            await asyncio.sleep(0)
            transport.cut_all()
            assert [answer.updated for answer in await answers] == [1, 1, 1, 1]
        assert (await client.sample_one("t")).info.priority == 6.0


# -- checking arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {1: 0.5, 2: 1},
        ([1, 2], [0.5, 1]),
        (np.array([1, 2]), np.array([0.5, 1], np.float32)),
        (np.array([1, 2], np.uint64), [np.float32(0.5), True]),
        {np.uint64(1): np.float64(0.5), np.int32(2): 1.0},
        {np.uint64(1): 0.5, 2: 1.0},
        ((1, 2), (0.5, 1.0)),
    ],
)
def test_updates_may_be_given_in_many_ways(given):
    named, priorities = as_updates(given)
    assert (named.dtype, priorities.dtype) == (np.uint64, np.float64)
    assert named.tolist() == [1, 2]
    assert priorities.tolist() == [0.5, 1.0]


def test_nothing_to_update_is_fine():
    for given in (None, {}, ([], []), (np.zeros(0, np.int64), [])):
        named, priorities = as_updates(given)
        assert (len(named), len(priorities)) == (0, 0)
    for given in (None, [], (), set(), np.zeros(0, np.uint64)):
        assert len(as_keys(given, "deletes")) == 0


def test_all_keys_from_0_to_the_largest_are_kept_exactly():
    wanted = [0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]
    for given in (wanted, set(wanted), iter(wanted), dict.fromkeys(wanted), np.array(wanted, np.uint64)):
        assert sorted(as_keys(given, "deletes").tolist()) == wanted
    assert as_updates(dict.fromkeys(wanted, 1.0))[0].tolist() == wanted


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1.0], "integers.*float"),
        ([2**53 + 2.0], "integers"),
        (np.array([1.5]), "float64"),
        ([-1], "0 to 2\\*\\*64 - 1, got -1"),
        (np.array([3, -1]), "got .*-1"),
        ([2**64], "18446744073709551616"),
        (["1"], "integers"),
        ([None], "integers"),
        ([[1, 2]], r"\[1, 2\]"),
        ([[1], [2, 3]], "integers"),
        (5, "list or an array"),
        ("12", "list or an array"),
        (np.array([True]), "bool"),
        ([2**64 - 1, -1], "got -1"),
    ],
)
def test_wrong_keys_are_named(wrong, message):
    with pytest.raises(InvalidArgument, match=message):
        as_keys(wrong, "deletes")
    if isinstance(wrong, list) and not isinstance(wrong[0], list):
        with pytest.raises(InvalidArgument, match="updates"):
            as_updates(dict.fromkeys(wrong, 1.0))


def test_wrong_updates_are_named():
    for wrong in ([(1, 0.5)], [1, 2], 7, np.zeros(3), ([1], [2], [3])):
        with pytest.raises(InvalidArgument, match=r"dict\(zip"):
            as_updates(wrong)
    with pytest.raises(InvalidArgument, match=r"priorities are \[2\]"):
        as_updates(([1, 2], [1.0]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1.0, np.nan], "number 1 is nan"),
        ([np.inf, 1.0], "number 0 is inf"),
        ([1.0], r"\[2\].*\[1\]"),
        ([[1.0], [2.0]], "np.ravel"),
        (1.0, r"the shape \[\]"),
        (["a", "b"], "numbers"),
        (None, "shape"),
    ],
)
def test_wrong_priorities_are_named(wrong, message):
    with pytest.raises(InvalidArgument, match=message):
        as_priorities(wrong, 2)


def test_priorities_are_copied():
    given = np.ones(2)
    assert not np.shares_memory(as_priorities(given, 2), given)


async def test_calls_queued_together_are_packed_into_bounded_messages():
    server = PlayedServer()
    connector = server.connector()
    stream = UpdateStream(connector)
    sizes = [400, 400, 400, 2000, 30, *[1] * 80]
    calls = [update(stream, *range(size)) for size in sizes]
    calls[1].cancel()
    await settle()
    (played,) = server.streams
    packed = [[len(request.keys) for request in unpack(message)] for message in played.sent]
    assert packed == [[400, 400], [2000], [30, *[1] * 63], [1] * 17]
    numbers = [request.seq for request in requests(played)]
    played.answer(UpdateResponse([(seq, MutateResult(seq, 0, 0)) for seq in numbers]))
    del calls[1]
    assert [(await call).updated for call in calls] == numbers
    await connector.close()


async def test_all_calls_of_a_moment_go_out_though_they_need_several_messages():
    server = PlayedServer()
    connector = server.connector()
    stream = UpdateStream(connector)
    first = update(stream, 0)
    await settle()
    (played,) = server.streams
    calls = [first, *[update(stream, *range(400)) for _ in range(5)]]  # Now the stream stands idle.
    await settle()
    packed = [[len(request.keys) for request in unpack(message)] for message in played.sent]
    assert packed == [[1], [400, 400], [400, 400], [400]]
    played.answer(UpdateResponse([(request.seq, MutateResult(1, 0, 0)) for request in requests(played)]))
    assert [(await call).updated for call in calls] == [1] * 6
    await connector.close()
