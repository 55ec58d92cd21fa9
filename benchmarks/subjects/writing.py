"""Actors: how fast items go in, and priorities change."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import numpy as np

import reverb_async as ra
from benchmarks.payloads import LARGE_BYTES, SMALL_BYTES, blobs, row, small
from benchmarks.subject import ITEMS as ITEMS_PER_S
from benchmarks.subject import KEYS, MEGABYTES, PeerWork, Role, Session, Subject, Tally, Work
from benchmarks.subjects.work import BATCH, ITEMS, PRIORITIZED, TABLE, UNIFORM, fill, repeat

ACTORS = 64
ACTOR_PROCESSES = 4


async def writing_steps(session: Session) -> Work:
    """Append a step and create an item of it, step by step, with one writer, in episodes of 1,000 steps."""
    client = session.client
    rows = small(np.random.default_rng(0), 1000)
    steps = [row(rows, at) for at in range(1000)]

    async def work(seconds: float) -> Tally:
        deadline, tally = time.perf_counter() + seconds, Tally()
        async with client.trajectory_writer(num_keep_alive_refs=1) as writer:
            while time.perf_counter() < deadline:
                for step in steps:
                    writer.append(step)
                    history = writer.history
                    await writer.create_item(TABLE, 1.0, trajectory={name: history[name][-1] for name in step})
                tally.items += len(steps)
                await writer.end_episode()
        return tally

    return work


async def inserting_batches(session: Session) -> Work:
    """Insert batches, four calls in flight."""
    client = session.client
    data = small(np.random.default_rng(0), BATCH)

    async def step() -> int:
        await client.insert_batch(data, {TABLE: 1.0})
        return BATCH

    return lambda seconds: repeat(seconds, step, parallel=4)


async def inserting_singles(session: Session, *, parallel: int = 64) -> Work:
    """Insert single items, several coroutines at once."""
    client = session.client
    data = row(small(np.random.default_rng(0), 1), 0)

    async def step() -> int:
        await client.insert(data, {TABLE: 1.0})
        return 1

    return lambda seconds: repeat(seconds, step, parallel=parallel)


async def acting(session: Session, *, actors: int, processes: int) -> Work:
    """Be a share of the actors: each has a client of its own and inserts one item after the other."""
    data = row(small(np.random.default_rng(session.number), 1), 0)
    clients = [await session.another_client() for _ in range(actors // processes)]

    async def work(seconds: float) -> Tally:
        async def act(client: ra.Client) -> Tally:
            async def step() -> int:
                await client.insert(data, {TABLE: 1.0})
                return 1

            return await repeat(seconds, step, item_bytes=SMALL_BYTES)

        tallies = await asyncio.gather(*(act(client) for client in clients))
        return Tally(sum(tally.items for tally in tallies), sum(tally.nbytes for tally in tallies))

    return work


async def mutating(session: Session) -> Work:
    """Update 256 random priorities per call, eight calls in flight."""
    client = session.client
    await fill(client)
    batch = await client.sample_batch(TABLE, 4096)
    rng = np.random.default_rng(2)
    keys = np.unique(batch.info.key)
    blocks = [(rng.choice(keys, BATCH, replace=False), rng.random(BATCH) + 0.1) for _ in range(64)]
    turn = iter(range(10**12))

    async def step() -> int:
        await client.mutate_priorities(TABLE, blocks[next(turn) % len(blocks)])
        return BATCH

    return lambda seconds: repeat(seconds, step, parallel=8)


async def inserting_large(session: Session) -> Work:
    """Insert 16 MiB arrays, two calls in flight."""
    client = session.client
    data = row(blobs(np.random.default_rng(0), 1, LARGE_BYTES), 0)

    async def step() -> int:
        await client.insert(data, {TABLE: 1.0})
        return 1

    return lambda seconds: repeat(seconds, step, parallel=2, item_bytes=LARGE_BYTES)


_SMALL = {"batch": 1, "payload_bytes": SMALL_BYTES}

SUBJECTS = (
    Subject(
        "writer",
        "trajectory writer, append + create_item per step, small, one client, TCP",
        ITEMS_PER_S,
        40_000,
        (UNIFORM,),
        (Role(writing_steps),),
        _SMALL,
        peers=(
            PeerWork("dm-reverb", "structured_writer"),
            PeerWork("dm-reverb", "writer"),
            PeerWork("dm-reverb", "trajectory_writer"),
        ),
    ),
    Subject(
        "insert-batch",
        "insert_batch(256), small, 4 calls in flight, TCP",
        ITEMS_PER_S,
        1_000_000,
        (UNIFORM,),
        (Role(inserting_batches),),
        _SMALL | {"batch": BATCH},
    ),
    Subject(
        "insert-single",
        "insert of single items, small, 64 coroutines of one client, TCP",
        ITEMS_PER_S,
        None,
        (UNIFORM,),
        (Role(inserting_singles),),
        _SMALL,
    ),
    Subject(
        "insert-actors",
        "insert of single items, small, 64 actors: 64 clients in 4 processes, one insert in flight each, TCP",
        ITEMS_PER_S,
        25_000,
        (UNIFORM,),
        (Role(partial(acting, actors=ACTORS, processes=ACTOR_PROCESSES), processes=ACTOR_PROCESSES),),
        _SMALL | {"actors": ACTORS},
        peers=(PeerWork("dm-reverb", "client_insert", processes=2),),
    ),
    Subject(
        "mutate",
        "mutate_priorities of 256 keys of 4,096, 8 calls in flight, Prioritized(0.6), 100k items, TCP",
        KEYS,
        2_000_000,
        (PRIORITIZED,),
        (Role(mutating),),
        _SMALL | {"batch": BATCH, "items": ITEMS},
        peers=(PeerWork("dm-reverb", "mutate"),),
    ),
    Subject(
        "large-insert",
        "insert of 16 MiB arrays, random bytes, 2 calls in flight, a table of 24, TCP",
        MEGABYTES,
        1_200,
        ("replay:max_size=24",),
        (Role(inserting_large),),
        _SMALL | {"payload_bytes": LARGE_BYTES},
        peers=(PeerWork("dm-reverb", "large_insert"),),
    ),
)
