"""What genuine clients do when the other end is a client of ours."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from payloads import DTYPES, STRINGS, arrays, same
from scenario import having, queue, table

Pair = collections.namedtuple("Pair", ["second", "first"])

SERIES = {name: tf.TensorSpec([None, 3], dtype) for name, dtype in DTYPES.items()}
STEP = {name: tf.TensorSpec([3], dtype) for name, dtype in DTYPES.items()}
WINDOW = {"window": tf.TensorSpec([None, 2], tf.float32), "newest": tf.TensorSpec([], tf.int64)}
NESTED = {"z": tf.TensorSpec([None], tf.int32), "a": Pair(tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32))}


# -- they write, we read -----------------------------------------------------------------------------------------------


@having(table("signed", SERIES), table("bare"))
def write_series(address: str) -> None:
    """Write `arrays((6, 3))` as one trajectory in two tables."""
    client, data = reverb.Client(address), arrays((6, 3))
    with client.trajectory_writer(num_keep_alive_refs=6) as writer:
        for at in range(6):
            writer.append({name: array[at] for name, array in data.items()})
        for name in ("signed", "bare"):
            writer.create_item(name, 1.0, {name: column[:] for name, column in writer.history.items()})
        writer.flush()


@having(table("signed", STEP), table("bare"))
def insert_steps(address: str) -> None:
    """Insert `arrays((3,))` in two tables."""
    reverb.Client(address).insert(arrays((3,)), {"signed": 1.0, "bare": 2.0})


@having(queue(100, "signed", WINDOW))
def write_windows(address: str, count: int, length: int) -> None:
    """Write overlapping windows; window i starts with ``[i, -i]``."""
    with reverb.Client(address).trajectory_writer(num_keep_alive_refs=length) as writer:
        for number in range(count + length - 1):
            writer.append({"pair": np.float32([number, -number]), "number": np.int64(number)})
            if number >= length - 1:
                shown = {"newest": writer.history["number"][-1], "window": writer.history["pair"][-length:]}
                writer.create_item("signed", float(number), shown)
        writer.flush()


@having(queue(100, "bare"))
def write_growing_items(address: str, count: int) -> None:
    """Write items of 1, 2, 3... steps with a legacy writer, delta-encoded."""
    with reverb.Client(address).writer(count, delta_encoded=True, chunk_length=2) as writer:
        for number in range(count):
            writer.append([np.arange(4, dtype=np.uint16) * number, np.float32(number)])
            writer.create_item("bare", number + 1, 1.0)


@having(table("bare"), table("signed", {"text": tf.TensorSpec([None], tf.string)}))
def write_strings(address: str) -> None:
    """Write `STRINGS` as one trajectory in two tables."""
    with reverb.Client(address).trajectory_writer(num_keep_alive_refs=len(STRINGS)) as writer:
        for text in STRINGS:
            writer.append({"text": text})
        for name in ("bare", "signed"):
            writer.create_item(name, 1.0, {"text": writer.history["text"][:]})
        writer.flush()


# -- we write, they read -----------------------------------------------------------------------------------------------


@having(table("signed", STEP), table("bare"))
def read_steps(address: str) -> None:
    """Find `arrays((3,))`, as if this client had inserted it."""
    client, data = reverb.Client(address), arrays((3,))
    ((step,),) = client.sample("signed", 1, unpack_as_table_signature=True)
    for name, array in data.items():
        same(step.data[name], array, name)
    (whole,) = client.sample("bare", 1, emit_timesteps=False)
    for name, found in zip(sorted(data), whole.data, strict=True):
        same(found, data[name][None], name)
    assert (whole.info.priority, whole.info.table_size, whole.info.times_sampled) == (2.0, 1, 1)
    dataset = reverb.TimestepDataset.from_table_signature(address, "signed", 1, max_samples=1)
    ((_, found),) = dataset.as_numpy_iterator()
    for name, array in data.items():
        same(found[name], array, name)


@having(table("signed", SERIES), table("bare"))
def read_series(address: str) -> None:
    """Find `arrays((6, 3))` as one trajectory."""
    client, data = reverb.Client(address), arrays((6, 3))
    (whole,) = client.sample("signed", 1, emit_timesteps=False, unpack_as_table_signature=True)
    (flat,) = client.sample("bare", 1, emit_timesteps=False)
    dataset = reverb.TrajectoryDataset.from_table_signature(address, "signed", 1, max_samples=1)
    ((_, found),) = dataset.as_numpy_iterator()
    for (name, array), column in zip(sorted(data.items()), flat.data, strict=True):
        same(whole.data[name], array, name)
        same(column, array, name)
        same(found[name], array, name)
    (steps,) = client.sample("signed", 1, unpack_as_table_signature=True)
    assert len(steps) == 6
    for name, array in data.items():
        same(steps[4].data[name], array[4], name)


@having(queue(100, "signed", WINDOW))
def read_windows(address: str, count: int, length: int) -> None:
    """Find what `write_windows` would have written."""
    dataset = reverb.TrajectoryDataset.from_table_signature(
        address, "signed", 5, num_workers_per_iterator=1, max_samples=count
    )
    for first, (info, data) in enumerate(dataset.as_numpy_iterator()):
        np.testing.assert_array_equal(data["window"][:, 0], np.arange(first, first + length))
        np.testing.assert_array_equal(data["window"][:, 1], -np.arange(first, first + length))
        assert data["newest"] == first + length - 1
        assert info.priority == first + length - 1
        assert data["window"].dtype == np.float32
    assert first == count - 1


@having(queue(200, "q"))
def read_numbers(address: str, count: int) -> list[int]:
    """Sample one-step items; return their first column's numbers."""
    return [int(steps[0].data[0]) for steps in reverb.Client(address).sample("q", count)]


@having(queue(100, "bare"))
def read_columns(address: str, name: str) -> list[Any]:
    """Sample an item; return its columns as lists."""
    (whole,) = reverb.Client(address).sample(name, 1, emit_timesteps=False)
    return [column.tolist() for column in whole.data]


@having(table("signed", NESTED), table("bare"))
def read_nested(address: str) -> None:
    """Find the numbers that `test_both_doors` nests, in dm-tree's order: keys sorted, fields as they stand."""
    client = reverb.Client(address)
    (whole,) = client.sample("signed", 1, emit_timesteps=False, unpack_as_table_signature=True)
    found = whole.data
    assert (found["z"].tolist(), found["a"].second.tolist(), int(found["a"].first)) == ([1, 2], [3, 4], 5)
    (flat,) = client.sample("bare", 1, emit_timesteps=False)
    assert [column.tolist() for column in flat.data] == [[3, 4], 5, [1, 2]]


@having(table("bare"))
def read_strings(address: str) -> None:
    """Find `STRINGS`, as bytes."""
    (whole,) = reverb.Client(address).sample("bare", 1, emit_timesteps=False)
    assert whole.data[0].tolist() == [text if isinstance(text, bytes) else text.encode() for text in STRINGS]


# -- both at once ------------------------------------------------------------------------------------------------------


@having(table("t", sampler=reverb.selectors.MaxHeap()), queue(2))
def write_numbers(address: str, name: str, numbers: list[int]) -> None:
    """Insert numbers as priorities and data, one after the other."""
    client = reverb.Client(address)
    for number in numbers:
        client.insert(np.int64(number), {name: float(number)})


def sample_key(address: str, name: str) -> list[int]:
    """Sample a number; return it, and its item's key."""
    sample = next(reverb.Client(address).sample(name, 1))[0]
    return [int(sample.data[0]), int(sample.info.key)]


def mutate(address: str, name: str, updates: dict[str, float], deletes: list[int]) -> None:
    changed = {int(key): priority for key, priority in updates.items()}
    reverb.Client(address).mutate_priorities(name, updates=changed, deletes=deletes)
