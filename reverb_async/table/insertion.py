"""What happens when an insert must wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack

from reverb_async.core.item import ItemBlock
from reverb_async.errors import RateLimiterTimeout, ReplayError
from reverb_async.table.table import Notice, Table
from reverb_async.waiting import Deadline, reported


def insert_now(tables: Sequence[Table], blocks: Sequence[ItemBlock]) -> bool:
    """Insert rows, one block per table, if nobody waits before them and the tables accept and admit all of them.

    Returns:
        Whether they are in; otherwise nothing has changed.
    """
    count = len(blocks[0])
    for table, block in zip(tables, blocks, strict=True):
        if len(table.inserters) or count > table.state.max_insert or table.state.admitted_inserts(count) < count:
            return False
        try:
            table.raise_if_closed()
            table.check(block)
        except ReplayError:
            return False
    for table, block in zip(tables, blocks, strict=True):
        table.insert_now(block)
    return True


class RowInsertion:
    """Rows on their way into one or several tables; each row enters all of them in one step, and rows enter in order.

    Args:
        tables: distinct tables.
        blocks: one block of checked items per table, all of the same length; row `i` is item `i` of each.
        admitted: called with a number of rows, in the very step that inserted them.
    """

    def __init__(self, tables: Sequence[Table], blocks: Sequence[ItemBlock], admitted: Callable[[int], None]) -> None:
        self._tables = tables
        self._blocks = blocks
        self._admitted = admitted
        self._total = len(blocks[0])
        self._done = 0
        self._standing = ExitStack()

    @property
    def remaining(self) -> int:
        """How many rows are not in yet."""
        return self._total - self._done

    def try_now(self) -> bool:
        """Insert without waiting and without overtaking anybody; return whether all rows are in.

        If not, the caller holds a place in the queues from now on: it must run `wait`, and call `leave` in the end.
        """
        if not any(len(table.inserters) for table in self._tables):
            self._step()
        if not self.remaining:
            return True
        for table in self._tables:
            self._standing.enter_context(table.inserters.standing())
        return False

    async def wait(self, deadline: Deadline, notice: Notice | None = None) -> None:
        """Insert the remaining rows as the rate limiters admit them. Rows that are in stay when this ends early.

        Args:
            deadline: when to give up.
            notice: called with a text when the wait gets long.

        Raises:
            RateLimiterTimeout: the deadline passed first.
            TableClosed: a table was closed.
        """
        try:
            with reported(self._refusal, notice):
                async with deadline, AsyncExitStack() as turns:
                    for table in sorted(self._tables, key=lambda table: table.name):  # One order for all: no deadlock.
                        if len(table.inserters) > 1:
                            deadline.check()
                        await turns.enter_async_context(table.inserters.turn)
                    while self.remaining:
                        if not self._step():
                            deadline.check()
                            await self._blocking().inserters.wait()
                        elif self.remaining:
                            await asyncio.sleep(0)
        except TimeoutError:
            raise RateLimiterTimeout(self._refusal()) from None

    def leave(self) -> None:
        """Give up the place in the queues. Idempotent."""
        self._standing.close()

    def _step(self) -> int:
        """Insert what all tables admit now; return how many rows."""
        count = self.remaining
        for table in self._tables:
            table.raise_if_closed()
            count = table.state.admitted_inserts(min(count, table.state.max_insert))
        if count:
            for table, block in zip(self._tables, self._blocks, strict=True):
                table.insert_now(block.part(self._done, self._done + count))
            self._done += count
            self._admitted(count)
        return count

    def _blocking(self) -> Table:
        return next((table for table in self._tables if not table.state.admitted_inserts(1)), self._tables[0])

    def _refusal(self) -> str:
        return self._blocking().insert_refusal()
