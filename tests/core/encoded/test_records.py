"""Records of encoded items."""

from __future__ import annotations

import numpy as np
from encoded_rig import item
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.core.encoded.records import read_slices, read_trajectories, split, write_record, write_records
from reverb_async.core.runs import join
from reverb_async.core.variable import VariableRows

CHUNKS = [30, 10, 20]
number = st.integers(0, 2**31 - 1)
columns = st.lists(st.lists(st.tuples(st.integers(0, 2), number, number, number), min_size=1, max_size=3), min_size=2)


@given(st.lists(st.tuples(columns.map(lambda each: each[:2]), st.binary(max_size=9)), min_size=1, max_size=4))
def test_records_of_items_are_read_as_they_were_written(
    written: list[tuple[list[list[tuple[int, int, int, int]]], bytes]],
) -> None:
    parts = [write_record(item(CHUNKS, *shown, trajectory=trajectory)) for shown, trajectory in written]
    assert all(chunks.tolist() == sorted(CHUNKS) for _, chunks in parts)
    sizes = np.array([len(record) for record, _ in parts])
    assert not (sizes % 4).any()
    data = np.frombuffer(b"".join(record for record, _ in parts), np.uint8)
    records = VariableRows(data, sizes, np.zeros((len(parts), 0), np.int32))
    slices = read_slices(records, 2)
    assert slices.counts.tolist() == [[len(column) for column in shown] for shown, _ in written]
    read = zip(slices.position, slices.offset, slices.length, slices.tensor, strict=True)
    expected = [
        (sorted(CHUNKS).index(CHUNKS[position]), offset, length, tensor)
        for shown, _ in written
        for column in shown
        for position, offset, length, tensor in column
    ]
    assert [tuple(map(int, each)) for each in read] == expected
    assert [bytes(each) for each in read_trajectories(split(records))] == [trajectory for _, trajectory in written]
    assert [bytes(each) for each in split(records)] == [record for record, _ in parts]


rows = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True) | st.integers(0, 9).map(
    lambda first: [*range(first, first + 3)]
)


@given(st.lists(rows, min_size=1, max_size=5))
def test_records_written_together_are_those_written_one_by_one(chunks: list[list[int]]) -> None:
    items = [item(each, [(at, 0, 1, 0) for at in range(len(each))], trajectory=b"x" * len(each)) for each in chunks]
    records, found = write_records(items)
    parts = [write_record(each) for each in items]
    assert records == [record for record, _ in parts]
    expected = join([taken for _, taken in parts])
    assert found.rows().tolist() == expected.rows().tolist()
    assert found.length.tolist() == expected.length.tolist()
    assert found.pieces.keys() == expected.pieces.keys()
