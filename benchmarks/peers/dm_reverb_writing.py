"""Writing to dm-reverb: its three writers, single inserts, new priorities."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count

import numpy as np
import reverb

from benchmarks.payloads import LARGE_BYTES, blobs, game_frames, row
from benchmarks.peers.dm_reverb_work import (
    BATCH,
    FLUSH_EVERY,
    STACK,
    Prepared,
    Stream,
    best_threads,
    dataset,
    fill_small,
    in_threads,
    steps,
)


def structured_writer(client: reverb.Client) -> Prepared:
    """Write small steps with the structured writer, an item per step."""
    some = steps(1000)
    reference = reverb.structured.create_reference_step(dict.fromkeys(some[0]))
    pattern = {name: reference[name][-1] for name in some[0]}
    config = reverb.structured.create_config(pattern=pattern, table="insert")
    writer = client.structured_writer([config])

    def work(seconds: float) -> tuple[int, int, list[float]]:
        deadline, items = time.perf_counter() + seconds, 0
        while time.perf_counter() < deadline:
            for step in some:
                writer.append(step)
            items += len(some)
            writer.flush(FLUSH_EVERY)  # Without, what waits grows, and slows it down by far.
        writer.flush()
        return items, 0, []

    return work, {"flush_every": FLUSH_EVERY}


def legacy_writer(client: reverb.Client) -> Prepared:
    """Write small steps with the old writer, an item per step."""
    some = steps(1000)

    def work(seconds: float) -> tuple[int, int, list[float]]:
        deadline, items = time.perf_counter() + seconds, 0
        with client.writer(max_sequence_length=1, max_in_flight_items=None) as writer:
            while time.perf_counter() < deadline:
                for step in some:
                    writer.append(step)
                    writer.create_item("insert", num_timesteps=1, priority=1.0)
                items += len(some)
        return items, 0, []

    return work, {"max_sequence_length": 1}


def trajectory_writer(client: reverb.Client) -> Prepared:
    """Write small steps with the trajectory writer, an item per step."""
    some = steps(1000)

    def work(seconds: float) -> tuple[int, int, list[float]]:
        deadline, items = time.perf_counter() + seconds, 0
        with client.trajectory_writer(num_keep_alive_refs=1) as writer:
            while time.perf_counter() < deadline:
                for step in some:
                    writer.append(step)
                    history = writer.history
                    writer.create_item("insert", 1.0, {name: history[name][-1] for name in step})
                items += len(some)
                writer.end_episode()
        return items, 0, []

    return work, {"num_keep_alive_refs": 1}


def client_insert(client: reverb.Client) -> Prepared:
    """Insert single small items; the number of threads that does it fastest."""
    step = steps(1)[0]
    table = {"insert": 1.0}

    def insert() -> int:
        client.insert(step, table)
        return 1

    threads, tried = best_threads(insert, (1, 4, 16))
    return lambda seconds: (in_threads(insert, threads, seconds), 0, []), {"threads": threads, "tried": tried}


def large_insert(client: reverb.Client) -> Prepared:
    """Insert arrays of 16 MiB."""
    data = row(blobs(np.random.default_rng(0), 1, LARGE_BYTES), 0)

    def insert() -> int:
        client.insert(data, {"large": 1.0})
        return 1

    def work(seconds: float) -> tuple[int, int, list[float]]:
        items = in_threads(insert, threads, seconds)
        return items, items * LARGE_BYTES, []

    threads, tried = best_threads(insert, (1, 2))
    return work, {"threads": threads, "tried": tried}


def stack_writer(client: reverb.Client) -> Prepared:
    """Write frames like Atari's with the trajectory writer; every item shows the last four."""
    data = game_frames(np.random.default_rng(0), 200)
    some = [row(data, at) for at in range(200)]

    def work(seconds: float) -> tuple[int, int, list[float]]:
        deadline, items = time.perf_counter() + seconds, 0
        with client.trajectory_writer(num_keep_alive_refs=STACK) as writer:
            while time.perf_counter() < deadline:
                for at, step in enumerate(some):
                    writer.append(step)
                    if at >= STACK - 1:
                        writer.create_item("stacks_written", 1.0, {"frame": writer.history["frame"][-STACK:]})
                        items += 1
                writer.end_episode()
        return items, 0, []

    return work, {"num_keep_alive_refs": STACK}


def mutate(client: reverb.Client) -> Prepared:
    """Set 256 priorities per call; the number of threads that does it fastest."""
    update = _updates(client)
    threads, tried = best_threads(update, (1, 2, 4, 8))
    return lambda seconds: (in_threads(update, threads, seconds), 0, []), {"threads": threads, "tried": tried}


def mutate_in(threads: int) -> Callable[[reverb.Client], Prepared]:
    """Return the preparation of setting 256 priorities per call in so many threads."""

    def prepare(client: reverb.Client) -> Prepared:
        update = _updates(client)
        return lambda seconds: (in_threads(update, threads, seconds), 0, []), {"threads": threads}

    return prepare


def _updates(client: reverb.Client) -> Callable[[], int]:
    """Return what sets 256 priorities."""
    fill_small(client, "prioritized")
    stream = Stream(dataset(client, "prioritized", 4096, 512, 2))
    keys = np.unique(stream.take().info.key.numpy())
    rng = np.random.default_rng(2)
    blocks = [
        dict(
            zip(
                rng.choice(keys, BATCH, replace=False).tolist(),
                (rng.random(BATCH) + 0.1).tolist(),
                strict=True,
            )
        )
        for _ in range(64)
    ]
    del stream
    turn = count()

    def update() -> int:
        client.mutate_priorities("prioritized", updates=blocks[next(turn) % len(blocks)])
        return BATCH

    return update
