"""The tables of `test_their_server`, and what genuine clients do there."""

from __future__ import annotations

from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from scenario import having, queue, table

SIGNATURE = {"x": tf.TensorSpec([2], tf.float32), "text": tf.TensorSpec([], tf.string)}
HALVES = {"x": tf.TensorSpec([None, 3], tf.bfloat16)}


@having(
    table("bare"),
    table("once", max_times_sampled=1),
    table("signed", SIGNATURE),
    table("halves", HALVES),
    table("prioritized", sampler=reverb.selectors.Prioritized(1.0)),
    table("best", sampler=reverb.selectors.MaxHeap()),
    table("slow", rate_limiter=reverb.rate_limiters.MinSize(3)),
    queue(2, "queue"),
)
def size(address: str, name: str) -> int:
    """Return how many items a table has."""
    return reverb.Client(address).server_info()[name].current_size


def keys_and_priorities(address: str, name: str, count: int) -> list[tuple[int, float]]:
    """Sample so often; return keys and priorities."""
    samples = reverb.Client(address).sample(name, count, emit_timesteps=False)
    return [(int(sample.info.key), float(sample.info.priority)) for sample in samples]


def columns(address: str, name: str) -> list[Any]:
    """Sample an item; return its columns as lists."""
    (whole,) = reverb.Client(address).sample(name, 1, emit_timesteps=False)
    return [column.tolist() for column in whole.data]


def insert(address: str, name: str, number: int, priority: float) -> None:
    """Insert a number."""
    reverb.Client(address).insert(np.int64(number), {name: priority})


def read_halves(address: str) -> list[int]:
    """Read a trajectory of bfloat16 with a dataset; return its bits."""
    dataset = reverb.TrajectoryDataset.from_table_signature(address, "halves", 1, max_samples=1)
    ((_, found),) = dataset.as_numpy_iterator()
    return found["x"].view(np.uint16).ravel().tolist()


def insert_halves(address: str, bits: list[int]) -> None:
    """Insert a step of bfloat16, from a graph: the other clients cannot."""
    row = tf.bitcast(tf.constant(bits, tf.uint16), tf.bfloat16)
    reverb.TFClient(address).insert([row], tf.constant(["halves"]), tf.constant([1.0], tf.float64))
