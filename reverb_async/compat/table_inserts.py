"""The way of an insert stream's items into one table, which may be a long wait."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from reverb_async.core.item import ItemBlock
from reverb_async.errors import ReplayError
from reverb_async.replay import Replay
from reverb_async.table import RowInsertion, Table
from reverb_async.waiting import Deadline

MIN_WAITING_ITEMS = 16
MIN_WAITING_BYTES = 16 << 20
"""A stream is read on while fewer items wait for a table, however small it is, unless they show more bytes."""


class TableInserts:
    """The items of one stream for one table, in order, and the hold on their rows while they wait.

    Args:
        table: the table.
        replay: what the table belongs to.
        confirm: called with the keys of items, in the step that inserted them.
        failed: called with what ended the wait of items before they were in.
        peer: where they come from.

    Attributes:
        count: how many wait.
        nbytes: what they show.
    """

    def __init__(
        self,
        table: Table,
        replay: Replay,
        confirm: Callable[[list[int]], None],
        failed: Callable[[ReplayError], None],
        peer: str = "",
    ) -> None:
        self._peer = peer
        self.count = 0
        self.nbytes = 0
        self._limit = max(1, min(table.state.max_size // 10, 1000))
        self._table = table
        self._encoded = replay.encoded
        self._memory = replay.memory
        self._max_bytes = replay.limits.client_bytes
        self._confirm = confirm
        self._failed = failed
        self._waiting: deque[tuple[RowInsertion, ItemBlock]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def room(self) -> int:
        """How many more items may wait before the stream is read no further; not above 0: it is not.

        A tenth of the table, as with DeepMind's server, but a few small ones in any case: others may be for other
        tables. None while they show more than a stream may hold, or its share while memory is full.
        """
        if self.nbytes and self.nbytes > (self._memory.share if self._memory.is_full else self._max_bytes):
            return 0
        few = MIN_WAITING_ITEMS if self.nbytes < MIN_WAITING_BYTES else 0
        return max(self._limit, few) - self.count

    def insert(self, block: ItemBlock) -> None:
        """Insert what the table admits of checked items, whose records the caller has put; the rest waits.

        Raises:
            TableClosed: the server is stopping.
        """
        keys: list[int] = block.keys.tolist()
        done = 0

        def admitted(count: int) -> None:
            nonlocal done
            self.count -= count
            self._confirm(keys[done : done + count])
            done += count

        insertion = RowInsertion([self._table], [block], admitted, self._peer)
        self.count += len(keys)
        try:
            is_done = insertion.try_now()
        except BaseException:
            self._drop(insertion, block)
            raise
        if is_done:
            self._drop(insertion, block)
            return
        block.layout.stores[1].pin(block.views[1].rows())  # the stream may drop them meanwhile
        self._waiting.append((insertion, block))
        self.nbytes += int(block.nbytes.sum())
        if self._task is None:
            self._task = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        try:
            while self._waiting:
                # Those behind the first stand in the table's queue as well.
                await self._waiting[0][0].wait(Deadline(None))
                self._let_go()
        except ReplayError as error:
            self._failed(error)
        finally:
            self._task = None
            for insertion, _ in self._waiting:
                insertion.leave()
            while self._waiting:
                self._let_go()

    def _let_go(self) -> None:
        insertion, block = self._waiting.popleft()
        block.layout.stores[1].unpin(block.views[1].rows())
        self.nbytes -= int(block.nbytes.sum())
        self._drop(insertion, block)

    def _drop(self, insertion: RowInsertion, block: ItemBlock) -> None:
        self._encoded.drop_records(block)
        self.count -= insertion.remaining

    def when_done(self, call: Callable[[TableInserts], object]) -> None:
        """Call something once nothing waits any more."""
        if self._task is None:
            call(self)
        else:
            self._task.add_done_callback(lambda _: call(self))

    def withdraw(self) -> None:
        """Take back what has not entered."""
        if self._task is not None:
            self._task.cancel()

    async def finish(self) -> None:
        """Wait until nothing waits any more."""
        if self._task is not None:
            await asyncio.wait({self._task})
