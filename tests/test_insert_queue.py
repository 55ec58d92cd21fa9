"""The queue of waiting inserts: who is served when, and that a turn of the event loop stays short."""

import asyncio

import pytest
from helpers import Items, keys_of, settle

from reverb_async.core import selectors
from reverb_async.core.changes import ChangeKind
from reverb_async.core.rate_limiters import SampleToInsertRatio
from reverb_async.errors import RateLimiterTimeout, TableClosed
from reverb_async.table import RowInsertion, Table
from reverb_async.table.insert_queue import MAX_SERVED, InsertQueue
from reverb_async.waiting import Deadline


@pytest.fixture
def items() -> Items:
    return Items()


class Patient:
    """Rows that are served in so many steps."""

    def __init__(self, queue: InsertQueue, *counts: int) -> None:
        self.queue, self.counts, self.served = queue, list(counts), 0
        queue.join(self)

    def serve(self) -> int:
        if not self.counts:
            return 0
        self.served += 1
        count = self.counts.pop(0)
        if not self.counts:
            self.queue.leave(self)
        return count


async def one_turn() -> None:
    await asyncio.sleep(0)


async def test_a_change_serves_all_whom_it_admits_in_one_turn(items: Items) -> None:
    table = Table.queue("q", 10)
    await items.insert(table, range(10))
    waiting = [asyncio.create_task(items.insert(table, [10 + at])) for at in range(20)]
    await settle()
    draw = await table.sample(10)
    table.acknowledge(draw)
    assert table.state.size == 0  # not within the step that sampled
    await one_turn()
    assert keys_of(table.state) == list(range(10, 20))
    assert len(table.inserters) == 10
    await settle()
    assert [waiter.done() for waiter in waiting] == [True] * 10 + [False] * 10
    table.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results[10:]] == [TableClosed] * 10


async def test_nobody_is_served_in_the_step_that_wakes_and_waking_twice_serves_once() -> None:
    queue = InsertQueue()
    first, second = Patient(queue, 1), Patient(queue)
    queue.wake()
    queue.wake()
    assert first.served == 0
    await one_turn()
    assert first.served == 1
    assert queue.head is second
    assert len(queue) == 1


@pytest.mark.parametrize(("rows", "served"), [(1, MAX_SERVED), (1000, 5)])
async def test_a_turn_serves_a_bounded_number_and_goes_on_in_the_next(rows: int, served: int) -> None:
    queue = InsertQueue()
    waiting = [Patient(queue, rows) for _ in range(200)]
    queue.wake()
    await one_turn()
    assert sum(each.served for each in waiting) == served
    await settle()
    await settle()
    await settle()
    assert all(each.served == 1 for each in waiting)
    assert len(queue) == 0


async def test_a_block_longer_than_a_step_may_be_goes_on_by_itself(items: Items) -> None:
    table = Table("random remover", max_size=10_000, remover=selectors.Uniform())
    admitted: list[int] = []
    await items.insert(table, range(2500), admitted=admitted.append)
    assert admitted == [1024, 1024, 452]


async def test_a_row_for_two_tables_is_served_when_it_is_first_in_both(items: Items) -> None:
    a, b = Table.queue("a", 1), Table.queue("b", 1)
    await items.insert([a, b], [0])
    only_b = asyncio.create_task(items.insert(b, [1]))
    await settle()
    both = asyncio.create_task(items.insert([b, a], [2]))
    await settle()
    a.acknowledge(await a.sample(1))
    await settle()
    assert not both.done()  # `a` has room, but somebody stands before it in `b`
    b.acknowledge(await b.sample(1))
    await settle()
    assert only_b.done()
    assert not both.done()
    b.acknowledge(await b.sample(1))
    await settle()
    assert both.done()
    assert keys_of(a.state) == keys_of(b.state) == [2]


async def test_rows_that_gave_up_are_not_served_in_the_same_turn(items: Items) -> None:
    table, admitted = Table.queue("q", 1), []
    await items.insert(table, [0])
    insertion = RowInsertion([table], [items.block([1])], admitted.append)
    assert not insertion.try_now()
    deadline = Deadline(None)
    waiting = asyncio.create_task(insertion.wait(deadline))
    await settle()
    deadline.expire()
    with pytest.raises(RateLimiterTimeout):
        await waiting
    assert len(table.inserters) == 0  # before anybody calls `leave`
    table.acknowledge(await table.sample(1))
    await settle()
    assert admitted == []


async def test_rows_that_came_in_just_before_the_time_was_up_are_in(items: Items) -> None:
    table, admitted = Table.queue("q", 1), []
    await items.insert(table, [0])
    insertion = RowInsertion([table], [items.block([1])], admitted.append)
    assert not insertion.try_now()
    deadline = Deadline(None)
    waiting = asyncio.create_task(insertion.wait(deadline))
    await settle()
    deadline.expire()
    table.acknowledge(await table.sample(1))
    assert insertion.serve() == 1  # as the queue does when it comes before the timer
    await waiting
    assert admitted == [1]


async def test_waiting_rows_of_a_ratio_enter_as_far_as_a_sample_admits(items: Items) -> None:
    table = Table("t", max_size=100, rate_limiter=SampleToInsertRatio(2.0, min_size_to_sample=1, error_buffer=4.0))
    waiting = asyncio.create_task(items.insert(table, range(20)))
    await settle()
    before = table.state.size
    table.acknowledge(await table.sample(4))
    await settle()
    assert table.state.size == before + 2
    waiting.cancel()
    await asyncio.wait([waiting])
    assert len(table.inserters) == 0


async def test_alike_rows_of_many_senders_enter_together_and_each_is_told_its_own(items: Items) -> None:
    table = Table.queue("q", 10)
    await items.insert(table, range(10))
    told: list[tuple[str, int]] = []
    blocks: list[tuple[str, list[int]]] = [("a", [10, 11, 12]), ("b", [13]), ("c", [14, 15]), ("d", [16, 17, 18, 19])]
    waiting = [
        asyncio.create_task(items.insert(table, keys, admitted=lambda count, name=name: told.append((name, count))))
        for name, keys in blocks
    ]
    steps: list[list[int]] = []
    table.state.listeners.append(
        lambda change: steps.append(change.keys.tolist()) if change.kind is ChangeKind.INSERT else None
    )
    await settle()
    table.acknowledge(await table.sample(8))
    await settle()
    assert steps == [[10, 11, 12, 13, 14, 15, 16, 17]]
    assert told == [("a", 3), ("b", 1), ("c", 2), ("d", 2)]
    assert [waiter.done() for waiter in waiting] == [True, True, True, False]
    table.acknowledge(await table.sample(5))
    await settle()
    assert told[4:] == [("d", 2)]
    draw = await table.sample(7)
    assert draw.keys.tolist() == [13, 14, 15, 16, 17, 18, 19]
    await asyncio.gather(*waiting)


async def test_rows_for_other_tables_too_end_what_enters_together(items: Items) -> None:
    a, b = Table.queue("a", 4), Table.queue("b", 4)
    await items.insert(a, range(4))
    told: list[str] = []
    waiting = [
        asyncio.create_task(items.insert(tables, [key], admitted=lambda count, key=key: told.append(str(key))))
        for key, tables in ((10, a), (11, [b, a]), (12, a))
    ]
    await settle()
    a.acknowledge(await a.sample(4))
    await asyncio.gather(*waiting)
    assert told == ["10", "11", "12"]
    assert keys_of(a.state) == [10, 11, 12]
    assert keys_of(b.state) == [11]
