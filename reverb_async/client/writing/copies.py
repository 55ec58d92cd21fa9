"""Copies of callers' arrays, which may change as soon as a call waits."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.buffer_pool import BufferPool

MAX_COPY_BYTES = 4 << 20
"""Longer copies are made in slices, between which others have their turn."""


class Copies:
    """Makes copies; the memory of long ones is used again when nothing needs them any more."""

    def __init__(self) -> None:
        self._pool = BufferPool()

    async def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a C-contiguous copy; at once if it has up to 4 MB or is not contiguous itself."""
        if array.nbytes <= MAX_COPY_BYTES or not array.flags.c_contiguous:
            return np.array(array, order="C")
        copy = self._pool.take(array.nbytes).view(array.dtype).reshape(array.shape)
        source, target, step = array.reshape(-1), copy.reshape(-1), max(1, MAX_COPY_BYTES // array.itemsize)
        for start in range(0, array.size, step):
            target[start : start + step] = source[start : start + step]
            await asyncio.sleep(0)
        return copy
