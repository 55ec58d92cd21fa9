"""One Insert stream that survives reconnects: every item enters once, or its sender learns why not."""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections import deque
from collections.abc import Iterable

from reverb_async.client.events import Blocked, ItemsLost
from reverb_async.client.writing.connection import Connection
from reverb_async.client.writing.outgoing import Block, Outgoing, Owner
from reverb_async.client.writing.unsettled import Refused, Stretch, Unsettled
from reverb_async.errors import Closed, InvalidArgument, ReplayError, Unavailable, from_map
from reverb_async.protocol.inserting import InsertRequest, InsertResponse
from reverb_async.protocol.message import Duplex, Message

logger = logging.getLogger("reverb_async")

CLOSE_S = 1.0
"""Closing waits no longer than this for the server."""

MAX_IN_FLIGHT = 32_768
"""Items that are sent and not settled, to within a block. A server that holds twice as many waiting ones does not read
on, not even to learn which are withdrawn: what is beyond waits here, where it can be withdrawn at once."""

_MAX_DECLARED = 3500
"""A stream that declared so many groups or layouts makes way for a new one: servers keep 4096."""
_RELEASE_S = 0.05
"""What is only to be released goes with the next items, or alone if there are none within this time."""
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_stream_numbers = itertools.count()


class InsertSession:
    """A queue of blocks, sent in order and resent after a lost connection.

    One task does the work, from the first block on: it sends all that is queued in one message per turn, so that
    messages grow under load, and settles what the server answers. It refers to whoever holds the session through
    `owner` and the blocks only. Everything but `close` is synchronous.

    Args:
        connection: opens streams and keeps tasks.
        owner: told what no block can be told.
        name: for messages.
    """

    def __init__(self, connection: Connection, owner: Owner, name: str) -> None:
        self._connection = connection
        self._owner = owner
        self._name = name
        self._identity = uuid.uuid4().bytes
        self._unsent: deque[Block] = deque()
        self._sent = Unsettled()
        self._resend: deque[Stretch] = deque()
        self._cancel: list[int] = []
        self._epoch: bytes | None = None
        self._num_confirmed = 0
        self._refused = Refused()
        self._stream: int | None = None
        self._declared = 0
        self._pause = 0.0
        self._is_awake = False
        self._idle: asyncio.Future[None] | None = None
        self._duplex: Duplex | None = None
        self._held: Message | None = None
        self._speaking: asyncio.Handle | None = None
        self._releasing: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self.error: ReplayError | None = None
        """What ended the session for good."""

    # -- for the owner ------------------------------------------------------------------------------------------------

    def submit(self, block: Block) -> None:
        """Queue a block.

        Raises:
            ReplayError: what ended the session, if it has ended.
        """
        if self.error is not None:
            raise self.error.with_traceback(None)
        self._unsent.append(block)
        self.wake()
        if self._task is None:
            self._loop = asyncio.get_running_loop()
            self._task = self._connection.spawn(self._run(), f"insert stream of {self._name}")

    def wake(self) -> None:
        """Say in the next turn of the loop what there is to say."""
        self._is_awake = True
        if self._speaking is None and self._idle is not None and not self._idle.done():
            self._speaking = asyncio.get_running_loop().call_soon(self._speak)

    def speak_now(self) -> None:
        """Say at once what was to be said in the next turn: whoever queued it waits for the answer."""
        if self._speaking is not None:
            self._speaking.cancel()
            self._speak()

    def _speak(self) -> None:
        """Send what is queued without the sending task, or wake it if there is more to do than that."""
        self._speaking = None
        if self._idle is None or self._idle.done():
            return  # The task is at it, or gone.
        if self._duplex is not None:
            try:
                message = self._next_message()
                if message is not None and not self._duplex.try_send(message):
                    self._held = message
            except BaseException as error:
                self._idle.set_exception(error)  # The task is to end of it, and with it the session.
                return
            if not (self._held or self._has_more() or self._has_served()):
                self._is_awake = False
                return
        self._idle.set_result(None)

    def withdraw(self, block: Block, error: ReplayError) -> None:
        """Give a block up. What the server cannot have is settled with `error` now, the rest with its answer."""
        if not block.sealed:
            self._unsent.remove(block)
            block.sealed = True
            block.settled(0, len(block), error)
            return
        for stretch in [stretch for stretch in self._sent if stretch.block is block]:
            stretch.withdrawn = error
            if self._stream is None:
                # Whether the old stream brought it in will show at the greeting, which also finds numbers left free.
                self._sent.remove(stretch, error)
            else:
                self._cancel.append(stretch.sent_seq)
                self.wake()

    def drop(self, error: ReplayError) -> None:
        """End at once and settle what is queued with `error`, as later calls are. Idempotent."""
        if self._task is not None:
            self._task.cancel()
        self._fail(error)

    def drop_soon(self, error: ReplayError) -> None:
        """Do what `drop` does, from wherever garbage is collected."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.drop, error)

    async def close(self) -> None:
        """End in order, once all is settled; what is not within a second is dropped. Idempotent."""
        self._closing = True
        task = self._task
        if task is not None and not task.done():
            self.wake()
            await asyncio.wait({task}, timeout=CLOSE_S)
        self.drop(Closed(f"{self._name} is closed"))
        if task is not None and not task.done():
            await asyncio.wait({task}, timeout=CLOSE_S)

    # -- the task -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while await self._is_needed():
                try:
                    duplex = await self._connection.open("insert")
                except Unavailable as error:
                    self._owner.interrupted(error)
                else:
                    await self._use(duplex)
                await asyncio.sleep(self._pause)
                self._pause = min(max(2 * self._pause, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        except ReplayError as error:
            self._fail(error)
        finally:
            self._fail(Closed(f"{self._name} is closed, like its client"))

    async def _is_needed(self) -> bool:
        """Wait until there is something to send; return False if there will not be."""
        while not (self._unsent or self._sent or self._closing):
            await self._woken()
        return bool(self._unsent or self._sent)

    async def _woken(self) -> None:
        """Wait for `wake`, unless it was called since the last time."""
        if not self._is_awake:
            self._idle = asyncio.get_running_loop().create_future()
            try:
                await self._idle
            finally:
                self._idle = None
        self._is_awake = False

    async def _use(self, duplex: Duplex) -> None:
        """Work on one stream until it is lost, or has served."""
        since = asyncio.get_running_loop().time()
        try:
            if await self._greet(duplex):
                self._pause = 0.0
                self._duplex = duplex
                await self._exchange(duplex)
        except Unavailable as error:
            self._stream = None
            self._connection.lost(error, since)
            if self._connection.gives_up(error):
                self._owner.interrupted(error)
            else:
                logger.info("the insert stream of %s to %s was lost: %s", self._name, self._connection.address, error)
        finally:
            duplex.abort()
            self._stream = self._duplex = self._held = None
            self._cancel.clear()
            self._forget_release()

    async def _exchange(self, duplex: Duplex) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._send(duplex))
                tasks.create_task(self._receive(duplex))
        except ExceptionGroup as group:  # of which users know nothing: the first failure ended the other task
            raise group.exceptions[0] from None

    async def _greet(self, duplex: Duplex) -> bool:
        """Learn what of an earlier stream arrived; return False if the session starts anew, on another stream."""
        await duplex.send(InsertRequest(session=self._identity).to_message())
        message = await duplex.receive()
        if message is None:
            raise Unavailable("the server ended the stream")
        greeting = InsertResponse.from_message(message)
        if greeting.applied_through is None:
            raise InvalidArgument("the server's first message does not say what of the session it has")
        num_applied = greeting.applied_through + sum(count for _, count in greeting.applied)
        self._compare(greeting, num_applied)
        self._settle(greeting)
        self._confirm([(1, greeting.applied_through), *greeting.applied])
        for stretch in self._sent:
            if stretch.withdrawn is not None:
                self._sent.remove(stretch, stretch.withdrawn)
        self._cancel.clear()
        if num_applied != self._sent.settled:
            # The server forgot the session, having restarted perhaps, or a number went with what was withdrawn. Gaps
            # would stay for ever, so number anew, under another name.
            self._identity = uuid.uuid4().bytes
            self._sent.number_anew()
            self._num_confirmed = 0
            self._refused = Refused()
            return False
        self._stream = next(_stream_numbers)
        self._declared = 0
        self._resend = deque(self._sent)
        return True

    def _compare(self, greeting: InsertResponse, num_applied: int) -> None:
        """Tell of items that the server had confirmed, and knows nothing of since it is another process."""
        if self._epoch is not None and greeting.epoch != self._epoch:
            lost = self._num_confirmed - num_applied
            if lost > 0:
                lost -= self._refused.count_outside([(1, greeting.applied_through or 0), *greeting.applied])
            if lost > 0:
                logger.warning(
                    "%s: %s came back without %d confirmed items", self._name, self._connection.address, lost
                )
                self._connection.emit(ItemsLost(self._name, lost))
        self._epoch = greeting.epoch

    async def _send(self, duplex: Duplex) -> None:
        while True:
            while (message := self._held or self._next_message()) is not None:
                self._held = None
                try:
                    await duplex.send(message)
                except Unavailable:
                    await asyncio.sleep(CLOSE_S)  # The receiving side may learn why, and then ends this wait.
                    raise
                if not self._has_more():
                    break
                await asyncio.sleep(0)
            if self._has_served():
                await duplex.end()
                return
            await self._woken()

    def _may_send(self) -> bool:
        """Whether a block can go out that has not been sent."""
        return bool(self._unsent) and self._declared < _MAX_DECLARED and self._sent.num_items < MAX_IN_FLIGHT

    def _has_more(self) -> bool:
        """Whether there is more to say now."""
        return bool(self._resend or self._cancel) or self._may_send()

    def _has_served(self) -> bool:
        if self._declared >= _MAX_DECLARED:
            return not self._sent
        return self._closing and not self._sent and not self._unsent

    def _next_message(self) -> Message | None:
        assert self._stream is not None
        out = Outgoing(self._stream)
        while self._resend and not out.is_full:
            stretch = self._resend.popleft()
            stretch.write(out)
            if stretch.withdrawn is not None:
                out.cancel.append(stretch.seq)
        while self._may_send() and not out.is_full:
            block = self._unsent.popleft()
            block.sealed = True
            self._sent.add(block).write(out)
        out.cancel += self._cancel
        self._cancel = []
        if not self._unsent and not self._resend:
            self._owner.all_sent(out)
        self._declared += out.declarations
        return out.to_message()

    async def _receive(self, duplex: Duplex) -> None:
        duplex.listen(self._hear)
        while (message := await duplex.receive()) is not None:
            self._hear(message)
        if not self._has_served():
            raise Unavailable("the server ended the stream")

    def _hear(self, message: Message) -> bool:
        answer = InsertResponse.from_message(message)
        self._settle(answer)
        if answer.waiting is not None:
            text = f"{self._name}, inserting at {self._connection.address}: {answer.waiting}"
            self._connection.repeats.warning(text, now=asyncio.get_running_loop().time())
            self._connection.emit(Blocked(self._name, answer.waiting))
        return True

    def _settle(self, answer: InsertResponse) -> None:
        unsettled = self._sent.num_items
        for refusal in answer.refused:
            described = refusal.error if isinstance(refusal.error, dict) else {}
            before = self._sent.num_items
            self._cancel += self._sent.settle(refusal.seq, refusal.count, from_map(described))
            if self._sent.num_items < before:  # A greeting tells of earlier ones again.
                self._refused.add(refusal.seq, refusal.count)
        self._num_confirmed += unsettled - self._sent.num_items
        self._confirm(answer.acks)
        if self._cancel or self._may_send():
            self.wake()
        if not self._sent:
            if self._closing or self._declared >= _MAX_DECLARED:
                self.wake()
            elif self._releasing is None and not self._unsent:
                self._releasing = asyncio.get_running_loop().call_later(_RELEASE_S, self._release)

    def _confirm(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Settle items that are in."""
        unsettled = self._sent.num_items
        for seq, count in ranges:
            self._sent.settle(seq, count, None)
        self._num_confirmed += unsettled - self._sent.num_items

    def _release(self) -> None:
        self._releasing = None
        self.wake()

    def _forget_release(self) -> None:
        if self._releasing is not None:
            self._releasing.cancel()
            self._releasing = None

    def _fail(self, error: ReplayError) -> None:
        if self.error is not None:
            return
        self.error = error
        self._forget_release()
        for stretch in self._sent:
            self._sent.remove(stretch, error)
        blocks, self._unsent = list(self._unsent), deque()
        for block in blocks:
            block.sealed = True
            block.settled(0, len(block), error)
        self._owner.failed(error)
