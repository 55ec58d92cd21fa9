"""A `Replay` without a loop, whose every change is named by numbers: what two of them are told, they do alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from encoded_rig import decode, item

from reverb_async.core.draw import Draw
from reverb_async.core.encoded import EncodedLayout
from reverb_async.core.item import ItemBlock, ItemLayout, Leaf
from reverb_async.core.nest import flatten
from reverb_async.core.runs import Runs, join
from reverb_async.core.selectors import Fifo, Lifo, MaxHeap, MinHeap, Prioritized, Selector, Uniform
from reverb_async.core.slots import OUT
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import RowStore
from reverb_async.core.table_state import TableState
from reverb_async.core.variable import encode_rows
from reverb_async.replay import Replay
from reverb_async.table import Table

POOL = 24
STEP = (ArraySpec((), np.int64), ArraySpec((), bytes), ArraySpec((None, 2), np.float32))
ACTION = (ArraySpec((3,), np.int16),)


class World:
    """Tables, rows that a writer holds, and draws in flight."""

    def __init__(self, tables: list[Table]) -> None:
        self.replay = Replay(tables)
        self.tables = list(self.replay.tables.values())
        self.replay.encoded.decode = decode
        self.now = 0.0
        self.draws: list[tuple[int, Draw]] = []
        self.reserved = [0] * len(tables)
        self.steps: list[int] = []
        self.actions: list[int] = []
        self.chunks: list[int] = []
        self.stores: tuple[RowStore, ...] = ()
        self.num_written = 0

    def state(self, table: int) -> TableState:
        return self.tables[table].state

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, count: int) -> None:
        """Stage `count` rows of each kind; the oldest beyond `POOL` are let go."""
        steps, actions = self.replay.storage.group(STEP), self.replay.storage.group(ACTION)
        for _ in range(count):
            number = self.num_written
            self.num_written += 1
            row = steps.lease(1)
            steps.write(0, row, np.array([number]))
            steps.write(1, row, encode_rows([b"x" * (number % 5)], STEP[1]))
            steps.write(2, row, encode_rows([np.full((number % 3, 2), number, np.float32)], STEP[2]))
            self.steps += row.tolist()
            row = actions.lease(1)
            actions.write(0, row, np.full((1, 3), number, np.int16))
            self.actions += row.tolist()
            chunk = np.arange(10 * number, 10 * number + 4).tobytes() + b"c" * (number % 40)
            self.chunks += self.replay.encoded.add_chunks([chunk], np.array([number], np.uint64)).tolist()
        self.stores = steps, actions  # a writer's stream keeps them alive
        self.let_go(POOL)

    def let_go(self, keep: int) -> None:
        """Unpin all but the newest `keep` rows of each kind."""
        if not self.steps:
            return
        gone = len(self.steps) - keep
        for store, rows in (*zip(self.stores, (self.steps, self.actions), strict=True), (None, self.chunks)):
            for row in rows[: max(gone, 0)]:
                one = np.array([row])
                self.replay.encoded.drop(one) if store is None else store.unpin(one)
            del rows[: max(gone, 0)]

    def insert(self, tables: list[int], kind: int, items: list[tuple[Any, ...]]) -> None:
        """Insert items of one kind into tables, as far as all admit them.

        Args:
            tables: which.
            kind: 0: steps and an action; 1: steps; 2: encoded.
            items: (key, priority, ranges of steps, action, episodes or None) each; ranges wrap around.
        """
        if not self.steps:
            self.write(1)
        count = min(self.state(table).admitted_inserts(len(items)) for table in tables)
        self.now += 1.0
        for at in range(count):
            block = self._block(kind, items[at : at + 1])
            for table in tables:
                self.state(table).check_insert(block)
                self.state(table).insert(block, self.now)
            if kind == 2:
                self.replay.encoded.drop_records(block)

    def _block(self, kind: int, items: list[tuple[Any, ...]]) -> ItemBlock:
        keys = np.array([each[0] for each in items], np.uint64)
        priorities = np.array([each[1] for each in items], np.float64)
        episodes = None if items[0][4] is None else np.array([each[4] for each in items], np.int64)
        size = len(self.steps)
        if kind == 2:
            rows = np.array([self.chunks[i % size] for i in {start % size for start, _ in items[0][2]}])
            sent = item(rows, [(0, 0, 1, 0)], trajectory=b"t" * (items[0][3] % 7))
            layout = self._encoded_layout()
            return self.replay.encoded.block(layout, keys, priorities, [sent], episodes)
        sequences = [
            np.array([self.steps[(start + i) % size] for start, n in each[2] for i in range(n)]) for each in items
        ]
        views: tuple[Runs, ...] = (join(sequences),)
        leaves: tuple[Leaf, ...] = (Leaf(0, 0, False), Leaf(0, 1, False), Leaf(0, 2, False))
        stores = self.stores[:1]
        names = {"a": 0, "b": 0, "c": 0}
        if kind == 0:
            views += (Runs.of_rows(np.array([self.actions[each[3] % size] for each in items])),)
            leaves, stores, names = (*leaves, Leaf(1, 0, True)), self.stores, {**names, "d": 0}
        layout = self.replay.layouts.get(flatten(names)[1], stores, leaves)
        return ItemBlock(layout, keys, priorities, views, np.array([len(s) * 8 for s in sequences]), episodes)

    def _encoded_layout(self) -> EncodedLayout:
        return self.replay.encoded.layout(flatten({"e": 0})[1], [ArraySpec((), np.int64)], [True])

    # -- reading and changing -----------------------------------------------------------------------------------------

    def draw(self, table: int, n: int) -> tuple[Any, ...] | None:
        state = self.state(table)
        admitted = state.admitted_samples(n)
        if not admitted:
            return None
        draw = state.draw(admitted + self.reserved[table], reserved=self.reserved[table])
        self.reserved[table] = 0
        self.draws.append((table, draw))
        return (
            draw.keys.tolist(),
            draw.probabilities.tolist(),
            draw.priorities.tolist(),
            draw.times_sampled.tolist(),
            draw.table_sizes.tolist(),
            draw.inserted_at.tolist(),
            [contents(state, slot) for slot in draw.slots.tolist()],
        )

    def reserve(self, table: int, n: int) -> None:
        if self.state(table).max_times_sampled == 0:
            admitted = self.state(table).admitted_samples(n)
            self.state(table).reserve_samples(admitted)
            self.reserved[table] += admitted

    def settle(self, which: int, hand_back: bool) -> None:
        if not self.draws:
            return
        table, draw = self.draws.pop(which % len(self.draws))
        (self.state(table).hand_back if hand_back else self.state(table).acknowledge)(draw)

    def mutate(self, table: int, updates: list[tuple[int, float]], deletes: list[int]) -> Any:
        keys, priorities = zip(*updates, strict=True) if updates else ((), ())
        return self.state(table).mutate(
            np.array(keys, np.uint64), np.array(priorities, np.float64), np.array(deletes, np.uint64)
        )

    def reset(self, table: int) -> None:
        self.state(table).reset()
        self.reserved[table] = 0

    def dismantle(self, table: int, reset: bool) -> None:
        if reset:
            self.reset(table)
        self.state(table).dismantle(3)

    def empty(self) -> None:
        """Remove all items: then no row must be left."""
        for at in range(len(self.tables)):
            self.reset(at)
            while self.state(at).dismantle():
                pass
        usage = self.replay.storage.usage()
        assert (usage.live_rows, usage.staged_rows) == (0, 0)

    def quiet(self) -> None:
        """Settle everything that does not outlive a server."""
        for at in range(len(self.tables)):
            self.state(at).return_samples(self.reserved[at])
            self.reserved[at] = 0
        while self.draws:
            self.settle(0, hand_back=True)
        self.let_go(0)


def contents(state: TableState, slot: int) -> list[Any]:
    """Return what an item shows, read from the stores."""
    one = np.array([slot])
    layout = state.slots.layouts[int(state.slots.layout[slot])]
    assert isinstance(layout, ItemLayout)
    shown: list[Any] = [layout.structure.to_wire(), [leaf.squeeze for leaf in layout.leaves], type(layout).__name__]
    for view, store in enumerate(layout.stores):
        rows = state.slots.runs(view, one).rows()
        for column, spec in enumerate(store.specs):
            if spec.is_variable:
                values = store.gather_variable(column, rows)
                shown.append([values.sizes.tolist(), values.shapes.tolist(), values.data.tobytes()])
            else:
                shown.append(store.gather(column, rows).tolist())
    return shown


def visible(world: World, *, settled: bool) -> dict[str, Any]:
    """Return what can be seen of all tables, in plain values.

    Args:
        world: whose.
        settled: as it would be if all draws not acknowledged were handed back now, and reservations returned.
    """
    replay = world.replay
    return {
        **{name: _table(table.state, settled) for name, table in replay.tables.items()},
        "encoded": replay.encoded.counters(),
        "sessions": replay.sessions.snapshot().describe(),
    }


def _table(state: TableState, settled: bool) -> dict[str, Any]:
    slots = state.slots
    live = state.live_slots().tolist()
    used = slice(0, slots.high_water)
    undone = slots.unsettled[used].tolist() if settled else [0] * slots.high_water
    returned: list[int] = []
    lost = 0
    if settled:
        here = {int(slots.key[slot]) for slot in live}
        out = sorted(
            np.flatnonzero(slots.state[used] == OUT).tolist(), key=lambda slot: (slots.inserted_at[slot], slot)
        )
        for slot in reversed(out):
            if int(slots.key[slot]) not in here:
                here.add(int(slots.key[slot]))
                returned.append(slot)
        lost = sum(undone[slot] > 0 and slots.times_sampled[slot] == undone[slot] for slot in live + out)
    items, episodes = {}, set()
    for slot in live + returned:
        episode = int(slots.episode[slot])
        last = slots.episode_spans.get(slot, episode)
        episodes |= {slot + 2**40} if episode < 0 else set(range(episode, last + 1))
        items[int(slots.key[slot])] = (
            float(slots.priority[slot]),
            int(slots.times_sampled[slot]) - undone[slot],
            float(slots.inserted_at[slot]),
            int(slots.nbytes[slot]),
            (episode, last),
            contents(state, slot),
        )
    limiter = state.limiter
    in_flight = state.num_reserved + state.num_unsettled if settled else 0
    gone = sum(1 for slot in returned if slots.episode[slot] < 0)
    known = set()
    for slot in live:
        episode = int(slots.episode[slot])
        known |= set(range(episode, slots.episode_spans.get(slot, episode) + 1))
    gone += len([episode for episode in episodes if episode < 2**40 and episode not in known])
    return {
        "items": items,
        "sampler": _order(state, state.sampler_kind, state.sampler, state.sampler_place, live, returned),
        "remover": _order(state, state.remover_kind, state.remover, state.remover_place, live, returned),
        "limiter": (limiter.inserts, limiter.samples - in_flight, limiter.deletes - len(returned)),
        "counts": (state.size + len(returned), state.num_unique_samples - lost, state.generation),
        "nbytes": sum(each[3] for each in items.values()),
        "episodes": (len(episodes), state.episodes.num_deleted - gone),
        "highest": state.highest_priority,
        "rng": state.rng.bit_generator.state,
    }


def _order(
    state: TableState, kind: Selector, selector: Any, places: Any, live: list[int], returned: list[int]
) -> list[int]:
    """Return the keys in the order that decides what is picked."""
    slots = state.slots
    priority = {slot: float(slots.priority[slot]) for slot in live + returned}
    place = dict(zip(live, selector.peek(np.array(live, np.int64)).tolist(), strict=True))
    outside = dict(zip(returned, places[np.array(returned, np.int64)].tolist(), strict=True))
    both = {**place, **outside}
    if isinstance(kind, Uniform):
        ranked = sorted(live, key=place.__getitem__) + returned_in_order(state, returned)
    elif isinstance(kind, Prioritized):
        zeros = sorted((slot for slot in live if not priority[slot]), key=place.__getitem__)
        zeros += [slot for slot in returned_in_order(state, returned) if not priority[slot]]
        ranked = zeros
    elif isinstance(kind, Fifo):
        ranked = sorted(live + returned, key=both.__getitem__)
    elif isinstance(kind, Lifo):
        ranked = sorted(live + returned, key=lambda slot: -both[slot])
    else:
        sign = 1 if isinstance(kind, MinHeap) else -1
        assert isinstance(kind, MinHeap | MaxHeap)
        ranked = sorted(live + returned, key=lambda slot: (sign * priority[slot], both[slot]))
    keys = [int(slots.key[slot]) for slot in ranked]
    if kind.is_deterministic and not returned:
        assert keys == [int(slots.key[slot]) for slot in selector.first(len(live)).tolist()]
    return keys


def returned_in_order(state: TableState, returned: list[int]) -> list[int]:
    """Return sampled-out slots as they come back to selectors without an order: by key, see `TableDraws._return`."""
    return sorted(returned, key=lambda slot: int(state.slots.key[slot]))
