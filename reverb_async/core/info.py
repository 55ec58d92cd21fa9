"""What tables and servers tell about themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class CallStats:
    """What a rate limiter has let through since the last reset."""

    completed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimiterInfo:
    """A rate limiter's four numbers and its counts."""

    samples_per_insert: float
    min_size_to_sample: int
    min_diff: float
    max_diff: float
    insert_stats: CallStats = CallStats()
    sample_stats: CallStats = CallStats()


@dataclass(frozen=True, slots=True, kw_only=True)
class WaiterInfo:
    """Calls that wait for a table.

    Attributes:
        kind: ``"insert"`` or ``"sample"``.
        reason: what they wait for, in words.
        since: when the longest of them began to wait, in seconds since the epoch.
        count: how many they are.
        peers: where the first few of them come from: ``"host:port"``, ``"process 1234"`` over a Unix socket,
            ``"the server's process"``.
    """

    kind: str
    reason: str
    since: float
    count: int
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInfo:
    """A table's configuration and state, under Reverb's field names; from `num_deletes` on, what Reverb hides.

    Attributes:
        name: the table's name.
        sampler_options: one key that names the selector, ``{"prioritized": {"priority_exponent": 0.6}}`` say, and
            ``is_deterministic``.
        remover_options: the same of the remover.
        max_size: the number of items the table holds at most.
        max_times_sampled: how often an item may be sampled; 0: any number of times.
        rate_limiter_info: the rate limiter's numbers and counts.
        signature: the nest of `ArraySpec` items must match, or None.
        current_size: the number of items.
        num_episodes: episodes of which items are in the table.
        num_deleted_episodes: episodes of which no item is left.
        num_unique_samples: items that have been sampled at least once.
        num_deletes: items removed, by whatever means, since the last reset.
        stored_bytes: bytes of the items' data, overlaps counted for every item.
        stored_rows: rows in the server's stores, each counted once; its tables share them.
        waiters: who waits for the table.
        inserts_per_second: mean over the last few seconds.
        samples_per_second: mean over the last few seconds.
        oldest_item_age: seconds since the oldest item was inserted; 0 when the table is empty.
        newest_item_age: seconds since the last insert; 0 when the table is empty.
    """

    name: str
    sampler_options: Mapping[str, Any]
    remover_options: Mapping[str, Any]
    max_size: int
    max_times_sampled: int
    rate_limiter_info: RateLimiterInfo
    signature: Any = None
    current_size: int = 0
    num_episodes: int = 0
    num_deleted_episodes: int = 0
    num_unique_samples: int = 0
    num_deletes: int = 0
    stored_bytes: int = 0
    stored_rows: int = 0
    waiters: tuple[WaiterInfo, ...] = ()
    inserts_per_second: float = 0.0
    samples_per_second: float = 0.0
    oldest_item_age: float = 0.0
    newest_item_age: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that is wrong with a server.

    Attributes:
        name: what kind of thing, ``"memory"`` say.
        message: what it is, in words.
        since: since when, in seconds since the epoch.
    """

    name: str
    message: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """What there is to know about a server beside its tables. Sizes are bytes.

    Attributes:
        epoch: 16 bytes, new with every start of the server.
        uptime: seconds since it was started.
        memory_used: what it holds, as `Limits.max_bytes` counts: the next four together.
        memory_limit: `Limits.max_bytes`; 0 is none.
        stored_bytes: rows and values of items, and what is indexed of them; steps that no item shows yet; messages that
            are being sent.
        staged_rows: rows that no item shows, or not any more: steps of writers, inserts that wait, batches being sent.
        received_bytes: messages that are being received.
        cached_bytes: items kept decoded, or encoded, for clients of the other protocol.
        num_refused: how often inserts were refused because memory stayed full.
        connections: peers connected over TCP and Unix sockets.
        max_connections: `Limits.max_connections`.
        writers: insert streams that are open.
        alarms: what is wrong now.
        refused_connections: how many were not admitted, by reason.
        dropped_connections: how many the server ended, by reason: silent peers, such as read nothing, or break rules.
        stalled_streams: calls that ended because their client read nothing.
        unauthenticated: calls without a token, or with one that is not known.
        denied: calls that their token does not allow.
        last_checkpoint: path of the newest one, empty if there is none.
        checkpointed_at: when it was written, in seconds since the epoch.
    """

    epoch: bytes
    uptime: float = 0.0
    memory_used: int = 0
    memory_limit: int = 0
    stored_bytes: int = 0
    staged_rows: int = 0
    received_bytes: int = 0
    cached_bytes: int = 0
    num_refused: int = 0
    connections: int = 0
    max_connections: int = 0
    writers: int = 0
    alarms: tuple[Alarm, ...] = ()
    refused_connections: dict[str, int] = field(default_factory=dict)
    dropped_connections: dict[str, int] = field(default_factory=dict)
    stalled_streams: int = 0
    unauthenticated: int = 0
    denied: int = 0
    last_checkpoint: str = ""
    checkpointed_at: float = 0.0
