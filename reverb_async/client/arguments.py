"""What a `Client` checks of the arguments it is called with."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from reverb_async.client.sampling.collate import as_columns
from reverb_async.errors import InvalidArgument
from reverb_async.hosts import is_loopback
from reverb_async.protocol.sampled import MAX_BATCH_SIZE
from reverb_async.protocol.sampling import Subscription
from reverb_async.security import ClientTLS
from reverb_async.security.credentials import check_token

MAX_PREFETCH = 1024
"""Batches a stream may keep outstanding; a server stops at 4096 that are not acknowledged."""


def check_address(address: object) -> None:
    """Refuse what is neither ``host:port`` nor ``unix:///path`` nor ``reverb://host:port``, and say what would be."""
    if not isinstance(address, str):
        raise InvalidArgument(f"an address is a str, 'host:port' or 'unix:///path', got a {type(address).__name__}")
    if address.startswith("unix:"):
        if not address.startswith("unix:///") or address == "unix:///":
            raise InvalidArgument(f"{address!r} is no address: a Unix socket is 'unix:///absolute/path'")
        return
    scheme, found, rest = address.partition("://")
    if scheme == "reverb" and found and "unix:" not in rest and "://" not in rest:
        check_address(rest)
        return
    if found:
        raise InvalidArgument(
            f"{address!r} is no address: pass {rest or 'host:port'!r}; only Unix sockets have a scheme, 'unix://', "
            "and servers of dm-reverb, 'reverb://'"
        )
    host, _, port = address.rpartition(":")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InvalidArgument(f"{address!r} is no address: put IPv6 addresses in brackets, as in '[::1]:8000'")
    if host and port == "0":
        raise InvalidArgument(
            f"{address!r} is no address; port 0: has the server been started? "
            "The real port is in server.address once the server has started"
        )
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
        raise InvalidArgument(f"{address!r} is no address: pass 'host:port', '127.0.0.1:8000' say, or 'unix:///path'")


def check_table_name(table: object) -> None:
    """Refuse what no table can be called."""
    if not isinstance(table, str) or not table:
        raise InvalidArgument(f"a table is named by a str, got {table!r:.60}")


def check_priorities(priorities: object) -> None:
    """Refuse what is no map with a table in it; the values are for the inserter to check."""
    if not isinstance(priorities, Mapping) or not priorities:
        raise InvalidArgument(
            f"priorities are {{table: priority}}, as in priorities={{'replay': 1.0}}, got {priorities!r:.60}"
        )


def as_subscription(table: str, batch_size: int, columns: object, partial: bool = False) -> Subscription:
    """Return what is to be sampled; raises `InvalidArgument`."""
    check_table_name(table)
    if (
        isinstance(batch_size, bool)
        or not isinstance(batch_size, int | np.integer)
        or not 1 <= batch_size <= MAX_BATCH_SIZE
    ):
        raise InvalidArgument(f"batch_size must be an int from 1 to {MAX_BATCH_SIZE}, got {batch_size!r:.60}")
    return Subscription(table, int(batch_size), as_columns(columns), bool(partial))


def as_prefetch(prefetch: object) -> int:
    """Return the number of batches to keep outstanding; raises `InvalidArgument`."""
    if isinstance(prefetch, bool) or not isinstance(prefetch, int | np.integer) or not 0 <= prefetch <= MAX_PREFETCH:
        raise InvalidArgument(
            f"prefetch must be an int from 0 (nothing is asked for ahead) to {MAX_PREFETCH}, got {prefetch!r:.60}"
        )
    return int(prefetch)


def as_limit(limit: object, name: str) -> int | None:
    """Return the number of elements an iterator ends after; raises `InvalidArgument`."""
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 1:
        raise InvalidArgument(f"{name} must be an int >= 1, or None for no end, got {limit!r:.60}")
    return int(limit)


def check_connect_timeout(seconds: object) -> None:
    """Refuse what is no number of seconds, or None."""
    if seconds is None or (isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0):
        return
    raise InvalidArgument(f"connect_timeout is seconds >= 0, or None for ever, got {seconds!r:.60}")


def check_credentials(address: str, tls: object, token: object, insecure: object) -> None:
    """Refuse what cannot be shown to the server of an address, or would be shown to others on the way."""
    if not isinstance(tls, bool | ClientTLS):
        raise InvalidArgument(f"tls is True (what the system trusts) or ClientTLS(...), got {tls!r:.60}")
    if not isinstance(insecure, bool):
        raise InvalidArgument(f"insecure is True or False, got {insecure!r:.60}")
    if isinstance(token, str):
        check_token(token, "token")
    elif token is not None and not isinstance(token, os.PathLike) and not callable(token):
        raise InvalidArgument(f"token is a str, a pathlib.Path, or a function, got a {type(token).__name__}")
    if address.startswith("reverb://") and (tls or token is not None):
        raise InvalidArgument("servers of dm-reverb know neither TLS nor tokens: drop tls and token")
    if address.startswith("unix:"):
        if tls:
            raise InvalidArgument(
                "what passes a Unix socket does not leave this machine and is not encrypted: drop tls"
            )
    elif token is not None and not tls and not insecure:
        host = address.rpartition(":")[0].strip("[]")
        if not is_loopback(host):
            raise InvalidArgument(
                f"everybody between here and {host} could read the token: add tls=True or ClientTLS(...), or "
                "insecure=True if that is meant"
            )
