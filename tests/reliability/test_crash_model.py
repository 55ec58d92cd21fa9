"""The whole service against lists, over crashes: a server that comes back holds what the lists held at its checkpoint.

A history is a list of steps, each with a seed of its own; the server, the disk and the clock of all steps are those of
`crash_rig`. What enters and leaves is heard from the tables, and must be what the lists allow; what clients are told
must agree with it. A history that fails is repeated with ever fewer steps, and printed.
"""

from __future__ import annotations

import asyncio
import copy
import random
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crash_rig import Killed, Line, SlowThread, VirtualLoop, use_slow_thread
from reliability_rig import cancel_after_turns, check_counts, until_nothing_waits_or_is_held

import reverb_async as ra
from reverb_async.core.changes import Change, ChangeKind
from reverb_async.core.gather import GatherPlan

SIZE = 7
QUEUE_SIZE = 4
TABLES = ("uniform", "prioritized", "queue")
SETTLED_S = 0.3
PATIENCE_S = 200.0

Step = tuple[str, int]


def tables() -> list[ra.Table]:
    bounded = ra.rate_limiters.RateLimiter(2.0, 1, -12.0, 24.0)
    return [
        ra.Table("uniform", max_size=SIZE, seed=1),
        ra.Table(
            "prioritized", max_size=SIZE, sampler=ra.selectors.Prioritized(1.0), rate_limiter=bounded, seed=2
        ),
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
        self.next_number = 0
        self.written: dict[str, set[int]] = defaultdict(set)
        self.given_up: set[int] = set()
        self.banned: set[int] = set()
        self.ever_applied: set[int] = set()
        self.lost: dict[str, int] = defaultdict(int)
        self.inserting: dict[int, asyncio.Task[Any]] = {}
        self.saving: asyncio.Task[None] | None = None

    # -- servers ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self.serve(power_cut=False)
        line = Line(self.killed)
        self.client = ra.Client._over(line)
        self.writer = self.client.trajectory_writer(3)
        self.listening = asyncio.create_task(self.listen(self.client.events()))

    async def listen(self, events: Any) -> None:
        async for event in events:
            if isinstance(event, ra.events.ItemsLost):
                self.lost["writer" if event.writer.startswith("trajectory") else "insert"] += event.count

    async def serve(self, *, power_cut: bool) -> None:
        """Start a server; it must hold what the model held when the checkpoint began that it found."""
        checkpointer = await self.killed.start(power_cut=power_cut)
        last = checkpointer.last_path
        sequence = 0 if last is None else int(last[-20:])
        assert sequence >= self.acknowledged, f"checkpoint {self.acknowledged} was promised, {sequence} was restored"
        self.state = copy.deepcopy(self.saved[sequence]) if sequence else State()
        replay = self.killed.replay
        cut = replay.cut

        def cut_and_note(*, full: bool) -> Any:
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
            numbers = np.ravel(piece.columns[0]).tolist()
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

    async def kill(self, *, answers_arrive: bool, power_cut: bool) -> None:
        self.killed.kill(answers_arrive=answers_arrive)
        if self.saving is not None:
            self.saving.cancel()
            await asyncio.wait({self.saving})
            self.saving = None
        if self.rng.random() < 0.3:
            await asyncio.sleep(self.rng.choice([0.01, 1.0, 20.0]))
        await self.serve(power_cut=power_cut)
        await self.write("uniform")  # With something to say, both sessions find their server and learn what it has.
        await self.insert("uniform")
        await asyncio.sleep(5.0)

    # -- steps --------------------------------------------------------------------------------------------------------

    def new(self, session: str) -> int:
        self.next_number += 1
        self.written[session].add(self.next_number)
        return self.next_number

    def give_up(self, *numbers: int) -> None:
        """Note items whose call has failed: what is not in by now must not come in."""
        self.given_up.update(numbers)
        self.banned.update(number for number in numbers if number not in self.state.applied)

    async def insert(self, table: str) -> None:
        number = self.new("insert")
        try:
            key = await self.client.insert({"x": np.int64(number)}, {table: 1.0 + number % 3}, timeout=0)
        except ra.RateLimiterTimeout:
            assert table != "uniform"
            self.give_up(number)
        else:
            assert number in self.state.applied
            assert self.key_of(table, number) in (None, key[table])

    async def insert_batch(self, table: str, count: int) -> None:
        numbers = [self.new("insert") for _ in range(count)]
        try:
            keys = await self.client.insert_batch({"x": np.array(numbers)}, {table: 2.0}, timeout=0)
        except ra.RateLimiterTimeout as error:
            keys = error.keys
        admitted = len(keys[table])
        assert admitted == count or table != "uniform"
        assert [number in self.state.applied for number in numbers] == [at < admitted for at in range(count)]
        self.give_up(*numbers[admitted:])

    async def begin_insert(self, table: str) -> None:
        if len(self.inserting) < 5:
            number = self.new("insert")
            insert = self.client.insert({"x": np.int64(number)}, {table: 1.5})
            self.inserting[number] = asyncio.create_task(insert)

    async def cancel_insert(self) -> None:
        if self.inserting:
            number = self.rng.choice(sorted(self.inserting))
            task = self.inserting.pop(number)
            task.cancel()
            await asyncio.wait({task})
            await asyncio.sleep(SETTLED_S)
            self.give_up(number)

    async def write(self, table: str) -> None:
        number = self.new("writer")
        self.writer.append({"x": np.int64(number)})
        await self.writer.create_item(table, 2.5, trajectory={"x": self.writer.history["x"][-1]})

    async def end_episode(self) -> None:
        async with asyncio.timeout(0.5):
            await self.writer.end_episode(timeout=0.2)

    def key_of(self, table: str, number: int) -> int | None:
        return next((item.key for item in self.state.tables[table].items if item.number == number), None)

    async def sample(self, table: str, count: int) -> None:
        contents = self.state.tables[table]
        try:
            batch = await self.client.sample_batch(table, count, timeout=0)
        except ra.RateLimiterTimeout:
            assert (
                table == "prioritized"
                and 2.0 * contents.inserts - contents.samples - count < -12.0
                or len(contents.items) < (count if table == "queue" else 1)
            )
            return
        self.took(table, batch.info.key.tolist(), batch.data["x"].tolist())

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

    async def cancel_sample(self, table: str, count: int, turns: int) -> None:
        outcome = await cancel_after_turns(self.client.sample_batch(table, count), turns)
        if isinstance(outcome, ra.Batch):
            self.took(table, outcome.info.key.tolist(), outcome.data["x"].tolist())
        else:
            assert isinstance(outcome, asyncio.CancelledError), outcome
        await asyncio.sleep(SETTLED_S)
        assert not self.state.tables["queue"].out

    async def iterate(self, take: int, prefetch: int) -> None:
        """Take some of what the queue sends, and hand the rest back."""
        async with self.client.sample("queue", prefetch=prefetch, timeout=0) as samples:
            try:
                for _ in range(take):
                    sample = await anext(samples)
                    self.took("queue", [sample.info.key], [int(sample.data["x"])])
                    if self.rng.random() < 0.5:
                        await asyncio.sleep(0.05)
            except ra.RateLimiterTimeout:
                pass
        await asyncio.sleep(SETTLED_S)
        assert not self.state.tables["queue"].out

    async def disconnect(self, prefetch: int) -> None:
        """Another client takes from the queue, inserts much, and is gone."""
        line = Line(self.killed)
        client = ra.Client._over(line)
        numbers = [self.new("other") for _ in range(6)]
        samples = client.sample("queue", prefetch=prefetch)
        taking = asyncio.ensure_future(anext(samples))
        insert = client.insert_batch({"x": np.array(numbers)}, {self.rng.choice(TABLES): 1.0})
        inserting = asyncio.create_task(insert)
        await asyncio.sleep(self.rng.choice([0, 0, 0.1]))
        for _ in range(self.rng.randrange(40)):
            await asyncio.sleep(0)
        if taking.done():
            sample = taking.result()
            self.took("queue", [sample.info.key], [int(sample.data["x"])])
            await asyncio.sleep(self.rng.choice([0, 0.1]))
        was_taken = taking.done()
        line.cut()
        taking.cancel()
        inserting.cancel()
        await asyncio.wait({taking, inserting})
        await samples.aclose()
        await client.close()
        await asyncio.sleep(SETTLED_S)
        self.give_up(*numbers)
        assert was_taken or not self.state.tables["queue"].out

    async def mutate(self, table: str) -> None:
        items = self.state.tables[table].items
        updated = self.rng.sample(items, min(len(items), self.rng.randrange(3)))
        deleted = self.rng.sample(items, min(len(items), self.rng.randrange(2)))
        for item in updated:
            item.priority = float(self.rng.randrange(1, 9))
        self.state.tables[table].items = [item for item in items if item not in deleted]
        result = await self.client.mutate_priorities(
            table, {item.key: item.priority for item in updated}, [item.key for item in deleted]
        )
        assert result == ra.MutateResult(len(updated), len(deleted), 0)

    async def reset(self, table: str) -> None:
        await self.client.reset(table)

    async def begin_checkpoint(self) -> None:
        if self.saving is not None:
            return
        count = len(self.saved)
        at = max(self.saved, default=0)

        async def save() -> None:
            path = await self.client.checkpoint()
            self.acknowledged = max(self.acknowledged, int(path[-20:]))

        self.saving = asyncio.create_task(save())
        while len(self.saved) == count and at == max(self.saved, default=0) and not self.saving.done():
            await asyncio.sleep(0.001)

    async def finish_checkpoint(self) -> None:
        await self.begin_checkpoint()
        assert self.saving is not None
        await self.saving
        self.saving = None

    async def crash(self) -> None:
        await self.kill(answers_arrive=True, power_cut=self.rng.random() < 0.5)

    async def crash_amid_calls(self, turns: int) -> None:
        """Inserts of all kinds are under way, and their answers may be lost."""
        for _ in range(3):
            await self.begin_insert(self.rng.choice(TABLES))
            await self.write(self.rng.choice(TABLES))
        for _ in range(turns):
            await asyncio.sleep(0)
        await self.kill(answers_arrive=self.rng.random() < 0.5, power_cut=self.rng.random() < 0.5)

    async def crash_amid_save(self, calls: int) -> None:
        self.killed.kill_after(calls)
        await self.begin_checkpoint()
        await self.insert("uniform")
        await self.write("queue")
        await asyncio.sleep(self.rng.choice([0.0, 0.1, 2.0]))
        await self.kill(answers_arrive=True, power_cut=self.rng.random() < 0.5)

    def step(self, name: str) -> Awaitable[None]:
        rng = self.rng
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "insert": lambda: self.insert(rng.choice(TABLES)),
            "insert_batch": lambda: self.insert_batch(rng.choice(TABLES), rng.randrange(1, 10)),
            "begin_insert": lambda: self.begin_insert(rng.choice(TABLES)),
            "cancel_insert": self.cancel_insert,
            "write": lambda: self.write(rng.choice(TABLES)),
            "sample": lambda: self.sample(rng.choice(TABLES), rng.randrange(1, 4)),
            "cancel_sample": lambda: self.cancel_sample(rng.choice(TABLES), rng.randrange(1, 4), rng.randrange(40)),
            "iterate": lambda: self.iterate(rng.randrange(4), rng.randrange(4)),
            "disconnect": lambda: self.disconnect(rng.randrange(1, 4)),
            "mutate": lambda: self.mutate(rng.choice(TABLES)),
            "reset": lambda: self.reset(rng.choice(TABLES)),
            "begin_checkpoint": self.begin_checkpoint,
            "finish_checkpoint": self.finish_checkpoint,
            "crash": self.crash,
            "crash_amid_calls": lambda: self.crash_amid_calls(rng.randrange(60)),
            "crash_amid_save": lambda: self.crash_amid_save(rng.randrange(40)),
        }
        return steps[name]()

    # -- running ------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        for number in [number for number, task in self.inserting.items() if task.done()]:
            self.inserting.pop(number).result()
        self.check_tables()
        assert self.killed.server is not None
        check_counts(self.killed.server)
        if self.saving is not None and self.saving.done():
            self.saving.result()
            self.saving = None

    async def run(self, steps: list[Step]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.start()
        for name, seed in steps:
            self.rng.seed(seed)
            async with asyncio.timeout(PATIENCE_S):
                await self.step(name)
                await asyncio.sleep(SETTLED_S)
            self.check()
        async with asyncio.timeout(PATIENCE_S):
            await self.end()

    async def end(self) -> None:
        """Everybody honest gets what they asked for; nothing is lost but what clients were told of."""
        if self.saving is not None:
            await self.saving
        flushing = asyncio.create_task(self.writer.flush())
        while not flushing.done() or any(not task.done() for task in self.inserting.values()):
            await self.insert("prioritized")
            for table in TABLES:
                await self.sample(table, 1)
            await asyncio.sleep(0.05)
        await asyncio.gather(flushing, *self.inserting.values())
        await asyncio.sleep(SETTLED_S)
        self.check()
        for session in ("insert", "writer"):
            missing = self.written[session] - self.state.applied
            least, most = len(missing - self.given_up), len(missing & self.ever_applied)
            told = self.lost[session]
            assert least <= told <= most, f"{session}: told of {told} lost items, {least} to {most} are"
        assert self.killed.server is not None
        await self.client.close()
        await self.listening
        await until_nothing_waits_or_is_held(self.killed.server)
        await self.killed.server.close()


WEIGHTS = {
    "insert": 4,
    "insert_batch": 3,
    "begin_insert": 3,
    "cancel_insert": 2,
    "write": 5,
    "sample": 5,
    "cancel_sample": 2,
    "iterate": 2,
    "disconnect": 2,
    "mutate": 3,
    "reset": 1,
    "begin_checkpoint": 4,
    "finish_checkpoint": 2,
    "crash": 2,
    "crash_amid_calls": 2,
    "crash_amid_save": 2,
}


def steps_of(seed: int, count: int) -> list[Step]:
    rng = random.Random(seed)
    return [(name, rng.randrange(1 << 30)) for name in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)]


def run(seed: int, steps: list[Step]) -> None:
    SlowThread.job_s = (0.0, 0.02, 0.1)[seed % 3]
    random.seed(seed)
    with tempfile.TemporaryDirectory() as path, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(History(Path(path), seed).run(steps))


def shortest(seed: int, steps: list[Step], error: BaseException) -> tuple[list[Step], BaseException]:
    """Return a history that fails, too, and of which no step can be left out."""
    at = 0
    while at < len(steps):
        fewer = steps[:at] + steps[at + 1 :]
        try:
            run(seed, fewer)
        except Exception as failed:
            steps, error = fewer, failed
        else:
            at += 1
    return steps, error


def run_histories(seeds: range, count: int) -> None:
    for seed in seeds:
        steps = steps_of(seed, count)
        try:
            run(seed, steps)
        except Exception as error:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fewer, failed = shortest(seed, steps, error)
            raise AssertionError(f"seed {seed}, run({seed}, {fewer}): {failed!r}") from failed


def test_a_server_that_comes_back_holds_what_lists_held_at_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    use_slow_thread(monkeypatch)
    run_histories(range(200), 12)


@pytest.mark.soak
def test_over_long_histories_servers_that_come_back_hold_what_lists_held(monkeypatch: pytest.MonkeyPatch) -> None:
    use_slow_thread(monkeypatch)
    run_histories(range(1000, 3000), 60)
