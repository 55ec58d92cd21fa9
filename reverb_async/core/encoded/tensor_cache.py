"""Tensors of chunks, decoded when they are read; the last ones are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.dtypes import check_values
from reverb_async.errors import InvalidArgument

Tensor: TypeAlias = NDArray[Any] | list[bytes]
"""Rows: ``[rows, *row_shape]``, or one text or bytes value each."""

Decode: TypeAlias = Callable[[memoryview, int], Tensor]
"""Decodes one tensor of a chunk; raises `InvalidArgument` if that is damaged."""

TENSOR_BITS = 24
"""A chunk has at most 2**24 tensors: a key is ``ordinal << 24 | tensor``, with the chunk's ordinal number."""

_ENTRY_BYTES = 384
_VALUE_BYTES = 48
"""What an entry of the cache and a value of a list cost beside their bytes."""

_LOCKED_KEYS = 1024
"""Looked up before others get their turn."""


class DamagedChunks(InvalidArgument):
    """Chunks that items of a draw show cannot be decoded.

    Attributes:
        found: row and ordinal number of each; a row with another ordinal holds another chunk by now.
    """

    def __init__(self, found: Sequence[tuple[int, int]], reason: str) -> None:
        super().__init__(f"{len(found)} chunk{'s' * (len(found) > 1)} cannot be decoded: {reason}")
        self.found = list(found)


class TensorCache:
    """Decodes tensors and keeps those read last.

    Args:
        decode: see `Decode`; None until somebody sets it: then nothing can be decoded.
        max_bytes: what is kept at most.
        lock: held while the cache changes, so that several threads may read.

    Attributes:
        nbytes: what is kept.
    """

    def __init__(self, decode: Decode | None, max_bytes: int, lock: AbstractContextManager[object]) -> None:
        self.decode = decode
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, tuple[Tensor, int]] = OrderedDict()
        self._lock = lock
        self.nbytes = 0

    def missing(self, keys: Sequence[int]) -> list[int]:
        """Return which of `keys`, by position, would have to be decoded."""
        kept = self._kept
        return [at for at, key in enumerate(keys) if key not in kept]

    def get_all(self, keys: Sequence[int]) -> Iterator[Tensor | None]:
        """Yield tensors; None for those that are not kept."""
        kept = self._kept
        for start in range(0, len(keys), _LOCKED_KEYS):
            found: list[Tensor | None] = []
            with self._lock:
                for key in keys[start : start + _LOCKED_KEYS]:
                    entry = kept.get(key)
                    if entry is None:
                        found.append(None)
                    else:
                        kept.move_to_end(key)
                        found.append(entry[0])
            yield from found

    def add(self, key: int, message: memoryview) -> Tensor:
        """Decode a tensor of a chunk, and keep it in place of those read longest ago.

        Raises:
            InvalidArgument: it is damaged.
        """
        decode = self.decode
        if decode is None:
            raise RuntimeError("encoded items cannot be read natively: nobody said how to decode them")
        tensor = decode(message, key & (1 << TENSOR_BITS) - 1)
        if isinstance(tensor, np.ndarray):
            check_values(tensor, "a chunk's tensor")
            if tensor.base is not None and np.may_share_memory(tensor, np.frombuffer(message, np.uint8)):
                tensor = tensor.copy()  # the message is longer, and part of a buffer with others
        nbytes = size_of(tensor) + _ENTRY_BYTES
        if nbytes <= self._max_bytes:
            with self._lock:
                before = self._kept.pop(key, None)
                if before is not None:
                    self.nbytes -= before[1]
                self._kept[key] = (tensor, nbytes)
                self.nbytes += nbytes
                while self.nbytes > self._max_bytes:
                    self.nbytes -= self._kept.popitem(last=False)[1][1]
        return tensor

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0


def size_of(tensor: Tensor) -> int:
    """Return about how much memory a tensor takes."""
    if isinstance(tensor, np.ndarray):
        return tensor.nbytes
    return sum(map(len, tensor)) + _VALUE_BYTES * len(tensor)
