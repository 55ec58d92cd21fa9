"""Rows of many streams that enter in one step are rows that entered one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reverb_async as ra
from reverb_async.core.item import ItemBlock, Leaf
from reverb_async.core.nest import flatten
from reverb_async.errors import InvalidArgument, ReplayError, TableNotFound
from reverb_async.protocol.rows import RecordFormat, RowBlock
from reverb_async.replay import Replay
from reverb_async.service import row_intake
from reverb_async.service.row_intake import Arrival, RowIntake
from reverb_async.table import Table, insert_now

SPECS = (ra.ArraySpec((3,), np.float32), ra.ArraySpec((), np.bool_), ra.ArraySpec((), np.int64))
STRUCTURE = flatten({"a": 0, "b": 0, "c": 0})[1]


class Sender:
    """A stream of the test: what it learns of its items, and what is left to it."""

    def __init__(self) -> None:
        self.next_seq = 1
        self.acknowledged: list[int] = []
        self.refused: dict[int, ReplayError] = {}
        self.left: list[int] = []

    def acknowledge(self, seq: int, count: int) -> None:
        self.acknowledged += range(seq, seq + count)

    def refuse(self, seq: int, count: int, error: ReplayError) -> None:
        self.refused |= dict.fromkeys(range(seq, seq + count), error)

    def insert(self, tables: Sequence[Table], blocks: Sequence[ItemBlock], seq: int, timeout: float | None) -> None:
        for at in range(len(blocks[0])):
            parts = [block.part(at, at + 1) for block in blocks]
            try:
                for table, part in zip(tables, parts, strict=True):
                    table.check(part)
            except ReplayError as error:
                self.refuse(seq + at, 1, error)
            else:
                if insert_now(tables, parts):
                    self.acknowledge(seq + at, 1)
                else:
                    self.left.append(seq + at)


class Rig:
    def __init__(self, *tables: Table) -> None:
        self.replay = Replay(list(tables))
        self.replay.open()
        self.store = self.replay.storage.group(SPECS)
        leaves = tuple(Leaf(0, column, True) for column in range(len(SPECS)))
        self.layouts = [
            self.replay.layouts.get(STRUCTURE, (self.store,), leaves),
            self.replay.layouts.get(flatten({"x": 0})[1], (self.store,), leaves[2:]),
        ]
        self.intake = RowIntake(self.replay)
        self.intake.open(self.store)

    def arrival(
        self, sender: Sender, values: Sequence[int], tables: tuple[str, ...] = ("t",), layout: int = 0, **changes: Any
    ) -> Arrival:
        form = RecordFormat.of(SPECS, len(tables))
        assert form is not None
        records = np.zeros(len(values), form.dtype)
        records["key"] = np.array(values)[:, None] * 8 + np.arange(len(tables))
        records["priority"] = 1.0
        records["0"] = np.array(values)[:, None]
        records["1"] = np.array(values) % 2
        records["2"] = values
        for name, value in changes.items():
            records[name] = value
        block = RowBlock(layout, sender.next_seq, len(values), tables, None, records.view(np.uint8))
        sender.next_seq += len(values)
        return Arrival(sender, self.layouts[layout], form, block)

    def rows_of(self, table: str) -> list[tuple[int, float, list[float], bool, int]]:
        """Key, priority and values of each item, in the order of a Fifo remover."""
        state = self.replay.table(table).state
        if not state.size:
            return []
        slots = state.remover.first(state.size)
        rows = state.slots.runs(0, slots).rows()
        columns = [self.store.gather(column, rows) for column in range(len(SPECS))]
        return list(
            zip(
                state.slots.key[slots].tolist(),
                state.slots.priority[slots].tolist(),
                *(column.tolist() for column in columns),
                strict=True,
            )
        )

    def staged(self) -> int:
        return self.replay.storage.usage().staged_rows


def two_tables() -> tuple[Table, Table]:
    return Table("t", max_size=20), Table("u", max_size=7)


steps = st.lists(
    st.tuples(
        st.integers(0, 3),  # sender
        st.lists(st.integers(0, 30), min_size=1, max_size=4),  # rows, some with known keys
        st.sampled_from([("t",), ("u",), ("t", "u"), ("u", "t"), ("v",)]),
        st.integers(0, 1),  # layout
        st.sampled_from([1.0, 5.0, np.nan, np.inf]),
    ),
    max_size=24,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_rows_that_enter_together_are_rows_that_entered_one_by_one(program: list[Any]) -> None:
    async def run(together: bool) -> tuple[Any, ...]:
        rig = Rig(*two_tables())
        senders = [Sender() for _ in range(4)]
        arrivals = [
            rig.arrival(senders[sender], values, tables, layout, priority=priority)
            for sender, values, tables, layout, priority in program
        ]
        if together:
            rig.intake.insert(arrivals)
        else:
            for arrival in arrivals:
                rig.intake.insert([arrival])
        assert rig.staged() == 0
        return (
            rig.rows_of("t"),
            rig.rows_of("u"),
            [
                (sorted(one.acknowledged), sorted(one.left), {seq: str(e) for seq, e in one.refused.items()})
                for one in senders
            ],
        )

    assert asyncio.run(run(True)) == asyncio.run(run(False))


async def test_the_first_message_is_worked_off_at_once_and_those_of_a_busy_turn_together() -> None:
    rig = Rig(*two_tables())
    senders = [Sender() for _ in range(5)]
    done = [rig.intake.add([rig.arrival(sender, [at])]) for at, sender in enumerate(senders)]
    assert done[0] is None
    assert [len(sender.acknowledged) for sender in senders] == [1, 0, 0, 0, 0]
    await asyncio.gather(*(one for one in done if one is not None))
    assert [sender.acknowledged for sender in senders] == [[1]] * 5
    later = [rig.intake.add([rig.arrival(sender, [at + 10])]) for at, sender in enumerate(senders)]
    assert None not in later  # the turn before brought several
    await asyncio.gather(*(one for one in later if one is not None))
    assert [row[-1] for row in rig.rows_of("t")] == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert rig.intake.add([rig.arrival(senders[0], [20])]) is not None  # the last turn was busy
    await asyncio.sleep(0)
    assert rig.intake.add([rig.arrival(senders[0], [21])]) is None  # and this one was not


async def test_what_is_cancelled_before_the_step_is_not_inserted() -> None:
    rig = Rig(*two_tables())
    senders = [Sender() for _ in range(3)]
    done = [rig.intake.add([rig.arrival(sender, [at])]) for at, sender in enumerate(senders)]
    assert done[1] is not None
    done[1].cancel()
    assert done[2] is not None
    await done[2]
    assert [row[-1] for row in rig.rows_of("t")] == [0, 2]
    assert senders[1].acknowledged == []


async def test_a_long_queue_is_worked_off_in_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_intake, "MAX_STEP_ROWS", 2)
    rig = Rig(*two_tables())
    senders = [Sender() for _ in range(6)]
    done = [rig.intake.add([rig.arrival(sender, [at])]) for at, sender in enumerate(senders)]
    await asyncio.sleep(0)
    assert sum(len(sender.acknowledged) for sender in senders) == 3
    await asyncio.gather(*(one for one in done if one is not None))
    assert [row[-1] for row in rig.rows_of("t")] == list(range(6))


async def test_nobody_overtakes_what_a_turn_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_intake, "MAX_STEP_ROWS", 1)
    rig = Rig(*two_tables())
    done = [rig.intake.add([rig.arrival(Sender(), [at])]) for at in range(4)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [row[-1] for row in rig.rows_of("t")] == [0, 1, 2]
    done.append(rig.intake.add([rig.arrival(Sender(), [4])]))
    await asyncio.gather(*(one for one in done if one is not None))
    assert [row[-1] for row in rig.rows_of("t")] == [0, 1, 2, 3, 4]


async def test_a_step_that_failed_leaves_no_rows_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(*two_tables())

    def fail(*_: object) -> None:
        raise MemoryError("for the test")

    monkeypatch.setattr(row_intake, "insert_now", fail)
    with pytest.raises(MemoryError):
        rig.intake.insert([rig.arrival(Sender(), [1, 2])])
    assert rig.staged() == 0


async def test_streams_learn_of_a_step_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(*two_tables())
    done = [rig.intake.add([rig.arrival(Sender(), [at])]) for at in range(3)]

    def fail(_: object) -> None:
        raise MemoryError("for the test")

    monkeypatch.setattr(rig.intake, "insert", fail)
    loop, seen = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: seen.append(context["exception"]))
    for one in done[1:]:
        assert one is not None
        with pytest.raises(MemoryError):
            await one
    assert [type(error) for error in seen] == [MemoryError]


async def test_bad_rows_harm_only_their_sender() -> None:
    rig = Rig(*two_tables())
    senders = [Sender() for _ in range(4)]
    bad_bool = rig.arrival(senders[1], [1])
    bad_bool.block.records.view(bad_bool.format.dtype)["1"].view(np.uint8)[:] = 7
    rig.intake.insert(
        [
            rig.arrival(senders[0], [0]),
            bad_bool,
            rig.arrival(senders[2], [2], ("nowhere",)),
            rig.arrival(senders[3], [3]),
        ]
    )
    assert [row[-1] for row in rig.rows_of("t")] == [0, 3]
    assert isinstance(senders[1].refused[1], InvalidArgument)
    assert isinstance(senders[2].refused[1], TableNotFound)
    assert [sender.acknowledged for sender in senders] == [[1], [], [], [1]]


async def test_rows_that_are_not_all_admitted_are_left_to_their_senders() -> None:
    rig = Rig(Table.queue("t", 3))
    senders = [Sender() for _ in range(3)]
    rig.intake.insert([rig.arrival(sender, [at, at + 10]) for at, sender in enumerate(senders)])
    assert [sender.acknowledged for sender in senders] == [[1, 2], [1], []]
    assert [sender.left for sender in senders] == [[], [2], [1, 2]]
    assert rig.staged() == 0
    assert [row[-1] for row in rig.rows_of("t")] == [0, 10, 1]


async def test_a_store_nobody_sends_rows_for_is_let_go_of() -> None:
    rig = Rig(*two_tables())
    rig.intake.open(rig.store)
    rig.intake.insert([rig.arrival(Sender(), [1])])
    rig.intake.close(rig.store)
    assert rig.store.reserved_rows > 0
    rig.intake.close(rig.store)
    assert rig.store.reserved_rows == 0
    assert not rig.intake._cursors
    assert not rig.intake._users
