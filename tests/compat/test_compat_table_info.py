"""What ServerInfo says over DeepMind's door."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protobuf_messages import described, message_class, structured_value, tensor_spec

import reverb_async as ra
from reverb_async.compat.signatures import read_signature, signature_bytes
from reverb_async.compat.table_info import read_server_info, server_info_bytes, table_info_bytes
from reverb_async.core.info import CallStats, RateLimiterInfo, TableInfo
from reverb_async.core.spec import ArraySpec, Signature
from reverb_async.errors import InvalidArgument
from reverb_async.wire.generated.deepmind import reverb

counts = st.integers(0, 2**63 - 1)
numbers = st.floats(allow_nan=False)
options = st.sampled_from(
    [ra.selectors.Fifo(), ra.selectors.Lifo(), ra.selectors.Uniform(), ra.selectors.MinHeap(), ra.selectors.MaxHeap()]
) | st.builds(ra.selectors.Prioritized, st.floats(0, 10))
infos = st.builds(
    TableInfo,
    name=st.text(max_size=8),
    sampler_options=options.map(lambda selector: selector.options()),
    remover_options=options.map(lambda selector: selector.options()),
    max_size=counts,
    max_times_sampled=st.integers(0, 2**31 - 1),
    rate_limiter_info=st.builds(
        RateLimiterInfo,
        samples_per_insert=numbers,
        min_size_to_sample=counts,
        min_diff=numbers,
        max_diff=numbers,
        insert_stats=st.builds(CallStats, counts),
        sample_stats=st.builds(CallStats, counts),
    ),
    signature=st.sampled_from([None, {"x": ArraySpec((None, 2), "int8")}]),
    current_size=counts,
    num_episodes=counts,
    num_deleted_episodes=counts,
    num_unique_samples=counts,
)


def encoded_signature(info: TableInfo) -> bytes | None:
    signature = Signature.of(info.signature)
    return None if signature is None else signature_bytes(signature)


@given(st.lists(infos, max_size=3, unique_by=lambda info: info.name))
def test_what_was_written_is_read_back(written):
    encoded = server_info_bytes([(info, encoded_signature(info)) for info in written], (1, 2))
    assert read_server_info(encoded) == {info.name: info for info in written}


@given(infos, counts, counts)
def test_the_generated_classes_and_protobuf_agree(info, high, low):
    response = reverb.ServerInfoResponse.parse(server_info_bytes([(info, encoded_signature(info))], (high, low)))
    assert response.tables_state_id == reverb.Uint128(high=high, low=low)
    (table,) = response.table_info
    message = message_class("deepmind.reverb.TableInfo").FromString(table_info_bytes(info, encoded_signature(info)))
    for name in ("name", "max_size", "max_times_sampled", "current_size", "num_episodes", "num_unique_samples"):
        assert getattr(table, name) == getattr(message, name) == getattr(info, name)
    limiter = info.rate_limiter_info
    for name in ("samples_per_insert", "min_size_to_sample", "min_diff", "max_diff"):
        assert getattr(message.rate_limiter_info, name) == getattr(limiter, name)
    assert message.rate_limiter_info.insert_stats.completed == limiter.insert_stats.completed
    assert message.rate_limiter_info.sample_stats.completed == limiter.sample_stats.completed
    assert message.HasField("signature") == (info.signature is not None)


def test_a_new_table_says_what_dm_reverbs_says():
    table = ra.Table("t", max_size=10, sampler=ra.selectors.Prioritized(0.5), rate_limiter=ra.rate_limiters.MinSize(3))
    assert described(table_info_bytes(table.info, None), "deepmind.reverb.TableInfo") == {
        "name": "t",
        "max_size": "10",
        "sampler_options": {"prioritized": {"priority_exponent": 0.5}},
        "remover_options": {"fifo": True, "is_deterministic": True},
        "rate_limiter_info": {
            "samples_per_insert": 1.0,
            "min_diff": -sys.float_info.max,
            "max_diff": sys.float_info.max,
            "min_size_to_sample": "3",
            "insert_stats": {},
            "sample_stats": {},
        },
        "table_worker_time": {},
    }


def test_a_signature_from_outside_is_said_as_it_came():
    encoded = structured_value(tensor_spec("DT_INT32", -1, name="steps"))
    table = ra.Table("t", max_size=1, signature=read_signature(encoded))
    said = described(table_info_bytes(table.info, signature_bytes(table.signature)), "deepmind.reverb.TableInfo")
    assert said["signature"] == described(encoded)


def test_a_large_signature_has_a_long_length():
    nest = {f"column {at}": ArraySpec((at,), "uint8") for at in range(2000)}
    table = ra.Table("t", max_size=1, signature=nest)
    encoded = server_info_bytes([(table.info, signature_bytes(table.signature))], (0, 1))
    assert read_server_info(encoded)["t"].signature == nest


def test_no_limit_of_theirs_is_none_of_ours():
    message = message_class("deepmind.reverb.TableInfo")(name="t", max_times_sampled=-1)
    encoded = message.SerializeToString()
    info = read_server_info(b"\x12" + bytes([len(encoded)]) + encoded)["t"]
    assert info.max_times_sampled == 0
    assert info.sampler_options == {"is_deterministic": False}
    assert info.signature is None


def test_a_signature_that_cannot_be_expressed_names_its_table():
    signature = structured_value({"tensor_spec_value": {"shape": {"unknown_rank": True}, "dtype": "DT_FLOAT"}})
    info = ra.Table("odd", max_size=1).info
    with pytest.raises(InvalidArgument, match="table 'odd': the signature has a shape of unknown rank"):
        read_server_info(server_info_bytes([(info, signature)], (0, 1)))


@given(st.binary(max_size=40))
def test_noise_is_refused_or_read_but_nothing_else_happens(noise):
    try:
        (info,) = read_server_info(b"\x12" + bytes([len(noise)]) + noise).values()
    except InvalidArgument:
        return
    assert isinstance(info.name, str)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"\x10\x01", "ServerInfo: field 2, which ends at byte 2, must be a length and bytes, got a varint"),
        (b"\x12\x02\x40\x01", "ServerInfo: field 8, which ends at byte 2, must be a length and bytes, got a varint"),
        (b"\x12\x03\x1a\x01x", "ServerInfo: field 3, which ends at byte 3, must be a varint, got a length and bytes"),
        (b"\x12\x04\x2a\x02\x08\x01", "ServerInfo: field 1, which ends at byte 2, must be 8 bytes, got a varint"),
        (b"\x12\x03\x42\x01\xff", "field 8 at byte 2 is no UTF-8"),
    ],
)
def test_a_field_of_another_type_is_refused_by_number(encoded, message):
    with pytest.raises(InvalidArgument, match=message):
        read_server_info(encoded)
