"""GOAWAY (RFC 9113 §6.8): how a server takes leave of its peers, and what a client makes of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial

from h2.connection import H2Connection
from h2.events import Event
from hyperframe.frame import Frame, GoAwayFrame

_GOAWAY, _PING = 7, 6
_FRAME = struct.Struct(">HBBBL")
_PARTING = b"go away!"
"""The PING behind the first GOAWAY: its answer comes after all that the peer sent before it knew."""

LAST_STREAM = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class GoingAway(Event):
    """The server takes no streams after `last_stream` on this connection; those before go on."""

    last_stream: int


def goaway_frame(last_stream: int) -> bytes:
    """Return a GOAWAY that blames nobody."""
    return _FRAME.pack(0, 8, _GOAWAY, 0, 0) + last_stream.to_bytes(4, "big") + bytes(4)


def ping_frame(data: bytes) -> bytes:
    """Return a PING with 8 bytes of data."""
    return _FRAME.pack(0, 8, _PING, 0, 0) + data


def parting_frames() -> bytes:
    """Return the first GOAWAY, which takes streams that are on their way, and the PING to be answered by the second."""
    return goaway_frame(LAST_STREAM) + ping_frame(_PARTING)


def is_parting(ping_data: bytes) -> bool:
    """Whether this is the PING of `parting_frames`."""
    return ping_data == _PARTING


def expect_goaway(h2_connection: H2Connection) -> None:
    """Have a client's connection live on after a GOAWAY without an error; h2 itself would end it at once."""
    h2_connection._frame_dispatch_table[GoAwayFrame] = partial(_receive, h2_connection)


def _receive(h2_connection: H2Connection, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
    if frame.error_code:
        return h2_connection._receive_goaway_frame(frame)
    return [], [GoingAway(frame.last_stream_id)]
