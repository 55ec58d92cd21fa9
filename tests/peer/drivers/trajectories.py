"""`Client.trajectory_writer`: chunks of one column each, items of any steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import reverb
import tensorflow as tf
from scenario import columns, on, queue, raises, size_of, table, wait_until


def step(number: int) -> dict[str, Any]:
    return {
        "frame": np.full((5, 4), number % 256, np.uint8),
        "inner": {"reward": np.float32(number / 4), "name": f"step {number}"},
    }


def frames(*numbers: int) -> Any:
    return np.stack([step(number)["frame"] for number in numbers])


@on(table(max_times_sampled=1))
def windows_overlap_and_columns_differ_in_length(client: reverb.Client) -> None:
    with client.trajectory_writer(num_keep_alive_refs=4) as writer:
        for number in range(12):
            writer.append(step(number))
            if number >= 3:
                shown = {
                    "frames": writer.history["frame"][-4:],
                    "newest": writer.history["frame"][-1],
                    "rewards": writer.history["inner"]["reward"][-3:-1],
                    "name": writer.history["inner"]["name"][-1],
                }
                writer.create_item("t", float(number), shown)
        writer.flush()
    for last in range(3, 12):
        found, name, newest, rewards = columns(client)
        np.testing.assert_array_equal(found, frames(*range(last - 3, last + 1)))
        np.testing.assert_array_equal(newest, step(last)["frame"])
        assert newest.shape == (5, 4)
        np.testing.assert_array_equal(rewards, np.float32([(last - 2) / 4, (last - 1) / 4]))
        assert name == f"step {last}".encode()
    assert size_of(client) == 0


@on(table(max_times_sampled=1))
def chunk_lengths_are_as_configured(client: reverb.Client) -> None:
    writer = client.trajectory_writer(num_keep_alive_refs=10)
    writer.configure(("frame",), num_keep_alive_refs=10, max_chunk_length=4)
    writer.configure(("inner", "reward"), num_keep_alive_refs=10, max_chunk_length=7)
    for number in range(30):
        writer.append(step(number))
        if number >= 9 and number % 5 == 4:
            shown = {"a": writer.history["frame"][-10:], "b": writer.history["inner"]["reward"][-10:]}
            writer.create_item("t", 1.0, shown)
    writer.end_episode()
    for last in (9, 14, 19, 24, 29):
        found, rewards = columns(client)
        np.testing.assert_array_equal(found, frames(*range(last - 9, last + 1)))
        np.testing.assert_array_equal(rewards, np.arange(last - 9, last + 1, dtype=np.float32) / 4)
    writer.close()


@on(table(max_times_sampled=1))
def chunk_lengths_tune_themselves(client: reverb.Client) -> None:
    with client.trajectory_writer(num_keep_alive_refs=20) as writer:
        for number in range(400):
            writer.append(step(number))
            if number >= 19:
                writer.create_item("t", 1.0, {"a": writer.history["frame"][-20:]})
                writer.flush(block_until_num_items=10)
        writer.flush()
    for last in range(19, 400):
        np.testing.assert_array_equal(columns(client)[0], frames(*range(last - 19, last + 1)))


@on(table(max_times_sampled=1))
def steps_are_chosen_one_by_one(client: reverb.Client) -> None:
    with client.trajectory_writer(num_keep_alive_refs=6) as writer:
        for number in range(6):
            writer.append(step(number))
        writer.create_item("t", 1.0, {"a": writer.history["frame"][[5, 0, 3]]})
        writer.create_item("t", 1.0, {"a": writer.history["frame"][::2]})
        writer.flush()
    np.testing.assert_array_equal(columns(client)[0], frames(5, 0, 3))
    np.testing.assert_array_equal(columns(client)[0], frames(0, 2, 4))


@on(table(max_times_sampled=1))
def steps_picked_within_a_chunk_are_neighbours_to_the_client(client: reverb.Client) -> None:
    """It sends the first of them and their number; what comes back shows it, whatever the server."""
    with client.trajectory_writer(num_keep_alive_refs=6) as writer:
        writer.configure(("frame",), num_keep_alive_refs=6, max_chunk_length=6)
        for number in range(6):
            writer.append(step(number))
        for picked in ([3, 3], [0, 2, 4], [2, 1]):
            writer.create_item("t", 1.0, {"a": writer.history["frame"][picked]})
        writer.flush()
    for shown in ([3, 4], [0, 1, 2], [2, 3]):
        np.testing.assert_array_equal(columns(client)[0], frames(*shown))


@on(table(), needs_ours=True)
def a_step_repeated_beyond_its_chunk_is_refused_to_its_writer(client: reverb.Client) -> None:
    """The genuine server takes it; then whoever samples it fails."""
    client.insert(np.int32(5), {"t": 1.0})
    writer = client.trajectory_writer(num_keep_alive_refs=6)
    writer.configure(("frame",), num_keep_alive_refs=6, max_chunk_length=6)
    for number in range(6):
        writer.append(step(number))
    writer.create_item("t", 1.0, {"a": writer.history["frame"][[5, 5]]})
    raises(ValueError, "rows 5 to 6 are shown of tensor 0 of a chunk, which has 6", writer.flush)
    writer.close()
    assert size_of(client) == 1
    np.testing.assert_array_equal(columns(client)[0], [5])


@on(table(max_times_sampled=1))
def steps_are_written_in_parts(client: reverb.Client) -> None:
    with client.trajectory_writer(num_keep_alive_refs=4) as writer:
        for number in range(4):
            writer.append({"x": np.int64(number)}, partial_step=True)
            if number != 2:
                writer.append({"y": np.int64(10 * number)}, partial_step=True)
            writer.append({"z": np.int64(100 * number)})
        history = writer.history
        writer.create_item("t", 1.0, {"x": history["x"][:], "y": history["y"][[0, 1, 3]], "z": history["z"][-1]})
        writer.flush()
    x, y, z = columns(client)
    np.testing.assert_array_equal(x, [0, 1, 2, 3])
    np.testing.assert_array_equal(y, [0, 10, 30])
    assert z == 300


@on(table("one"), table("two"))
def one_trajectory_in_two_tables(client: reverb.Client) -> None:
    with client.trajectory_writer(num_keep_alive_refs=3) as writer:
        for number in range(3):
            writer.append(step(number))
        writer.create_item("one", 1.0, {"a": writer.history["frame"][:]})
        writer.create_item("two", 2.0, {"a": writer.history["frame"][1:], "b": writer.history["inner"]["name"][:]})
        writer.flush()
    np.testing.assert_array_equal(columns(client, "one")[0], frames(0, 1, 2))
    found, names = columns(client, "two")
    np.testing.assert_array_equal(found, frames(1, 2))
    assert names.tolist() == [b"step 0", b"step 1", b"step 2"]


@on(table())
def a_flush_leaves_as_many_as_wanted(client: reverb.Client) -> None:
    writer = client.trajectory_writer(num_keep_alive_refs=3)
    writer.configure(("frame",), num_keep_alive_refs=3, max_chunk_length=3)
    writer.append({"frame": np.zeros(3)})
    writer.create_item("t", 1.0, {"a": writer.history["frame"][:]})
    writer.flush(block_until_num_items=1)
    assert size_of(client) == 0
    writer.flush()
    assert size_of(client) == 1
    writer.close()


@on(table())
def episodes_are_counted(client: reverb.Client) -> None:
    writer = client.trajectory_writer(num_keep_alive_refs=4)
    for length in (2, 3):
        for number in range(length):
            writer.append(step(number))
            writer.create_item("t", 1.0, {"a": writer.history["frame"][-1:]})
        assert writer.episode_steps == length
        writer.end_episode(clear_buffers=False)
    info = client.server_info()["t"]
    assert (info.current_size, info.num_episodes, info.num_deleted_episodes) == (5, 2, 0)
    writer.create_item("t", 1.0, {"a": writer.history["frame"][-4:]})
    writer.flush()
    assert client.server_info()["t"].num_episodes == 2
    writer.close()
    keys = [steps[0].info.key for steps in client.sample("t", 1)]
    client.mutate_priorities("t", deletes=keys)
    assert client.server_info()["t"].num_episodes == 2
    client.reset("t")
    info = client.server_info()["t"]
    assert (info.num_episodes, info.num_deleted_episodes) == (0, 0)


@on(table(signature={"a": tf.TensorSpec([3, 5, 4], tf.uint8), "b": tf.TensorSpec([], tf.float32)}))
def items_fit_the_signature_and_their_names_do_not_matter(client: reverb.Client) -> None:
    with client.trajectory_writer(num_keep_alive_refs=3) as writer:
        for number in range(3):
            writer.append(step(number))
        rewards = writer.history["inner"]["reward"]
        writer.create_item("t", 1.0, {"x": writer.history["frame"][:], "y": rewards[-1]})
        raises(ValueError, "", writer.create_item, "t", 1.0, {"x": writer.history["frame"][1:], "y": rewards[-1]})
        writer.flush()
    (sample,) = client.sample("t", 1, emit_timesteps=False, unpack_as_table_signature=True)
    np.testing.assert_array_equal(sample.data["a"], frames(0, 1, 2))
    assert sample.data["b"] == 0.5


@on(queue(2))
def items_wait_for_room_and_then_enter(client: reverb.Client) -> None:
    writer = client.trajectory_writer(num_keep_alive_refs=1)
    for number in range(9):
        writer.append({"x": np.int32(number)})
        writer.create_item("q", 1.0, {"x": writer.history["x"][-1:]})
    wait_until(lambda: size_of(client, "q") == 2)
    assert [int(steps[0].data[0]) for steps in client.sample("q", 9)] == list(range(9))
    writer.flush(timeout_ms=20_000)
    writer.close()


@on(queue(2))
def a_writer_that_closes_takes_what_waits_with_it(client: reverb.Client) -> None:
    writer = client.trajectory_writer(num_keep_alive_refs=1)
    for number in range(2):
        writer.append({"x": np.int32(number)})
        writer.create_item("q", 1.0, {"x": writer.history["x"][-1:]})
    writer.flush()
    writer.close()
    client.reset("q")
    client.insert(np.int32(7), {"q": 1.0})
    assert next(client.sample("q", 1))[0].data[0] == 7
    assert size_of(client, "q") == 0
