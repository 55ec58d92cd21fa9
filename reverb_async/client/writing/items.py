"""Items of a trajectory writer on their way to the server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.writing.connection import Connection
from reverb_async.client.writing.grouping import TrajectoryLayout
from reverb_async.client.writing.insert_session import InsertSession
from reverb_async.client.writing.outgoing import MAX_MESSAGE_BYTES, Block, Outgoing, stack_rows
from reverb_async.client.writing.windows import Range
from reverb_async.errors import ReplayError, Unavailable
from reverb_async.protocol.inserting import Items, Segments
from reverb_async.waiting import make_condition

NOTHING_NEEDED = 1 << 62
_MAX_ITEMS = 4096
_KEYS = 256
"""Keys taken from the client's at once."""


class ItemShape:
    """Items of one layout that differ in where they stand, in what they bring, and in nothing else.

    Attributes:
        layout: theirs.
        cuts: their distinct cuts, in the layout's order: ranges of steps (first, number), counted from where an item
            stands.
        lowest: the first of these steps; None if they show none.
        last: the last of them.
        nbytes: bytes an item shows, overlaps counted, and those of fixed size that it brings.
        varies: it brings more.
    """

    __slots__ = ("cuts", "last", "layout", "lowest", "nbytes", "varies")

    def __init__(self, layout: TrajectoryLayout, cuts: Sequence[tuple[Range, ...]]) -> None:
        self.layout = layout
        self.cuts = tuple(cuts)
        self.lowest = min((first for ranges in cuts for first, _ in ranges), default=None)
        self.last = max((first + length - 1 for ranges in cuts for first, length in ranges), default=0)
        self.nbytes = sum(
            length * step_bytes
            for ranges, step_bytes in zip(cuts, layout.cut_bytes, strict=True)
            for _, length in ranges
        )
        brought = () if layout.own is None else layout.own.specs
        self.nbytes += sum(spec.row_bytes for spec in brought if not spec.is_variable)
        self.varies = any(spec.is_variable for spec in brought)


class ItemBlock(Block):
    """Consecutive items of one layout for one table; columns of Python values, which become arrays when it is sent."""

    def __init__(self, queue: ItemQueue, layout: TrajectoryLayout, table: str) -> None:
        self.layout = layout
        self.table = table
        self.nbytes = 0
        """Bytes its items show, overlaps counted: no less than it will send."""
        self.lowest = NOTHING_NEEDED
        """The first step its items show."""
        self._queue = queue
        self._shapes: list[ItemShape] = []
        self._places: list[int] = []
        self._keys: list[int] = []
        self._priorities: list[float] = []
        self._episodes: list[int] = []
        self._own: list[list[Any]] = [[] for _ in layout.own.specs] if layout.own is not None else []
        self._unsettled = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(
        self, shape: ItemShape, place: int, key: int, priority: float, own: Sequence[Any], episodes: tuple[int, int]
    ) -> None:
        """Add an item that stands at step `place`, and brings values of its own."""
        self._shapes.append(shape)
        self._places.append(place)
        self._keys.append(key)
        self._priorities.append(priority)
        self._episodes += episodes
        self.nbytes += shape.nbytes
        if shape.lowest is not None and place + shape.lowest < self.lowest:
            self.lowest = place + shape.lowest
        if own:
            for column, value in zip(self._own, own, strict=True):
                column.append(value)
            if shape.varies:
                self.nbytes += self._variable_bytes(own)
        self._unsettled += 1

    def _variable_bytes(self, own: Sequence[Any]) -> int:
        assert self.layout.own is not None
        return sum(
            len(value) if isinstance(value, str | bytes) else value.nbytes
            for value, spec in zip(own, self.layout.own.specs, strict=True)
            if spec.is_variable
        )

    def write(self, out: Outgoing, seq: int, start: int, stop: int) -> None:
        """Add items, with the steps their stream does not have."""
        layout = self.layout
        layout.declare(out)
        cuts = self._segments(start, stop)
        views = [group.send(out, cuts[cut]) for group, cut in layout.views]
        if layout.own is not None:
            columns = [
                stack_rows(values[start:stop], spec) for values, spec in zip(self._own, layout.own.specs, strict=True)
            ]
            views.append(layout.own.send(out, stop - start, columns))
        out.add_items(
            Items(
                seq,
                layout.id,
                (self.table,),
                np.array([self._keys[start:stop]], np.uint64),
                np.array([self._priorities[start:stop]], np.float64),
                views,
                np.array(self._episodes[2 * start : 2 * stop], np.int64).reshape(-1, 2),
            )
        )

    def _segments(self, start: int, stop: int) -> list[Segments]:
        """Return the ranges of items, by cut."""
        cuts = [_Cut() for _ in self.layout.cut_bytes]
        places = iter(self._places[start:stop])
        for shape, same in itertools.groupby(self._shapes[start:stop]):
            at = [place for _, place in zip(same, places, strict=False)]
            for cut, ranges in zip(cuts, shape.cuts, strict=True):
                cut.add(at, ranges)
        return [cut.segments() for cut in cuts]

    def settled(self, start: int, stop: int, error: ReplayError | None) -> None:
        """Count items down."""
        self._unsettled -= stop - start
        self._queue.settled(self, stop - start, error, is_done=self._unsettled == 0)


class _Cut:
    """The ranges that items cut, one after the other; `counts` says how many each has."""

    __slots__ = ("counts", "first", "is_plain", "length")

    def __init__(self) -> None:
        self.first: list[int] = []
        self.length: list[int] = []
        self.counts: list[int] = []
        self.is_plain = True
        """Each item has one range."""

    def add(self, places: list[int], ranges: tuple[Range, ...]) -> None:
        """Add the ranges of items at these steps."""
        if len(ranges) == 1:
            ((first, length),) = ranges
            self.first += [place + first for place in places] if first else places
            self.length += [length] * len(places)
        else:
            self.is_plain = False
            self.first += [place + first for place in places for first, _ in ranges]
            self.length += [length for _, length in ranges] * len(places)
        self.counts += [len(ranges)] * len(places)

    def segments(self) -> Segments:
        return Segments(
            np.array(self.first, np.int64),
            np.array(self.length, np.int64),
            None if self.is_plain else np.array(self.counts, np.int64),
        )


class ItemQueue:
    """The items of one writer that the server has not confirmed, and those who wait for it to.

    Attributes:
        in_flight: how many items these are.
        unsent: how many of them came since the session last had sent all there was.
        error: what ended the writer for good: a refused item, or the end of its stream.
    """

    def __init__(self, connection: Connection, name: str, release: Callable[[Outgoing], None]) -> None:
        self.session = InsertSession(connection, self, name)
        self.in_flight = 0
        self.unsent = 0
        self.error: ReplayError | None = None
        self._name = name
        self._connection = connection
        self._release = release
        self._blocks: dict[ItemBlock, None] = {}
        self._last: dict[str, ItemBlock] = {}
        self._changed = make_condition()
        self._interruptions = 0
        self._interruption: Unavailable = Unavailable("")
        self._next_key = 0
        self._keys_left = 0

    # -- filling ------------------------------------------------------------------------------------------------------

    @property
    def has_key(self) -> bool:
        """Whether `add` has one, now that new ones may have been taken without asking the server."""
        if not self._keys_left:
            keys = self._connection.try_next_keys(_KEYS)
            if keys is None:
                return False
            self._take(keys)
        return True

    async def fetch_keys(self) -> None:
        """Get keys from the server."""
        self._take(await self._connection.next_keys(_KEYS))

    def _take(self, keys: NDArray[np.uint64]) -> None:
        self._next_key = int(keys[0])
        self._keys_left = len(keys)

    def add(
        self,
        table: str,
        shape: ItemShape,
        place: int,
        priority: float,
        own: Sequence[Any],
        episodes: tuple[int, int],
    ) -> int:
        """Queue an item, see `ItemBlock.add`; items of a table stay in order. Returns its key."""
        block = self._last.get(table)
        if (
            block is None
            or block.layout is not shape.layout
            or block.sealed
            or block.nbytes >= MAX_MESSAGE_BYTES
            or len(block) >= _MAX_ITEMS
        ):
            block = ItemBlock(self, shape.layout, table)
            self.session.submit(block)
            self._blocks[block] = None
            self._last[table] = block
        key = self._next_key
        block.add(shape, place, key, priority, own, episodes)
        self._next_key = key + 1
        self._keys_left -= 1
        self.in_flight += 1
        self.unsent += 1
        return key

    def needed_from(self) -> int:
        """Return the first step that unconfirmed items show."""
        return min((block.lowest for block in self._blocks), default=NOTHING_NEEDED)

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def wait_until(self, at_most: int) -> None:
        """Wait until no more than `at_most` items are unconfirmed.

        Raises:
            Unavailable: nothing answered for too long; the items stay queued.
            ReplayError: what ended the writer.
        """
        seen = self._interruptions
        if self.error is None and self.in_flight > at_most:
            self.session.speak_now()
            await self._changed.wait_for(
                lambda: self.error is not None or self.in_flight <= at_most or self._interruptions != seen
            )
        self.check()
        if self.in_flight > at_most:
            raise self._interruption.with_traceback(None)

    def check(self) -> None:
        """Raise what ended the writer, if something did."""
        if self.error is not None:
            raise self.error.with_traceback(None)

    # -- ending -------------------------------------------------------------------------------------------------------

    def drop(self, error: ReplayError) -> int:
        """End at once; return how many items the server had not confirmed."""
        unconfirmed = self.in_flight
        self.session.drop(error)
        return unconfirmed

    # -- for the session ----------------------------------------------------------------------------------------------

    def settled(self, block: ItemBlock, count: int, error: ReplayError | None, *, is_done: bool) -> None:
        """Count items down; remember the first refusal."""
        self.in_flight -= count
        if error is not None and self.error is None:
            self.error = error
        if is_done and block.sealed:
            del self._blocks[block]
            if self._last.get(block.table) is block:
                del self._last[block.table]
        self._changed.notify_all()

    def all_sent(self, out: Outgoing) -> None:
        """Release steps."""
        self.unsent = 0
        self._release(out)

    def interrupted(self, error: Unavailable) -> None:
        """Let those who wait know."""
        self._interruptions += 1
        self._interruption = error
        self._changed.notify_all()

    def failed(self, error: ReplayError) -> None:
        """Let those who wait, and all who come, know."""
        if self.error is None:
            self.error = error
        self._changed.notify_all()
