"""`TableInfo` as dm-reverb's ServerInfo tells it, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reverb_async.compat.message import Message
from reverb_async.compat.scanning import Data, varint
from reverb_async.compat.signatures import read_signature
from reverb_async.core.info import CallStats, RateLimiterInfo, TableInfo
from reverb_async.errors import InvalidArgument
from reverb_async.wire.generated.deepmind import reverb

_PLAIN = {
    "max_size": 3,
    "max_times_sampled": 4,
    "current_size": 7,
    "num_episodes": 9,
    "num_deleted_episodes": 10,
    "num_unique_samples": 11,
}
"""Integers that are the same on both sides, with their field numbers."""

_SIGNATURE = b"\x32"
"""The tag of `TableInfo.signature`: field 6, with a length."""
_TABLE_INFO = b"\x12"
"""The tag of `ServerInfoResponse.table_info`: field 2, with a length."""


def server_info_bytes(tables: Iterable[tuple[TableInfo, bytes | None]], tables_state_id: tuple[int, int]) -> bytes:
    """Return a serialized `ServerInfoResponse`.

    Args:
        tables: each with its signature as `signature_bytes` returns it; None, and clients check nothing.
        tables_state_id: two uint64, not both 0, new in each start of a server: clients cache signatures under them.
    """
    high, low = tables_state_id
    state_id = reverb.ServerInfoResponse(tables_state_id=reverb.Uint128(high=high, low=low))
    return bytes(state_id) + b"".join(
        _delimited(_TABLE_INFO, table_info_bytes(info, signature)) for info, signature in tables
    )


def table_info_bytes(info: TableInfo, signature: bytes | None) -> bytes:
    """Return a serialized `TableInfo` with a serialized signature."""
    limiter = info.rate_limiter_info
    message = reverb.TableInfo(
        **{name: getattr(info, name) for name in ("name", *_PLAIN)},
        sampler_options=_options_to_proto(info.sampler_options),
        remover_options=_options_to_proto(info.remover_options),
        rate_limiter_info=reverb.RateLimiterInfo(
            samples_per_insert=limiter.samples_per_insert,
            min_diff=limiter.min_diff,
            max_diff=limiter.max_diff,
            min_size_to_sample=limiter.min_size_to_sample,
            insert_stats=reverb.RateLimiterCallStats(completed=limiter.insert_stats.completed),
            sample_stats=reverb.RateLimiterCallStats(completed=limiter.sample_stats.completed),
        ),
        # Nothing here works for one table only: no time is spent in it.
        table_worker_time=reverb.TableWorkerTime(),
    )
    return bytes(message) + (b"" if signature is None else _delimited(_SIGNATURE, signature))


def read_server_info(encoded: Data) -> dict[str, TableInfo]:
    """Return what a serialized `ServerInfoResponse` says, by table.

    Raises:
        InvalidArgument: it is malformed, or a signature cannot be expressed here; naming the table.
    """
    response = Message(encoded, "dm-reverb's answer to ServerInfo")
    return {info.name: info for info in map(_read_table_info, response.messages(2))}


def read_state_id(encoded: Data) -> bytes:
    """Return the 16 bytes that a serialized `ServerInfoResponse` tells a server's starts apart by.

    Raises:
        InvalidArgument: it is malformed.
    """
    state_id = Message(encoded, "dm-reverb's answer to ServerInfo").message(1)
    return (state_id.unsigned(1) << 64 | state_id.unsigned(2)).to_bytes(16, "little")


def _read_table_info(message: Message) -> TableInfo:
    limiter, name = message.message(5), message.text(8)
    signature = message.encoded(6)
    try:
        nest = read_signature(signature[-1]).nest if signature else None
    except InvalidArgument as error:
        raise InvalidArgument(f"table {name!r}: {error}") from None
    numbers: dict[str, Any] = {field: message.integer(number) for field, number in _PLAIN.items()}
    numbers["max_times_sampled"] = max(0, numbers["max_times_sampled"])  # Theirs is unlimited below 1.
    return TableInfo(
        name=name,
        sampler_options=_read_options(message.message(1)),
        remover_options=_read_options(message.message(2)),
        rate_limiter_info=RateLimiterInfo(
            samples_per_insert=limiter.double(1),
            min_diff=limiter.double(2),
            max_diff=limiter.double(3),
            min_size_to_sample=limiter.integer(4),
            insert_stats=CallStats(limiter.message(5).integer(2)),
            sample_stats=CallStats(limiter.message(6).integer(2)),
        ),
        signature=nest,
        **numbers,
    )


def _options_to_proto(options: Mapping[str, Any]) -> reverb.KeyDistributionOptions:
    proto = reverb.KeyDistributionOptions(is_deterministic=options["is_deterministic"])
    match options:
        case {"prioritized": {"priority_exponent": exponent}}:
            proto.prioritized = reverb.KeyDistributionOptionsPrioritized(priority_exponent=exponent)
        case {"heap": {"min_heap": min_heap}}:
            proto.heap = reverb.KeyDistributionOptionsHeap(min_heap=min_heap)
        case _:
            (name,) = options.keys() - {"is_deterministic"}
            setattr(proto, name, True)
    return proto


def _read_options(message: Message) -> dict[str, Any]:
    options: dict[str, Any] = {"is_deterministic": bool(message.unsigned(7))}
    if 3 in message.numbers:
        options["prioritized"] = {"priority_exponent": message.message(3).double(1)}
    elif 4 in message.numbers:
        options["heap"] = {"min_heap": bool(message.message(4).unsigned(1))}
    else:
        options |= {
            name: True for number, name in ((1, "fifo"), (2, "uniform"), (6, "lifo")) if message.unsigned(number)
        }
    return options


def _delimited(tag: bytes, content: bytes) -> bytes:
    return tag + varint(len(content)) + content
