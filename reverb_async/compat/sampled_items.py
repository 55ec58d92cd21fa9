"""From a draw to the messages that carry it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.native_items import FlatItem, NativePart
from reverb_async.compat.wire_format import SampleInfos, write_sample_response
from reverb_async.core.draw import Draw
from reverb_async.core.encoded import EncodedItems, EncodedLayout
from reverb_async.core.runs import Rows, Runs
from reverb_async.core.slots import Slots
from reverb_async.table import Table

if TYPE_CHECKING:
    from reverb_async.compat.service import DeepMindService

MESSAGE_BYTES = 2 << 20
"""A message gets no further sample beyond so many bytes."""

MAX_INLINE_BYTES = 4 << 20
"""What is longer is read, encoded and joined in a thread."""


class EncodedPart:
    """The encoded items of one layout in a draw, in its order."""

    def __init__(self, encoded: EncodedItems, layout: EncodedLayout, slots: Slots, drawn: Rows) -> None:
        self._encoded = encoded
        self._layout = layout
        self._views = [slots.runs(view, drawn) for view in range(len(layout.stores))]

    def pin(self) -> None:
        """Keep the rows from being reused until `unpin`."""
        for store, runs in zip(self._layout.stores, self._views, strict=True):
            store.pin(runs.rows())

    def unpin(self) -> None:
        """Let go of the rows."""
        for store, runs in zip(self._layout.stores, self._views, strict=True):
            store.unpin(runs.rows())

    def read(self) -> list[FlatItem]:
        """Return the items; in a thread, if the rows are pinned."""
        return [FlatItem(*answer) for answer in self._encoded.answers(self._layout, *self._views)]

    def remember(self) -> None:
        """Do nothing: these are kept as they are sent."""


class Portion:
    """Samples of a draw that go into one message; to be made in the step that drew.

    Attributes:
        count: how many.
    """

    def __init__(self, service: DeepMindService, table: Table, draw: Draw, nbytes: int) -> None:
        self.count = len(draw)
        self._name = table.name
        self._nbytes = nbytes
        self._infos = SampleInfos(
            *(draw.keys, draw.priorities, draw.times_sampled, draw.probabilities, draw.table_sizes),
            *(draw.rate_limited, draw.inserted_at),
        )
        self._parts: list[tuple[NDArray[np.intp] | None, EncodedPart | NativePart]] = []
        self._is_pinned = False
        slots = table.state.slots
        for layout_id, positions in slots.by_layout(draw.slots):
            drawn = draw.slots if positions is None else draw.slots[positions]
            layout = slots.layouts[layout_id]
            if isinstance(layout, EncodedLayout):
                self._parts.append((positions, EncodedPart(service.encoded, layout, slots, drawn)))
            else:
                versions = draw.versions if positions is None else draw.versions[positions]
                self._parts.append((positions, service.native_items.part(table, drawn, versions)))

    def pin(self) -> None:
        """Keep the rows from being reused until the message is made, or `close`."""
        if not self._is_pinned:
            self._is_pinned = True
            for _, part in self._parts:
                part.pin()

    def close(self) -> None:
        """Let go of the rows."""
        if self._is_pinned:
            self._is_pinned = False
            for _, part in self._parts:
                part.unpin()

    async def message(self) -> bytes:
        """Return the message, and let go of the rows; in the step that drew, unless they are pinned.

        Raises:
            InvalidArgument: an item cannot be expressed in DeepMind's protocol.
        """
        if self._nbytes <= MAX_INLINE_BYTES:
            try:
                message = self._read()
            finally:
                self.close()
        else:
            self.pin()
            reading = asyncio.get_running_loop().run_in_executor(None, self._read)
            reading.add_done_callback(lambda _: self.close())
            message = await asyncio.shield(reading)  # When the stream is cancelled, the thread still reads the rows.
        for _, part in self._parts:
            part.remember()
        return message

    def _read(self) -> bytes:
        items: list[FlatItem | None] = [None] * self.count
        for positions, part in self._parts:
            for place, item in zip(
                range(self.count) if positions is None else positions.tolist(), part.read(), strict=True
            ):
                items[place] = item
        samples = [(item.trajectory, item.chunks) for item in items if item is not None]
        return write_sample_response(self._name, self._infos, samples)


def portions(service: DeepMindService, table: Table, draw: Draw) -> list[Portion]:
    """Cut a fresh draw into messages; if there are several, the rows of all are pinned."""
    most = _at_most(table.state.slots, draw.slots)
    if most <= MESSAGE_BYTES:
        return [Portion(service, table, draw, most)]
    sizes = _sizes(table.state.slots, draw.slots)
    total = int(sizes.sum())
    if total <= MESSAGE_BYTES:
        return [Portion(service, table, draw, total)]
    cut: list[Portion] = []
    start = 0
    ends = np.cumsum(sizes)
    while start < len(draw):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + MESSAGE_BYTES, side="right")))
        cut.append(Portion(service, table, draw.part(start, stop), int(ends[stop - 1]) - before))
        start = stop
    if len(cut) > 1:
        for portion in cut:
            portion.pin()
    return cut


def _at_most(slots: Slots, drawn: Rows) -> int:
    """Return how many bytes a draw takes at most, as `_sizes` counts them; much quicker."""
    most = 0
    for layout_id, positions in slots.by_layout(drawn):
        layout = slots.layouts[layout_id]
        members = drawn if positions is None else drawn[positions]
        if isinstance(layout, EncodedLayout):
            most += int(slots.runs(1, members).length.sum()) * layout.stores[1].largest_bytes
        else:
            most += int(slots.nbytes[members].sum())
    return most


def _sizes(slots: Slots, drawn: Rows) -> NDArray[np.int64]:
    """Return about how many bytes each item of a draw takes, encoded ones as they are, others decoded."""
    sizes: NDArray[np.int64] = slots.nbytes[drawn]
    for layout_id, positions in slots.by_layout(drawn):
        layout = slots.layouts[layout_id]
        if isinstance(layout, EncodedLayout):
            runs = slots.runs(1, drawn if positions is None else drawn[positions])
            sizes[slice(None) if positions is None else positions] = _bytes_of(layout, runs)
    return sizes


def _bytes_of(layout: EncodedLayout, runs: Runs) -> NDArray[np.int64]:
    """Return the bytes of the chunks each item refers to."""
    starts = np.cumsum(runs.length) - runs.length
    return np.add.reduceat(layout.stores[1].bytes_of(runs.rows()), starts)
