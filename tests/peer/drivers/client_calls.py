"""What `reverb.Client` does without a writer of the program's own."""

from __future__ import annotations

import collections
import pickle

import numpy as np
import reverb
import tensorflow as tf
from scenario import columns, on, queue, raises, size_of, table
from tensorflow.python.framework import tensor_spec
from tensorflow.python.saved_model import nested_structure_coder

Pair = collections.namedtuple("Pair", ["first", "second"])

STEP = {"b": np.arange(3, dtype=np.float32), "a": np.int64(7)}
STEPS_SIGNATURE = {"a": tf.TensorSpec([None], tf.int64), "b": tf.TensorSpec([None, 3], tf.float32)}


@on(table())
def insert_gives_items_of_one_step(client: reverb.Client) -> None:
    client.insert(STEP, {"t": 1.5})
    (steps,) = client.sample("t", 1)
    (step,) = steps
    assert step.data[0] == 7, step.data
    np.testing.assert_array_equal(step.data[1], STEP["b"])
    assert step.info.priority == 1.5
    assert step.info.probability == 1.0
    assert (step.info.table_size, step.info.times_sampled) == (1, 1)
    (whole,) = client.sample("t", 1, emit_timesteps=False)
    assert [column.shape for column in whole.data] == [(1,), (1, 3)]
    assert whole.info.times_sampled == 2
    assert whole.info.key == step.info.key


@on(table(signature=STEPS_SIGNATURE))
def samples_are_nested_as_the_signature(client: reverb.Client) -> None:
    with client.trajectory_writer(num_keep_alive_refs=2) as writer:
        for number in range(2):
            writer.append({"a": np.int64(number), "b": np.full(3, number, np.float32)})
        writer.create_item("t", 1.0, {name: column[:] for name, column in writer.history.items()})
        writer.flush()
    (whole,) = client.sample("t", 1, emit_timesteps=False, unpack_as_table_signature=True)
    np.testing.assert_array_equal(whole.data["a"], [0, 1])
    np.testing.assert_array_equal(whole.data["b"], [[0, 0, 0], [1, 1, 1]])
    (steps,) = client.sample("t", 1, unpack_as_table_signature=True)
    assert [int(step.data["a"]) for step in steps] == [0, 1]
    assert {step.info.key for step in steps} == {whole.info.key}


@on(table())
def without_a_signature_samples_are_flat(client: reverb.Client) -> None:
    client.insert(STEP, {"t": 1.0})
    (whole,) = client.sample("t", 1, emit_timesteps=False, unpack_as_table_signature=True)
    assert [column.dtype for column in whole.data] == [np.int64, np.float32]


@on(table("one"), table("two"))
def one_insert_fills_several_tables(client: reverb.Client) -> None:
    client.insert(STEP, {"one": 1.0, "two": 2.0})
    for name, priority in (("one", 1.0), ("two", 2.0)):
        (sample,) = client.sample(name, 1, emit_timesteps=False)
        assert sample.info.priority == priority
        np.testing.assert_array_equal(sample.data[1], STEP["b"][None])


@on(queue(300))
def many_samples_come_in_order_and_each_once(client: reverb.Client) -> None:
    for number in range(300):
        client.insert(np.int32(number), {"q": 1.0})
    assert [int(steps[0].data[0]) for steps in client.sample("q", 300)] == list(range(300))
    assert size_of(client, "q") == 0


@on(table(sampler=reverb.selectors.Prioritized(1.0)))
def priorities_decide_what_is_sampled(client: reverb.Client) -> None:
    for number, priority in enumerate([3.0, 1.0, 0.0]):
        client.insert(np.int32(number), {"t": priority})
    counts = collections.Counter(int(steps[0].data[0]) for steps in client.sample("t", 1000))
    assert set(counts) == {0, 1}, counts
    assert 650 < counts[0] < 850, counts
    probabilities = {int(steps[0].data[0]): steps[0].info.probability for steps in client.sample("t", 100)}
    assert abs(probabilities[0] - 0.75) < 1e-9


@on(table(sampler=reverb.selectors.MaxHeap()))
def priorities_can_be_mutated(client: reverb.Client) -> None:
    for number in range(3):
        client.insert(np.int32(number), {"t": float(number)})
    first = next(client.sample("t", 1))[0]
    assert first.data[0] == 2
    client.mutate_priorities("t", updates={first.info.key: -5.0, 12345: 1.0})  # An unknown key is ignored.
    second = next(client.sample("t", 1))[0]
    assert second.data[0] == 1
    client.mutate_priorities("t", deletes=[second.info.key, 54321])
    assert size_of(client) == 2
    assert next(client.sample("t", 1))[0].data[0] == 0
    client.mutate_priorities("t", updates={first.info.key: 9.0})
    third = next(client.sample("t", 1))[0]
    assert (third.data[0], third.info.priority) == (2, 9.0)


@on(table(sampler=reverb.selectors.Prioritized(1.0)))
def deletes_come_before_updates(client: reverb.Client) -> None:
    client.insert(np.int32(1), {"t": 1.0})
    key = next(client.sample("t", 1))[0].info.key
    client.mutate_priorities("t", updates={key: -1.0}, deletes=[key])  # Else the priority were refused.
    assert size_of(client) == 0


@on(table(max_times_sampled=2))
def items_leave_when_they_are_used_up(client: reverb.Client) -> None:
    client.insert(np.int32(1), {"t": 1.0})
    assert [steps[0].info.times_sampled for steps in client.sample("t", 2)] == [1, 2]
    assert size_of(client) == 0


@on(table())
def reset_empties_a_table(client: reverb.Client) -> None:
    for number in range(5):
        client.insert(np.int32(number), {"t": 1.0})
    client.reset("t")
    info = client.server_info()["t"]
    assert (info.current_size, info.num_episodes, info.rate_limiter_info.insert_stats.completed) == (0, 0, 0)
    client.insert(np.int32(9), {"t": 1.0})
    np.testing.assert_array_equal(columns(client)[0], [9])


@on(
    table("prioritized", sampler=reverb.selectors.Prioritized(0.8), max_size=7, max_times_sampled=3),
    table("heap", sampler=reverb.selectors.MinHeap(), remover=reverb.selectors.MaxHeap()),
    table("ratio", rate_limiter=reverb.rate_limiters.SampleToInsertRatio(2.0, 3, 4.0)),
    reverb.Table.stack("stack", 5),
)
def server_info_describes_the_tables(client: reverb.Client) -> None:
    info = client.server_info()
    assert set(info) == {"prioritized", "heap", "ratio", "stack"}
    prioritized = info["prioritized"]
    assert prioritized.name == "prioritized"
    assert prioritized.sampler_options.prioritized.priority_exponent == 0.8
    assert not prioritized.sampler_options.is_deterministic
    assert prioritized.remover_options.fifo
    assert prioritized.remover_options.is_deterministic
    assert (prioritized.max_size, prioritized.max_times_sampled, prioritized.current_size) == (7, 3, 0)
    assert prioritized.signature is None
    assert info["heap"].sampler_options.heap.min_heap
    assert info["heap"].remover_options.WhichOneof("distribution") == "heap"
    assert not info["heap"].remover_options.heap.min_heap
    limits = info["ratio"].rate_limiter_info
    assert (limits.samples_per_insert, limits.min_size_to_sample) == (2.0, 3)
    assert (limits.min_diff, limits.max_diff) == (2.0, 10.0)
    limits = info["prioritized"].rate_limiter_info
    assert (limits.min_diff, limits.max_diff) == (-np.finfo(np.float64).max, np.finfo(np.float64).max)
    assert info["stack"].sampler_options.lifo
    assert info["stack"].rate_limiter_info.max_diff == 5.0
    assert info["stack"].max_times_sampled == 1


@on(table(max_size=3, max_times_sampled=2))
def server_info_counts(client: reverb.Client) -> None:
    for number in range(4):
        client.insert(np.int32(number), {"t": 1.0})
    for _ in client.sample("t", 3):
        pass
    info = client.server_info()["t"]
    assert (info.current_size, info.num_episodes, info.num_deleted_episodes) == (2, 2, 2)
    assert info.num_unique_samples == 2
    assert info.rate_limiter_info.insert_stats.completed == 4
    assert info.rate_limiter_info.sample_stats.completed == 3


SIGNATURES = {
    "leaf": tf.TensorSpec([2, None], tf.uint16),
    "dict": {"z": tf.TensorSpec([], tf.bool, "its name"), "a": tf.TensorSpec([None], tf.string)},
    "ordered": collections.OrderedDict(z=tf.TensorSpec([], tf.int8), a=tf.TensorSpec([3], tf.complex128)),
    "namedtuple": Pair(tf.TensorSpec([1], tf.float16), tf.TensorSpec([2], tf.bfloat16)),
    "nested": {
        "list": [tf.TensorSpec([0], tf.uint64), (tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int32))],
        "pair": Pair({"deep": tf.TensorSpec([84, 84, 3], tf.uint8)}, ()),
    },
    "bounded": tensor_spec.BoundedTensorSpec([2], tf.float64, 0.0, [1.0, 2.0]),
}


@on(table("none"), *(table(name, signature) for name, signature in SIGNATURES.items()))
def signatures_come_back_as_they_are(client: reverb.Client) -> None:
    info = client.server_info()
    assert info["none"].signature is None
    for name, signature in SIGNATURES.items():
        expected = nested_structure_coder.decode_proto(nested_structure_coder.encode_structure(signature))
        found = info[name].signature
        assert found == expected, (name, found, expected)
        assert repr(type(found)) == repr(type(expected))  # A namedtuple's class is made anew each time.


@on(table())
def a_client_can_be_pickled(client: reverb.Client) -> None:
    pickle.loads(pickle.dumps(client)).insert(np.int32(3), {"t": 1.0})
    np.testing.assert_array_equal(columns(client)[0], [3])


@on(table(), needs_ours=True)
def without_a_checkpointer_there_are_no_checkpoints(client: reverb.Client) -> None:
    raises(ValueError, "no Checkpointer configured for the replay service.", client.checkpoint)


@on(table())
def dropping_an_iterator_gives_up_what_it_prefetched(client: reverb.Client) -> None:
    client.insert(np.int32(1), {"t": 1.0})
    samples = client.sample("t", 100)
    next(samples)
    del samples
    client.reset("t")
    client.insert(np.int32(2), {"t": 1.0})
    np.testing.assert_array_equal(columns(client)[0], [2])
