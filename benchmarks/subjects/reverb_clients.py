"""Genuine dm-reverb clients, the same programs at our server and at theirs; native readers of what they wrote."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.payloads import FRAME_BYTES, SMALL_BYTES
from benchmarks.subject import ITEMS as ITEMS_PER_S
from benchmarks.subject import KEYS, Measure, PeerWork, Role, Session, Subject, Work
from benchmarks.subjects.work import BATCH, sample_for

_SMALL: dict[str, int | float | str] = {"batch": BATCH, "payload_bytes": SMALL_BYTES}
_STACKS: dict[str, int | float | str] = {"batch": BATCH, "payload_bytes": FRAME_BYTES}


async def _reading(session: Session, *, table: str) -> Work:
    """Sample batches natively of what a dm-reverb client wrote, once all of it has been decoded."""
    client = session.client
    size = (await client.server_info())[table].current_size
    options: dict[str, Any] = {"prefetch": 8, "ragged": "flat" if table == "ragged" else "error"}
    async with client.sample_batches(table, BATCH, **options) as batches:
        seen: set[int] = set()
        async for batch in batches:
            seen.update(np.asarray(batch.info.key).tolist())
            if len(seen) >= 0.98 * size:
                break
    return lambda seconds: sample_for(client, seconds, table=table, item_bytes=SMALL_BYTES, **options)


def _beside(name: str, title: str, path: str, target: float, measure: Measure = ITEMS_PER_S) -> Subject:
    """Return one program of dm-reverb's clients, whose rate at our server must be so many times that at their own."""
    sizes = _STACKS if "stack" in path else _SMALL
    work = PeerWork("dm-reverb", path, target)
    return Subject(f"reverb-clients/{name}", title, measure, sizes=sizes, peers=(work,), group="clients")


def _native(name: str, title: str, path: str, table: str, target: float) -> Subject:
    """Return a native learner of a table that a program of dm-reverb's client filled."""
    return Subject(
        f"reverb-clients/{name}",
        title,
        ITEMS_PER_S,
        target,
        roles=(Role(partial(_reading, table=table)),),
        sizes=_SMALL,
        peers=(PeerWork("dm-reverb", path),),
        group="clients",
    )


SUBJECTS = (
    _beside(
        "dataset-defaults", "TrajectoryDataset, batch 256, small, default workers", "dataset_uniform_defaults", 0.8
    ),
    _beside("dataset", "TrajectoryDataset, batch 256, small, settings tuned for each server", "dataset_uniform", 0.8),
    _beside("dataset-stacks", "the same, four frames like Atari's per item", "dataset_stacks", 0.8),
    _beside("trajectory-writer", "TrajectoryWriter, an item per step, small", "trajectory_writer", 0.8),
    _beside("structured-writer", "StructuredWriter, an item per step, small", "structured_writer", 0.8),
    _beside("writer", "legacy Writer, an item per step, small", "writer", 0.8),
    _beside("stack-writer", "TrajectoryWriter, an item of four frames like Atari's per step", "stack_writer", 0.8),
    _beside("client-insert", "Client.insert, small, threads tuned for each server", "client_insert", 0.8),
    _beside("mutate-1", "mutate_priorities of 256 keys, 1 thread", "mutate_1_thread", 0.5, KEYS),
    _beside("mutate-4", "mutate_priorities of 256 keys, 4 threads", "mutate_4_threads", 0.5, KEYS),
    _native(
        "native-one-step",
        "native sample_batches(256) of TrajectoryWriter's one-step items, small, cached",
        "fill_one_step",
        "uniform",
        40_000,
    ),
    _native(
        "native-ragged",
        "native sample_batches(256) of TrajectoryWriter's items of 1 to 8 steps, small, cached",
        "fill_ragged",
        "ragged",
        40_000,
    ),
)
