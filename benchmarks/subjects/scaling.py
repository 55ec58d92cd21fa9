"""What many waiters, many items and many connections cost: the same work with few and with many, in alternation."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.harness import play_rounds
from benchmarks.payloads import SMALL_BYTES
from benchmarks.processes import ours
from benchmarks.result import Result, result_of, simple_result
from benchmarks.subject import BYTES, GROWTH, SHARE, Options, Role, Session, Subject, Tally, Work
from benchmarks.subject import ITEMS as ITEMS_PER_S
from benchmarks.subjects.sampling import sampling, sampling_and_updating
from benchmarks.subjects.work import BATCH, TABLE, UNIFORM
from benchmarks.usage import available_bytes, resident_bytes

WRITERS = 1_000
_WRITER_PROCESSES = 2
_DRAIN = 64
_DEFAULT_IN_FLIGHT = 64
_FEW_IN_FLIGHT = 8
_TURNS = 2

CONNECTIONS = 1_000
_CONNECTION_PROCESSES = 4

SIZES = (10_000, 100_000, 1_000_000)
FULL_SIZE = 10_000_000
_FULL_BYTES = 8 << 30


async def writing_for_ever(session: Session, *, writers: int, processes: int, in_flight: int) -> Work:
    """Keep a share of the writers creating items, in and between rounds: between them they are blocked."""
    # A blocked writer says after ten seconds that it is, and what it drops when it is cancelled: each of them.
    logging.getLogger("reverb_async").setLevel(logging.ERROR)
    share = writers // processes
    first = session.number * share

    async def write(at: int) -> None:
        async with session.client.trajectory_writer(1, max_in_flight_items=in_flight) as writer:
            while True:
                writer.append({"writer": np.int32(at)})
                await writer.create_item(TABLE, 1.0, trajectory={"writer": writer.history["writer"][-1]})

    tasks = [asyncio.create_task(write(first + at), name=f"writer {first + at}") for at in range(share)]

    async def end() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    session.stack.push_async_callback(end)

    async def work(seconds: float) -> Tally:
        await asyncio.sleep(seconds)
        for task in tasks:
            if task.done():
                await task  # It never ends unless it fails.
        return Tally()

    return work


async def draining(session: Session, *, writers: int) -> Work:
    """Take items off the queue, and count whose they are."""
    counts = np.zeros(writers, np.int64)
    samples = await session.stack.enter_async_context(session.client.sample_batches(TABLE, _DRAIN))

    async def work(seconds: float) -> Tally:
        tally = Tally()
        deadline = time.perf_counter() + seconds
        async for batch in samples:
            counts[:] += np.bincount(batch.data["writer"], minlength=writers)
            tally.items += len(batch.info.key)
            if time.perf_counter() > deadline:
                break
        tally.details = {"least_of_a_writer": int(counts.min()), "most_of_a_writer": int(counts.max())}
        return tally

    return work


def _draining_from(writers: int, processes: int, in_flight: int) -> Subject:
    many = f"{writers:,} writers keep" if writers > 1 else "one writer keeps"
    write = partial(writing_for_ever, writers=writers, processes=processes, in_flight=in_flight)
    return Subject(
        f"blocked-writers/{writers}x{in_flight}",
        f"one sampler draining, in batches of {_DRAIN}, a queue of 1,000 items that {many} full, "
        f"{in_flight} items of each in flight, TCP",
        ITEMS_PER_S,
        tables=("replay:kind=queue,max_size=1000",),
        roles=(
            Role(write, processes, counted=False),
            Role(partial(draining, writers=writers)),
        ),
        sizes={"writers": writers, "batch": _DRAIN},
        group="part",
    )


def measure_blocked_writers(subject: Subject, options: Options) -> Iterable[Result]:
    """Take turns: one writer, 1,000 writers."""
    parts = [
        PARTS[f"blocked-writers/1x{_DEFAULT_IN_FLIGHT}"],
        PARTS[f"blocked-writers/{WRITERS}x{subject.sizes['in_flight']}"],
    ]
    # Writers are served by blocks of what they have in flight: how alike, shows after some turns of all 1,000.
    longer = replace(options, seconds=_TURNS * options.seconds)
    with ExitStack() as stack:
        one, many = play_rounds([stack.enter_context(ours(part)) for part in parts], longer)
    yield result_of(parts[0], one)
    yield result_of(parts[1], many)
    rates = [beside.value / alone.value for alone, beside in zip(one, many, strict=True)]
    counts = many[-1].details
    yield simple_result(subject, rates)
    yield simple_result(
        subject,
        [counts["most_of_a_writer"] / max(1, counts["least_of_a_writer"])],
        name=f"{subject.name}:alike",
        title="items taken from the luckiest of the 1,000 writers per item of the unluckiest, over all rounds",
        measure=GROWTH,
        target=2.0,
        details=counts,
    )


async def idling(session: Session, *, processes: int) -> Work:
    """Open a share of the connections, each by a client that asked something once, and keep them."""
    wanted = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    for _ in range(CONNECTIONS // processes):
        await (await session.another_client()).server_info()

    async def work(seconds: float) -> Tally:
        await asyncio.sleep(seconds)
        return Tally()

    return work


def _with_idle(connections: int) -> Subject:
    idle = Role(partial(idling, processes=_CONNECTION_PROCESSES), _CONNECTION_PROCESSES, counted=False)
    return Subject(
        f"idle-connections/{connections}",
        f"sample_batches(256), small, Uniform, one learner, beside {connections:,} idle connections, TCP",
        ITEMS_PER_S,
        tables=(UNIFORM,),
        roles=(Role(sampling), idle) if connections else (Role(sampling),),
        sizes={"connections": connections},
        group="part",
    )


def measure_idle_connections(subject: Subject, options: Options) -> Iterable[Result]:
    """Take turns: a server with, and one without idle connections."""
    parts = [PARTS["idle-connections/0"], PARTS[f"idle-connections/{CONNECTIONS}"]]
    with ExitStack() as stack:
        servers = [stack.enter_context(ours(part)) for part in parts]
        none, many = play_rounds(servers, options)
        memory = [resident_bytes(server.server_pid) for server in servers if server.server_pid is not None]
    yield result_of(parts[0], none)
    yield result_of(parts[1], many)
    yield simple_result(subject, [beside.value / alone.value for alone, beside in zip(none, many, strict=True)])
    if memory[0] is not None and memory[1] is not None:
        yield simple_result(
            subject,
            [(memory[1] - memory[0]) / CONNECTIONS],
            name="idle-connections:memory",
            title="server memory per idle connection",
            measure=BYTES,
        )


async def sampling_of(session: Session, *, items: int, update: bool) -> Work:
    """Sample a table of so many items; update the priorities as well, or not."""
    sampler = await sampling(session, items=items)
    return await sampling_and_updating(session) if update else sampler


def _growing(sampler: str, items: int) -> Subject:
    is_prioritized = sampler == "prioritized"
    flags = f"sampler=prioritized,priority_exponent=0.6,max_size={items}" if is_prioritized else f"max_size={items}"
    return Subject(
        f"growth-{sampler}/{items}",
        f"sample_batches(256){' + update_priorities' if is_prioritized else ''}, small, {items:,} items, TCP",
        ITEMS_PER_S,
        tables=(f"replay:{flags}",),
        roles=(Role(partial(sampling_of, items=items, update=is_prioritized)),),
        sizes={"batch": BATCH, "payload_bytes": SMALL_BYTES, "items": items},
        group="part",
    )


def measure_growth(subject: Subject, options: Options) -> Iterable[Result]:
    """Take turns over tables of all sizes; 10M items only with ``--full`` and where memory allows."""
    sizes: tuple[int, ...] = SIZES
    room = available_bytes()
    if options.full and (room is None or room > _FULL_BYTES):
        sizes += (FULL_SIZE,)
    parts = [PARTS[f"{subject.name}/{items}"] for items in sizes]
    with ExitStack() as stack:
        played = play_rounds([stack.enter_context(ours(part)) for part in parts], options)
    for part, rounds in zip(parts, played, strict=True):
        yield result_of(part, rounds)
    costs = [small.value / large.value for small, large in zip(played[0], played[-1], strict=True)]
    yield simple_result(subject, costs, details={"from_items": sizes[0], "to_items": sizes[-1]})


_PARTS = (
    _draining_from(1, 1, _DEFAULT_IN_FLIGHT),
    _draining_from(WRITERS, _WRITER_PROCESSES, _DEFAULT_IN_FLIGHT),
    _draining_from(WRITERS, _WRITER_PROCESSES, _FEW_IN_FLIGHT),
    _with_idle(0),
    _with_idle(CONNECTIONS),
    *(_growing(sampler, items) for sampler in ("uniform", "prioritized") for items in (*SIZES, FULL_SIZE)),
)
PARTS = {part.name: part for part in _PARTS}

SUBJECTS = (
    Subject(
        "blocked-writers",
        "rate of one sampler draining a queue with 1,000 writers blocked on it, relative to one writer",
        SHARE,
        0.5,
        sizes={"writers": WRITERS, "batch": _DRAIN, "in_flight": _DEFAULT_IN_FLIGHT},
        run=measure_blocked_writers,
    ),
    Subject(
        "blocked-writers-few",
        "the same with 8 instead of 64 items in flight of each of the 1,000 (the one writer keeps its 64)",
        SHARE,
        0.5,
        sizes={"writers": WRITERS, "batch": _DRAIN, "in_flight": _FEW_IN_FLIGHT},
        run=measure_blocked_writers,
    ),
    Subject(
        "idle-connections",
        "rate of a learner beside 1,000 idle connections, relative to none",
        SHARE,
        0.9,
        sizes={"connections": CONNECTIONS},
        run=measure_idle_connections,
    ),
    Subject(
        "growth-uniform",
        "cost of a sampled item in the largest table relative to 10k items, Uniform, end to end",
        GROWTH,
        2.0,
        sizes={"batch": BATCH},
        run=measure_growth,
    ),
    Subject(
        "growth-prioritized",
        "cost of a sampled and updated item in the largest table relative to 10k items, Prioritized(0.6), end to end",
        GROWTH,
        3.0,
        sizes={"batch": BATCH},
        run=measure_growth,
    ),
)
