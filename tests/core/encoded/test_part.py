"""Native readers and encoded items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from encoded_rig import add, block, damaged, decode, encode, item, layout_of, pinned, stored
from helpers import make_state

from reverb_async.core.encoded import DamagedChunks, EncodedItem, EncodedItems, EncodedLayout, part
from reverb_async.core.encoded.layout import ORDINAL
from reverb_async.core.encoded.tensor_cache import Tensor
from reverb_async.core.gather import GatherPlan, Piece
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import Storage
from reverb_async.core.table_state import TableState
from reverb_async.core.variable import VariableRows, decode_rows

INT = ArraySpec((), np.int64)
PAIR = ArraySpec((2,), np.float32)
BYTES, TEXT = ArraySpec((), bytes), ArraySpec((), str)


@pytest.fixture
def encoded() -> EncodedItems:
    return EncodedItems(Storage(reserve_bytes=1 << 26), decode)


@pytest.fixture
def state() -> TableState:
    return make_state()


def plan(
    encoded: EncodedItems, state: TableState, layout: EncodedLayout, items: Sequence[EncodedItem], keys: Sequence[int]
) -> GatherPlan:
    """Insert items, whose keys are 1, 2, ... and return what is to be read for some of them."""
    written = block(encoded, layout, items)
    state.insert(written, 0.0)
    encoded.drop_records(written)
    return GatherPlan(state.slots, state.find(np.array(keys, np.uint64)))


def values(piece: Piece, column: int = 0) -> list[Any]:
    shown = piece.columns[column]
    if isinstance(shown, VariableRows):
        return decode_rows(shown, piece.layout.row_spec(piece.layout.leaves[column]))
    return shown.tolist()


def test_columns_are_their_slices_one_after_the_other(encoded: EncodedItems, state: TableState) -> None:
    chunks = [encode(np.arange(5) + 10 * at, np.arange(10, dtype="f4").reshape(5, 2) + 100 * at) for at in range(3)]
    rows = add(encoded, *chunks)
    items = [
        item(rows[[2, 0]], [(0, 1, 2, 0), (1, 4, 1, 0)], [(1, 3, 1, 1)]),
        item(rows[[1]], [(0, 0, 1, 0)], [(0, 0, 1, 1)]),
        item(rows[[0, 1, 2]], [(2, 0, 1, 0), (0, 0, 1, 0), (2, 2, 1, 0)], [(1, 1, 1, 1)]),
    ]
    layout = layout_of(encoded, {"a": (INT, False), "b": (PAIR, True)})
    found = plan(encoded, state, layout, items, [3, 1, 2, 1])
    assert found.parts[0].totals == [10, 4]
    (piece,) = found.run([None])
    assert values(piece) == [20, 0, 22, 21, 22, 4, 10, 21, 22, 4]
    assert values(piece, 1) == [[102.0, 103.0], [6.0, 7.0], [100.0, 101.0], [6.0, 7.0]]
    assert [length if isinstance(length, int) else length.tolist() for length in piece.lengths] == [[3, 3, 1, 3], 1]


def test_wanted_columns_go_where_they_are_wanted_and_others_are_not_decoded(
    encoded: EncodedItems, state: TableState
) -> None:
    decoded = []

    def noting(chunk: memoryview, tensor: int) -> Tensor:
        decoded.append(tensor)
        return decode(chunk, tensor)

    encoded.decode = noting
    rows = add(encoded, encode(np.arange(5), np.ones((5, 2), np.float32), [b"v", b"w"]))
    layout = layout_of(encoded, {"a": (INT, False), "b": (PAIR, False), "c": (BYTES, False)})
    found = plan(encoded, state, layout, [item(rows, [(0, 1, 3, 0)], [(0, 0, 1, 1)], [(0, 1, 1, 2)])], [1, 1])
    out = np.zeros(6, np.int64)
    (piece,) = found.run([[0, 2]], [[out, None]])
    assert piece.columns[0] is out
    assert out.tolist() == [1, 2, 3, 1, 2, 3]
    assert values(Piece(piece.layout, None, [], [out, out, piece.columns[1]]), 2) == [b"w", b"w"]
    assert sorted(decoded) == [0, 2]


@pytest.mark.parametrize(
    ("tensor", "spec", "shown"),
    [
        ([b"a", b"\xffb\x00"], BYTES, [b"a", b"\xffb\x00"]),
        (["ä".encode(), b"b\xff"], TEXT, ["ä", "b�"]),
        ([b"a", b"abc"], ArraySpec((), "S4"), [b"a", b"abc"]),
        (["ä".encode(), b"abc"], ArraySpec((), "U3"), ["ä", "abc"]),
        (np.array([[b"a", b"bc"]] * 2, "S8"), ArraySpec((2,), "S4"), [[b"a", b"bc"]] * 2),
        (np.array([["é".encode(), b"bc"]] * 2), ArraySpec((2,), "U2"), [["é", "bc"]] * 2),
        (np.array([[1, 2], [3, 4]], "i4"), ArraySpec((None,), np.int32), [[1, 2], [3, 4]]),
    ],
)
def test_strings_and_rows_of_free_shape_are_shown_as_the_layout_says(
    encoded: EncodedItems, state: TableState, tensor: Tensor, spec: ArraySpec, shown: list[Any]
) -> None:
    rows = add(encoded, encode(tensor))
    layout = layout_of(encoded, {"x": (spec, False)})
    (piece,) = plan(encoded, state, layout, [item(rows, [(0, 0, 2, 0)])], [1]).run([None])
    read = values(piece)
    assert [each.tolist() if isinstance(each, np.ndarray) else each for each in read] == shown


@pytest.mark.parametrize(
    ("chunk", "spec", "said"),
    [
        (damaged(), INT, "its bytes are damaged"),
        (encode(np.arange(2, dtype="i4")), INT, "int32"),
        (encode(np.arange(6).reshape(2, 3)), INT, "rows of shape"),
        (encode(np.arange(1)), INT, "has 1"),
        (encode([b"too long", b""]), ArraySpec((), "S4"), "length 8"),
        (encode([b"a", b"b"]), INT, "strings"),
        (encode(np.arange(2)), BYTES, "int64"),
    ],
)
def test_what_is_not_as_the_layout_says_is_damaged_and_the_others_are_named_too(
    encoded: EncodedItems, state: TableState, chunk: bytes, spec: ArraySpec, said: str
) -> None:
    good = encode([b"a", b"b"]) if spec.dtype.kind == "S" else encode(np.arange(2))
    rows = add(encoded, chunk, good, chunk)
    items = [item([row], [(0, 0, 2, 0)]) for row in rows.tolist()]
    found = plan(encoded, state, layout_of(encoded, {"x": (spec, False)}), items, [1, 2, 3, 1])
    with pytest.raises(DamagedChunks, match=said) as caught:
        found.run([None])
    assert sorted(row for row, _ in caught.value.found) == sorted(rows[[0, 2]].tolist())
    assert sorted(encoded.keys_showing(state.slots, caught.value).tolist()) == [1, 3]
    encoded.drop(rows)


def test_a_row_that_holds_another_chunk_by_now_is_not_taken_for_the_damaged_one(
    encoded: EncodedItems, state: TableState
) -> None:
    rows = add(encoded, b"another", encode(np.arange(2)))
    plan(encoded, state, layout_of(encoded, {"x": (INT, False)}), [item(rows[1:], [(0, 0, 1, 0)])], [1])
    row, ordinal = int(rows[1]), int(encoded.stores[1].columns[ORDINAL][rows[1]])
    assert encoded.keys_showing(state.slots, DamagedChunks([(row, ordinal - 1)], "damaged")).tolist() == []
    assert encoded.keys_showing(state.slots, DamagedChunks([(row, ordinal)], "damaged")).tolist() == [1]


def test_items_whose_chunks_are_scattered_are_found_by_each_of_them(encoded: EncodedItems, state: TableState) -> None:
    chunks = [encode(np.arange(1))] * 7
    chunks[4] = damaged()
    rows = add(encoded, *chunks)
    shown = [[0, 4], [1, 2], [3, 4, 5], [0, 2, 5], [4]]
    items = [item(rows[at], [(place, 0, 1, 0) for place in range(len(at))]) for at in shown]
    with pytest.raises(DamagedChunks) as caught:
        plan(encoded, state, layout_of(encoded, {"x": (INT, False)}), items, [5]).run([None])
    assert encoded.keys_showing(state.slots, caught.value).tolist() == [1, 3, 5]


def test_more_than_may_be_held_at_once_is_read_all_the_same(
    encoded: EncodedItems, state: TableState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "_HELD_BYTES", 100)
    monkeypatch.setattr(part, "_READ_AT_ONCE", 300)
    encoded.tensors._max_bytes = 2_000
    rows = add(encoded, *[encode(np.arange(8) + 10 * at) for at in range(20)])
    items = [item(rows[[at, (at + 7) % 20]], [(0, 1, 2, 0), (1, 0, 1, 0)]) for at in range(20)]
    found = plan(encoded, state, layout_of(encoded, {"x": (INT, False)}), items, list(range(1, 21)))
    for _ in range(2):
        (piece,) = found.run([None])
        assert values(piece) == [x for at in range(20) for x in (10 * at + 1, 10 * at + 2, 10 * ((at + 7) % 20))]
        assert encoded.tensors.nbytes <= 2_000


def test_pinned_rows_can_be_read_when_the_items_are_gone(encoded: EncodedItems, state: TableState) -> None:
    rows = add(encoded, encode(np.arange(3)))
    found = plan(encoded, state, layout_of(encoded, {"x": (INT, False)}), [item(rows, [(0, 0, 3, 0)])], [1])
    encoded.drop(rows)
    found.pin()
    state.mutate(np.zeros(0, np.uint64), np.zeros(0), np.array([1], np.uint64))
    assert pinned(encoded) == (1, 1)
    (piece,) = found.run([None])
    assert values(piece) == [0, 1, 2]
    found.unpin()
    assert stored(encoded) == (0, 0)


def test_decoding_counts_as_much_work_and_reading_again_does_not(encoded: EncodedItems, state: TableState) -> None:
    rows = add(encoded, *[encode(np.arange(1)) for _ in range(100)])
    items = [item([row], [(0, 0, 1, 0)]) for row in rows.tolist()]
    first = plan(encoded, state, layout_of(encoded, {"x": (INT, True)}), items, list(range(1, 101)))
    assert first.nbytes >= 100 * (32 << 10)
    first.run([None])
    assert GatherPlan(state.slots, state.live_slots()).nbytes == 800
