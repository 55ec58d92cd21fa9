"""What one server takes at most: bytes, messages, connections."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reverb_async.errors import InvalidArgument

LEAST_BYTES = 16 << 20
LEAST_MESSAGE_BYTES = 4 << 20
LARGEST_MESSAGE_BYTES = 1 << 30

_RECEIVED_BYTES = 512 << 20
_POOLED_BYTES = 256 << 20
_CACHED_BYTES = 320 << 20
_STAGED_BYTES = 512 << 20
_CLIENT_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one server. Sizes are bytes, times are seconds.

    Attributes:
        max_bytes: memory for all that the server holds: rows and values of items (each counted once, however many items
            and tables show it), what is indexed of each item, steps that no item shows yet, messages that are being
            received or sent, caches. None is no limit. At least three quarters of it are for items, the rest is kept
            for caches and for what is on its way. When these are full, inserts wait in their order, and their streams
            are read no further; those into a table that evicts as much as it takes (it has reached its `max_size` or
            `max_bytes`) go on, as do samples, updates, deletes and resets. The process itself, and pages that hold
            free rows beside used ones, come on top: expect up to 1.25 times as much and 150 MB.
        full_timeout: an insert that has waited so long for memory, while none became free, fails with
            `ResourceExhausted`; one with a timeout of its own fails with it at that time, if it comes earlier.
        max_message_bytes: the longest message. Longer ones are refused with `ResourceExhausted` when their length
            arrives, before their content does. Native clients cut what is longer into parts, up to 16 times this.
            Clients of DeepMind's protocol cannot: what they insert may have 8 times this, and 64 MiB in any case.
        max_client_bytes: what one stream of a writer may have on the server that is in no table: steps it may still
            name, and items that wait. Steps beyond are refused with `ResourceExhausted`; while more waits, the stream
            is read no further. None is 1 GiB, or a sixteenth of `max_bytes` if that is less.
        max_connections: beyond it, new connections are refused.

    Raises:
        InvalidArgument: a value that cannot work, named with what would.
    """

    max_bytes: int | None = None
    full_timeout: float = 60.0
    max_message_bytes: int = 64 << 20
    max_client_bytes: int | None = None
    max_connections: int = 4096

    def __post_init__(self) -> None:
        if self.max_bytes is not None:
            _check_int("max_bytes", self.max_bytes, LEAST_BYTES, 1 << 62)
        _check_int("max_message_bytes", self.max_message_bytes, LEAST_MESSAGE_BYTES, LARGEST_MESSAGE_BYTES)
        if self.max_client_bytes is not None:
            _check_int("max_client_bytes", self.max_client_bytes, 1, 1 << 62)
        _check_int("max_connections", self.max_connections, 1, 1 << 31)
        timeout = self.full_timeout
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < math.inf:
            raise InvalidArgument(f"Limits: full_timeout must be a finite number of seconds >= 0, got {timeout!r}")

    def _share(self, parts: int, most: int) -> int:
        return most if self.max_bytes is None else min(most, self.max_bytes // parts)

    @property
    def received_bytes(self) -> int:
        """What all streams together may have received and not worked off, beyond 64 KiB each; or a single message."""
        return self._share(16, _RECEIVED_BYTES)

    @property
    def pooled_bytes(self) -> int:
        """Memory that is kept for the next long messages."""
        return self._share(32, _POOLED_BYTES)

    @property
    def cached_bytes(self) -> int:
        """What is kept of items decoded or encoded for the other protocol."""
        return self._share(32, _CACHED_BYTES)

    @property
    def staged_bytes(self) -> int:
        """What is kept for steps on their way into a table when items have taken all the rest."""
        return self._share(8, _STAGED_BYTES)

    @property
    def stored_bytes(self) -> int | None:
        """What items, steps and messages being sent may take together."""
        if self.max_bytes is None:
            return None
        return self.max_bytes - self.received_bytes - self.pooled_bytes - self.cached_bytes

    @property
    def client_bytes(self) -> int:
        """`max_client_bytes`, or what it is by default."""
        return self._share(16, _CLIENT_BYTES) if self.max_client_bytes is None else self.max_client_bytes


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidArgument(f"Limits: {name} must be an int from {least} to {most}, got {value!r}")


def in_words(nbytes: float) -> str:
    """Return a number of bytes as people read it: ``8.0 GiB``."""
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes:.0f} bytes"
