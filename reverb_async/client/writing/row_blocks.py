"""Rows on their way to the server: each an item of its own, inserted by `Client.insert` or `insert_batch`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from reverb_async.client.writing.outgoing import MAX_MESSAGE_BYTES, Block, Outgoing
from reverb_async.client.writing.row_values import RowLayout, RowValues, Tables, single_values
from reverb_async.errors import RateLimiterTimeout, ReplayError

MAX_ROWS = 4096
"""Rows in one block."""


class Call:
    """A call that waits until each of its rows is in, or will not be.

    Attributes:
        future: done when all rows are settled.
        admitted: ranges (start, stop) of rows that are in.
        error: of the first row that is not.
    """

    __slots__ = ("admitted", "error", "future", "is_withdrawn", "unsettled")

    def __init__(self, count: int) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.unsettled = count
        self.admitted: list[tuple[int, int]] = []
        self.error: ReplayError | None = None
        self.is_withdrawn = False

    def settled(self, start: int, stop: int, error: ReplayError | None) -> None:
        """Note what became of the rows ``[start:stop]``."""
        if error is None:
            self.admitted.append((start, stop))
        elif self.error is None:
            self.error = error
        self.unsettled -= stop - start
        if not self.unsettled and not self.future.done():
            self.future.set_result(None)


class SingleRows(Block):
    """Rows of calls that were made in the same turn; each can be withdrawn alone."""

    def __init__(
        self, layout: RowLayout, tables: Tables, timeout: float | None,
        done: Callable[[Block], None], again: Callable[[SingleRows, int], None],
    ) -> None:  # fmt: skip
        self.layout = layout
        self.tables = tables
        self.calls: list[Call] = []
        self.nbytes = 0
        self._values = single_values(layout, len(tables))
        self._deadline = Deadline(timeout)
        self._unsettled = 0
        self._done = done
        self._again = again

    def __len__(self) -> int:
        return len(self.calls)

    @property
    def is_full(self) -> bool:
        """Whether the next row needs another block."""
        return self.sealed or len(self.calls) >= MAX_ROWS or self.nbytes >= MAX_MESSAGE_BYTES

    def add(self, call: Call, row: Sequence[Any], keys: Sequence[int], priorities: Sequence[float]) -> None:
        """Add a row; one key and priority per table."""
        self.calls.append(call)
        self.nbytes += self._values.add(row, keys, priorities)
        self._unsettled += 1

    def add_from(self, other: SingleRows, at: int) -> None:
        """Add a row of another block of the same layout and tables."""
        self.calls.append(other.calls[at])
        self.nbytes += self._values.put(other._values.row(at))
        self._unsettled += 1

    def remove(self, call: Call) -> None:
        """Take out a row that was not sent."""
        assert not self.sealed
        at = self.calls.index(call)
        del self.calls[at]
        self._values.remove(at)
        self._unsettled -= 1

    def write(self, out: Outgoing, seq: int, start: int, stop: int) -> None:
        """Add rows to a message."""
        self._values.write(out, seq, self.tables, self._deadline.left(), start, stop)

    def settled(self, start: int, stop: int, error: ReplayError | None) -> None:
        """Tell the calls; rows that were only refused because others of the block were withdrawn go out again."""
        withdrawing = isinstance(error, RateLimiterTimeout) and any(call.is_withdrawn for call in self.calls)
        self._unsettled -= stop - start
        if not self._unsettled:
            self._done(self)
        for at in range(start, stop):
            if withdrawing and not self.calls[at].is_withdrawn:
                self._again(self, at)
            else:
                self.calls[at].settled(0, 1, error)


class BatchRows(Block):
    """The rows ``[start:stop]`` of one `insert_batch` call."""

    def __init__(
        self, values: RowValues, tables: Tables, timeout: float | None, call: Call, start: int, stop: int,
        done: Callable[[Block], None],
    ) -> None:  # fmt: skip
        self._values = values
        self._tables = tables
        self._deadline = Deadline(timeout)
        self._call = call
        self._start = start
        self._stop = stop
        self._unsettled = stop - start
        self._done = done

    def __len__(self) -> int:
        return self._stop - self._start

    def write(self, out: Outgoing, seq: int, start: int, stop: int) -> None:
        """Add rows to a message."""
        self._values.write(out, seq, self._tables, self._deadline.left(), self._start + start, self._start + stop)

    def settled(self, start: int, stop: int, error: ReplayError | None) -> None:
        """Tell the call."""
        self._unsettled -= stop - start
        if not self._unsettled:
            self._done(self)
        self._call.settled(self._start + start, self._start + stop, error)


class Deadline:
    """What is left of a timeout."""

    __slots__ = ("_at",)

    def __init__(self, timeout: float | None) -> None:
        self._at = None if timeout is None else asyncio.get_running_loop().time() + timeout

    def left(self) -> float | None:
        """Return the seconds left, at least 0; None if there is no end."""
        return None if self._at is None else max(0.0, self._at - asyncio.get_running_loop().time())
