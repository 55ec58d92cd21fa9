import asyncio
import pickle
import random
import time

import numpy as np
import pytest
from helpers import Clock, settle
from sampling_rig import PlayedServer, tasks_beside

import reverb_async as ra
from reverb_async.core.draw import MutateResult
from reverb_async.errors import (
    CheckpointError,
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    TableClosed,
    TableNotFound,
    Unavailable,
)

NOBODY = "127.0.0.1:1"


@pytest.fixture
async def client():
    tables = [ra.Table("replay", max_size=100), ra.Table.queue("queue", 100)]
    async with ra.Server(tables, port=None) as server, server.client() as client:
        yield client


# -- making one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "transport"),
    [
        ("localhost:8000", "tcp"),
        ("10.0.0.7:65535", "tcp"),
        ("[::1]:8000", "tcp"),
        ("unix:///run/replay.sock", "unix"),
    ],
)
def test_an_address_says_how_the_server_is_reached(address, transport):
    client = ra.Client(address)
    assert (client.address, client.transport) == (address, transport)
    assert address in repr(client)


@pytest.mark.parametrize(
    ("address", "way_out"),
    [
        ("reverb://localhost", "host:port"),
        ("http://localhost:8000", "'localhost:8000'"),
        ("localhost", "host:port"),
        (":8000", "host:port"),
        ("localhost:", "host:port"),
        ("localhost:http", "host:port"),
        ("localhost:0", "port 0: has the server been started?"),
        ("localhost:70000", "host:port"),
        ("::1:8000", "brackets"),
        ("unix:run.sock", "unix:///absolute/path"),
        ("unix://run.sock", "unix:///absolute/path"),
        ("unix:///", "unix:///absolute/path"),
        ("", "host:port"),
        (8000, "host:port"),
    ],
)
def test_a_wrong_address_is_refused_with_the_way_out(address, way_out):
    with pytest.raises(InvalidArgument) as caught:
        ra.Client(address)
    assert way_out in str(caught.value)


@pytest.mark.parametrize("options", [{"connect_timeout": -1}, {"connect_timeout": "60"}, {"connect_timeout": True}])
def test_a_wrong_connect_timeout_is_refused(options):
    with pytest.raises(InvalidArgument, match="connect_timeout is seconds"):
        ra.Client(NOBODY, **options)


def test_shared_memory_is_auto_or_off():
    for fine in ("auto", False):
        ra.Client(NOBODY, shared_memory=fine)
    for wrong in (True, "yes", None):
        with pytest.raises(InvalidArgument, match="'auto', which uses it where it can be, or False"):
            ra.Client(NOBODY, shared_memory=wrong)


async def test_a_pickled_client_is_equal_and_works():
    async with (
        ra.Server([ra.Table("t", max_size=10)]) as server,
        ra.Client(server.address, connect_timeout=7) as client,
        pickle.loads(pickle.dumps(client)) as other,
    ):
        assert other == client
        assert hash(other) == hash(client)
        assert other != ra.Client(server.address)
        await client.insert({"x": 1}, {"t": 1.0})
        assert (await other.sample_one("t")).data["x"] == 1


async def test_a_client_in_process_cannot_be_pickled(client):
    with pytest.raises(TypeError, match=r"Client\(server.address\)"):
        pickle.dumps(client)
    assert client != ra.Client(NOBODY)
    assert client == client
    assert client.transport == "in-process"


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.sample_batches("replay", 0), "batch_size .* got 0"),
        (lambda c: c.sample_batches("replay", 2.5), "batch_size .* got 2.5"),
        (lambda c: c.sample_batches("replay", True), "batch_size"),
        (lambda c: c.sample_batches("replay", 1 << 20), "65536"),
        (lambda c: c.sample_batches("replay", 2, num_batches=0), "num_batches .* got 0"),
        (lambda c: c.sample_batches("replay", 2, prefetch=-1), "prefetch .* got -1"),
        (lambda c: c.sample_batches("replay", 2, prefetch=10_000), "1024"),
        (lambda c: c.sample_batches("replay", 2, timeout=-1), "timeout"),
        (lambda c: c.sample_batches("replay", 2, timeout=float("nan")), "timeout"),
        (lambda c: c.sample_batches("replay", 2, ragged="truncate"), "'pad'"),
        (lambda c: c.sample_batches("replay", 2, pad_to=3), "ragged='pad'"),
        (lambda c: c.sample_batches("replay", 2, pad_value=-1), "ragged='pad'"),
        (lambda c: c.sample_batches("replay", 2, columns=3), "columns"),
        (lambda c: c.sample("replay", num_samples=0), "num_samples .* got 0"),
        (lambda c: c.sample("replay", num_samples=-1), "num_samples .* got -1"),
        (lambda c: c.sample("replay", prefetch=None), "prefetch"),
        (lambda c: c.sample(""), "table"),
        (lambda c: c.sample(ra.Table("replay", max_size=1)), "named by a str"),
        (lambda c: c.trajectory_writer(0), "num_keep_alive_refs"),
    ],
)
async def test_wrong_arguments_are_named_at_once(client, call, message):
    with pytest.raises(InvalidArgument, match=message):
        call(client)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.insert({"x": 1}, {}), r"priorities=\{'replay': 1.0\}"),
        (lambda c: c.insert({"x": 1}, "replay"), r"priorities=\{'replay': 1.0\}"),
        (lambda c: c.insert({"x": 1}, 1.0), r"priorities=\{'replay': 1.0\}"),
        (lambda c: c.insert_batch({"x": [1]}, ["replay"]), r"priorities=\{'replay': 1.0\}"),
        (lambda c: c.insert({"x": 1}, {"replay": 1.0}, timeout=-1), "timeout"),
        (lambda c: c.sample_batch("replay", 0), "batch_size"),
        (lambda c: c.sample_one("replay", timeout="1"), "timeout"),
        (lambda c: c.sample_one("replay", timeout=[1]), r"timeout is seconds >= 0.* got \[1\]"),
        (lambda c: c.sample_one("replay", timeout=True), "timeout is seconds >= 0.* got True"),
        (lambda c: c.mutate_priorities("replay", {1.5: 1.0}), "integers"),
        (lambda c: c.mutate_priorities("replay", {1: float("nan")}), "finite"),
        (lambda c: c.mutate_priorities("replay", deletes=[-1]), "got -1"),
        (lambda c: c.mutate_priorities(3, {1: 1.0}), "named by a str"),
        (lambda c: c.mutate_priorities("replay", {1: 1.0}, timeout=-2), "timeout"),
        (lambda c: c.reset("replay", timeout=-2), "timeout"),
        (lambda c: c.reset(None), "named by a str"),
        (lambda c: c.server_info(timeout=-2), "timeout"),
        (lambda c: c.checkpoint(timeout=-2), "timeout"),
    ],
)
async def test_wrong_arguments_are_named_when_awaited(client, call, message):
    with pytest.raises(InvalidArgument, match=message):
        await call(client)


async def test_unknown_tables_are_refused_with_those_there_are(client):
    for call in (client.reset("Replay"), client.mutate_priorities("Replay"), client.sample_batch("Replay", 3)):
        with pytest.raises(TableNotFound, match="this server has: 'queue', 'replay'"):
            await call


# -- the calls --------------------------------------------------------------------------------------------------------


async def test_single_draws_prefetch_nothing(client):
    await client.insert_batch({"x": np.arange(10)}, {"queue": 1.0})
    assert (await client.sample_one("queue")).data["x"] == 0
    assert (await client.sample_batch("queue", 3)).data["x"].tolist() == [1, 2, 3]
    await settle()
    assert (await client.server_info())["queue"].current_size == 6


async def test_single_draws_share_their_streams(client):
    await client.insert({"x": 1}, {"replay": 1.0})
    await client.sample_one("replay")
    baseline = asyncio.all_tasks()
    for _ in range(20):
        await client.sample_one("replay")
    assert tasks_beside(baseline) == []
    await asyncio.gather(*(client.sample_one("replay") for _ in range(40)))
    await settle()
    assert len([name for name in tasks_beside(baseline) if name.endswith("sending")]) <= 16


async def test_mutate_priorities_counts_what_it_did(client):
    keys = (await client.insert_batch({"x": np.arange(4)}, {"replay": 1.0}))["replay"]
    assert await client.mutate_priorities("replay") == MutateResult(0, 0, 0)
    assert await client.mutate_priorities("replay", (keys[:2], [2.0, 3.0]), keys[3:]) == MutateResult(2, 1, 0)
    assert await client.mutate_priorities("replay", {int(keys[0]): 5.0, 1: 1.0}, {2}) == MutateResult(1, 0, 2)
    await client.reset("replay")
    assert (await client.server_info())["replay"].current_size == 0


async def test_server_info_is_as_of_now(client):
    for size in range(1, 4):
        await client.insert({"x": 1}, {"replay": 1.0})
        info = await client.server_info()
        assert set(info) == {"replay", "queue"}
        assert info["replay"].current_size == size


async def test_a_server_without_a_checkpointer_says_so(client):
    with pytest.raises(CheckpointError):
        await client.checkpoint()


async def test_checkpoint_returns_the_path():
    async with ra.Client._over(PlayedServer()) as client:
        assert await client.checkpoint() == "/checkpoints/1"


# -- nobody there -----------------------------------------------------------------------------------------------------


async def test_a_timeout_at_a_dead_address_is_kept():
    async with ra.Client(NOBODY) as client:
        calls = (
            lambda: client.server_info(timeout=0.3),
            lambda: client.reset("t", timeout=0.3),
            lambda: client.mutate_priorities("t", {1: 1.0}, timeout=0.3),
            lambda: client.sample_one("t", timeout=0.3),
            lambda: client.sample_batch("t", 2, timeout=0.3),
            lambda: client.checkpoint(timeout=0.3),
        )
        for call in calls:
            before = time.monotonic()
            with pytest.raises(DeadlineExceeded, match=r"127.0.0.1:1 did not answer within 0.3 s: .*127.0.0.1"):
                await call()
            assert 0.25 < time.monotonic() - before < 2.0


async def test_a_dead_address_is_unavailable_when_patience_ends():
    async with ra.Client(NOBODY, connect_timeout=0.2) as client:
        calls = (
            lambda: client.server_info(),
            lambda: client.mutate_priorities("t", {1: 1.0}),
            lambda: client.sample_one("t"),
            lambda: client.insert({"x": 1}, {"t": 1.0}),
        )
        for call in calls:
            with pytest.raises(Unavailable, match=r"127.0.0.1:1 does not answer, \d tries in 0.\d s"):
                await call()


async def test_a_timeout_of_0_does_not_retry_for_long(monkeypatch):
    clock = Clock(monkeypatch)
    server = PlayedServer()
    server.down = Unavailable("connection refused")
    async with ra.Client._over(server) as client:
        asking = asyncio.create_task(client.server_info(timeout=0))
        for _ in range(25):
            await clock.advance(0.1)
        with pytest.raises(DeadlineExceeded, match="connection refused"):
            await asking


# -- coming and going -------------------------------------------------------------------------------------------------


async def test_after_close_every_call_says_closed(client):
    await client.close()
    await client.close()
    for call in (
        lambda: client.insert({"x": 1}, {"replay": 1.0}),
        lambda: client.insert_batch({"x": [1]}, {"replay": 1.0}),
        lambda: client.sample_one("replay"),
        lambda: client.sample_batch("replay", 2),
        lambda: client.mutate_priorities("replay", {1: 1.0}),
        lambda: client.reset("replay"),
        lambda: client.server_info(),
        lambda: client.checkpoint(),
        lambda: client.__aenter__(),
    ):
        with pytest.raises(Closed):
            await call()
    for call in (lambda: client.sample("replay"), lambda: client.trajectory_writer(1)):
        with pytest.raises(Closed):
            call()


async def test_after_its_server_closed_every_call_says_so():
    async with ra.Server([ra.Table("replay", max_size=9)], port=None) as server:
        client, left = server.client(), server.client()
        await client.insert({"x": 1}, {"replay": 1.0})
        iterator = client.sample("replay")
        await anext(iterator)
        await left.close()
    for call in (
        lambda: client.insert({"x": 1}, {"replay": 1.0}),
        lambda: client.sample_one("replay"),
        lambda: client.server_info(),
        lambda: client.__aenter__(),
    ):
        with pytest.raises(TableClosed, match="the server of this client was closed"):
            await call()
    with pytest.raises(TableClosed, match="the server of this client was closed"):
        client.trajectory_writer(1)
    with pytest.raises(Closed, match="make another one"):
        await left.server_info()


async def test_a_priority_that_a_sampler_does_not_take_is_refused_with_the_tables_name():
    table = ra.Table("replay", max_size=9, sampler=ra.selectors.Prioritized(1.0))
    async with ra.Server([table]) as server, ra.Client(server.address) as client:
        key = (await client.insert({"x": 1}, {"replay": 1.0}))["replay"]
        with pytest.raises(InvalidArgument, match=r"^table 'replay': .*-2"):
            await client.mutate_priorities("replay", {key: -2.0})
        with pytest.raises(InvalidArgument, match=r"^table 'replay': .*-2"):
            await (await client.sample_batch("replay", 1)).update_priorities([-2.0])
        async with client.sample_batches("replay", 1) as batches:
            batch = await anext(batches)
            with pytest.raises(InvalidArgument, match=r"^table 'replay': .*-2"):
                await batch.update_priorities([-2.0])


async def test_closing_ends_waiting_calls_and_all_tasks():
    async with ra.Server([ra.Table("t", max_size=10)], port=None) as server:
        baseline = asyncio.all_tasks()
        client = server.client()
        await client.mutate_priorities("t", {1: 1.0})
        calls = [
            asyncio.create_task(client.sample_one("t")),
            asyncio.create_task(anext(client.sample_batches("t", 3))),
        ]
        await settle()
        await client.close()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, Closed)
        await settle()
        assert tasks_beside(baseline) == []


async def test_a_client_that_was_never_used_closes():
    client = ra.Client(NOBODY)
    await client.close()
    async with ra.Client(NOBODY):
        pass


async def test_closing_may_be_cancelled_and_goes_on(monkeypatch):
    server = PlayedServer()
    client = ra.Client._over(server)
    waiting = asyncio.create_task(client.sample_one("t"))
    await settle()
    with monkeypatch.context() as patch:
        clock = Clock(patch)
        closing = asyncio.create_task(client.close())
        await settle()
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        await clock.advance(1.1)
        await client.close()
    assert server.closed
    with pytest.raises(Closed):
        await waiting


def test_a_client_used_in_two_loops_says_so():
    client = ra.Client._over(PlayedServer())
    asyncio.run(client.server_info())
    with pytest.raises(InvalidArgument, match="another event loop"):
        asyncio.run(client.server_info())
    asyncio.run(client.close())


def test_with_instead_of_async_with_says_so():
    with pytest.raises(TypeError, match="async with"), ra.Client(NOBODY):
        pass


async def test_calls_may_be_cancelled_anywhere():
    async with ra.Server([ra.Table("t", max_size=1000)], port=None) as server, server.client() as client:
        await client.insert({"x": 1}, {"t": 1.0})
        await client.sample_one("t")
        await client.mutate_priorities("t", {1: 1.0})
        await settle()
        baseline, rng = asyncio.all_tasks(), random.Random(0)
        for _ in range(100):
            calls = [
                asyncio.create_task(call)
                for call in (
                    client.server_info(),
                    client.reset("t") if rng.random() < 0.1 else client.mutate_priorities("t", {1: 1.0}),
                    client.insert({"x": 1}, {"t": 1.0}),
                    client.sample_one("t"),
                )
            ]
            for _ in range(rng.randrange(10)):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        await client.insert({"x": 1}, {"t": 1.0})
        assert (await client.sample_one("t")).data["x"] == 1
        await settle()
        assert [name for name in tasks_beside(baseline) if "leaving" in name] == []
        assert len(tasks_beside(baseline)) <= 8
    assert all(info.waiters == () for info in [server.tables["t"].info])


async def test_many_clients_over_tcp_lose_nothing():
    async with ra.Server([ra.Table("t", max_size=1000)]) as server:

        async def work(number):
            async with ra.Client(server.address) as client:
                for step in range(5):
                    await client.insert({"x": number * 5 + step}, {"t": 1.0})
                assert len(await client.sample_batch("t", 4)) == 4

        await asyncio.gather(*(work(number) for number in range(16)))
        assert server.tables["t"].info.current_size == 80
