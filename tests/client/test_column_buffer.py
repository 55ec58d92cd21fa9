"""The rows a writer keeps of one column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverb_async.client.writing.clock import Clock
from reverb_async.client.writing.columns import ColumnBuffer
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows, decode_rows
from reverb_async.errors import ExpiredReference, InvalidArgument

NOTHING = 1 << 62


def never(*_: object) -> None:
    return None


class Writer:
    """One column and the clock it goes by."""

    def __init__(self, spec: ArraySpec, keep: int = 3) -> None:
        self.needed_from = NOTHING
        self.clock = Clock(lambda: self.needed_from)
        self.column = ColumnBuffer(("x",), 0, self.clock, keep, spec, 0)

    def append(self, value: Any) -> None:
        if value is not None:
            self.column.put(self.clock.end, value, never)
        self.clock.end += 1


SCALAR = ArraySpec((), np.float64)


def test_only_what_cannot_be_named_and_is_not_needed_is_dropped() -> None:
    writer = Writer(SCALAR)
    for at in range(5000):
        writer.append(float(at))
        if at == 10:
            writer.needed_from = 8
        if at == 3000:
            assert np.asarray(writer.column.rows(8, 4, SCALAR)).tolist() == [8, 9, 10, 11]
            writer.needed_from = NOTHING
    writer.column.check(4997, 3)
    with pytest.raises(ExpiredReference, match="num_keep_alive_refs >= 4, is 3"):
        writer.column.check(4996, 1)
    with pytest.raises(AssertionError):
        writer.column.rows(8, 1, SCALAR)


def test_rows_handed_out_are_never_written_again() -> None:
    writer = Writer(SCALAR)
    handed_out = []
    for at in range(5000):
        writer.append(float(at))
        handed_out.append((at, writer.column.rows(at, 1, SCALAR)))
    assert all(np.asarray(rows)[0] == at for at, rows in handed_out)


def test_big_rows_do_not_reserve_much_more_than_is_kept() -> None:
    writer = Writer(ArraySpec((1 << 20,), np.uint8), keep=10)
    for _ in range(200):
        writer.append(np.zeros(1 << 20, np.uint8))
    assert len(writer.column._array) <= 10 + 16 + 1


@given(
    values=st.lists(st.none() | st.integers(0, 1000), min_size=1, max_size=300),
    keep=st.integers(1, 40),
    needed=st.lists(st.integers(0, 60), min_size=1, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_a_column_agrees_with_a_list(values: list[int | None], keep: int, needed: list[int]) -> None:
    writer = Writer(ArraySpec((), np.int64), keep)
    column = writer.column
    for at, value in enumerate(values):
        writer.needed_from = max(0, at - needed[at % len(needed)])
        writer.append(None if value is None else np.int64(value))
        first = max(0, writer.clock.end - keep)
        for step in range(first, writer.clock.end):
            if values[step] is None:
                with pytest.raises(InvalidArgument, match="no value"):
                    column.check(step, 1)
            else:
                column.check(step, 1)
                assert np.asarray(column.rows(step, 1, column.spec)).tolist() == [values[step]]


def test_values_are_checked_against_the_first_one() -> None:
    writer = Writer(ArraySpec((2,), np.float32))
    for value, message in (
        (np.zeros(3, np.float32), r"\('x',\) is float32 \[2\], got float32 \[3\]"),
        (np.zeros(2), r"float32 \[2\], got float64 \[2\]"),
        ("text", "got str"),
        (1.0, r"got float32 \[\]"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            writer.append(value)
    writer.append(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        (np.float64, [1.5, 2, np.float64(3), np.array(4.0)], [np.float32(1), "1", 1j]),
        (np.float32, [1.5, 2, np.float32(3)], [np.float64(1), 1e300]),
        (np.int64, [2, True, np.int64(3)], [1.5, np.int32(1), 1 << 70]),
        (np.bool_, [True, np.bool_(False)], [1, np.int8(1)]),
        (np.int8, [-3, np.int8(5)], [300, 1.0]),
    ],
)
def test_python_numbers_take_the_columns_dtype_where_it_holds_them(dtype: Any, good: list[Any], bad: list[Any]) -> None:
    writer = Writer(ArraySpec((), dtype), keep=10)
    for value in good:
        writer.append(value)
    for value in bad:
        with pytest.raises(InvalidArgument):
            writer.append(value)
    assert np.asarray(writer.column.rows(0, len(good), writer.column.spec)).tolist() == [dtype(value) for value in good]


def test_a_column_that_becomes_variable_keeps_its_rows_in_both_forms() -> None:
    writer = Writer(ArraySpec((2,), np.int16), keep=10)
    fixed, free = writer.column.spec, ArraySpec((None,), np.int16)
    for at in range(3):
        writer.append(np.full(2, at, np.int16))
    writer.column.put(3, np.zeros(5, np.int16), lambda *_: free)
    writer.clock.end += 1
    assert writer.column.spec == free
    rows = writer.column.rows(1, 3, free)
    assert isinstance(rows, VariableRows)
    assert [np.asarray(row).tolist() for row in decode_rows(rows, free)] == [[1, 1], [2, 2], [0] * 5]
    assert np.asarray(writer.column.rows(0, 3, fixed)).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_raising_the_number_kept_does_not_bring_back_what_had_expired() -> None:
    writer = Writer(SCALAR, keep=2)
    for at in range(5):
        writer.append(float(at))
    writer.column.configure(10)
    with pytest.raises(ExpiredReference):
        writer.column.check(2, 1)
    for at in range(5, 9):
        writer.append(float(at))
    writer.column.check(3, 6)
    assert writer.column.first_kept == 3
