"""Errors as statuses and back."""

from __future__ import annotations

import asyncio
import inspect

import h2.exceptions
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.metadata import encode_bin_value, encode_grpc_message

from reverb_async import errors
from reverb_async.errors import DeadlineExceeded, InvalidArgument, ReplayError, TableNotFound, Unavailable
from reverb_async.wire.status import (
    errors_as_status,
    from_grpc_error,
    pack_details,
    status_as_errors,
    to_grpc_error,
    unpack_details,
)

kinds = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, ReplayError) and kind is not TableNotFound
]


def sent(error: GRPCError) -> GRPCError:
    """Return the error as it comes out of the trailers on the other side."""
    return GRPCError(error.status, error.message, unpack_details(pack_details(error.details)))


@pytest.mark.parametrize("kind", kinds)
def test_every_error_comes_back_as_it_was(kind):
    arrived = from_grpc_error(sent(to_grpc_error(kind("what went wrong"))), "host:1")
    assert type(arrived) is kind
    assert str(arrived) == "what went wrong"


def test_table_not_found_keeps_its_tables():
    arrived = from_grpc_error(sent(to_grpc_error(TableNotFound("x", ["b", "a"]))), "host:1")
    assert isinstance(arrived, TableNotFound)
    assert (arrived.name, arrived.tables) == ("x", ["a", "b"])


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.SignatureMismatch, Status.INVALID_ARGUMENT),
        (errors.ItemNotFound, Status.NOT_FOUND),
        (errors.RateLimiterTimeout, Status.DEADLINE_EXCEEDED),
        (errors.TableClosed, Status.UNAVAILABLE),
        (errors.ResourceExhausted, Status.RESOURCE_EXHAUSTED),
        (errors.PermissionDenied, Status.PERMISSION_DENIED),
        (errors.CheckpointError, Status.INTERNAL),
    ],
)
def test_other_clients_see_a_fitting_status(kind, status):
    error = to_grpc_error(kind("text"))
    assert (error.status, error.message) == (status, "text")


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_a_status_without_details_becomes_an_error_of_ours(status):
    error = from_grpc_error(GRPCError(status, "text"), "host:1")
    assert isinstance(error, ReplayError)
    assert "text" in str(error)
    assert str(from_grpc_error(GRPCError(status), "host:1"))


@pytest.mark.parametrize("letter", ["x", "é", "🙂", "\udcff"])
def test_long_errors_are_shortened_to_what_headers_can_hold(letter):
    for error in (InvalidArgument(letter * 5000), TableNotFound(letter, [f"{letter * 20}{n}" for n in range(999)])):
        grpc_error = to_grpc_error(error)
        packed = pack_details(grpc_error.details)
        assert len(encode_grpc_message(grpc_error.message)) + len(encode_bin_value(packed)) < 7500
        arrived = from_grpc_error(sent(grpc_error), "host:1")
        assert isinstance(arrived, type(error).__mro__[1])
        assert str(arrived)


@pytest.mark.parametrize("packed", [None, "text", b"", b"\xc1", b"\x90", b"\x81\xa6tables\x01"])
def test_details_that_are_none_are_ignored(packed):
    assert unpack_details(packed) is None


def test_handlers_let_errors_go_as_statuses():
    with pytest.raises(GRPCError) as caught, errors_as_status():
        raise TableNotFound("x", ["a"])
    assert caught.value.status is Status.NOT_FOUND
    with pytest.raises(GRPCError) as caught, errors_as_status():
        raise TimeoutError
    assert caught.value.status is Status.DEADLINE_EXCEEDED
    with pytest.raises(ZeroDivisionError), errors_as_status():
        raise ZeroDivisionError
    with pytest.raises(asyncio.CancelledError), errors_as_status():
        raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (GRPCError(Status.NOT_FOUND, "text"), errors.NotFound),
        (StreamTerminatedError("Connection lost"), Unavailable),
        (h2.exceptions.StreamClosedError(1), Unavailable),
        (ConnectionRefusedError(111, "refused"), Unavailable),
        (FileNotFoundError(2, "no such socket"), Unavailable),
        (TimeoutError(110, "connect timed out"), Unavailable),
        (TimeoutError(), DeadlineExceeded),
        (InvalidArgument("mine"), InvalidArgument),
    ],
)
def test_clients_let_everything_go_as_errors_of_ours(error, kind):
    with pytest.raises(ReplayError) as caught, status_as_errors("host:1"):
        raise error
    assert type(caught.value) is kind
    if kind is Unavailable:
        assert "host:1" in str(caught.value)


def test_an_error_that_the_server_described_has_no_cause_in_the_transport():
    with pytest.raises(InvalidArgument) as caught, status_as_errors("host:1"):
        raise sent(to_grpc_error(InvalidArgument("mine")))
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None
    with pytest.raises(Unavailable) as caught, status_as_errors("host:1"):
        raise ConnectionRefusedError(111, "refused")
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
