"""The server's end of a Sample stream: draw a batch per credit, gather it, send it, take back what was not consumed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import numpy as np

from reverb_async.core.draw import Draw
from reverb_async.core.gather import GatherPlan, Piece
from reverb_async.core.item import ItemLayout
from reverb_async.core.nest import Path, Structure
from reverb_async.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted
from reverb_async.protocol.lending import Lending, Returned
from reverb_async.protocol.message import Duplex
from reverb_async.protocol.sampling import (
    SampledBatch,
    SampledLayout,
    SampledPiece,
    SampleRequest,
    SampleResponse,
    Subscription,
)
from reverb_async.replay import Replay
from reverb_async.service.leases import Leases
from reverb_async.service.lender import Lender
from reverb_async.service.tasks import first_error
from reverb_async.table import Table
from reverb_async.waiting import Deadline

MAX_INLINE_GATHER_BYTES = 4 << 20
"""Larger gathers run in a thread: a 144 MB gather on the loop would stall it for 39 ms."""

MAX_UNCONSUMED_BATCHES = 4096
"""Batches a client may hold without acknowledging them."""

MAX_SAMPLED_LAYOUTS = 4096
"""Distinct item layouts that one stream may meet."""

_FAREWELL_S = 2.0


class SampleStream:
    """One learner's stream from one table."""

    def __init__(self, replay: Replay, duplex: Duplex, leases: Leases | None = None) -> None:
        self._replay = replay
        self._lender = Lender(Leases() if leases is None else leases)
        self._duplex = duplex
        self._credits = 0
        self._asked = asyncio.Event()
        self._unconsumed: deque[tuple[int, Draw]] = deque()
        self._seq = 0
        self._withdrawn = 0
        self._deadline: Deadline | None = None
        self._ending = False
        self._layouts: dict[ItemLayout, tuple[SampledLayout, list[int]]] = {}
        self._undeclared: list[SampledLayout] = []
        self._notices: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._table: Table
        self._wanted: Subscription

    async def run(self) -> None:
        """Serve the stream until its client ends it or vanishes; hand back what it did not consume."""
        message = await self._duplex.receive()
        if message is None:
            return
        request = SampleRequest.from_message(message)
        if request.subscribe is None:
            raise InvalidArgument("the first message of a Sample stream must subscribe to a table")
        self._wanted = request.subscribe
        self._table = self._replay.table(self._wanted.table)
        self._table.num_samplers += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                answering = tasks.create_task(self._answer(tasks))
                while True:
                    self._work_off(request)
                    if self._ending:
                        break
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
        self._asked.set()

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

    async def _answer(self, tasks: asyncio.TaskGroup) -> None:
        """Answer credits, one batch each, in order."""

        def tell(reason: str) -> None:
            notice = tasks.create_task(self._send(SampleResponse(waiting=reason)))
            self._notices.add(notice)
            notice.add_done_callback(self._notices.discard)

        while True:
            while not self._credits and not self._ending:
                self._asked.clear()
                await self._asked.wait()
            if self._ending:
                return
            if len(self._unconsumed) >= MAX_UNCONSUMED_BATCHES:
                raise ResourceExhausted(f"{len(self._unconsumed)} batches were sent and not acknowledged")
            self._credits -= 1
            self._seq += 1
            self._deadline = Deadline(0 if self._seq <= self._withdrawn else None)
            try:
                draw = await self._table.sample(
                    self._wanted.batch_size, deadline=self._deadline, partial=self._wanted.partial, notice=tell
                )
            except DeadlineExceeded as error:
                await self._send(SampleResponse(failed=[(self._seq, error.to_map())]))
                continue
            finally:
                self._deadline = None
            plan = self._table.plan(draw)
            self._unconsumed.append((self._seq, draw))
            lending = self._lender.lend(self._seq, draw, plan, [self._declared(layout) for layout in plan.layouts])
            if lending is not None:
                await self._send(SampleResponse(self._declarations()), lending)
            else:
                pieces = await self._gather(plan)
                await self._send(self._response(draw, pieces, plan.layouts))
            # Neither drawing nor sending is certain to suspend; without this a fast stream would starve all others.
            await asyncio.sleep(0)

    async def _gather(self, plan: GatherPlan) -> list[Piece]:
        """Copy the rows, in a thread when there are many."""
        wanted = [self._declared(layout)[1] for layout in plan.layouts]
        if plan.nbytes <= MAX_INLINE_GATHER_BYTES:
            return plan.run(wanted)
        plan.pin()
        gathering = asyncio.get_running_loop().run_in_executor(None, plan.run, wanted)
        gathering.add_done_callback(lambda _: plan.unpin())
        return await asyncio.shield(gathering)  # When this stream is cancelled, the thread still reads the rows.

    def _declared(self, layout: ItemLayout) -> tuple[SampledLayout, list[int]]:
        """Return the stream's name for a layout and the leaves wanted of it."""
        known = self._layouts.get(layout)
        if known is None:
            if len(self._layouts) >= MAX_SAMPLED_LAYOUTS:
                raise ResourceExhausted(f"the items of this stream have more than {MAX_SAMPLED_LAYOUTS} layouts")
            structure, leaves = _selected(layout, self._wanted.columns)
            chosen = [layout.leaves[at] for at in leaves]
            sampled = SampledLayout(
                len(self._layouts),
                structure,
                len(layout.stores),
                tuple((leaf.view, leaf.squeeze, layout.row_spec(leaf)) for leaf in chosen),
            )
            known = self._layouts[layout] = (sampled, leaves)
            self._undeclared.append(sampled)
        return known

    def _declarations(self) -> list[SampledLayout]:
        """Return the layouts the client was not told about yet."""
        declared, self._undeclared = self._undeclared, []
        return declared

    def _response(self, draw: Draw, pieces: list[Piece], layouts: Sequence[ItemLayout]) -> SampleResponse:
        batch = SampledBatch(
            self._seq,
            draw.keys,
            draw.probabilities,
            draw.priorities,
            draw.times_sampled,
            draw.table_sizes,
            draw.inserted_at,
            draw.rate_limited,
            [SampledPiece.of(self._declared(layout)[0], piece) for layout, piece in zip(layouts, pieces, strict=True)],
        )
        return SampleResponse(self._declarations(), [batch])

    async def _send(self, response: SampleResponse, lending: Lending | None = None) -> None:
        async with self._sending:
            message = response.to_message()
            if lending is not None:
                lending.put(message)
            await self._duplex.send(message)


def _selected(layout: ItemLayout, columns: list[Path] | None) -> tuple[Structure, list[int]]:
    if columns is None:
        return layout.structure, list(range(len(layout.leaves)))
    return layout.structure.select(columns)
