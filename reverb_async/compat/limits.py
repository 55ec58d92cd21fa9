"""How much one message may say: a few hostile bytes would otherwise become hundreds once read."""

from __future__ import annotations

from reverb_async.errors import InvalidArgument

MAX_COLUMNS = 4096
"""Columns per item, and tensors per chunk: working them off takes some 15 us each."""

MAX_SLICES = 65_536
"""Slices per item."""

MAX_KEYS = 1 << 20
"""Keys to keep, to confirm, to update, or to delete, per message."""

MAX_SINGLE_UPDATES = 1 << 16
"""Updates per message that are not just a key and a priority; two hostile bytes can make one, and stall the server."""

MAX_PARTS = 1 << 21
"""Chunks, tensors, items and slices per message."""

_FREE_PARTS = 1 << 14
_BYTES_PER_PART = 12


class PartCounter:
    """Counts the parts of a message, which its size limits: honest ones take 17 bytes and more, as keys are random."""

    def __init__(self, nbytes: int) -> None:
        self._limit = min(_FREE_PARTS + nbytes // _BYTES_PER_PART, MAX_PARTS)
        self._left = self._limit

    def add(self, count: int) -> None:
        """Count chunks, tensors, items or slices.

        Raises:
            InvalidArgument: there are too many for the size of the message.
        """
        self._left -= count
        if self._left < 0:
            raise InvalidArgument(
                f"the message has more than {self._limit} chunks, tensors, items and slices, too many for its size"
            )
