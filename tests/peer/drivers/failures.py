"""Calls that fail: which exceptions programs see, and their texts."""

from __future__ import annotations

import numpy as np
import reverb
import tensorflow as tf
from scenario import columns, on, queue, raises, size_of, table

UNKNOWN = "Priority table nope was not found"


@on(table())
def unknown_tables(client: reverb.Client) -> None:
    raises(RuntimeError, UNKNOWN, next, client.sample("nope", 1))
    raises(RuntimeError, UNKNOWN, client.mutate_priorities, "nope", {1: 1.0})
    raises(RuntimeError, UNKNOWN, client.reset, "nope")
    raises(ValueError, "nope", client.insert, 1, {"nope": 1.0})
    unpacking = client.sample("nope", 1, emit_timesteps=False, unpack_as_table_signature=True)
    raises(ValueError, "nope", next, unpacking)


@on(table())
def writers_meet_unknown_tables(client: reverb.Client) -> None:
    with client.trajectory_writer(num_keep_alive_refs=1) as writer:
        writer.append({"x": 1})
        raises(ValueError, "could not be found", writer.create_item, "nope", 1.0, {"x": writer.history["x"][-1:]})
    careless = client.trajectory_writer(num_keep_alive_refs=1, validate_items=False)
    careless.append({"x": 1})
    careless.create_item("nope", 1.0, {"x": careless.history["x"][-1:]})
    raises(RuntimeError, UNKNOWN, careless.flush)
    raises(RuntimeError, UNKNOWN, careless.append, {"x": 2})
    careless.close()
    assert size_of(client) == 0


@on(table(sampler=reverb.selectors.Prioritized(1.0)))
def illegal_new_priorities(client: reverb.Client) -> None:
    client.insert(np.int32(1), {"t": 2.0})
    key = next(client.sample("t", 1))[0].info.key
    raises(ValueError, "Priority must not be negative.", client.mutate_priorities, "t", {key: -1.0})
    raises(ValueError, "Priority must not be NaN.", client.mutate_priorities, "t", {key: float("nan")})
    client.mutate_priorities("t", {key + 1: -1.0})  # No such item: ignored.
    assert size_of(client) == 1


@on(table(sampler=reverb.selectors.Prioritized(1.0)), needs_ours=True)
def a_refused_priority_changes_nothing(client: reverb.Client) -> None:
    client.insert(np.int32(1), {"t": 2.0})
    key = next(client.sample("t", 1))[0].info.key
    raises(ValueError, "Priority must not be negative.", client.mutate_priorities, "t", {key: -1.0})
    assert next(client.sample("t", 1))[0].info.priority == 2.0


@on(table(sampler=reverb.selectors.Prioritized(1.0)), needs_ours=True)
def an_item_with_an_illegal_priority_is_refused_and_harms_nobody(client: reverb.Client) -> None:
    writer = client.trajectory_writer(num_keep_alive_refs=1)
    writer.append({"x": 1})
    writer.create_item("t", -1.0, {"x": writer.history["x"][-1:]})
    raises(ValueError, "negative", writer.flush)
    writer.close()
    client.insert(np.int32(5), {"t": 1.0})
    np.testing.assert_array_equal(columns(client)[0], [5])
    assert size_of(client) == 1


@on(table())
def priorities_that_are_no_numbers(client: reverb.Client) -> None:
    raises(ValueError, "", client.insert, 1, {"t": float("nan")})
    raises(ValueError, "", client.insert, 1, {})
    assert size_of(client) == 0


@on(table(signature={"x": tf.TensorSpec([None, 2], tf.float32)}))
def items_that_do_not_fit_the_signature(client: reverb.Client) -> None:
    with client.trajectory_writer(num_keep_alive_refs=2) as writer:
        writer.append({"x": np.zeros(2, np.float32), "wrong": np.zeros(3, np.float32), "double": np.zeros(2)})
        for name in ("wrong", "double"):
            raises(ValueError, "", writer.create_item, "t", 1.0, {"x": writer.history[name][:]})
        both = {"x": writer.history["x"][:], "y": writer.history["x"][:]}
        raises(ValueError, "", writer.create_item, "t", 1.0, both)
        writer.create_item("t", 1.0, {"x": writer.history["x"][:]})
        writer.flush()
    assert size_of(client) == 1


@on(table(signature=tf.TensorSpec([None, 2], tf.float32)))
def legacy_steps_that_do_not_fit_the_signature(client: reverb.Client) -> None:
    raises(ValueError, "", client.insert, np.zeros(3, np.float32), {"t": 1.0})
    raises(ValueError, "", client.insert, np.zeros(2, np.float64), {"t": 1.0})
    client.insert(np.zeros(2, np.float32), {"t": 1.0})
    assert size_of(client) == 1


@on(queue(1))
def a_flush_that_times_out_loses_nothing(client: reverb.Client) -> None:
    writer = client.trajectory_writer(num_keep_alive_refs=1)
    for number in range(2):
        writer.append({"x": np.int32(number)})
        writer.create_item("q", 1.0, {"x": writer.history["x"][-1:]})
    raises(reverb.DeadlineExceededError, "did not complete within provided timeout", writer.flush, timeout_ms=200)
    assert [int(steps[0].data[0]) for steps in client.sample("q", 2)] == [0, 1]
    writer.flush(timeout_ms=10_000)
    writer.end_episode(timeout_ms=10_000)
    writer.close()


@on(queue(1))
def an_end_of_episode_that_times_out(client: reverb.Client) -> None:
    writer = client.trajectory_writer(num_keep_alive_refs=1)
    for number in range(2):
        writer.append({"x": np.int32(number)})
        writer.create_item("q", 1.0, {"x": writer.history["x"][-1:]})
    raises(reverb.DeadlineExceededError, "did not complete within provided timeout", writer.end_episode, timeout_ms=100)
    assert len(list(client.sample("q", 2))) == 2
    writer.end_episode(timeout_ms=10_000)
    writer.close()
