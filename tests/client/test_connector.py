import asyncio
import itertools
import logging
import random
import types

import numpy as np
import pytest
from helpers import Clock, settle
from sampling_rig import PlayedServer, describe_table

from reverb_async.client.connector import Connector
from reverb_async.client.retry import LONGEST_PAUSE_S, time_limit
from reverb_async.errors import Closed, DeadlineExceeded, InvalidArgument, TableClosed, TableNotFound, Unavailable
from reverb_async.protocol.hello import KEYS_PER_BLOCK
from reverb_async.testing import until


async def test_an_unreachable_server_is_asked_until_it_answers():
    server = PlayedServer()
    connector = server.connector()
    server.down = Unavailable("connection refused")
    opening = asyncio.create_task(connector.open("insert"))
    await until(lambda: server.attempts >= 3)
    assert connector.failure is server.down
    server.down = None
    assert await opening is server.streams[0]
    assert connector.failure is None
    await connector.close()


async def test_pauses_grow_from_50_ms_to_2_s_and_are_jittered(monkeypatch):
    server, pauses = PlayedServer(), []
    server.down = Unavailable("no")

    async def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 10:
            server.down = None

    monkeypatch.setattr("reverb_async.client.retry.asyncio", types.SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    await server.connector().open("sample")
    for number, pause in enumerate(pauses):
        longest = min(0.05 * 2**number, LONGEST_PAUSE_S)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == len(pauses)


async def test_patience_ends_with_the_address_the_cause_and_the_tries(monkeypatch):
    clock = Clock(monkeypatch)
    server = PlayedServer()
    server.down = Unavailable("connection refused")
    opening = asyncio.create_task(server.connector(connect_timeout=3.0).open("insert"))
    for _ in range(100):
        await clock.advance(0.1)
    with pytest.raises(Unavailable) as caught:
        await opening
    for part in ("played:1", "connection refused", f"{server.attempts} tries", "3."):
        assert part in str(caught.value)
    assert 4 <= server.attempts <= 12


async def test_without_patience_there_is_one_try():
    server = PlayedServer()
    server.down = Unavailable("connection refused")
    with pytest.raises(Unavailable, match="1 try"):
        await server.connector(connect_timeout=0).open("insert")
    assert server.attempts == 1


async def test_a_closed_table_is_not_asked_again():
    server = PlayedServer()
    server.down = TableClosed("the server is stopping")
    with pytest.raises(TableClosed):
        await server.connector().open("insert")
    assert server.attempts == 1


async def test_hello_is_said_once_however_many_streams_open_at_once():
    server = PlayedServer()
    connector = server.connector()
    await asyncio.gather(*(connector.open("insert") for _ in range(20)), connector.tables())
    assert server.hellos == 1
    connector.lost(Unavailable("the connection broke"), asyncio.get_running_loop().time())
    await connector.open("insert")
    assert server.hellos == 2


async def test_a_server_that_came_back_as_another_process_is_noticed(caplog):
    server = PlayedServer()
    connector = server.connector()
    before = await connector.next_keys(5)
    await connector.tables()
    server.epoch = b"2" * 16
    connector.lost(Unavailable("the connection broke"), asyncio.get_running_loop().time())
    with caplog.at_level(logging.WARNING):
        await connector.open("insert")
    assert "came back as a new process" in caplog.text
    assert "played:1" in caplog.text
    await connector.tables()
    assert server.descriptions == 2
    after = await connector.next_keys(5)
    assert after[0] - before[0] >= KEYS_PER_BLOCK  # The old block may be somebody else's by now.


async def test_keys_are_consecutive_and_never_repeat():
    server = PlayedServer()
    connector = server.connector()
    assert connector.try_next_keys(1) is None
    rng, seen = random.Random(0), []
    for _ in range(60):
        n = rng.choice([1, 7, 300, 200_000])
        keys = await connector.next_keys(n)
        assert keys.dtype == np.uint64
        assert len(keys) == n
        assert (np.diff(keys) == 1).all()
        seen.append(keys)
        again = connector.try_next_keys(2)
        assert again is None or len(again) == 2
        if again is not None:
            seen.append(again)
    ranges = sorted((int(keys[0]), int(keys[-1])) for keys in seen)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(ranges))
    assert server.hellos > 2
    await connector.close()


async def test_the_next_block_is_there_before_the_last_one_is_used_up():
    server = PlayedServer()
    connector = server.connector()
    await connector.next_keys(KEYS_PER_BLOCK - 10)
    assert connector.try_next_keys(1) is not None
    await settle()
    assert server.hellos == 2
    assert connector.try_next_keys(100) is not None
    await connector.close()


async def test_more_keys_than_a_block_are_distinct():
    connector = PlayedServer().connector()
    keys = await connector.next_keys(2 * KEYS_PER_BLOCK + 5)
    assert len(keys) == 2 * KEYS_PER_BLOCK + 5
    assert (keys[1:] > keys[:-1]).all()
    await connector.close()


async def test_a_full_block_can_be_had_when_the_current_one_is_begun():
    connector = PlayedServer().connector()
    await connector.next_keys(1)
    keys = await connector.next_keys(KEYS_PER_BLOCK)
    assert (np.diff(keys) == 1).all()
    await connector.close()


async def test_no_keys_in_the_background_is_no_error_yet():
    server = PlayedServer()
    connector = server.connector(connect_timeout=0)
    await connector.next_keys(KEYS_PER_BLOCK - 10)
    server.down = Unavailable("gone")
    assert connector.try_next_keys(5) is not None
    await settle()
    assert connector.try_next_keys(6) is None
    with pytest.raises(Unavailable, match="gone"):
        await connector.next_keys(6)
    await connector.close()


async def test_tables_are_described_once_until_a_refresh():
    server = PlayedServer(describe_table("a"), describe_table("b"))
    connector = server.connector()
    first = await asyncio.gather(*(connector.tables() for _ in range(5)))
    assert server.descriptions == 1
    assert all(set(tables) == {"a", "b"} for tables in first)
    await asyncio.gather(*(connector.tables(refresh=True) for _ in range(5)))
    assert server.descriptions == 2


async def test_an_unknown_table_is_looked_up_afresh_before_it_is_refused():
    server = PlayedServer(describe_table("a"))
    connector = server.connector()
    await connector.tables()
    with pytest.raises(TableNotFound) as caught:
        await connector.check_table("b")
    assert caught.value.tables == ["a"]
    assert server.descriptions == 2
    server.infos.append(describe_table("b"))
    assert (await connector.check_table("b")).name == "b"


async def test_tasks_end_with_the_client():
    server = PlayedServer()
    connector = server.connector()
    baseline = asyncio.all_tasks()
    connector.spawn(asyncio.sleep(1000), "sleeping")
    connector.spawn(asyncio.sleep(1000), "sleeping, too")
    await settle()
    await connector.close()
    await connector.close()
    assert asyncio.all_tasks() == baseline
    assert server.closed
    with pytest.raises(Closed, match="played:1"):
        connector.spawn(asyncio.sleep(0), "late")
    for late in (connector.open("insert"), connector.next_keys(1), connector.tables()):
        with pytest.raises(Closed):
            await late


async def test_a_task_that_fails_is_logged(caplog):
    connector = PlayedServer().connector()

    async def fail():
        raise AssertionError("a bug")

    connector.spawn(fail(), "failing")
    await settle()
    assert "failing" in caplog.text
    assert "a bug" in caplog.text


def test_a_client_belongs_to_one_event_loop():
    connector = PlayedServer().connector()
    asyncio.run(connector.open("insert"))
    with pytest.raises(InvalidArgument, match="another event loop"):
        asyncio.run(connector.open("insert"))


async def test_a_long_wait_is_reported_with_its_cause(monkeypatch, caplog):
    clock = Clock(monkeypatch)
    server = PlayedServer()
    server.down = Unavailable("connection refused")
    opening = asyncio.create_task(server.connector().open("insert"))
    await settle()
    for _ in range(15):
        await clock.advance(1)
    opening.cancel()
    reports = [record.getMessage() for record in caplog.records]
    assert len(reports) == 2
    assert reports[0] == "connection refused; trying for up to 60 s (connect_timeout)"
    for part in ("opening the insert stream", "played:1", "connection refused", "has waited 10 s"):
        assert part in reports[1]


async def test_refused_connections_are_reported_once_until_the_server_answers(monkeypatch, caplog):
    clock = Clock(monkeypatch)
    server = PlayedServer()
    connector = server.connector()
    for _ in range(2):
        server.down = Unavailable("cannot reach played:1: [Errno 111]")
        server.down.__cause__ = ConnectionRefusedError(111, "refused")
        calls = [asyncio.create_task(connector.open(kind)) for kind in ("insert", "sample")]
        for _ in range(5):
            await clock.advance(1)
        server.down = None
        for _ in range(5):
            await clock.advance(1)
        await asyncio.gather(*calls)
    report = "played:1 refuses connections; trying for up to 60 s (connect_timeout)"
    assert [record.getMessage() for record in caplog.records] == [report] * 2
    await connector.close()


async def test_a_call_may_be_cancelled_anywhere():
    baseline = asyncio.all_tasks()
    for turns in range(40):
        server = PlayedServer()
        server.down = Unavailable("no") if turns % 2 else None
        connector = server.connector()
        calls = [
            asyncio.create_task(coro)
            for coro in (
                connector.open("insert"),
                connector.next_keys(3),
                connector.tables(),
                connector.check_table("t"),
            )
        ]
        await settle() if turns % 3 == 0 else await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        server.down = None
        assert len(await connector.next_keys(3)) == 3
        assert await connector.tables()
        await connector.close()
    assert asyncio.all_tasks() == baseline


async def test_a_time_limit_says_who_did_not_answer(monkeypatch):
    clock = Clock(monkeypatch)
    connector = PlayedServer().connector()

    async def ask(timeout: float) -> None:
        async with time_limit(timeout, connector, "asking"):
            await asyncio.sleep(1000)

    for timeout, allowed in ((0.5, 0.5), (0, 2.0)):
        asking = asyncio.create_task(ask(timeout))
        await settle()
        await clock.advance(allowed - 0.1)
        assert not asking.done()
        await clock.advance(0.2)
        with pytest.raises(DeadlineExceeded, match="asking: played:1 did not answer within"):
            await asking


async def test_a_time_limit_lets_other_timeouts_pass():
    connector = Connector(PlayedServer())
    with pytest.raises(DeadlineExceeded, match="of my own"):
        async with time_limit(5, connector, "asking"):
            raise DeadlineExceeded("of my own")
