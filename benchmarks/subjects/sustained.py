"""Actors and learners together: mixed load, a fixed ratio, ten minutes."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Coroutine, Iterable
from functools import partial
from itertools import count

import numpy as np

import reverb_async as ra
from benchmarks.payloads import SMALL_BYTES, row, small
from benchmarks.processes import Contestant, ours
from benchmarks.result import Result, rounded, simple_result
from benchmarks.subject import GROWTH, SHARE, Options, Role, Round, Session, Subject, Tally, Work
from benchmarks.subject import ITEMS as ITEMS_PER_S
from benchmarks.subjects.sampling import sampling_and_updating
from benchmarks.subjects.work import BATCH, PRIORITIZED, TABLE
from benchmarks.usage import resident_bytes

_SAMPLES_PER_INSERT = 8.0
_ERROR_BUFFER = 2_000
_MIN_SIZE = 1_000
_RATIO_TABLE = (
    f"replay:max_size=10000,samples_per_insert={_SAMPLES_PER_INSERT},"
    f"min_size_to_sample={_MIN_SIZE},error_buffer={_ERROR_BUFFER}"
)
ACTORS = 64
_ACTOR_PROCESSES = 4
LEARNERS = 4
_LEARNER_BATCH = 64

_LONG_TABLE = "replay:sampler=prioritized,priority_exponent=0.6,max_size=200000"
_LONG_ROUND_S = 10.0
_RATIO_ROUND_S = 5.0


async def acting(session: Session, *, writers: int) -> Work:
    """Write small items with several trajectory writers at once, as actors do: episodes of 200 steps."""
    rows = small(np.random.default_rng(session.number), 200)
    steps = [row(rows, at) for at in range(200)]

    async def work(seconds: float) -> Tally:
        tally, deadline = Tally(), time.perf_counter() + seconds

        async def act() -> None:
            async with session.client.trajectory_writer(num_keep_alive_refs=1) as writer:
                while time.perf_counter() < deadline:
                    for step in steps:
                        writer.append(step)
                        history = writer.history
                        await writer.create_item(TABLE, None, trajectory={name: history[name][-1] for name in step})
                    tally.items += len(steps)
                    await writer.end_episode()

        await asyncio.gather(*(act() for _ in range(writers)))
        return tally

    return work


async def inserting_alike(session: Session, *, actors: int, processes: int) -> Work:
    """Insert single items for ever, a client per actor; a round reports what each has done in it."""
    share = actors // processes
    clients = [await session.another_client() for _ in range(share)]
    data = row(small(np.random.default_rng(session.number), 1), 0)

    async def work(seconds: float) -> Tally:
        counts = [0] * share

        async def act(at: int, client: ra.Client) -> None:
            for _ in count():
                await client.insert(data, {TABLE: 1.0})
                counts[at] += 1

        await _for_seconds(seconds, [act(at, client) for at, client in enumerate(clients)])
        return Tally(sum(counts), details={f"actors/{session.number}": counts})

    return work


async def learning_alike(session: Session) -> Work:
    """Sample batches of 64 for ever; a round reports what came in it."""

    async def work(seconds: float) -> Tally:
        tally = Tally()

        async def learn() -> None:
            async with session.client.sample_batches(TABLE, _LEARNER_BATCH) as batches:
                async for batch in batches:
                    tally.items += len(batch.info.key)

        await _for_seconds(seconds, [learn()])
        tally.details = {f"learner/{session.number}": tally.items}
        return tally

    return work


async def watching(session: Session) -> Work:
    """Look at the rate limiter's counts once in a round, while all are at work.

    Not at its end: learners who leave hand back what they have prefetched, which then counts as never sampled.
    """

    async def work(seconds: float) -> Tally:
        await asyncio.sleep(0.8 * seconds)
        limiter = (await session.client.server_info())[TABLE].rate_limiter_info
        counts = limiter.insert_stats.completed, limiter.sample_stats.completed
        return Tally(details={"inserts": counts[0], "samples": counts[1]})

    return work


async def _for_seconds(seconds: float, coroutines: list[Coroutine[object, object, None]]) -> None:
    """Run what never ends for a while; what fails, fails the round."""
    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            for coroutine in coroutines:
                tasks.create_task(coroutine)
    except TimeoutError:
        return


def _rounds_and_memory(contestant: Contestant, seconds: float, round_s: float) -> tuple[list[Round], list[int]]:
    assert contestant.server_pid is not None
    rounds, memory = [], []
    round_s = min(round_s, seconds / 6)
    contestant.play(round_s)
    for _ in range(max(3, round(seconds / round_s))):
        rounds.append(contestant.play(round_s))
        memory.append(resident_bytes(contestant.server_pid) or 0)
    return rounds, memory


def _growth(subject: Subject, memory: list[int]) -> Result:
    third = max(1, len(memory) // 3)
    return simple_result(
        subject,
        [statistics.median(memory[-third:]) / statistics.median(memory[:third])],
        name=f"{subject.name}:memory",
        title=f"server memory in the last third of {subject.name} relative to the first",
        measure=GROWTH,
        target=1.05,
        details={"resident_bytes": memory},
    )


def measure_ratio(subject: Subject, options: Options) -> Iterable[Result]:
    """64 actors and 4 learners under one rate limiter: what was asked, nobody starved, no growth."""
    with ours(subject) as contestant:
        rounds, memory = _rounds_and_memory(contestant, min(60.0, options.long_seconds), _RATIO_ROUND_S)
    surplus = [each.details["inserts"] * _SAMPLES_PER_INSERT - each.details["samples"] for each in rounds]
    first, last = rounds[0].details, rounds[-1].details
    inserts, samples = last["inserts"] - first["inserts"], last["samples"] - first["samples"]
    yield simple_result(
        subject,
        [max(abs(each - _MIN_SIZE * _SAMPLES_PER_INSERT) for each in surplus) / _ERROR_BUFFER],
        details={
            "surplus": surplus,
            "inserts": inserts,
            "samples": samples,
            "samples_per_insert": rounded(samples / max(1, inserts)),
            "inserts_per_s": [round(sum(map(sum, _of_actors(each))) / each.seconds) for each in rounds],
            "samples_per_s": [round(sum(_of_learners(each)) / each.seconds) for each in rounds],
        },
    )
    actors = np.sum([np.concatenate(_of_actors(each)) for each in rounds], axis=0)
    learners = np.sum([_of_learners(each) for each in rounds], axis=0)
    for who, counts in (("actors", actors), ("learners", learners)):
        yield simple_result(
            subject,
            [float(counts.min() / counts.mean())],
            name=f"ratio:{who}",
            title=f"what the unluckiest of the {who} got, relative to the mean: nobody starves",
            measure=SHARE,
            target=0.5,
            details={"counts": counts.tolist()},
        )
    yield _growth(subject, memory)


def _of_actors(played: Round) -> list[list[int]]:
    return [played.details[f"actors/{number}"] for number in range(_ACTOR_PROCESSES)]


def _of_learners(played: Round) -> list[int]:
    return [played.details[f"learner/{number}"] for number in range(LEARNERS)]


def measure_long_run(subject: Subject, options: Options) -> Iterable[Result]:
    """Four actors, a learner and updates for ten minutes: rates and memory stay flat."""
    with ours(subject) as contestant:
        rounds, memory = _rounds_and_memory(contestant, options.long_seconds, _LONG_ROUND_S)
    rates = [each.value for each in rounds]
    third = max(1, len(rates) // 3)
    yield simple_result(
        subject,
        [statistics.median(rates[-third:]) / statistics.median(rates[:third])],
        details={
            "seconds": sum(each.seconds for each in rounds),
            "sampled_per_s": [round(rate) for rate in rates],
            "inserted_per_s": [round(each.details["others_items_per_s"]) for each in rounds],
        },
    )
    yield _growth(subject, memory)


_four_actors = Role(partial(acting, writers=2), 2, counted=False)

SUBJECTS = (
    Subject(
        "mixed",
        "one learner sampling 256 + updating every batch, beside 4 actors writing step by step, Prioritized(0.6), TCP",
        ITEMS_PER_S,
        None,
        (PRIORITIZED,),
        (Role(sampling_and_updating), _four_actors),
        {"batch": BATCH, "payload_bytes": SMALL_BYTES, "actors": 4},
    ),
    Subject(
        "ratio",
        "64 actors and 4 learners for 60 s at 8 samples per insert: largest distance from it, in error buffers",
        GROWTH,
        1.0,
        (_RATIO_TABLE,),
        (
            Role(partial(inserting_alike, actors=ACTORS, processes=_ACTOR_PROCESSES), _ACTOR_PROCESSES),
            Role(learning_alike, LEARNERS),
            Role(watching),
        ),
        {"actors": ACTORS, "learners": LEARNERS, "batch": _LEARNER_BATCH, "payload_bytes": SMALL_BYTES},
        measure_ratio,
    ),
    Subject(
        "long-run",
        "the work of 'mixed' for ten minutes: sampling rate of the last third relative to the first",
        SHARE,
        0.9,
        (_LONG_TABLE,),
        (Role(sampling_and_updating), _four_actors),
        {"batch": BATCH, "payload_bytes": SMALL_BYTES, "actors": 4},
        measure_long_run,
        group="long",
    ),
)
