"""Where the steps of an insert stream are stored: the rows behind step numbers."""

from __future__ import annotations

import asyncio
from typing import cast

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.runs import Rows, Runs, find_runs, join
from reverb_async.core.spec import check_values
from reverb_async.core.storage import RowCursor, RowStore
from reverb_async.core.variable import VariableRows
from reverb_async.errors import InvalidArgument, ResourceExhausted
from reverb_async.limits import in_words
from reverb_async.protocol.inserting import Column, Segments, take_column
from reverb_async.protocol.message import BufferReader

MAX_OPEN_STEPS = 1 << 22
"""Steps a client may keep nameable in one group."""

MAX_GAP_STEPS = 1 << 17
"""Steps whose numbers a client may skip because no item shows them."""

MAX_ITEM_ROWS = 1 << 22
"""Rows that the items of one block may show in one view, all together."""


MAX_COPY_BYTES = 4 << 20
"""Longer copies are made in slices, between which others have their turn."""


class OpenBytes:
    """What the steps take that one stream can still name, in all its groups.

    Args:
        limit: what they may.

    Attributes:
        used: what they do.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def check(self) -> None:
        """Raise `ResourceExhausted` if they are too many."""
        if self.used > self.limit:
            raise ResourceExhausted(
                f"the steps that a writer may still name have {in_words(self.used)} on the server, more than "
                f"max_client_bytes={in_words(self.limit)}: keep fewer steps in its history, or smaller ones"
            )


class StepRows:
    """The steps of one column group that the client can still name; holds a pin on each of their rows.

    Args:
        store: where they go.
        open_bytes: the stream's; without it there is no limit.
    """

    def __init__(self, store: RowStore, open_bytes: OpenBytes | None = None) -> None:
        self.store = store
        self._open_bytes = open_bytes or OpenBytes(1 << 62)
        self._nbytes = 0
        self._cursor = RowCursor(store)
        self._base = 0
        self._end = 0
        self._rows = np.full(64, -1, np.int64)
        self.is_fixed = not any(spec.is_variable for spec in store.specs)
        """Whether all rows have the same size."""
        self._formats = [
            (spec, None if spec.is_variable else (*spec.fixed_shape,), spec.dtype.kind in "bU") for spec in store.specs
        ]

    def read(self, buffers: BufferReader, count: int) -> list[Column]:
        """Take the columns of `count` steps from a message.

        Raises:
            InvalidArgument: they are not there, or hold bytes that are no values.
        """
        columns: list[Column] = []
        for spec, shape, is_unsafe in self._formats:
            if shape is None:
                columns.append(take_column(buffers, spec, count))
                continue
            column = buffers.array(spec.dtype, (count, *shape))
            if is_unsafe:
                check_values(column, "a column of steps")
            columns.append(column)
        return columns

    def add(self, first: int, count: int, columns: list[Column]) -> None:
        """Store steps ``[first, first + count)``.

        Raises:
            InvalidArgument: they were sent before, or released.
            ResourceExhausted: the client keeps too many steps nameable, or the store is full.
        """
        places = self._free_places(first, count)
        rows = self._cursor.take(count)
        if self.is_fixed:
            self.store.write_all(rows, cast("list[NDArray[np.generic]]", columns))
        else:
            self._write(rows, columns)
        places[:] = rows
        self._end = max(self._end, first + count)
        self._count_bytes(count, columns)

    def _count_bytes(self, count: int, columns: list[Column]) -> None:
        nbytes = count * self.store.width
        if not self.is_fixed:
            nbytes += sum([column.data.nbytes for column in columns if isinstance(column, VariableRows)])
        self._nbytes += nbytes
        self._open_bytes.used += nbytes

    def _write(self, rows: Rows, columns: list[Column]) -> None:
        try:
            for number, column in enumerate(columns):
                self.store.write(number, rows, column)
        except ResourceExhausted:
            self.store.unpin(rows)
            raise

    async def add_long(self, first: int, count: int, columns: list[Column]) -> None:
        """Do what `add` does, in slices of 4 MB; nothing else may be done with the group meanwhile."""
        places = self._free_places(first, count)
        rows = self._cursor.take(count)
        try:
            for number, column in enumerate(columns):
                if isinstance(column, np.ndarray):
                    await self._copy(number, rows, column)
                else:
                    self.store.write(number, rows, column)
        except BaseException:
            self.store.unpin(rows)
            raise
        places[:] = rows
        self._end = max(self._end, first + count)
        self._count_bytes(count, columns)

    async def _copy(self, number: int, rows: Rows, column: NDArray[np.generic]) -> None:
        values = column.reshape(-1)
        at, step = 0, max(1, MAX_COPY_BYTES // max(column.itemsize, 1))
        for row, length in find_runs(rows).tolist():
            size = length * (values.size // len(rows))
            for start in range(0, size, step):
                stop = min(start + step, size)
                # The store's arrays may be others after each turn.
                target = self.store.columns[number][row : row + length].reshape(-1)
                target[start:stop] = values[at + start : at + stop]
                await asyncio.sleep(0)
            at += size

    def _free_places(self, first: int, count: int) -> Rows:
        """Return where the rows of new steps are to be noted."""
        stop = first + count
        if first < self._base:
            raise InvalidArgument(f"step {first} is sent after its release: the group starts at {self._base}")
        if first > max(self._end, self._base) + MAX_GAP_STEPS:
            raise InvalidArgument(
                f"step {first} is {first - self._end} beyond the group's last: numbers may skip {MAX_GAP_STEPS} at most"
            )
        if stop - self._base > MAX_OPEN_STEPS:
            raise ResourceExhausted(
                f"{stop - self._base} steps are kept nameable at once; release some: at most {MAX_OPEN_STEPS}"
            )
        self._make_room(stop)
        places = self._rows[first - self._base : stop - self._base]
        if places.item(0) >= 0 if count == 1 else bool((places >= 0).any()):
            raise InvalidArgument(f"some of the steps {first} to {stop - 1} were sent before")
        return places

    def _make_room(self, stop: int) -> None:
        needed = stop - self._base
        if needed > len(self._rows):
            grown = np.full(max(needed, 2 * len(self._rows)), -1, np.int64)
            grown[: len(self._rows)] = self._rows
            self._rows = grown

    def find(self, segments: Segments, count: int) -> Runs:
        """Return the rows of `count` items that show these steps.

        Raises:
            InvalidArgument: a range is empty, or names steps that were not sent or are released.
        """
        if len(segments.first) == 1 and count == 1:
            return self._find_one(int(segments.first[0]), int(segments.length[0]))
        first, length = segments.first - self._base, segments.length
        if int(length.min()) < 1 or int(length.max()) > MAX_ITEM_ROWS or int(length.sum()) > MAX_ITEM_ROWS:
            raise InvalidArgument(f"ranges must have 1 to {MAX_ITEM_ROWS} steps, all together, got {length[:8]}")
        end = self._end - self._base
        # The numbers are a stranger's: sums of huge ones would come out small.
        if int(first.min()) < 0 or int(first.max()) >= end or int((first + length).max()) > end:
            raise InvalidArgument(
                f"an item names steps {int(segments.first.min())} to {int((segments.first + length).max()) - 1}, "
                f"this stream can name {self._base} to {self._end - 1}"
            )
        if segments.counts is None and bool((length == length[0]).all()):
            return self._find_equal(first, int(length[0]))
        ranges = [self._rows[start:stop] for start, stop in zip(first.tolist(), (first + length).tolist(), strict=True)]
        if segments.counts is not None:
            ends = np.cumsum(segments.counts).tolist()
            ranges = [np.concatenate(ranges[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        return self._checked(ranges)

    def _find_one(self, first: int, length: int) -> Runs:
        """Return the rows of one item that shows one range, as the general way does with arrays."""
        if not 1 <= length <= MAX_ITEM_ROWS:
            raise InvalidArgument(f"ranges must have 1 to {MAX_ITEM_ROWS} steps, all together, got {length}")
        if first < self._base or first + length > self._end:
            raise InvalidArgument(
                f"an item names steps {first} to {first + length - 1}, "
                f"this stream can name {self._base} to {self._end - 1}"
            )
        rows = self._rows[first - self._base : first - self._base + length]
        if length > 1:
            return self._checked([rows])
        if rows.item(0) < 0:
            raise InvalidArgument("an item names steps that were not sent")
        return Runs.of_rows(rows.copy())

    def _find_equal(self, first: Rows, length: int) -> Runs:
        if length == 1:
            alone = self._rows[first]
            if int(alone.min()) < 0:
                raise InvalidArgument("an item names steps that were not sent")
            return Runs.of_rows(alone)
        rows = self._rows[first[:, None] + np.arange(length)]
        if int(rows.min()) < 0:
            raise InvalidArgument("an item names steps that were not sent")
        runs = Runs(rows[:, 0].copy(), np.full(len(rows), length))
        for at in np.flatnonzero((np.diff(rows, axis=1) != 1).any(axis=1)).tolist():
            runs.pieces[at] = join([rows[at]]).pieces[0]
        return runs

    @staticmethod
    def _checked(sequences: list[Rows]) -> Runs:
        if any(int(rows.min()) < 0 for rows in sequences):
            raise InvalidArgument("an item names steps that were not sent")
        return join(sequences)

    def release(self, step: int) -> None:
        """Let go of the steps before `step`."""
        count = min(step, self._end) - self._base
        if count <= 0:
            return
        rows = self._rows[:count]
        self.store.unpin(rows[rows >= 0])
        kept = self._end - self._base - count
        nbytes = self._nbytes * count // (count + kept)  # as if all steps were of one size
        self._nbytes -= nbytes
        self._open_bytes.used -= nbytes
        self._rows[:kept] = self._rows[count : count + kept]
        self._rows[kept : kept + count] = -1
        self._base += count

    def close(self, max_steps: int) -> bool:
        """Let go of up to `max_steps` steps; return whether some remain."""
        self.release(min(self._end, self._base + max_steps))
        if self._base < self._end:
            return True
        self._cursor.close()
        return False
