"""What happens when a server's memory is full: who waits, who is woken, who is refused in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from reverb_async.alarms import Alarms
from reverb_async.core.storage.account import Account
from reverb_async.errors import ResourceExhausted
from reverb_async.limits import Limits, in_words
from reverb_async.waiting import Deadline, make_condition, reported

if TYPE_CHECKING:
    from reverb_async.table.table import Table

_FAIL_AGAIN_S = 0.05
_FAIL_SHARE = 8
"""Of those who have waited too long an eighth is refused at a time: what they held may be enough for the others."""


class Patient(Protocol):
    """Who waits for memory.

    Attributes:
        since: since when, on the event loop's clock.
    """

    since: float

    def give_up(self, error: ResourceExhausted) -> None:
        """End the wait with an error."""


class Queue(Protocol):
    """Where inserts wait for a table."""

    def wake(self) -> None:
        """Let the head look again."""

    def waiting_for_memory(self) -> Iterator[Patient]:
        """Yield those whom nothing but memory holds up."""


class TableQueue:
    """The queue of a table, as that of those who wait for memory."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def wake(self) -> None:
        """Let the head look again."""
        self._table.inserters.wake()

    def waiting_for_memory(self) -> Iterator[Patient]:
        """Yield the inserts that nothing but memory holds up."""
        if len(self._table.inserters) and self._table.state.waits_for_memory:
            yield from self._table.inserters


class Memory(Account):
    """The account of a server, its bounds, and who waits for them.

    Args:
        limits: the server's.
        alarms: the server's.

    Attributes:
        num_refused: how often somebody was refused because memory stayed full.
        num_writers: streams that may insert.
    """

    def __init__(self, limits: Limits, alarms: Alarms) -> None:
        super().__init__()
        self.limits = limits
        self._alarms = alarms
        if limits.stored_bytes is not None:
            self.stage_below = limits.stored_bytes
            self.grow_below = limits.stored_bytes - limits.staged_bytes
        self.num_refused = 0
        self.num_writers = 0
        self._queues: list[Queue] = []
        self._streams: set[_Stream] = set()
        self._waiting_bytes = 0
        self._calls: set[Callable[[], object]] = set()
        self._changed = make_condition()
        self._progressed_at = 0.0
        self._is_due = False
        self._failing: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """Whether tables do not grow."""
        return self.used > self.grow_below

    @property
    def share(self) -> int:
        """What a stream may hold although memory is full, so that none shuts out the others: an equal part of what is
        kept for all."""
        return self.limits.staged_bytes // (4 * max(1, self.num_writers))

    def refusal(self) -> str:
        """Say why tables do not grow."""
        return f"waits for memory: {self.account()}; delete items or let samplers take them, or raise max_bytes"

    def account(self) -> str:
        """Say what there is and may be."""
        return (
            f"the server holds {in_words(self.used)}, items may take {in_words(self.grow_below)} of "
            f"max_bytes={in_words(self.limits.max_bytes or 0)}"
        )

    def open(self, tables: Sequence[Table]) -> None:
        """Begin to serve these tables, in the running event loop."""
        self._queues = [TableQueue(table) for table in tables]
        self._changed = make_condition()
        self._is_due = False

    def add_table(self, table: Table) -> None:
        """Serve one more table."""
        self._queues.append(TableQueue(table))

    def add_queue(self, queue: Queue) -> None:
        """Serve others that wait."""
        self._queues.append(queue)

    def may_store(self, nbytes: int) -> bool:
        """Whether a message of so many bytes may come whose content is to be stored."""
        if self.used + self._waiting_bytes <= self.stage_below or nbytes <= self.share:
            return True
        self.is_waited_for = True
        return False

    def close(self) -> None:
        """Refuse nobody any more."""
        if self._failing is not None:
            self._failing.cancel()
            self._failing = None

    def became_less(self) -> None:
        """Let those who wait look again, soon."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._is_due = self.is_waited_for = False  # who still waits says so again
        if not self.is_full:
            self._progressed_at = asyncio.get_running_loop().time()
        for queue in self._queues:
            queue.wake()
        calls, self._calls = self._calls, set()
        for call in calls:
            call()
        if self._streams:
            self.is_waited_for = True
            self._changed.notify_all()

    def call_when_less(self, call: Callable[[], object]) -> None:
        """Call something once, when memory was given back."""
        self._calls.add(call)
        self.is_waited_for = True

    def must_wait(self, held: int, nbytes: int) -> bool:
        """Whether a stream that holds so much must not store `nbytes` more now."""
        return self.used + nbytes > self.stage_below and held + nbytes > self.share

    async def wait(
        self,
        held: int,
        nbytes: int,
        *,
        deadline: Deadline | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        """Wait while `must_wait` says so.

        Args:
            held: what the stream holds.
            nbytes: what it is to store.
            deadline: when to give up.
            notice: called with a text when the wait gets long.

        Raises:
            ResourceExhausted: `Limits.full_timeout` passed, and nothing became free; or there is never so much room.
            TimeoutError: the deadline passed first.
        """
        if not self.must_wait(held, nbytes):
            return
        if nbytes > self.stage_below:
            raise ResourceExhausted(
                f"a message of {in_words(nbytes)} is more than the server can store: all items and steps together may "
                f"take {in_words(self.stage_below)} of max_bytes={in_words(self.limits.max_bytes or 0)}"
            )
        stream = _Stream(asyncio.get_running_loop().time(), self._changed)
        self._streams.add(stream)
        self._waiting_bytes += nbytes
        try:
            with reported(self.refusal, notice):
                async with deadline or Deadline(None) as within:
                    while self.must_wait(held, nbytes):
                        within.check()
                        self.is_waited_for = True
                        await self._changed.wait()
                        if stream.error is not None:
                            raise stream.error
        finally:
            self._streams.discard(stream)
            self._waiting_bytes -= nbytes
            stream.error = None  # It refers to this frame, and the frames above to long messages.

    def look_after(self) -> None:
        """Refuse those who have waited too long, and keep the alarm up to date; to be called every second or so."""
        now = asyncio.get_running_loop().time()
        if not self.is_full:
            self._progressed_at = now
            self._alarms.clear("memory")
            return
        self._alarms.give("memory", f"inserts wait for memory: {self.account()}")
        if self._failing is None and self._progressed_at <= now - self.limits.full_timeout:
            self._refuse_some()

    def _refuse_some(self) -> None:
        self._failing = None
        loop = asyncio.get_running_loop()
        horizon = loop.time() - self.limits.full_timeout
        if not self.is_full or self._progressed_at > horizon:
            return
        waiting: list[Patient] = [*self._streams]
        for queue in self._queues:
            waiting += queue.waiting_for_memory()
        late = sorted((each for each in waiting if each.since <= horizon), key=lambda each: each.since)
        for each in late[: -(-len(late) // _FAIL_SHARE)]:
            self.num_refused += 1
            each.give_up(ResourceExhausted(f"{self.refusal()}; has waited {loop.time() - each.since:.0f} s"))
        if late:
            self._failing = loop.call_later(_FAIL_AGAIN_S, self._refuse_some)


class _Stream:
    """A stream that waits."""

    def __init__(self, since: float, changed: asyncio.Condition) -> None:
        self.since = since
        self.error: ResourceExhausted | None = None
        self._changed = changed

    def give_up(self, error: ResourceExhausted) -> None:
        """End the wait with an error."""
        self.error = error
        self._changed.notify_all()
