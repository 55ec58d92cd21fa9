"""Every error a user of this package can meet.

::

    ReplayError
    ├── InvalidArgument (ValueError)         the call itself is wrong: change it
    │   ├── SignatureMismatch                data does not fit the table's signature
    │   └── ExpiredReference                 a step has left the writer's history
    ├── NotFound (LookupError)
    │   ├── TableNotFound
    │   └── ItemNotFound
    ├── DeadlineExceeded (TimeoutError)      nothing answered in time: retry or wait longer
    │   └── RateLimiterTimeout               the table's rate limiter did not admit the call in time
    ├── Unavailable (ConnectionError)        the server cannot be reached: retry later
    │   └── TableClosed                      the server is stopping
    ├── Closed (RuntimeError)                this client, writer or sampler was closed
    ├── ResourceExhausted (RuntimeError)     a limit of the server is reached
    ├── PermissionDenied (PermissionError)
    └── CheckpointError (RuntimeError)

Errors cross process boundaries as plain maps (`to_map`, `from_map`); how they become gRPC statuses is `wire.status`'s
business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ReplayError(Exception):
    """Base of all errors raised by this package."""

    def to_map(self) -> dict[str, Any]:
        """Describe the error so that `from_map` can rebuild it in another process."""
        return {"type": type(self).__name__, "message": str(self)}


class InvalidArgument(ReplayError, ValueError):
    """An argument is wrong; nothing was changed."""


class SignatureMismatch(InvalidArgument):
    """Data do not fit the table's signature."""


class ExpiredReference(InvalidArgument):
    """A step is no longer kept by the writer; a larger `num_keep_alive_refs` keeps it longer."""


class NotFound(ReplayError, LookupError):
    """What was named does not exist."""


class TableNotFound(NotFound):
    """No table has this name.

    Attributes:
        name: the name asked for.
        tables: the names the server has.
    """

    def __init__(self, name: str, tables: Iterable[str]) -> None:
        self.name = name
        self.tables = sorted(tables)
        known = ", ".join(map(repr, self.tables)) or "none"
        super().__init__(f"no table named {name!r}; this server has: {known}")

    def to_map(self) -> dict[str, Any]:
        """Describe the error, its names included."""
        return {**super().to_map(), "name": self.name, "tables": self.tables}


class ItemNotFound(NotFound):
    """No item has this key."""


class DeadlineExceeded(ReplayError, TimeoutError):
    """The call did not finish within its `timeout`."""


class RateLimiterTimeout(DeadlineExceeded):
    """The rate limiter did not admit the call within its `timeout`.

    Attributes:
        keys: for inserts, the keys that were admitted before the time was up, by table; they stay inserted.
    """

    def __init__(self, message: str, keys: Mapping[str, NDArray[np.uint64]] | None = None) -> None:
        super().__init__(message)
        self.keys: dict[str, NDArray[np.uint64]] = dict(keys or {})


class Unavailable(ReplayError, ConnectionError):
    """The server does not answer.

    Attributes:
        after_silence: it was connected and said nothing for 20 s, not even that it lives.
    """

    after_silence = False


class TableClosed(Unavailable):
    """The table was closed while the call waited; what had not been acknowledged did not happen."""


class Closed(ReplayError, RuntimeError):
    """The object was used after it was closed."""


class ResourceExhausted(ReplayError, RuntimeError):
    """A limit of the server stands in the way.

    Attributes:
        keys: for inserts that waited for memory, the keys that were admitted before; they stay inserted.
    """

    def __init__(self, message: str, keys: Mapping[str, NDArray[np.uint64]] | None = None) -> None:
        super().__init__(message)
        self.keys: dict[str, NDArray[np.uint64]] = dict(keys or {})


class PermissionDenied(ReplayError, PermissionError):
    """The caller may not do this."""


class CheckpointError(ReplayError, RuntimeError):
    """A checkpoint could not be written or read."""


_BY_NAME: dict[str, type[ReplayError]] = {
    kind.__name__: kind
    for kind in (
        InvalidArgument,
        SignatureMismatch,
        ExpiredReference,
        NotFound,
        ItemNotFound,
        DeadlineExceeded,
        RateLimiterTimeout,
        Unavailable,
        TableClosed,
        Closed,
        ResourceExhausted,
        PermissionDenied,
        CheckpointError,
        ReplayError,
    )
}


def from_map(described: Mapping[str, Any]) -> ReplayError:
    """Rebuild an error that `ReplayError.to_map` described; unknown types come back as `ReplayError`."""
    if described.get("type") == "TableNotFound":
        return TableNotFound(str(described.get("name")), [str(name) for name in described.get("tables", ())])
    kind = _BY_NAME.get(str(described.get("type")), ReplayError)
    return kind(str(described.get("message", "")))
