"""A table against lists and dictionaries, over random histories."""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plain_table import PlainDraw, PlainItem, PlainTable

from reverb_async.core import rate_limiters, selectors
from reverb_async.core.changes import Change, ChangeKind
from reverb_async.core.draw import Draw
from reverb_async.core.item import ItemBlock, ItemLayout, Leaf
from reverb_async.core.nest import flatten
from reverb_async.core.runs import find_runs, join
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import Storage
from reverb_async.core.storage.holds import REFERENCES
from reverb_async.core.table_state import TableState

STEPS = 40

SELECTORS = [
    selectors.Uniform(),
    selectors.Prioritized(0.6),
    selectors.Prioritized(0.0),
    selectors.Fifo(),
    selectors.Lifo(),
    selectors.MinHeap(),
    selectors.MaxHeap(),
]
LIMITERS = [
    rate_limiters.MinSize(1),
    rate_limiters.MinSize(3),
    rate_limiters.SampleToInsertRatio(1.5, 2, 4.0),
    rate_limiters.SampleToInsertRatio(0.4, 1, (-3.0, 3.1)),
    rate_limiters.Queue(4),
    rate_limiters.RateLimiter(5.0, 2, 0.0, 5.0),
]

keys = st.integers(0, 12)
priorities = st.sampled_from([0.0, 0.0, 0.5, 1.0, 1.0, 2.0, 1000.0])
episodes = st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 2)).map(lambda e: (e[0], e[0] + e[1])))
ranges = st.lists(st.tuples(st.integers(0, STEPS - 4), st.integers(1, 4)), min_size=1, max_size=2)


class TableMachine(RuleBasedStateMachine):
    """Whatever happens, in blocks, to a `TableState` happens one by one to a `PlainTable`, and both agree."""

    @initialize(
        max_size=st.integers(3, 6),
        sampler=st.sampled_from(SELECTORS),
        remover=st.sampled_from(SELECTORS),
        limiter=st.sampled_from(LIMITERS),
        max_times_sampled=st.sampled_from([0, 0, 1, 2, 3]),
        max_bytes=st.sampled_from([None, None, 100]),
    )
    def start(
        self,
        max_size: int,
        sampler: selectors.Selector,
        remover: selectors.Selector,
        limiter: rate_limiters.RateLimiter,
        max_times_sampled: int,
        max_bytes: int | None,
    ) -> None:
        self.plain = PlainTable(max_size, sampler, remover, limiter, max_times_sampled, max_bytes)
        self.table = TableState(
            max_size=max_size,
            sampler=sampler,
            remover=remover,
            rate_limiter=limiter,
            max_times_sampled=max_times_sampled,
            max_bytes=max_bytes,
            rng=np.random.default_rng(0),
        )
        self.table.listeners.append(self.note)
        self.numbers = 0
        self.evicted: deque[int] = deque()
        self.draws: list[tuple[Draw, list[PlainDraw]]] = []
        self.void: list[Draw] = []
        self.reserved = 0
        self.detached: Counter[int] = Counter()
        storage = Storage(reserve_bytes=1 << 20)
        self.store = storage.group((ArraySpec((), np.int64),))
        self.rows = self.store.lease(STEPS)[::-1].copy()  # not ascending: some items are several runs
        self.rows[: STEPS // 2] = np.sort(self.rows[: STEPS // 2])
        self.store.write(0, self.rows, np.arange(STEPS))
        self.layout = ItemLayout(flatten({"step": 0})[1], (self.store,), (Leaf(0, 0, False),))

    def note(self, change: Change) -> None:
        self.numbers += 1
        assert change.number == self.numbers
        if change.kind is ChangeKind.EVICT:
            self.evicted.extend(change.keys.tolist())

    # -- inserting ----------------------------------------------------------------------------------------------------

    @rule(
        items=st.lists(
            st.tuples(
                st.one_of(keys, st.integers(100, 10_000)),
                st.one_of(st.just(math.nan), priorities),
                ranges,
                st.integers(1, 40),
                episodes,
            ),
            min_size=1,
            max_size=8,
        ),
        alone=st.booleans(),
    )
    def insert(self, items: list, alone: bool) -> None:
        if alone:
            items = [(*item[:4], None) for item in items]
        elif any(item[4] is None for item in items):
            items = [(*item[:4], item[4] or (7, 7)) for item in items]
        admitted = self.table.admitted_inserts(len(items))
        if not admitted:
            assert not self.plain.can_insert()
            return
        sequences = [np.concatenate([self.rows[at : at + n] for at, n in item[2]]) for item in items]
        block = ItemBlock(
            self.layout,
            np.array([item[0] for item in items], np.uint64),
            np.array([item[1] for item in items]),
            (join(sequences),),
            np.array([item[3] for item in items]),
            None if alone else np.array([item[4] for item in items], np.int64),
        )
        self.table.check_insert(block)
        self.table.insert(block.part(0, admitted), now=float(self.numbers))
        fresh = 0
        for (key, priority, _, nbytes, episode), rows in zip(items[:admitted], sequences, strict=False):
            assert self.plain.can_insert()
            fresh += key not in self.plain.items
            self.plain.insert(PlainItem(key, priority, nbytes, episode, 0, 0, rows.tolist()), self.evicted.popleft)
        if fresh == admitted < len(items):
            assert not self.plain.can_insert()
        if self.plain.remover.is_deterministic:
            self.evicted.clear()
        assert not self.evicted
        # Within a block an episode is not gone and back again.
        assert self.table.episodes.num_deleted <= self.plain.num_deleted_episodes
        self.plain.num_deleted_episodes = self.table.episodes.num_deleted

    # -- sampling -----------------------------------------------------------------------------------------------------

    @rule(n=st.integers(1, 6))
    def reserve(self, n: int) -> None:
        if self.plain.max_times_sampled == 0:
            admitted = self.table.admitted_samples(n)
            assert admitted == self.plain.admitted_samples(n)
            self.table.reserve_samples(admitted)
            self.reserved += admitted
            self.plain.samples += admitted

    @rule()
    def return_reserved(self) -> None:
        self.table.return_samples(self.reserved)
        self.plain.samples -= self.reserved
        self.reserved = 0

    @rule(n=st.integers(1, 6))
    def draw(self, n: int) -> None:
        admitted = self.table.admitted_samples(n)
        assert admitted == self.plain.admitted_samples(n)
        if not admitted:
            return
        draw = self.table.draw(admitted + self.reserved, reserved=self.reserved)
        self.plain.samples -= self.reserved
        wanted, self.reserved = admitted + self.reserved, 0
        told = deque(draw.keys.tolist())
        plain = []
        while len(plain) < wanted and self.plain.can_sample():
            plain.append(self.plain.draw(lambda: told[len(plain)]))
        assert draw.keys.tolist() == [drawn.item.key for drawn in plain]
        np.testing.assert_allclose(draw.probabilities, [drawn.probability for drawn in plain], rtol=1e-12)
        assert draw.priorities.tolist() == [drawn.priority for drawn in plain]
        assert draw.times_sampled.tolist() == [drawn.times_sampled for drawn in plain]
        assert draw.table_sizes.tolist() == [drawn.table_size for drawn in plain]
        self.draws.append((draw, plain))

    @precondition(lambda self: self.draws)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        draw, plain = self.draws.pop(data.draw(st.integers(0, len(self.draws) - 1)))
        self.table.acknowledge(draw)
        self.plain.acknowledge(plain)

    @precondition(lambda self: self.draws)
    @rule(data=st.data())
    def hand_back(self, data: st.DataObject) -> None:
        draw, plain = self.draws.pop(data.draw(st.integers(0, len(self.draws) - 1)))
        self.table.hand_back(draw)
        self.plain.hand_back(plain)

    @precondition(lambda self: len(self.draws) > 1)
    @rule()
    def join_draws(self) -> None:
        """A request that waited hands several draws out as one."""
        (draw, plain), (later, further) = self.draws[-2:]
        self.draws[-2:] = [(Draw.join([draw, later]), plain + further)]

    # -- changing -----------------------------------------------------------------------------------------------------

    @rule(updates=st.lists(st.tuples(keys, priorities), max_size=6), deletes=st.lists(keys, max_size=2))
    def mutate(self, updates: list[tuple[int, float]], deletes: list[int]) -> None:
        result = self.table.mutate(
            np.array([key for key, _ in updates], np.uint64),
            np.array([priority for _, priority in updates], np.float64),
            np.array(deletes, np.uint64),
        )
        unknown = ({key for key, _ in updates} | set(deletes)) - self.plain.items.keys()
        last = {key: at for at, (key, _) in enumerate(updates)}
        updated = sum(self.plain.update(key, p) for at, (key, p) in enumerate(updates) if last[key] == at)
        deleted = sum(self.plain.delete(key) for key in deletes)
        assert (result.updated, result.deleted, result.unknown) == (updated, deleted, len(unknown))

    @rule()
    def reset(self) -> None:
        self.detached += self.plain.references()
        self.table.reset()
        self.plain.reset()
        self.void += [draw for draw, _ in self.draws]
        self.draws, self.reserved = [], 0

    @precondition(lambda self: self.void)
    @rule(handed_back=st.booleans())
    def settle_a_void_draw(self, handed_back: bool) -> None:
        draw = self.void.pop()
        if handed_back:
            self.table.hand_back(draw)
        else:
            self.table.acknowledge(draw)

    @rule()
    def dismantle(self) -> None:
        while self.table.dismantle(3):
            pass
        self.detached.clear()

    # -- agreeing -----------------------------------------------------------------------------------------------------

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "table"):
            return
        limiter = self.table.limiter
        plain = self.plain
        assert (limiter.inserts, limiter.samples, limiter.deletes) == (plain.inserts, plain.samples, plain.deletes)
        assert self.table.size == limiter.size == len(plain.items)
        assert self.table.nbytes == plain.nbytes
        assert self.table.num_unique_samples == plain.num_unique_samples
        assert self.table.episodes.num_episodes == len(plain.episodes())
        assert self.table.episodes.num_deleted == plain.num_deleted_episodes

    @invariant()
    def items_agree(self) -> None:
        if not hasattr(self, "table"):
            return
        slots = self.table.live_slots()
        items = [self.plain.items[key] for key in self.table.slots.key[slots].tolist()]
        assert len({item.key for item in items}) == len(self.plain.items)
        assert self.table.slots.priority[slots].tolist() == [item.priority for item in items]
        assert self.table.slots.times_sampled[slots].tolist() == [item.times_sampled for item in items]
        for slot, item in zip(slots.tolist(), items, strict=True):
            runs = self.table.slots.runs(0, np.array([slot]))
            assert runs.rows().tolist() == item.rows
        assert self.table.find(np.arange(13, dtype=np.uint64)).tolist() == [
            int(slots[[item.key for item in items].index(key)]) if key in self.plain.items else -1 for key in range(13)
        ]

    @invariant()
    def references_agree(self) -> None:
        if hasattr(self, "table"):
            references = self.plain.references() + self.detached
            assert (self.store._holds.counts[self.rows] & REFERENCES).tolist() == [
                references[row] for row in self.rows.tolist()
            ]

    def teardown(self) -> None:
        if hasattr(self, "table"):
            self.reset()
            self.dismantle()
            self.references_agree()


TestTableModel = TableMachine.TestCase
TestTableModel.settings = settings(max_examples=120, stateful_step_count=30, deadline=None, derandomize=True)


@pytest.mark.parametrize("rows", [[3], [3, 4, 5], [5, 3, 4], [1, 1]])
def test_runs_of_rows_are_kept_as_they_are(rows: list[int]) -> None:
    assert join([np.array(rows)]).rows().tolist() == rows
    assert find_runs(np.array(rows)).sum(axis=0)[1] == len(rows)
