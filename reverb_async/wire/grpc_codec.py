"""The codec grpclib calls: streams of `Frame` carry `Message`s, everything else is a generated class."""

from __future__ import annotations

import struct
from typing import Any

from grpclib.encoding.base import CodecBase

from reverb_async.errors import InvalidArgument
from reverb_async.protocol.message import Message
from reverb_async.wire.codec import Body, Encoded, check_fields, decode, encode
from reverb_async.wire.generated.reverb_async.v1 import Frame
from reverb_async.wire.status import to_grpc_error

_MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    NotImplementedError,
    OverflowError,
    struct.error,
)
"""What betterproto2 raises on bytes that are no message."""


class GrpcCodec(CodecBase):
    """Encodes and decodes by message type.

    Args:
        owned: received buffers are writable, aligned copies instead of read-only views of what was received.
    """

    __content_subtype__ = "proto"

    def __init__(self, *, owned: bool = False) -> None:
        self._owned = owned

    def encode(self, message: Any, message_type: Any) -> bytes:
        """Return the bytes of a `Message` or of a generated message.

        Raises:
            InvalidArgument: a string in it cannot be encoded as UTF-8.
        """
        if type(message) is Message:
            return encode(message).join()
        try:
            return bytes(message)
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"{error.object!r:.80} is no valid Unicode: {error.reason}") from error

    def decode(self, data: Body, message_type: Any) -> Any:
        """Return a `Message` where `message_type` is `Frame`, else a message of that type.

        Raises:
            GRPCError: INVALID_ARGUMENT, `data` is malformed.
        """
        try:
            if message_type is Frame:
                return decode(data, owned=self._owned)
            data = bytes(data)
            check_fields(data)  # The generated classes would take a message that is cut off for a shorter one.
            return message_type.parse(data)
        except InvalidArgument as error:
            raise to_grpc_error(error) from error
        except _MALFORMED as error:
            refusal = InvalidArgument(f"malformed {message_type.__name__}: {str(error) or type(error).__name__}")
            raise to_grpc_error(refusal) from error


def encode_chunks(codec: CodecBase, message: Any, message_type: Any) -> Encoded:
    """Encode with a codec, a `Message` without a copy of its buffers."""
    if type(message) is Message and isinstance(codec, GrpcCodec):
        return encode(message)
    body = codec.encode(message, message_type)
    return Encoded([body], len(body))


def decode_body(codec: CodecBase, body: Body, message_type: Any) -> Any:
    """Decode a received body with a codec; ours takes its memory over."""
    if isinstance(codec, GrpcCodec):
        return codec.decode(body, message_type)
    return codec.decode(bytes(body), message_type)
