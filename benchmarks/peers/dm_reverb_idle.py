"""What one operation of dm-reverb takes, and what an item costs its server."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import reverb

from benchmarks.peers.dm_reverb_work import (
    Prepared,
    Work,
    fill_small,
    steps,
)

MEMORY_ITEMS = 100_000
ATARI_ITEMS = 20_000
_KEPT_STEPS = 4


def timed(step: Callable[[], object]) -> Work:
    """Return rounds of a step, one at a time, that note how long each took."""

    def work(seconds: float) -> tuple[int, int, list[float]]:
        latencies, clock = [], time.perf_counter_ns
        deadline = clock() + int(seconds * 1e9)
        started = clock()
        while started < deadline:
            step()
            ended = clock()
            latencies.append((ended - started) / 1000)
            started = clock()
        return len(latencies), 0, latencies

    return work


def latency_insert(client: reverb.Client) -> Prepared:
    """Append, create an item, flush."""
    fill_small(client, "uniform")
    step = steps(1)[0]
    writer = client.trajectory_writer(num_keep_alive_refs=1)

    def once() -> None:
        writer.append(step)
        history = writer.history
        writer.create_item("insert", 1.0, {name: history[name][-1] for name in step})
        writer.flush()

    return timed(once), {}


def latency_sample(client: reverb.Client) -> Prepared:
    """Take the next sample of ``Client.sample``, which asks for one ahead."""
    fill_small(client, "uniform")
    samples = client.sample("uniform", num_samples=10**9, emit_timesteps=False)
    return timed(lambda: next(samples)), {}


def latency_update(client: reverb.Client) -> Prepared:
    """Set the priority of one key."""
    fill_small(client, "prioritized")
    key = next(client.sample("prioritized", num_samples=1, emit_timesteps=False)).info.key
    return timed(lambda: client.mutate_priorities("prioritized", updates={key: 1.0})), {}


def info_latency(client: reverb.Client) -> Prepared:
    """Ask for `server_info` while a dataset in another process samples flat out."""
    return timed(client.server_info), {}


def memory(client: reverb.Client) -> Prepared:
    """Fill a table with small items, once."""
    client.server_info()

    def work(seconds: float) -> tuple[int, int, list[float]]:
        fill_small(client, "uniform", MEMORY_ITEMS)
        return MEMORY_ITEMS, 0, []

    return work, {"items": MEMORY_ITEMS}


def memory_atari(client: reverb.Client) -> Prepared:
    """Write an episode of random frames; each item is the last four of them."""
    client.server_info()

    def work(seconds: float) -> tuple[int, int, list[float]]:
        rng = np.random.default_rng(0)
        with client.trajectory_writer(num_keep_alive_refs=_KEPT_STEPS) as writer:
            for at in range(ATARI_ITEMS + _KEPT_STEPS - 1):
                writer.append({"frame": np.frombuffer(rng.bytes(84 * 84), np.uint8).reshape(84, 84)})
                if at >= _KEPT_STEPS - 1:
                    writer.create_item("stacks", 1.0, {"frame": writer.history["frame"][-_KEPT_STEPS:]})
                if at % 100 == 0:
                    writer.flush(100)
            writer.flush()
        return ATARI_ITEMS, 0, []

    return work, {"items": ATARI_ITEMS}
