from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter

import pytest
from helpers import Clock, Items, keys_of, settle

from reverb_async.core.rate_limiters import MinSize, RateLimiter
from reverb_async.errors import RateLimiterTimeout
from reverb_async.table import RowInsertion, Table
from reverb_async.waiting import Deadline


@pytest.fixture
def items() -> Items:
    return Items()


def task(coroutine: object) -> asyncio.Task:
    return asyncio.create_task(coroutine)  # type: ignore[arg-type]


class TestOrder:
    async def test_blocked_inserts_enter_in_the_order_they_came(self, items: Items) -> None:
        table = Table.queue("q", 1)
        await items.insert(table, [0])
        waiting = [task(items.insert(table, [key])) for key in range(1, 20)]
        await settle()
        drawn = []
        for _ in range(20):
            drawn += (await table.sample(1)).keys.tolist()
            await settle()
        assert drawn == list(range(20))
        await asyncio.gather(*waiting)

    async def test_blocked_samples_are_served_in_the_order_they_came(self, items: Items) -> None:
        table = Table.queue("q", 100)
        served: list[int] = []

        async def sample(name: int, n: int) -> None:
            await table.sample(n)
            served.append(name)

        waiting = [task(sample(name, n)) for name, n in enumerate([3, 1, 5, 1, 1, 2])]
        await settle()
        for key in range(13):
            await items.insert(table, [key])
            await settle()
        assert served == [0, 1, 2, 3, 4, 5]
        await asyncio.gather(*waiting)

    async def test_a_small_request_does_not_overtake_a_large_one(self, items: Items) -> None:
        table = Table.queue("q", 10)
        large = task(table.sample(3))
        await settle()
        await items.insert(table, [1, 2])
        small = task(table.sample(1))
        await settle()
        assert not large.done()
        assert not small.done()
        with pytest.raises(RateLimiterTimeout):
            await table.sample(1, deadline=Deadline(0))
        await items.insert(table, [3, 4])
        assert (await large).keys.tolist() == [1, 2, 3]
        assert (await small).keys.tolist() == [4]

    async def test_nobody_slips_in_between_an_admission_and_the_head(self, items: Items) -> None:
        table = Table.queue("q", 1)
        await items.insert(table, [0])
        first = task(items.insert(table, [1]))
        await settle()
        await table.sample(1)  # admits an insert; the head has not run yet
        second = task(items.insert(table, [2]))
        assert not RowInsertion([table], [items.block([3])], lambda count: None).try_now()
        await settle()
        assert first.done()
        assert not second.done()
        second.cancel()

    async def test_no_sample_slips_in_before_the_head_either(self, items: Items) -> None:
        table = Table.queue("q", 5)
        head = task(table.sample(1))
        await settle()
        await items.insert(table, [1])  # wakes the head, which has not run yet
        with pytest.raises(RateLimiterTimeout):
            await table.sample(1, deadline=Deadline(0))
        assert (await head).keys.tolist() == [1]

    async def test_what_is_handed_back_goes_to_the_head(self, items: Items) -> None:
        table = Table.queue("q", 5)
        await items.insert(table, [1, 2])
        draw = await table.sample(2)
        waiting = [task(table.sample(1)) for _ in range(2)]
        await settle()
        table.hand_back(draw)
        assert [(await waiter).keys.tolist() for waiter in waiting] == [[1], [2]]

    async def test_a_thousand_blocked_writers_are_served_alike(self, items: Items) -> None:
        table = Table.queue("q", 1)
        numbers, inserted = itertools.count(), Counter[int]()

        async def write(name: int) -> None:
            while True:
                await items.insert(table, [next(numbers)])
                inserted[name] += 1

        await items.insert(table, [next(numbers)])
        writers = [task(write(name)) for name in range(1000)]
        await settle()
        for _ in range(2500):
            table.acknowledge(await table.sample(1))
        assert len(inserted) == 1000
        assert max(inserted.values()) - min(inserted.values()) <= 1
        for writer in writers:
            writer.cancel()
        await asyncio.wait(writers)
        assert table.info.waiters == ()
        assert items.held() == (table.state.size, 0)

    async def test_a_thousand_waiting_learners_are_served_alike(self, items: Items) -> None:
        table = Table.queue("q", 10)
        sampled = Counter[int]()

        async def learn(name: int) -> None:
            while True:
                table.acknowledge(await table.sample(1))
                sampled[name] += 1

        learners = [task(learn(name)) for name in range(1000)]
        await settle()
        for key in range(2500):
            await items.insert(table, [key])
        await settle()
        assert sum(sampled.values()) == 2500
        assert max(sampled.values()) - min(sampled.values()) <= 1
        for learner in learners:
            learner.cancel()
        await asyncio.wait(learners)


class TestSeveralTables:
    async def test_a_full_table_does_not_hold_up_another_one(self, items: Items) -> None:
        full, free = Table.queue("full", 1), Table("free", max_size=10)
        await items.insert(full, [1])
        waiting = task(items.insert(full, [2]))
        await settle()
        await items.insert(free, [3], timeout=0)
        assert not waiting.done()
        waiting.cancel()

    async def test_a_row_enters_all_its_tables_in_one_step(self, items: Items) -> None:
        tables = [Table.queue("a", 1), Table.queue("b", 2), Table("c", max_size=10)]
        sizes: list[tuple[int, ...]] = []

        def note(count: int) -> None:
            sizes.append((count, *(table.state.size for table in tables)))

        inserting = task(items.insert(tables, [1, 2, 3], admitted=note))
        await settle()
        assert sizes == [(1, 1, 1, 1)]
        await tables[0].sample(1)
        await settle()
        assert sizes[1:] == [(1, 1, 2, 2)]
        await tables[0].sample(1)
        await settle()
        assert len(sizes) == 2  # b is full
        await tables[1].sample(1)
        await inserting
        assert sizes[2:] == [(1, 1, 2, 3)]

    async def test_rows_of_several_tables_in_any_order_do_not_block_each_other_for_ever(self, items: Items) -> None:
        a, b = Table.queue("a", 1), Table.queue("b", 1)
        waiting = [task(items.insert([a, b] if key % 2 else [b, a], [key])) for key in range(20)]
        await settle()
        drawn = []
        for _ in range(20):
            drawn.append((await a.sample(1)).keys.tolist() + (await b.sample(1)).keys.tolist())
            await settle()
        assert drawn == [[key, key] for key in range(20)]
        await asyncio.gather(*waiting)

    async def test_its_timeout_names_the_table_that_refused(self, items: Items) -> None:
        full, free = Table.queue("full", 1), Table("free", max_size=10)
        await items.insert(full, [1])
        with pytest.raises(RateLimiterTimeout, match="table 'full' needs 1 more sample"):
            await items.insert([free, full], [2], timeout=0)
        assert free.state.size == 0

    async def test_who_stands_behind_a_row_for_another_table_is_told_so(self, items: Items) -> None:
        full, free = Table.queue("full", 1), Table("free", max_size=10)
        await items.insert(full, [1])
        both = task(items.insert([full, free], [2]))
        await settle()
        with pytest.raises(RateLimiterTimeout, match="table 'free' serves inserts that came earlier; 0 samplers"):
            await items.insert(free, [3], timeout=0)
        both.cancel()


class TestTimeouts:
    async def test_zero_means_now_or_fail(self, items: Items) -> None:
        table = Table.queue("q", 1)
        with pytest.raises(RateLimiterTimeout):
            await table.sample(1, deadline=Deadline(0))
        await items.insert(table, [1], timeout=0)
        with pytest.raises(RateLimiterTimeout):
            await items.insert(table, [2], timeout=0)
        assert (await table.sample(1, deadline=Deadline(0))).keys.tolist() == [1]

    async def test_zero_does_not_wait_behind_others_even_while_the_turn_passes_on(self, items: Items) -> None:
        table = Table.queue("q", 1)
        first, second = task(table.sample(1)), task(table.sample(1))
        await settle()
        await items.insert(table, [1])
        await asyncio.sleep(0)  # the first one is through, the second one has the turn but has not run
        with pytest.raises(RateLimiterTimeout):
            await asyncio.wait_for(table.sample(1, deadline=Deadline(0)), 1)
        await asyncio.wait_for(first, 1)
        second.cancel()
        await settle()
        await items.insert(table, [1])
        one, two = task(items.insert(table, [2])), task(items.insert(table, [3]))
        await settle()
        await table.sample(1)
        await asyncio.sleep(0)
        with pytest.raises(RateLimiterTimeout):
            await asyncio.wait_for(items.insert(table, [4], timeout=0), 1)
        await asyncio.wait_for(one, 1)
        two.cancel()

    async def test_time_runs_from_the_call_also_for_those_behind(
        self, items: Items, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(monkeypatch)
        table = Table.queue("q", 1)
        waiting = [task(table.sample(1, deadline=Deadline(timeout))) for timeout in (None, 5, 3)]
        await clock.advance(4)
        assert [waiter.done() for waiter in waiting] == [False, False, True]
        await clock.advance(2)
        assert [waiter.done() for waiter in waiting] == [False, True, True]
        assert all(isinstance(waiter.exception(), RateLimiterTimeout) for waiter in waiting[1:])
        waiting[0].cancel()

    async def test_a_timeout_says_what_was_missing(self, items: Items) -> None:
        table = Table("replay", max_size=10_000, rate_limiter=MinSize(1000))
        await items.insert(table, range(588))
        with pytest.raises(RateLimiterTimeout) as caught:
            await table.sample(1, deadline=Deadline(0))
        assert str(caught.value) == (
            "table 'replay' needs 412 more inserts (min_size_to_sample 1000, holds 588); 0 writers connected"
        )

    async def test_what_a_request_had_reserved_is_counted_as_missing_no_more(self, items: Items) -> None:
        table = Table("t", max_size=10, rate_limiter=RateLimiter(1.0, 1, 0.0, 10.0))
        await items.insert(table, range(4))
        with pytest.raises(RateLimiterTimeout, match="table 't' needs 2 more inserts"):
            await table.sample(6, deadline=Deadline(0))
        assert table.state.limiter.samples == 0

    async def test_a_full_queue_says_how_many_samples_it_needs(self, items: Items) -> None:
        table = Table.queue("q", 2)
        table.num_samplers = 3
        await items.insert(table, [1, 2])
        with pytest.raises(RateLimiterTimeout, match=r"^table 'q' needs 1 more sample \(.*\); 3 samplers connected$"):
            await items.insert(table, [3], timeout=0)

    async def test_a_batch_of_inserts_keeps_what_was_admitted(self, items: Items) -> None:
        table, admitted = Table.queue("q", 3), []
        with pytest.raises(RateLimiterTimeout):
            await items.insert(table, range(5), timeout=0, admitted=admitted.append)
        assert admitted == [3]
        assert keys_of(table.state) == [0, 1, 2]
        assert items.held() == (3, 0)

    async def test_a_timeout_after_the_last_row_is_none(self, items: Items, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock(monkeypatch)
        table = Table.queue("q", 1)
        await items.insert(table, [1])
        waiting = task(items.insert(table, [2], timeout=5))
        await settle()
        await table.sample(1)
        clock.now += 10  # the head is woken and out of time in one round of the loop
        await settle()
        assert keys_of(table.state) == [2]
        await waiting

    async def test_a_deadline_ended_from_outside_is_a_timeout(self, items: Items) -> None:
        table, deadline = Table.queue("q", 1), Deadline(None)
        waiting = task(table.sample(2, deadline=deadline))
        await settle()
        deadline.expire()
        with pytest.raises(RateLimiterTimeout):
            await waiting


class TestReporting:
    async def test_long_waits_say_what_for_after_10_20_and_40_seconds(
        self, items: Items, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock, told = Clock(monkeypatch), []
        table = Table("t", max_size=100, rate_limiter=MinSize(5))
        sampling = task(table.sample(1, notice=told.append))
        with caplog.at_level(logging.WARNING, "reverb_async"):
            for _ in range(45):
                await clock.advance(1)
                if clock.now == 1015:
                    await items.insert(table, [1])
        assert told == [
            "table 't' needs 5 more inserts (min_size_to_sample 5, holds 0); 0 writers connected; has waited 10 s",
            "table 't' needs 4 more inserts (min_size_to_sample 5, holds 1); 0 writers connected; has waited 20 s",
            "table 't' needs 4 more inserts (min_size_to_sample 5, holds 1); 0 writers connected; has waited 40 s",
        ]
        assert caplog.messages == told
        sampling.cancel()

    async def test_waiting_inserts_are_reported_too(
        self, items: Items, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock, told = Clock(monkeypatch), []
        table = Table.queue("q", 1)
        await items.insert(table, [1])
        inserting = task(items.insert(table, [2], notice=told.append))
        await clock.advance(10)
        assert len(told) == 1
        assert told[0].startswith("table 'q' needs 1 more sample (")
        assert caplog.messages == told
        await table.sample(1)
        await inserting
