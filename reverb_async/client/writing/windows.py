"""What selections of a column have in common when they differ only in where they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reverb_async.client.writing.columns import ColumnBuffer

Range = tuple[int, int]
"""(first step, number of steps)."""

_CACHED = 1024


class Window:
    """What a selection shows of a column, but for where: selections that differ in nothing else share it.

    Attributes:
        column: the column.
        ranges: the steps, as ranges of consecutive ones, counted from the lowest step.
        length: number of steps.
        squeeze: a single step without a time axis.
        code: column and squeeze in one number.
    """

    __slots__ = ("code", "column", "length", "ranges", "squeeze")

    def __init__(self, column: ColumnBuffer, ranges: tuple[Range, ...], squeeze: bool) -> None:
        self.column = column
        self.ranges = ranges
        self.length = sum(length for _, length in ranges)
        self.squeeze = squeeze
        self.code = 2 * column.index + squeeze


class Windows:
    """The windows of one column.

    Attributes:
        step: a single step without a time axis.
        spans: by length, windows of steps in a row; those that were asked for lately.
    """

    __slots__ = ("_by_ranges", "_column", "spans", "step")

    def __init__(self, column: ColumnBuffer) -> None:
        self._column = column
        self._by_ranges: dict[tuple[Range, ...], Window] = {}
        self.step = Window(column, ((0, 1),), True)
        self.spans: dict[int, Window] = {}

    def of(self, ranges: tuple[Range, ...]) -> Window:
        """Return the window of these ranges; the same for the same ones, unless there are very many."""
        window = self._by_ranges.get(ranges)
        if window is None:
            if len(self._by_ranges) >= _CACHED:
                self._by_ranges.clear()
                self.spans.clear()
            window = self._by_ranges[ranges] = Window(self._column, ranges, False)
            if len(ranges) == 1:
                self.spans[window.length] = window
        return window
