"""The whole service against lists: in whatever order it is called, a Fifo table and a queue hold what lists hold."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from reliability_rig import cancel_after_turns, check_counts, until_nothing_waits_or_is_held

import reverb_async as ra
from reverb_async.testing import settle, until

FIFO_SIZE = 8
QUEUE_SIZE = 5

T = TypeVar("T")


@dataclass
class Item:
    """What the model knows of an item. Its key is known once the call that inserts it has returned."""

    number: int
    priority: float
    key: int | None = None
    times: int = 0


class ServiceMachine(RuleBasedStateMachine):
    """``fifo`` evicts its oldest; ``queue`` makes inserts wait. Items that wait stand behind those that are in."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.fifo: list[Item] = []
        self.queue: list[Item] = []
        self.inserting: dict[int, asyncio.Task[dict[str, int]]] = {}
        self.next_number = 0
        self.fifo_inserts = self.fifo_samples = self.queue_samples = 0
        self.overfull = 0

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        async def then_settle() -> T:
            try:
                return await coro
            finally:
                await settle(60)

        return self.runner.run(then_settle())

    @initialize()
    def start(self) -> None:
        async def start() -> None:
            fifo = ra.Table("fifo", max_size=FIFO_SIZE, sampler=ra.selectors.Fifo())
            self.server = ra.Server([fifo, ra.Table.queue("queue", QUEUE_SIZE)], port=None)
            await self.server.start()
            self.client = self.server.client()
            self.writer = self.client.trajectory_writer(3)

        self.run(start())

    # -- the model ----------------------------------------------------------------------------------------------------

    def new(self, priority: float = 1.0) -> Item:
        self.next_number += 1
        return Item(self.next_number, priority)

    def add_to_fifo(self, *items: Item) -> None:
        self.fifo_inserts += len(items)
        self.fifo = [*self.fifo, *items][-FIFO_SIZE:]

    @property
    def queue_size(self) -> int:
        return self.server.tables["queue"].info.current_size

    def admitted(self, count: int) -> int:
        """How many inserts in a row the queue admits: a deleted item still counts as inserted, as in Reverb."""
        info = self.server.tables["queue"].info
        difference = info.rate_limiter_info.insert_stats.completed - info.rate_limiter_info.sample_stats.completed
        room = max(QUEUE_SIZE - difference, int(info.current_size == 0))
        return min(count, max(room, 0))

    @property
    def waiting(self) -> list[Item]:
        return self.queue[self.queue_size :]

    # -- inserting ----------------------------------------------------------------------------------------------------

    @rule(priority=st.floats(0.5, 8), both=st.booleans())
    def insert_into_fifo(self, priority: float, both: bool) -> None:
        item, other = self.new(priority), None
        priorities = {"fifo": priority}
        if both:
            other = Item(item.number, 2.0)
            priorities["queue"] = 2.0
        try:
            keys = self.run(self.client.insert({"x": item.number}, priorities, timeout=0))
        except ra.RateLimiterTimeout:
            assert both
            assert self.waiting or not self.admitted(1)
            return
        item.key = keys["fifo"]
        self.add_to_fifo(item)
        if other is not None:
            other.key = keys["queue"]
            self.queue.append(other)

    @rule(count=st.integers(1, 7))
    def insert_a_batch_into_the_queue_now(self, count: int) -> None:
        items = [self.new() for _ in range(count)]
        room = 0 if self.waiting else self.admitted(count)
        batch = {"x": np.array([item.number for item in items])}
        try:
            keys = self.run(self.client.insert_batch(batch, {"queue": 1.0}, timeout=0))["queue"]
            assert count == room
        except ra.RateLimiterTimeout as error:
            keys = error.keys["queue"]
            assert count > room
        assert len(keys) == room
        for item, key in zip(items, keys.tolist(), strict=False):
            item.key = key
            self.queue.append(item)

    @rule(count=st.integers(1, 12))
    def insert_a_batch_into_fifo(self, count: int) -> None:
        items = [self.new(float(at)) for at in range(count)]
        batch = {"x": np.array([item.number for item in items])}
        keys = self.run(self.client.insert_batch(batch, {"fifo": np.arange(count, dtype=np.float64)}))["fifo"]
        for item, key in zip(items, keys.tolist(), strict=True):
            item.key = key
        self.add_to_fifo(*items)

    @precondition(lambda self: len(self.inserting) < 6)
    @rule()
    def begin_to_insert_into_the_queue(self) -> None:
        item = self.new()

        async def begin() -> None:
            self.inserting[item.number] = asyncio.create_task(
                self.client.insert({"x": item.number}, {"queue": item.priority})
            )

        self.run(begin())
        self.queue.append(item)
        self.look_for_arrivals()

    @rule(table=st.sampled_from(["fifo", "queue"]))
    def write_an_item(self, table: str) -> None:
        """With the writer, whose items wait, too, and cannot be taken back."""
        item = self.new()

        async def write() -> int:
            self.writer.append({"x": np.int64(item.number)})
            return await self.writer.create_item(table, 1.0, trajectory={"x": self.writer.history["x"][-1]})

        item.key = self.run(write())
        if table == "fifo":
            self.run(until(lambda: self.server.tables["fifo"].state.limiter.inserts > self.fifo_inserts))
            self.add_to_fifo(item)
        else:
            self.queue.append(item)

    @precondition(lambda self: any(item.number in self.inserting for item in self.waiting))
    @rule(data=st.data())
    def cancel_an_insert(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from([item for item in self.waiting if item.number in self.inserting]))

        async def cancel() -> None:
            task = self.inserting.pop(item.number)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()

        self.run(cancel())
        self.queue.remove(item)

    def look_for_arrivals(self) -> None:
        """Calls return when their items are in; not before, and not long after."""
        arrived = {item.number: item for item in self.queue[: self.queue_size]}
        for number in list(self.inserting):
            if number in arrived:
                arrived[number].key = self.run(asyncio.wait_for(self.inserting.pop(number), 1))["queue"]
            else:
                assert not self.inserting[number].done()

    # -- sampling -----------------------------------------------------------------------------------------------------

    def took_from_fifo(self, numbers: list[int], count: int) -> None:
        assert numbers == [self.fifo[0].number] * count
        self.fifo[0].times += count
        self.fifo_samples += count

    def took_from_queue(self, numbers: list[int]) -> None:
        assert numbers == [item.number for item in self.queue[: len(numbers)]]
        del self.queue[: len(numbers)]
        for number in numbers:
            if number in self.inserting:  # It waited before, and came and went in one call.
                self.run(asyncio.wait_for(self.inserting.pop(number), 1))
        self.queue_samples += len(numbers)

    @rule(count=st.integers(1, 4))
    def sample_fifo(self, count: int) -> None:
        try:
            batch = self.run(self.client.sample_batch("fifo", count, timeout=0))
        except ra.RateLimiterTimeout:
            assert not self.fifo
            return
        head = self.fifo[0]
        self.took_from_fifo(batch.data["x"].tolist(), count)
        assert (batch.info.priority == head.priority).all()
        assert (batch.info.probability == 1.0).all()
        assert (batch.info.table_size == len(self.fifo)).all()
        assert batch.info.times_sampled.tolist() == list(range(head.times - count + 1, head.times + 1))
        assert head.key is None or (batch.info.key == head.key).all()

    @rule(count=st.integers(1, 4), partial=st.booleans())
    def sample_the_queue(self, count: int, partial: bool) -> None:
        size = self.queue_size
        try:
            batch = self.run(self.client.sample_batch("queue", count, timeout=0, allow_partial=partial))
        except ra.RateLimiterTimeout:
            assert size < (1 if partial else count)
            return
        assert len(batch) == min(count, size)
        self.took_from_queue(batch.data["x"].tolist())

    @rule(take=st.integers(0, 3), size=st.integers(1, 2), prefetch=st.integers(0, 4), bare=st.booleans())
    def iterate_over_the_queue_and_leave(self, take: int, size: int, prefetch: int, bare: bool) -> None:
        outstanding = size * (prefetch + 1)

        async def iterate() -> list[int]:
            numbers: list[int] = []
            batches = self.client.sample_batches("queue", size, prefetch=prefetch, timeout=0)
            try:
                for _ in range(take):
                    numbers += (await anext(batches)).data["x"].tolist()
                    await settle(5)
            except ra.RateLimiterTimeout:
                pass
            if bare:
                del batches
                await settle(60)
            else:
                await batches.aclose()
            return numbers

        numbers = self.run(iterate())
        self.took_from_queue(numbers)
        self.overfull = max(self.overfull, outstanding)

    @rule(turns=st.integers(0, 60), count=st.integers(1, 3), table=st.sampled_from(["fifo", "queue"]))
    def cancel_a_sample(self, turns: int, count: int, table: str) -> None:
        outcome = self.run(cancel_after_turns(self.client.sample_batch(table, count), turns))
        if isinstance(outcome, ra.Batch):
            numbers = outcome.data["x"].tolist()
            if table == "fifo":
                self.took_from_fifo(numbers, count)
            else:
                self.took_from_queue(numbers)
        else:
            assert isinstance(outcome, asyncio.CancelledError), outcome
        self.overfull = max(self.overfull, count)

    # -- changing -----------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def mutate(self, data: st.DataObject) -> None:
        known = [item for item in self.fifo if item.key is not None]
        updated = data.draw(st.lists(st.sampled_from(known), max_size=3, unique_by=id)) if known else []
        deleted = data.draw(st.lists(st.sampled_from(known), max_size=2, unique_by=id)) if known else []
        updates = {item.key: float(at + 10) for at, item in enumerate(updated)}
        deletes = [item.key for item in deleted]
        result = self.run(self.client.mutate_priorities("fifo", {**updates, 2**63 + 1: 1.0}, deletes))
        assert result == ra.MutateResult(len(updated), len(deleted), 1)
        for item in updated:
            item.priority = updates[item.key]
        self.fifo = [item for item in self.fifo if item not in deleted]

    @rule(data=st.data())
    def delete_from_the_queue(self, data: st.DataObject) -> None:
        known = [item for item in self.queue[: self.queue_size] if item.key is not None]
        if known:
            item = data.draw(st.sampled_from(known))
            assert self.run(self.client.mutate_priorities("queue", deletes=[item.key])).deleted == 1
            self.queue.remove(item)

    @rule(table=st.sampled_from(["fifo", "queue"]))
    def reset(self, table: str) -> None:
        waiting = self.waiting
        self.look_for_arrivals()
        self.run(self.client.reset(table))
        if table == "fifo":
            self.fifo = []
            self.fifo_inserts = self.fifo_samples = 0
        else:
            self.queue = waiting
            self.queue_samples = 0
            self.overfull = 0

    # -- what holds at any time ---------------------------------------------------------------------------------------

    @invariant()
    def tables_hold_what_the_lists_hold(self) -> None:
        if not hasattr(self, "server"):
            return
        fifo, queue = (self.server.tables[name].info for name in ("fifo", "queue"))
        assert fifo.current_size == len(self.fifo)
        assert fifo.rate_limiter_info.insert_stats.completed == self.fifo_inserts
        assert fifo.rate_limiter_info.sample_stats.completed == self.fifo_samples
        assert fifo.num_unique_samples >= sum(item.times > 0 for item in self.fifo)
        assert queue.current_size <= min(QUEUE_SIZE + self.overfull, len(self.queue))
        assert not (self.waiting and self.admitted(1))
        assert queue.rate_limiter_info.sample_stats.completed == self.queue_samples
        assert sum(waiter.count for waiter in queue.waiters) >= bool(self.waiting)
        assert all(waiter.kind == "insert" for waiter in queue.waiters)
        self.look_for_arrivals()
        check_counts(self.server)

    def teardown(self) -> None:
        if hasattr(self, "server"):
            self.run(self.end())
        self.runner.close()

    async def end(self) -> None:
        numbers = [item.number for item in self.queue]
        for number in numbers:
            assert (await self.client.sample_one("queue", timeout=5)).data["x"] == number
        await asyncio.gather(*self.inserting.values())
        await self.writer.close()
        await self.client.close()
        await until_nothing_waits_or_is_held(self.server)
        await self.server.close()


def test_histories_of_calls_leave_what_they_leave_in_lists() -> None:
    few = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
    run_state_machine_as_test(ServiceMachine, settings=few)


@pytest.mark.soak
def test_long_histories_of_calls_leave_what_they_leave_in_lists() -> None:
    many = settings(max_examples=1500, stateful_step_count=60, deadline=None)
    run_state_machine_as_test(ServiceMachine, settings=many)
