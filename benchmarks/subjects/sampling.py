"""Learners: how fast items come, in batches, from a server in another process, and from a table in this one."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np

import reverb_async as ra
from benchmarks.payloads import FRAME_BYTES, LARGE_BYTES, SMALL_BYTES, Columns, blobs, frames, small
from benchmarks.subject import ITEMS as ITEMS_PER_S
from benchmarks.subject import MEGABYTES, PeerWork, Role, Session, Subject, Tally, Work
from benchmarks.subjects.work import BATCH, ITEMS, PRIORITIZED, TABLE, UNIFORM, Make, fill, sample_for
from reverb_async.core.gather import GatherPlan

FRAMES = 5_000
LARGE_ITEMS = 24
AHEAD = 8
"""Batches prefetched where both sides are tuned: dm-reverb's dataset keeps up to hundreds of items in flight."""
IN_PROCESS_ITEMS = 1_000_000


async def sampling(
    session: Session,
    *,
    make: Make = small,
    items: int = ITEMS,
    batch_size: int = BATCH,
    item_bytes: int = SMALL_BYTES,
    **options: Any,
) -> Work:
    """Fill the table and return the sampling of batches, which are dropped at once."""
    client = session.client
    await fill(client, items, make)
    return lambda seconds: sample_for(client, seconds, batch_size, item_bytes=item_bytes, **options)


async def sampling_and_updating(session: Session, **options: Any) -> Work:
    """Sample batches, as above, and give every item of each a new priority."""
    client = session.client
    await fill(client)
    priorities = np.random.default_rng(1).random(BATCH) + 0.1
    return lambda seconds: sample_for(client, seconds, item_bytes=SMALL_BYTES, priorities=priorities, **options)


def large(rng: np.random.Generator, n: int) -> Columns:
    """Return arrays of 16 MiB."""
    return blobs(rng, n, LARGE_BYTES)


async def in_process(session: Session, *, update: bool) -> Work:
    """Draw, gather and weigh batches of a bare table in this process, no server, no event loop in between.

    Per batch: keys, priorities, probabilities, counts, five columns, importance weights. Its state is reached below
    the public interface, as `Table.sample` does, for cpprb has no service either.
    """
    table = ra.Table(TABLE, max_size=IN_PROCESS_ITEMS, sampler=ra.selectors.Prioritized(0.6), seed=0)
    server = ra.Server([table], port=None)
    await server.start()
    async with server.client() as inside:
        await fill(inside, IN_PROCESS_ITEMS)
    await server.close()
    state = table.state
    priorities = np.random.default_rng(1).random(BATCH) + 0.1
    nothing = np.zeros(0, np.uint64)

    async def work(seconds: float) -> Tally:
        tally = Tally()
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            draw = state.draw(BATCH)
            plan = GatherPlan(state.slots, draw.slots)
            plan.run([None] * len(plan.layouts))
            weights = (draw.table_sizes * draw.probabilities) ** -0.4
            weights /= weights.max()
            if update:
                state.mutate(draw.keys, priorities, nothing)
            tally.items += BATCH
        return tally

    return work


_SMALL = {"batch": BATCH, "payload_bytes": SMALL_BYTES, "items": ITEMS}
_FRAMES = {"batch": BATCH, "payload_bytes": FRAME_BYTES, "items": FRAMES}
_frames = partial(sampling, make=frames, items=FRAMES, item_bytes=FRAME_BYTES)


def _one_learner(
    name: str, title: str, table: str, work: Callable[..., Awaitable[Work]], target: float, peer: str, ratio: float
) -> tuple[Subject, Subject]:
    """Return the subject with the defaults of both sides, and the one with batches prefetched, both sides tuned."""
    tuned = PeerWork("dm-reverb", peer, ratio)
    untuned = PeerWork("dm-reverb", f"{peer}_defaults", ratio)
    roles, ahead = (Role(work),), (Role(partial(work, prefetch=AHEAD)),)
    sizes = _SMALL | {"prefetch": AHEAD}
    title_ahead = f"the same with prefetch={AHEAD}"
    return (
        Subject(name, title, ITEMS_PER_S, target, (table,), roles, _SMALL, peers=(tuned, untuned)),
        Subject(f"{name}-ahead", title_ahead, ITEMS_PER_S, target, (table,), ahead, sizes, peers=(tuned,)),
    )


SUBJECTS = (
    *_one_learner(
        "sample-uniform",
        "sample_batches(256), small, Uniform, one learner, TCP",
        UNIFORM,
        sampling,
        1_000_000,
        "dataset_uniform",
        24.0,
    ),
    *_one_learner(
        "sample-prioritized",
        "sample_batches(256), small, Prioritized(0.6), one learner, TCP",
        PRIORITIZED,
        sampling,
        750_000,
        "dataset_prioritized",
        20.0,
    ),
    *_one_learner(
        "sample-update",
        "sample_batches(256) + update_priorities of every batch, small, Prioritized(0.6), TCP",
        PRIORITIZED,
        sampling_and_updating,
        400_000,
        "dataset_update",
        10.0,
    ),
    Subject(
        "sample-two-learners",
        "sample_batches(256), small, Uniform, two learners in processes of their own, TCP",
        ITEMS_PER_S,
        None,
        (UNIFORM,),
        (Role(sampling, 2),),
        _SMALL | {"learners": 2},
        peers=(PeerWork("dm-reverb", "dataset_uniform", processes=2),),
    ),
    Subject(
        "in-process-sample",
        "bare table in one process: draw 256 of 1M small items, gather, weights, Prioritized(0.6)",
        ITEMS_PER_S,
        roles=(Role(partial(in_process, update=False)),),
        sizes=_SMALL | {"items": IN_PROCESS_ITEMS},
        peers=(PeerWork("cpprb", "sample", 1.8),),
    ),
    Subject(
        "in-process-update",
        "bare table in one process: the same + new priorities for all 256, by key",
        ITEMS_PER_S,
        roles=(Role(partial(in_process, update=True)),),
        sizes=_SMALL | {"items": IN_PROCESS_ITEMS},
        peers=(PeerWork("cpprb", "sample_update", 1.2),),
    ),
    Subject(
        "sample-frames",
        "sample_batches(256), 84x84x4 uint8 frames, random bytes, Uniform, TCP, batches dropped",
        MEGABYTES,
        1_600,
        (UNIFORM,),
        (Role(_frames),),
        _FRAMES,
        peers=(PeerWork("dm-reverb", "dataset_frames"),),
    ),
    Subject(
        "sample-frames-shared",
        "the same with shared_memory='auto' on one host, batches dropped",
        MEGABYTES,
        6_000,
        (UNIFORM,),
        (Role(_frames, shared_memory=True),),
        _FRAMES,
    ),
    Subject(
        "large-sample",
        "sample_batches(1) of 16 MiB arrays, random bytes, Uniform, TCP",
        MEGABYTES,
        1_200,
        ("replay:max_size=1000",),
        (Role(partial(sampling, make=large, items=LARGE_ITEMS, batch_size=1, item_bytes=LARGE_BYTES)),),
        {"batch": 1, "payload_bytes": LARGE_BYTES, "items": LARGE_ITEMS},
        peers=(PeerWork("dm-reverb", "dataset_large"),),
    ),
)
