"""One server after another, their clients, and a model of them: lists."""

from __future__ import annotations

import asyncio
import copy
import random
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from crash_rig import Killed, Line
from reliability_rig import check_counts

import reverb_async as ra
from reverb_async.core.changes import Change, ChangeKind
from reverb_async.core.gather import GatherPlan

SIZE = 7
QUEUE_SIZE = 4
TABLES = ("uniform", "prioritized", "queue")


def tables() -> list[ra.Table]:
    bounded = ra.rate_limiters.RateLimiter(2.0, 1, -12.0, 24.0)
    return [
        ra.Table("uniform", max_size=SIZE, seed=1),
        ra.Table("prioritized", max_size=SIZE, sampler=ra.selectors.Prioritized(1.0), rate_limiter=bounded, seed=2),
        ra.Table.queue("queue", QUEUE_SIZE),
    ]


@dataclass
class Item:
    """What the model knows of an item.

    Attributes:
        number: its data, and the model's name for it.
        place: counts arrivals in its table.
    """

    key: int
    number: int
    priority: float
    place: int
    times: int = 0


@dataclass
class Contents:
    """A table as lists; `out` are items of a queue that are with clients, which have not acknowledged them."""

    items: list[Item] = field(default_factory=list)
    out: list[Item] = field(default_factory=list)
    inserts: int = 0
    samples: int = 0
    arrivals: int = 0

    def settled(self) -> Contents:
        """Return what a restored table holds: what is not acknowledged went back."""
        back = copy.deepcopy(self)
        back.items = sorted([*back.items, *back.out], key=lambda item: item.place)
        back.out = []
        return back


@dataclass
class State:
    """All tables, which items ever entered one, and what each would draw next."""

    tables: dict[str, Contents] = field(default_factory=lambda: {name: Contents() for name in TABLES})
    applied: set[int] = field(default_factory=set)
    draws: dict[str, list[int]] = field(default_factory=dict)


class History:
    """One server after another, their clients, and the model of them."""

    def __init__(self, path: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.killed = Killed(path, tables)
        self.state = State()
        self.saved: dict[int, State] = {}
        self.acknowledged = 0
        self.num_cuts = 0
        self.next_number = 0
        self.written: dict[str, set[int]] = defaultdict(set)
        self.given_up: set[int] = set()
        self.banned: set[int] = set()
        self.ever_applied: set[int] = set()
        self.steps = [0, 0]
        self.windows: dict[int, list[int]] = {}
        self.lost: dict[str, int] = defaultdict(int)
        self.inserting: dict[int, asyncio.Task[Any]] = {}
        self.saving: asyncio.Task[None] | None = None

    # -- servers ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self.serve(power_cut=False)
        line = Line(self.killed)
        self.client = ra.Client._over(line)
        self.writer = self.client.trajectory_writer(3)
        for step in self.steps:
            self.writer.append({"x": np.int64(step)})
        self.listening = asyncio.create_task(self.listen(self.client.events()))

    async def listen(self, events: Any) -> None:
        async for event in events:
            if isinstance(event, ra.events.ItemsLost):
                self.lost["writer" if event.writer.startswith("trajectory") else "insert"] += event.count

    async def serve(self, *, power_cut: bool) -> None:
        """Start a server; it must hold what the model held when the checkpoint began that it found."""
        while self.rng.random() < 0.2:
            await self.killed.fail_to_start(self.rng.randrange(8), power_cut=power_cut)
        checkpointer = await self.killed.start(power_cut=power_cut)
        last = checkpointer.last_path
        sequence = 0 if last is None else int(last[-20:])
        assert sequence >= self.acknowledged, f"checkpoint {self.acknowledged} was promised, {sequence} was restored"
        self.state = copy.deepcopy(self.saved[sequence]) if sequence else State()
        replay = self.killed.replay
        cut = replay.cut

        def cut_and_note(*, full: bool) -> Any:
            self.num_cuts += 1
            self.saved[checkpointer._directory.next_sequence()] = self.snapshot()
            return cut(full=full)

        replay.cut = cut_and_note
        for name, table in replay.tables.items():
            table.state.listeners.append(partial(self.heard, name))
        self.check_tables()
        self.check_draws()
        self.killed.serve()

    def snapshot(self) -> State:
        contents = {name: contents.settled() for name, contents in self.state.tables.items()}
        return State(contents, set(self.state.applied), {name: self.next_draws(name) for name in TABLES[:2]})

    def next_draws(self, name: str) -> list[int]:
        """Look at what a table would draw, without drawing it."""
        state = self.killed.replay.tables[name].state
        if not state.size:
            return []
        slots, _ = state.sampler.sample(6, copy.deepcopy(state.rng))
        return state.slots.key[slots].tolist()

    def check_draws(self) -> None:
        for name, draws in self.state.draws.items():
            assert self.next_draws(name) == draws, name

    def check_tables(self) -> None:
        for name, contents in self.state.tables.items():
            table = self.killed.replay.tables[name]
            state = table.state
            slots = state.live_slots()
            held = state.slots.describe(slots)
            found = {
                key: (priority, times)
                for key, priority, times in zip(
                    held["key"].tolist(), held["priority"].tolist(), held["times_sampled"].tolist(), strict=True
                )
            }
            assert found == {item.key: (item.priority, item.times) for item in contents.items}, name
            order = slots[np.argsort(state.remover.place(slots), kind="stable")] if len(slots) else slots
            assert state.slots.key[order].tolist() == [item.key for item in contents.items], name
            limiter = table.info.rate_limiter_info
            assert limiter.insert_stats.completed == contents.inserts, name
            assert limiter.sample_stats.completed == contents.samples + len(contents.out), name

    def heard(self, name: str, change: Change) -> None:
        """Note what happened to a table, which must be what may happen to a list."""
        if self.killed.server is None:
            return
        contents = self.state.tables[name]
        keys = change.keys.tolist()
        if change.kind is ChangeKind.INSERT:
            assert change.priorities is not None
            state = self.killed.replay.tables[name].state
            (piece,) = (plan := GatherPlan(state.slots, change.slots)).run([None] * len(plan.layouts))
            numbers = np.ravel(piece.columns[1]).tolist()
            for key, number, priority in zip(keys, numbers, change.priorities.tolist(), strict=True):
                assert number not in self.state.applied, f"{number} entered twice"
                assert number not in self.banned, f"{number} was given up, and entered"
                self.state.applied.add(number)
                self.ever_applied.add(number)
                contents.arrivals += 1
                contents.inserts += 1
                contents.items.append(Item(key, number, priority, contents.arrivals))
        elif change.kind is ChangeKind.EVICT:
            assert keys == [item.key for item in contents.items[: len(keys)]]
            del contents.items[: len(keys)]
        elif change.kind is ChangeKind.SAMPLE_OUT:
            assert keys == [item.key for item in contents.items[: len(keys)]]
            contents.out += contents.items[: len(keys)]
            del contents.items[: len(keys)]
        elif change.kind is ChangeKind.HAND_BACK:
            back = [item for item in contents.out if item.key in keys]
            assert len(back) == len(keys)
            contents.out = [item for item in contents.out if item not in back]
            contents.items = sorted([*contents.items, *back], key=lambda item: item.place)
        elif change.kind is ChangeKind.RESET:
            contents.items, contents.out = [], []
            contents.inserts = contents.samples = 0

    # -- what clients do ---------------------------------------------------------------------------------------------

    def new(self, session: str) -> int:
        self.next_number += 1
        self.written[session].add(self.next_number)
        return self.next_number

    def data(self, numbers: int | list[int]) -> dict[str, Any]:
        """Return what an item shows, or a batch of them: itself, and three steps, for the writer's those before it."""
        x = np.asarray(numbers)
        return {"window": np.stack([x] * 3, axis=-1), "x": x}

    def give_up(self, *numbers: int) -> None:
        """Note items whose call has failed: what is not in by now must not come in."""
        self.given_up.update(numbers)
        self.banned.update(number for number in numbers if number not in self.state.applied)

    def key_of(self, table: str, number: int) -> int | None:
        return next((item.key for item in self.state.tables[table].items if item.number == number), None)

    def took(self, table: str, keys: list[int], numbers: list[int]) -> None:
        """Note draws that a client has and keeps."""
        contents = self.state.tables[table]
        contents.samples += len(keys)
        drawn = contents.out if table == "queue" else contents.items
        by_key = {item.key: item for item in drawn}
        assert [by_key[key].number for key in keys] == numbers
        for key in keys:
            by_key[key].times += 1
        if table == "queue":
            assert keys == [item.key for item in contents.out[: len(keys)]]
            contents.out = [item for item in contents.out if item.key not in keys]

    def check(self) -> None:
        for number in [number for number, task in self.inserting.items() if task.done()]:
            self.inserting.pop(number).result()
        self.check_tables()
        assert self.killed.server is not None
        check_counts(self.killed.server)
        if self.saving is not None and self.saving.done():
            self.saving.result()
            self.saving = None
