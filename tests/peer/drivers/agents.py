"""TF-Agents' replay buffer and observers, end to end: tf-agents 0.18.0 beside dm-reverb 0.14.0 and TensorFlow 2.14."""

from __future__ import annotations

from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from scenario import on, size_of, table
from tf_agents.replay_buffers import reverb_replay_buffer, reverb_utils
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import trajectory

NAME = reverb_replay_buffer.DEFAULT_TABLE

SPEC = trajectory.Trajectory(
    step_type=tf.TensorSpec([], tf.int32, "step_type"),
    observation={"frame": tf.TensorSpec([4], tf.float32, "frame"), "number": tf.TensorSpec([], tf.int64, "number")},
    action=tensor_spec.BoundedTensorSpec([], tf.int32, 0, 3, "action"),
    policy_info=(),
    next_step_type=tf.TensorSpec([], tf.int32, "next_step_type"),
    reward=tf.TensorSpec([], tf.float32, "reward"),
    discount=tf.TensorSpec([], tf.float32, "discount"),
)
SIGNATURE = tensor_spec.add_outer_dim(SPEC)
FIRST, MIDDLE, LAST = 0, 1, 2


def step(number: int, at: int, length: int) -> Any:
    """Return step `at` of an episode of `length` steps and a boundary."""
    kinds = [FIRST, *[MIDDLE] * (length - 1), LAST, FIRST]
    return trajectory.Trajectory(
        step_type=np.int32(kinds[at]),
        observation={"frame": np.full(4, number, np.float32), "number": np.int64(number)},
        action=np.int32(number % 4),
        policy_info=(),
        next_step_type=np.int32(kinds[at + 1]),
        reward=np.float32(number / 2),
        discount=np.float32(1.0),
    )


def play(observer: Any, episodes: int, length: int) -> None:
    number = 0
    for _ in range(episodes):
        for at in range(length + 1):
            observer(step(number, at, length))
            number += 1


def buffer_of(client: reverb.Client, sequence_length: int | None, **more: Any) -> Any:
    address = client.server_address
    buffer = reverb_replay_buffer.ReverbReplayBuffer(SPEC, NAME, sequence_length, server_address=address, **more)
    # TensorFlow keeps one client of a name per process, and TF-Agents names them all alike: it were the first server's.
    buffer._tf_client = reverb.TFClient(address)
    return buffer


@on(table(NAME, SIGNATURE, sampler=reverb.selectors.Uniform()))
def trajectories_for_a_training_loop(client: reverb.Client) -> None:
    buffer = buffer_of(client, 2)
    observer = reverb_utils.ReverbAddTrajectoryObserver(buffer.py_client, NAME, sequence_length=2)
    play(observer, episodes=5, length=8)
    observer.close()
    assert int(buffer.num_frames()) == 40
    assert buffer.capacity == 1000
    dataset = buffer.as_dataset(sample_batch_size=16, num_steps=2, num_parallel_calls=2).prefetch(2)
    for data, info in dataset.take(20):
        numbers = data.observation["number"].numpy()
        np.testing.assert_array_equal(numbers[:, 1], numbers[:, 0] + 1)
        np.testing.assert_array_equal(data.observation["frame"].numpy(), np.repeat(numbers[..., None], 4, 2))
        np.testing.assert_array_equal(data.reward.numpy(), numbers / 2)
        np.testing.assert_array_equal(data.action.numpy(), numbers % 4)
        assert info.key.shape == (16, 2)
        np.testing.assert_allclose(info.probability.numpy(), 1 / 40)


@on(table(NAME, SIGNATURE))
def whole_episodes(client: reverb.Client) -> None:
    buffer = buffer_of(client, None, rate_limiter_timeout_ms=500)
    observer = reverb_utils.ReverbAddEpisodeObserver(buffer.py_client, NAME, max_sequence_length=10)
    play(observer, episodes=3, length=5)
    observer.close()
    assert int(buffer.num_frames()) == 3
    data, info = next(iter(buffer.as_dataset(sample_batch_size=1)))
    np.testing.assert_array_equal(data.observation["number"].numpy(), [range(6)])
    np.testing.assert_array_equal(data.step_type.numpy(), [[FIRST, *[MIDDLE] * 4, LAST]])
    assert info.key.shape == (1, 6)


@on(table(NAME, SIGNATURE, max_times_sampled=1))
def a_single_pass_ends(client: reverb.Client) -> None:
    buffer = buffer_of(client, 4, rate_limiter_timeout_ms=500)
    observer = reverb_utils.ReverbAddTrajectoryObserver(buffer.py_client, NAME, sequence_length=4, stride_length=4)
    play(observer, episodes=3, length=7)
    observer.close()
    dataset = buffer.as_dataset(num_steps=2, single_deterministic_pass=True)
    starts = [int(data.observation["number"][0]) for data, _ in dataset]
    assert starts == list(range(0, 24, 2)), starts


@on(table(NAME, SIGNATURE))
def short_episodes_are_padded(client: reverb.Client) -> None:
    buffer = buffer_of(client, 4)
    observer = reverb_utils.ReverbAddTrajectoryObserver(
        buffer.py_client, NAME, sequence_length=4, pad_end_of_episodes=True, tile_end_of_episodes=True
    )
    play(observer, episodes=1, length=3)
    observer.close()
    assert size_of(client, NAME) == 4
    data, _ = next(iter(buffer.as_dataset(sample_batch_size=1, num_steps=4)))
    np.testing.assert_array_equal(data.observation["number"].numpy(), [[0, 1, 2, 3]])


@on(table(NAME, SIGNATURE, sampler=reverb.selectors.MaxHeap()), table("second", SIGNATURE))
def priorities_are_updated_and_the_buffer_cleared(client: reverb.Client) -> None:
    buffer = buffer_of(client, 2)
    observer = reverb_utils.ReverbAddTrajectoryObserver(buffer.py_client, [NAME, "second"], sequence_length=2)
    play(observer, episodes=1, length=3)
    observer.close()
    assert (size_of(client, NAME), size_of(client, "second")) == (3, 3)
    first = next(client.sample(NAME, 1))[0].info
    buffer.update_priorities(tf.constant([first.key], tf.uint64), tf.constant([-1.0], tf.float64))
    second = next(client.sample(NAME, 1))[0].info
    assert second.key != first.key
    buffer.clear()
    assert int(buffer.num_frames()) == 0
    assert size_of(client, "second") == 3
