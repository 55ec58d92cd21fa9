"""What makes a sound definition of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from reverb_async.core import rate_limiters, selectors
from reverb_async.errors import InvalidArgument

MAX_SIZE = 2**29
"""Items a table can hold: slots are numbered with 32 bits, and some are spare."""


def check_definition(config: dict[str, Any]) -> None:
    """Refuse a table definition that cannot work."""
    name = config["name"]
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"a table's name must be a non-empty str, got {name!r}")
    check_size(name, config["max_size"])
    _check_int(name, "max_times_sampled", config["max_times_sampled"], 0, 2**31 - 1)
    if config["max_bytes"] is not None:
        _check_int(name, "max_bytes", config["max_bytes"], 1, 2**63 - 1)
    if config["seed"] is not None:
        _check_int(name, "seed", config["seed"], 0, 2**63 - 1)
    for field in ("sampler", "remover"):
        if not isinstance(config[field], selectors.Selector):
            raise InvalidArgument(
                f"table {name!r}: {field} must be one of reverb_async.selectors, such as Uniform(), "
                f"got {config[field]!r}"
            )
    limiter = config["rate_limiter"]
    if not isinstance(limiter, rate_limiters.RateLimiter):
        raise InvalidArgument(
            f"table {name!r}: rate_limiter must be one of reverb_async.rate_limiters, such as MinSize(1), "
            f"got {limiter!r}"
        )
    if limiter.min_size_to_sample > config["max_size"]:
        raise InvalidArgument(
            f"table {name!r}: min_size_to_sample={limiter.min_size_to_sample} can never be reached with "
            f"max_size={config['max_size']}"
        )


def check_size(name: str, max_size: object) -> None:
    """Refuse a `max_size` that cannot work."""
    _check_int(name, "max_size", max_size, 1, MAX_SIZE)


def _check_int(name: str, field: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise InvalidArgument(f"table {name!r}: {field} must be an int from {least} to {most}, got {value!r}")
