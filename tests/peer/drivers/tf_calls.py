"""`TFClient`: the calls as TensorFlow operations."""

from __future__ import annotations

import numpy as np
import reverb
import tensorflow as tf
from scenario import on, queue, raises, size_of, table


@on(table("one"), table("two"))
def inserts_and_samples(client: reverb.Client) -> None:
    tf_client = reverb.TFClient(client.server_address)
    data = [tf.constant([1, 2], tf.int32), tf.constant("text"), tf.constant(2.5, tf.float64)]
    tf_client.insert(data, tf.constant(["one", "two"]), tf.constant([1.0, 2.0], tf.float64))
    for name, priority in (("one", 1.0), ("two", 2.0)):
        sample = tf_client.sample(name, [tf.int32, tf.string, tf.float64])
        assert sample.info.priority.numpy() == priority
        assert sample.info.table_size.numpy() == 1
        numbers, text, number = (each.numpy() for each in sample.data)
        assert (numbers.tolist(), text, number) == ([1, 2], b"text", 2.5)


@on(table(sampler=reverb.selectors.MinHeap()))
def priorities_are_updated(client: reverb.Client) -> None:
    tf_client = reverb.TFClient(client.server_address)
    for number in range(3):
        tf_client.insert([tf.constant(number)], tf.constant(["t"]), tf.constant([float(number)], tf.float64))
    first = tf_client.sample("t", [tf.int32])
    assert first.data[0].numpy() == 0
    unknown = first.info.key + tf.constant(1, tf.uint64)
    tf_client.update_priorities("t", tf.stack([first.info.key, unknown]), tf.constant([7.0, 1.0], tf.float64))
    assert tf_client.sample("t", [tf.int32]).data[0].numpy() == 1
    assert size_of(client) == 3


@on(queue(5))
def in_a_graph(client: reverb.Client) -> None:
    tf_client = reverb.TFClient(client.server_address)

    @tf.function
    def round_trip(value: tf.Tensor) -> tf.Tensor:
        insert = tf_client.insert([value], tf.constant(["q"]), tf.constant([1.0], tf.float64))
        with tf.control_dependencies([insert]):
            return tf_client.sample("q", [tf.float32]).data[0]

    for number in range(4):
        np.testing.assert_array_equal(round_trip(tf.fill([2, 2], float(number))), np.full((2, 2), number))


@on(table())
def unknown_tables(client: reverb.Client) -> None:
    tf_client = reverb.TFClient(client.server_address)
    sample = (tf_client.sample, "nope", [tf.int32])
    raises(tf.errors.NotFoundError, "Priority table nope was not found", *sample)
    keys, priorities = tf.constant([1], tf.uint64), tf.constant([1.0], tf.float64)
    update = (tf_client.update_priorities, "nope", keys, priorities)
    raises(tf.errors.NotFoundError, "Priority table nope was not found", *update)
    insert = (tf_client.insert, [tf.constant(1)], tf.constant(["nope"]), priorities)
    raises(tf.errors.InvalidArgumentError, "nope", *insert)
