"""Limits in files and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from reverb_async.config import load
from reverb_async.config.limits import LIMIT_FLAGS, limits_to_toml
from reverb_async.errors import InvalidArgument
from reverb_async.limits import Limits


def test_sizes_may_have_units(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        '[limits]\nmax_bytes = "8GiB"\nmax_message_bytes = "16 MB"\nfull_timeout = 2\nmax_client_bytes = 5e6'
    )
    wanted = Limits(max_bytes=8 << 30, max_message_bytes=16_000_000, full_timeout=2.0, max_client_bytes=5_000_000)
    assert load(path).limits == wanted
    assert load(path, limit_flags={"max_bytes": "none", "max_connections": 7}).limits == Limits(
        max_message_bytes=16_000_000, full_timeout=2.0, max_client_bytes=5_000_000, max_connections=7
    )


def test_what_is_printed_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for limits in (Limits(), Limits(max_bytes=1 << 30, max_client_bytes=1 << 20, full_timeout=0.5)):
        path.write_text(limits_to_toml(limits))
        assert load(path).limits == limits


def test_every_limit_can_be_set() -> None:
    assert list(LIMIT_FLAGS) == list(Limits.__dataclass_fields__)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_bytes", "8Gi", '--max-bytes: must be bytes, such as 8GiB, 500MB or 1000000, got "8Gi"'),
        ("max_bytes", 1000, "--max-bytes: must be an int from 16777216"),
        ("max_bytes", -1, "--max-bytes: must be an integer"),
        ("full_timeout", "x", "--full-timeout: must be a number"),
        ("max_connections", 0, "--max-connections: must be an integer >= 1, got 0"),
    ],
)
def test_what_is_wrong_is_named(key: str, value: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        load(limit_flags={key: value})


def test_a_tables_own_bytes_may_have_units_too() -> None:
    assert load(table_flags=["t:max_bytes=2GiB"]).tables[0].max_bytes == 2 << 30
