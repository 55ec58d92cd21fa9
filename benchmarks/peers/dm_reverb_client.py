"""Work on dm-reverb's server, by its fastest official paths: ``dm_reverb_client PATH ADDRESS``.

`PATHS` are the names of `PeerWork.path`. Where a setting matters, several are tried for a moment each, and the
fastest is kept: the peer runs tuned for this machine.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import reverb
import tensorflow as tf

from benchmarks.payloads import LARGE_BYTES, blobs, frames, row, small
from benchmarks.rounds import work_in_rounds

BATCH = 256
ITEMS = 100_000
FRAMES = 5_000
LARGE_ITEMS = 24
MEMORY_ITEMS = 100_000
ATARI_ITEMS = 20_000

_TRIAL_S = 0.4
_FLUSH_EVERY = 1_000
_FRAME_BYTES = 84 * 84 * 4
_KEPT_STEPS = 4

Work = Callable[[float], tuple[int, int, list[float]]]
Prepared = tuple[Work, dict[str, Any]]
Trial = tuple[dict[str, Any], Callable[[], "Stream"]]


class Stream:
    """Batches of a dataset, one after the other."""

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._batches: Iterator[Any] = iter(dataset)

    def sample(self, seconds: float, step: Callable[[Any], None] | None = None) -> int:
        """Take batches for a while; return how many items came."""
        deadline, items = time.perf_counter() + seconds, 0
        while time.perf_counter() < deadline:
            batch = next(self._batches)
            if step is not None:
                step(batch)
            items += int(batch.info.key.shape[0])
        return items


# -- filling ------------------------------------------------------------------------------------------------------


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
            if at % _FLUSH_EVERY == 0:
                writer.flush(_FLUSH_EVERY)
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


# -- sampling -----------------------------------------------------------------------------------------------------


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


def tuned(client: reverb.Client, table: str, batch: int) -> tuple[Stream, dict[str, Any]]:
    """Try combinations of settings; keep the fastest one's stream."""
    tried = []
    best: tuple[int, dict[str, int]] | None = None
    for workers in (1, 2, 4, 8):
        for in_flight in (batch // 4, batch // 2, batch):
            setting = {"num_workers_per_iterator": workers, "max_in_flight_samples_per_worker": in_flight}
            stream = Stream(dataset(client, table, batch, in_flight, workers))
            stream.sample(_TRIAL_S / 2)
            rate = round(stream.sample(_TRIAL_S) / _TRIAL_S)
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


def sampling_large(client: reverb.Client) -> Prepared:
    """Sample arrays of 16 MiB, one at a time."""
    rng = np.random.default_rng(0)
    fill_rows(client, "large", LARGE_ITEMS, lambda at: row(blobs(rng, 1, LARGE_BYTES), 0))
    best: tuple[float, int] | None = None
    streams = {}
    for workers in (1, 2, 4):
        streams[workers] = Stream(dataset(client, "large", 1, 2, workers))
        streams[workers].sample(_TRIAL_S / 2)
        rate = streams[workers].sample(2 * _TRIAL_S)
        if best is None or rate > best[0]:
            best = rate, workers
    assert best is not None
    stream = streams[best[1]]

    def work(seconds: float) -> tuple[int, int, list[float]]:
        items = stream.sample(seconds)
        return items, items * LARGE_BYTES, []

    return work, {"num_workers_per_iterator": best[1], "max_in_flight_samples_per_worker": 2}


# -- writing ------------------------------------------------------------------------------------------------------


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
            writer.flush(_FLUSH_EVERY)  # Without, what waits grows, and slows it down by far.
        writer.flush()
        return items, 0, []

    return work, {"flush_every": _FLUSH_EVERY}


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


def mutate(client: reverb.Client) -> Prepared:
    """Set 256 priorities per call; the number of threads that does it fastest."""
    fill_small(client, "prioritized")
    stream = Stream(dataset(client, "prioritized", 4096, 512, 2))
    keys = np.unique(next(stream._batches).info.key.numpy())
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

    threads, tried = best_threads(update, (1, 2, 4, 8))
    return lambda seconds: (in_threads(update, threads, seconds), 0, []), {"threads": threads, "tried": tried}


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
    tried = [[threads, round(in_threads(step, threads, _TRIAL_S) / _TRIAL_S)] for threads in numbers]
    return max(tried, key=lambda each: each[1])[0], tried


# -- latencies ----------------------------------------------------------------------------------------------------


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


# -- memory -------------------------------------------------------------------------------------------------------


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


PATHS: dict[str, Callable[[reverb.Client], Prepared]] = {
    "dataset_uniform": sampling("uniform", tuned),
    "dataset_uniform_defaults": sampling("uniform", with_defaults),
    "dataset_prioritized": sampling("prioritized", tuned),
    "dataset_prioritized_defaults": sampling("prioritized", with_defaults),
    "dataset_update": sampling("prioritized", tuned, update=True),
    "dataset_update_defaults": sampling("prioritized", with_defaults, update=True),
    "dataset_frames": sampling_frames,
    "dataset_large": sampling_large,
    "structured_writer": structured_writer,
    "writer": legacy_writer,
    "trajectory_writer": trajectory_writer,
    "client_insert": client_insert,
    "large_insert": large_insert,
    "mutate": mutate,
    "latency_insert": latency_insert,
    "latency_sample": latency_sample,
    "latency_update": latency_update,
    "info_latency": info_latency,
    "memory": memory,
    "memory_atari": memory_atari,
}


def main() -> None:
    """Run."""
    path, address = sys.argv[1:]
    client = reverb.Client(address)
    work, setting = PATHS[path](client)
    work_in_rounds(work, {"setting": setting})


if __name__ == "__main__":
    main()
