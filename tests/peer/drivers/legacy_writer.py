"""`Client.writer`: chunks with all columns, items of the last steps."""

from __future__ import annotations

import multiprocessing.dummy
from typing import Any

import numpy as np
import reverb
from scenario import columns, on, queue, size_of, table


def step(number: int) -> dict[str, Any]:
    return {"frame": np.full((4, 3), number % 256, np.uint8), "reward": np.float32(number / 2)}


def check(found: list[Any], numbers: range) -> None:
    np.testing.assert_array_equal(found[0], np.stack([step(number)["frame"] for number in numbers]))
    np.testing.assert_array_equal(found[1], np.array([step(number)["reward"] for number in numbers]))
    assert (found[0].dtype, found[1].dtype) == (np.uint8, np.float32)


@on(table(max_times_sampled=1))
def items_overlap(client: reverb.Client) -> None:
    with client.writer(max_sequence_length=3, chunk_length=2) as writer:
        for number in range(10):
            writer.append(step(number))
            if number >= 2:
                writer.create_item("t", 3, 1.0)
    for first in range(8):
        check(columns(client), range(first, first + 3))
    assert size_of(client) == 0


@on(table(max_times_sampled=1))
def chunks_are_as_long_as_wanted(client: reverb.Client) -> None:
    for chunk_length in (1, 3, 7, None):
        with client.writer(max_sequence_length=7, chunk_length=chunk_length) as writer:
            for number in range(7):
                writer.append(step(number))
                writer.create_item("t", number + 1, 1.0)
        for last in range(7):
            check(columns(client), range(last + 1))


@on(table())
def a_flush_confirms_items(client: reverb.Client) -> None:
    writer = client.writer(max_sequence_length=5, chunk_length=5)
    for number in range(3):
        writer.append(step(number))
    writer.create_item("t", 3, 1.0)
    assert size_of(client) == 0
    writer.flush()
    check(columns(client), range(3))
    assert size_of(client) == 1
    writer.close()


@on(table())
def sequences_are_appended(client: reverb.Client) -> None:
    with client.writer(max_sequence_length=6) as writer:
        whole = [step(number) for number in range(6)]
        writer.append_sequence({name: np.stack([each[name] for each in whole]) for name in whole[0]})
        writer.create_item("t", 6, 1.0)
    check(columns(client), range(6))


@on(table(max_times_sampled=1))
def delta_encoded_chunks(client: reverb.Client) -> None:
    random = np.random.default_rng(1)
    kinds = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64)
    steps = []
    for _ in range(9):
        limits = [np.iinfo(kind) for kind in kinds]
        step = [random.integers(each.min, each.max, (3, 2), each.dtype, endpoint=True) for each in limits]
        steps.append([*step, random.normal(size=(2, 2)), np.int32(random.integers(100)), random.random(2) < 0.5])
    with client.writer(max_sequence_length=9, delta_encoded=True, chunk_length=4) as writer:
        for each in steps:
            writer.append(each)
        writer.create_item("t", 9, 1.0)
        writer.create_item("t", 6, 1.0)
    for length in (9, 6):
        for at, found in enumerate(columns(client)):
            expected = np.stack([each[at] for each in steps[-length:]])
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype


@on(table(max_size=400))
def many_threads_write(client: reverb.Client) -> None:
    def write(number: int) -> None:
        with client.writer(1) as writer:
            writer.append(step(number))
            writer.create_item("t", 1, 1.0)

    with multiprocessing.dummy.Pool(32) as pool:
        pool.map(write, range(512))
    assert size_of(client) == 400
    assert client.server_info()["t"].rate_limiter_info.insert_stats.completed == 512


@on(table())
def a_hundred_and_thirty_writers_are_open_at_once(client: reverb.Client) -> None:
    writers = [client.writer(1) for _ in range(65)]
    for number, writer in enumerate(writers):
        writer.append(step(number))
        writer.create_item("t", 1, 1.0)
        writer.flush()
    others = [client.trajectory_writer(num_keep_alive_refs=1) for _ in range(65)]
    for number, writer in enumerate(others):
        writer.append(step(number))
        writer.create_item("t", 1.0, {name: column[-1:] for name, column in writer.history.items()})
        writer.flush()
    assert size_of(client) == 130
    for writer in writers:
        writer.append(step(0))
        writer.create_item("t", 1, 1.0)
        writer.close()
    for writer in others:
        writer.close()
    assert size_of(client) == 195


@on(queue(5))
def at_most_as_many_items_are_in_flight_as_wanted(client: reverb.Client) -> None:
    with client.writer(max_sequence_length=1, max_in_flight_items=2) as writer:
        for number in range(5):
            writer.append(step(number))
            writer.create_item("q", 1, 1.0)
    for number in range(5):
        check(columns(client, "q"), range(number, number + 1))
