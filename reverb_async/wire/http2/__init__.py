"""The HTTP/2 path: grpclib's server and channel with the bounds and speed replay needs.

This package alone touches private names of grpclib and h2; `pyproject.toml` keeps their versions in tight ranges.
"""

from reverb_async.wire.http2.client import Call, ReplayChannel
from reverb_async.wire.http2.connection import MAX_MESSAGE_BYTES
from reverb_async.wire.http2.fast_stream import JOINED_BYTES
from reverb_async.wire.http2.guards import ConnectionStats, Guards, Stalled
from reverb_async.wire.http2.keepalive import SILENCE_S
from reverb_async.wire.http2.server import ReplayServer, abort_server_stream, peer_name, transport_of
from reverb_async.wire.http2.unary import BytesCall
from reverb_async.wire.http2.window import WindowBudget

__all__ = [
    "JOINED_BYTES",
    "MAX_MESSAGE_BYTES",
    "SILENCE_S",
    "BytesCall",
    "Call",
    "ConnectionStats",
    "Guards",
    "ReplayChannel",
    "ReplayServer",
    "Stalled",
    "WindowBudget",
    "abort_server_stream",
    "peer_name",
    "transport_of",
]
