"""What a writer remembers makes it fast and changes nothing: the same program, with and without, sends the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from insert_rig import PlayedServer, PlayedStream

from reverb_async.client.writing.columns import ColumnBuffer
from reverb_async.client.writing.plan import Plan
from reverb_async.client.writing.writer import TrajectoryWriter
from reverb_async.core import nest
from reverb_async.core.info import TableInfo
from reverb_async.core.selectors import Prioritized
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument, ReplayError
from reverb_async.protocol.inserting import InsertResponse
from reverb_async.protocol.message import Duplex, Message
from reverb_async.table import Table

KEEP = 6
NEVER = 1 << 62

Program = list[tuple[Any, ...]]


class AckingStream(PlayedStream):
    async def send(self, message: Message) -> None:
        await super().send(message)
        if len(self.sent) == 1:
            self.greet()
            return
        acks = [(items["seq"], items["count"]) for items in message.header.get("items", ())]
        if acks:
            self.answer(InsertResponse(acks=acks))


class AckingServer(PlayedServer):
    """Accepts everything. Tables differ in signatures, of which two leave lengths free; one is prioritized."""

    def __init__(self) -> None:
        super().__init__()
        free = {"v": ArraySpec((None,), np.float64), "x": ArraySpec((None, None), np.int16)}
        brought = {"g": ArraySpec((), np.float32), "w": ArraySpec((None,), np.int8)}
        tables = (
            Table("brought", max_size=9, signature=brought),
            Table("t", max_size=9),
            Table("p", max_size=9, sampler=Prioritized(1.0)),
            Table("free", max_size=9, signature=free),
            Table("fixed", max_size=9, signature={"v": ArraySpec((2,), np.float64)}),
        )
        self._tables = {table.name: table.info for table in tables}

    async def open(self, kind: str) -> Duplex:
        self.streams.append(AckingStream())
        return self.streams[-1]

    async def tables(self, refresh: bool = False) -> dict[str, TableInfo]:
        return self._tables


def forget_everything(writer: TrajectoryWriter) -> None:
    """Make the writer find everything out anew."""
    nest._flat.clear()
    nest._known.clear()
    steps, trajectories = writer._steps, writer._trajectories
    steps._last = (None, Plan((), steps.clock))
    for plan in steps._plans.values():
        plan._room = -1
    for column in steps._columns.values():
        column.windows._by_ranges.clear()
        column.windows.spans.clear()
        column.floor = NEVER
    trajectories.forget_routes()
    for own in trajectories._own.values():
        own._takes = []


def nothing(writer: TrajectoryWriter) -> None:
    pass


async def run(program: Program, before: Callable[[TrajectoryWriter], None]) -> tuple[list[object], list[object]]:
    """Return what came of each action, and all that was sent."""
    server = AckingServer()
    outcomes: list[object] = []
    selected: list[Any] = []
    async with TrajectoryWriter(server, KEEP, max_in_flight_items=5) as writer:
        for action, *arguments in program:
            before(writer)
            try:
                if action == "append":
                    writer.append(*arguments[:1], partial_step=arguments[1])
                elif action == "item":
                    table, priority, cuts, own, earlier = arguments
                    trajectory = dict(own)
                    for name, column, index in cuts:
                        trajectory[name] = writer.history[column][index]
                        before(writer)
                        selected.append(trajectory[name])
                        outcomes.append((trajectory[name].shape, np.array(trajectory[name].numpy()).tolist()))
                    if 0 < earlier <= len(selected):
                        trajectory["earlier"] = selected[-earlier]
                    outcomes.append(await writer.create_item(table, priority, trajectory=trajectory))
                elif action == "end":
                    await writer.end_episode(clear_buffers=arguments[0])
                elif action == "keep":
                    writer.configure(arguments[0], num_keep_alive_refs=arguments[1])
                else:
                    await writer.flush()
            except (ReplayError, IndexError, LookupError) as error:
                outcomes.append((type(error).__name__, str(error)))
            outcomes.append((writer.episode_steps, writer._queue.in_flight, writer._queue.needed_from()))
    sent: list[object] = []
    for stream in server.streams:
        for message in stream.sent[1:]:
            sent.append(message.header)
            sent += [(buffer.dtype.str, buffer.shape, buffer.tobytes()) for buffer in message.buffers]
    return outcomes, sent


INT = st.integers(-100, 100)
VALUES = {
    "a": INT.map(np.int64) | INT | st.just(True) | st.just(1 << 70) | st.just(1.5),
    "b": st.integers(1, 3).map(lambda length: np.full(min(length, 2), length, np.float32)) | st.just(np.zeros(2)),
    "c": st.floats(width=32, allow_nan=True) | st.floats(width=32).map(np.float32) | st.integers(0, 3) | st.just(1e300),
    "d": st.booleans() | st.booleans().map(np.bool_) | st.just(1),
    "v": st.integers(2, 3).map(lambda length: np.arange(float(length))),
    "s": st.text("aé", max_size=3),
}
# Mostly what loops do: all columns, of the usual kinds.
USUAL = st.builds(
    lambda a, c: {"a": np.int64(a), "b": np.full(2, a, np.float32), "c": c, "d": a > 0},
    INT,
    st.floats(width=32, allow_nan=False),
)
ODD = st.lists(st.sampled_from("abcdvs"), unique=True, min_size=1).flatmap(
    lambda names: st.fixed_dictionaries({name: VALUES[name] for name in names})
)
INDEX = (
    st.sampled_from([-1, -2, slice(-3, None), slice(-4, -1), slice(None), 0, slice(0, 2), slice(1, None, 2)])
    | st.integers(-9, 9)
    | st.slices(9)
    | st.lists(st.integers(-5, 3), max_size=3)
)
CUTS = st.lists(st.tuples(st.sampled_from("aabbcdvs"), INDEX), max_size=4).map(
    lambda cuts: [(f"{column}{at}", column, index) for at, (column, index) in enumerate(cuts)]
)
USUAL_CUTS = st.tuples(
    st.sampled_from([-1, -1, -1, -2, -7]), st.sampled_from([-1, -2, slice(-3, None), slice(-4, -1)])
).map(lambda indices: [("a", "a", indices[0]), ("b", "b", indices[1])])
OWN = st.fixed_dictionaries(
    {"g": st.floats(width=32).map(np.float32) | st.floats(width=32), "w": st.sampled_from([1, 2, 2]).map(np.arange)},
) | st.fixed_dictionaries(
    {},
    optional={
        "g": st.floats(width=32).map(np.float32) | st.floats() | st.integers(0, 9),
        "w": st.integers(1, 2).map(lambda length: np.arange(length, dtype=np.int8)),
        "z": st.text("xé", max_size=2),
    },
)
BROUGHT = st.builds(
    lambda g, length: {"g": g, "w": np.arange(length, dtype=np.int8)},
    st.floats(width=32, allow_nan=False),
    st.sampled_from([1, 2, 2, 2]),
)
TABLE = st.sampled_from(["t", "t", "p", "free", "brought"])
PRIORITY = st.none() | st.sampled_from([0.0, 1.0, -1.0, 2, float("nan")])
EARLIER = st.sampled_from([0, 0, 0, 1, 2, 3, 6])
APPEND = st.tuples(st.just("append"), USUAL, st.just(False))
ITEM = st.tuples(st.just("item"), st.sampled_from("ttp"), st.just(1.0), USUAL_CUTS, st.just({}) | BROUGHT, EARLIER)
IN_PARTS = USUAL.map(
    lambda data: [
        ("append", {"a": data["a"], "c": data["c"]}, True),
        ("append", {"b": data["b"], "d": data["d"]}, False),
    ]
)
ODDITY = st.one_of(
    st.tuples(st.just("append"), ODD, st.just(False)),
    st.tuples(st.just("append"), USUAL.map(lambda data: {"a": data["a"], "c": data["c"]}), st.booleans()),
    st.tuples(st.just("item"), st.sampled_from(["t", "brought"]), PRIORITY, st.just([]), BROUGHT, st.just(0)),
    st.tuples(st.just("item"), TABLE, PRIORITY, USUAL_CUTS | CUTS, OWN, EARLIER),
    st.tuples(st.just("end"), st.booleans()),
    st.tuples(st.just("keep"), st.sampled_from("abv"), st.integers(1, 9)),
    st.just(("flush",)),
)
ACTIONS = st.one_of(
    st.tuples(APPEND, ITEM).map(list),
    st.tuples(APPEND, ITEM, ITEM).map(list),
    st.tuples(APPEND, APPEND, ITEM).map(list),
    IN_PARTS,
    st.tuples(ODDITY).map(list),
)
START: Program = [
    ("append", {"a": np.int64(at), "b": np.full(2, at, np.float32), "c": at / 2, "d": False}, False) for at in range(4)
]
# Loops: what is remembered is of use where things repeat.
LOOP = st.tuples(st.lists(ACTIONS, min_size=1, max_size=3), st.integers(1, 8)).map(
    lambda loop: [action for _ in range(loop[1]) for actions in loop[0] for action in actions]
)
PROGRAM = st.lists(LOOP, min_size=1, max_size=6).map(
    lambda loops: START + [action for loop in loops for action in loop]
)
PLAIN_LOOP: Program = [
    action
    for at in range(90)
    for action in (
        ("append", {"a": np.int64(at), "b": np.full(2, at, np.float32), "c": at / 2, "d": at % 3 == 0}, False),
        ("item", "t", 1.0, [("a", "a", -1), ("b", "b", slice(-3, None))], {"g": np.float32(at)}, 0),
        *([("end", True)] if at % 40 == 39 else []),
    )
]
STEP = ("append", {"a": np.int64(1), "b": np.zeros(2, np.float32), "c": 0.5, "d": False}, False)
SHAPES_DIFFER: Program = [
    action
    for length in (2, 2, 2, 3, 2, 3)
    for action in (
        ("append", {"v": np.arange(float(length)), "a": length}, False),
        ("item", "t", None, [("v", "v", -1), ("a", "a", -1)], {}, 0),
    )
]
WITH_AN_EARLIER_STEP = ("item", "t", 1.0, [("a", "a", -1), ("b", "b", -1)], {}, 3)
CLEARED: Program = 4 * [STEP, WITH_AN_EARLIER_STEP] + [("end", True)] + 2 * [STEP, WITH_AN_EARLIER_STEP]
EXPIRED: Program = 4 * [STEP, ("item", "t", 1.0, [("a", "a", -2)], {}, 0), ("keep", "a", 1)]
TWO_SIGNATURES: Program = [
    ("item", table, 1.0, [], {"g": 1.5, "w": np.arange(length, dtype=np.int8)}, 0)
    for length in (1, 2, 2)
    for table in ("t", "brought", "t", "t", "brought", "brought")
]


@given(program=PROGRAM)
@example(program=PLAIN_LOOP)
@example(program=SHAPES_DIFFER)
@example(program=CLEARED)
@example(program=EXPIRED)
@example(program=TWO_SIGNATURES)
@settings(max_examples=60, deadline=None)
def test_what_is_remembered_changes_nothing(program: Program) -> None:
    with (
        patch("reverb_async.client.writing.columns._SLACK_BYTES", 1),  # so that rows are moved often
        patch("reverb_async.client.writing.insert_session._RELEASE_S", 60.0),  # so that no clock decides what is sent
    ):
        remembering = asyncio.run(run(program, nothing))
        with patch.object(ColumnBuffer, "_takes", return_value=False):
            anew = asyncio.run(run(program, forget_everything))
    # Text, because NaN is not equal to itself.
    assert repr(remembering[0]) == repr(anew[0])
    assert repr(remembering[1]) == repr(anew[1])


async def test_a_loop_that_repeats_itself_takes_the_short_ways() -> None:
    """The others lead to the same, slowly."""
    slow = AssertionError("the long way")
    async with TrajectoryWriter(AckingServer(), KEEP) as writer:

        async def act(at: int) -> None:
            writer.append({"a": np.int64(at), "b": np.full(2, at, np.float32), "c": at / 2, "d": at % 3 == 0})
            history = writer.history
            trajectory = {"a": history["a"][-1], "b": history["b"][-3:], "r": np.float32(at), "now": history["b"][at]}
            await writer.create_item("t", 1.0, trajectory=trajectory)

        for at in range(5):
            await act(at)
        with (
            patch.object(ColumnBuffer, "put", side_effect=slow),
            patch("reverb_async.client.writing.history._select", side_effect=slow),
            patch("reverb_async.client.writing.trajectories.as_leaf", side_effect=slow),
            patch("reverb_async.client.writing.trajectories.Trajectories._new_route", side_effect=slow),
        ):
            for at in range(5, 40):
                await act(at)
            with pytest.raises(AssertionError, match="the long way"):
                writer.append({"a": 1.5, "b": np.zeros(2), "c": 1, "d": 0})


@pytest.mark.parametrize("value", [np.str_("longer than three"), "longer"])
async def test_text_is_not_cut_to_the_width_of_a_column(value: str) -> None:
    async with TrajectoryWriter(AckingServer(), 3) as writer:
        writer.append({"x": np.array("abc")})
        with pytest.raises(InvalidArgument, match="x"):
            writer.append({"x": value})
