"""From draws to the message that carries them: layouts declared, rows gathered, buffers laid out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.core.draw import Draw
from reverb_async.core.gather import GatherPlan, Piece
from reverb_async.core.item import ItemLayout
from reverb_async.core.nest import Path, Structure
from reverb_async.core.variable import VariableRows
from reverb_async.errors import ResourceExhausted
from reverb_async.protocol.packing import PackedBatches, Packer, PieceHead
from reverb_async.protocol.sampled import SampledBatch, SampledLayout, SampledPiece
from reverb_async.protocol.sampling import SampleResponse, Subscription

MAX_INLINE_GATHER_BYTES = 4 << 20
"""Larger gathers run in a thread: a 144 MB gather on the loop would stall it for 39 ms."""

MAX_SAMPLED_LAYOUTS = 4096
"""Distinct item layouts that one stream may meet."""

Outs: TypeAlias = list[list[NDArray[Any] | None]]
"""Per layout of a plan, where the rows of each wanted leaf go."""


@dataclass(slots=True)
class Drawn:
    """Batches with consecutive numbers that were drawn in one step.

    Attributes:
        seq: the first one's number.
        count: how many.
        draw: the items of all of them.
        plan: their rows.
    """

    seq: int
    count: int
    draw: Draw
    plan: GatherPlan


@dataclass(slots=True)
class Gathering:
    """A response whose rows a thread still copies.

    Attributes:
        rows: the pieces of each plan, once they are copied.
        finish: makes the response of them.
        first: the number of the first batch in it.
    """

    rows: asyncio.Future[list[list[Piece]]]
    finish: Callable[[list[list[Piece]]], SampleResponse]
    first: int

    async def response(self) -> SampleResponse:
        """Wait for the rows; return the message to send. Raises `DamagedChunks` as `SampleAnswers.response` does."""
        return self.finish(await asyncio.shield(self.rows))  # When this stream is cancelled, the thread goes on.


class SampleAnswers:
    """Makes the responses of one stream.

    Args:
        wanted: what the stream's client has subscribed to.
        pool: where batches are gathered.
    """

    def __init__(self, wanted: Subscription, pool: BufferPool) -> None:
        self._wanted = wanted
        self._pool = pool
        self._layouts: dict[ItemLayout, tuple[SampledLayout, list[int]]] = {}
        self._undeclared: list[SampledLayout] = []
        self._packer = Packer()

    def response(self, drawn: Sequence[Drawn]) -> SampleResponse | Gathering:
        """Gather the rows of fresh draws, in a thread when there are many, and return the message to send.

        To be called in the step that drew; the rows are the draws' until they are gathered.

        Raises:
            DamagedChunks: encoded items cannot be decoded.
        """
        wanted = [[self.declared(part.layout)[1] for part in each.plan.parts] for each in drawn]
        if not self._wanted.together:
            return _gather(drawn, wanted, [None] * len(drawn), partial(self._plain, drawn))
        laid_out = [self._lay_out(each) for each in drawn]
        return _gather(drawn, wanted, [outs for _, outs in laid_out], partial(self._packed, laid_out))

    def declared(self, layout: ItemLayout) -> tuple[SampledLayout, list[int]]:
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
                layout.num_views,
                tuple((leaf.view, leaf.squeeze, layout.row_spec(leaf)) for leaf in chosen),
            )
            known = self._layouts[layout] = (sampled, leaves)
            self._undeclared.append(sampled)
        return known

    def declarations(self) -> list[SampledLayout]:
        """Return the layouts the client was not told about yet; from now on it was."""
        declared, self._undeclared = self._undeclared, []
        return declared

    def _plain(self, drawn: Sequence[Drawn], gathered: list[list[Piece]]) -> SampleResponse:
        batches = []
        for each, pieces in zip(drawn, gathered, strict=True):
            sampled = [SampledPiece.of(self.declared(piece.layout)[0], piece) for piece in pieces]
            batches.append(SampledBatch.of(each.seq, each.draw, sampled))
        return SampleResponse(self.declarations(), batches)

    def _packed(self, laid_out: list[tuple[PackedBatches, Outs]], gathered: list[list[Piece]]) -> SampleResponse:
        entries = [entry for entry, _ in laid_out]
        for entry, pieces in zip(entries, gathered, strict=True):
            columns = (column for piece in pieces for column in piece.columns)
            entry.variable = [column for column in columns if isinstance(column, VariableRows)]
        return SampleResponse(self.declarations(), packed=entries)

    def _lay_out(self, drawn: Drawn) -> tuple[PackedBatches, Outs]:
        """Return an entry without its columns, and the places for those of fixed rows."""
        draw, parts = drawn.draw, drawn.plan.parts
        heads = []
        for part in parts:
            lengths = tuple([length if isinstance(length, int) else -1 for length in part.lengths])
            heads.append(PieceHead(self.declared(part.layout)[0], part.count, part.positions is not None, lengths))
        if len(heads) == 1 and heads[0].is_even:
            places = self._packer.even(heads[0])
        else:
            places = self._packer.heads(len(draw), heads)
            for head, part in zip(heads, parts, strict=True):
                self._packer.columns(places, head, part.totals)
        buffer = self._pool.take(places.nbytes)
        arrays = iter(places.arrays(buffer))
        info = (draw.keys, draw.probabilities, draw.priorities, draw.times_sampled, draw.table_sizes, draw.inserted_at)
        for values, array in zip(info, arrays, strict=False):
            array[...] = values
        for part in parts:
            for given in (part.positions, *part.lengths):
                if isinstance(given, np.ndarray):
                    next(arrays)[...] = given
        outs: Outs = [
            list(islice(arrays, len(head.layout.leaves)))
            if head.layout.is_fixed
            else [None if spec.is_variable else next(arrays) for _, _, spec in head.layout.leaves]
            for head in heads
        ]
        size = len(draw) // drawn.count
        return PackedBatches(drawn.seq, drawn.count, size, draw.rate_limited, heads, buffer, []), outs


def _gather(
    drawn: Sequence[Drawn],
    wanted: Sequence[Sequence[Sequence[int]]],
    outs: Sequence[Outs | None],
    finish: Callable[[list[list[Piece]]], SampleResponse],
) -> SampleResponse | Gathering:
    """Copy the rows of all draws out, see `GatherPlan.run`."""
    plans = [each.plan for each in drawn]

    def run() -> list[list[Piece]]:
        return [plan.run(leaves, out) for plan, leaves, out in zip(plans, wanted, outs, strict=True)]

    def unpin(_: object) -> None:
        for plan in plans:
            plan.unpin()

    if sum([plan.nbytes for plan in plans]) <= MAX_INLINE_GATHER_BYTES:
        return finish(run())
    for plan in plans:
        plan.pin()
    rows = asyncio.get_running_loop().run_in_executor(None, run)
    rows.add_done_callback(unpin)
    return Gathering(rows, finish, drawn[0].seq)


def _selected(layout: ItemLayout, columns: list[Path] | None) -> tuple[Structure, list[int]]:
    if columns is None:
        return layout.structure, list(range(len(layout.leaves)))
    return layout.structure.select(columns)
