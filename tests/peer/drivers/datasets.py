"""`TrajectoryDataset` and `TimestepDataset`."""

from __future__ import annotations

import collections
import time
from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from scenario import on, queue, raises, size_of, table

Pair = collections.namedtuple("Pair", ["first", "second"])

SIGNATURE = {
    "z": tf.TensorSpec([None, 2], tf.float32),
    "a": Pair(tf.TensorSpec([None], tf.int64), {"name": tf.TensorSpec([], tf.string)}),
}
STEPS = {"x": tf.TensorSpec([], tf.int32), "y": tf.TensorSpec([2], tf.float64)}


def write(client: reverb.Client, count: int, length: int = 3, name: str = "t") -> None:
    """Write trajectories; the first number in each is its own number, the others count up."""
    with client.trajectory_writer(num_keep_alive_refs=length) as writer:
        for number in range(count):
            for at in range(number, number + length):
                writer.append({"z": np.float32([at, -at]), "n": np.int64(at), "s": f"{at}"})
            history = writer.history
            shown = {"z": history["z"][:], "a": Pair(history["n"][:], {"name": history["s"][-1]})}
            writer.create_item(name, 1.0 + number, shown)
            writer.end_episode()


def write_steps(client: reverb.Client, count: int, length: int, name: str = "t") -> None:
    with client.writer(max_sequence_length=length) as writer:
        for number in range(count * length):
            writer.append({"x": np.int32(number), "y": np.float64([number, -number])})
            if number % length == length - 1:
                writer.create_item(name, length, 1.0)


@on(table(signature=SIGNATURE, max_times_sampled=1))
def trajectories_by_the_signature(client: reverb.Client) -> None:
    write(client, 40)
    dataset = reverb.TrajectoryDataset.from_table_signature(
        client.server_address, "t", max_in_flight_samples_per_worker=7, max_samples=40, num_workers_per_iterator=1
    )
    found = list(dataset.as_numpy_iterator())
    assert len(found) == 40
    for number, (info, data) in enumerate(found):
        np.testing.assert_array_equal(data["z"][:, 0], np.arange(number, number + 3))
        np.testing.assert_array_equal(data["z"][:, 1], -np.arange(number, number + 3))
        np.testing.assert_array_equal(data["a"].first, np.arange(number, number + 3))
        assert data["a"].second["name"] == f"{number + 2}".encode()
        assert (info.priority, info.probability, info.times_sampled) == (1.0 + number, 1.0, 1)
        assert info.table_size == 40 - number
    assert size_of(client) == 0


@on(table())
def trajectories_by_dtypes_and_shapes(client: reverb.Client) -> None:
    write(client, 1)
    dataset = reverb.TrajectoryDataset(
        client.server_address,
        "t",
        dtypes=(tf.int64, tf.string, tf.float32),
        shapes=(tf.TensorShape([3]), tf.TensorShape([]), tf.TensorShape([None, 2])),
        max_in_flight_samples_per_worker=3,
        max_samples=10,
    )
    found = [data for _, data in dataset.as_numpy_iterator()]
    assert len(found) == 10
    for numbers, name, pairs in found:
        assert (numbers.tolist(), name) == ([0, 1, 2], b"2")
        np.testing.assert_array_equal(pairs, [[0, 0], [1, -1], [2, -2]])


@on(table(signature=SIGNATURE))
def wrong_dtypes_are_an_error(client: reverb.Client) -> None:
    write(client, 1)
    dataset = reverb.TrajectoryDataset(
        client.server_address,
        "t",
        dtypes=(tf.int32, tf.string, tf.float32),
        shapes=(tf.TensorShape([3]), tf.TensorShape([]), tf.TensorShape([None, 2])),
        max_in_flight_samples_per_worker=1,
    )
    raises(tf.errors.InvalidArgumentError, "", lambda: next(dataset.as_numpy_iterator()))


@on(table(signature=SIGNATURE, sampler=reverb.selectors.Uniform()))
def several_workers_and_many_streams(client: reverb.Client) -> None:
    write(client, 30)
    dataset = reverb.TrajectoryDataset.from_table_signature(
        client.server_address,
        "t",
        max_in_flight_samples_per_worker=50,
        num_workers_per_iterator=4,
        max_samples_per_stream=60,
        max_samples=2000,
    )
    counts = collections.Counter(int(data["a"].first[0]) for _, data in dataset.as_numpy_iterator())
    assert sum(counts.values()) == 2000
    assert set(counts) == set(range(30))
    assert client.server_info()["t"].rate_limiter_info.sample_stats.completed >= 2000


@on(table(signature=SIGNATURE))
def an_empty_table_ends_the_sequence_after_the_timeout(client: reverb.Client) -> None:
    for kind in (reverb.TrajectoryDataset, reverb.TimestepDataset):
        dataset = kind.from_table_signature(
            client.server_address, "t", max_in_flight_samples_per_worker=5, rate_limiter_timeout_ms=300
        )
        before = time.monotonic()
        assert list(dataset) == []
        assert 0.25 < time.monotonic() - before < 5.0


@on(queue(20, "t", SIGNATURE))
def a_queue_that_runs_dry_ends_the_sequence_after_the_timeout(client: reverb.Client) -> None:
    write(client, 15)
    dataset = reverb.TrajectoryDataset.from_table_signature(
        client.server_address,
        "t",
        max_in_flight_samples_per_worker=4,
        num_workers_per_iterator=1,
        rate_limiter_timeout_ms=300,
    )
    numbers = [int(data["a"].first[0]) for _, data in dataset.as_numpy_iterator()]
    assert numbers == list(range(15))


@on(table(signature=SIGNATURE), needs_ours=True)
def a_timeout_of_nothing_ends_the_sequence_at_once(client: reverb.Client) -> None:
    dataset = reverb.TrajectoryDataset.from_table_signature(
        client.server_address, "t", max_in_flight_samples_per_worker=5, rate_limiter_timeout_ms=0
    )
    before = time.monotonic()
    assert list(dataset) == []
    assert time.monotonic() - before < 5.0


@on(queue(30, "t", SIGNATURE))
def max_samples_are_all_that_is_taken(client: reverb.Client) -> None:
    write(client, 30)
    dataset = reverb.TrajectoryDataset.from_table_signature(
        client.server_address, "t", max_in_flight_samples_per_worker=8, max_samples=11
    )
    assert len(list(dataset)) == 11
    assert size_of(client) == 19


@on(queue(30, "t", STEPS))
def timesteps_by_the_signature(client: reverb.Client) -> None:
    write_steps(client, 6, 5)
    dataset = reverb.TimestepDataset.from_table_signature(
        client.server_address, "t", max_in_flight_samples_per_worker=3, max_samples=6, num_workers_per_iterator=1
    )
    found = list(dataset.as_numpy_iterator())
    assert [int(data["x"]) for _, data in found] == list(range(30))
    assert [data["y"].tolist() for _, data in found] == [[float(at), -float(at)] for at in range(30)]
    assert len({int(info.key) for info, _ in found}) == 6


@on(table())
def timesteps_by_dtypes_and_shapes(client: reverb.Client) -> None:
    write_steps(client, 1, 4)
    dataset = reverb.TimestepDataset(
        client.server_address,
        "t",
        dtypes=(tf.int32, tf.float64),
        shapes=(tf.TensorShape([]), tf.TensorShape([2])),
        max_in_flight_samples_per_worker=1,
        max_samples=3,
    )
    assert [int(x) for _, (x, _) in dataset.as_numpy_iterator()] == [0, 1, 2, 3] * 3


@on(table(signature=SIGNATURE))
def batches_through_the_dataset(client: reverb.Client) -> None:
    write(client, 8)

    def make(_: Any) -> Any:
        return reverb.TrajectoryDataset.from_table_signature(
            client.server_address, "t", max_in_flight_samples_per_worker=4
        )

    dataset = tf.data.Dataset.range(2).interleave(make, cycle_length=2).batch(16).prefetch(2)
    for _, data in dataset.take(5).as_numpy_iterator():
        assert data["z"].shape == (16, 3, 2)


@on(table(signature=STEPS))
def unknown_tables_and_bad_arguments(client: reverb.Client) -> None:
    raises(
        ValueError,
        "does not contain any table named nope",
        reverb.TrajectoryDataset.from_table_signature,
        client.server_address,
        "nope",
        1,
    )
    dataset = reverb.TrajectoryDataset(
        client.server_address, "nope", tf.int32, tf.TensorShape([]), max_in_flight_samples_per_worker=1
    )
    raises(tf.errors.NotFoundError, "Priority table nope was not found", lambda: next(iter(dataset)))
