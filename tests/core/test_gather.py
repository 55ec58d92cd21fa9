from __future__ import annotations

import numpy as np
import pytest

from reverb_async.core import gather
from reverb_async.core.gather import GatherPlan
from reverb_async.core.item import ItemBlock, ItemLayout, Leaf
from reverb_async.core.nest import flatten
from reverb_async.core.runs import Runs, join
from reverb_async.core.slots import Slots
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import RowStore, Storage
from reverb_async.core.variable import VariableRows, decode_rows, encode_rows

TEXT = ArraySpec((), np.dtype("U"))
STEPS = 30


@pytest.fixture
def store() -> RowStore:
    """Steps numbered from 0, each with its number, its number twice and its number in words."""
    store = Storage(reserve_bytes=1 << 22).group((ArraySpec((), np.int64), ArraySpec((2,), np.float32), TEXT))
    rows = store.lease(STEPS)
    assert rows.tolist() == list(range(STEPS))
    numbers = np.arange(STEPS)
    store.write(0, rows, numbers)
    store.write(1, rows, np.stack([numbers, numbers], axis=1).astype(np.float32))
    store.write(2, rows, encode_rows([f"step {number}" for number in numbers], TEXT))
    return store


def items_of(store: RowStore, slots: Slots, sequences: list[list[int]], *, squeeze: bool = False) -> ItemLayout:
    """Put items that show these steps, and the single step after each in a second view."""
    structure = flatten({"number": 0, "pair": 0, "text": 0, "next": 0})[1]
    assert structure.paths == (("next",), ("number",), ("pair",), ("text",))
    leaves = (Leaf(1, 0, True), *(Leaf(0, column, squeeze) for column in range(3)))
    layout = ItemLayout(structure, (store, store), leaves)
    views = (join([np.array(rows) for rows in sequences]), Runs.of_rows(np.array([rows[-1] + 1 for rows in sequences])))
    n = len(sequences)
    slots.put(
        ItemBlock(layout, np.arange(n, dtype=np.uint64), np.ones(n), views, np.ones(n, np.int64)), np.ones(n), 0.0
    )
    return layout


def test_items_of_one_length_come_as_one_piece(store: RowStore) -> None:
    slots = Slots(10)
    layout = items_of(store, slots, [[3, 4, 5], [7, 2, 9]])
    plan = GatherPlan(slots, np.array([1, 0, 1]))
    assert plan.layouts == [layout]
    (piece,) = plan.run([None])
    assert piece.positions is None
    assert piece.lengths == [3, 1]
    following, numbers, pairs, texts = piece.columns
    assert isinstance(numbers, np.ndarray)
    assert numbers.tolist() == [7, 2, 9, 3, 4, 5, 7, 2, 9]
    assert isinstance(pairs, np.ndarray)
    assert (pairs.shape, pairs.dtype) == ((9, 2), np.float32)
    assert pairs[:, 1].tolist() == numbers.tolist()
    assert isinstance(texts, VariableRows)
    assert decode_rows(texts, TEXT) == [f"step {number}" for number in numbers]
    assert isinstance(following, np.ndarray)
    assert following.tolist() == [10, 6, 10]


def test_items_of_several_lengths_tell_them(store: RowStore) -> None:
    slots = Slots(10)
    items_of(store, slots, [[3], [7, 2, 9], [1, 2]])
    (piece,) = GatherPlan(slots, np.array([2, 0, 1])).run([[1]])
    lengths, following = piece.lengths
    assert isinstance(lengths, np.ndarray)
    assert (lengths.tolist(), following) == ([2, 1, 3], 1)
    (numbers,) = piece.columns
    assert isinstance(numbers, np.ndarray)
    assert numbers.tolist() == [1, 2, 3, 7, 2, 9]


def test_layouts_come_as_pieces_with_the_positions_of_their_items(store: RowStore) -> None:
    slots = Slots(10)
    first = items_of(store, slots, [[3], [4]])
    second = items_of(store, slots, [[5], [6]], squeeze=True)
    plan = GatherPlan(slots, np.array([2, 0, 3, 2]))
    assert plan.layouts == [first, second]
    pieces = plan.run([[1], [1]])
    assert [piece.positions.tolist() for piece in pieces if piece.positions is not None] == [[1], [0, 2, 3]]
    assert [column.tolist() for piece in pieces for column in piece.columns if isinstance(column, np.ndarray)] == [
        [3],
        [5, 6, 5],
    ]


def test_results_belong_to_the_caller(store: RowStore) -> None:
    slots = Slots(10)
    items_of(store, slots, [[3, 4]])
    (piece,) = GatherPlan(slots, np.array([0])).run([[1]])
    (numbers,) = piece.columns
    assert isinstance(numbers, np.ndarray)
    assert numbers.flags.writeable
    assert numbers.ctypes.data % 64 == 0
    numbers[:] = -1
    assert store.gather(0, np.array([3, 4])).tolist() == [3, 4]


def test_small_columns_share_memory_and_large_ones_do_not(store: RowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(10)
    items_of(store, slots, [[3, 4], [7, 2, 9]])
    plan = GatherPlan(slots, np.array([1, 0, 1]))
    shared = plan.run([None])[0].columns
    monkeypatch.setattr(gather, "_SMALL", 3 * 8)
    apart = plan.run([None])[0].columns
    for column, other in zip(shared, apart, strict=True):
        assert type(column) is type(other)
        if isinstance(column, np.ndarray) and isinstance(other, np.ndarray):
            np.testing.assert_array_equal(column, other)
            assert column.ctypes.data % 64 == other.ctypes.data % 64 == 0
    arrays = [column for column in shared if isinstance(column, np.ndarray)]
    assert len({id(column.base) for column in arrays}) == 1
    for one, column in enumerate(arrays):
        column[...] = np.zeros((), column.dtype)
        for later in arrays[one + 1 :]:
            assert not np.shares_memory(column, later)


def test_pinned_rows_outlive_their_items(store: RowStore) -> None:
    slots = Slots(10)
    items_of(store, slots, [[3, 4], [4, 5]])
    plan = GatherPlan(slots, np.array([0, 1, 0]))
    plan.pin()
    slots.free(np.array([0, 1]))
    store.unpin(np.arange(STEPS))
    reused = store.lease(20)
    store.write(0, reused, np.full(20, -1))
    (piece,) = plan.run([[1]])
    (numbers,) = piece.columns
    assert isinstance(numbers, np.ndarray)
    assert numbers.tolist() == [3, 4, 4, 5, 3, 4]
    plan.unpin()
    store.unpin(reused)
    assert store.usage().pinned_rows == 0


def test_a_plan_knows_how_much_it_will_copy(store: RowStore) -> None:
    slots = Slots(10)
    items_of(store, slots, [[3, 4], [7]])
    plan = GatherPlan(slots, np.array([0, 1]))
    assert plan.nbytes == (3 + 2) * store.row_bytes


def test_columns_of_fixed_rows_go_where_the_caller_wants_them(store: RowStore) -> None:
    slots = Slots(10)
    items_of(store, slots, [[3, 4], [7, 2, 9]])
    plan = GatherPlan(slots, np.array([1, 0, 1]))
    (part,) = plan.parts
    assert (part.count, [len(rows) for rows in part.rows]) == (3, [8, 3])
    outs = [np.empty(3, np.int64), np.empty(8, np.int64), np.empty((8, 2), np.float32), None]
    (piece,) = plan.run([None], [outs])
    (plain,) = plan.run([None])
    for column, out, expected in zip(piece.columns[:3], outs, plain.columns, strict=False):
        assert column is out
        assert np.array_equal(out, expected)
    texts, expected = piece.columns[3], plain.columns[3]
    assert isinstance(texts, VariableRows)
    assert isinstance(expected, VariableRows)
    assert decode_rows(texts, TEXT) == decode_rows(expected, TEXT)
