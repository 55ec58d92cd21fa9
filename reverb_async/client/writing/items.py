"""Items of a trajectory writer on their way to the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.writing.grouping import TrajectoryLayout
from reverb_async.client.writing.history import Range
from reverb_async.client.writing.insert_session import Connection, InsertSession
from reverb_async.client.writing.outgoing import MAX_MESSAGE_BYTES, Block, Outgoing, stack_rows
from reverb_async.core.leaf import Leaf
from reverb_async.errors import ReplayError, Unavailable
from reverb_async.protocol.inserting import Items, Segments
from reverb_async.waiting import make_condition

NOTHING_NEEDED = 1 << 62
_MAX_ITEMS = 4096
_KEYS = 256
"""Keys taken from the client's at once."""


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
        self._keys: list[int] = []
        self._priorities: list[float] = []
        self._episodes: list[int] = []
        self._views = [_View() for _ in layout.cut_bytes]
        self._own: list[list[Leaf]] = [[] for _ in layout.own.specs] if layout.own is not None else []
        self._unsettled = 0

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def is_full(self) -> bool:
        """Whether the next item needs another block."""
        return self.sealed or self.nbytes >= MAX_MESSAGE_BYTES or len(self._keys) >= _MAX_ITEMS

    def add(
        self,
        key: int,
        priority: float,
        cuts: Sequence[tuple[Range, ...]],
        own: Sequence[Leaf],
        episodes: tuple[int, int],
    ) -> None:
        """Add an item: its distinct cuts, in the layout's order, and the values that come with it."""
        self._keys.append(key)
        self._priorities.append(priority)
        self._episodes += episodes
        for view, ranges, step_bytes in zip(self._views, cuts, self.layout.cut_bytes, strict=True):
            if len(ranges) == 1:
                ((first, length),) = ranges
                view.first.append(first)
                view.length.append(length)
                view.counts.append(1)
                self.nbytes += length * step_bytes
                if first < self.lowest:
                    self.lowest = first
            else:
                view.is_plain = False
                view.counts.append(len(ranges))
                for first, length in ranges:
                    view.first.append(first)
                    view.length.append(length)
                    self.nbytes += length * step_bytes
                    self.lowest = min(self.lowest, first)
        for column, value in zip(self._own, own, strict=True):
            column.append(value)
            self.nbytes += value.nbytes if isinstance(value, np.ndarray) else len(value)
        self._unsettled += 1

    def write(self, out: Outgoing, seq: int, start: int, stop: int) -> None:
        """Add items, with the steps their stream does not have."""
        layout = self.layout
        layout.declare(out)
        cuts = [view.segments(start, stop) for view in self._views]
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

    def settled(self, start: int, stop: int, error: ReplayError | None) -> None:
        """Count items down."""
        self._unsettled -= stop - start
        self._queue.settled(self, stop - start, error, is_done=self._unsettled == 0)


class _View:
    """The ranges that a block's items cut, one after the other; `counts` says how many each has."""

    __slots__ = ("counts", "first", "is_plain", "length")

    def __init__(self) -> None:
        self.first: list[int] = []
        self.length: list[int] = []
        self.counts: list[int] = []
        self.is_plain = True
        """Each item has one range."""

    def segments(self, start: int, stop: int) -> Segments:
        if self.is_plain:
            return Segments(np.array(self.first[start:stop], np.int64), np.array(self.length[start:stop], np.int64))
        counts = np.array(self.counts[start:stop], np.int64)
        begin = sum(self.counts[:start])
        ranges = slice(begin, begin + int(counts.sum()))
        return Segments(np.array(self.first[ranges], np.int64), np.array(self.length[ranges], np.int64), counts)


class ItemQueue:
    """The items of one writer that the server has not confirmed, and those who wait for it to.

    Attributes:
        in_flight: how many items these are.
        error: what ended the writer for good: a refused item, or the end of its stream.
    """

    def __init__(self, connection: Connection, name: str, release: Callable[[Outgoing], None]) -> None:
        self.session = InsertSession(connection, self, name)
        self.in_flight = 0
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
        """Whether `take_key` has one, now that new ones may have been taken without asking the server."""
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

    def block(self, layout: TrajectoryLayout, table: str) -> ItemBlock:
        """Return the block that the next item of this layout goes to; items of a table stay in order."""
        block = self._last.get(table)
        if block is None or block.layout is not layout or block.is_full:
            block = ItemBlock(self, layout, table)
            self.session.submit(block)
            self._blocks[block] = None
            self._last[table] = block
        return block

    def count(self) -> int:
        """Note that a block has got one more item; return the item's key."""
        self.in_flight += 1
        self._keys_left -= 1
        key = self._next_key
        self._next_key = key + 1
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
