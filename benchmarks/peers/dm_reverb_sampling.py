"""Sampling from dm-reverb: its dataset, batched."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import reverb

from benchmarks.payloads import LARGE_BYTES, blobs, frames, game_frames, row
from benchmarks.peers.dm_reverb_work import (
    BATCH,
    STACK,
    TRIAL_S,
    Prepared,
    Stream,
    dataset,
    fill_ragged,
    fill_rows,
    fill_small,
)

FRAMES = 5_000
LARGE_ITEMS = 24
_FRAME_BYTES = 84 * 84 * 4


def tuned(client: reverb.Client, table: str, batch: int) -> tuple[Stream, dict[str, Any]]:
    """Try combinations of settings; keep the fastest one's stream."""
    tried = []
    best: tuple[int, dict[str, int]] | None = None
    for workers in (1, 2, 4, 8):
        for in_flight in (batch // 4, batch // 2, batch):
            setting = {"num_workers_per_iterator": workers, "max_in_flight_samples_per_worker": in_flight}
            stream = Stream(dataset(client, table, batch, in_flight, workers))
            stream.sample(TRIAL_S / 2)
            rate = round(stream.sample(TRIAL_S) / TRIAL_S)
            del stream
            tried.append([workers, in_flight, rate])
            if best is None or rate > best[0]:
                best = rate, setting
    assert best is not None
    chosen = best[1]
    stream = Stream(
        dataset(client, table, batch, chosen["max_in_flight_samples_per_worker"], chosen["num_workers_per_iterator"])
    )
    return stream, {**chosen, "tried_workers_in_flight_rate": tried}


def with_defaults(client: reverb.Client, table: str, batch: int) -> tuple[Stream, dict[str, Any]]:
    """Take the settings of its documentation's examples: default workers, twice a batch in flight."""
    setting = {"num_workers_per_iterator": -1, "max_in_flight_samples_per_worker": 2 * batch}
    return Stream(dataset(client, table, batch, 2 * batch, -1)), setting


Choose = Callable[[reverb.Client, str, int], tuple[Stream, dict[str, Any]]]


def sampling(table: str, choose: Choose, *, update: bool = False) -> Callable[[reverb.Client], Prepared]:
    """Return the preparation of sampling batches of 256 small items, with or without updates of every batch."""

    def prepare(client: reverb.Client) -> Prepared:
        fill_small(client, table)
        stream, setting = choose(client, table, BATCH)
        new = (np.random.default_rng(1).random(BATCH) + 0.1).tolist()
        updater = ThreadPoolExecutor(1)
        pending: list[Future[None]] = []

        def set_priorities(batch: Any) -> None:
            """Send the updates while the next batch comes, one call in flight."""
            updates = dict(zip(batch.info.key.numpy().tolist(), new, strict=True))
            if pending:
                pending.pop().result()
            pending.append(updater.submit(client.mutate_priorities, table, updates=updates))

        def work(seconds: float) -> tuple[int, int, list[float]]:
            return stream.sample(seconds, set_priorities if update else None), 0, []

        return work, setting

    return prepare


def sampling_frames(client: reverb.Client) -> Prepared:
    """Sample batches of 256 stacks of frames."""
    data = frames(np.random.default_rng(0), 200)
    fill_rows(client, "frames", FRAMES, lambda at: row(data, at % 200))
    stream, setting = tuned(client, "frames", BATCH)

    def work(seconds: float) -> tuple[int, int, list[float]]:
        items = stream.sample(seconds)
        return items, items * _FRAME_BYTES, []

    return work, setting


def sampling_stacks(client: reverb.Client) -> Prepared:
    """Sample batches of 256 items of four frames like Atari's."""
    data = game_frames(np.random.default_rng(0), 200)
    with client.trajectory_writer(num_keep_alive_refs=STACK) as writer:
        for at in range(client.server_info()["stacks"].current_size, FRAMES):
            writer.append(row(data, at % 200))
            if at >= STACK - 1:
                writer.create_item("stacks", 1.0, {"frame": writer.history["frame"][-STACK:]})
                writer.flush(8)
        writer.flush()
    stream, setting = tuned(client, "stacks", BATCH)

    def work(seconds: float) -> tuple[int, int, list[float]]:
        items = stream.sample(seconds)
        return items, items * _FRAME_BYTES, []

    return work, setting


def fill_only(table: str) -> Callable[[reverb.Client], Prepared]:
    """Return the preparation of items that others sample: of one step, or in the table "ragged" of one to eight."""

    def prepare(client: reverb.Client) -> Prepared:
        if table == "ragged":
            fill_ragged(client, table)
        else:
            fill_small(client, table)
        return lambda seconds: (0, 0, []), {}

    return prepare


def sampling_large(client: reverb.Client) -> Prepared:
    """Sample arrays of 16 MiB, one at a time."""
    rng = np.random.default_rng(0)
    fill_rows(client, "large", LARGE_ITEMS, lambda at: row(blobs(rng, 1, LARGE_BYTES), 0))
    best: tuple[float, int] | None = None
    streams = {}
    for workers in (1, 2, 4):
        streams[workers] = Stream(dataset(client, "large", 1, 2, workers))
        streams[workers].sample(TRIAL_S / 2)
        rate = streams[workers].sample(2 * TRIAL_S)
        if best is None or rate > best[0]:
            best = rate, workers
    assert best is not None
    stream = streams[best[1]]

    def work(seconds: float) -> tuple[int, int, list[float]]:
        items = stream.sample(seconds)
        return items, items * LARGE_BYTES, []

    return work, {"num_workers_per_iterator": best[1], "max_in_flight_samples_per_worker": 2}
