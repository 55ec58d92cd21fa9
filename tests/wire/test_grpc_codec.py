"""The codec grpclib calls."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.errors import InvalidArgument
from reverb_async.protocol.message import Message
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.grpc_codec import GrpcCodec
from reverb_async.wire.status import status_as_errors

kinds = st.sampled_from(
    [v1.Frame, v1.HelloRequest, v1.MutatePrioritiesRequest, v1.ServerInfoResponse, v1.TableInfo, v1.HelloResponse]
)


def test_frames_are_messages():
    codec = GrpcCodec()
    data = codec.encode(Message({"a": 1}, [np.arange(3)]), v1.Frame)
    decoded = codec.decode(data, v1.Frame)
    assert decoded.header == {"a": 1}
    assert not decoded.buffers[0].flags.writeable
    assert GrpcCodec(owned=True).decode(data, v1.Frame).buffers[0].flags.writeable


def test_everything_else_is_a_generated_message():
    codec = GrpcCodec()
    request = v1.MutatePrioritiesRequest(table="t", update_keys=[1, 2**64 - 1], update_priorities=[0.5, 2.0])
    assert codec.decode(codec.encode(request, type(request)), type(request)) == request


@given(kinds, st.binary(max_size=60))
def test_malformed_bytes_are_an_invalid_argument(kind, data):
    with contextlib.suppress(InvalidArgument), status_as_errors("the peer"):
        GrpcCodec().decode(data, kind)


@pytest.mark.parametrize("data", [b"\x0a\x05abc", b"\x08", b"\x0a\x01\xff", b"\x12\x03\x80", b"\x0c", b"\x1a\x02\x00"])
def test_truncated_requests_are_an_invalid_argument(data):
    with pytest.raises(GRPCError) as caught:
        GrpcCodec().decode(data, v1.MutatePrioritiesRequest)
    assert caught.value.status is Status.INVALID_ARGUMENT
