"""Arrays as TensorProto and back."""

from __future__ import annotations

import tracemalloc

import cramjam
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from reverb_async.compat import tensors
from reverb_async.compat.tensors import (
    DT_STRING,
    MAX_RANK,
    NAMES,
    TensorHead,
    decode_chunk_tensor,
    decode_tensor,
    dtype_of,
    encode_tensor,
    number_of,
    read_head,
)
from reverb_async.errors import InvalidArgument
from reverb_async.wire.generated.tensorflow import DataType, TensorProto, TensorShapeProto, TensorShapeProtoDim

NUMERIC = [number for number in NAMES if number != DT_STRING]
INTEGERS = [number for number in NUMERIC if dtype_of(number).kind in "iu"]
shapes = hnp.array_shapes(min_dims=1, max_dims=9, min_side=0, max_side=3)


@st.composite
def arrays(draw, numbers=NUMERIC):
    dtype = dtype_of(draw(st.sampled_from(numbers)))
    shape = draw(shapes)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    return (raw % 2 if dtype == np.bool_ else raw).view(dtype).reshape(shape)


def generated(dtype, shape, **content):
    dims = [TensorShapeProtoDim(size=size) for size in shape]
    return bytes(TensorProto(dtype=DataType(dtype), tensor_shape=TensorShapeProto(dim=dims), **content))


def packed(raw):
    return bytes(cramjam.snappy.compress_raw(raw))


def same(values, expected):
    return values.dtype == expected.dtype and values.shape == expected.shape and values.tobytes() == expected.tobytes()


def test_names_and_numbers_are_tensorflow_s():
    by_tensorflow = {"float": "float32", "double": "float64", "half": "float16", "string": "bytes"}
    for number, name in NAMES.items():
        theirs = DataType(number).name.removeprefix("DT_").lower()
        assert by_tensorflow.get(theirs, theirs) == name
        assert number_of(dtype_of(number)) == number


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        ("0801 1204 1202 0801 2206 040c0000803f", np.array([1.0], np.float32)),
        ("080a 1204 1202 0803 2205 0308010001", np.array([True, False, True])),
        ("0807 1204 1202 0803 2206 010200 616263", [b"a", b"bc", b""]),
    ],
)
def test_tensors_as_deepmind_s_clients_write_them_are_read(proto, expected):
    if isinstance(expected, list):
        assert decode_tensor(bytes.fromhex(proto)) == expected
    else:
        assert same(decode_tensor(bytes.fromhex(proto)), expected)


@given(arrays(), st.booleans())
def test_arrays_come_back_bit_by_bit(values, delta):
    assert same(decode_tensor(encode_tensor(values, delta=delta), delta=delta), values)


@given(arrays(), st.booleans())
def test_the_generated_class_reads_what_is_written(values, delta):
    proto = TensorProto.parse(encode_tensor(values, delta=delta))
    assert proto.dtype == number_of(values.dtype)
    assert tuple(dim.size for dim in proto.tensor_shape.dim) == values.shape
    assert cramjam.snappy.decompress_raw_len(proto.tensor_content) == values.nbytes


@given(arrays(INTEGERS).filter(lambda values: values.ndim >= 2))
def test_delta_encoding_is_the_difference_between_rows_modulo_the_width(values):
    rows = values.view(f"u{values.itemsize}")
    steps = np.concatenate([rows[:1], rows[1:] - rows[:-1]])
    proto = generated(number_of(values.dtype), values.shape, tensor_content=packed(steps.tobytes()))
    assert same(decode_tensor(proto, delta=True), values)
    assert same(decode_tensor(encode_tensor(values, delta=True)), steps.view(values.dtype))


@pytest.mark.parametrize("dtype", ["float32", "bool", "complex64", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_what_is_no_integer_is_never_delta_encoded(dtype):
    values = np.arange(12).reshape(4, 3).astype(dtype)
    assert same(decode_tensor(encode_tensor(values, delta=True)), values)


def test_rank_one_is_never_delta_encoded():
    values = np.arange(5, dtype=np.int32)
    assert same(decode_tensor(encode_tensor(values, delta=True)), values)


def test_any_memory_order_is_written_in_c_order():
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]
    for delta in (False, True):
        assert same(decode_tensor(encode_tensor(values, delta=delta), delta=delta), np.ascontiguousarray(values))


@given(st.lists(st.binary(max_size=300)))
def test_strings_come_back(values):
    proto = encode_tensor(values)
    assert decode_tensor(proto) == values
    assert decode_tensor(generated(DT_STRING, [len(values)], string_val=values)) == values
    assert read_head(proto, 0, len(proto)) == TensorHead(DT_STRING, (len(values),))


def test_text_is_written_as_utf8():
    assert decode_tensor(encode_tensor(np.array(["a", "zwölf"]))) == [b"a", "zwölf".encode()]


def test_strings_of_rank_two_are_an_array_of_one_width():
    values = np.array([[b"a", b"bcdef"], [b"", b"gh"]])
    decoded = decode_tensor(encode_tensor(values))
    assert decoded.dtype == np.dtype("S8")
    assert (decoded == values).all()
    empty = decode_tensor(encode_tensor(np.empty((0, 3), "S4")))
    assert empty.shape == (0, 3)


def test_strings_of_rank_two_that_would_take_far_more_memory_than_they_came_in_are_refused():
    values = [b"x" * 100_000, *[b""] * 9_999]
    proto = generated(DT_STRING, [10_000, 1], string_val=values)
    with pytest.raises(InvalidArgument, match="one width"):
        decode_tensor(proto)


def test_an_empty_tensor_may_have_content_or_none():
    for content in ({}, {"tensor_content": b"\0"}):
        assert same(decode_tensor(generated(1, [0, 3], **content)), np.empty((0, 3), np.float32))
    with pytest.raises(InvalidArgument):
        decode_tensor(generated(1, [0, 3], tensor_content=b"\x01\x00\x00"))


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (b"", "dtype"),
        (generated(0, [1]), "dtype"),
        (b"\x08\x0b", "is 11, which is not supported"),
        (generated(1, []), "no axis"),
        (generated(1, [-1], tensor_content=packed(b"")), "size -1"),
        (generated(1, [0] * (MAX_RANK + 1)), "axes"),
        (generated(1, [0, 1 << 40, 1 << 40]), "too large"),
        (generated(1, [2]), "cut off"),
        (generated(1, [2], tensor_content=packed(b"1234567")), "holds 7 bytes"),
        (generated(1, [1 << 30], tensor_content=b"\x80\x80\x80\x80\x10\x00"), "cannot hold"),
        (generated(1, [2], tensor_content=b"\x08\x1c1234"), "damaged"),
        (generated(10, [2], tensor_content=packed(b"\x01\x02")), "bools"),
        (generated(7, [2], string_val=[b"a"]), "1 strings"),
        (generated(7, [2], tensor_content=b"\x01"), "lengths of 1 strings"),
        (generated(7, [2], tensor_content=b"\x01\x01a"), "strings of 2 bytes in 1"),
        (generated(7, [1 << 40], tensor_content=b"\x01\x01a"), "more than 1048576 strings"),
        (generated(7, [2], tensor_content=b"\x01\xff\xff\xff\xff\x0faa"), "strings of"),
        (b"\x0d\0\0\0\0", "TensorProto.dtype"),
        (b"\x08\x01\x12\x02\x1a\x00", "TensorShapeProto"),
        (b"\x08\x01\x12\x02\x18\x01", "unknown rank"),
    ],
)
def test_an_unsound_tensor_is_refused(proto, message):
    with pytest.raises(InvalidArgument, match=message):
        decode_tensor(proto)


def test_a_large_claim_takes_no_memory():
    proto = generated(1, [1 << 28], tensor_content=b"\x80\x80\x80\x80\x04" + b"\0" * 100)
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match="cannot hold"):
        decode_tensor(proto)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@given(arrays(), st.data())
def test_damaged_bytes_are_refused_or_make_an_array(values, data):
    proto = bytearray(encode_tensor(values))
    for _ in range(data.draw(st.integers(1, 3))):
        proto[data.draw(st.integers(0, len(proto) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_tensor(bytes(proto), delta=True)
    except InvalidArgument:
        return
    assert isinstance(decoded, np.ndarray | list)


def test_a_tensor_of_a_chunk_is_found_by_its_number():
    first, second = np.arange(6, dtype=np.uint8).reshape(3, 2), np.array([1.5, 2.5])
    chunk = wire_chunk([encode_tensor(first, delta=True), encode_tensor(second)], delta=True)
    assert same(decode_chunk_tensor(chunk, 0), first)
    assert same(decode_chunk_tensor(memoryview(chunk), 1), second)
    for index in (2, -1):
        with pytest.raises(InvalidArgument, match=f"tensor {index} of a chunk that has 2"):
            decode_chunk_tensor(chunk, index)


def wire_chunk(protos, *, delta):
    inner = b"".join(bytes([0x0A, len(proto)]) + proto for proto in protos)
    return bytes([0x20, delta, 0x2A, len(inner)]) + inner


def test_dtypes_that_need_a_missing_package_say_so(monkeypatch):
    proto = encode_tensor(np.ones(2, ml_dtypes.bfloat16))
    monkeypatch.setattr("reverb_async.core.dtypes._ml_dtype", lambda name: None)
    tensors.dtype_of.cache_clear()
    with pytest.raises(InvalidArgument, match="ml_dtypes"):
        decode_tensor(proto)
    assert read_head(proto, 0, len(proto)).nbytes == 4


def test_dtypes_without_a_counterpart_are_refused():
    with pytest.raises(InvalidArgument, match="float8_e4m3b11fnuz"):
        encode_tensor(np.ones(2, ml_dtypes.float8_e4m3b11fnuz))
    with pytest.raises(InvalidArgument, match="not supported"):
        encode_tensor(np.array([object()]))
