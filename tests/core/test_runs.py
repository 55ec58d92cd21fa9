from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.core.runs import Runs, as_run, expand, find_runs, join

sequences = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=8), min_size=1, max_size=6)
consecutive = st.tuples(st.integers(0, 100), st.integers(1, 6)).map(lambda run: list(range(run[0], run[0] + run[1])))


def joined(lists: list[list[int]]) -> Runs:
    return join([np.array(rows) for rows in lists])


def flat(lists: list[list[int]]) -> list[int]:
    return [row for rows in lists for row in rows]


@given(st.one_of(sequences, st.lists(consecutive, min_size=1, max_size=6)))
def test_joined_sequences_give_their_rows_back(lists: list[list[int]]) -> None:
    runs = joined(lists)
    assert len(runs) == len(lists)
    assert runs.length.tolist() == [len(rows) for rows in lists]
    assert runs.rows().dtype == np.int64
    assert runs.rows().tolist() == flat(lists)


@given(sequences, st.data())
def test_a_part_has_the_rows_of_its_sequences(lists: list[list[int]], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lists) - 1))
    stop = data.draw(st.integers(start + 1, len(lists)))
    assert joined(lists).part(start, stop).rows().tolist() == flat(lists[start:stop])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20))
def test_runs_are_as_long_as_they_can_be(rows: list[int]) -> None:
    runs = find_runs(np.array(rows))
    assert expand(runs).tolist() == rows
    ends = runs.sum(axis=1)
    assert not (ends[:-1] == runs[1:, 0]).any()


def test_only_sequences_of_several_runs_have_pieces() -> None:
    assert joined([[3, 4, 5], [9, 8], [7]]).pieces.keys() == {1}


def test_a_shared_length_is_known_and_a_mixture_has_none() -> None:
    assert joined([[1, 2], [5, 6]]).uniform_length() == 2
    assert joined([[1, 2], [5]]).uniform_length() == -1
    assert joined([[4]]).part(0, 0).uniform_length() == -1


def test_no_sequences_have_no_rows() -> None:
    assert joined([[4, 5], [7]]).part(1, 1).rows().tolist() == []


def test_sequences_of_one_row_are_those_rows() -> None:
    runs = Runs.of_rows(np.array([5, 2, 2]))
    assert runs.rows().tolist() == [5, 2, 2]
    assert runs.uniform_length() == 1


@pytest.mark.parametrize("numbers", [(), (1, 3), (2, 1), (1, 1), (1, 3, 2, 4), (0, 2, 2, 3), (1, 1, 3)])
def test_only_ascending_consecutive_rows_are_a_run(numbers: tuple[int, ...]) -> None:
    assert as_run(np.array(numbers, np.int64)) is None


@pytest.mark.parametrize("numbers", [(4,), (4, 5), (0, 1, 2, 3)])
def test_consecutive_rows_are_a_run(numbers: tuple[int, ...]) -> None:
    assert as_run(np.array(numbers, np.int64)) == slice(numbers[0], numbers[-1] + 1)
