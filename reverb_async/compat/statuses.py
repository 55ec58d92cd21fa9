"""What clients of `deepmind.reverb.ReverbService` are told when a call fails: they compare codes, and some texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from numpy.typing import NDArray

from reverb_async.errors import DeadlineExceeded, InvalidArgument, ReplayError, TableClosed, TableNotFound
from reverb_async.table import Table
from reverb_async.wire.status import shortened, to_grpc_error

TIMEOUT = "Rate Limiter: Timeout exceeded before the right to insert was acquired."
"""Clients end a sequence quietly when a sample fails with this text, and with any other raise an error."""
CANCELLED = "RateLimiter has been cancelled"
NO_CHECKPOINTER = "no Checkpointer configured for the replay service."


class CallRefused(ReplayError):
    """A call is refused with a status of its own.

    Attributes:
        status: the status.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


def missing_chunk(key: int) -> CallRefused:
    """Return the error of an item that shows a chunk its stream does not hold."""
    return CallRefused(Status.INTERNAL, f"Could not find sequence chunk {key}.")


def check_priorities(table: Table, priorities: NDArray[np.float64]) -> None:
    """Refuse priorities that the table does not take, in the words of DeepMind's server where it has some.

    Raises:
        InvalidArgument: one is wrong. So is NaN, which would ask for the highest priority in the table so far.
    """
    if bool(np.isnan(priorities).any()):
        raise InvalidArgument("Priority must not be NaN.")
    try:
        table.state.check_priorities(priorities)
    except InvalidArgument as error:
        if bool(np.isfinite(priorities).all()):
            raise InvalidArgument(f"Priority must not be negative. {error}") from error
        raise


def to_status(error: ReplayError) -> GRPCError:
    """Return the status that tells a client of `error`."""
    if isinstance(error, CallRefused):
        return GRPCError(error.status, shortened(str(error)))
    if isinstance(error, TableNotFound):
        return GRPCError(Status.NOT_FOUND, shortened(f"Priority table {error.name} was not found"))
    if isinstance(error, TableClosed):
        # UNAVAILABLE would be truer, but clients retry that silently for ever; this is what DeepMind's server says.
        return GRPCError(Status.CANCELLED, CANCELLED)
    if isinstance(error, DeadlineExceeded):
        return GRPCError(Status.DEADLINE_EXCEEDED, TIMEOUT)
    known = to_grpc_error(error)
    return GRPCError(known.status, known.message)


@contextmanager
def errors_as_status() -> Iterator[None]:
    """Let errors leave a handler as the statuses DeepMind's clients know."""
    try:
        yield
    except ReplayError as error:
        raise to_status(error) from error
