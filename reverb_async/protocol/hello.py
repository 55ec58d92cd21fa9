"""The first words between client and server."""

from __future__ import annotations

from dataclasses import dataclass

PROTOCOL_VERSION = 1

KEYS_PER_BLOCK = 1 << 20
"""Keys are ``shard (11 bits) | block (32) | counter (20)``; servers grant blocks, clients count within them."""


@dataclass(frozen=True, slots=True)
class MemoryOffer:
    """What a client needs to find the memory of a server on its own host, and to see that it is the right one.

    Attributes:
        pid: the server's process.
        pid_namespace: where that number means something; 0 if unknown.
        uid: the server's effective user.
        host: 16 bytes, told by the host's boot id and `token`: the same for all processes of a host until it restarts,
            and nothing for those of others.
        fd: the process's descriptor of the control page, see `protocol.control_page`.
        token: 16 random bytes that stand in that page, too.
    """

    pid: int
    pid_namespace: int
    uid: int
    host: bytes
    fd: int
    token: bytes


@dataclass(frozen=True, slots=True)
class Hello:
    """A server's answer to a client that introduced itself.

    Attributes:
        protocol_version: the version both speak.
        features: optional parts of the protocol the server knows.
        server_epoch: 16 bytes, new with every start of the server.
        key_block: first of `KEYS_PER_BLOCK` consecutive keys that nobody else was granted.
        max_message_bytes: the server refuses larger messages.
        memory: where clients on the server's host find its memory; None if it shares none.
    """

    protocol_version: int
    features: tuple[str, ...]
    server_epoch: bytes
    key_block: int
    max_message_bytes: int
    memory: MemoryOffer | None = None
