"""What can be limited, and what is refused as a limit."""

from __future__ import annotations

import pytest

import reverb_async as ra
from reverb_async.limits import in_words


def test_by_default_memory_is_not_limited_but_messages_and_clients_are() -> None:
    limits = ra.Limits()
    assert (limits.max_bytes, limits.stored_bytes) == (None, None)
    assert (limits.max_message_bytes, limits.client_bytes) == (64 << 20, 1 << 30)


@pytest.mark.parametrize("max_bytes", [16 << 20, 256 << 20, 8 << 30, 1 << 45])
def test_three_quarters_at_least_are_for_items(max_bytes: int) -> None:
    limits = ra.Limits(max_bytes=max_bytes)
    assert limits.stored_bytes is not None
    assert limits.stored_bytes - limits.staged_bytes >= 0.75 * max_bytes
    parts = limits.stored_bytes + limits.received_bytes + limits.pooled_bytes + limits.cached_bytes
    assert parts == max_bytes
    assert limits.client_bytes <= limits.staged_bytes * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_bytes": 1000}, "max_bytes must be an int from 16777216 to .*, got 1000"),
        ({"max_bytes": True}, "max_bytes must be an int"),
        ({"max_bytes": 1e9}, "max_bytes must be an int"),
        ({"max_message_bytes": 1 << 31}, "max_message_bytes must be an int from 4194304 to 1073741824"),
        ({"max_client_bytes": 0}, "max_client_bytes must be an int from 1"),
        ({"max_connections": 0}, "max_connections must be an int from 1"),
        ({"full_timeout": -1}, "full_timeout must be a finite number of seconds >= 0, got -1"),
        ({"full_timeout": float("nan")}, "full_timeout must be a finite"),
    ],
)
def test_what_cannot_work_is_refused_by_name(given: dict[str, object], message: str) -> None:
    with pytest.raises(ra.InvalidArgument, match=f"^Limits: {message}"):
        ra.Limits(**given)  # type: ignore[arg-type]


def test_a_server_takes_nothing_else_as_limits() -> None:
    with pytest.raises(ra.InvalidArgument, match=r"limits must be reverb_async\.Limits"):
        ra.Server([ra.Table("t", max_size=1)], limits=8 << 30)  # type: ignore[arg-type]


def test_sizes_are_shown_as_people_read_them() -> None:
    assert [in_words(size) for size in (0, 1023, 1536, 8 << 30, 1 << 41)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "8.0 GiB",
        "2.0 TiB",
    ]
