"""Rate limiters: who waits for whom, also within one process, whose calls share a connection."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from scenario import columns, on, queue, size_of, table, wait_until


def write(client: reverb.Client, name: str, numbers: range) -> None:
    """Write numbers one by one, waiting for each."""
    with client.trajectory_writer(num_keep_alive_refs=1) as writer:
        for number in numbers:
            writer.append({"x": np.int64(number)})
            writer.create_item(name, 1.0, {"x": writer.history["x"][-1:]})
            writer.flush()


def read(client: reverb.Client, name: str, count: int) -> list[int]:
    """Sample numbers one by one, waiting for each."""
    return [int(steps[0].data[0]) for steps in client.sample(name, count)]


def info_of(client: reverb.Client, name: str = "t") -> Any:
    return client.server_info()[name]


@on(queue(3))
def blocked_writers_do_not_stop_the_sampler_beside_them(client: reverb.Client) -> None:
    count = 12
    threads = [threading.Thread(target=write, args=(client, "q", range(at, 100, count))) for at in range(count)]
    for thread in threads:
        thread.start()
    wait_until(lambda: size_of(client, "q") == 3)
    assert sorted(read(client, "q", 100)) == list(range(100))
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert size_of(client, "q") == 0


@on(queue(2), table("other"))
def blocked_writers_with_large_items_do_not_stop_the_sampler_beside_them(client: reverb.Client) -> None:
    def fill(number: int) -> None:
        for _ in range(4):
            client.insert(np.full(2 << 20, number, np.uint8), {"q": 1.0})

    threads = [threading.Thread(target=fill, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: size_of(client, "q") == 2)
    client.insert(np.int32(1), {"other": 1.0})
    assert columns(client, "other")[0] == 1
    assert len(list(client.sample("q", 32))) == 32
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@on(queue(30), table("other"))
def a_blocked_item_does_not_stop_those_for_other_tables(client: reverb.Client) -> None:
    writer = client.trajectory_writer(num_keep_alive_refs=1)
    for number in range(32):
        writer.append({"x": np.int32(number)})
        writer.create_item("q", 1.0, {"x": writer.history["x"][-1:]})
    wait_until(lambda: size_of(client, "q") == 30)
    writer.append({"x": np.int32(32)})
    writer.create_item("other", 1.0, {"x": writer.history["x"][-1:]})
    wait_until(lambda: size_of(client, "other") == 1)
    assert read(client, "q", 32) == list(range(32))
    writer.flush(timeout_ms=20_000)
    writer.close()


@on(table(rate_limiter=reverb.rate_limiters.MinSize(3)))
def a_sampler_waits_for_the_minimum_size(client: reverb.Client) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(read(client, "t", 4)))
    thread.start()
    for number in range(2):
        client.insert(np.int64(number), {"t": 1.0})
    time.sleep(0.2)
    assert found == []
    assert info_of(client).rate_limiter_info.sample_stats.completed == 0
    client.insert(np.int64(2), {"t": 1.0})
    thread.join(20)
    assert found == [0] * 4


@on(table(rate_limiter=reverb.rate_limiters.SampleToInsertRatio(2.0, 2, 4.0), sampler=reverb.selectors.Uniform()))
def samples_and_inserts_keep_their_ratio(client: reverb.Client) -> None:
    # 2 * inserts - samples stays between 0 and 8, once there are 2 items.
    writing = threading.Thread(target=write, args=(client, "t", range(60)))
    writing.start()
    wait_until(lambda: info_of(client).rate_limiter_info.insert_stats.completed == 4)
    time.sleep(0.2)
    assert info_of(client).rate_limiter_info.insert_stats.completed == 4
    dataset = reverb.TrajectoryDataset(
        client.server_address,
        "t",
        dtypes=(tf.int64,),
        shapes=(tf.TensorShape([1]),),
        max_in_flight_samples_per_worker=1,
        max_samples=112,
    )
    reading = threading.Thread(target=lambda: list(dataset))
    reading.start()
    while reading.is_alive():
        limits = info_of(client).rate_limiter_info
        difference = 2 * limits.insert_stats.completed - limits.sample_stats.completed
        assert limits.insert_stats.completed <= 2 or 0 <= difference <= 8, difference
    writing.join(20)
    assert not writing.is_alive()
    limits = info_of(client).rate_limiter_info
    assert 2 * limits.insert_stats.completed - limits.sample_stats.completed >= 0
    assert limits.insert_stats.completed == 60


@on(queue(2))
def a_reset_lets_blocked_writers_in(client: reverb.Client) -> None:
    writing = threading.Thread(target=write, args=(client, "q", range(3)))
    writing.start()
    wait_until(lambda: size_of(client, "q") == 2)
    client.reset("q")
    writing.join(20)
    assert not writing.is_alive()
    assert read(client, "q", 1) == [2]


@on(queue(2))
def deleting_items_of_a_full_queue_lets_nobody_in(client: reverb.Client) -> None:
    write(client, "q", range(2))
    writer = client.trajectory_writer(num_keep_alive_refs=1)
    writer.append({"x": np.int64(2)})
    writer.create_item("q", 1.0, {"x": writer.history["x"][-1:]})
    (key,) = {steps[0].info.key for steps in client.sample("q", 1)}
    client.mutate_priorities("q", deletes=[key])
    writer.flush(timeout_ms=20_000)
    assert read(client, "q", 2) == [1, 2]
    writer.close()
