from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import RowStore, Storage
from reverb_async.core.variable import VariableRows, encode_rows
from reverb_async.errors import InvalidArgument, ResourceExhausted
from reverb_async.protocol.inserting import Segments
from reverb_async.service import step_rows
from reverb_async.service.step_rows import OpenBytes, StepRows

TEXT = ArraySpec((), np.dtype("U"))
HUGE = 2**63 - 1


@pytest.fixture
def store() -> RowStore:
    return Storage(reserve_bytes=1 << 22).group((ArraySpec((), np.int64),))


def ranges(*pairs: tuple[int, int], counts: list[int] | None = None) -> Segments:
    first, length = np.array(pairs, np.int64).reshape(-1, 2).T.copy()
    return Segments(first, length, None if counts is None else np.array(counts, np.int64))


def add(rows: StepRows, first: int, count: int) -> None:
    rows.add(first, count, [np.arange(first, first + count)])


def steps_of(rows: StepRows, segments: Segments, count: int) -> list[int]:
    return rows.store.gather(0, rows.find(segments, count).rows()).tolist()


class TestFinding:
    def test_one_step_or_range_is_found(self, store: RowStore) -> None:
        rows = StepRows(store)
        add(rows, 0, 10)
        assert steps_of(rows, ranges((3, 1)), 1) == [3]
        assert steps_of(rows, ranges((3, 4)), 1) == [3, 4, 5, 6]

    def test_items_of_one_length_are_found_together(self, store: RowStore) -> None:
        rows = StepRows(store)
        add(rows, 0, 10)
        runs = rows.find(ranges((0, 3), (7, 3), (1, 3)), 3)
        assert not runs.pieces
        assert store.gather(0, runs.rows()).tolist() == [0, 1, 2, 7, 8, 9, 1, 2, 3]

    def test_steps_that_are_stored_apart_are_found_in_order(self, store: RowStore) -> None:
        rows, other = StepRows(store), StepRows(store)
        for start in range(0, 200, 40):
            add(rows, start, 40)
            add(other, start, 40)  # its rows lie between
        wanted = ranges((30, 60), (60, 60), (100, 60))
        assert rows.find(wanted, 3).pieces
        assert steps_of(rows, wanted, 3) == [*range(30, 90), *range(60, 120), *range(100, 160)]

    def test_items_of_several_lengths_and_of_several_ranges_are_found(self, store: RowStore) -> None:
        rows = StepRows(store)
        add(rows, 0, 10)
        assert steps_of(rows, ranges((0, 1), (5, 3)), 2) == [0, 5, 6, 7]
        several = ranges((0, 2), (5, 1), (3, 2), counts=[2, 1])
        assert rows.find(several, 2).length.tolist() == [3, 2]
        assert steps_of(rows, several, 2) == [0, 1, 5, 3, 4]

    @pytest.mark.parametrize(
        "segments",
        [
            ranges((3, 0)),
            ranges((3, -1)),
            ranges((0, 1), (2, 0)),
            ranges((0, 2), (0, 0), counts=[1, 1]),
        ],
        ids=["empty", "negative", "one of two", "counted"],
    )
    def test_32_items_without_a_trajectory_are_refused(self, store: RowStore, segments: Segments) -> None:
        rows = StepRows(store)
        add(rows, 0, 10)
        with pytest.raises(InvalidArgument, match="ranges must have 1 to"):
            rows.find(segments, 2)

    @pytest.mark.parametrize(
        "pair",
        [(-1, 1), (10, 1), (9, 2), (HUGE, 1), (HUGE, 2), (-HUGE - 1, 1), (-HUGE - 1, 3), (HUGE - 2, 4), (1 << 62, 1)],
        ids=repr,
    )
    @pytest.mark.parametrize("among", [0, 1, 2], ids=["alone", "with equals", "with others"])
    def test_steps_outside_what_can_be_named_are_refused(
        self, store: RowStore, pair: tuple[int, int], among: int
    ) -> None:
        rows = StepRows(store)
        add(rows, 0, 10)
        rows.release(2)
        good = [[], [(3, pair[1])], [(3, pair[1] + 1)]][among]
        with pytest.raises(InvalidArgument, match="this stream can name 2 to 9"):
            rows.find(ranges(*good, pair), len(good) + 1)

    @pytest.mark.parametrize("pairs", [((3, 3),), ((3, 3), (0, 3)), ((3, 3), (0, 1))], ids=["one", "equal", "unequal"])
    def test_steps_left_out_are_refused(self, store: RowStore, pairs: tuple[tuple[int, int], ...]) -> None:
        rows = StepRows(store)
        add(rows, 0, 4)
        add(rows, 6, 4)
        with pytest.raises(InvalidArgument, match="steps that were not sent"):
            rows.find(ranges(*pairs), len(pairs))

    @pytest.mark.parametrize("length", [step_rows.MAX_ITEM_ROWS + 1, HUGE])
    def test_more_rows_than_an_item_may_show_are_refused(self, store: RowStore, length: int) -> None:
        rows = StepRows(store)
        add(rows, 0, 4)
        with pytest.raises(InvalidArgument, match="ranges must have 1 to"):
            rows.find(ranges((0, length)), 1)

    def test_overlapping_items_may_not_add_up_to_more_either(
        self, store: RowStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(step_rows, "MAX_ITEM_ROWS", 20)
        rows = StepRows(store)
        add(rows, 0, 10)
        assert len(rows.find(ranges((0, 10), (0, 10)), 2)) == 2
        with pytest.raises(InvalidArgument, match="all together"):
            rows.find(ranges((0, 10), (0, 10), (0, 1)), 3)


class TestAdding:
    def test_a_step_is_sent_once(self, store: RowStore) -> None:
        rows = StepRows(store)
        add(rows, 0, 4)
        with pytest.raises(InvalidArgument, match="steps 3 to 5 were sent before"):
            add(rows, 3, 3)
        assert store.usage().staged_rows == 4

    def test_a_released_step_is_not_sent_again(self, store: RowStore) -> None:
        rows = StepRows(store)
        add(rows, 0, 4)
        rows.release(3)
        with pytest.raises(InvalidArgument, match="step 2 is sent after its release"):
            add(rows, 2, 1)

    def test_gaps_may_be_filled_later(self, store: RowStore) -> None:
        rows = StepRows(store)
        add(rows, 4, 2)
        add(rows, 0, 4)
        assert steps_of(rows, ranges((0, 6)), 1) == [0, 1, 2, 3, 4, 5]

    def test_too_many_steps_at_once_are_refused_before_memory_is_taken(
        self, store: RowStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(step_rows, "MAX_OPEN_STEPS", 100)
        rows = StepRows(store)
        with pytest.raises(ResourceExhausted, match="kept nameable at once"):
            add(rows, 100, 1)
        with pytest.raises(InvalidArgument, match="numbers may skip 131072 at most"):
            add(rows, step_rows.MAX_GAP_STEPS + 1, 1)
        assert len(rows._rows) == 64
        assert store.usage().staged_rows == 0

    def test_too_many_bytes_at_once_are_refused(self, store: RowStore) -> None:
        open_bytes = OpenBytes(10 * store.width)
        rows, others = StepRows(store, open_bytes), StepRows(store, open_bytes)
        add(rows, 0, 6)
        add(others, 0, 4)
        open_bytes.check()
        add(others, 4, 1)
        with pytest.raises(ResourceExhausted, match="more than max_client_bytes=160 bytes"):
            open_bytes.check()
        rows.release(1)
        open_bytes.check()
        rows.release(6)
        others.release(5)
        assert open_bytes.used == 0

    def test_values_of_variable_size_count_as_they_are(self) -> None:
        open_bytes = OpenBytes(1 << 20)
        rows = StepRows(Storage(reserve_bytes=1 << 20).group((TEXT,)), open_bytes)
        rows.add(0, 2, [encode_rows(["a" * 1000, "b" * 500], TEXT)])
        assert open_bytes.used == 1500 + 2 * 16
        rows.release(1)
        assert 0 < open_bytes.used < 1532
        rows.release(2)
        assert open_bytes.used == 0

    def test_a_full_store_keeps_nothing_of_what_did_not_fit(self) -> None:
        store = Storage(reserve_bytes=1 << 20).group((ArraySpec((1000,), np.uint8),))
        rows = StepRows(store)
        rows.add(0, 500, [np.zeros((500, 1000), np.uint8)])
        with pytest.raises(ResourceExhausted):
            rows.add(500, 10_000, [np.zeros((10_000, 1000), np.uint8)])
        assert store.usage().staged_rows == 500
        rows.add(500, 10, [np.zeros((10, 1000), np.uint8)])

    def test_values_that_do_not_fit_leave_no_row_behind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        storage = Storage(reserve_bytes=1 << 20)
        store = storage.group((ArraySpec((), np.int64), TEXT))

        def put(rows: VariableRows) -> None:
            raise ResourceExhausted("full")

        rows = StepRows(store)
        monkeypatch.setattr(storage.blobs, "put", put)
        with pytest.raises(ResourceExhausted, match="full"):
            rows.add(0, 3, [np.arange(3), encode_rows(["a", "b", "c"], TEXT)])
        assert store.usage().staged_rows == 0


class TestReleasing:
    def test_rows_that_items_show_stay(self, store: RowStore) -> None:
        rows = StepRows(store)
        add(rows, 0, 6)
        shown = rows.find(ranges((2, 2)), 1).rows()
        store.retain(shown)
        rows.release(6)
        usage = store.usage()
        assert (usage.live_rows, usage.staged_rows) == (2, 0)
        assert store.gather(0, shown).tolist() == [2, 3]

    def test_releasing_again_or_beyond_the_end_does_no_harm(self, store: RowStore) -> None:
        rows = StepRows(store)
        add(rows, 0, 6)
        for step in (3, 3, 1, 100):
            rows.release(step)
        assert store.usage().pinned_rows == 0
        add(rows, 100, 2)
        assert steps_of(rows, ranges((100, 2)), 1) == [100, 101]

    def test_closing_lets_go_in_slices(self, store: RowStore) -> None:
        rows = StepRows(store)
        add(rows, 0, 10)
        left = []
        while rows.close(4):
            left.append(store.usage().pinned_rows)
        assert left == [6, 2]
        assert store.usage().pinned_rows == 0
        assert rows.close(4) is False


class StepMachine(RuleBasedStateMachine):
    """Steps against a dictionary."""

    @initialize()
    def start(self) -> None:
        self.store = Storage(reserve_bytes=1 << 20).group((ArraySpec((), np.int64),))
        self.rows = [StepRows(self.store), StepRows(self.store)]
        self.steps: list[set[int]] = [set(), set()]
        self.base = [0, 0]
        self.end = [0, 0]

    @rule(at=st.integers(0, 1), gap=st.integers(0, 3), count=st.integers(1, 70))
    def add(self, at: int, gap: int, count: int) -> None:
        first = self.end[at] + gap
        add(self.rows[at], first, count)
        self.steps[at] |= set(range(first, first + count))
        self.end[at] = first + count

    @rule(at=st.integers(0, 1), step=st.integers(0, 300))
    def release(self, at: int, step: int) -> None:
        self.rows[at].release(step)
        self.base[at] = max(self.base[at], min(step, self.end[at]))
        self.steps[at] = {kept for kept in self.steps[at] if kept >= step}

    @rule(
        at=st.integers(0, 1),
        pairs=st.lists(st.tuples(st.integers(-2, 300), st.integers(1, 30)), min_size=1, max_size=5),
        equal=st.booleans(),
    )
    def find(self, at: int, pairs: list[tuple[int, int]], equal: bool) -> None:
        if equal:
            pairs = [(first, pairs[0][1]) for first, _ in pairs]
        wanted = [step for first, length in pairs for step in range(first, first + length)]
        if set(wanted) <= self.steps[at]:
            assert steps_of(self.rows[at], ranges(*pairs), len(pairs)) == wanted
        else:
            with pytest.raises(InvalidArgument):
                self.rows[at].find(ranges(*pairs), len(pairs))

    @invariant()
    def exactly_the_nameable_steps_are_pinned(self) -> None:
        if hasattr(self, "store"):
            assert Counter(pinned=self.store.usage().pinned_rows) == Counter(pinned=sum(map(len, self.steps)))


TestSteps = StepMachine.TestCase
TestSteps.settings = settings(max_examples=50, stateful_step_count=20, deadline=None, derandomize=True)
