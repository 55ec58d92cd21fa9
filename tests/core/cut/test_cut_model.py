"""Cuts against copies of everything visible at their barriers, over random histories."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from cut_rig import Disk
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
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

which = st.integers(0, 20)
table = st.integers(0, 1)
keys = st.integers(0, 11)
priorities = st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.0, 2.0, math.nan])
updates = st.lists(st.tuples(keys, st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=1, max_size=5)
episodes = st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 2)).map(lambda e: (e[0], e[0] + e[1])))
ranges = st.lists(st.tuples(st.integers(0, 23), st.integers(1, 4)), min_size=1, max_size=3)
items = st.lists(st.tuples(keys, priorities, ranges, which, episodes), min_size=1, max_size=5)
insert = st.tuples(st.just("insert"), st.sampled_from([[0], [1], [0, 1], [0, 1]]), st.integers(0, 2), items)
change = st.one_of(
    insert,
    insert,
    st.tuples(st.just("write"), st.integers(1, 8)),
    st.tuples(st.just("let_go"), st.integers(0, 20)),
    st.tuples(st.just("draw"), table, st.integers(1, 6)),
    st.tuples(st.just("draw"), table, st.integers(1, 6)),
    st.tuples(st.just("reserve"), table, st.integers(1, 3)),
    st.tuples(st.just("settle"), which, st.booleans()),
    st.tuples(st.just("mutate"), table, updates, st.lists(keys, max_size=2)),
    st.tuples(st.just("rarely_reset"), table, st.integers(0, 3)),
)
"""A method of `World` and its arguments."""


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
        self.twin: World | None = None

    # -- what happens -------------------------------------------------------------------------------------------------

    def do(self, change: tuple[Any, ...]) -> None:
        method, *args = change
        answer = getattr(self.world, method)(*args)
        if self.twin is not None:
            assert getattr(self.twin, method)(*args) == answer

    @rule(changes=st.lists(change, min_size=1, max_size=12))
    def go_on(self, changes: list[tuple[Any, ...]]) -> None:
        for each in changes:
            self.do(each)

    @rule(
        full=st.sampled_from([False, False, True]),
        block=st.integers(1, 4),
        between=st.lists(st.tuples(st.integers(0, 5), change), max_size=12),
        committed=st.sampled_from([True, True, False]),
    )
    def save(self, full: bool, block: int, between: list[tuple[int, tuple[Any, ...]]], committed: bool) -> None:
        """Things change between the slices of a cut, which is committed in the end or given up where it is."""
        expected = visible(self.world, settled=True)
        saving = self.disk.begin(full=full, block=block)
        for steps, each in between:
            for _ in range(steps):
                saving.step()
            self.do(each)
        saving.finish(committed)
        self.check_pins()
        if committed:
            restored = World(self.tables())
            restored.replay.restore(self.disk.image)
            found = visible(restored, settled=False)
            for name, value in expected.items():
                assert found[name] == value
            self.check_rows(restored)

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
TestCutModel.settings = settings(max_examples=80, stateful_step_count=12, deadline=None, derandomize=True)
