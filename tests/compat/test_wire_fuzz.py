"""The readers of DeepMind's messages against bytes that no sane client sends: the right answer or InvalidArgument."""

from __future__ import annotations

import contextlib
import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_wire_format import check_chunk, check_item, uint64
from wire_messages import chunks, insert_requests, items, mutate_requests, sample_requests, sample_responses, uint64s

from reverb_async.compat import insert_reading
from reverb_async.compat.limits import MAX_COLUMNS, MAX_KEYS, MAX_SINGLE_UPDATES, MAX_SLICES, PartCounter
from reverb_async.compat.scanning import as_data, fields, int32, int64, padded_varints, unpack_varints, varint
from reverb_async.compat.wire_format import (
    ColumnView,
    ItemView,
    read_insert_request,
    read_insert_response,
    read_mutate_request,
    read_sample_request,
    read_sample_response,
    write_chunk,
    write_insert_request,
    write_item,
    write_mutate_request,
    write_trajectory,
)
from reverb_async.errors import InvalidArgument
from reverb_async.wire.generated.deepmind import reverb as pb

READERS = [
    read_insert_request,
    read_insert_response,
    read_sample_request,
    read_sample_response,
    read_mutate_request,
]
MESSAGES = st.one_of(insert_requests, sample_requests, sample_responses, mutate_requests).map(bytes)
WIRE_FIELDS = st.tuples(
    st.integers(0, 20),
    st.integers(0, 7),
    st.binary(max_size=12) | st.binary(max_size=12).map(lambda content: varint(len(content)) + content),
).map(lambda field: varint(field[0] << 3 | field[1]) + field[2])
NESTED = st.recursive(
    st.lists(WIRE_FIELDS, max_size=4).map(b"".join),
    lambda inner: st.lists(st.tuples(st.integers(1, 8), inner), max_size=4).map(
        lambda parts: b"".join(varint(number << 3 | 2) + varint(len(part)) + part for number, part in parts)
    ),
    max_leaves=8,
)


def comparable(read):
    if isinstance(read, ItemView):
        return [*map(comparable, read[:5]), comparable(read.columns)]
    """Return what was read as values that can be compared, NaN included."""
    if isinstance(read, np.ndarray):
        return read.tobytes()
    if isinstance(read, memoryview):
        return bytes(read)
    if isinstance(read, float):
        return "nan" if math.isnan(read) else read
    return [comparable(each) for each in read] if isinstance(read, list | tuple) else read


def outcome(reader, data):
    try:
        return comparable(reader(data))
    except InvalidArgument:
        return "refused"


def without_shortcuts(monkeypatch):
    monkeypatch.setattr(insert_reading, "match_chunk", lambda data, start, stop: None)
    monkeypatch.setattr(insert_reading, "match_item", lambda data, start, stop: None)


def both_ways(reader, data):
    """Return what a reader makes of a message, once it is sure that its shortcuts change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        without_shortcuts(patch)
        patch.setattr("reverb_async.compat.mutate_reading._WORTHWHILE", math.inf)
        slowly = outcome(reader, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reverb_async.compat.mutate_reading._WORTHWHILE", 1)
        assert outcome(reader, data) == slowly
        assert outcome(reader, data) == slowly  # now that its parts are remembered
    return slowly


@pytest.mark.parametrize("reader", READERS)
@given(data=st.binary(max_size=60) | NESTED)
@example(data=b"\x0a\x0a\x08\x01\x12\x00\x2a\x04\x0a\x02\x08\x01")
def test_any_bytes_are_read_or_refused(reader, data):
    both_ways(reader, data)


@pytest.mark.parametrize("reader", READERS)
@given(message=MESSAGES, data=st.data())
def test_damaged_messages_are_read_or_refused(reader, message, data):
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        change = data.draw(st.sampled_from(["set", "insert", "remove"]))
        byte = data.draw(st.integers(0, 255) | st.sampled_from([0x08, 0x0A, 0x10, 0x12, 0x7F, 0x80, 0xFF]))
        if change == "insert":
            damaged.insert(at, byte)
        elif at < len(damaged):
            if change == "set":
                damaged[at] = byte
            else:
                del damaged[at]
    both_ways(reader, bytes(damaged))


@given(insert_requests)
def test_insert_requests_cut_anywhere_are_a_prefix_or_refused(request):
    message = bytes(request)
    whole = read_insert_request(message)
    for size in range(len(message)):
        with contextlib.suppress(InvalidArgument):
            part = read_insert_request(message[:size])
            assert len(part.chunks) + len(part.items) <= len(whole.chunks) + len(whole.items)
            for view, expected in zip(part.chunks, whole.chunks, strict=False):
                assert comparable(view) == comparable(expected)
            for view, expected in zip(part.items, whole.items, strict=False):
                assert comparable(view) == comparable(expected)


@pytest.mark.parametrize("reader", [read_mutate_request, read_sample_response, read_sample_request])
@given(message=st.one_of(mutate_requests, sample_responses, sample_requests).map(bytes))
def test_other_messages_cut_anywhere_are_read_or_refused(reader, message):
    for size in range(len(message)):
        outcome(reader, message[:size])


@given(st.lists(chunks, min_size=1, max_size=2), st.lists(items, max_size=2), st.data())
def test_fields_nobody_knows_are_skipped_and_lengths_may_be_padded(chunks, items, data):
    unknown = [b"\xf8\x07\x05", b"\xfa\x07\x03abc", b"\xf9\x07" + bytes(8), b"\xfd\x07" + bytes(4)]

    def dressed(raw):
        """Return the same message with unknown fields between its fields and padded lengths."""
        written = bytearray()
        for number, wire_type, value, stop in fields(raw, 0, len(raw), "test"):
            written += data.draw(st.sampled_from([b"", *unknown]))
            written += varint(number << 3 | wire_type)
            if wire_type == 0:
                written += padded_varints(uint64([value]), data.draw(st.sampled_from([10]))).tobytes()
            else:
                if wire_type == 2:
                    written += padded_varints(uint64([stop - value]), data.draw(st.integers(5, 10))).tobytes()
                written += raw[value:stop]
        return bytes(written + data.draw(st.sampled_from([b"", *unknown])))

    raw_chunks, raw_items = [dressed(bytes(chunk)) for chunk in chunks], [dressed(bytes(item)) for item in items]
    message = dressed(write_insert_request(raw_chunks, raw_items, uint64([1, 2**64 - 1])))
    read = read_insert_request(message)
    assert read.keep_chunk_keys == [1, 2**64 - 1]
    for view, chunk, raw in zip(read.chunks, chunks, raw_chunks, strict=True):
        assert view.raw == raw
        check_chunk(view._replace(raw=memoryview(bytes(chunk))), chunk)
    for view, item in zip(read.items, items, strict=True):
        check_item(view, item)


@given(st.lists(uint64s, max_size=40), st.integers(1, 10))
def test_repeated_numbers_may_be_packed_or_not_and_longer_than_need_be(values, width):
    array = uint64(values) & np.uint64((1 << min(7 * width, 64)) - 1)
    padded = padded_varints(array, width)
    packed = padded.tobytes()
    assert unpack_varints(packed, 0, len(packed), "test", limit=40).tolist() == array.tolist()
    one_by_one = b"".join(b"\x18" + bytes(each) for each in padded)
    together = b"\x1a" + varint(len(packed)) + packed
    assert read_insert_request(one_by_one + together).keep_chunk_keys == array.tolist() * 2
    assert read_mutate_request(together + one_by_one).deletes.tolist() == array.tolist() * 2


@given(st.lists(st.tuples(uint64s, st.floats().map(lambda value: value + 0.0)), max_size=30), st.data())
def test_updates_are_the_same_read_one_by_one_or_in_runs(updates, data):
    pieces = [b""]  # the generated class leaves out -0.0, which is not the default: hence no such priority
    for key, priority in updates:
        piece = write_mutate_request("", uint64([key]), np.array([priority]), uint64([]))
        minimal = bytes(pb.MutatePrioritiesRequest(updates=[pb.KeyWithPriority(key=key, priority=priority)]))
        disguised = b"\x12" + varint(len(minimal)) + b"\x28\x01" + minimal[2:]
        pieces.append(data.draw(st.sampled_from([piece, minimal, minimal, disguised])))
    read = both_ways(read_mutate_request, b"".join(pieces))
    assert read[0] == ""
    assert read[1] == uint64([key for key, _ in updates]).tobytes()
    assert read[2] == np.array([priority for _, priority in updates]).tobytes()


def test_updates_whose_keys_and_priorities_look_like_updates_are_read():
    key = 0x12 | 0x0A << 7 | 0x08 << 14  # as a varint: bytes that hold a tag, a size, and a key's tag
    lookalike = np.frombuffer(bytes([0x12, 20, 0x08, 1, 0x12, 20, 0x08, 1])).item()
    keys = np.array([key, 5, 2**64 - 1, key] * 20, np.uint64)
    for priorities in (np.full(80, lookalike), np.arange(80.0)):
        read = read_mutate_request(write_mutate_request("t", keys, priorities, keys[:0]))
        assert read.keys.tolist() == keys.tolist()
        assert read.priorities.tolist() == priorities.tolist()


@given(st.integers(-(2**63), 2**64 - 1))
def test_numbers_are_read_as_the_field_s_type_has_it(value):
    unsigned = value % 2**64
    assert int32(unsigned) == (value + 2**31) % 2**32 - 2**31
    assert int64(unsigned) == (value + 2**63) % 2**64 - 2**63
    written = varint(value)
    assert len(written) <= 10
    assert unpack_varints(written * 20, 0, 20 * len(written), "test", limit=20).tolist() == [unsigned] * 20


def test_negative_offsets_take_ten_bytes_and_are_read_as_such():
    item = write_item(1, "t", 1.0, write_trajectory([ColumnView([(1, -1, -(2**31), -3)], False)]))
    read = both_ways(read_insert_request, write_insert_request([], [item], uint64([])))
    assert read[1][0][5] == [[[[1, -1, -(2**31), -3]], False]]


def test_chunks_of_which_any_byte_is_changed_are_read_or_refused_both_ways():
    tensor = b"\x08\x01\x12\x04\x12\x02\x08\x05\x22\x03abc"
    other = b"\x08\x03\x12\x08\x12\x02\x08\x05\x12\x02\x08\x04\x22\x02de"
    message = write_insert_request([write_chunk(1, 2, (3, 4), [tensor, other, tensor])], [], uint64([]))
    assert comparable(read_insert_request(message).chunks[0].tensors) == [[1, [5]], [3, [5, 4]], [1, [5]]]
    for at in range(len(message)):
        for byte in (message[at] ^ 1, message[at] ^ 0x80, (message[at] + 1) % 256, 0, 255):
            both_ways(read_insert_request, message[:at] + bytes([byte]) + message[at + 1 :])


LONG_KEYS = st.integers(2**56, 2**64 - 1)
COLUMNS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200), st.integers(1, 2)), max_size=3), st.booleans()
    ),
    min_size=1,
    max_size=4,
)


@given(COLUMNS, st.lists(st.lists(LONG_KEYS, min_size=4, max_size=4), min_size=2, max_size=5), st.data())
def test_trajectories_that_differ_in_their_keys_alone_are_read_as_any_other(columns, chunks, data):
    for keys in chunks:
        views = [ColumnView([(keys[at], *shown, 0) for at, *shown in slices], squeeze) for slices, squeeze in columns]
        trajectory = bytearray(write_trajectory(views))
        item = write_item(1, "t", 1.0, bytes(trajectory))
        assert both_ways(read_insert_request, write_insert_request([], [item], uint64([])))[1][0][5] == comparable(
            views
        )
        if trajectory:
            trajectory[data.draw(st.integers(0, len(trajectory) - 1))] ^= data.draw(st.sampled_from([1, 0x80, 0xFF]))
        item = write_item(1, "t", 1.0, bytes(trajectory))
        both_ways(read_insert_request, write_insert_request([], [item], uint64([])))


def slices_of(*keys):
    """Return a column per key, given as the bytes of its number."""
    return b"".join(bytes([0x0A, len(key) + 5, 0x0A, len(key) + 3, 0x08]) + key + bytes([0x18, 1]) for key in keys)


def test_keys_that_are_written_unusually_are_read_as_any_other():
    usual, other = varint(2**62 + 1), varint(2**62 + 2)
    longer = usual[:-1] + bytes([usual[-1] | 0x80, 0])
    too_long = b"\xff" * 9 + b"\x02"
    read = []
    for keys in ((varint(2**63), other), (usual, other), (longer, usual), (other, longer), (too_long, other)):
        item = write_item(1, "t", 1.0, slices_of(*keys))
        read.append(both_ways(read_insert_request, write_insert_request([], [item], uint64([]))))
    assert read[2][1][0][5][0][0] == read[2][1][0][5][1][0], "the same key twice"
    assert read[4] == "refused"


def test_parts_of_one_message_that_came_apart_are_put_together():
    first = write_chunk(1, 2, (3, 4), [b"\x08\x01\x12\x04\x12\x02\x08\x05"])
    tensor = b"\x2a\x0c\x0a\x0a\x08\x03\x12\x02\x12\x00\x12\x02\x12\x00"
    message = write_insert_request([first + b"\x12\x02\x10\x09" + tensor], [], uint64([]))
    (chunk,) = read_insert_request(message).chunks
    assert chunk[:2] == (1, 2)
    assert chunk.tensors == ((1, (5,)), (3, (0, 0)))
    assert pb.InsertStreamRequest.parse(message).chunks[0].sequence_range.start == 9


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"\x08\x01", "InsertStreamRequest.chunks, which ends at byte 2, must be a length and bytes, got a varint"),
        (b"\x12\x03\x12\x01\xff", "PrioritizedItem.table at byte 4 is no UTF-8"),
        (b"\x12\x02\x29\x00", "PrioritizedItem: field 5 at byte 2 needs 8 bytes, of which 1 are there"),
        (b"\x0a\x05", "InsertStreamRequest: field 1 at byte 0 needs 5 bytes, of which 0 are there"),
        (b"\x0a\x02\x08\x80", "ChunkData: the number at byte 3 is cut off"),
        (b"\x0a\x0c\x08" + b"\xff" * 10 + b"\x01", "ChunkData: the number at byte 3 is cut off or longer"),
        (b"\x0a\x0b\x08" + b"\xff" * 9 + b"\x02", "longer than 64 bits"),
        (b"\x1a\x0a" + b"\xff" * 9 + b"\x02", "longer than 64 bits"),
        (b"\x1a\x6e" + (b"\xff" * 9 + b"\x02") * 11, "keep_chunk_keys: the number at byte 2 is longer than 64 bits"),
        (b"\x1a\x02\x01\x80", "keep_chunk_keys: the last number before byte 4 is cut off"),
        (b"\x0b\x0c", "InsertStreamRequest: field 1 at byte 0 has wire type 3"),
        (b"\x02\x00", "0 at byte 0 is no field number"),
        (b"\xfa\xff\xff\xff\xff\x01\x00", "is no field number"),
        (b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "needs 9223372036854775808 bytes"),
    ],
)
def test_a_refusal_names_the_field_and_the_byte(message, text):
    with pytest.raises(InvalidArgument) as refused:
        read_insert_request(message)
    assert text in str(refused.value)


def test_an_item_of_a_million_columns_is_refused():
    for columns in (b"\x0a\x00" * 10**6, b"\x0a\x04\x0a\x02\x18\x01" * 10**6):
        with pytest.raises(InvalidArgument, match=f"more than {MAX_COLUMNS} columns"):
            read_insert_request(write_insert_request([], [write_item(1, "t", 1.0, columns)], uint64([])))


def test_an_item_of_too_many_slices_is_refused():
    slices = ColumnView([(1, 0, 1, 0)] * (MAX_SLICES // 2 + 1), False)
    message = write_insert_request([], [write_item(1, "t", 1.0, write_trajectory([slices] * 2))], uint64([]))
    with pytest.raises(InvalidArgument, match=f"more than {MAX_SLICES} slices"):
        read_insert_request(message)


def test_a_chunk_of_too_many_tensors_is_refused():
    head = b"\x08\x01\x12\x02\x12\x00\x22\x00"
    for tensor in (head, head + b"\x18\x01"):
        message = write_insert_request([write_chunk(1, 2, (3, 4), [tensor] * (MAX_COLUMNS + 1))], [], uint64([]))
        with pytest.raises(InvalidArgument, match=f"more than {MAX_COLUMNS}"):
            read_insert_request(message)


@pytest.mark.parametrize(
    ("reader", "part"),
    [
        (read_insert_request, b"\x0a\x00"),
        (read_insert_request, b"\x12\x00"),
        (read_insert_request, b"\x12\x04\x42\x02\x0a\x00"),
        (read_insert_request, b"\x18\x01"),
        (read_insert_response, b"\x08\x01"),
        (read_sample_response, b"\x0a\x00"),
        (read_sample_response, b"\x0a\x02\x12\x00"),
        (read_mutate_request, b"\x12\x00"),
        (read_mutate_request, b"\x12\x0b\x08\x01\x11" + bytes(8)),
        (read_mutate_request, b"\x18\x01"),
    ],
)
def test_floods_of_tiny_parts_are_refused_before_they_fill_the_memory(reader, part):
    count = (1 << 18) // len(part)
    message = part * count
    tracemalloc.start()
    with contextlib.suppress(InvalidArgument):
        reader(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * len(message)


@pytest.mark.parametrize(("tag", "reader"), [(0x1A, read_insert_request), (0x0A, read_insert_response)])
def test_too_many_keys_are_refused(tag, reader):
    packed = b"\x01" * (MAX_KEYS + 1)
    with pytest.raises(InvalidArgument, match=f"more than {MAX_KEYS}"):
        reader(bytes([tag]) + varint(len(packed)) + packed)
    with pytest.raises(InvalidArgument, match=f"more than {MAX_KEYS}"):
        reader((bytes([tag]) + varint(len(packed) // 2 + 1) + packed[: len(packed) // 2 + 1]) * 2)


def test_too_many_updates_are_refused():
    keys = np.arange(MAX_KEYS + 1, dtype=np.uint64)
    message = write_mutate_request("t", keys, np.zeros(len(keys)), uint64([]))
    with pytest.raises(InvalidArgument, match=f"more than {MAX_KEYS}"):
        read_mutate_request(message)


def test_too_many_updates_of_an_unusual_kind_are_refused():
    with pytest.raises(InvalidArgument, match="65537 unusual ones"):
        read_mutate_request(b"\x12\x00" * (MAX_SINGLE_UPDATES + 1))


def seconds(reader, message):
    begin = time.process_time()
    with contextlib.suppress(InvalidArgument):
        reader(message)
    return time.process_time() - begin


@pytest.mark.parametrize(
    ("reader", "part"),
    [
        (read_insert_request, b"\x0a\x11\x08\x01\x12\x00\x2a\x0b\x0a\x09\x08\x01\x12\x02\x12\x00\x22\x01\x00"),
        (read_insert_request, b"\x12\x0d\x08\x01\x12\x00\x42\x07\x0a\x05\x0a\x03\x08\x81\x01"),
        (read_mutate_request, (b"\x12\x0b\x08\x01\x11" + bytes(8)) * 16 + b"\x12\x00"),
        (read_mutate_request, b"\x12\x0b\x08\x01\x11" + bytes(8) + b"\x12\x0b\x10\x01\x11" + bytes(8)),
        (read_mutate_request, b"\x12\x14\x08" + b"\x01" * 10 + b"\x11" + bytes(8)),
    ],
)
def test_the_time_to_read_grows_with_the_size_only(reader, part):
    small, large = part * (40_000 // len(part)), part * (320_000 // len(part))
    fast, slow = (min(seconds(reader, message) for _ in range(3)) for message in (small, large))
    assert slow < 8 * 4 * fast + 0.05


def test_parts_are_counted_by_the_size_of_the_message():
    PartCounter(0).add(1 << 14)
    counter = PartCounter(12 * 1000)
    counter.add((1 << 14) + 1000)
    with pytest.raises(InvalidArgument, match="too many for its size"):
        counter.add(1)


def test_arrays_of_any_kind_of_bytes_are_taken():
    assert as_data(b"ab") == b"ab"
    assert as_data(np.arange(4, dtype=np.uint8)) == bytes(range(4))
    assert as_data(np.arange(1, dtype=np.int32)) == bytes(4)
