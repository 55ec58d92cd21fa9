"""Data of every dtype, bit by bit."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from payloads import DTYPES, STRINGS, arrays, same
from scenario import columns, on, size_of, table


@on(table())
def every_dtype_through_insert(client: reverb.Client) -> None:
    data = arrays((3, 5))
    client.insert(data, {"t": 1.0})
    for name, found in zip(sorted(data), columns(client), strict=True):
        same(found, data[name][None], name)


@on(table())
def every_dtype_through_a_trajectory(client: reverb.Client) -> None:
    data = arrays((7, 2, 3))
    with client.trajectory_writer(num_keep_alive_refs=7) as writer:
        for name in data:
            writer.configure((name,), num_keep_alive_refs=7, max_chunk_length=3)
        for at in range(7):
            writer.append({name: array[at] for name, array in data.items()})
        writer.create_item("t", 1.0, {name: column[:] for name, column in writer.history.items()})
        writer.flush()
    for name, found in zip(sorted(data), columns(client), strict=True):
        same(found, data[name], name)


@on(table(signature={name: tf.TensorSpec([None, 4], dtype) for name, dtype in DTYPES.items()}))
def every_dtype_through_a_dataset(client: reverb.Client) -> None:
    data = arrays((6, 4))
    with client.trajectory_writer(num_keep_alive_refs=6) as writer:
        for at in range(6):
            writer.append({name: array[at] for name, array in data.items()})
        writer.create_item("t", 1.0, {name: column[:] for name, column in writer.history.items()})
        writer.flush()
    dataset = reverb.TrajectoryDataset.from_table_signature(client.server_address, "t", 1, max_samples=1)
    ((_, found),) = dataset.as_numpy_iterator()
    for name, array in data.items():
        same(found[name], array, name)


@on(table())
def scalars_of_every_dtype(client: reverb.Client) -> None:
    data = arrays(())
    client.insert(data, {"t": 1.0})
    for name, found in zip(sorted(data), columns(client), strict=True):
        same(found, data[name][None], name)


@on(table(signature=tf.TensorSpec([None, 2, 3], tf.bfloat16)))
def bfloat16_through_tensorflow(client: reverb.Client) -> None:
    data = tf.constant([[1.5, -2.0, np.inf], [0.0, 3e38, -0.0]], tf.bfloat16)
    priorities = tf.constant([1.0], tf.float64)
    reverb.TFClient(client.server_address).insert([data], tf.constant(["t"]), priorities)
    dataset = reverb.TrajectoryDataset.from_table_signature(client.server_address, "t", 1, max_samples=1)
    ((_, found),) = dataset.as_numpy_iterator()
    np.testing.assert_array_equal(found.view(np.uint16), data.numpy()[None].view(np.uint16))


@on(table())
def strings(client: reverb.Client) -> None:
    with client.trajectory_writer(num_keep_alive_refs=len(STRINGS)) as writer:
        for text in STRINGS:
            writer.append({"text": text, "array": np.array([[text, "x"], ["", text]], object)})
        writer.create_item("t", 1.0, {name: column[:] for name, column in writer.history.items()})
        writer.flush()
    array, text = columns(client)
    encoded = [each if isinstance(each, bytes) else each.encode() for each in STRINGS]
    assert text.tolist() == encoded
    assert array.tolist() == [[[each, b"x"], [b"", each]] for each in encoded]


@on(table())
def empty_tensors(client: reverb.Client) -> None:
    shapes: list[tuple[int, ...]] = [(0,), (0, 3), (3, 0), (2, 0, 2)]
    data = [np.zeros(shape, dtype) for shape in shapes for dtype in (np.float32, np.uint8, np.bool_)]
    client.insert(data, {"t": 1.0})
    for found, sent in zip(columns(client), data, strict=True):
        assert (found.shape, found.dtype) == ((1, *sent.shape), sent.dtype)
    with client.trajectory_writer(num_keep_alive_refs=3) as writer:
        for _ in range(3):
            writer.append([data[0], "text"])
        writer.create_item("t", 1.0, [writer.history[0][:], writer.history[1][:]])
        writer.flush()
    assert size_of(client) == 2


@on(table(max_times_sampled=1))
def frames_that_compress_well_and_badly(client: reverb.Client) -> None:
    random = np.random.default_rng(3)
    steps: list[Any] = [np.zeros((84, 84, 4), np.uint8), random.integers(0, 256, (84, 84, 4), np.uint8)]
    steps.append(np.tile(np.arange(84, dtype=np.uint8)[:, None, None], (1, 84, 4)))
    for chunk_length in (1, 3):
        with client.trajectory_writer(num_keep_alive_refs=3) as writer:
            writer.configure((0,), num_keep_alive_refs=3, max_chunk_length=chunk_length)
            for step in steps:
                writer.append([step])
            writer.create_item("t", 1.0, writer.history[0][:])
            writer.flush()
        np.testing.assert_array_equal(columns(client)[0], np.stack(steps))


def _large(client: reverb.Client, megabytes: int) -> None:
    random = np.random.default_rng(megabytes)
    data = random.integers(0, 256, megabytes << 20, np.uint8)
    client.insert(data, {"t": 1.0})
    np.testing.assert_array_equal(columns(client)[0][0], data)


@on(table())
def an_item_of_16_megabytes(client: reverb.Client) -> None:
    _large(client, 16)


@on(table())
def an_item_of_100_megabytes(client: reverb.Client) -> None:
    _large(client, 100)


@on(table())
def an_item_of_96_megabytes_in_twelve_chunks(client: reverb.Client) -> None:
    random = np.random.default_rng(5)
    data = random.integers(0, 256, (12, 8 << 20), np.uint8)
    with client.trajectory_writer(num_keep_alive_refs=12) as writer:
        writer.configure(("x",), num_keep_alive_refs=12, max_chunk_length=1)
        for row in data:
            writer.append({"x": row})
        writer.create_item("t", 1.0, {"x": writer.history["x"][:]})
        writer.flush()
    np.testing.assert_array_equal(columns(client)[0], data)


@on(table())
def other_clients_are_served_meanwhile(client: reverb.Client) -> None:
    other = reverb.Client(client.server_address)
    other.server_info()
    data = np.random.default_rng(6).integers(0, 256, 60 << 20, np.uint8)
    writer = client.trajectory_writer(num_keep_alive_refs=1)
    writer.append({"x": data})
    writer.create_item("t", 1.0, {"x": writer.history["x"][-1:]})
    longest = 0.0
    while not size_of(other):
        before = time.monotonic()
        other.server_info()
        longest = max(longest, time.monotonic() - before)
    writer.flush()
    writer.close()
    assert longest < 5.0, longest
