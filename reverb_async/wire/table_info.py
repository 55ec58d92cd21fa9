"""`TableInfo` as its protobuf message and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reverb_async.core.info import CallStats, RateLimiterInfo, TableInfo, WaiterInfo
from reverb_async.core.spec import Signature
from reverb_async.wire.codec import pack_map, unpack_map
from reverb_async.wire.generated.reverb_async import v1

_PLAIN = (
    *(
        "name",
        "max_size",
        "max_times_sampled",
        "current_size",
        "num_episodes",
        "num_deleted_episodes",
        "num_unique_samples",
    ),
    *("num_deletes", "stored_bytes", "stored_rows", "inserts_per_second", "samples_per_second"),
    *("oldest_item_age", "newest_item_age"),
)
"""Fields that are the same on both sides."""


def table_info_to_proto(info: TableInfo) -> v1.TableInfo:
    """Return the message that describes a table."""
    signature = Signature.of(info.signature)
    limiter = info.rate_limiter_info
    return v1.TableInfo(
        **{name: getattr(info, name) for name in _PLAIN},
        sampler_options=_options_to_proto(info.sampler_options),
        remover_options=_options_to_proto(info.remover_options),
        rate_limiter_info=v1.RateLimiterInfo(
            samples_per_insert=limiter.samples_per_insert,
            min_size_to_sample=limiter.min_size_to_sample,
            min_diff=limiter.min_diff,
            max_diff=limiter.max_diff,
            insert_stats=v1.CallStats(completed=limiter.insert_stats.completed),
            sample_stats=v1.CallStats(completed=limiter.sample_stats.completed),
        ),
        signature=b"" if signature is None else pack_map({"signature": signature.to_wire()}),
        waiters=[
            v1.Waiter(
                kind=waiter.kind,
                reason=waiter.reason,
                since=waiter.since,
                count=waiter.count,
                peers=list(waiter.peers),
            )
            for waiter in info.waiters
        ],
    )


def table_info_from_proto(message: v1.TableInfo) -> TableInfo:
    """Return what a message says of a table.

    Raises:
        InvalidArgument: its signature is malformed.
    """
    limiter = message.rate_limiter_info or v1.RateLimiterInfo()
    return TableInfo(
        **{name: getattr(message, name) for name in _PLAIN},
        sampler_options=_options_from_proto(message.sampler_options),
        remover_options=_options_from_proto(message.remover_options),
        rate_limiter_info=RateLimiterInfo(
            samples_per_insert=limiter.samples_per_insert,
            min_size_to_sample=limiter.min_size_to_sample,
            min_diff=limiter.min_diff,
            max_diff=limiter.max_diff,
            insert_stats=CallStats((limiter.insert_stats or v1.CallStats()).completed),
            sample_stats=CallStats((limiter.sample_stats or v1.CallStats()).completed),
        ),
        signature=Signature.from_wire(unpack_map(message.signature).get("signature")).nest
        if message.signature
        else None,
        waiters=tuple(
            WaiterInfo(
                kind=waiter.kind,
                reason=waiter.reason,
                since=waiter.since,
                count=waiter.count,
                peers=tuple(waiter.peers),
            )
            for waiter in message.waiters
        ),
    )


def _signature_from_proto(packed: bytes) -> Any:
    return Signature.from_wire(unpack_map(packed).get("signature")).nest if packed else None


def _options_to_proto(options: Mapping[str, Any]) -> v1.SelectorOptions:
    proto = v1.SelectorOptions(is_deterministic=options["is_deterministic"])
    match options:
        case {"prioritized": {"priority_exponent": exponent}}:
            proto.prioritized = v1.SelectorOptionsPrioritized(priority_exponent=exponent)
        case {"heap": {"min_heap": min_heap}}:
            proto.heap = v1.SelectorOptionsHeap(min_heap=min_heap)
        case _:
            (name,) = options.keys() - {"is_deterministic"}
            setattr(proto, name, True)
    return proto


def _options_from_proto(proto: v1.SelectorOptions | None) -> dict[str, Any]:
    if proto is None:
        return {"is_deterministic": False}
    options: dict[str, Any] = {"is_deterministic": proto.is_deterministic}
    if proto.prioritized is not None:
        options["prioritized"] = {"priority_exponent": proto.prioritized.priority_exponent}
    elif proto.heap is not None:
        options["heap"] = {"min_heap": proto.heap.min_heap}
    else:
        options.update({name: True for name in ("fifo", "lifo", "uniform") if getattr(proto, name)})
    return options
