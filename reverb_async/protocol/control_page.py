"""The page through which a server tells the clients on its host which of their leases hold.

It begins with a token, which a client compares with the one it got in the server's hello, and a secret, which the
client sends back: it proves that the client really maps the page. From byte 64 on there is one uint64 word per lease
slot: the id of the lease that holds it, or 0. Ids are never used again.

The protocol between the two memories: the server sets the word to 0 *before* it lets go of the rows; the client copies
rows and reads the word *afterwards*. If it still is the lease's id, the rows were untouched while they were copied.
"""

from __future__ import annotations

import secrets
import threading

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.storage.backing import Backing, PlatformBacking

LEASE_SLOTS = 4096
"""Leases that may hold at a time."""

TOKEN_BYTES = 16
PAGE_BYTES = 64 + 8 * LEASE_SLOTS


class ControlPage:
    """The server's side.

    Args:
        backing: the kind of memory.

    Attributes:
        token: 16 random bytes, for the hello.
        secret: 16 random bytes that only processes which map the page can know.
        fd: its descriptor; None where other processes cannot map memory.
    """

    def __init__(self, backing: type[Backing] = PlatformBacking) -> None:
        self._backing = backing(PAGE_BYTES)
        self.token, self.secret = secrets.token_bytes(TOKEN_BYTES), secrets.token_bytes(TOKEN_BYTES)
        memory = self._backing.array
        memory[: 2 * TOKEN_BYTES] = np.frombuffer(self.token + self.secret, np.uint8)
        self._words = _words(memory)
        self.fd = self._backing.fd

    def set(self, slot: int, lease: int) -> None:
        """Say that a lease holds."""
        self._words[slot] = lease

    def clear(self, slot: int) -> None:
        """Say that none does; whoever reads the word after this, on whatever processor, knows."""
        self._words[slot] = 0
        _fence()


class ControlView:
    """The client's side.

    Args:
        memory: uint8 ``[PAGE_BYTES]``, the mapped page.
    """

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self.token = memory[:TOKEN_BYTES].tobytes()
        self.secret = memory[TOKEN_BYTES : 2 * TOKEN_BYTES].tobytes()
        self._words = _words(memory)

    def holds(self, slot: int, lease: int) -> bool:
        """Whether a lease still holds, and held whenever memory was read before this call."""
        _fence()
        return bool(self._words[slot] == lease)


def _words(memory: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ndarray((LEASE_SLOTS,), np.uint64, memory, 64)


_first, _second = threading.Lock(), threading.Lock()


def _fence() -> None:
    """Keep memory accesses before this from being exchanged with those after it.

    x86 does not exchange them anyway; ARM may. What stands before a lock is taken may sink into the locked part, what
    stands behind it may rise into it, but neither passes the end of one lock and the beginning of the next.
    """
    with _first:
        pass
    with _second:
        pass
