"""Which columns travel together, and which steps of them are sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverb_async.client.writing.grouping import Grouping, StepGroup
from reverb_async.client.writing.history import TrajectoryColumn
from reverb_async.client.writing.outgoing import Outgoing
from reverb_async.client.writing.steps import StepBuffer
from reverb_async.core.nest import flatten
from reverb_async.protocol.inserting import InsertRequestReader, Segments

NOTHING = 1 << 62


class Writer:
    """Steps of int64 columns ``a b c d`` whose values are the step numbers."""

    def __init__(self, keep: int = 8) -> None:
        self.needed_from = NOTHING
        self.steps = StepBuffer(keep, lambda: self.needed_from, lambda column: None)
        self.grouping = Grouping(self.steps.clock)

    def append(self, count: int = 1) -> None:
        for _ in range(count):
            at = self.steps.clock.end
            self.steps.append({name: at for name in "abcd"}, False)

    def layout(self, **cuts: Any) -> tuple[Any, bool]:
        trajectory = {name: self.steps.history[name[0]][cut] for name, cut in cuts.items()}
        leaves, structure = flatten(trajectory)
        columns = [leaf for leaf in leaves if isinstance(leaf, TrajectoryColumn)]
        numbers: dict[Any, int] = {}
        return self.grouping.layout(
            structure, columns, [numbers.setdefault(column.ranges, len(numbers)) for column in columns], None
        )


def names(group: Any) -> str:
    return "".join(str(column.path[0]) for column in group.columns)


def views(layout: Any) -> list[tuple[str, int]]:
    return [(names(group), cut) for group, cut in layout.views]


@pytest.fixture
def writer() -> Writer:
    writer = Writer()
    writer.append(8)
    return writer


def test_columns_cut_alike_share_a_group_and_a_view(writer: Writer) -> None:
    layout, has_split = writer.layout(a=slice(-4, None), b=slice(-4, None), c=slice(-2, None))
    assert not has_split
    assert views(layout) == [("ab", 0), ("c", 1)]
    assert layout.leaves == ((0, 0, False), (0, 1, False), (1, 0, False))


def test_a_column_without_a_time_axis_is_apart(writer: Writer) -> None:
    layout, _ = writer.layout(a=-1, b=slice(-1, None), c=-1)
    assert views(layout) == [("ac", 0), ("b", 0)]


def test_one_column_can_have_several_views(writer: Writer) -> None:
    layout, _ = writer.layout(a=slice(-4, None), a_before=slice(-5, -1), b=slice(-4, None))
    assert views(layout) == [("a", 0), ("a", 1), ("b", 0)]


def test_groups_split_when_items_cut_otherwise_and_never_join(writer: Writer) -> None:
    everything = slice(None)
    writer.layout(a=everything, b=everything, c=everything)
    layout, has_split = writer.layout(a=everything, b=everything, c=slice(-1, None))
    assert has_split
    assert views(layout) == [("ab", 0), ("c", 1)]
    layout, has_split = writer.layout(a=everything, b=everything, c=everything, d=everything)
    assert not has_split
    assert views(layout) == [("ab", 0), ("c", 0), ("d", 0)]


def test_an_untouched_column_leaves_the_group(writer: Writer) -> None:
    everything = slice(None)
    writer.layout(a=everything, b=everything, c=everything)
    layout, has_split = writer.layout(b=everything)
    assert has_split
    assert views(layout) == [("b", 0)]
    layout, has_split = writer.layout(a=everything, c=everything)
    assert not has_split
    assert views(layout) == [("ac", 0)]


def test_ids_are_never_given_twice(writer: Writer) -> None:
    seen: set[int] = set()
    for cuts in ({"a": -1, "b": -1, "c": -1}, {"a": -1, "b": -1}, {"a": -1}, {"b": -1, "c": -1}):
        layout, _ = writer.layout(**cuts)
        seen |= {group.id for group in layout.groups}
    groups = {group.id for group in writer.grouping._groups}
    assert len(groups) == len(writer.grouping._groups)
    assert len(seen) == 5


class Receiver:
    """Steps of one group as a server has them; complains as a server does."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {}
        self.base = 0
        self.end = 0
        self.received: list[int] = []

    def read(self, out: Outgoing) -> None:
        message = out.to_message()
        if message is None:
            return
        reader = InsertRequestReader(message)
        for steps in reader.steps():
            values = reader.buffers.array(np.int64, (steps.count,)).tolist()
            assert steps.first >= self.base, "sent after its release"
            for number, value in enumerate(values, steps.first):
                assert number not in self.values, "sent twice"
                self.values[number] = value
                self.received.append(value)
            self.end = max(self.end, steps.first + steps.count)
        for _, number in reader.release():
            self.base = max(self.base, min(number, self.end))
            self.values = {at: value for at, value in self.values.items() if at >= self.base}

    def show(self, segments: Segments) -> list[int]:
        """Return the values of the steps that an item names."""
        shown = []
        for first, length in zip(segments.first.tolist(), segments.length.tolist(), strict=True):
            shown += [self.values[number] for number in range(first, first + length)]
        return shown


ITEM = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 8)), min_size=1, max_size=3)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_each_step_that_is_shown_is_sent_once_per_stream_and_no_other(data: st.DataObject) -> None:
    keep = 8
    writer = Writer(keep)
    writer.append()
    group = StepGroup(0, [writer.steps._columns["a",]], writer.steps.clock)
    stream, receiver = 0, Receiver()
    shown: set[int] = set()
    pending: list[list[tuple[int, int]]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(["append", "append", "item", "item", "send", "restart", "far"]))
        end = writer.steps.clock.end
        if action == "append":
            writer.append(data.draw(st.integers(1, 3)))
        elif action == "far":
            writer.append(data.draw(st.integers(8, 60)))
        elif action == "item":
            first_kept = max(0, end - keep)
            ranges = [(first_kept + start, length) for start, length in data.draw(ITEM)]
            ranges = [(start, min(length, end - start)) for start, length in ranges if start < end]
            if ranges:
                pending.append(ranges)
        elif action == "restart":
            stream, receiver = stream + 1, Receiver()
            shown.clear()
        if action == "send":
            out = Outgoing(stream)
            group.declare(out)
            sent = []
            for ranges in pending:
                first, length = (np.array(column, np.int64) for column in zip(*ranges, strict=True))
                sent.append(group.send(out, Segments(first, length, np.array([len(ranges)]))))
            receiver.read(out)
            for ranges, segments in zip(pending, sent, strict=True):
                steps = [step for start, length in ranges for step in range(start, start + length)]
                assert receiver.show(segments) == steps
                shown.update(steps)
            pending.clear()
            assert sorted(receiver.received) == sorted(shown)
        writer.needed_from = min((start for ranges in pending for start, _ in ranges), default=NOTHING)
        if action == "send":
            out = Outgoing(stream)
            group.release(out)
            receiver.read(out)
            assert all(value >= writer.steps.clock.end - keep for value in receiver.values.values())
