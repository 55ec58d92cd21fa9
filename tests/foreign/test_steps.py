"""Steps as chunks: whatever items show, their slices hold it, and nothing is encoded twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.compat.tensors import decode_chunk_tensor
from reverb_async.core.dtypes import TEXT
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import encode_rows
from reverb_async.errors import InvalidArgument
from reverb_async.foreign.steps import StepChunks

SPECS = (ArraySpec((), np.int64), ArraySpec((2,), np.float32), ArraySpec((None,), np.int32), ArraySpec((), TEXT))


def ragged(step: int) -> np.ndarray:
    return np.arange(step % 4, dtype=np.int32) + step


def add(chunks: StepChunks, first: int, count: int) -> None:
    steps = range(first, first + count)
    chunks.add(
        first,
        count,
        [
            np.array(steps, np.int64),
            np.array([[step, -step] for step in steps], np.float32).reshape(count, 2),
            encode_rows([ragged(step) for step in steps], SPECS[2]),
            encode_rows([f"step {step}" for step in steps], SPECS[3]),
        ],
    )


def shown(chunks: StepChunks, column: int, first: int, length: int) -> list[object]:
    rows: list[object] = []
    for part in chunks.find(column, first, length, episode=7):
        rows += list(decode_chunk_tensor(part.chunk.message, part.tensor)[part.offset : part.offset + part.length])
    return rows


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 8), st.integers(0, 40)), max_size=20),
)
def test_items_get_the_rows_they_show_in_whatever_order_and_overlap(
    counts: list[int], items: list[tuple[int, int, int, int]]
) -> None:
    chunks, end, released = StepChunks(SPECS), 0, 0
    for count in counts:
        add(chunks, end, count)
        end += count
    encoded: set[tuple[int, int]] = set()
    for column, first, length, release in items:
        first %= end
        if first < released or first + length > end:
            with pytest.raises(InvalidArgument, match=r"was not sent or is released|was not sent"):
                chunks.find(column, first, length, episode=7)
            continue
        rows = shown(chunks, column, first, length)
        wanted = range(first, first + length)
        match column:
            case 0:
                assert rows == list(wanted)
            case 1:
                assert [row.tolist() for row in rows] == [[step, -step] for step in wanted]
            case 2:
                assert [row.tolist() for row in rows] == [ragged(step).tolist() for step in wanted]
            case _:
                assert rows == [f"step {step}".encode() for step in wanted]
        encoded |= {(column, step) for step in wanted}
        released = max(released, min(release % end, first))
        chunks.release(released)
        kept = sum(len(decode_chunk_tensor(chunk.message, 0)) for chunk in chunks.chunks())
        assert kept >= sum(step >= released for _, step in encoded)


def test_overlapping_items_share_chunks_and_a_chunk_holds_nothing_that_no_item_shows() -> None:
    chunks = StepChunks(SPECS[:1])
    chunks.add(0, 10, [np.arange(10)])
    first, second = chunks.find(0, 0, 4, episode=1), chunks.find(0, 2, 4, episode=1)
    assert [(part.offset, part.length) for part in first] == [(0, 4)]
    assert [(part.offset, part.length) for part in second] == [(2, 2), (0, 2)]
    assert second[0].chunk is first[0].chunk
    assert decode_chunk_tensor(second[1].chunk.message, 0).tolist() == [4, 5]


def test_steps_cannot_be_sent_twice() -> None:
    chunks = StepChunks(SPECS[:1])
    chunks.add(0, 3, [np.arange(3)])
    chunks.add(6, 2, [np.arange(6, 8)])
    for first, count in ((2, 1), (0, 1), (7, 3), (5, 2), (4, 9)):
        with pytest.raises(InvalidArgument, match="were sent before"):
            chunks.add(first, count, [np.arange(count)])


def test_steps_that_no_item_has_shown_come_after_later_ones() -> None:
    chunks = StepChunks(SPECS[:1])
    chunks.add(3, 2, [np.array([3, 4])])
    assert shown(chunks, 0, 3, 2) == [3, 4]
    chunks.add(0, 1, [np.array([0])])
    chunks.add(1, 2, [np.array([1, 2])])
    assert shown(chunks, 0, 0, 5) == [0, 1, 2, 3, 4]
    chunks.release(2)
    with pytest.raises(InvalidArgument, match="step 1, which was not sent or is released"):
        chunks.find(0, 1, 1, episode=7)
    assert shown(chunks, 0, 2, 3) == [2, 3, 4]
