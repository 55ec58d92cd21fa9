"""Scenarios: functions that a genuine client runs against a server with tables made for them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import reverb
from google.protobuf import text_format
from reverb.cc import schema_pb2
from reverb.server_executable import reverb_config_pb2

Scenario = Callable[[reverb.Client], None]


def on(*tables: reverb.Table, needs_ours: bool = False) -> Callable[[Scenario], Scenario]:
    """Mark a scenario, and say on which tables it works.

    `needs_ours`: the genuine server fails it. The tests read this from the source.
    """

    return having(*tables)


def having(*tables: reverb.Table) -> Callable[[Any], Any]:
    """Say on which tables a function works that is no whole scenario: a test calls it and does the rest."""

    def mark(function: Any) -> Any:
        function.tables = tables
        return function

    return mark


def config_of(module: str, name: str) -> str:
    """Return the tables of a scenario as what ``reverb_server --config`` takes."""
    return config_text(getattr(importlib.import_module(module), name).tables)


def run(module: str, name: str, address: str) -> None:
    """Run a scenario."""
    getattr(importlib.import_module(module), name)(reverb.Client(address))


def config_text(tables: Any) -> str:
    """Return a server configuration as text, with signatures."""
    config = reverb_config_pb2.ReverbServerConfig()
    for table in tables:
        info = schema_pb2.TableInfo.FromString(table.internal_table.info())
        described = config.tables.add(
            table_name=info.name,
            sampler=info.sampler_options,
            remover=info.remover_options,
            max_size=info.max_size,
            max_times_sampled=info.max_times_sampled,
        )
        limiter = info.rate_limiter_info
        described.rate_limiter.samples_per_insert = limiter.samples_per_insert
        described.rate_limiter.min_size_to_sample = limiter.min_size_to_sample
        described.rate_limiter.min_diff = limiter.min_diff
        described.rate_limiter.max_diff = limiter.max_diff
        if info.HasField("signature"):
            described.signature.CopyFrom(info.signature)
    return text_format.MessageToString(config)


# -- tables ------------------------------------------------------------------------------------------------------------


def table(name: str = "t", signature: Any = None, **changes: Any) -> reverb.Table:
    """Return a table that hands out its oldest item; `changes` are arguments of `reverb.Table`."""
    arguments = {
        "sampler": reverb.selectors.Fifo(),
        "remover": reverb.selectors.Fifo(),
        "max_size": 1000,
        "rate_limiter": reverb.rate_limiters.MinSize(1),
    }
    return reverb.Table(name, **{**arguments, **changes}, signature=signature)


def queue(size: int, name: str = "q", signature: Any = None) -> reverb.Table:
    return reverb.Table.queue(name, size, signature=signature)


# -- what scenarios do again and again -------------------------------------------------------------------------------


def columns(client: reverb.Client, name: str = "t") -> list[Any]:
    """Sample an item; return its columns."""
    return next(iter(client.sample(name, 1, emit_timesteps=False))).data


def size_of(client: reverb.Client, name: str = "t") -> int:
    return client.server_info()[name].current_size


def wait_until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)


def raises(kind: type[BaseException], text: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Check that a call raises exactly this kind of error, with this in its text."""
    found: Exception | None = None
    try:
        call(*arguments, **named)
    except Exception as error:
        found = error
    assert type(found) is kind, f"{found!r} instead of {kind}"
    assert text in str(found), f"{text!r} is not in {str(found)!r}"
