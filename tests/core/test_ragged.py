import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.core.nest import flatten
from reverb_async.core.ragged import Ragged
from reverb_async.errors import InvalidArgument


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.sampled_from([(), (2,), (0, 3)]))
def test_a_list_of_arrays_is_taken_apart_again(lengths: list[int], row_shape: tuple[int, ...]) -> None:
    arrays = [np.full((length, *row_shape), index, np.int16) for index, length in enumerate(lengths)]
    ragged = Ragged.from_list(arrays)
    assert len(ragged) == len(arrays)
    assert ragged.lengths.tolist() == lengths
    assert ragged.values.dtype == np.int16
    assert all(np.array_equal(got, wanted) for got, wanted in zip(ragged, arrays, strict=True))
    assert np.array_equal(ragged[-1], arrays[-1])


def test_elements_are_views() -> None:
    ragged = Ragged(np.arange(5), np.array([0, 2, 5]))
    ragged[1][0] = 9
    assert ragged.values.tolist() == [0, 1, 9, 3, 4]


def test_an_index_past_the_end_is_an_index_error() -> None:
    ragged = Ragged(np.arange(5), np.array([0, 2, 5], np.int32))
    assert ragged.offsets.dtype == np.int64
    for index in (2, -3):
        with pytest.raises(IndexError, match="of 2 elements"):
            ragged[index]


def test_an_empty_one_has_no_elements() -> None:
    assert list(Ragged(np.empty((0, 4)), np.array([0]))) == []


@pytest.mark.parametrize(
    "offsets",
    [[], [0.0, 5.0], [[0, 5]], [1, 5], [0, 4], [0, 6], [0, 3, 2, 5], [5], np.array([0, 2**63, 5], np.uint64), [-1, 5]],
)
def test_offsets_that_do_not_divide_the_values_are_refused(offsets: object) -> None:
    with pytest.raises(InvalidArgument, match="offsets"):
        Ragged(np.arange(5), np.asarray(offsets))


@pytest.mark.parametrize("values", [np.float32(1), "text", np.array([None]), [1, 2]])
def test_values_must_be_one_array(values: object) -> None:
    with pytest.raises(InvalidArgument):
        Ragged(values, np.array([0, 1]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arrays",
    [
        [],
        [np.zeros(2), np.zeros(2, np.int32)],
        [np.zeros((2, 3)), np.zeros((2, 4))],
        [np.zeros(2), np.zeros(())],
        [np.zeros(2), "ab"],
        [np.array([None])],
    ],
)
def test_arrays_that_do_not_agree_are_refused(arrays: list[np.ndarray]) -> None:
    with pytest.raises(InvalidArgument):
        Ragged.from_list(arrays)


def test_it_is_one_column_of_a_nest() -> None:
    ragged = Ragged(np.arange(5), np.array([0, 2, 5]))
    leaves, structure = flatten({"text": ragged, "x": 1})
    assert leaves[0] is ragged
    assert structure.paths == (("text",), ("x",))
