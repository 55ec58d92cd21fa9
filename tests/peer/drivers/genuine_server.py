"""DeepMind's server, the yardstick: as `reverb_server --config` makes it, but with signatures."""

from __future__ import annotations

import os
from typing import Any

import reverb
from google.protobuf import text_format
from reverb.server_executable import reverb_config_pb2, server_from_proto
from tensorflow.python.saved_model import nested_structure_coder

from benchmarks.peers import dm_reverb_server

_serving: list[reverb.Server] = []


def enter() -> int:
    """Make the network namespace that this process was started in usable; return the process's number."""
    dm_reverb_server.bring_up_loopback()
    return os.getpid()


def serve(config: str) -> str:
    """Start a server; return its address. The one before is stopped."""
    stop()
    parsed = text_format.Parse(config, reverb_config_pb2.ReverbServerConfig())
    tables = server_from_proto.tables_from_proto(parsed.tables)
    _serving.append(reverb.Server([_signed(*pair) for pair in zip(tables, parsed.tables, strict=True)]))
    return f"localhost:{_serving[0].port}"


def stop() -> None:
    """Stop the server, if there is one."""
    while _serving:
        _serving.pop().stop()


def _signed(table: reverb.Table, described: Any) -> reverb.Table:
    if not described.HasField("signature"):
        return table
    return table.replace(signature=nested_structure_coder.decode_proto(described.signature))
