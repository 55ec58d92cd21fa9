"""Selecting steps of a writer's history."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.client.writing.history import ColumnHistory, TrajectoryColumn
from reverb_async.client.writing.steps import StepBuffer
from reverb_async.errors import ExpiredReference, InvalidArgument


def buffer(keep: int = 100) -> StepBuffer:
    return StepBuffer(keep, lambda: 1 << 62, lambda column: None)


def history(steps: int, keep: int = 100) -> ColumnHistory:
    steps_buffer = buffer(keep)
    for at in range(steps):
        steps_buffer.append({"x": at}, False)
    column = steps_buffer.history["x"]
    assert isinstance(column, ColumnHistory)
    return column


def test_a_selection_is_an_array_for_numpy_and_a_whole_history_is_not() -> None:
    column = history(5)
    assert np.asarray(column[-3:]).tolist() == [2, 3, 4]
    assert np.asarray(column[-3:], np.float32).dtype == np.float32
    assert np.asarray(column[-1]) == 4
    assert np.array(column[-1:], copy=True).tolist() == [4]
    with pytest.raises(TypeError, match=r"select steps, as in history\['x'\]\[-3:\]"):
        np.asarray(column)


@given(
    length=st.integers(1, 12),
    index=st.integers(-15, 15)
    | st.slices(15)
    | st.lists(st.integers(-15, 15), max_size=8)
    | st.builds(slice, *[st.none() | st.integers(-15, 15)] * 2, st.none() | st.sampled_from([-3, -1, 2, 5])),
)
def test_indexing_is_pythons(length: int, index: Any) -> None:
    steps = list(range(length))
    column = history(length)
    try:
        wanted = [steps[at] for at in index] if isinstance(index, list) else steps[index]
    except IndexError:
        with pytest.raises(IndexError):
            column[index]
        return
    selected = column[index]
    assert len(selected) == len(np.atleast_1d(wanted))
    assert selected.numpy().tolist() == wanted
    assert selected.shape == np.shape(wanted)
    assert np.asarray(selected).dtype == selected.dtype == np.int64


@given(
    outer=st.lists(st.integers(0, 9), min_size=1, max_size=6) | st.just(slice(None)),
    inner=st.integers(-6, 5) | st.slices(6) | st.lists(st.integers(-6, 5), max_size=4),
)
def test_selections_can_be_selected_from(outer: Any, inner: Any) -> None:
    selected = history(10)[outer]
    steps = selected.numpy().tolist()
    try:
        wanted = [steps[at] for at in inner] if isinstance(inner, list) else steps[inner]
    except IndexError:
        with pytest.raises(IndexError):
            selected[inner]
        return
    assert selected[inner].numpy().tolist() == wanted


def test_numpy_integers_and_arrays_are_indices() -> None:
    column = history(5)
    assert column[np.int64(-1)].numpy() == 4
    assert column[np.array([1, 0])].numpy().tolist() == [1, 0]
    assert column[range(3)].numpy().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "index", ["x", 1.5, None, True, [True, False], [0.5], np.array([0.5]), [[0, 1]], np.array(1.0)]
)
def test_what_is_no_index_is_refused(index: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"\('x',\) is selected from with"):
        history(5)[index]


def test_an_index_without_a_time_axis_has_none() -> None:
    column = history(5)[2]
    assert column.shape == ()
    assert len(column) == 1
    with pytest.raises(InvalidArgument, match="no time axis"):
        column[0]
    with pytest.raises(InvalidArgument, match="no time axis"):
        iter(column)


def test_columns_are_iterated_step_by_step() -> None:
    column = history(4)
    assert [step.numpy().item() for step in column] == [0, 1, 2, 3]
    assert [step.shape for step in column[1:3]] == [(), ()]


def test_lengths_count_expired_steps_and_selecting_them_says_what_would_keep_them() -> None:
    column = history(7, keep=3)
    assert len(column) == 7
    assert column[-3:].numpy().tolist() == column[4:].numpy().tolist() == [4, 5, 6]
    for index in (3, -4, slice(None), slice(None, -1), [6, 3]):
        with pytest.raises(ExpiredReference, match=r"num_keep_alive_refs >= \d, is 3"):
            column[index]
    with pytest.raises(IndexError, match="7 steps"):
        column[7]
    assert len(column[0:0]) == 0


def test_the_history_is_nested_like_the_union_of_the_steps_and_cached() -> None:
    steps = buffer()
    with pytest.raises(InvalidArgument, match="before the first append"):
        _ = steps.history
    steps.append({"a": (1,)}, False)
    first = steps.history
    steps.append({"a": (1,)}, False)
    assert steps.history is first
    steps.append({"a": (1, 2.0), "b": "x"}, False)
    assert isinstance(steps.history["a"], tuple)
    assert len(steps.history["a"][1]) == 3
    assert "3 steps of str" in repr(steps.history["b"])
    assert isinstance(steps.history["b"][-1], TrajectoryColumn)


def test_contradicting_structures_are_refused_and_change_nothing() -> None:
    steps = buffer()
    steps.append({"a": 1}, False)
    with pytest.raises(InvalidArgument, match=r"\('a',\)"):
        steps.append({"a": {"b": 1}}, False)
    assert steps.clock.end == 1
    steps.append({"a": 2}, False)


def test_steps_of_different_shapes_have_no_array() -> None:
    steps = buffer()
    steps._loosened = lambda path, spec, shape: type(spec)((None,), spec.dtype)  # type: ignore[assignment,method-assign]
    for at in range(1, 4):
        steps.append({"x": np.zeros(at)}, False)
    column = steps.history["x"]
    assert column[-1].numpy().shape == (3,)
    assert column[-1:].shape == (1, None)
    with pytest.raises(InvalidArgument, match="the shapes"):
        column[:].numpy()
