"""Cuts against copies of everything visible at their barriers, over random histories."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from cut_rig import Disk, Saving
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from world import World, visible

from reverb_async.core import rate_limiters, selectors, table_items
from reverb_async.table import Table

SELECTORS = [
    selectors.Uniform(),
    selectors.Prioritized(0.6),
    selectors.Fifo(),
    selectors.Lifo(),
    selectors.MinHeap(),
    selectors.MaxHeap(),
]
LIMITERS = [rate_limiters.MinSize(1), rate_limiters.SampleToInsertRatio(1.5, 2, 8.0), rate_limiters.Queue(6)]

which_tables = st.sampled_from([[0], [1], [0, 1], [0, 1]])
table = st.integers(0, 1)
keys = st.integers(0, 11)
priorities = st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.0, 2.0, math.nan])
known_priorities = st.sampled_from([0.0, 0.5, 1.0, 3.0])
updates = st.lists(st.tuples(keys, known_priorities), max_size=5)
episodes = st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 2)).map(lambda e: (e[0], e[0] + e[1])))
ranges = st.lists(st.tuples(st.integers(0, 23), st.integers(1, 4)), min_size=1, max_size=3)
items = st.lists(st.tuples(keys, priorities, ranges, st.integers(0, 23), episodes), min_size=1, max_size=5)


class CutMachine(RuleBasedStateMachine):
    """Whatever is saved equals what was there when the cut was made; who restores it goes on as the other does."""

    @initialize(
        sizes=st.tuples(st.integers(2, 6), st.integers(2, 6)),
        samplers=st.tuples(st.sampled_from(SELECTORS), st.sampled_from(SELECTORS)),
        removers=st.tuples(st.sampled_from(SELECTORS), st.sampled_from(SELECTORS)),
        limiters=st.tuples(st.sampled_from(LIMITERS), st.sampled_from(LIMITERS)),
        times=st.tuples(st.sampled_from([0, 0, 1, 2]), st.sampled_from([0, 1, 2])),
        max_bytes=st.sampled_from([None, None, 200]),
    )
    def start(self, sizes: Any, samplers: Any, removers: Any, limiters: Any, times: Any, max_bytes: Any) -> None:
        def tables() -> list[Table]:
            return [
                Table(
                    name,
                    max_size=sizes[at],
                    sampler=samplers[at],
                    remover=removers[at],
                    rate_limiter=limiters[at],
                    max_times_sampled=times[at],
                    max_bytes=max_bytes,
                    seed=at,
                )
                for at, name in enumerate("ab")
            ]

        self.tables = tables
        self.world = World(tables())
        self.disk = Disk(self.world.replay)
        self.saving: Saving | None = None
        self.expected: Any = None
        self.twin: World | None = None

    def both(self, method: str, *args: Any, **more: Any) -> None:
        answer = getattr(self.world, method)(*args, **more)
        if self.twin is not None:
            assert getattr(self.twin, method)(*args, **more) == answer

    # -- what happens -------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 8))
    def write(self, count: int) -> None:
        self.both("write", count)

    @rule(keep=st.integers(0, 20))
    def let_go(self, keep: int) -> None:
        self.both("let_go", keep)

    @rule(tables=which_tables, kind=st.integers(0, 2), items=items)
    def insert(self, tables: list[int], kind: int, items: list) -> None:
        self.both("insert", tables, kind, items)

    @rule(table=table, n=st.integers(1, 6))
    def draw(self, table: int, n: int) -> None:
        self.both("draw", table, n)

    @rule(table=table, n=st.integers(1, 3))
    def reserve(self, table: int, n: int) -> None:
        self.both("reserve", table, n)

    @precondition(lambda self: self.world.draws)
    @rule(which=st.integers(0, 20), hand_back=st.booleans())
    def settle(self, which: int, hand_back: bool) -> None:
        self.both("settle", which, hand_back=hand_back)

    @rule(
        table=table, updates=st.lists(st.tuples(keys, known_priorities), max_size=5), deletes=st.lists(keys, max_size=2)
    )
    def mutate(self, table: int, updates: list, deletes: list) -> None:
        self.both("mutate", table, updates, deletes)

    @rule(table=table)
    def reset(self, table: int) -> None:
        self.both("reset", table)

    @rule(table=table)
    def dismantle(self, table: int) -> None:
        self.world.state(table).dismantle(3)

    # -- saving -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.saving is None)
    @rule(full=st.sampled_from([False, False, True]), block=st.integers(1, 5))
    def cut(self, full: bool, block: int) -> None:
        self.expected = visible(self.world, settled=True)
        self.saving = self.disk.begin(full=full, block=block)

    @precondition(lambda self: self.saving is not None)
    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.saving.step()

    @precondition(lambda self: self.saving is not None)
    @rule()
    def give_up(self) -> None:
        self.saving.finish(False)
        self.saving = None
        self.check_pins()

    @precondition(lambda self: self.saving is not None)
    @rule()
    def commit(self) -> None:
        self.saving.finish(True)
        self.saving = None
        self.check_pins()
        restored = World(self.tables())
        restored.replay.restore(self.disk.image)
        found = visible(restored, settled=False)
        for name, value in self.expected.items():
            assert found[name] == value
        self.check_rows(restored)

    @precondition(lambda self: self.saving is None)
    @rule()
    def save_and_follow(self) -> None:
        """From now on a second server, restored from what is saved here, does all that the first one does."""
        self.world.quiet()
        self.disk.save(block=4)
        self.twin = World(self.tables())
        self.twin.replay.restore(self.disk.image)
        self.twin.now, self.twin.num_written = self.world.now, self.world.num_written

    def check_pins(self) -> None:
        """Nothing is held that a writer does not hold."""
        world = self.world
        for store, rows in zip(getattr(world, "_stores", ()), (world.steps, world.actions), strict=False):
            assert store.usage().pinned_rows == len(rows)

    def check_rows(self, restored: World) -> None:
        """Rows are counted as if they had been inserted one by one: when the items go, so do all rows."""
        for table in range(2):
            restored.reset(table)
            while restored.state(table).dismantle():
                pass
        usage = restored.replay.storage.usage()
        assert (usage.live_rows, usage.staged_rows) == (0, 0)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        if self.saving is not None:
            self.commit()
        self.world.quiet()
        for table in range(2):
            self.world.reset(table)
            while self.world.state(table).dismantle():
                pass
        usage = self.world.replay.storage.usage()
        assert (usage.live_rows, usage.staged_rows) == (0, 0)


@pytest.fixture(autouse=True, scope="module")
def few_spare_slots() -> Iterator[None]:
    """Tables of six items need no room for 65536 more, which takes longer to reserve than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_items, "_SPARE_SLOTS", 64)
        yield


TestCutModel = CutMachine.TestCase
TestCutModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
