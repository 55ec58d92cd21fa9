from __future__ import annotations

import asyncio
import gc
import math
import weakref
from typing import Any

import numpy as np
import pytest
from helpers import ITEM_BYTES, Items, insert_block, keys, keys_of, no_keys, settle, shown

from reverb_async.core import rate_limiters, selectors
from reverb_async.core.item import ItemBlock, ItemLayout, Leaf
from reverb_async.core.nest import flatten
from reverb_async.core.runs import Runs, join
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument, SignatureMismatch
from reverb_async.table import Table
from reverb_async.waiting import Deadline


@pytest.fixture
def items() -> Items:
    return Items()


class TestDefinition:
    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"name": ""}, "name must be a non-empty str, got ''"),
            ({"name": 7}, "name must be a non-empty str, got 7"),
            ({"max_size": 0}, "table 't': max_size must be an int from 1 to 536870912, got 0"),
            ({"max_size": 1e6}, "max_size must be an int from 1 to 536870912, got 1000000.0"),
            ({"max_size": True}, "max_size must be an int from 1 to 536870912, got True"),
            ({"max_size": 2**40}, "max_size must be an int from 1 to 536870912, got 1099511627776"),
            ({"max_times_sampled": -1}, "max_times_sampled must be an int from 0 to 2147483647, got -1"),
            ({"max_bytes": 0}, "max_bytes must be an int from 1 to 9223372036854775807, got 0"),
            ({"sampler": "uniform"}, "sampler must be one of reverb_async.selectors, such as Uniform"),
            ({"remover": selectors.Fifo}, "remover must be one of reverb_async.selectors"),
            ({"rate_limiter": 5}, "rate_limiter must be one of reverb_async.rate_limiters, such as MinSize"),
            (
                {"rate_limiter": rate_limiters.MinSize(11)},
                "min_size_to_sample=11 can never be reached with max_size=10",
            ),
            ({"seed": -1}, "table 't': seed must be an int from 0 to .*, got -1"),
            ({"seed": "x"}, "seed must be an int from 0 to .*, got 'x'"),
            ({"signature": {"a": 5}}, "signature"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_a_table_that_cannot_work_is_refused_with_the_reason(self, wrong: dict[str, Any], said: str) -> None:
        definition = {"name": "t", "max_size": 10, **wrong}
        with pytest.raises(InvalidArgument, match=said):
            Table(definition.pop("name"), **definition)

    def test_defaults_are_uniform_fifo_and_a_minimum_of_one(self) -> None:
        info = Table("t", max_size=np.int64(3)).info
        assert info.sampler_options == {"uniform": True, "is_deterministic": False}
        assert info.remover_options == {"fifo": True, "is_deterministic": True}
        assert info.rate_limiter_info.min_size_to_sample == 1
        assert (info.max_size, info.max_times_sampled, info.signature) == (3, 0, None)

    def test_selectors_and_limiters_may_be_shared(self, items: Items) -> None:
        order, limiter = selectors.Fifo(), rate_limiters.MinSize(1)
        tables = [Table(name, max_size=2, sampler=order, remover=order, rate_limiter=limiter) for name in "ab"]
        items.put(tables[0].state, [1, 2, 3])
        assert [table.state.size for table in tables] == [2, 0]
        assert [table.can_sample(1) for table in tables] == [True, False]

    @pytest.mark.parametrize("n", [0, -1])
    def test_asking_for_less_than_one_is_refused(self, n: int) -> None:
        table = Table("t", max_size=1)
        for ask in (table.can_insert, table.can_sample):
            with pytest.raises(InvalidArgument, match="n must be >= 1"):
                ask(n)

    def test_replacing_what_a_table_does_not_have_is_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="Table has no 'max_sise'; what can be replaced: name, max_size"):
            Table("t", max_size=1).replace(max_sise=2)

    def test_queues_and_stacks_hand_out_every_item_once(self, items: Items) -> None:
        for make, order in ((Table.queue, [1, 2, 3]), (Table.stack, [3, 2, 1])):
            table = make("t", 3, max_bytes=1000)
            items.put(table.state, [1, 2, 3])
            assert not table.can_insert(1)
            assert table.state.draw(3).keys.tolist() == order
            assert table.state.size == 0
            assert table.info.max_times_sampled == 1

    def test_its_repr_tells_how_full_it_is(self, items: Items) -> None:
        table = Table("t", max_size=10)
        items.put(table.state, [1, 2])
        assert repr(table) == "<Table 't': 2 of 10 items>"


SIGNATURE = {"obs": ArraySpec((None, 2), np.float32), "step": ArraySpec((), np.int64)}


class TestSignature:
    def block(self, items: Items, *, obs: ArraySpec, steps: list[int], names: str = "obs step") -> ItemBlock:
        frames = items.storage.group((obs,))
        numbers = items.storage.group((ArraySpec((), np.int64),))
        structure = flatten(dict.fromkeys(names.split(), 0))[1]
        layout = ItemLayout(structure, (frames, numbers), (Leaf(0, 0, False), Leaf(1, 0, True)))
        n = len(steps)
        views = (join([frames.lease(count) for count in steps]), Runs.of_rows(numbers.lease(n)))
        return ItemBlock(layout, np.arange(n, dtype=np.uint64), np.ones(n), views, np.ones(n, np.int64))

    def test_items_that_fit_are_taken_whatever_their_free_lengths(self, items: Items) -> None:
        table = Table("t", max_size=9, signature=SIGNATURE)
        table.check(self.block(items, obs=ArraySpec((2,), np.float32), steps=[1, 5, 3]))

    @pytest.mark.parametrize(
        ("obs", "names", "said"),
        [
            (ArraySpec((2,), np.float64), "obs step", "float64"),
            (ArraySpec((3,), np.float32), "obs step", "obs"),
            (ArraySpec((), np.float32), "obs step", "obs"),
            (ArraySpec((2,), np.float32), "observation step", "observation"),
            (ArraySpec((None,), np.float32), "obs step", "obs"),
        ],
        ids=["dtype", "shape", "rank", "name", "varying rows"],
    )
    def test_items_that_do_not_fit_are_refused_by_table_and_column(
        self, items: Items, obs: ArraySpec, names: str, said: str
    ) -> None:
        table = Table("t", max_size=9, signature=SIGNATURE)
        with pytest.raises(SignatureMismatch, match=said) as caught:
            table.check(self.block(items, obs=obs, steps=[1], names=names))
        assert "table 't'" in str(caught.value)

    def test_a_fixed_length_holds_for_every_item(self, items: Items) -> None:
        table = Table("t", max_size=9, signature={**SIGNATURE, "obs": ArraySpec((3, 2), np.float32)})
        obs = ArraySpec((2,), np.float32)
        table.check(self.block(items, obs=obs, steps=[3, 3]))
        with pytest.raises(SignatureMismatch, match=r"\('obs',\) has 4 steps, the signature wants 3"):
            table.check(self.block(items, obs=obs, steps=[3, 4, 3]))

    def test_layouts_that_were_checked_are_not_kept_alive(self, items: Items) -> None:
        table = Table("t", max_size=9, signature=SIGNATURE)
        block = self.block(items, obs=ArraySpec((2,), np.float32), steps=[1])
        table.check(block)
        layout = weakref.ref(block.layout)
        del block
        gc.collect()
        assert layout() is None


class TestChecking:
    def test_a_priority_the_selectors_refuse_is_refused_before_the_queue(self, items: Items) -> None:
        table = Table("t", max_size=9, sampler=selectors.Prioritized(0.6))
        with pytest.raises(InvalidArgument, match=r"priority -2.0 at position 1 is negative"):
            table.check(items.block([1, 2], [1.0, -2.0]))
        table.check(items.block([3], math.nan))

    def test_an_item_larger_than_the_table_may_be_is_refused(self, items: Items) -> None:
        table = Table("t", max_size=9, max_bytes=20)
        with pytest.raises(InvalidArgument, match="max_bytes=20"):
            table.check(items.block([1], nbytes=21))


class TestInfo:
    async def test_it_tells_what_the_table_is_and_holds(self, items: Items) -> None:
        table = Table(
            "t", max_size=4, sampler=selectors.Prioritized(0.6), remover=selectors.MinHeap(), max_times_sampled=7
        )
        await items.insert(table, range(5))
        await table.sample(3)
        info = table.info
        assert info.name == "t"
        assert info.sampler_options == {"prioritized": {"priority_exponent": 0.6}, "is_deterministic": False}
        assert info.remover_options == {"heap": {"min_heap": True}, "is_deterministic": True}
        assert (info.current_size, info.num_deletes, info.stored_bytes) == (4, 1, 4 * ITEM_BYTES)
        assert (info.rate_limiter_info.insert_stats.completed, info.rate_limiter_info.sample_stats.completed) == (5, 3)
        assert info.inserts_per_second > 0
        assert info.samples_per_second > 0
        assert 0 <= info.newest_item_age <= info.oldest_item_age < 60
        assert info.waiters == ()

    async def test_it_tells_who_waits_for_what(self, items: Items) -> None:
        table = Table.queue("q", 1)
        table.num_samplers, table.num_writers = 2, 3
        sampling = [asyncio.create_task(table.sample(1)) for _ in range(2)]
        await settle()
        (waiter,) = table.info.waiters
        assert (waiter.kind, waiter.count) == ("sample", 2)
        assert "needs 1 more insert (" in waiter.reason
        assert waiter.reason.endswith("; 3 writers connected")
        await items.insert(table, [1])
        await items.insert(table, [2])
        await asyncio.gather(*sampling)
        await items.insert(table, [3])
        inserting = asyncio.create_task(items.insert(table, [4]))
        await settle()
        (waiter,) = table.info.waiters
        assert (waiter.kind, waiter.count) == ("insert", 1)
        assert "needs 1 more sample (" in waiter.reason
        assert waiter.reason.endswith("; 2 samplers connected")
        await table.sample(1)
        await inserting
        assert table.info.waiters == ()

    def test_an_empty_table_has_no_ages(self) -> None:
        info = Table("t", max_size=4).info
        assert (info.oldest_item_age, info.newest_item_age) == (0.0, 0.0)


class TestDraws:
    async def test_a_plan_shows_the_items_drawn(self, items: Items) -> None:
        table = Table("t", max_size=10, sampler=selectors.Fifo(), max_times_sampled=1)
        await items.insert(table, range(5))
        draw = await table.sample(4)
        (piece,) = table.plan(draw).run([None])
        assert piece.columns[0].tolist() == draw.keys.tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]

    async def test_acknowledged_items_free_their_rows_and_others_return(self, items: Items) -> None:
        table = Table.queue("q", 10)
        await items.insert(table, range(6))
        kept, returned = await table.sample(2), await table.sample(2)
        table.acknowledge(kept)
        table.hand_back(returned)
        assert keys_of(table.state) == [2, 3, 4, 5]
        assert items.held() == (4, 0)
        assert (await table.sample(4)).keys.tolist() == [2, 3, 4, 5]

    async def test_a_seed_makes_draws_reproducible(self, items: Items) -> None:
        tables = [Table("t", max_size=100, seed=5) for _ in range(2)]
        drawn = []
        for table in tables:
            await items.insert(table, range(100))
            drawn.append((await table.sample(50)).keys.tolist())
        assert drawn[0] == drawn[1]

    async def test_drawing_from_slots_that_were_reused_shows_the_new_items(self, items: Items) -> None:
        table = Table("t", max_size=5)
        for start in range(0, 100, 5):
            await items.insert(table, range(start, start + 5))
            draw = await table.sample(5)
            assert shown(table.state, draw) == draw.keys.tolist()


class TestResetting:
    async def test_memory_comes_back_in_slices_while_the_loop_goes_on(
        self, items: Items, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("reverb_async.table.table.MAX_STEP_ITEMS", 4)
        table = Table("t", max_size=10)
        await items.insert(table, range(10))
        table.reset()
        held = []
        for _ in range(4):
            held.append(items.held()[0])
            await asyncio.sleep(0)
        assert held == [10, 6, 2, 0]

    async def test_resetting_again_before_that_is_done_loses_nothing(self, items: Items) -> None:
        table = Table("t", max_size=10)
        for start in (0, 10, 20):
            await items.insert(table, range(start, start + 10))
            table.reset()
        await items.insert(table, [1, 2])
        await settle()
        assert items.held() == (2, 0)
        assert keys_of(table.state) == [1, 2]


class TestMutating:
    async def test_deleting_below_the_minimum_size_lets_an_insert_in(self, items: Items) -> None:
        table = Table("t", max_size=10, rate_limiter=rate_limiters.RateLimiter(5.0, 2, 0.0, 5.0))
        await items.insert(table, [1, 2])
        waiting = asyncio.create_task(items.insert(table, [3]))
        await settle()
        assert not waiting.done()
        table.mutate(no_keys(), np.zeros(0), keys(1))
        await waiting
        assert keys_of(table.state) == [2, 3]

    async def test_deleting_from_a_full_queue_lets_nobody_in(self, items: Items) -> None:
        table = Table.queue("q", 3)
        await items.insert(table, [1, 2, 3])
        waiting = asyncio.create_task(items.insert(table, [4]))
        table.mutate(no_keys(), np.zeros(0), keys(1, 2))
        await settle()
        assert not waiting.done()
        table.reset()
        await waiting


def test_a_table_can_be_used_in_one_event_loop_after_another(items: Items) -> None:
    table = Table.queue("q", 1)

    async def wait_in_both_queues() -> None:
        table.open()
        sampling = [asyncio.create_task(table.sample(1)) for _ in range(3)]
        await settle()
        inserting = [asyncio.create_task(items.insert(table, [key])) for key in range(3)]
        await asyncio.gather(*sampling, *inserting)
        table.close()

    for _ in range(2):
        asyncio.run(wait_in_both_queues())


async def test_priorities_of_none_reach_the_state_as_the_highest(items: Items) -> None:
    table = Table("t", max_size=10)
    await insert_block(table, items.block([1, 2, 3], [math.nan, 4.0, math.nan]), deadline=Deadline(0))
    assert table.state.slots.priority[table.state.find(keys(1, 2, 3))].tolist() == [1.0, 4.0, 4.0]
