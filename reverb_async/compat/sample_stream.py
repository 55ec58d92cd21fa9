"""The server's end of a SampleStream: draw what is asked for as it becomes available, and send it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from reverb_async.compat.sampled_items import Portion, portions
from reverb_async.compat.wire_format import SampleRequest, read_sample_request
from reverb_async.core.draw import Draw
from reverb_async.errors import InvalidArgument
from reverb_async.table import Table
from reverb_async.waiting import Deadline

if TYPE_CHECKING:
    from reverb_async.compat.bytes_stream import BytesStream
    from reverb_async.compat.service import DeepMindService

FIRST_DRAW = 128
"""Samples drawn at once at first for a request; then twice as many each time."""

MAX_DRAWN = 4096
MAX_DRAWN_BYTES = 8 << 20
"""What is drawn at once at most, by number and, as the table's items are on average, by size."""

MAX_TIMEOUT_MS = 10**12
"""Longer is for ever."""


class SampleStream:
    """One worker of a learner's sampler.

    Every request asks for a number of samples, which are sent as the table has them; the next request is read when all
    are out. What is drawn and not sent when the client vanishes goes back to the table.
    """

    def __init__(self, service: DeepMindService, stream: BytesStream) -> None:
        self._service = service
        self._stream = stream

    async def run(self) -> None:
        """Serve the stream until its client ends it or vanishes."""
        while (body := await self._stream.receive()) is not None:
            request = read_sample_request(body)
            if request.num_samples < 1:
                raise InvalidArgument(f"`num_samples` must be > 0 (got{request.num_samples}).")
            table = self._service.replay.table(request.table)
            table.num_samplers += 1
            try:
                await self._answer(table, request)
            finally:
                table.num_samplers -= 1

    async def _answer(self, table: Table, request: SampleRequest) -> None:
        left, most = request.num_samples, FIRST_DRAW
        while left:
            # Each wait may take all the time: DeepMind's server, too, starts anew with every part of an answer.
            deadline = Deadline(_timeout(request.timeout_ms))
            number = min(left, most, _room(table))
            draw = await table.sample(number, deadline=deadline, any_number=True, peer=self._stream.peer)
            left -= len(draw)
            most = min(2 * most, MAX_DRAWN)
            await self._send(table, draw)
            if left:
                # Neither drawing nor sending is certain to suspend; without this one stream would starve all others.
                await asyncio.sleep(0)

    async def _send(self, table: Table, draw: Draw) -> None:
        """Send what was drawn. A sample whose message was sent counts as delivered, the others return."""
        memory = self._service.replay.memory
        sent = 0
        waiting: list[Portion] = []
        try:
            waiting = portions(self._service, table, draw)
            while waiting:
                portion = waiting.pop(0)
                message = await portion.message()
                memory.used += len(message)
                try:
                    await self._stream.send([message])
                finally:
                    memory.give_back(len(message))
                table.acknowledge(draw.part(sent, sent + portion.count))
                sent += portion.count
        finally:
            for portion in waiting:
                portion.close()
            if sent < len(draw):
                table.hand_back(draw.part(sent, len(draw)))


def _room(table: Table) -> int:
    """Return how many items to draw at once, by what they have on average."""
    state = table.state
    return max(1, MAX_DRAWN_BYTES * state.size // max(1, state.nbytes))


def _timeout(milliseconds: int | None) -> float | None:
    """Return a timeout in seconds; None is for ever."""
    return None if milliseconds is None or not 0 <= milliseconds < MAX_TIMEOUT_MS else milliseconds / 1000
