"""Messages about lent rows: what is written is read, what cannot be true is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.core.nest import flatten
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import encode_rows
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.lending import (
    Lending,
    LentBatch,
    LentStore,
    Place,
    Returned,
    used_views,
)
from reverb_async.protocol.lending_reader import LendingReader
from reverb_async.protocol.message import Message
from reverb_async.protocol.sampled import SampledBatch, SampledLayout, SampledPiece
from reverb_async.protocol.sampling import SampleRequest, SampleResponse, SampleResponseReader

FRAME, TEXT = ArraySpec((3,), np.float32), ArraySpec((), "U")
LAYOUT = SampledLayout(
    0, flatten({"a": 0, "b": 0, "c": 0})[1], 3, ((0, True, FRAME), (1, False, TEXT), (2, False, FRAME))
)
ONLY_FRAMES = SampledLayout(1, flatten({"a": 0})[1], 1, ((0, True, FRAME),))
STORES = [LentStore(0, 7, 1234, 1 << 20), LentStore(1, 8, 2**40, 1 << 12)]
PLACES = {0: (Place(0, 64, 100), None, Place(1, 0, 50)), 1: (Place(0, 4096, 10),)}


def a_batch(
    seq: int, count: int, pieces: list[SampledPiece], rows: list[list[Any]], slot: int = 0, lease: int = 1
) -> LentBatch:
    rng = np.random.default_rng(seq)
    batch = SampledBatch(
        seq,
        rng.integers(0, 2**64, count, np.uint64),
        rng.random(count),
        rng.random(count),
        rng.integers(0, 9, count, np.int32),
        rng.integers(0, 9, count),
        rng.random(count),
        bool(seq % 2),
        pieces,
    )
    return LentBatch(batch, rows, slot, lease)


def texts(count: int) -> Any:
    return encode_rows([f"text {at}" for at in range(count)], TEXT)


def sent(lending: Lending, *layouts: SampledLayout) -> Message:
    message = SampleResponse(layouts).to_message()
    lending.put(message)
    return message


def read(message: Message) -> list[LentBatch]:
    responses = SampleResponseReader()
    assert not responses.read(message).batches
    return LendingReader().read(message, responses.layouts)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=4),
    st.integers(0, 4095),
    st.integers(1, 2**63 - 1),
)
def test_what_is_written_is_read(shapes, slot, lease):
    batches = []
    for at, (count, text_rows, frame_rows, ragged) in enumerate(shapes):
        lengths: list[Any] = [1, text_rows, frame_rows]
        if ragged:
            lengths[2] = np.arange(count) + frame_rows
        total = int(np.sum(lengths[2])) if ragged else count * frame_rows
        piece = SampledPiece(LAYOUT, np.arange(count) * 2, lengths, [texts(count * text_rows)])
        other = SampledPiece(ONLY_FRAMES, np.arange(count) * 2 + 1, [1], [])
        rows = [[np.arange(count) + 7, None, np.arange(total) * 3], [np.arange(count)]]
        batches.append(a_batch(at + 1, 2 * count, [piece, other], rows, slot, lease))
    got = read(sent(Lending(STORES, PLACES, batches), LAYOUT, ONLY_FRAMES))
    assert len(got) == len(batches)
    for mine, theirs in zip(got, batches, strict=True):
        assert (mine.slot, mine.lease, mine.batch.seq) == (slot, lease, theirs.batch.seq)
        assert mine.batch.rate_limited == theirs.batch.rate_limited
        for name in ("keys", "probabilities", "priorities", "times_sampled", "table_sizes", "inserted_at"):
            np.testing.assert_array_equal(getattr(mine.batch, name), getattr(theirs.batch, name), strict=True)
        for piece, same in zip(mine.batch.pieces, theirs.batch.pieces, strict=True):
            assert (piece.layout.id, piece.layout.leaves) == (same.layout.id, same.layout.leaves)
            np.testing.assert_array_equal(piece.positions, same.positions)
            for length, wanted in zip(piece.lengths, same.lengths, strict=True):
                np.testing.assert_array_equal(length, wanted)
            for column, wanted in zip(piece.columns, same.columns, strict=True):
                np.testing.assert_array_equal(column.data, wanted.data)
        for views, wanted in zip(mine.rows, theirs.rows, strict=True):
            for one, other in zip(views, wanted, strict=True):
                np.testing.assert_array_equal(one, other)


def test_what_was_declared_is_remembered():
    responses, reader = SampleResponseReader(), LendingReader()
    for message in (
        sent(Lending(STORES, PLACES), LAYOUT, ONLY_FRAMES),
        sent(Lending(batches=[a_batch(1, 2, [SampledPiece(ONLY_FRAMES, None, [1], [])], [[np.arange(2)]])])),
    ):
        responses.read(message)
        got = reader.read(message, responses.layouts)
    assert len(got) == 1
    assert reader.stores[1] == STORES[1]
    assert reader.places == PLACES


def test_only_views_with_a_place_are_used():
    assert used_views(LAYOUT, PLACES[0]) == [True, False, True]


@pytest.mark.parametrize(
    "returned", [Returned(), Returned(b"s" * 16, 3, (1, 3), True), Returned(copied=2**62), Returned(lost=(1,))]
)
def test_what_a_client_returns_survives(returned):
    request = SampleRequest.from_message(SampleRequest(credits=1, returned=returned.to_wire()).to_message())
    assert Returned.from_wire(request.returned or {}) == returned


@pytest.mark.parametrize(
    "entry",
    [[], "x", {"secret": "text"}, {"copied": -1}, {"copied": "1"}, {"lost": 5}, {"lost": [1.5]}, {"lost": [2**63]}],
)
def test_returns_that_mean_nothing_are_refused(entry):
    with pytest.raises(InvalidArgument):
        Returned.from_wire(entry)


def broken(**header: Any) -> Message:
    batch = a_batch(1, 2, [SampledPiece(ONLY_FRAMES, None, [1], [])], [[np.arange(2)]])
    message = sent(Lending(STORES, PLACES, [batch]), LAYOUT, ONLY_FRAMES)
    message.header.update(header)
    return message


@pytest.mark.parametrize(
    "header",
    [
        {"stores": 1},
        {"stores": [[0, 1, 2]]},
        {"stores": [[0, 1, 2, -1]]},
        {"stores": [["0", 1, 2, 3]]},
        {"stores": [[0, 7, 1234, 1 << 20], [0, 7, 1234, 1 << 21]]},
        {"places": [[5, []]]},
        {"places": [["a", []]]},
        {"places": [[0, 7]]},
        {"places": [[1, []]]},
        {"places": [[1, [None]]]},
        {"places": [[1, [[0, 0]]]]},
        {"places": [[1, [[0, 0, 10, 1]]]]},
        {"places": [[1, [[9, 0, 10]]]]},
        {"places": [[1, [[0, 0, 0]]]]},
        {"places": [[1, [[0, 0, 2**62]]]]},
        {"places": [[1, [[0, 2**62, 1]]]]},
        {"places": [[1, [[0, -64, 1]]]]},
        {"places": [[0, [[0, 0, 1], [0, 0, 1], [0, 0, 1]]]]},
        {"places": []},
        {"lent": {}},
        {"lent": [[1, 2, False, 0, 1]]},
        {"lent": [[1, 30, False, 0, 1, [[1, 2, False, [1]]]]]},
        {"lent": [[1, 0, False, 0, 1, [[1, 2, False, [1]]]]]},
        {"lent": [[-1, 2, False, 0, 1, [[1, 2, False, [1]]]]]},
        {"lent": [[1, 2, False, 4096, 1, [[1, 2, False, [1]]]]]},
        {"lent": [[1, 2, False, 0, -1, [[1, 2, False, [1]]]]]},
        {"lent": [[1, 2, False, 0, 1, [[9, 2, False, [1]]]]]},
        {"lent": [[1, 2, False, 0, 1, [[1, 2, False, [9]]]]]},
        {"lent": [[1, 2, False, 0, 1, [[1, 2, False, [2**62]]]]]},
        {"lent": [[1, 2, False, 0, 1, [[1, 2, False, [1, 1]]]]]},
        {"lent": [[1, 2, False, 0, 1, [[1, 2, False, []]]]]},
        {"lent": [[1, 2, False, 0, 1, [[1, 2, False, 1]]]]},
        {"lent": [[1, 2, False, 0, 1, [[1, 2, False, [-1]]]]]},
        {"lent": [[1, 2, False, 0, 1, 5]]},
        {"lent": [[1, 8, False, 0, 1, [[1, 2, False, [1]]]]]},
        {"lent": [[1, 2, False, 0, 1, [[1, 1, False, [1]], [1, 1, False, [1]]]]]},
        {"lent": [[1, 2, False, 0, 1, [[[], 2, False, [1]]]]]},
    ],
)
def test_messages_that_cannot_be_true_are_refused(header):
    with pytest.raises(InvalidArgument):
        read(broken(**header))


def test_lengths_below_zero_are_refused():
    piece = SampledPiece(ONLY_FRAMES, None, [np.array([-1, 3])], [])
    message = sent(Lending(STORES, PLACES, [a_batch(1, 2, [piece], [[np.arange(2)]])]), ONLY_FRAMES, LAYOUT)
    with pytest.raises(InvalidArgument, match="an item has 0 to"):
        read(message)


@pytest.mark.parametrize(("size", "positions"), [(2, [0, 2]), (2, [-1, 1]), (3, [0, 1]), (1, [0, 0]), (2, [0, 2**62])])
def test_items_have_places_in_their_batch(size, positions):
    piece = SampledPiece(ONLY_FRAMES, np.array(positions), [1], [])
    message = sent(Lending(STORES, PLACES, [a_batch(1, size, [piece], [[np.arange(2)]])]), ONLY_FRAMES, LAYOUT)
    with pytest.raises(InvalidArgument, match=r"positions lie|made of pieces"):
        read(message)


def test_items_of_several_pieces_have_places_in_their_batch():
    pieces = [SampledPiece(ONLY_FRAMES, positions, [1], []) for positions in (np.array([0]), None)]
    message = sent(Lending(STORES, PLACES, [a_batch(1, 1, pieces, [[np.arange(1)]] * 2)]), ONLY_FRAMES, LAYOUT)
    message.header["lent"][0][1] = 2
    with pytest.raises(InvalidArgument, match="made of pieces"):
        read(message)


def test_the_untouched_message_is_fine():
    assert len(read(broken())) == 1


@pytest.mark.parametrize("positions", [(0, 2), (-1, 0)])
def test_positions_outside_the_batch_are_refused(positions):
    pieces = [SampledPiece(ONLY_FRAMES, np.array([at]), [1], []) for at in positions]
    batch = a_batch(1, 2, pieces, [[np.arange(1)], [np.arange(1)]])
    with pytest.raises(InvalidArgument, match="positions lie between 0 and 1"):
        read(sent(Lending(STORES, PLACES, [batch]), LAYOUT, ONLY_FRAMES))


def test_a_store_is_declared_once():
    reader, layouts = LendingReader(), {1: ONLY_FRAMES}
    reader.read(Message({"stores": [[0, 7, 1234, 4096]], "places": [[1, [[0, 0, 100]]]]}), layouts)
    with pytest.raises(InvalidArgument, match="store 0 was declared before"):
        reader.read(Message({"stores": [[0, 7, 1234, 1 << 20]], "places": [[1, [[0, 0, 10_000]]]]}), layouts)


def test_a_batch_that_names_rows_again_and_again_is_refused():
    layout = SampledLayout(0, flatten({"a": 0})[1], 1, ((0, False, ArraySpec((1 << 20,), np.uint8)),))
    for count, fits in ((1024, True), (1025, False)):
        piece = SampledPiece(layout, None, [count], [])
        batch = a_batch(1, 1, [piece], [[np.zeros(count, np.int64)]])
        message = sent(Lending(STORES, {0: (Place(0, 0, 1),)}, [batch]), layout)
        if fits:
            assert len(read(message)) == 1
        else:
            with pytest.raises(InvalidArgument, match="more than 1073741824"):
                read(message)
