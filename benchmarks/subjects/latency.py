"""How long one operation takes, one after the other, on a server that does nothing else."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.payloads import SMALL_BYTES, row, small
from benchmarks.subject import MICROSECONDS, MILLISECONDS_P99, PeerWork, Role, Session, Subject, Tally, Work
from benchmarks.subjects.sampling import sampling
from benchmarks.subjects.work import ITEMS, PRIORITIZED, TABLE, UNIFORM, fill, time_each


async def inserting(session: Session) -> Work:
    """Append a step, create an item of it, flush: the item is in the table and acknowledged."""
    client = session.client
    await fill(client)
    step = row(small(np.random.default_rng(0), 1), 0)

    async def work(seconds: float) -> Tally:
        async with client.trajectory_writer(num_keep_alive_refs=1) as writer:

            async def once() -> None:
                writer.append(step)
                history = writer.history
                await writer.create_item(TABLE, 1.0, trajectory={name: history[name][-1] for name in step})
                await writer.flush()

            return await time_each(seconds, once)

    return work


async def next_sample(session: Session, *, prefetch: int) -> Work:
    """Wait for the next sample of an open stream; with ``prefetch=0`` that is a whole round trip, always."""
    client = session.client
    await fill(client)

    async def work(seconds: float) -> Tally:
        async with client.sample(TABLE, prefetch=prefetch) as samples:
            return await time_each(seconds, samples.__anext__)

    return work


async def updating(session: Session) -> Work:
    """Set the priority of one key and wait for the confirmation."""
    client = session.client
    await fill(client)
    key = int((await client.sample_one(TABLE)).info.key)

    async def once() -> None:
        await client.mutate_priorities(TABLE, {key: 1.0})

    return lambda seconds: time_each(seconds, once)


async def asking(session: Session) -> Work:
    """Ask for `server_info`, again and again."""
    client = session.client
    return lambda seconds: time_each(seconds, client.server_info)


_SMALL = {"batch": 1, "payload_bytes": SMALL_BYTES, "items": ITEMS}

SUBJECTS = (
    Subject(
        "latency-insert",
        "p50 of append + create_item + flush, small, idle server, TCP",
        MICROSECONDS,
        380,
        (UNIFORM,),
        (Role(inserting),),
        _SMALL,
        peers=(PeerWork("dm-reverb", "latency_insert"),),
    ),
    Subject(
        "latency-sample",
        "p50 of the next sample on an open stream, nothing prefetched, small, idle server, TCP",
        MICROSECONDS,
        300,
        (UNIFORM,),
        (Role(partial(next_sample, prefetch=0)),),
        _SMALL,
        peers=(PeerWork("dm-reverb", "latency_sample"),),
    ),
    Subject(
        "latency-sample-prefetched",
        "p50 of the next sample on an open stream, prefetch=1 (the default), small, idle server, TCP",
        MICROSECONDS,
        None,
        (UNIFORM,),
        (Role(partial(next_sample, prefetch=1)),),
        _SMALL,
        peers=(PeerWork("dm-reverb", "latency_sample"),),
    ),
    Subject(
        "latency-update",
        "p50 of mutate_priorities of one key, confirmed, Prioritized(0.6), idle server, TCP",
        MICROSECONDS,
        350,
        (PRIORITIZED,),
        (Role(updating),),
        _SMALL,
        peers=(PeerWork("dm-reverb", "latency_update"),),
    ),
    Subject(
        "info-latency",
        "p99 of server_info from another process while a learner samples batches of 256 flat out, Prioritized(0.6)",
        MILLISECONDS_P99,
        50,
        (PRIORITIZED,),
        (Role(sampling, counted=False), Role(asking)),
        _SMALL,
        peers=(PeerWork("dm-reverb", "info_latency"),),
    ),
)
