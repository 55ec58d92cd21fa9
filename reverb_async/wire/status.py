"""Errors as gRPC statuses and back.

A status has a code and a text; the rest of an error (`ReplayError.to_map`) travels in the trailing metadata
`ERROR_KEY`, which clients of other makes may ignore. Inside grpclib that map is the `details` of a `GRPCError`.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import h2.exceptions
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from reverb_async.errors import (
    CheckpointError,
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ReplayError,
    ResourceExhausted,
    Unavailable,
    from_map,
)
from reverb_async.wire.codec import pack_map, unpack_map

ERROR_KEY = "reverb-async-error-bin"

MAX_MESSAGE_BYTES = 1000
MAX_DETAILS_BYTES = 3000
"""Both keep the trailers below the 8 KiB that every gRPC client accepts, percent and base64 encoding included."""

_STATUSES: list[tuple[type[ReplayError], Status]] = [
    (InvalidArgument, Status.INVALID_ARGUMENT),
    (NotFound, Status.NOT_FOUND),
    (DeadlineExceeded, Status.DEADLINE_EXCEEDED),
    (Unavailable, Status.UNAVAILABLE),
    (Closed, Status.FAILED_PRECONDITION),
    (ResourceExhausted, Status.RESOURCE_EXHAUSTED),
    (PermissionDenied, Status.PERMISSION_DENIED),
    (CheckpointError, Status.INTERNAL),
    (ReplayError, Status.UNKNOWN),
]

_ERRORS: dict[Status, type[ReplayError]] = {
    Status.INVALID_ARGUMENT: InvalidArgument,
    Status.OUT_OF_RANGE: InvalidArgument,
    Status.NOT_FOUND: NotFound,
    Status.DEADLINE_EXCEEDED: DeadlineExceeded,
    Status.UNAVAILABLE: Unavailable,
    Status.ABORTED: Unavailable,
    Status.CANCELLED: Unavailable,
    Status.FAILED_PRECONDITION: Closed,
    Status.RESOURCE_EXHAUSTED: ResourceExhausted,
    Status.PERMISSION_DENIED: PermissionDenied,
    Status.UNAUTHENTICATED: PermissionDenied,
}


TRANSPORT_ERRORS = (GRPCError, StreamTerminatedError, h2.exceptions.ProtocolError, OSError)
"""What grpclib, h2 and sockets raise when a call or its connection fails; `from_grpc_error` translates it."""


class Silence(str):
    """The reason for giving a connection up on which nothing was heard; it makes `Unavailable.after_silence`."""


def to_grpc_error(error: ReplayError) -> GRPCError:
    """Return the status that tells a gRPC client of `error`; its details are the error's map."""
    status = next(status for kind, status in _STATUSES if isinstance(error, kind))
    return GRPCError(status, shortened(str(error)), error.to_map())


def pack_details(details: dict[str, Any]) -> bytes:
    """Encode an error's map for the metadata; one that is too long keeps its type and the start of its message."""
    with suppress(InvalidArgument):  # somebody's string is no valid Unicode
        packed = pack_map(details)
        if len(packed) <= MAX_DETAILS_BYTES:
            return packed
    kind = (
        "NotFound" if details.get("type") == "TableNotFound" else details.get("type")
    )  # it cannot do without its tables
    return pack_map({"type": kind, "message": shortened(str(details.get("message")))})


def unpack_details(packed: object) -> dict[str, Any] | None:
    """Decode an error's map; None if it is not one, for a status alone will do."""
    if not isinstance(packed, bytes):
        return None
    try:
        details = unpack_map(packed)
    except InvalidArgument:
        return None
    return details if isinstance(details.get("tables", []), list) else None


def from_grpc_error(error: Exception, address: str) -> ReplayError:
    """Return the error a user is to see instead of one of grpclib, h2 or the socket; `address` is the server's."""
    if isinstance(error, GRPCError):
        if isinstance(error.details, dict):
            return from_map(error.details)
        kind = _ERRORS.get(error.status, ReplayError)
        if kind is Unavailable or kind is ReplayError:
            return kind(f"{address}: {error.status.name}: {error.message or 'no message'}")
        return kind(error.message or f"{address}: {error.status.name}")
    cause = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return PermissionDenied(
            f"the certificate of {address} is not trusted: {error.verify_message}; ClientTLS(ca=) names who signed it, "
            "server_name= the name in it"
        )
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return Unavailable(f"{address} does not speak TLS, which Client(tls=) asks for: {cause}")
    if isinstance(error, TimeoutError) and error.errno is None:  # not a socket's: somebody's deadline
        return DeadlineExceeded(f"{address} did not answer in time")
    if isinstance(error, StreamTerminatedError | h2.exceptions.ProtocolError):
        lost = Unavailable(f"the connection to {address} was lost: {cause}")
        lost.after_silence = isinstance(error.args[0] if error.args else None, Silence)
        return lost
    return Unavailable(f"cannot reach {address}: {cause}")


def cause_of(error: Exception) -> Exception | None:
    """Return what a user is to see as the cause of the translated error; nothing if the server described it."""
    return None if isinstance(error, GRPCError) and isinstance(error.details, dict) else error


@contextmanager
def errors_as_status() -> Iterator[None]:
    """Let errors leave a server's handler as gRPC statuses.

    What is neither `ReplayError` nor `TimeoutError` is a bug and goes on as it is.
    """
    try:
        yield
    except ReplayError as error:
        raise to_grpc_error(error) from error
    except TimeoutError as error:
        raise to_grpc_error(DeadlineExceeded(str(error) or "the call did not finish in time")) from error


@contextmanager
def status_as_errors(address: str) -> Iterator[None]:
    """Let gRPC statuses and failures of the connection to `address` leave a client as `ReplayError`."""
    try:
        yield
    except ReplayError:
        raise
    except TRANSPORT_ERRORS as error:
        raise from_grpc_error(error, address) from cause_of(error)


def shortened(text: str) -> str:
    """Return a status's text, cut off where it would be too long for the trailers."""
    encoded = text.encode(errors="replace")
    return encoded[:MAX_MESSAGE_BYTES].decode(errors="ignore") + ("..." if len(encoded) > MAX_MESSAGE_BYTES else "")
