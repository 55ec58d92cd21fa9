"""`TableInfo` over the wire."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from reverb_async.core.info import CallStats, RateLimiterInfo, TableInfo, WaiterInfo
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.table_info import table_info_from_proto, table_info_to_proto

info = TableInfo(
    name="replay",
    sampler_options={"prioritized": {"priority_exponent": 0.6}, "is_deterministic": False},
    remover_options={"fifo": True, "is_deterministic": True},
    max_size=10,
    max_times_sampled=3,
    rate_limiter_info=RateLimiterInfo(
        samples_per_insert=1.5,
        min_size_to_sample=2,
        min_diff=-1.0,
        max_diff=1.7976931348623157e308,
        insert_stats=CallStats(4),
        sample_stats=CallStats(5),
    ),
    signature={"obs": ArraySpec((84, None), np.uint8), "reward": ArraySpec((), np.float32)},
    current_size=1,
    num_episodes=2,
    num_deleted_episodes=3,
    num_unique_samples=4,
    num_deletes=5,
    stored_bytes=6,
    stored_rows=7,
    waiters=(WaiterInfo(kind="sample", reason="needs 3 more inserts", since=1.7e9, count=2),),
    inserts_per_second=1.25,
    samples_per_second=2.5,
    oldest_item_age=9.0,
    newest_item_age=0.5,
)


def over_the_wire(info: TableInfo) -> TableInfo:
    return table_info_from_proto(v1.TableInfo.parse(bytes(table_info_to_proto(info))))


def test_everything_arrives():
    assert over_the_wire(info) == info


@pytest.mark.parametrize(
    "options",
    [
        {"uniform": True, "is_deterministic": False},
        {"fifo": True, "is_deterministic": True},
        {"lifo": True, "is_deterministic": True},
        {"heap": {"min_heap": True}, "is_deterministic": True},
        {"heap": {"min_heap": False}, "is_deterministic": True},
        {"prioritized": {"priority_exponent": 0.0}, "is_deterministic": False},
    ],
)
def test_every_selector_arrives(options):
    changed = dataclasses.replace(info, sampler_options=options, remover_options=options, signature=None)
    assert over_the_wire(changed) == changed


def test_every_field_of_the_message_is_filled():
    message = table_info_to_proto(info)
    fields = {field.name for field in dataclasses.fields(message)}
    assert fields == {field.name for field in dataclasses.fields(info)}
    assert [name for name in fields if not getattr(message, name)] == []


def test_an_empty_message_is_an_empty_table():
    assert table_info_from_proto(v1.TableInfo()).current_size == 0


@pytest.mark.parametrize("signature", [b"\xc1", b"\x80", b"\x81\xa9signature\x01"])
def test_a_malformed_signature_is_refused(signature):
    with pytest.raises(InvalidArgument):
        table_info_from_proto(v1.TableInfo(signature=signature))
