import asyncio
import contextlib
import gc
import logging
import random
import threading
import weakref

import numpy as np
import pytest
from helpers import Clock, settle
from sampling_rig import BreakableTransport, PlayedServer, tasks_beside

import reverb_async as ra
from reverb_async.errors import (
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    RateLimiterTimeout,
    TableClosed,
    TableNotFound,
    Unavailable,
)
from reverb_async.protocol.sampling import SampleResponse
from reverb_async.protocol.updating import MAX_KEYS
from reverb_async.replay import Replay
from reverb_async.service.service import ReplayService
from reverb_async.testing import until


@contextlib.asynccontextmanager
async def played():
    """A client of a server that the test plays."""
    server = PlayedServer()
    async with ra.Client._over(server) as client:
        yield server, client
        server.say_goodbye()


@contextlib.asynccontextmanager
async def served(*tables, items=0):
    """A server with a client in its process, over streams that can be cut."""
    transport = BreakableTransport(ReplayService(Replay(tables), 1 << 26))
    async with ra.Client._over(transport) as client:
        if items:
            await client.insert_batch({"x": np.arange(items)}, {table.name: 1.0 for table in tables})
        yield client, transport
    for table in tables:
        assert table.info.waiters == ()


async def next_stream(server, number=0):
    await until(lambda: len(server.streams) > number)
    await settle()
    return server.streams[number]


def keys_of(*batches):
    return [int(batch.info.key[0]) for batch in batches]


def completed(table):
    return table.info.rate_limiter_info.sample_stats.completed


# -- credits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
async def test_prefetch_batches_are_outstanding_while_the_caller_is_busy(prefetch):
    async with played() as (server, client):
        batches = client.sample_batches("t", 1, prefetch=prefetch)
        await settle()
        assert not server.streams
        waiting = asyncio.create_task(anext(batches))
        stream = await next_stream(server)
        (first,) = stream.requests()
        assert (first.subscribe.table, first.subscribe.batch_size) == ("t", 1)
        assert first.credits == max(1, prefetch)
        asked = first.credits
        for delivered in range(1, 6):
            stream.deliver(delivered)
            await waiting
            await settle()
            asked += sum(request.credits for request in stream.requests())
            assert asked == delivered + prefetch
            waiting = asyncio.create_task(anext(batches))
            await settle()
            asked += sum(request.credits for request in stream.requests())
            assert asked == delivered + max(1, prefetch)
        waiting.cancel()


@pytest.mark.parametrize(("prefetch", "limit"), [(0, 3), (1, 3), (2, 3), (10, 3), (3, 1)])
async def test_exactly_as_many_batches_as_wanted_are_charged(prefetch, limit):
    async with served(table := ra.Table("t", max_size=10), items=5) as (client, _):
        batches = [batch async for batch in client.sample_batches("t", 2, num_batches=limit, prefetch=prefetch)]
        assert len(batches) == limit
        assert completed(table) == 2 * limit
        samples = [sample async for sample in client.sample("t", num_samples=limit, prefetch=prefetch)]
        assert len(samples) == limit
        await settle()
        assert completed(table) == 3 * limit


async def test_a_queue_keeps_what_was_not_asked_for():
    async with served(table := ra.Table.queue("q", 10), items=10) as (client, _):
        got = [int(sample.data["x"]) async for sample in client.sample("q", num_samples=4, prefetch=3)]
        assert got == [0, 1, 2, 3]
        assert table.info.current_size == 6


async def test_one_message_carries_all_there_is_to_say():
    async with played() as (server, client):
        batches = client.sample_batches("t", 1, prefetch=3)
        waiting = asyncio.create_task(anext(batches))
        stream = await next_stream(server)
        stream.deliver(1, 2, 3)
        first = await waiting
        await settle()
        stream.requests()
        second = await anext(batches)
        await second.update_priorities([3.0])
        await first.update_priorities([4.0])
        await anext(batches)
        await settle()
        (request,) = stream.requests()
        assert (request.credits, request.consumed) == (2, 3)
        assert request.keys.tolist() == [2, 1]
        assert request.priorities.tolist() == [3.0, 4.0]


async def test_elements_end_as_an_iterators_do():
    async with served(ra.Table("t", max_size=10), items=5) as (client, _):
        batches = client.sample_batches("t", 2, num_batches=1)
        await anext(batches)
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(batches)


# -- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["with", "aclose", "error", "bare"])
async def test_leaving_hands_back_what_was_not_delivered_and_keeps_what_was(how):
    async with served(table := ra.Table.queue("q", 100), items=40) as (client, _):
        baseline = asyncio.all_tasks()
        if how == "with":
            async with client.sample_batches("q", 5, prefetch=4) as batches:
                await anext(batches)
                await settle()
                assert table.info.current_size < 35
        elif how == "aclose":
            batches = client.sample_batches("q", 5, prefetch=4)
            await anext(batches)
            await batches.aclose()
            await batches.aclose()
        elif how == "error":
            with contextlib.suppress(KeyError):
                async with client.sample_batches("q", 5, prefetch=4) as batches:
                    await anext(batches)
                    raise KeyError
        else:
            async for _ in client.sample_batches("q", 5, prefetch=4):
                break
            await settle()
        assert table.info.current_size == 35
        await settle()
        assert not [name for name in tasks_beside(baseline) if "leaving" in name or "sampling" in name]
        rest = await client.sample_batch("q", 35)
        assert rest.data["x"].tolist() == list(range(5, 40))


async def test_a_batch_is_the_callers_even_if_the_stream_is_left_at_once():
    async with served(table := ra.Table.queue("q", 100), items=10) as (client, _):
        for expected in range(10):
            async with client.sample("q", prefetch=0) as samples:
                assert (await anext(samples)).data["x"] == expected
        assert table.info.current_size == 0


async def test_leaving_sends_priorities_first():
    async with served(ra.Table("t", max_size=10), items=1) as (client, _):
        async with client.sample_batches("t", 1, prefetch=0) as batches:
            await (await anext(batches)).update_priorities([5.0])
        assert (await client.sample_one("t")).info.priority == 5.0


async def test_priorities_may_be_updated_after_the_stream_was_left():
    async with served(ra.Table("t", max_size=10), items=1) as (client, _):
        async for batch in client.sample_batches("t", 1, num_batches=2):
            last = batch
        await last.update_priorities([6.0])
        assert (await client.sample_one("t")).info.priority == 6.0
        await (await client.sample_batch("t", 1)).update_priorities([7.0])
        assert (await client.sample_one("t")).info.priority == 7.0


async def test_a_bare_iterator_that_is_collected_in_another_thread_is_left():
    async with served(table := ra.Table.queue("q", 100), items=10) as (client, _):
        holder = [client.sample("q", prefetch=3)]
        await anext(holder[0])
        thread = threading.Thread(target=holder.clear)
        thread.start()
        thread.join()
        await until(lambda: table.info.current_size == 9)


def test_an_iterator_may_outlive_its_event_loop():
    kept = []

    async def main():
        async with ra.Server([ra.Table("t", max_size=10)], port=None) as server, server.client() as client:
            await client.insert({"x": 1}, {"t": 1.0})
            kept.append(client.sample("t"))
            await anext(kept[0])

    asyncio.run(main())
    kept.clear()
    gc.collect()


async def test_nothing_but_its_user_keeps_a_bare_iterator_alive():
    async with served(ra.Table("t", max_size=10), items=1) as (client, _):
        samples = client.sample("t")
        await anext(samples)
        seen = weakref.ref(samples)
        del samples
        assert seen() is None


async def test_closing_the_client_waits_for_iterators_that_are_being_left():
    table = ra.Table.queue("q", 100)
    async with served(table, items=10) as (client, _):
        batches = client.sample_batches("q", 2, prefetch=3)
        await anext(batches)
        async for _ in client.sample_batches("q", 1):
            break
    assert table.info.current_size == 7
    with pytest.raises(Closed):
        await anext(batches)
    with pytest.raises(Closed):
        client.sample("q")


async def test_a_server_that_does_not_take_leave_is_left_anyway(monkeypatch):
    async with played() as (server, client):
        batches = client.sample_batches("t", 1)
        waiting = asyncio.create_task(anext(batches))
        stream = await next_stream(server)
        stream.deliver(1)
        await waiting
        with monkeypatch.context() as patch:
            clock = Clock(patch)
            leaving = asyncio.create_task(batches.aclose())
            await clock.advance(4.9)
            assert not leaving.done()
            await clock.advance(0.2)
            await leaving
        assert stream.aborted
        assert stream.requests()[-1].end


async def test_a_cancelled_task_leaves_within_a_second(monkeypatch):
    async with played() as (server, client):

        async def learn():
            async with client.sample_batches("t", 1) as batches:
                async for _ in batches:
                    pass

        learning = asyncio.create_task(learn())
        stream = await next_stream(server)
        with monkeypatch.context() as patch:
            clock = Clock(patch)
            learning.cancel()
            await clock.advance(0.9)
            assert not learning.done()
            await clock.advance(0.2)
            assert learning.cancelled()
        assert stream.aborted


async def test_leaving_says_what_is_left_and_ends():
    async with played() as (server, client):
        batches = client.sample_batches("t", 1, prefetch=3)
        waiting = asyncio.create_task(anext(batches))
        stream = await next_stream(server)
        stream.deliver(1, 2, 3)
        await (await waiting).update_priorities([2.0])
        leaving = asyncio.create_task(batches.aclose())
        await settle()
        requests = stream.requests()
        assert requests[-1].end
        assert max(request.consumed for request in requests) == 1
        assert [request.keys.tolist() for request in requests if request.keys is not None] == [[1]]
        assert stream.ended
        assert not leaving.done()
        stream.deliver(4)
        stream.answer(None)
        await leaving


# -- timeouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.01])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
async def test_a_timeout_is_the_limiters_and_leaves_the_iterator_usable(timeout, prefetch):
    table = ra.Table("t", max_size=10, rate_limiter=ra.rate_limiters.MinSize(2))
    async with served(table, items=1) as (client, _):
        async with client.sample_batches("t", 3, timeout=timeout, prefetch=prefetch) as batches:
            for _ in range(3):
                with pytest.raises(RateLimiterTimeout, match="needs 1 more insert"):
                    await anext(batches)
            await client.insert({"x": 1}, {"t": 1.0})
            await settle()
            assert len(await anext(batches)) == 3
        assert completed(table) >= 3


async def test_a_partial_batch_is_taken_when_the_time_is_up():
    async with served(ra.Table.queue("q", 10), items=3) as (client, _):
        async with client.sample_batches("q", 5, timeout=0.02, allow_partial=True, prefetch=0) as batches:
            batch = await anext(batches)
            assert batch.data["x"].tolist() == [0, 1, 2]
            with pytest.raises(RateLimiterTimeout):
                await anext(batches)
        await client.insert_batch({"x": np.arange(4)}, {"q": 1.0})
        assert len(await client.sample_batch("q", 9, timeout=0, allow_partial=True)) == 4


async def test_a_batch_that_was_filled_in_the_meantime_is_delivered():
    async with played() as (server, client):
        batches = client.sample_batches("t", 1, timeout=0.01, prefetch=0)
        waiting = asyncio.create_task(anext(batches))
        stream = await next_stream(server)
        await until(lambda: stream.sent[-1].header.get("withdraw") == 1)
        stream.deliver(1)
        assert keys_of(await waiting) == [1]


async def test_with_a_timeout_of_0_the_credit_is_withdrawn_in_the_same_message():
    async with played() as (server, client):
        waiting = asyncio.create_task(anext(client.sample("t", timeout=0)))
        stream = await next_stream(server)
        (request,) = stream.requests()
        assert (request.credits, request.withdraw) == (1, 1)
        stream.refuse(1, RateLimiterTimeout("not now"))
        with pytest.raises(RateLimiterTimeout, match="not now"):
            await waiting


async def test_a_server_that_does_not_answer_a_withdrawal_is_given_up(monkeypatch):
    async with played() as (server, client):
        batches = client.sample_batches("t", 1, timeout=5, prefetch=0)
        with monkeypatch.context() as patch:
            clock = Clock(patch)
            waiting = asyncio.create_task(anext(batches))
            await settle()
            await clock.advance(5.1)
            assert not waiting.done()
            await clock.advance(2.1)
            with pytest.raises(
                DeadlineExceeded, match="sampling from 't': played:1 did not answer within 5 s"
            ) as caught:
                await waiting
        assert not isinstance(caught.value, RateLimiterTimeout)
        (stream,) = server.streams
        stream.deliver(1)  # Late, but not lost.
        assert keys_of(await anext(batches)) == [1]


async def test_a_refusal_that_nobody_waits_for_any_more_is_no_error():
    async with played() as (server, client):
        batches = client.sample_batches("t", 1, timeout=0, prefetch=0)
        waiting = asyncio.create_task(anext(batches))
        stream = await next_stream(server)
        waiting.cancel()
        await settle()
        stream.refuse(1, RateLimiterTimeout("not now"))
        await settle()
        waiting = asyncio.create_task(anext(batches))
        await settle()
        stream.deliver(2)
        assert keys_of(await waiting) == [2]


# -- cancelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 1, 3])
async def test_cancelling_loses_nothing(prefetch):
    async with served(table := ra.Table.queue("q", 1000), items=300) as (client, _):
        baseline, rng, got = asyncio.all_tasks(), random.Random(prefetch), []
        async with client.sample_batches("q", 3, prefetch=prefetch) as batches:
            while len(got) < 150:
                waiting = asyncio.create_task(anext(batches))
                for _ in range(rng.randrange(14)):
                    await asyncio.sleep(0)
                if rng.random() < 0.6:
                    waiting.cancel()
                await asyncio.wait([waiting])
                if not waiting.cancelled():
                    got += waiting.result().data["x"].tolist()
        assert got == list(range(len(got)))
        await settle()
        assert tasks_beside(baseline) == []
        assert table.info.current_size == 300 - len(got)


async def test_single_draws_may_be_cancelled_anywhere():
    async with served(table := ra.Table.queue("q", 1000), items=200) as (client, _):
        baseline, rng, got = asyncio.all_tasks(), random.Random(0), []
        for _ in range(150):
            drawing = asyncio.create_task(
                client.sample_batch("q", 1) if rng.random() < 0.5 else client.sample_batch("q", 1, timeout=0)
            )
            for _ in range(rng.randrange(14)):
                await asyncio.sleep(0)
            drawing.cancel()
            await asyncio.wait([drawing])
            if not drawing.cancelled():
                got += drawing.result().data["x"].tolist()
        await settle()
        assert got == list(range(len(got)))
        assert table.info.current_size == 200 - len(got)
        assert len(tasks_beside(baseline)) <= 4  # One idle stream, both ends.


async def test_a_whole_learner_may_be_cancelled_anywhere():
    async with served(table := ra.Table.queue("q", 1000), items=100) as (client, _):
        baseline, rng, got = asyncio.all_tasks(), random.Random(1), []

        def take(sample):
            got.append(int(sample.data["x"]))

        async def learn(bare):
            if bare:
                async for sample in client.sample("q", prefetch=2):
                    take(sample)
            else:
                async with client.sample("q", prefetch=2) as samples:
                    async for sample in samples:
                        take(sample)

        for round in range(60):
            learning = asyncio.create_task(learn(bare=round % 2 == 0))
            for _ in range(rng.randrange(20)):
                await asyncio.sleep(0)
            learning.cancel()
            await asyncio.wait([learning])
            await settle()
            assert got == list(range(len(got)))
            assert table.info.current_size == 100 - len(got)
        assert tasks_beside(baseline) == []


async def test_waiting_to_update_priorities_may_be_cancelled():
    async with played() as (server, client):
        batches = client.sample_batches("t", MAX_KEYS, prefetch=0)
        waiting = asyncio.create_task(anext(batches))
        stream = await next_stream(server)
        stream.deliver(1, size=MAX_KEYS)
        batch = await waiting
        blocked = asyncio.Event()

        async def send(message):
            await blocked.wait()
            stream.sent.append(message)

        stream.send = send
        stream.try_send = lambda message: False
        for _ in range(2):
            await batch.update_priorities(np.ones(MAX_KEYS))
            await settle()
        updating = asyncio.create_task(batch.update_priorities(np.ones(MAX_KEYS)))
        await settle()
        assert not updating.done()
        updating.cancel()
        await asyncio.wait([updating])
        updating = asyncio.create_task(batch.update_priorities(np.ones(MAX_KEYS)))
        blocked.set()
        await updating
        await settle()
        assert sum(len(request.keys) for request in stream.requests() if request.keys is not None) == 3 * MAX_KEYS


# -- lost connections -------------------------------------------------------------------------------------------------


async def test_a_lost_connection_is_replaced_and_what_is_missing_asked_for_again():
    async with played() as (server, client):
        batches = client.sample_batches("t", 1, prefetch=2, num_batches=4)
        waiting = asyncio.create_task(anext(batches))
        first = await next_stream(server)
        first.deliver(1, 2)
        batch = await waiting
        await settle()
        await batch.update_priorities([9.0])
        first.answer(Unavailable("the connection broke"))
        second = await next_stream(server, 1)
        (request,) = second.requests()
        assert request.subscribe.table == "t"
        assert request.credits == 2
        assert request.consumed == 0
        assert request.keys.tolist() == [1]
        waiting = asyncio.create_task(anext(batches))
        second.deliver(1)
        await waiting
        await settle()
        assert sum(request.credits for request in second.requests()) == 1
        assert first.aborted


async def test_priorities_are_resent_until_a_later_batch_proves_them():
    async with played() as (server, client):
        batches = client.sample_batches("t", 1, prefetch=1)
        waiting = asyncio.create_task(anext(batches))
        first = await next_stream(server)
        first.deliver(1)
        batch = await waiting
        await settle()
        await batch.update_priorities([2.0])
        await settle()
        first.deliver(2)  # Asked for before the update was sent: proves nothing.
        second_batch = await anext(batches)
        await settle()
        await second_batch.update_priorities([3.0])
        await settle()
        first.deliver(3)  # Asked for along with, or after, the first update.
        await anext(batches)
        first.answer(Unavailable("the connection broke"))
        second = await next_stream(server, 1)
        assert second.requests()[0].keys.tolist() == [2]


async def test_a_queue_loses_and_doubles_nothing_over_broken_connections():
    async with served(table := ra.Table.queue("q", 1000), items=200) as (client, transport):
        got = []
        async with client.sample_batches("q", 2, prefetch=3) as batches:
            for round in range(12):
                for _ in range(3):
                    got += (await anext(batches)).data["x"].tolist()
                await settle()
                if round % 3 == 0:
                    transport.cut_all()
                    await settle()  # What is taken before the loss is noticed cannot be acknowledged.
        assert got == list(range(len(got)))
        assert table.info.current_size == 200 - len(got)


async def test_while_nothing_answers_the_caller_waits_until_patience_ends():
    async with played() as (server, client):
        client._parts.connector.connect_timeout = 0.0
        server.down = Unavailable("connection refused")
        batches = client.sample_batches("t", 1)
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"sampling|opening|describing"):
                await anext(batches)
        server.down = None
        waiting = asyncio.create_task(anext(batches))
        (await next_stream(server)).deliver(1)
        assert keys_of(await waiting) == [1]


async def test_a_timeout_does_not_wait_for_a_server_that_is_known_to_be_away():
    async with played() as (server, client):
        server.down = Unavailable("connection refused")
        with pytest.raises(DeadlineExceeded, match="connection refused"):
            await client.sample_one("t", timeout=0.05)
        server.down = None


async def test_an_idle_stream_that_breaks_is_opened_again_when_it_is_used():
    async with served(ra.Table("t", max_size=10), items=1) as (client, transport):
        baseline = asyncio.all_tasks()
        for _ in range(3):
            assert (await client.sample_one("t")).data["x"] == 0
            transport.cut_all()
            await settle()
            assert tasks_beside(baseline) == []


# -- refusals ---------------------------------------------------------------------------------------------------------


async def test_an_unknown_table_is_refused_every_time():
    async with served(ra.Table("replay", max_size=10)) as (client, _):
        samples = client.sample("repaly")
        for _ in range(2):
            with pytest.raises(TableNotFound, match="this server has: 'replay'"):
                await anext(samples)
        for _ in range(2):
            with pytest.raises(TableNotFound):
                await client.sample_one("repaly")


async def test_unknown_columns_are_refused_with_those_there_are():
    async with served(ra.Table("t", max_size=10), items=1) as (client, _):
        with pytest.raises(InvalidArgument, match="'x'"):
            await client.sample_one("t", columns=["y"])


async def test_a_closed_table_ends_the_wait():
    table = ra.Table("t", max_size=10)
    async with ra.Server([table], port=None) as server, server.client() as client:
        waiting = asyncio.create_task(anext(client.sample("t")))
        await until(lambda: bool(table.info.waiters))
        await server.close()
        with pytest.raises(TableClosed):
            await waiting


async def test_priorities_the_sampler_does_not_take_are_refused_before_they_are_sent():
    table = ra.Table("t", max_size=10, sampler=ra.selectors.Prioritized(1.0))
    async with served(table, items=2) as (client, _):
        async with client.sample_batches("t", 1) as batches:
            batch = await anext(batches)
            with pytest.raises(InvalidArgument, match="-1"):
                await batch.update_priorities([-1.0])
            await anext(batches)
        single = await client.sample_batch("t", 1)
        with pytest.raises(InvalidArgument, match="-1"):
            await single.update_priorities([-1.0])
    async with served(ra.Table("t", max_size=10), items=2) as (client, _):
        await (await client.sample_batch("t", 1)).update_priorities([-1.0])


async def test_items_that_do_not_go_together_are_handed_back():
    table = ra.Table.queue("q", 10)
    async with served(table) as (client, _):
        await client.insert({"x": np.arange(2)}, {"q": 1.0})
        await client.insert({"x": np.arange(3)}, {"q": 1.0})
        async with client.sample_batches("q", 2) as batches:
            for _ in range(2):
                with pytest.raises(InvalidArgument, match="ragged"):
                    await anext(batches)
        assert table.info.current_size == 2
        with pytest.raises(InvalidArgument, match="ragged"):
            await client.sample_batch("q", 2)
        assert table.info.current_size == 2
        padded = await client.sample_batch("q", 2, ragged="pad")
        assert padded.data["x"].tolist() == [[0, 1, 0], [0, 1, 2]]


# -- mistakes ---------------------------------------------------------------------------------------------------------


async def test_two_tasks_cannot_wait_for_one_iterator():
    async with served(ra.Table("t", max_size=10)) as (client, _):
        samples = client.sample("t")
        waiting = asyncio.create_task(anext(samples))
        await settle()
        with pytest.raises(InvalidArgument, match="another task"):
            await anext(samples)
        await client.insert({"x": 1}, {"t": 1.0})
        assert (await waiting).data["x"] == 1


async def test_an_iterator_that_was_left_is_closed():
    async with served(ra.Table("t", max_size=10), items=1) as (client, _):
        samples = client.sample("t")
        await samples.aclose()
        with pytest.raises(Closed, match="closed"):
            await anext(samples)
        async with client.sample("t") as samples:
            waiting = asyncio.create_task(anext(samples))
            await waiting
        with pytest.raises(Closed):
            await anext(samples)


async def test_closing_an_iterator_ends_the_wait_of_another_task():
    async with served(ra.Table("t", max_size=10)) as (client, _):
        samples = client.sample("t")
        waiting = asyncio.create_task(anext(samples))
        await settle()
        await samples.aclose()
        with pytest.raises(Closed):
            await waiting


async def test_the_wrong_for_with_and_await_say_what_to_write():
    async with served(ra.Table("t", max_size=10)) as (client, _):
        for iterator, instead in ((client.sample("t"), "sample_one"), (client.sample_batches("t", 2), "sample_batch")):
            with pytest.raises(TypeError, match="async for"):
                for _ in iterator:
                    pass
            with pytest.raises(TypeError, match=instead):
                await iterator
            with pytest.raises(TypeError, match="async with"), iterator:
                pass


# -- notices ----------------------------------------------------------------------------------------------------------


async def test_what_a_server_waits_for_is_logged_in_the_clients_words(caplog):
    async with played() as (server, client):
        waiting = asyncio.create_task(anext(client.sample("t")))
        stream = await next_stream(server)
        with caplog.at_level(logging.WARNING):
            stream.answer(SampleResponse(waiting="table 't' needs 3 more inserts; has waited 10 s"))
            await settle()
        assert "sampling from 't' at played:1: table 't' needs 3 more inserts; has waited 10 s" in caplog.text
        waiting.cancel()


async def test_a_server_that_says_nothing_is_reported(monkeypatch, caplog):
    async with played() as (_, client):
        waiting = asyncio.create_task(anext(client.sample("t")))
        with monkeypatch.context() as patch:
            clock = Clock(patch)
            await settle()
            for _ in range(40):
                await clock.advance(1)
        texts = [record.getMessage() for record in caplog.records]
        assert len(texts) == 2
        assert "nothing heard from played:1 for 11 s" in texts[0]
        waiting.cancel()


async def test_updating_more_than_fits_into_the_queue_ends_with_patience():
    async with played() as (server, client):
        batches = client.sample_batches("t", MAX_KEYS, prefetch=0)
        waiting = asyncio.create_task(anext(batches))
        stream = await next_stream(server)
        stream.deliver(1, size=MAX_KEYS)
        batch = await waiting
        client._parts.connector.connect_timeout = 0.0
        server.down = Unavailable("connection refused")
        stream.answer(Unavailable("the connection broke"))
        await settle()
        await batch.update_priorities(np.ones(MAX_KEYS))
        with pytest.raises(Unavailable, match="connection refused"):
            await batch.update_priorities(np.ones(MAX_KEYS))
        server.down = None


@pytest.mark.parametrize("takes_at_once", [True, False])
async def test_what_a_caller_waits_for_is_asked_in_the_step_that_begins_to_wait(takes_at_once):
    async with played() as (server, client):
        samples = client.sample("t", prefetch=0)
        waiting = asyncio.create_task(anext(samples))
        stream = await next_stream(server)
        stream.deliver(1)
        await waiting
        await settle()
        stream.requests()
        if not takes_at_once:
            stream.try_send = lambda message: False
        wait = anext(samples).__await__()
        next(wait)
        assert [request.credits for request in stream.requests()] == [1] * takes_at_once
        await settle()
        assert [request.credits for request in stream.requests()] == [1] * (not takes_at_once)
        wait.close()
