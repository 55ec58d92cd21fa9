"""Throughput by batch size, payload, learners, actors, and for other data than small items."""

from __future__ import annotations

from functools import partial

import numpy as np

import reverb_async as ra
from benchmarks.payloads import COLUMNS_BYTES, SMALL_BYTES, Columns, blobs, columns, small
from benchmarks.subject import ITEMS as ITEMS_PER_S
from benchmarks.subject import MEGABYTES, Role, Session, Subject, Work
from benchmarks.subjects.sampling import sampling
from benchmarks.subjects.work import BATCH, ITEMS, TABLE, UNIFORM, repeat, sample_for
from benchmarks.subjects.writing import acting

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
PAYLOADS = (41, 1 << 10, 16 << 10, 256 << 10, 1 << 20, 16 << 20)
LEARNERS = (1, 2, 4)
ACTORS = (1, 4, 16, 64)

_STORED_BYTES = 512 << 20
_BATCH_BYTES = 16 << 20
_MOST_PROCESSES = 4
_SEQUENCES = 10_000
_MEAN_STEPS = 50


async def inserting(session: Session, *, batch: int, payload_bytes: int) -> Work:
    """Insert batches of small items, or of byte arrays, four calls in flight."""
    rng = np.random.default_rng(0)
    data = small(rng, batch) if payload_bytes == SMALL_BYTES else blobs(rng, batch, payload_bytes)

    async def step() -> int:
        await session.client.insert_batch(data, {TABLE: 1.0})
        return batch

    return lambda seconds: repeat(seconds, step, parallel=4, item_bytes=payload_bytes)


async def sampling_sequences(session: Session, *, ragged: str) -> Work:
    """Sample sequences of 20 to 80 small steps."""
    rng = np.random.default_rng(0)
    present = (await session.client.server_info())[TABLE].current_size
    for _ in range(present, _SEQUENCES, 500):
        lengths = rng.integers(20, 81, 500)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        steps = small(rng, int(offsets[-1]))
        batch = {name: ra.Ragged(column, offsets) for name, column in steps.items()}
        await session.client.insert_batch(batch, {TABLE: 1.0})
    return lambda seconds: sample_for(session.client, seconds, 64, item_bytes=_MEAN_STEPS * SMALL_BYTES, ragged=ragged)


def payload(rng: np.random.Generator, n: int, *, nbytes: int) -> Columns:
    """Return `n` small items if that is what so many bytes are, else arrays of `nbytes` bytes."""
    return small(rng, n) if nbytes == SMALL_BYTES else blobs(rng, n, nbytes)


def batch_for(payload_bytes: int) -> int:
    """Return how many items of a size go in a batch: 256, or as many as 16 MiB hold."""
    return max(1, min(BATCH, _BATCH_BYTES // payload_bytes))


def size_name(nbytes: int) -> str:
    """Return ``"41B"``, ``"16KiB"``, ``"1MiB"``."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes // unit}{name}"
    return f"{nbytes}B"


def _by_batch() -> list[Subject]:
    subjects = []
    for batch in BATCHES:
        sizes = {"batch": batch, "payload_bytes": SMALL_BYTES}
        subjects.append(
            Subject(
                f"sweep-batch/{batch}",
                f"sample_batches({batch}), small, Uniform, one learner, TCP",
                ITEMS_PER_S,
                tables=(UNIFORM,),
                roles=(Role(partial(sampling, batch_size=batch)),),
                sizes=sizes,
                group="sweep",
            )
        )
    for batch in BATCHES:
        sizes = {"batch": batch, "payload_bytes": SMALL_BYTES}
        subjects.append(
            Subject(
                f"sweep-insert-batch/{batch}",
                f"insert_batch({batch}), small, 4 calls in flight, TCP",
                ITEMS_PER_S,
                tables=(UNIFORM,),
                roles=(Role(partial(inserting, batch=batch, payload_bytes=SMALL_BYTES)),),
                sizes=sizes,
                group="sweep",
            )
        )
    return subjects


def _by_payload() -> list[Subject]:
    subjects = []
    for nbytes in PAYLOADS:
        batch = batch_for(nbytes)
        items = max(8, min(ITEMS, _STORED_BYTES // nbytes))
        sizes = {"batch": batch, "payload_bytes": nbytes, "items": items}
        sampler = partial(
            sampling, make=partial(payload, nbytes=nbytes), items=items, batch_size=batch, item_bytes=nbytes
        )
        subjects.append(
            Subject(
                f"sweep-payload/{size_name(nbytes)}",
                f"sample_batches({batch}) of items of {size_name(nbytes)}, Uniform, one learner, TCP",
                MEGABYTES,
                tables=(UNIFORM,),
                roles=(Role(sampler),),
                sizes=sizes,
                group="sweep",
            )
        )
        subjects.append(
            Subject(
                f"sweep-insert-payload/{size_name(nbytes)}",
                f"insert_batch({batch}) of items of {size_name(nbytes)}, 4 calls in flight, TCP",
                MEGABYTES,
                tables=(f"replay:max_size={items}",),
                roles=(Role(partial(inserting, batch=batch, payload_bytes=nbytes)),),
                sizes=sizes,
                group="sweep",
            )
        )
    return subjects


def _by_processes() -> list[Subject]:
    learners = [
        Subject(
            f"sweep-learners/{learners}",
            f"sample_batches(256), small, Uniform, {learners} learners in processes of their own, TCP",
            ITEMS_PER_S,
            tables=(UNIFORM,),
            roles=(Role(sampling, learners),),
            sizes={"batch": BATCH, "payload_bytes": SMALL_BYTES, "learners": learners},
            group="sweep",
        )
        for learners in LEARNERS
    ]
    actors = []
    for number in ACTORS:
        processes = min(number, _MOST_PROCESSES)
        actors.append(
            Subject(
                f"sweep-actors/{number}",
                f"insert of single items, small, {number} clients in {processes} processes, one in flight each, TCP",
                ITEMS_PER_S,
                tables=(UNIFORM,),
                roles=(Role(partial(acting, actors=number, processes=processes), processes),),
                sizes={"batch": 1, "payload_bytes": SMALL_BYTES, "actors": number},
                group="sweep",
            )
        )
    return learners + actors


def _of_other_data() -> list[Subject]:
    sequences = [
        Subject(
            f"sweep-sequences/{ragged}",
            f"sample_batches(64, ragged={ragged!r}) of sequences of 20 to 80 small steps, Uniform, one learner, TCP",
            MEGABYTES,
            tables=(UNIFORM,),
            roles=(Role(partial(sampling_sequences, ragged=ragged)),),
            sizes={"batch": 64, "payload_bytes": _MEAN_STEPS * SMALL_BYTES},
            group="sweep",
        )
        for ragged in ("pad", "flat")
    ]
    return [
        *sequences,
        Subject(
            "sweep-columns",
            "sample_batches(256), 8 columns of 8 dtypes, 200 B, Uniform, one learner, TCP",
            ITEMS_PER_S,
            tables=(UNIFORM,),
            roles=(Role(partial(sampling, make=columns, item_bytes=COLUMNS_BYTES)),),
            sizes={"batch": BATCH, "payload_bytes": COLUMNS_BYTES, "columns": 8},
            group="sweep",
        ),
    ]


SUBJECTS = (*_by_batch(), *_by_payload(), *_by_processes(), *_of_other_data())
