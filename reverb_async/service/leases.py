"""Leases: rows that clients on this host may copy by themselves, pinned until they have, within bounds."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from reverb_async.core.storage.backing import physical_memory
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.control_page import LEASE_SLOTS, ControlPage
from reverb_async.protocol.hello import MemoryOffer
from reverb_async.protocol.lending import MAX_LENT_BYTES
from reverb_async.protocol.same_host import host_mark, pid_namespace

MAX_LEASED_BYTES = min(MAX_LENT_BYTES, physical_memory() >> 3)
"""What all leases of a server may pin together: four batches of 256 items of 1 MB. It costs memory only as far as the
items have left their tables meanwhile. A batch that does not fit any more travels over the wire."""

PATIENCE_S = 1.0
"""When others need the bytes, leases that have lasted longer are revoked. An honest client copies within milliseconds;
without patience, learners that need more than the bound together would take each other's batches away all the time."""

MAX_AGE_S = 30.0
"""Older leases are revoked in any case."""

SWITCH = "REVERB_ASYNC_SHARED_MEMORY"
"""This environment variable of the server switches lending off when it is "off"."""

_STEP_LEASES = 64
"""Revoked in one synchronous step at most."""


class Pinnable(Protocol):
    """Rows that can be held; see `core.gather.GatherPlan`."""

    def pin(self) -> None:
        """Keep the rows from being reused."""

    def unpin(self) -> None:
        """Let go of them."""


class Lease:
    """Pinned rows and the word in the control page that says so.

    Attributes:
        slot: the word's place.
        id: its value while the lease holds.
        nbytes: of the rows.
        granted_at: on the monotonic clock.
    """

    __slots__ = ("_pinned", "granted_at", "id", "nbytes", "slot")

    def __init__(self, slot: int, id: int, pinned: Pinnable, nbytes: int, granted_at: float) -> None:
        self.slot = slot
        self.id = id
        self.nbytes = nbytes
        self.granted_at = granted_at
        self._pinned: Pinnable | None = pinned

    @property
    def holds(self) -> bool:
        """Whether it was neither ended nor revoked."""
        return self._pinned is not None

    def release(self) -> None:
        """Let go of the rows."""
        assert self._pinned is not None
        pinned, self._pinned = self._pinned, None
        pinned.unpin()


class Leases:
    """All leases of one server.

    Args:
        page: the control page; None: nothing can be lent.
        max_bytes: what leases may pin together.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        page: ControlPage | None = None,
        *,
        max_bytes: int = MAX_LEASED_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._page = page
        self._max_bytes = max_bytes
        self._clock = clock
        self._leases: dict[int, Lease] = {}
        """By id, the oldest first."""
        self._free = deque(range(LEASE_SLOTS))
        self._last_id = 0
        self.leased_bytes = 0
        self.num_granted = 0
        self.num_revoked = 0

    @classmethod
    def of_this_process(cls) -> Leases:
        """Return leases that can be granted if this platform lets other processes map our memory.

        Raises:
            InvalidArgument: the environment variable `REVERB_ASYNC_SHARED_MEMORY` has a value that means nothing.
        """
        switch = os.environ.get(SWITCH, "")
        if switch not in ("", "auto", "off"):
            raise InvalidArgument(f"the environment variable {SWITCH} is 'off', 'auto' or not set, got {switch!r:.60}")
        page = ControlPage() if switch != "off" else None
        return cls(page if page is not None and page.fd is not None else None)

    def __len__(self) -> int:
        return len(self._leases)

    def offer(self) -> MemoryOffer | None:
        """Return what a client must know to find the control page; None if there is nothing to find."""
        page = self._page
        if page is None or page.fd is None:
            return None
        try:
            mark = host_mark(page.token)
        except OSError:
            return None
        return MemoryOffer(os.getpid(), pid_namespace(), os.geteuid(), mark, page.fd, page.token)

    def is_secret(self, secret: bytes) -> bool:
        """Whether this is what stands in the control page: who knows it can map our memory."""
        return self._page is not None and secret == self._page.secret

    def grant(self, pinnable: Pinnable, nbytes: int) -> Lease | None:
        """Pin rows of `nbytes` bytes and note the lease in the control page; None if that would pass a bound."""
        if self._page is None:
            return None
        if self.leased_bytes + nbytes > self._max_bytes or not self._free:
            self._revoke_older_than(PATIENCE_S)
            if self.leased_bytes + nbytes > self._max_bytes or not self._free:
                return None
        pinnable.pin()
        self._last_id += 1
        lease = Lease(self._free.popleft(), self._last_id, pinnable, nbytes, self._clock())
        self._leases[lease.id] = lease
        self.leased_bytes += nbytes
        self.num_granted += 1
        self._page.set(lease.slot, lease.id)
        return lease

    def end(self, lease: Lease) -> None:
        """End a lease, unless it was revoked: first the control page says so, then the rows are free to go."""
        if not lease.holds:
            return
        assert self._page is not None
        self._page.clear(lease.slot)
        del self._leases[lease.id]
        self._free.append(lease.slot)
        self.leased_bytes -= lease.nbytes
        lease.release()

    def expire(self) -> bool:
        """Revoke leases that are too old, some at a time; return whether there are more. Cheap when there are none."""
        return self._revoke_older_than(MAX_AGE_S)

    def _revoke_older_than(self, age: float) -> bool:
        horizon = self._clock() - age
        for _ in range(_STEP_LEASES):
            oldest = next(iter(self._leases.values()), None)
            if oldest is None or oldest.granted_at > horizon:
                return False
            self._revoke(oldest)
        return True

    def _revoke(self, lease: Lease) -> None:
        self.end(lease)
        self.num_revoked += 1
