from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from reverb_async.core.storage.holds import PIN, Holds

CAPACITY = 40


def rows(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def as_list(freed: slice | NDArray[np.int64] | None) -> list[int]:
    if freed is None:
        return []
    return list(range(freed.start, freed.stop)) if isinstance(freed, slice) else freed.tolist()


def test_a_row_is_free_once_references_and_pins_are_gone() -> None:
    holds = Holds(np.zeros(CAPACITY, np.int64))
    holds.stage(rows(3))
    holds.retain(rows(3, 3))
    assert holds.unpin(rows(3)) is None
    assert holds.release(rows(3)) is None
    assert as_list(holds.release(rows(3))) == [3]


def test_a_row_freed_twice_in_one_call_is_returned_once() -> None:
    holds = Holds(np.zeros(CAPACITY, np.int64))
    holds.stage(rows(1, 5, 9))
    holds.retain(rows(5, 1, 5, 9, 1))
    holds.unpin(rows(9, 1, 5))
    assert as_list(holds.release(rows(5, 1, 9, 5, 1))) in ([1, 9, 5], [9, 5, 1], [5, 1, 9], [1, 9, 5], [5, 9, 1])
    assert not holds.counts.any()


@pytest.mark.parametrize("numbers", [(7,), (7, 8), (7, 9)])
def test_holds_that_were_never_taken_cannot_be_given_up(numbers: tuple[int, ...]) -> None:
    holds = Holds(np.zeros(CAPACITY, np.int64))
    for call in (holds.retain, holds.pin, holds.release, holds.unpin):
        with pytest.raises(AssertionError):
            call(rows(*numbers))


@pytest.mark.parametrize("numbers", [(7,), (7, 8), (7, 9), (7, 9, 7)])
def test_a_pin_is_no_reference_and_a_reference_no_pin(numbers: tuple[int, ...]) -> None:
    holds = Holds(np.zeros(CAPACITY, np.int64))
    holds.stage(rows(7, 8, 9))
    with pytest.raises(AssertionError, match="released more often"):
        holds.release(rows(*numbers))
    holds = Holds(np.zeros(CAPACITY, np.int64))
    holds.stage(rows(7, 8, 9))
    holds.retain(rows(7, 8, 9))
    holds.unpin(rows(7, 8, 9))
    with pytest.raises(AssertionError, match="unpinned more often"):
        holds.unpin(rows(*numbers))


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, list[int]]]:
    runs = st.tuples(st.integers(0, CAPACITY - 1), st.integers(1, 12)).map(
        lambda run: list(range(run[0], min(sum(run), CAPACITY)))
    )
    numbers = st.one_of(runs, st.lists(st.integers(0, CAPACITY - 1), max_size=12))
    return draw(st.lists(st.tuples(st.sampled_from(["stage", "settle", "retain", "release", "pin", "unpin"]), numbers)))


@given(histories())
def test_counts_agree_with_two_counters(history: list[tuple[str, list[int]]]) -> None:
    holds = Holds(np.zeros(CAPACITY, np.int64))
    references: Counter[int] = Counter()
    pins: Counter[int] = Counter()
    for action, numbers in history:
        held = [row for row in range(CAPACITY) if references[row] + pins[row]]
        if action == "stage":
            fresh = [row for row in dict.fromkeys(numbers) if row not in held]
            holds.stage(rows(*fresh))
            pins.update(fresh)
        elif action == "settle":
            fresh = [row for row in dict.fromkeys(numbers) if pins[row] == 1 and not references[row]]
            holds.settle(rows(*fresh))
            pins.subtract(fresh)
            references.update(fresh)
        elif action in ("retain", "pin"):
            kept = [row for row in numbers if row in held]
            (holds.retain if action == "retain" else holds.pin)(rows(*kept))
            (references if action == "retain" else pins).update(kept)
        else:
            counter = references if action == "release" else pins
            given_up = list((Counter(numbers) & counter).elements())
            freed = (holds.release if action == "release" else holds.unpin)(rows(*given_up))
            counter.subtract(given_up)
            assert sorted(as_list(freed)) == sorted(
                row for row in set(given_up) if not references[row] and not pins[row]
            )
        assert holds.counts.tolist() == [references[row] + pins[row] * PIN for row in range(CAPACITY)]
        assert holds.pinned_rows == sum(pins[row] > 0 for row in range(CAPACITY))
        assert holds.staged_rows == sum(pins[row] > 0 and not references[row] for row in range(CAPACITY))
