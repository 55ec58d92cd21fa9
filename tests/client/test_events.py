"""What a client tells of itself."""

from __future__ import annotations

import asyncio
import gc

import pytest
from helpers import settle
from sampling_rig import PlayedServer

import reverb_async as ra
from reverb_async.client.event_hub import EventHub
from reverb_async.client.events import Blocked, Connected, Disconnected, Reconnected
from reverb_async.errors import Unavailable


def blocked(number: int) -> Blocked:
    return Blocked("x", str(number))


async def test_every_listener_hears_what_happens_after_it_began_to_listen() -> None:
    hub = EventHub()
    first = hub.listen(10)
    hub.emit(blocked(1))
    second = hub.listen(10)
    hub.emit(blocked(2))
    hub.close()
    assert [event async for event in first] == [blocked(1), blocked(2)]
    assert [event async for event in second] == [blocked(2)]
    assert [event async for event in hub.listen(10)] == []


async def test_nobody_is_held_up_the_oldest_events_are_dropped_and_counted() -> None:
    hub = EventHub()
    events = hub.listen(3)
    for number in range(10):
        hub.emit(blocked(number))
    assert events.dropped == 7
    assert [await anext(events) for _ in range(3)] == [blocked(7), blocked(8), blocked(9)]


async def test_cancelling_a_wait_loses_nothing_and_several_may_wait() -> None:
    hub = EventHub()
    events = hub.listen(10)
    given_up, first, second = (asyncio.create_task(anext(events)) for _ in range(3))
    await settle()
    given_up.cancel()
    await settle()
    hub.emit(blocked(1))
    hub.emit(blocked(2))
    assert await asyncio.gather(first, second) == [blocked(1), blocked(2)]
    waiting = asyncio.create_task(anext(events))
    await settle()
    hub.close()
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_an_iterator_that_nobody_has_costs_nothing() -> None:
    hub = EventHub()
    events = hub.listen(10)
    del events
    gc.collect()
    assert not hub._listening


async def test_several_streams_that_break_together_are_one_loss() -> None:
    server = PlayedServer()
    connector = server.connector()
    events = connector.events.listen(10)
    await asyncio.gather(*(connector.open("insert") for _ in range(3)))
    opened = asyncio.get_running_loop().time()
    for _ in range(2):
        connector.lost(Unavailable("cut"), opened)
    await connector.open("insert")
    connector.lost(Unavailable("cut"), opened)  # found out late
    server.epoch = b"2" * 16
    await asyncio.sleep(0.01)
    connector.lost(Unavailable("killed"), asyncio.get_running_loop().time())
    await connector.open("insert")
    await connector.next_keys(1 << 20)  # says hello, too
    await connector.close()
    got = [event async for event in events]
    assert got[:2] == [Connected("played:1"), Disconnected("played:1", "cut")]
    again, lost, other = got[2:]
    assert isinstance(again, Reconnected)
    assert (again.epoch_changed, lost) == (False, Disconnected("played:1", "killed"))
    assert isinstance(other, Reconnected)
    assert other.epoch_changed
    assert 0 <= other.downtime_s < 1


async def test_a_call_that_fails_behind_the_hello_is_a_loss() -> None:
    server = PlayedServer()
    connector = server.connector()
    events = connector.events.listen(10)
    failures = [Unavailable("cut")]

    async def call() -> None:
        if failures:
            server.epoch = b"2" * 16
            raise failures.pop()

    await connector.call(call)
    await connector.close()
    told = [event async for event in events]
    assert told[:2] == [Connected("played:1"), Disconnected("played:1", "cut")]
    assert isinstance(told[2], Reconnected)
    assert told[2].epoch_changed


async def test_a_closed_client_tells_nothing_and_a_capacity_below_1_is_refused() -> None:
    client = ra.Client("127.0.0.1:1")
    with pytest.raises(ra.InvalidArgument, match="capacity must be an int >= 1"):
        client.events(capacity=0)
    events = client.events()
    await client.close()
    assert [event async for event in events] == []
    with pytest.raises(ra.Closed):
        client.events()
