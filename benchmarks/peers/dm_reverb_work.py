"""What dm-reverb's workers share: types, filled tables, batches of a dataset, threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import reverb
import tensorflow as tf

from benchmarks.payloads import row, small

BATCH = 256
ITEMS = 100_000
TRIAL_S = 0.4
"""How long a setting is tried."""

FLUSH_EVERY = 1_000
"""Items; without a flush now and then, what waits grows, and slows writing down by far."""

STACK = 4
"""Frames an item shows."""

Work = Callable[[float], tuple[int, int, list[float]]]
Prepared = tuple[Work, dict[str, Any]]


class Stream:
    """Batches of a dataset, one after the other."""

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._batches: Iterator[Any] = iter(dataset)

    def take(self) -> Any:
        """Return the next batch."""
        return next(self._batches)

    def sample(self, seconds: float, step: Callable[[Any], None] | None = None) -> int:
        """Take batches for a while; return how many items came."""
        deadline, items = time.perf_counter() + seconds, 0
        while time.perf_counter() < deadline:
            batch = self.take()
            if step is not None:
                step(batch)
            items += int(batch.info.key.shape[0])
        return items


def steps(n: int) -> list[dict[str, Any]]:
    """Return small steps."""
    data = small(np.random.default_rng(0), n)
    return [row(data, at) for at in range(n)]


def fill_small(client: reverb.Client, table: str, items: int = ITEMS) -> None:
    """Insert small items with random priorities; a chunk per step and column, which samples fastest."""
    missing = items - client.server_info()[table].current_size
    priorities = np.random.default_rng(0).random(max(0, missing)) + 0.1
    some = steps(1000)
    with client.trajectory_writer(num_keep_alive_refs=1) as writer:
        for at in range(missing):
            writer.append(some[at % len(some)])
            history = writer.history
            writer.create_item(table, float(priorities[at]), {name: history[name][-1] for name in history})
            if at % FLUSH_EVERY == 0:
                writer.flush(FLUSH_EVERY)
        writer.flush()


def fill_ragged(client: reverb.Client, table: str, items: int = ITEMS // 4) -> None:
    """Insert items of the last one to eight small steps."""
    lengths = np.random.default_rng(0).integers(1, 9, items).tolist()
    some = steps(1000)
    with client.trajectory_writer(num_keep_alive_refs=8) as writer:
        for at in range(client.server_info()[table].current_size, items):
            writer.append(some[at % len(some)])
            history = writer.history
            if at >= 8:
                writer.create_item(table, 1.0, {name: history[name][-lengths[at] :] for name in history})
            if at % FLUSH_EVERY == 0:
                writer.flush()
        writer.flush()


def fill_rows(client: reverb.Client, table: str, items: int, make: Callable[[int], dict[str, Any]]) -> None:
    """Insert larger items, one step each."""
    with client.trajectory_writer(num_keep_alive_refs=1) as writer:
        for at in range(client.server_info()[table].current_size, items):
            writer.append(make(at))
            history = writer.history
            writer.create_item(table, 1.0, {name: history[name][-1] for name in history})
            writer.flush(8)
        writer.flush()


def dataset(client: reverb.Client, table: str, batch: int, in_flight: int, workers: int) -> tf.data.Dataset:
    """Return the batched dataset of a table's signature."""
    return (
        reverb.TrajectoryDataset.from_table_signature(
            server_address=client.server_address,
            table=table,
            max_in_flight_samples_per_worker=in_flight,
            num_workers_per_iterator=workers,
        )
        .batch(batch)
        .prefetch(2)
    )


def in_threads(step: Callable[[], int], threads: int, seconds: float) -> int:
    """Repeat a step for a while in several threads; return the sum of what it returned."""
    deadline = time.perf_counter() + seconds
    counts = [0] * threads

    def run(at: int) -> None:
        while time.perf_counter() < deadline:
            counts[at] += step()

    running = [threading.Thread(target=run, args=(at,)) for at in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(counts)


def best_threads(step: Callable[[], int], numbers: tuple[int, ...]) -> tuple[int, list[list[int]]]:
    """Return the number of threads that is fastest, and the rate of each that was tried."""
    tried = [[threads, round(in_threads(step, threads, TRIAL_S) / TRIAL_S)] for threads in numbers]
    return max(tried, key=lambda each: each[1])[0], tried
