"""Signatures in DeepMind's words: what survives, in which order, and what is refused."""

from __future__ import annotations

import pickle
import random
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from protobuf_messages import described, structured_value, tensor_spec

import reverb_async as ra
from reverb_async.compat.signatures import MAX_BYTES, EncodedSignature, read_signature, signature_bytes
from reverb_async.compat.tensors import NAMES, NUMBERS
from reverb_async.core.dtypes import dtype_from_name, dtype_name
from reverb_async.core.spec import ArraySpec, Signature
from reverb_async.errors import InvalidArgument

Step = namedtuple("Step", ["reward", "action"])
FLOAT = ArraySpec((), np.float32)


@dataclass
class Observation:
    pixels: object
    depth: object


def signature(nest: object) -> Signature:
    made = Signature.of(nest)
    assert made is not None
    return made


# -- both ways ---------------------------------------------------------------------------------------------------------

dtypes = st.sampled_from([name for name in NUMBERS if "float8" not in name and name != "bfloat16"])
shapes = st.lists(st.none() | st.integers(0, 5), max_size=4).map(tuple)
names = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(lambda name: name not in ("in", "is", "as", "if"))
nests = st.recursive(
    st.builds(ArraySpec, shapes, dtypes),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.dictionaries(names, inner, max_size=3).map(lambda fields: namedtuple("Fields", fields)(**fields))
    ),
    max_leaves=12,
)


def has_column(nest: object) -> bool:
    try:
        Signature.of(nest)
    except InvalidArgument:
        return False
    return nest is not None


@given(nests.filter(has_column))
def test_what_was_written_is_read_back(nest):
    written = signature(nest)
    encoded = signature_bytes(written)
    read = read_signature(encoded)
    assert (read.structure, read.specs) == (written.structure, written.specs)
    assert signature_bytes(read) == encoded
    assert described(encoded)


@pytest.mark.parametrize("number", NAMES)
def test_every_dtype_has_a_counterpart(number):
    name = NAMES[number]
    if "float8" in name or name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    encoded = signature_bytes(signature(ArraySpec((2,), name)))
    assert described(encoded)["tensor_spec_value"]["dtype"].startswith("DT_")
    (spec,) = read_signature(encoded).specs
    assert dtype_name(spec.dtype) == name


@pytest.mark.parametrize("dtype", ["str", "bytes", "U7", "S7"])
def test_text_and_bytes_are_strings_and_come_back_as_bytes(dtype):
    encoded = signature_bytes(signature(ArraySpec((None,), dtype)))
    assert described(encoded)["tensor_spec_value"]["dtype"] == "DT_STRING"
    assert read_signature(encoded).specs == (ArraySpec((None,), bytes),)


def test_extents_that_are_open_have_size_minus_one():
    encoded = signature_bytes(signature(ArraySpec((None, 3, 0), np.uint8)))
    assert described(encoded)["tensor_spec_value"]["shape"]["dim"] == [{"size": "-1"}, {"size": "3"}, {}]


def test_a_scalar_has_a_shape_without_dims_and_no_name():
    assert described(signature_bytes(signature(FLOAT))) == {"tensor_spec_value": {"shape": {}, "dtype": "DT_FLOAT"}}


# -- what they write ---------------------------------------------------------------------------------------------------


def test_columns_stand_in_dm_trees_order():
    spec = {letter: tensor_spec("DT_INT32", at, name=letter) for at, letter in enumerate("abcdef")}
    read = read_signature(
        structured_value(
            {
                "dict_value": {
                    "fields": {
                        "z": {"tuple_value": {"values": [spec["e"], {"tuple_value": {}}, spec["f"]]}},
                        "": spec["a"],
                        "Z": {"list_value": {"values": [spec["b"]]}},
                        "y": {
                            "named_tuple_value": {
                                "name": "Step",
                                "values": [
                                    {"key": "reward", "value": spec["c"]},
                                    {"key": "action", "value": spec["d"]},
                                ],
                            }
                        },
                    }
                }
            }
        )
    )
    assert read.structure.describe() == "{'': *, 'Z': [*], 'y': Step(reward=*, action=*), 'z': (*, (), *)}"
    assert [spec.shape for spec in read.specs] == [(at,) for at in range(6)]


def test_dicts_of_any_order_are_the_same_dict():
    one = signature_bytes(signature(OrderedDict(b=FLOAT, a=ArraySpec((), np.int32))))
    other = signature_bytes(signature({"a": ArraySpec((), np.int32), "b": FLOAT}))
    assert read_signature(one).specs == read_signature(other).specs == (ArraySpec((), np.int32), FLOAT)


def test_a_place_without_a_value_is_an_empty_tuple():
    encoded = signature_bytes(signature({"a": None, "b": Step(None, FLOAT), "c": [None]}))
    assert "none_value" not in str(described(encoded))
    assert read_signature(encoded).structure.describe() == "{'a': (), 'b': Step(reward=(), action=*), 'c': [()]}"


def test_a_dataclass_becomes_a_namedtuple():
    read = read_signature(signature_bytes(signature(Observation(pixels=FLOAT, depth=FLOAT))))
    assert read.structure.describe() == "Observation(pixels=*, depth=*)"
    assert isinstance(read.nest, tuple)


def test_bounded_specs_are_read_and_given_back_as_they_came():
    bound = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "2"}]}, "tensor_content": "AAAAAAAAAAA="}
    spec = {"name": "x", "shape": {"dim": [{"size": "-1"}]}, "dtype": "DT_FLOAT", "minimum": bound, "maximum": bound}
    encoded = structured_value({"bounded_tensor_spec_value": spec})
    read = read_signature(encoded)
    assert read.specs == (ArraySpec((None,), np.float32),)
    assert signature_bytes(read) == encoded


def test_a_table_keeps_the_message_its_signature_came_in():
    encoded = structured_value({"dict_value": {"fields": {"x": tensor_spec("DT_INT64", 2, name="whatever")}}})
    table = ra.Table("t", max_size=1, signature=read_signature(encoded))
    for each in (table, table.replace(name="u"), ra.Table.queue("q", 3, signature=table.signature)):
        assert isinstance(each.signature, EncodedSignature)
        assert signature_bytes(each.signature) == encoded
        assert each.info.signature == {"x": ArraySpec((2,), np.int64)}


def test_a_message_in_a_longer_buffer_is_copied_out_of_it():
    encoded = structured_value(tensor_spec())
    buffer = bytearray(b"?" + encoded)
    read = read_signature(memoryview(buffer)[1:])
    buffer[:] = bytes(len(buffer))
    assert read.encoded == encoded
    assert pickle.loads(pickle.dumps(read)).encoded == encoded


# -- what is refused ---------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    value = structured_value(tensor_spec())
    for _ in range(depth):
        value = b"\x9a\x03" + varint(len(value) + 1 + len(varint(len(value)))) + b"\x0a" + varint(len(value)) + value
    return value


def varint(number: int) -> bytes:
    return (bytes([number & 0x7F | 0x80]) + varint(number >> 7)) if number > 0x7F else bytes([number])


def test_depth_ends_at_64():
    assert read_signature(nested(64)).structure.num_leaves == 1
    for depth in (65, 2000):
        with pytest.raises(InvalidArgument, match="at most 64 deep"):
            read_signature(nested(depth))


def test_columns_end_at_16384():
    value = structured_value(tensor_spec())
    values = b"\x0a" + varint(len(value)) + value
    for count in (16384, 16385):
        content = values * count
        encoded = b"\x9a\x03" + varint(len(content)) + content
        if count == 16384:
            assert len(read_signature(encoded).specs) == count
        else:
            with pytest.raises(InvalidArgument, match="at most 16384 columns"):
                read_signature(encoded)


def test_bytes_end_at_16_mib():
    with pytest.raises(InvalidArgument, match=f"at most {MAX_BYTES} bytes, this one has {MAX_BYTES + 1}"):
        read_signature(bytes(MAX_BYTES + 1))


def record(name: str, *pairs: object) -> dict[str, object]:
    return {"named_tuple_value": {"name": name, "values": list(pairs)}}


ITEM = {"key": "x", "value": tensor_spec()}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({}, "the signature has no value"),
        ({"list_value": {"values": [tensor_spec(), {"none_value": {}}]}}, "column 1 is None; leave it out"),
        ({"dict_value": {"fields": {"a": {"list_value": {}}}}}, r"the signature \{'a': \[\]\} has no columns"),
        ({"int64_value": "3"}, "the signature is of the kind 12"),
        (
            {"list_value": {"values": [{"tuple_value": {"values": [{"bool_value": True}]}}]}},
            "column 0/0 is of the kind",
        ),
        ({"tensor_spec_value": {"shape": {"unknown_rank": True}, "dtype": "DT_FLOAT"}}, "a shape of unknown rank"),
        (tensor_spec("DT_FLOAT", 3, -2), "a dim of size -2; -1 is any size"),
        (tensor_spec("DT_FLOAT", 1 << 31), "an extent lies between 0 and"),
        (tensor_spec("DT_DOUBLE", 1 << 20, 1 << 20), "more than 1073741824 bytes"),
        (tensor_spec("DT_FLOAT", *[1] * 33), "at most 32 dimensions"),
        (tensor_spec("DT_INVALID"), "TensorFlow's dtype number 0, which has no counterpart"),
        (record("class", ITEM), "'class' is no name"),
        (record("T", ITEM, ITEM), "not distinct"),
        (record("T", {"key": "x"}), "column x has no value"),
        ({"dict_value": {"fields": {"k" * 1025: tensor_spec()}}}, "has 1025 characters"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(description, message):
    with pytest.raises(InvalidArgument, match=message):
        read_signature(structured_value(description))


def test_two_values_in_one_place_are_refused():
    with pytest.raises(InvalidArgument, match="has several values"):
        read_signature(structured_value(tensor_spec()) + structured_value({"none_value": {}}))


def test_a_dtype_that_only_exists_here_is_refused_by_name():
    pytest.importorskip("ml_dtypes")
    with pytest.raises(InvalidArgument, match=r"column \('x',\) of the signature: dtype float8_e4m3b11fnuz has no"):
        signature_bytes(signature({"x": ArraySpec((), dtype_from_name("float8_e4m3b11fnuz"))}))


def test_damaged_messages_are_refused_or_read_but_nothing_else_happens():
    encoded = bytearray(signature_bytes(signature({"b": [FLOAT, None], "a": Step(FLOAT, (ArraySpec((2,), "S3"),))})))
    rng = random.Random(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(encoded)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read_signature(bytes(damaged[: rng.randint(0, len(damaged))]))
        except InvalidArgument:
            refused += 1
    assert refused > 1000


@given(st.binary(max_size=60))
def test_noise_is_refused_or_read_but_nothing_else_happens(noise):
    try:
        read = read_signature(noise)
    except InvalidArgument:
        return
    assert read.specs
