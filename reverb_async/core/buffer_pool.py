"""Memory that is used again once nobody looks at it any more.

Fresh pages cost five times what a copy into warm ones does, so large arrays that come and go (received messages,
gathered batches) take their memory from here.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.storage.backing import ALIGNMENT, address_of

_SMALL_BYTES = 128 << 10
"""Up to here the allocator keeps its memory warm by itself."""


class BufferPool:
    """Hands out uninitialised byte arrays; one is used again when no view of it is left anywhere.

    Whoever keeps a view keeps its memory: the pool only ever remembers a few arrays, and forgets the oldest when all
    of them are in use. It belongs to one thread.

    Args:
        max_buffers: arrays remembered.
        max_bytes: their size, all together.
    """

    def __init__(self, max_buffers: int = 16, max_bytes: int = 128 << 20) -> None:
        self._max_buffers = max_buffers
        self._max_bytes = max_bytes
        self._rooms: list[NDArray[np.uint8]] = []
        self._nbytes = 0

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return writable, 64-byte aligned uint8 ``[size]`` that nobody else has a view of."""
        if size <= _SMALL_BYTES or size > self._max_bytes:
            return _aligned(_room(size), size)
        rooms = self._rooms
        for at in range(len(rooms)):
            if size + ALIGNMENT <= rooms[at].size <= 2 * size + ALIGNMENT and sys.getrefcount(rooms[at]) == _UNUSED:
                rooms.append(rooms.pop(at))  # The one used longest ago is looked at first, and forgotten first.
                return _aligned(rooms[-1], size)
        while rooms and (len(rooms) >= self._max_buffers or self._nbytes + size > self._max_bytes):
            self._nbytes -= rooms.pop(0).size
        rooms.append(_room(size))
        self._nbytes += rooms[-1].size
        return _aligned(rooms[-1], size)

    def clear(self) -> None:
        """Forget all arrays; those that are in use stay with their users."""
        self._rooms.clear()
        self._nbytes = 0


def _room(size: int) -> NDArray[np.uint8]:
    return np.empty(size + ALIGNMENT, np.uint8)


def _aligned(room: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    # A slice, and every view of it, refers to the array that owns the memory, and to nothing in between.
    start = -address_of(room) % ALIGNMENT
    return room[start : start + size]


def _count_unused() -> int:
    """Return what `sys.getrefcount` says of an array that only a list holds, when asked the way `take` asks."""
    rooms = [_room(1)]
    at = 0
    return sys.getrefcount(rooms[at])


_UNUSED = _count_unused()
