"""What makes a sound definition of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from reverb_async.core import rate_limiters, selectors
from reverb_async.core.spec import Signature
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


def definition_to_plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition as values MessagePack and JSON know; infinite bounds of a rate limiter as text."""
    limiter, signature = config["rate_limiter"], Signature.of(config["signature"])
    bounds = [str(bound) if math.isinf(bound) else bound for bound in (limiter.min_diff, limiter.max_diff)]
    return {
        "name": config["name"],
        "max_size": int(config["max_size"]),
        "sampler": config["sampler"].options(),
        "remover": config["remover"].options(),
        "rate_limiter": [limiter.samples_per_insert, limiter.min_size_to_sample, *bounds],
        "max_times_sampled": int(config["max_times_sampled"]),
        "max_bytes": None if config["max_bytes"] is None else int(config["max_bytes"]),
        "signature": None if signature is None else signature.to_wire(),
        "seed": None if config["seed"] is None else int(config["seed"]),
    }


def definition_from_plain(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Table` that `definition_to_plain` wrote down.

    Raises:
        InvalidArgument: there are others, or some are missing.
    """
    try:
        config = dict(plain)
        config["sampler"] = selectors.from_options(config["sampler"])
        config["remover"] = selectors.from_options(config["remover"])
        config["rate_limiter"] = rate_limiters.RateLimiter(*config["rate_limiter"])
        if config["signature"] is not None:
            config["signature"] = Signature.from_wire(config["signature"])
        check_definition(config)
    except (KeyError, TypeError) as error:
        raise InvalidArgument(f"no definition of a table: {error!r}") from error
    return config


def check_size(name: str, max_size: object) -> None:
    """Refuse a `max_size` that cannot work."""
    _check_int(name, "max_size", max_size, 1, MAX_SIZE)


def _check_int(name: str, field: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise InvalidArgument(f"table {name!r}: {field} must be an int from {least} to {most}, got {value!r}")
