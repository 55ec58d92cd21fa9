"""The stream behind `Client.sample` and its relatives: asks for batches, keeps what arrives, hands back the rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.connector import Connector
from reverb_async.client.conversation import Conversation
from reverb_async.client.events import Blocked
from reverb_async.client.retry import NOW_S
from reverb_async.client.sampling.borrowing import Borrower
from reverb_async.client.sampling.queued_priorities import QueuedPriorities
from reverb_async.client.updates import UpdateStream
from reverb_async.core.selectors import Selector, from_options
from reverb_async.errors import Closed, DeadlineExceeded, InvalidArgument, ReplayError, Unavailable, from_map
from reverb_async.protocol.message import Message
from reverb_async.protocol.packing import MAX_BATCHES_PER_ENTRY
from reverb_async.protocol.sampled import SampledBatch
from reverb_async.protocol.sampling import SampleRequest, SampleResponseReader, Subscription
from reverb_async.waiting import FIRST_WARNING_S, reported

logger = logging.getLogger("reverb_async")

MAX_QUEUED_KEYS = 65_536
"""`update` waits while the priorities of so many keys have not been sent."""

LEAVE_S = 5.0
"""A server has this long to take back what was not delivered."""
HURRIED_LEAVE_S = 1.0
"""The same when the caller was cancelled."""

RETURN_S = 0.1
"""So long may memory stay lent that was copied, until a request says so by the way."""

_TURNS = 2
"""Of the event loop, after a copy: in the first the caller takes its batch, in the second the wish for the next one
goes out. Otherwise the next batch, if it is there already, is copied first, while the server has nothing to do."""

_SILENCE_S = FIRST_WARNING_S + 1.0


class BatchStream(Conversation):
    """One Sample stream.

    Batches are *outstanding* from the moment they are asked for until they are delivered. While the caller waits, at
    least one is; after a delivery the stream asks for more until `prefetch` are. Delivered batches are the caller's,
    the others are handed back when the stream ends, in whatever way.

    Args:
        connector: the client's.
        updates: takes priority updates once the stream has ended.
        wanted: what is to be sampled.
        prefetch: batches kept outstanding between deliveries.
        limit: batches to deliver in all; None: any number. No more are ever asked for.
    """

    def __init__(
        self,
        connector: Connector,
        updates: UpdateStream,
        wanted: Subscription,
        *,
        prefetch: int,
        limit: int | None = None,
    ) -> None:
        super().__init__(connector, "sample", f"sampling from {wanted.table!r}")
        self.table = wanted.table
        self._updates = updates
        # Half of what is outstanding per message: server and caller both have something to do then.
        self._wanted = replace(wanted, together=min(max(1, (prefetch + 1) // 2), MAX_BATCHES_PER_ENTRY))
        self._prefetch = prefetch
        self._limit = limit
        self._delivered = 0
        self._target = 0
        self._broken: ReplayError | None = None
        self._departure: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # What this connection has been asked, and has answered.
        self._reader = SampleResponseReader()
        self._borrower: Borrower | None = None
        self._returns = False
        self._return_timer: asyncio.TimerHandle | None = None
        self._ready: deque[SampledBatch] = deque()
        self._subscribed = self._said_end = False
        self._granted = self._said_granted = 0
        self._consumed = self._said_consumed = 0
        self._withdrawn = self._said_withdrawn = 0
        self._answered = 0
        self._selector: Selector | None = None
        self._priorities = QueuedPriorities()
        self._room = asyncio.Event()
        self._failure: ReplayError | None = None
        # The caller who waits.
        self._waiter: asyncio.Future[ReplayError | None] | None = None
        self._timeout: float | None = None
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._waiting_since = 0.0
        self._noticed_at = 0.0

    # -- the caller's side --------------------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether as many batches as were wanted have been delivered."""
        return self._limit is not None and self._delivered >= self._limit

    @property
    def is_clean(self) -> bool:
        """Whether nothing is outstanding, so that the next caller gets fresh draws."""
        return not self.finishing and self._broken is None and self._outstanding == 0

    async def head(self, timeout: float | None) -> SampledBatch:
        """Return the next batch, which stays the stream's until `accept` is called.

        Args:
            timeout: seconds; None waits for ever, 0 takes what there is.

        Raises:
            RateLimiterTimeout: the server could not fill the batch in time.
            DeadlineExceeded: the server did not even say so.
            Unavailable: it cannot be reached.
            Closed: the stream was left.
            ReplayError: the server's refusal.
        """
        if self.finishing:
            raise Closed(f"{self.name}: this iterator was closed")
        if self._waiter is not None:
            raise InvalidArgument(
                f"{self.name}: another task waits for this iterator's next element; give each its own"
            )
        if self._broken is not None:
            raise self._broken.with_traceback(None)
        self.start()
        self._loop = asyncio.get_running_loop()
        self._ask(max(1, self._prefetch))
        try:
            while not self._ready:
                await self._wait(timeout)
        finally:
            self._ask(self._prefetch)
        return self._ready[0]

    def accept(self) -> None:
        """Make the batch that `head` returned the caller's, and ask for more."""
        batch = self._ready.popleft()
        self._delivered += 1
        self._consumed = batch.seq
        self._ask(self._prefetch)
        self.poke()

    async def update(self, keys: NDArray[np.uint64], priorities: NDArray[np.float64]) -> None:
        """Queue new priorities for finite `priorities`; they are applied before any batch that is asked for later.

        Returns at once, unless priorities of more than 64k keys are queued, or the stream was left.

        Args:
            keys: uint64 ``[n]``.
            priorities: float64 ``[n]``.

        Raises:
            InvalidArgument: the table's sampler does not take one of them.
            Unavailable: they had to wait, and the server could not be reached.
        """
        if self._selector is not None:
            try:
                self._selector.check_priorities(priorities)
            except InvalidArgument as error:
                raise InvalidArgument(f"table {self.table!r}: {error}") from None
        if self._priorities.num_unsent >= MAX_QUEUED_KEYS:
            with reported(
                lambda: f"{self.name}: {self._priorities.num_unsent} priority updates are not sent yet",
                repeats=self.connector.repeats,
            ):
                await self._wait_for_room()
        if self._is_over:
            await self._updates.of(self.table).update(keys, priorities)
            return
        self._priorities.add(keys, priorities)
        self.start()
        self.poke()

    async def _wait_for_room(self) -> None:
        self._failure = None
        while self._priorities.num_unsent >= MAX_QUEUED_KEYS and not self._is_over:
            self.start()
            self._room.clear()
            await self._room.wait()
            if self._failure is not None:
                raise self._failure

    async def leave(self, limit: float = LEAVE_S) -> None:
        """End the stream: acknowledge what was delivered, send what is queued, hand back the rest.

        Returns when the server has done so, or after `limit` seconds, when the stream is broken off. Idempotent.
        """
        self._begin_departure()
        if self._departure is not None:
            await asyncio.wait({self._departure}, timeout=limit)
            if not self._departure.done():
                self._departure.cancel()
                await asyncio.wait({self._departure})

    def leave_soon(self) -> None:
        """End the stream in the background; may be called from any thread, and when the event loop is gone."""
        if self._loop is not None and not self.finishing:
            with contextlib.suppress(RuntimeError):  # The loop is closed, and so is the connection.
                self._loop.call_soon_threadsafe(self._begin_departure)

    def _begin_departure(self) -> None:
        if self.finishing:
            return
        self.finishing = True
        if (self.running or self._priorities) and not self.connector.closed:
            self._departure = self.connector.spawn(self._depart(), f"leaving: {self.name}")
        else:
            self._depart_at_last()

    async def _depart(self) -> None:
        try:
            await self.finish(LEAVE_S)
            if (lost := self._priorities.take_all()) is not None:
                try:
                    await self._updates.mutate(self.table, *lost, np.zeros(0, np.uint64), timeout=HURRIED_LEAVE_S)
                except ReplayError as error:
                    logger.warning(
                        "%s: the priorities of %d items were not updated: %s", self.name, len(lost[0]), error
                    )
        finally:
            self._depart_at_last()

    def _depart_at_last(self) -> None:
        self._stop_reporting()
        self._ready.clear()
        self._room.set()

    @property
    def _is_over(self) -> bool:
        return self.finishing or self._broken is not None

    # -- asking and waiting -------------------------------------------------------------------------------------------

    @property
    def _outstanding(self) -> int:
        return self._granted - self._answered + len(self._ready)

    def _ask(self, target: int) -> None:
        """Have `target` batches outstanding, as far as the limit allows."""
        self._target = target
        if not self.connected:
            return
        if self._limit is not None:
            target = min(target, self._limit - self._delivered)
        missing = target - self._outstanding
        if missing > 0:
            self._granted += missing
            self.poke()

    async def _wait(self, timeout: float | None) -> None:
        """Wait until something has changed for the caller; raises the error if that is what happened."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        self._timeout, self._expired = timeout, False
        self._waiting_since = self._noticed_at = loop.time()
        if self._silence is None:  # It outlives the wait: few are long, and a timer for each would cost them all.
            self._silence = loop.call_later(_SILENCE_S, self._report_silence, loop, self._waiting_since, _SILENCE_S)
        if timeout is not None and timeout > 0:
            self._timer = loop.call_later(timeout, self._expire)
        elif timeout is not None:
            self._expire()
        self.speak_now()
        try:
            error = await self._waiter
            if error is not None:
                raise error
        finally:
            self._waiter = None
            self._expired = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if loop.time() - self._waiting_since >= _SILENCE_S:  # The timer is set for this wait, and far ahead.
                self._stop_reporting()

    def _wake(self, error: ReplayError | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(error)

    def _expire(self) -> None:
        """Have the batch that is waited for filled at once or refused."""
        self._expired = True
        if not self.connected and self.connector.failure is not None and self._timeout:
            self._give_up()
            return
        if self.connected:
            self._withdrawn = self._answered + 1
            self.poke()
        self._timer = asyncio.get_running_loop().call_later(NOW_S, self._give_up)

    def _give_up(self) -> None:
        why = "" if self.connector.failure is None else f": {self.connector.failure}"
        self._wake(
            DeadlineExceeded(f"{self.name}: {self.connector.address} did not answer within {self._timeout:g} s{why}")
        )

    def _report_silence(self, loop: asyncio.AbstractEventLoop, waiting_since: float, interval: float) -> None:
        """Warn of a server that does not even say what it waits for, if the same caller waits still."""
        self._silence = None
        if self._waiter is None:
            return
        if waiting_since != self._waiting_since:
            left = max(0.0, self._waiting_since + _SILENCE_S - loop.time())
            self._silence = loop.call_later(left, self._report_silence, loop, self._waiting_since, _SILENCE_S)
            return
        silent_for = loop.time() - self._noticed_at
        if self.connected and silent_for >= interval:
            text = f"{self.name}: nothing heard from {self.connector.address} for {silent_for:.0f} s"
            self.connector.repeats.warning(text, now=loop.time())
        self._silence = loop.call_later(2 * interval, self._report_silence, loop, waiting_since, 2 * interval)

    def _stop_reporting(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    # -- the stream's side --------------------------------------------------------------------------------------------

    @property
    def needed(self) -> bool:
        """Whether somebody waits, or batches are prefetched, or priorities queued."""
        return self._waiter is not None or self._target > 0 or bool(self._priorities)

    async def prepare(self) -> None:
        """Learn which priorities the table's sampler takes."""
        info = (await self.connector.tables()).get(self.table)
        self._selector = None if info is None else from_options(info.sampler_options)

    def opened(self) -> None:
        """Ask again for what is missing; the server has handed back what was not delivered."""
        self._reader = SampleResponseReader()
        memory = self.connector.memory
        self._borrower = None if memory.page is None else Borrower(memory, memory.page)
        self._returns = False
        self._ready.clear()
        self._subscribed = self._said_end = False
        self._granted = self._said_granted = self._answered = 0
        self._consumed = self._said_consumed = 0
        self._withdrawn, self._said_withdrawn = int(self._expired), 0
        self._priorities.resend()
        self._ask(self._target)

    def compose(self) -> Message | None:
        """Say what has changed, in one message."""
        request = SampleRequest()
        request.credits = self._granted - self._said_granted
        if self._consumed > self._said_consumed:
            request.consumed = self._consumed
        if self._withdrawn > self._said_withdrawn:
            request.withdraw = self._withdrawn
        if (updates := self._priorities.next(self._said_granted)) is not None:
            request.keys, request.priorities = updates
            self._room.set()
        request.end = self.finishing and not self._priorities.num_unsent and not self._said_end
        says_something = request.credits or request.consumed or request.withdraw or request.keys is not None
        if not (says_something or request.end or self._returns):
            return None
        if self._borrower is not None:
            self._returns, request.returned = False, self._borrower.report()
        if not self._subscribed:
            request.subscribe = self._wanted
        self._subscribed = True
        self._said_granted, self._said_consumed, self._said_withdrawn = self._granted, self._consumed, self._withdrawn
        self._said_end = self._said_end or request.end
        return request.to_message()

    async def absorb(self, message: Message) -> None:
        """Copy what the server lends, before the next message is received."""
        self.take(message)
        if "lent" not in message.header or self.finishing:
            return
        if self._borrower is None:
            raise InvalidArgument(f"{self.name}: the server lends memory that this client has not mapped")
        if self._return_timer is None:
            self._return_timer = asyncio.get_running_loop().call_later(RETURN_S, self._return_leases)
        for seq, batch in await self._borrower.take(message, self._reader.layouts):
            self._arrived(seq, batch)
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        self._priorities.answered(self._answered)

    def _return_leases(self) -> None:
        """Say what was copied, if no request has said so."""
        self._return_timer = None
        if self._borrower is not None and self._borrower.has_news:
            self._returns = True
            self.poke()

    def _arrived(self, seq: int, batch: SampledBatch | None) -> None:
        """Queue an answer; None: it was revoked before it could be copied, so another one is asked for."""
        self._answered = max(self._answered, seq)
        if self.finishing:
            return
        if batch is not None:
            self._ready.append(batch)
            self._wake(None)
            return
        self._returns = True
        if self._expired:
            self._withdrawn = self._answered + 1
        self._ask(self._target)
        self.poke()

    def take(self, message: Message) -> None:
        """Queue batches, tell the caller of refusals."""
        response = self._reader.read(message)
        if response.waiting is not None:
            self._noticed_at = asyncio.get_running_loop().time()
            if self._waiter is not None:
                text = f"{self.name} at {self.connector.address}: {response.waiting}"
                self.connector.repeats.warning(text, now=self._noticed_at)
                self.connector.emit(Blocked(self.name, response.waiting))
        for batch in response.batches:
            self._arrived(batch.seq, batch)
        for seq, described in response.failed:
            self._answered = max(self._answered, seq)
            if self._expired:
                self._wake(from_map(described))
            else:
                self._ask(self._target)  # Whoever gave up on that batch is gone; the next caller starts anew.
        self._priorities.answered(self._answered)

    def interrupted(self) -> None:
        """Drop what was not delivered: the server has taken it back."""
        self._ready.clear()
        if self._return_timer is not None:
            self._return_timer.cancel()
            self._return_timer = None
        if self._borrower is not None:
            self._borrower.close()
            self._borrower = None

    def closed(self, error: ReplayError | None) -> None:
        """Tell the caller; a lost connection and a closed table are no reason not to try again later."""
        if error is None and self.finishing:
            self._priorities.clear()  # Worked off: the server ended the stream after it had read everything.
        if error is not None and not isinstance(error, Unavailable | Closed):
            self._broken = error
        self._failure = error
        self._wake(error or Closed(f"{self.name}: this iterator was closed"))
        self._room.set()
