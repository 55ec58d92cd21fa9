"""The first words between client and server."""

from __future__ import annotations

from dataclasses import dataclass

PROTOCOL_VERSION = 1

KEYS_PER_BLOCK = 1 << 20
"""Keys are ``shard (11 bits) | block (32) | counter (20)``; servers grant blocks, clients count within them."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A server's answer to a client that introduced itself.

    Attributes:
        protocol_version: the version both speak.
        features: optional parts of the protocol the server knows.
        server_epoch: 16 bytes, new with every start of the server.
        key_block: first of `KEYS_PER_BLOCK` consecutive keys that nobody else was granted.
        max_message_bytes: the server refuses larger messages.
    """

    protocol_version: int
    features: tuple[str, ...]
    server_epoch: bytes
    key_block: int
    max_message_bytes: int
