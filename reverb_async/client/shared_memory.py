"""A client's access to the memory of a server on the same host: whether it has any, and if not, why."""

from __future__ import annotations

import logging
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.control_page import PAGE_BYTES, ControlView
from reverb_async.protocol.hello import MemoryOffer
from reverb_async.protocol.lending import LentStore
from reverb_async.protocol.same_host import map_memory, obstacle

logger = logging.getLogger("reverb_async")

_POOLED_BUFFERS = 64
_POOLED_BYTES = 512 << 20


class SharedMemory:
    """What a client knows of its server's memory; told anew with every hello.

    Args:
        enabled: whether the client's owner wants it used where it can be.

    Attributes:
        page: the server's control page; None: batches travel over the wire.
        why_not: why that is so, once that is known.
        pool: where batches are copied to.
        num_borrowers: streams that copy batches now.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self.page: ControlView | None = None
        self.why_not: str | None = None
        self.pool = BufferPool(_POOLED_BUFFERS, _POOLED_BYTES)
        self.num_borrowers = 0
        self._offer: MemoryOffer | None = None
        # Streams share them: the first look at a page through a mapping costs a fault.
        self._stores: WeakValueDictionary[tuple[int, int], NDArray[np.uint8]] = WeakValueDictionary()

    def learn(self, offer: MemoryOffer | None) -> None:
        """Take note of what a server offers, and look whether it is there; what fails means the wire, not an error."""
        if not self._enabled or (offer is not None and offer == self._offer):
            return
        self._offer, self.page = offer, None
        self.why_not = obstacle(offer)
        if offer is None or self.why_not is not None:
            return
        try:
            page = ControlView(map_memory(offer.pid, offer.fd, PAGE_BYTES))
        except OSError as error:
            self.why_not = f"the server's memory cannot be opened: {error.strerror or error}"
            return
        if page.token != offer.token:
            self.why_not = "what is in the place of the server's memory is not it"
            return
        self.page = page

    def map(self, store: LentStore, page: ControlView) -> NDArray[np.uint8] | None:
        """Map a store, read-only; None if that fails: then nothing is shared with this server any more.

        None, too, if `page`, the control page of the server that declared it, is not that of the present server.

        The mapping lasts as long as what is returned, however many streams it is returned to. While it lasts, no other
        file gets its inode.
        """
        if page is not self.page or self._offer is None:
            return None  # Process and descriptor numbers are the present server's, and this one's will soon be gone.
        mapped = self._stores.get((store.inode, store.nbytes))
        if mapped is not None:
            return mapped
        try:
            mapped = map_memory(self._offer.pid, store.fd, store.nbytes, store.inode)
            self._stores[store.inode, store.nbytes] = mapped
            return mapped
        except (OSError, ValueError, OverflowError) as error:
            self.page = None
            self.why_not = (
                f"a store of {store.nbytes} bytes cannot be mapped: {getattr(error, 'strerror', None) or error}"
            )
            logger.warning("sampling goes over the wire from now on: %s", self.why_not)
            return None

    def describe(self, transport: str) -> str:
        """Return a transport's name with what is added to it here."""
        if self.page is not None:
            return f"{transport} + shared memory"
        return transport if self.why_not is None else f"{transport} (no shared memory: {self.why_not})"


def check_shared_memory(shared_memory: object) -> None:
    """Refuse what is neither ``"auto"`` nor False."""
    if shared_memory is not False and shared_memory != "auto":
        raise InvalidArgument(
            f"shared_memory is 'auto', which uses it where it can be, or False, got {shared_memory!r:.60}"
        )
