"""The whole service against lists, over crashes: a server that comes back holds what the lists held at its checkpoint.

A history is a list of steps, each with a seed of its own; the server, the disk and the clock of all steps are those of
`crash_rig`. What enters and leaves is heard from the tables, and must be what the lists allow; what clients are told
must agree with it. A history that fails is repeated with ever fewer steps, and printed.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from crash_history import TABLES, History
from crash_rig import Line, SlowThread, VirtualLoop, use_slow_thread
from reliability_rig import cancel_after_turns, until_nothing_waits_or_is_held

import reverb_async as ra

SETTLED_S = 0.3
PATIENCE_S = 200.0

Step = tuple[str, int]


class Steps(History):
    """What may happen."""

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
        await asyncio.sleep(3.0)

    async def insert(self, table: str) -> None:
        number = self.new("insert")
        try:
            key = await self.client.insert(self.data(number), {table: 1.0 + number % 3}, timeout=0)
        except ra.RateLimiterTimeout:
            assert table != "uniform"
            self.give_up(number)
        else:
            assert number in self.state.applied
            assert self.key_of(table, number) in (None, key[table])

    async def insert_batch(self, table: str, count: int) -> None:
        numbers = [self.new("insert") for _ in range(count)]
        try:
            keys = await self.client.insert_batch(self.data(numbers), {table: 2.0}, timeout=0)
        except ra.RateLimiterTimeout as error:
            keys = error.keys
        admitted = len(keys[table])
        assert admitted == count or table != "uniform"
        assert [number in self.state.applied for number in numbers] == [at < admitted for at in range(count)]
        self.give_up(*numbers[admitted:])

    async def begin_insert(self, table: str) -> None:
        if len(self.inserting) < 5:
            number = self.new("insert")
            insert = self.client.insert(self.data(number), {table: 1.5})
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
        self.steps = [*self.steps[-2:], number]
        self.windows[number] = self.steps
        trajectory = {"window": self.writer.history["x"][-3:], "x": self.writer.history["x"][-1]}
        await self.writer.create_item(table, 2.5, trajectory=trajectory)

    async def sample(self, table: str, count: int) -> None:
        contents = self.state.tables[table]
        try:
            batch = await self.client.sample_batch(table, count, timeout=0)
        except ra.RateLimiterTimeout:
            assert (table == "prioritized" and 2.0 * contents.inserts - contents.samples - count < -12.0) or len(
                contents.items
            ) < (count if table == "queue" else 1)
            return
        self.took(table, batch.info.key.tolist(), batch.data["x"].tolist())
        for number, window in zip(batch.data["x"].tolist(), batch.data["window"].tolist(), strict=True):
            assert window == self.windows.get(number, [number] * 3)
        if table != "queue" and self.rng.random() < 0.4:
            priorities = [float(self.rng.randrange(1, 9)) for _ in range(count)]
            by_key = {item.key: item for item in contents.items}
            for key, priority in zip(batch.info.key.tolist(), priorities, strict=True):
                by_key[key].priority = priority
            await batch.update_priorities(priorities)
            await asyncio.sleep(SETTLED_S)

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
        insert = client.insert_batch(self.data(numbers), {self.rng.choice(TABLES): 1.0})
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
        before = self.num_cuts

        async def save() -> None:
            path = await self.client.checkpoint()
            self.acknowledged = max(self.acknowledged, int(path[-20:]))

        self.saving = asyncio.create_task(save())
        while self.num_cuts == before and not self.saving.done():  # noqa: ASYNC110
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
        runner.run(Steps(Path(path), seed).run(steps))


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
    run_histories(range(60, 100), 12)


@pytest.mark.soak
def test_over_long_histories_servers_that_come_back_hold_what_lists_held(monkeypatch: pytest.MonkeyPatch) -> None:
    use_slow_thread(monkeypatch)
    run_histories(range(1000, 1400), 60)
