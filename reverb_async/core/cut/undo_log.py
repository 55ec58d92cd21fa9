"""Images of slots as they were, in the order in which they were taken."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CHUNK = 65_536
"""Images per piece of memory, which is taken page by page as they come. To read them back each piece is looked at."""
_MANY = 4096
"""As many at once are kept as they come."""


class UndoLog:
    """Grows without moving what it holds.

    Args:
        dtype: of the images.
    """

    def __init__(self, dtype: np.dtype[np.void]) -> None:
        self._dtype = dtype
        self._starts: list[int] = []
        self._pieces: list[NDArray[np.void]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, images: NDArray[np.void]) -> None:
        """Add images; the caller does not change them any more."""
        if len(images) >= _MANY:
            self._starts.append(self._size)
            self._pieces.append(images)
            self._size += len(images)
            return
        done = 0
        while done < len(images):
            used = self._size - self._starts[-1] if self._pieces else _CHUNK
            if used >= len(self._pieces[-1] if self._pieces else ()):
                self._starts.append(self._size)
                self._pieces.append(np.empty(_CHUNK, self._dtype))
                used = 0
            part = images[done : done + _CHUNK - used]
            self._pieces[-1][used : used + len(part)] = part
            self._size += len(part)
            done += len(part)

    def fill(self, target: NDArray[np.void], positions: NDArray[np.intp], entries: NDArray[np.int64]) -> None:
        """Write image ``entries[i]`` to ``target[positions[i]]``."""
        order = entries.argsort()
        positions, entries = positions[order], entries[order]
        cuts = entries.searchsorted([*self._starts, self._size]).tolist()
        for piece, start, first, stop in zip(self._pieces, self._starts, cuts[:-1], cuts[1:], strict=True):
            if first < stop:
                target[positions[first:stop]] = piece[entries[first:stop] - start]
