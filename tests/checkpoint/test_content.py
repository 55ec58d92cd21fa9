from __future__ import annotations

import numpy as np
import pytest
from checkpoint_rig import SPECS, some_rows, some_slots
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.checkpoint import content
from reverb_async.checkpoint.content import Malformed
from reverb_async.checkpoint.file_system import FileSystem
from reverb_async.checkpoint.records import RecordReader, RecordWriter
from reverb_async.core.cut.image import ArrayBlock, image_dtype
from reverb_async.core.variable import VariableRows


def written(tmp_path, write):
    path = tmp_path / f"file{len(list(tmp_path.iterdir()))}"
    file = RecordWriter(FileSystem(), path, "test")
    write(file)
    file.finish()
    (record,) = RecordReader(path, "test")
    return record


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(
    kind=st.sampled_from(["<u8", "<i8", "<i4", "<u4", "<f8"]),
    values=st.one_of(
        st.lists(st.integers(0, 2**64 - 1), max_size=20),
        st.tuples(st.integers(0, 2**64 - 1), st.integers(-(2**64), 2**64), st.integers(0, 20)).map(
            lambda parts: [(parts[0] + at * parts[1]) % 2**64 for at in range(parts[2])]
        ),
    ),
)
def test_columns_come_back_bit_by_bit(kind, values):
    width = int(kind[2])
    column = np.array([value % 2 ** (8 * width) for value in values], f"<u{width}").view(kind)
    arrays: list[np.ndarray] = []
    put = content._put_column(column, arrays)
    got = content._get_column(kind, put, len(column), iter([array.view(np.uint8) for array in arrays]))
    assert same_bits(got, column)


def test_even_columns_take_no_room():
    arrays: list[np.ndarray] = []
    assert content._put_column(np.arange(5, 500, 3), arrays) == [5, 3]
    assert content._put_column(np.full(100, np.nan), arrays) is not None
    assert content._put_column(np.array([0.0, -0.0]), arrays) is None
    assert len(arrays) == 1


def test_slots_come_back(tmp_path):
    block = some_slots(np.array([3, 1, 40]), 0)
    record = written(tmp_path, lambda file: content.write_slots(file, "replay", block))
    read = content.read_slots(record)
    assert record.header["table"] == "replay"
    assert same_bits(read.ids, block.ids)
    assert same_bits(read.values, block.values)
    assert same_bits(read.more, block.more)


def test_no_slots_come_back(tmp_path):
    block = ArrayBlock(np.zeros(0, np.int64), np.zeros(0, image_dtype(1)), np.zeros((0, 4), np.int64))
    read = content.read_slots(written(tmp_path, lambda file: content.write_slots(file, "t", block)))
    assert len(read) == 0
    assert read.values.dtype == block.values.dtype


@pytest.mark.parametrize("rows", [np.arange(7, 17), np.array([5, 2, 9, 1, 30, 31, 32, 4, 8, 6])])
def test_rows_of_all_kinds_come_back(tmp_path, rows):
    columns = some_rows(10, 1)
    record = written(tmp_path, lambda file: content.write_rows(file, "store", rows, columns))
    assert content.read_row_numbers(record).tolist() == rows.tolist()
    read = content.read_rows(record, SPECS, 5)
    assert read.rows.tolist() == rows.tolist()
    assert read.segment == 5
    for got, column in zip(read.columns, columns, strict=True):
        if isinstance(column, VariableRows):
            assert all(same_bits(getattr(got, name), getattr(column, name)) for name in ("data", "sizes", "shapes"))
        else:
            assert same_bits(got, column)


def test_the_state_comes_back(tmp_path):
    state = {"a": [1, 2, {"b": b"x"}]}
    assert content.read_state(written(tmp_path, lambda file: content.write_state(file, state))) == state


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"n": 2**50}, "a count of"),
        ({"n": -1}, "a count of"),
        ({"n": 4}, "bytes for"),
        ({"ids": [-5, 1]}, "numbers from -5"),
        ({"ids": [2**62, 2**62]}, "are no int64"),
        ({"fields": [["key", "O", [0, 0]]]}, "no dtype of a field"),
        ({"more": 5}, "bytes for"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, change, what):
    record = written(tmp_path, lambda file: content.write_slots(file, "t", some_slots(np.array([4, 1, 2]), 0)))
    record.header.update(change)
    with pytest.raises(Malformed, match=what):
        content.read_slots(record)


def test_rows_whose_sizes_do_not_add_up_are_refused(tmp_path):
    columns = some_rows(4, 1)
    columns[1].sizes[0] += 1
    record = written(tmp_path, lambda file: content.write_rows(file, "s", np.arange(4), columns))
    with pytest.raises(Malformed, match="add up to"):
        content.read_rows(record, SPECS, 1)
