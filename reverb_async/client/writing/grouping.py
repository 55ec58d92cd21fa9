"""Which columns travel together: those that items cut alike share a column group, and each step of it is sent once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from reverb_async.client.writing.clock import Clock
from reverb_async.client.writing.columns import ColumnBuffer
from reverb_async.client.writing.history import TrajectoryColumn
from reverb_async.client.writing.outgoing import Outgoing, RowGroup, SentGroup, SentLayout
from reverb_async.core.nest import Structure
from reverb_async.core.spec import ArraySpec
from reverb_async.protocol.inserting import Segments


class StepGroup(SentGroup):
    """A column group over the steps of a writer.

    A stream is sent the steps that items show, each once. Numbers on the stream are step numbers less an offset, which
    grows over stretches of steps that were skipped and cannot be named any more: the server's map of numbers stays
    small.
    """

    __slots__ = ("_clock", "_offset", "_released", "_sent", "_skipped", "columns", "retired_at")

    def __init__(self, group_id: int, columns: Sequence[ColumnBuffer], clock: Clock) -> None:
        super().__init__(group_id, [column.spec for column in columns])
        self.columns = tuple(columns)
        self.retired_at: int | None = None
        """Number of steps when other groups took its columns over."""
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Forget what an earlier stream was sent."""
        self._offset = self._sent = self._floor()
        self._released = 0
        self._skipped: list[tuple[int, int]] = []
        """Ranges of steps (first, stop) below `_sent` that were not sent, ascending."""

    def _floor(self) -> int:
        """Return the first step that something queued, or an item to come, may name."""
        nameable = max(column.first_kept for column in self.columns) if self.retired_at is None else self._clock.end
        return min(nameable, self._clock.needed_from())

    def send(self, out: Outgoing, segments: Segments) -> Segments:
        """Add the steps of `segments` that the stream does not have; return the segments in the stream's numbers."""
        firsts, lengths = segments.first.tolist(), segments.length.tolist()
        if firsts[0] > self._sent:
            self._close_gap()
        missing: list[tuple[int, int]] = []
        sent = self._sent
        for first, length in zip(firsts, lengths, strict=True):
            stop = first + length
            if first < sent:
                if self._skipped and first < self._skipped[-1][1]:
                    self._fill(first, stop, missing)
                first = sent
            elif first > sent:
                self._skipped.append((sent, first))
            if stop > sent:
                _add(missing, first, stop)
                sent = stop
        self._sent = sent
        for first, stop in missing:
            count = stop - first
            columns = [column.rows(first, count, spec) for column, spec in zip(self.columns, self.specs, strict=True)]
            out.add_steps(self.id, first - self._offset, count, columns)
        return Segments(segments.first - self._offset, segments.length, segments.counts)

    def _close_gap(self) -> None:
        floor = self._floor()
        if floor > self._sent:
            self._offset += floor - self._sent
            self._sent = floor
            self._skipped.clear()

    def _fill(self, first: int, stop: int, missing: list[tuple[int, int]]) -> None:
        """Move skipped steps among ``[first, stop)`` to `missing`."""
        kept = []
        for start, end in self._skipped:
            low, high = max(start, first), min(end, stop)
            if low >= high:
                kept.append((start, end))
                continue
            _add(missing, low, high)
            kept += [part for part in ((start, low), (high, end)) if part[0] < part[1]]
        self._skipped = kept

    def release(self, out: Outgoing) -> None:
        """Let the server forget the steps that nothing can name any more."""
        if self.stream != out.stream:
            return
        floor = self._floor()
        number = min(floor, self._sent) - self._offset
        if number > self._released:
            self._released = number
            out.release[self.id] = number
            self._skipped = [(max(first, floor), stop) for first, stop in self._skipped if stop > floor]

    @property
    def is_over(self) -> bool:
        """Whether it was retired and nothing queued is from before that."""
        return self.retired_at is not None and self._clock.needed_from() >= self.retired_at


def _add(ranges: list[tuple[int, int]], first: int, stop: int) -> None:
    if ranges and ranges[-1][1] == first:
        ranges[-1] = (ranges[-1][0], stop)
    else:
        ranges.append((first, stop))


class TrajectoryLayout(SentLayout):
    """A layout of a writer's items.

    Attributes:
        views: (group, cut) per view of steps: which of an item's distinct cuts it shows.
        own: the group of values that come with the item, shown by the last view; None if there are none.
        cut_bytes: by cut, the bytes of one step of all its views, at least 1.
    """

    __slots__ = ("cut_bytes", "own", "views")

    def __init__(
        self,
        layout_id: int,
        structure: Structure,
        views: Sequence[tuple[StepGroup, int]],
        own: RowGroup | None,
        leaves: Sequence[tuple[int, int, bool]],
    ) -> None:
        groups: list[SentGroup] = [group for group, _ in views]
        super().__init__(layout_id, structure, groups if own is None else [*groups, own], leaves)
        self.views = tuple(views)
        self.own = own
        self.cut_bytes = [0] * (1 + max((cut for _, cut in views), default=-1))
        for group, cut in views:
            fixed = [spec.row_bytes for spec in group.specs if not spec.is_variable]
            self.cut_bytes[cut] += max(1, sum(fixed) + 256 * (len(group.specs) - len(fixed)))


class Grouping:
    """The column groups of a writer.

    At first, columns that an item cuts by the same ranges, with or without a time axis all of them, form a group. When
    a later item cuts some of them otherwise, or leaves some out, the group is split for good, and steps still needed
    are sent again in its parts; groups never join. So there are at most as many splits as columns.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ids = itertools.count()
        self._layout_ids = itertools.count()
        self._groups: list[StepGroup] = []
        self._group_of: dict[ColumnBuffer, StepGroup] = {}

    def new_row_group(self, specs: Sequence[ArraySpec]) -> RowGroup:
        """Return a group for values that come with each item."""
        return RowGroup(next(self._ids), specs)

    def forget(self, column: ColumnBuffer) -> bool:
        """Retire the group of a column whose spec changed; return whether it had one."""
        group = self._group_of.get(column)
        if group is None:
            return False
        self._retire(group)
        return True

    def layout(
        self, structure: Structure, leaves: Sequence[TrajectoryColumn | None], cuts: Sequence[int], own: RowGroup | None
    ) -> tuple[TrajectoryLayout, bool]:
        """Return a new layout for items that look like this one, and whether layouts made before are obsolete.

        Args:
            structure: the item's.
            leaves: its columns; None for a value of its own.
            cuts: per leaf, which of the item's distinct cuts it shows; of no meaning for a value of its own.
            own: the group of the values of its own, columns in their order.
        """
        touched: dict[ColumnBuffer, set[tuple[int, bool]]] = {}
        for leaf, cut in zip(leaves, cuts, strict=True):
            if leaf is not None:
                touched.setdefault(leaf.column, set()).add((cut, leaf.squeeze))
        kinds = {column: frozenset(kind) for column, kind in touched.items()}
        has_split = self._split(kinds)
        self._join([column for column in kinds if column not in self._group_of], kinds)
        views: dict[tuple[StepGroup, int], int] = {}
        placed = []
        num_own = 0
        for leaf, cut in zip(leaves, cuts, strict=True):
            if leaf is None:
                placed.append((-1, num_own, True))
                num_own += 1
            else:
                group = self._group_of[leaf.column]
                view = views.setdefault((group, cut), len(views))
                placed.append((view, group.columns.index(leaf.column), leaf.squeeze))
        placed = [(len(views) if view < 0 else view, column, squeeze) for view, column, squeeze in placed]
        return TrajectoryLayout(next(self._layout_ids), structure, list(views), own, placed), has_split

    def _split(self, kinds: dict[ColumnBuffer, frozenset[tuple[int, bool]]]) -> bool:
        """Split groups whose columns are not all cut alike; return whether there were any."""
        has_split = False
        for group in {self._group_of[column]: None for column in kinds if column in self._group_of}:
            parts: dict[object, list[ColumnBuffer]] = {}
            for column in group.columns:
                parts.setdefault(kinds.get(column), []).append(column)
            if len(parts) > 1:
                has_split = True
                self._retire(group)
                for part in parts.values():
                    self._form(part)
        return has_split

    def _join(self, columns: list[ColumnBuffer], kinds: dict[ColumnBuffer, frozenset[tuple[int, bool]]]) -> None:
        """Form groups of columns that no item has shown before."""
        parts: dict[object, list[ColumnBuffer]] = {}
        for column in columns:
            parts.setdefault(kinds[column], []).append(column)
        for part in parts.values():
            self._form(part)

    def _form(self, columns: list[ColumnBuffer]) -> None:
        group = StepGroup(next(self._ids), columns, self._clock)
        self._groups.append(group)
        for column in columns:
            self._group_of[column] = group

    def _retire(self, group: StepGroup) -> None:
        group.retired_at = self._clock.end
        for column in group.columns:
            self._group_of.pop(column, None)

    def release(self, out: Outgoing) -> None:
        """Let the server forget what nothing can name any more."""
        over = False
        for group in self._groups:
            group.release(out)
            over = over or group.is_over
        if over:
            self._groups = [group for group in self._groups if not group.is_over]
