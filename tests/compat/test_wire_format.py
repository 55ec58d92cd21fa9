"""The frequent messages of DeepMind's protocol: our readers and writers beside the generated classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_messages import (
    chunks,
    insert_requests,
    items,
    keys,
    mutate_requests,
    sample_requests,
    sample_responses,
)

from reverb_async.compat.tensors import encode_tensor
from reverb_async.compat.wire_format import (
    ColumnView,
    SampleInfos,
    read_insert_request,
    read_insert_response,
    read_mutate_request,
    read_sample_request,
    read_sample_response,
    write_chunk,
    write_insert_request,
    write_insert_response,
    write_item,
    write_mutate_request,
    write_sample_request,
    write_sample_response,
    write_trajectory,
)
from reverb_async.errors import InvalidArgument
from reverb_async.wire.generated.deepmind import reverb as pb


def uint64(values):
    return np.array(values, np.uint64)


def check_chunk(view, chunk):
    steps = chunk.sequence_range or pb.SequenceRange()
    assert (view.key, view.episode_id) == (chunk.chunk_key, steps.episode_id)
    assert view.raw == bytes(chunk)
    tensors = chunk.data.tensors if chunk.data else []
    assert [head.dtype for head in view.tensors] == [tensor.dtype for tensor in tensors]
    assert [head.shape for head in view.tensors] == [
        tuple(dim.size for dim in tensor.tensor_shape.dim) for tensor in tensors
    ]


def check_item(view, item):
    trajectory = item.flat_trajectory or pb.FlatTrajectory()
    assert view.trajectory == bytes(trajectory)
    assert view[:4] == (item.key, item.table, item.priority, item.times_sampled)
    assert view.columns == [
        ([(each.chunk_key, each.offset, each.length, each.index) for each in column.chunk_slices], column.squeeze)
        for column in trajectory.columns
    ]


@given(insert_requests)
def test_insert_requests_of_the_generated_class_are_read(request):
    message = bytes(request)
    for data in (message, memoryview(message), np.frombuffer(message, np.uint8)):
        read = read_insert_request(data)
        for view, chunk in zip(read.chunks, request.chunks, strict=True):
            check_chunk(view, chunk)
        for view, item in zip(read.items, request.items, strict=True):
            check_item(view, item)
        assert read.keep_chunk_keys == request.keep_chunk_keys


@given(insert_requests)
def test_the_generated_class_reads_the_insert_requests_we_write(request):
    written_chunks = []
    for chunk in request.chunks:
        steps = chunk.sequence_range or pb.SequenceRange()
        written_chunks.append(
            write_chunk(
                chunk.chunk_key,
                steps.episode_id,
                (steps.start, steps.end),
                [bytes(tensor) for tensor in chunk.data.tensors],
                sparse=steps.sparse,
                delta_encoded=chunk.delta_encoded,
                uncompressed_bytes=chunk.data_uncompressed_size,
            )
        )
        chunk.sequence_range = steps
    written_items = []
    for item in request.items:
        item.flat_trajectory = item.flat_trajectory or pb.FlatTrajectory()
        columns = [
            ColumnView(
                [(each.chunk_key, each.offset, each.length, each.index) for each in column.chunk_slices], squeeze
            )
            for column in item.flat_trajectory.columns
            for squeeze in (column.squeeze,)
        ]
        trajectory = write_trajectory(columns)
        written_items.append(
            write_item(item.key, item.table, item.priority, trajectory, times_sampled=item.times_sampled)
        )
    message = write_insert_request(written_chunks, written_items, uint64(request.keep_chunk_keys))
    assert pb.InsertStreamRequest.parse(message) == request


@given(keys)
def test_insert_responses_are_read_and_written(keys):
    assert read_insert_response(bytes(pb.InsertStreamResponse(keys=keys))).tolist() == keys
    assert pb.InsertStreamResponse.parse(write_insert_response(uint64(keys))).keys == keys


@given(sample_requests)
def test_sample_requests_are_read_and_written(request):
    timeout = request.rate_limiter_timeout
    expected = (request.table, request.num_samples, None if timeout is None else timeout.milliseconds)
    assert read_sample_request(bytes(request)) == expected
    assert pb.SampleStreamRequest.parse(write_sample_request(*expected)) == request


@given(sample_responses)
def test_sample_responses_of_the_generated_class_are_read(response):
    for view, entry in zip(read_sample_response(bytes(response)), response.entries, strict=True):
        for chunk_view, chunk in zip(view.chunks, entry.data, strict=True):
            check_chunk(chunk_view, chunk)
        assert view.end_of_sequence == entry.end_of_sequence
        if entry.info is None:
            assert view.info is None
        else:
            check_item(view.info.item, entry.info.item)
            assert view.info[1:4] == (entry.info.probability, entry.info.table_size, entry.info.rate_limited)


@given(st.text(max_size=20), st.lists(st.tuples(items, st.lists(chunks, max_size=2)), max_size=4), st.data())
def test_the_generated_class_reads_the_sample_responses_we_write(table, samples, data):
    def of_each(values, dtype):
        return np.array([data.draw(values) for _ in samples], dtype)

    infos = SampleInfos(
        keys=uint64([item.key for item, _ in samples]),
        priorities=np.array([item.priority for item, _ in samples]),
        times_sampled=of_each(st.integers(0, 2**31 - 1), np.int64),
        probabilities=of_each(st.floats(0, 1), np.float64),
        table_sizes=of_each(st.integers(0, 2**35 - 1), np.int64),
        rate_limited=data.draw(st.booleans()),
        inserted_at=of_each(st.floats(0, 2**33), np.float64),
    )
    parts = [
        (bytes(item.flat_trajectory or pb.FlatTrajectory()), [memoryview(bytes(chunk)) for chunk in chunks])
        for item, chunks in samples
    ]
    response = pb.SampleStreamResponse.parse(write_sample_response(table, infos, parts))
    rows = zip(*(np.broadcast_to(column, len(samples)).tolist() for column in infos), strict=True)
    for entry, row, (trajectory, raw_chunks) in zip(response.entries, rows, parts, strict=True):
        item = entry.info.item
        read = (item.key, item.priority, item.times_sampled)
        assert (*read, entry.info.probability, entry.info.table_size, entry.info.rate_limited) == row[:-1]
        assert item.inserted_at.timestamp() == pytest.approx(row[-1], abs=2e-6, rel=0)
        assert item.table == table
        assert bytes(item.flat_trajectory) == trajectory
        assert [bytes(chunk) for chunk in entry.data] == raw_chunks
        assert entry.end_of_sequence


def test_what_is_the_same_for_all_samples_is_given_once():
    infos = SampleInfos(uint64([1, 2]), 0.5, 3, 1.0, 7, False, 1.25)
    first, second = read_sample_response(write_sample_response("t", infos, [(b"", []), (b"", [])]))
    assert first.info[1:] == second.info[1:] == (1.0, 7, False, 1.25)
    assert [each.info.item[:4] for each in (first, second)] == [(1, "t", 0.5, 3), (2, "t", 0.5, 3)]


@given(mutate_requests)
def test_mutate_requests_are_read_and_written(request):
    expected = (
        request.table,
        [update.key for update in request.updates],
        [update.priority for update in request.updates],
        request.delete_keys,
    )
    read = read_mutate_request(bytes(request))
    assert (read.table, read.keys.tolist(), read.priorities.tolist(), read.deletes.tolist()) == expected
    table, keys, priorities, deletes = expected
    written = write_mutate_request(table, uint64(keys), np.array(priorities), uint64(deletes))
    assert pb.MutatePrioritiesRequest.parse(written) == request


def test_long_chunks_are_views_of_the_message_and_trajectories_are_copies():
    tensor = encode_tensor(np.random.default_rng(0).random((1, 1000), np.float32))
    trajectory = write_trajectory([ColumnView([(1, 0, 1, 0)], True)])
    message = bytearray(
        write_insert_request([write_chunk(1, 2, (3, 4), [tensor])], [write_item(5, "t", 1.0, trajectory)], uint64([]))
    )
    read = read_insert_request(message)
    chunk, item = bytes(read.chunks[0].raw), bytes(read.items[0].trajectory)
    for position in range(len(message)):
        message[position] ^= 0xFF
    assert read.chunks[0].raw == bytes(byte ^ 0xFF for byte in chunk)
    assert read.items[0].trajectory == item


def test_a_trajectory_that_occurs_twice_is_refused():
    item = write_item(1, "t", 1.0, b"\x0a\x00") + b"\x42\x00"
    with pytest.raises(InvalidArgument, match="flat_trajectory occurs again"):
        read_insert_request(write_insert_request([], [item], uint64([])))


def test_samples_tell_when_their_item_was_inserted():
    timestamp = b"\x08\x05\x10\x80\xca\xb5\xee\x01"  # 5 s and 500,000,000 ns
    item = b"\x08\x07\x3a" + bytes([len(timestamp)]) + timestamp
    info = b"\x0a" + bytes([len(item)]) + item
    entry = b"\x0a" + bytes([len(info)]) + info
    (read,) = read_sample_response(b"\x0a" + bytes([len(entry)]) + entry)
    assert read.info is not None
    assert (read.info.item.key, read.info.inserted_at) == (7, 5.5)
