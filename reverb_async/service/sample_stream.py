"""The server's end of a Sample stream: draw a batch per credit, gather it, send it, take back what was not consumed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import numpy as np

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.core.draw import Draw
from reverb_async.core.encoded import DamagedChunks
from reverb_async.errors import DeadlineExceeded, InvalidArgument, PermissionDenied, ResourceExhausted
from reverb_async.protocol.lending import Returned
from reverb_async.protocol.message import Duplex, Message
from reverb_async.protocol.sampling import SampleRequest, SampleResponse, Subscription
from reverb_async.replay import Replay
from reverb_async.security.grants import denial
from reverb_async.service.leases import Leases
from reverb_async.service.lender import Lender
from reverb_async.service.sample_answers import MAX_INLINE_GATHER_BYTES, Drawn, Gathering, SampleAnswers
from reverb_async.service.tasks import first_error
from reverb_async.table import Table
from reverb_async.waiting import Deadline

MAX_UNCONSUMED_BATCHES = 4096
"""Batches a client may hold without acknowledging them."""

MAX_TOGETHER_BYTES = 256 << 10
MAX_TOGETHER_ITEMS = 4096
"""Beyond either, batches go into messages of their own: what a message costs does not count any more, and who keeps one
of its batches keeps the memory of all."""

_FAREWELL_S = 10.0


class SampleStream:
    """One learner's stream from one table.

    Args:
        replay: the tables.
        duplex: the stream.
        leases: the server's; without them nothing is lent.
        pool: where batches are gathered; streams may share one.
    """

    def __init__(
        self, replay: Replay, duplex: Duplex, leases: Leases | None = None, pool: BufferPool | None = None
    ) -> None:
        self._replay = replay
        self._pool = BufferPool() if pool is None else pool
        self._lender = Lender(Leases() if leases is None else leases)
        self._duplex = duplex
        self._may_not_update = denial("write", "update_priorities")
        self._credits = 0
        self._asked = asyncio.Event()
        self._unconsumed: deque[tuple[int, Draw]] = deque()
        self._seq = 0
        self._withdrawn = 0
        self._deadline: Deadline | None = None
        self._ending = False
        self._answering = False
        self._begun: Gathering | Message | None = None
        self._notices: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._table: Table
        self._wanted: Subscription
        self._answers: SampleAnswers

    async def run(self) -> None:
        """Serve the stream until its client ends it or vanishes; hand back what it did not consume."""
        message = await self._duplex.receive()
        if message is None:
            return
        request = SampleRequest.from_message(message)
        if request.subscribe is None:
            raise InvalidArgument("the first message of a Sample stream must subscribe to a table")
        self._wanted = request.subscribe
        self._answers = SampleAnswers(self._wanted, self._pool)
        self._table = self._replay.table(self._wanted.table)
        self._table.num_samplers += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                answering = tasks.create_task(self._answer(tasks))
                while True:
                    self._work_off(request)
                    if self._ending:
                        break
                    if self._credits and not self._answering:
                        self._answer_now()
                    message = await self._duplex.receive()
                    if message is None:
                        break
                    request = SampleRequest.from_message(message)
                await self._say_goodbye(answering)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            self._table.num_samplers -= 1
            self._lender.close()
            while self._unconsumed:  # The latest first, so that each returns to the state before it.
                self._table.hand_back(self._unconsumed.pop()[1])

    def _work_off(self, request: SampleRequest) -> None:
        """Do what one message asks for, in one step: updates before anything that is drawn later."""
        if request.keys is not None and request.priorities is not None:
            if self._may_not_update is not None:
                raise PermissionDenied(self._may_not_update)
            self._table.mutate(request.keys, request.priorities, np.zeros(0, np.uint64))
        if request.returned is not None:
            for seq in self._lender.heed(Returned.from_wire(request.returned)):
                self._hand_back(seq)
        self._lender.end_through(request.consumed)
        while self._unconsumed and self._unconsumed[0][0] <= request.consumed:
            self._table.acknowledge(self._unconsumed.popleft()[1])
        if request.withdraw > self._withdrawn:
            self._withdrawn = request.withdraw
            if self._deadline is not None and self._seq <= self._withdrawn:
                self._deadline.expire()
        if request.credits:
            self._credits += request.credits
        self._ending = request.end

    def _hand_back(self, seq: int) -> None:
        """Take back a batch that its client could not read."""
        for at, (number, draw) in enumerate(self._unconsumed):
            if number == seq:
                del self._unconsumed[at]
                self._table.hand_back(draw)
                return

    async def _say_goodbye(self, answering: asyncio.Task[None]) -> None:
        """Let the batch that is being sent go out whole, then stop."""
        self._ending = True
        self._asked.set()
        if self._deadline is not None:
            self._deadline.expire()
        await asyncio.wait({answering}, timeout=_FAREWELL_S)
        answering.cancel()

    def _answer_now(self) -> None:
        """Send one message in the step that has read its request; what has to wait, and the rest, is for the task.

        If more requests are there already, all is for the task: it answers several together, and gives way to other
        streams, while receiving would go on without.
        """
        if not self._duplex.has_unread and (drawn := self._draw_now()):
            self._begun = self._begin(drawn)
            if isinstance(self._begun, Message) and not self._sending.locked() and self._duplex.try_send(self._begun):
                self._begun = None
        if self._begun is not None or self._credits:
            self._answering = True
            self._asked.set()

    async def _answer(self, tasks: asyncio.TaskGroup) -> None:
        """Answer credits, one batch each, in order, as far as `_answer_now` has not."""

        def tell(reason: str) -> None:
            notice = tasks.create_task(self._send(SampleResponse(waiting=reason).to_message()))
            self._notices.add(notice)
            notice.add_done_callback(self._notices.discard)

        while True:
            while self._begun is None and not self._credits and not self._ending:
                self._answering = False
                self._asked.clear()
                await self._asked.wait()
            if self._ending:
                return
            begun, self._begun = self._begun, None
            if begun is None:
                try:
                    begun = self._begin(self._draw_now() or [await self._draw_waiting(tell)])
                except DeadlineExceeded as error:
                    begun = SampleResponse(failed=[(self._seq, error.to_map())]).to_message()
            if isinstance(begun, Gathering):
                begun = await self._finish(begun)
            if begun is not None:
                await self._send(begun)
            if self._credits:
                # Neither drawing nor sending is certain to suspend; without this a fast stream would starve all others.
                await asyncio.sleep(0)

    def _begin(self, drawn: list[Drawn]) -> Gathering | Message | None:
        """Lend or gather the rows of fresh draws; call it in the step that drew. None: see `_remove_damaged`."""
        lent = self._lend(drawn)
        if lent is not None:
            return lent
        try:
            response = self._answers.response(drawn)
        except DamagedChunks as damage:
            self._remove_damaged(drawn[0].seq, damage)
            return None
        return response if isinstance(response, Gathering) else response.to_message()

    async def _finish(self, gathering: Gathering) -> Message | None:
        """Return what a thread has gathered."""
        try:
            return (await gathering.response()).to_message()
        except DamagedChunks as damage:
            self._remove_damaged(gathering.first, damage)
            return None

    def _remove_damaged(self, first: int, damage: DamagedChunks) -> None:
        """Undo the draws from number `first` on, of which nothing was sent, and remove items that cannot be read.

        The credits are free again, for other items.
        """
        while self._unconsumed and self._unconsumed[-1][0] >= first:
            self._table.hand_back(self._unconsumed.pop()[1])
        self._credits += self._seq - first + 1
        self._seq = first - 1
        self._replay.remove_damaged(damage)

    def _draw_now(self) -> list[Drawn]:
        """Draw for as many credits as go into one message; nothing if the first of them has to wait."""
        table, size = self._table, self._wanted.batch_size
        if len(self._unconsumed) >= MAX_UNCONSUMED_BATCHES:
            raise ResourceExhausted(f"{len(self._unconsumed)} batches were sent and not acknowledged")
        draw = table.sample_now(size, self._most_together())
        if draw is None:
            return []
        plan = table.plan(draw)
        count = len(draw) // size
        if count > 1 and plan.nbytes > MAX_INLINE_GATHER_BYTES:  # These items are far larger than the table's others.
            table.hand_back(draw.part(size, len(draw)))
            draw, count = draw.part(0, size), 1
            plan = table.plan(draw)
        first = self._seq + 1
        self._credits -= count
        self._seq += count
        batches = [draw.part(start, start + size) for start in range(0, len(draw), size)]
        self._unconsumed.extend(enumerate(batches, first))
        if count == 1 or len(plan.parts) == 1:
            return [Drawn(first, count, draw, plan)]
        return [Drawn(first + at, 1, batch, table.plan(batch)) for at, batch in enumerate(batches)]

    def _most_together(self) -> int:
        """Return how many batches the next message may carry, as far as one can tell before they are drawn."""
        size, state = self._wanted.batch_size, self._table.state
        most = min(self._wanted.together, self._credits, MAX_UNCONSUMED_BATCHES - len(self._unconsumed))
        if most <= 1:
            return 1
        nbytes = size * state.nbytes // max(1, state.size)
        if self._lender.wants(nbytes):
            return 1
        return max(1, min(most, MAX_TOGETHER_ITEMS // size, MAX_TOGETHER_BYTES // max(1, nbytes)))

    def _lend(self, drawn: list[Drawn]) -> Message | None:
        """Let the client copy a fresh draw's rows by itself; None if that does not pay or is not allowed."""
        if len(drawn) > 1 or drawn[0].count > 1:
            return None
        declared = [self._answers.declared(part.layout) for part in drawn[0].plan.parts]
        lending = self._lender.lend(drawn[0].seq, drawn[0].draw, drawn[0].plan, declared)
        if lending is None:
            return None
        message = SampleResponse(self._answers.declarations()).to_message()
        lending.put(message)
        return message

    async def _draw_waiting(self, tell: Callable[[str], None]) -> Drawn:
        """Draw one batch, waiting for the rate limiter until the client withdraws it."""
        self._credits -= 1
        self._seq += 1
        self._deadline = Deadline(0 if self._seq <= self._withdrawn else None)
        try:
            draw = await self._table.sample(
                self._wanted.batch_size,
                deadline=self._deadline,
                partial=self._wanted.partial,
                notice=tell,
                peer=self._duplex.peer,
            )
        finally:
            self._deadline = None
        self._unconsumed.append((self._seq, draw))
        return Drawn(self._seq, 1, draw, self._table.plan(draw))

    async def _send(self, message: Message) -> None:
        memory, nbytes = self._replay.memory, message.nbytes
        async with self._sending:
            memory.used += nbytes
            try:
                await self._duplex.send(message)
            finally:
                memory.give_back(nbytes)
