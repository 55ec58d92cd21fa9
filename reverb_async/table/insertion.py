"""What happens when an insert must wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice

from reverb_async.core.item import ItemBlock
from reverb_async.errors import RateLimiterTimeout, ReplayError, ResourceExhausted
from reverb_async.table.insert_queue import MAX_SERVED, MAX_SERVED_ROWS
from reverb_async.table.table import Notice, Table
from reverb_async.waiting import Deadline, make_condition, reported


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
            table.raise_if_refusing()
            table.check(block)
        except ReplayError:
            return False
    for table, block in zip(tables, blocks, strict=True):
        table.insert_now(block)
    return True


class RowInsertion:
    """Rows on their way into one or several tables; each row enters all of them in one step, and rows enter in order.

    Those that wait join the queues of all tables in one step, and are served when they are the first in each: so two
    insertions stand in the same order wherever they meet, and cannot wait for each other.

    Args:
        tables: distinct tables.
        blocks: one block of checked items per table, all of the same length; row `i` is item `i` of each.
        admitted: called with a number of rows, in the very step that inserted them.
        peer: where they come from.

    Attributes:
        since: when the wait began, on the event loop's clock.
    """

    since = 0.0

    def __init__(
        self,
        tables: Sequence[Table],
        blocks: Sequence[ItemBlock],
        admitted: Callable[[int], None],
        peer: str = "",
    ) -> None:
        self.peer = peer
        self._tables = tables
        self._blocks = blocks
        self._admitted = admitted
        self._total = len(blocks[0])
        self._done = 0
        self._error: BaseException | None = None
        self._is_over = False
        self._changed: asyncio.Condition

    @property
    def remaining(self) -> int:
        """How many rows are not in yet."""
        return self._total - self._done

    def try_now(self) -> bool:
        """Insert without waiting and without overtaking anybody; return whether all rows are in.

        If not, the rows stand in the queues from now on: the caller must run `wait`, and call `leave` in the end.
        """
        if not any(len(table.inserters) for table in self._tables):
            self._step()
        if not self.remaining:
            return True
        self._changed = make_condition()
        self.since = asyncio.get_running_loop().time()
        for table in self._tables:
            table.inserters.join(self)
        self._tables[0].inserters.wake()  # `max_insert`, not a rate limiter, may have ended the first step.
        return False

    def serve(self) -> int:
        """Insert what the tables admit now, if it is these rows' turn; see `Waiting`."""
        before = self.remaining
        try:
            for table in self._tables:
                table.raise_if_ending()
            if any(table.inserters.head is not self for table in self._tables):
                return 0
            return self._step_together(self._alike())
        except BaseException as error:
            self._finish(error)
            if not isinstance(error, ReplayError):
                raise
            return before

    async def wait(self, deadline: Deadline, notice: Notice | None = None) -> None:
        """Wait until all rows are in. Rows that are in stay when this ends early, the others never will be.

        Args:
            deadline: when to give up.
            notice: called with a text when the wait gets long.

        Raises:
            RateLimiterTimeout: the deadline passed first.
            ResourceExhausted: the deadline passed first, or `give_up` was called, because memory is full.
            TableClosed: a table was closed.
        """
        try:
            with reported(self._refusal, notice, crowd=self._tables[0].inserters):
                async with deadline:
                    while not self._is_over:
                        deadline.check()
                        await self._changed.wait()
        except TimeoutError:
            if self.remaining and self._error is None:
                kind = ResourceExhausted if self._blocking().state.waits_for_memory else RateLimiterTimeout
                raise kind(self._refusal()) from None
        finally:
            self.leave()
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # It refers to this frame.

    def leave(self) -> None:
        """Give up the place in the queues. Idempotent."""
        for table in self._tables:
            table.inserters.leave(self)

    def give_up(self, error: ResourceExhausted) -> None:
        """End the wait with an error, which is about memory."""
        if not self._is_over:
            self._finish(ResourceExhausted(f"table {self._blocking().name!r} {error}"))

    def _finish(self, error: BaseException | None) -> None:
        self._error = error
        self._is_over = True
        self.leave()
        self._changed.notify_all()

    def _step(self) -> int:
        """Insert what all tables admit now; return how many rows."""
        count = self._admissible(self.remaining)
        if count:
            for table, block in zip(self._tables, self._blocks, strict=True):
                table.insert_now(block.part(self._done, self._done + count))
            self._enter(count)
        return count

    def _admissible(self, count: int) -> int:
        for table in self._tables:
            table.raise_if_refusing()
            count = table.state.admitted_inserts(min(count, table.state.max_insert))
        return count

    def _enter(self, count: int) -> None:
        self._done += count
        self._admitted(count)

    def _alike(self) -> list[RowInsertion]:
        """Return this and those right behind it whose rows can enter the only table in the same step."""
        if len(self._tables) > 1:
            return [self]
        block = self._blocks[0]
        alike: list[RowInsertion] = []
        for other in islice(self._tables[0].inserters, MAX_SERVED):
            if (
                not isinstance(other, RowInsertion)
                or len(other._tables) > 1
                or other._blocks[0].layout is not block.layout
                or (other._blocks[0].episodes is None) is not (block.episodes is None)
            ):
                break
            alike.append(other)
        return alike

    def _step_together(self, alike: list[RowInsertion]) -> int:
        """Do what `_step` of one after the other would do; return how many rows are in."""
        count = self._admissible(min(MAX_SERVED_ROWS, sum(each.remaining for each in alike)))
        if count <= self.remaining:
            count = self._step()
            if not self.remaining:
                self._finish(None)
            return count
        shares: list[tuple[RowInsertion, int]] = []
        left = count
        for each in alike:
            shares.append((each, min(left, each.remaining)))
            left -= shares[-1][1]
            if not left:
                break
        parts = [each._blocks[0].part(each._done, each._done + share) for each, share in shares]
        self._tables[0].insert_now(ItemBlock.join(parts))
        for each, share in shares:
            each._enter(share)
            if not each.remaining:
                each._finish(None)
        return count

    def _blocking(self) -> Table:
        return next((table for table in self._tables if not table.state.admitted_inserts(1)), self._tables[0])

    def _refusal(self) -> str:
        return self._blocking().insert_refusal()
