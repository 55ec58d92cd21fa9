"""`Client.structured_writer`: items made by patterns."""

from __future__ import annotations

from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from reverb import structured
from scenario import columns, on, size_of, table

STEP = {"obs": None, "reward": None}
REFERENCE = structured.create_reference_step(STEP)


def step(number: int) -> dict[str, Any]:
    return {"obs": np.full(3, number, np.float32), "reward": np.float64(number)}


def pattern(length: int) -> Any:
    return {"o": REFERENCE["obs"][-length:], "r": REFERENCE["reward"][-1]}


SIGNATURE = structured.infer_signature(
    [structured.create_config(pattern(3), "signed")],
    {"obs": tf.TensorSpec([3], tf.float32), "reward": tf.TensorSpec([], tf.float64)},
)


@on(table(max_times_sampled=1), table("signed", SIGNATURE))
def patterns_make_items(client: reverb.Client) -> None:
    configs = [structured.create_config(pattern(2), "t"), structured.create_config(pattern(3), "signed")]
    writer = client.structured_writer(configs)
    for number in range(6):
        writer.append(step(number))
    writer.flush()
    assert (size_of(client, "t"), size_of(client, "signed")) == (5, 4)
    for last in range(1, 6):
        observations, reward = columns(client)
        np.testing.assert_array_equal(observations[:, 0], [last - 1, last])
        assert reward == last
    (sample,) = client.sample("signed", 1, emit_timesteps=False, unpack_as_table_signature=True)
    np.testing.assert_array_equal(sample.data["o"], np.float32([[0] * 3, [1] * 3, [2] * 3]))
    assert sample.data["r"] == 2.0


@on(table(max_times_sampled=1))
def conditions_decide_when(client: reverb.Client) -> None:
    every_third = structured.Condition.step_index() % 3 == 0
    last = structured.Condition.is_end_episode()
    configs = [
        structured.create_config({"o": REFERENCE["obs"][-1:]}, "t", [every_third]),
        structured.create_config({"r": REFERENCE["reward"][-2:]}, "t", [last]),
    ]
    writer = client.structured_writer(configs)
    for number in range(7):
        writer.append(step(number))
    writer.end_episode()
    for number in (0, 3, 6):
        np.testing.assert_array_equal(columns(client)[0], np.full((1, 3), number))
    np.testing.assert_array_equal(columns(client)[0], [5.0, 6.0])
    assert size_of(client) == 0


@on(table(max_times_sampled=1, sampler=reverb.selectors.MaxHeap()))
def temporal_difference_errors_are_priorities(client: reverb.Client) -> None:
    priority = structured.td_error(0.9, STEP, lambda step: step["reward"])
    config = structured.create_config({"r": REFERENCE["reward"][-3:]}, "t", priority=priority)
    writer = client.structured_writer([config])
    for number in range(4):
        writer.append(step(number))
    writer.flush()
    priorities = [steps[0].info.priority for steps in client.sample("t", 2)]
    np.testing.assert_allclose(priorities, [0.9 * 3 + 0.1 * 2, 0.9 * 2 + 0.1 * 1])


@on(table(max_times_sampled=1))
def partial_steps_make_items_once(client: reverb.Client) -> None:
    configs = [structured.create_config({"o": REFERENCE["obs"][-2:]}, "t")]
    writer = client.structured_writer(configs)
    for number in range(4):
        writer.append({"obs": np.int32(number), "reward": None}, partial_step=True)
        writer.append({"obs": None, "reward": np.float64(number)})
    writer.end_episode()
    for last in range(1, 4):
        np.testing.assert_array_equal(columns(client)[0], [last - 1, last])
    assert size_of(client) == 0
