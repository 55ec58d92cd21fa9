"""Frames as bytes: our codec against the generated class, and against hostile bytes."""

from __future__ import annotations

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from reverb_async.errors import InvalidArgument
from reverb_async.protocol.message import Message
from reverb_async.wire.codec import (
    ALIGNMENT,
    MAX_BUFFERS,
    MAX_HEADER_BYTES,
    aligned_bytes,
    decode,
    encode,
    pack_map,
    unpack_map,
)
from reverb_async.wire.generated.reverb_async.v1 import Frame

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
headers = st.dictionaries(st.text(max_size=5), plain, max_size=4)
dtypes = st.sampled_from(["bool", "u1", "i4", "f2", "f4", "f8", "c8", "S3", "U2", "u8"]).map(np.dtype)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=20)
arrays = st.tuples(dtypes, shapes).map(lambda kind: (np.arange(np.prod(kind[1])) % 2).astype(kind[0]).reshape(kind[1]))
messages = st.builds(Message, headers, st.lists(arrays, max_size=6))


def raw(message: Message) -> list[bytes]:
    return [buffer.tobytes() for buffer in message.buffers]


@given(messages)
def test_what_is_encoded_is_decoded(message):
    data = encode(message).join()
    decoded = decode(data)
    assert decoded.header == message.header
    assert raw(decoded) == raw(message)
    assert encode(message).nbytes == len(data)


@given(messages)
def test_the_generated_class_reads_what_we_write(message):
    frame = Frame.parse(encode(message).join())
    assert unpack_map(frame.header) == message.header
    assert frame.buffers == raw(message)


@given(messages, st.binary(max_size=3), st.booleans())
def test_we_read_what_the_generated_class_writes(message, pad, owned):
    data = bytes(Frame(header=pack_map(message.header), pad=pad, buffers=raw(message)))
    decoded = decode(data, owned=owned)
    assert decoded.header == message.header
    assert raw(decoded) == raw(message)


@given(messages)
def test_every_buffer_starts_at_a_multiple_of_64(message):
    data = encode(message).join()
    received = np.frombuffer(data, np.uint8)
    for buffer in decode(data).buffers:
        assert not buffer.flags.writeable
        if buffer.nbytes:
            assert np.shares_memory(buffer, received), "decoding must not copy what our encoder aligned"
            assert (buffer.ctypes.data - received.ctypes.data) % ALIGNMENT == 0


@given(messages, st.booleans())
def test_owned_buffers_are_aligned_writable_and_apart_from_what_was_received(message, ours):
    data = encode(message).join() if ours else bytes(Frame(header=pack_map(message.header), buffers=raw(message)))
    received = np.frombuffer(data, np.uint8)
    for buffer in decode(data, owned=True).buffers:
        assert buffer.flags.writeable
        assert buffer.flags.c_contiguous
        if buffer.nbytes:
            assert buffer.ctypes.data % ALIGNMENT == 0
        assert not np.shares_memory(buffer, received)


@given(messages, st.booleans())
def test_an_array_is_taken_over_and_says_the_same(message, owned):
    data = encode(message).join()
    received = aligned_bytes(len(data))
    received[...] = np.frombuffer(data, np.uint8)
    decoded = decode(received, owned=owned)
    assert decoded.header == message.header
    assert raw(decoded) == raw(message)
    for buffer in decoded.buffers:
        assert buffer.flags.writeable is owned
        if buffer.nbytes:
            assert np.shares_memory(buffer, received)
            assert buffer.ctypes.data % ALIGNMENT == 0
    assert received.flags.writeable, "whoever has the array keeps it as it is"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_can_be_decoded(kind):
    message = Message({"a": 1}, [np.arange(10)])
    decoded = decode(kind(encode(message).join()))
    assert decoded.header == {"a": 1}
    assert not decoded.buffers[0].flags.writeable
    np.testing.assert_array_equal(decoded.buffers[0].view(np.int64), np.arange(10))


def test_non_contiguous_and_zero_dimensional_arrays_are_sent_whole():
    message = Message({}, [np.arange(12).reshape(3, 4).T, np.float32(2.5).reshape(())])
    assert raw(decode(encode(message).join())) == raw(message)


def test_large_buffers_take_longer_length_fields():
    message = Message({"h": "x" * 300}, [np.zeros(size, np.uint8) for size in (1, 127, 128, 16383, 16384, 2**21)])
    assert raw(decode(encode(message).join())) == raw(message)


def test_unknown_fields_are_skipped():
    known = encode(Message({"a": 1}, [np.arange(3)])).join()
    unknown = [
        b"\x20\x96\x01",  # field 4, varint
        b"\x29" + bytes(8),  # field 5, 64 bits
        b"\x32\x03abc",  # field 6, bytes
        b"\x3d" + bytes(4),  # field 7, 32 bits
        b"\xfa\xff\xff\xff\x0f\x00",  # the highest field number, bytes
    ]
    for field in unknown:
        for data in (field + known, known + field):
            decoded = decode(data)
            assert decoded.header == {"a": 1}
            np.testing.assert_array_equal(decoded.buffers[0].view(np.int64), np.arange(3))


def test_the_last_of_several_headers_counts_as_in_any_protobuf_message():
    data = encode(Message({"a": 1})).join() + encode(Message({"b": 2})).join()
    assert decode(data).header == {"b": 2}


header = pack_map({"a": 1})
malformed = {
    "empty": b"",
    "no header": b"\x1a\x01x",
    "cut off in a tag": b"\xa2",
    "cut off before a length": b"\x0a",
    "cut off in a length": b"\x0a\xff",
    "cut off in a field": b"\x0a\x05abc",
    "cut off in an unknown field": b"\x0a\x04" + header + b"\x32\x09abc",
    "cut off in a fixed field": b"\x0a\x04" + header + b"\x29abc",
    "a length of 11 bytes": b"\x0a" + b"\x80" * 10 + b"\x01",
    "a length beyond 64 bits": b"\x0a" + b"\xff" * 9 + b"\x7f",
    "a huge length": b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "header as a varint": b"\x08\x01",
    "buffer as 32 bits": b"\x0a\x04" + header + b"\x1dabcd",
    "a group": b"\x0a\x04" + header + b"\x23\x24",
    "wire type 7": b"\x0a\x04" + header + b"\x27",
    "field number 0": b"\x0a\x04" + header + b"\x02\x00",
    "field number 2**29": b"\x0a\x04" + header + b"\x82\x80\x80\x80\x10\x00",
    "header is no MessagePack": b"\x0a\x01\xc1",
    "header is cut off": b"\x0a\x01\x81",
    "header has more behind it": b"\x0a\x05" + header + b"\x00",
    "header is a list": b"\x0a\x02\x91\x01",
    "header is nil": b"\x0a\x01\xc0",
    "header is absent MessagePack": b"\x0a\x00",
    "header with an int key": b"\x0a\x03\x81\x01\x01",
    "header with a bytes key": b"\x0a\x05\x81\xc4\x01a\x01",
    "header with an extension": b"\x0a\x06\x81\xa1a\xd4\x05\x00",
    "header with an empty extension": b"\x0a\x06\x81\xa1a\xc7\x00\x05",
    "header with a timestamp": b"\x0a\x09\x81\xa1a\xd6\xff\x00\x00\x00\x01",
    "header with bad UTF-8": b"\x0a\x05\x81\xa1a\xa1\xff",
    "header of a huge array": b"\x0a\x08\x81\xa1a\xdd\xff\xff\xff\xff",
    "header too deep": b"\x0a\xd0\x0f" + b"\x91" * 2000,
}


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("data", malformed.values(), ids=malformed.keys())
def test_malformed_bytes_are_refused(data, owned):
    with pytest.raises(InvalidArgument):
        decode(data, owned=owned)


@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_never_raise_anything_but_invalid_argument(data, owned):
    with contextlib.suppress(InvalidArgument):
        decode(data, owned=owned)


@given(messages, st.data())
def test_damaged_messages_never_raise_anything_but_invalid_argument(message, data):
    encoded = bytearray(encode(message).join())
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidArgument):
        decode(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]))


def test_headers_above_one_mebibyte_are_refused_on_both_sides():
    with pytest.raises(InvalidArgument, match="exceeds 1048576"):
        encode(Message({"a": b"x" * MAX_HEADER_BYTES}))
    long = msgpack.packb({"a": b"x" * MAX_HEADER_BYTES})
    with pytest.raises(InvalidArgument, match="exceeds 1048576"):
        decode(bytes(Frame(header=long)))


def test_too_many_buffers_are_refused_on_both_sides():
    with pytest.raises(InvalidArgument, match="65537 buffers"):
        encode(Message({}, [np.empty(0)] * (MAX_BUFFERS + 1)))
    with pytest.raises(InvalidArgument, match="more than 65536 buffers"):
        decode(b"\x0a\x01\x80" + b"\x1a\x00" * (MAX_BUFFERS + 1))
