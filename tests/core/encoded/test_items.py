"""The chunks and records of encoded items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from encoded_rig import add, block, encode, item, layout_of, pinned, stored
from helpers import make_state

from reverb_async.core.encoded import EncodedItems
from reverb_async.core.encoded.layout import KEY, ORDINAL
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import Storage, row_store
from reverb_async.errors import InvalidArgument, ResourceExhausted

STEP = {"x": (ArraySpec((), np.int64), False)}


@pytest.fixture
def encoded() -> EncodedItems:
    return EncodedItems(Storage(reserve_bytes=1 << 26))


class TestChunks:
    def test_are_gone_when_their_stream_drops_them_and_no_item_shows_them(self, encoded: EncodedItems) -> None:
        rows = add(encoded, b"one", b"another", b"third")
        assert stored(encoded) == (0, 3)
        written = block(encoded, layout_of(encoded, STEP), [item(rows[1:2], [(0, 0, 1, 0)])])
        state = make_state()
        state.insert(written, 0.0)
        encoded.drop_records(written)
        encoded.drop(rows)
        assert stored(encoded) == (1, 1)
        assert pinned(encoded) == (0, 0)
        state.mutate(written.keys[:0], np.zeros(0), written.keys)
        assert stored(encoded) == (0, 0)

    def test_may_be_empty_and_few(self, encoded: EncodedItems) -> None:
        rows = add(encoded, b"")
        assert len(add(encoded)) == 0
        assert stored(encoded) == (0, 1)
        encoded.drop(rows)

    def test_have_their_keys_and_numbers_that_never_come_back(self, encoded: EncodedItems) -> None:
        store = encoded.stores[1]
        seen: list[int] = []
        for _ in range(3):
            rows = encoded.add_chunks([b"a", b"b"], np.array([7, 2**64 - 1], np.uint64))
            assert store.columns[KEY][rows].tolist() == [7, 2**64 - 1]
            seen += store.columns[ORDINAL][rows].tolist()
            encoded.drop(rows)
        assert len(set(seen)) == 6

    def test_a_store_without_room_takes_none_of_them(
        self, encoded: EncodedItems, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args: Any, **kwargs: Any) -> None:
            raise ResourceExhausted("no room")

        monkeypatch.setattr(encoded.stores[1], "write", full)
        with pytest.raises(ResourceExhausted):
            add(encoded, b"one", b"two")
        assert stored(encoded) == (0, 0)


class TestLayouts:
    def test_of_equal_parts_are_the_same_while_they_live(self, encoded: EncodedItems) -> None:
        first = layout_of(encoded, STEP)
        assert layout_of(encoded, dict(STEP)) is first
        assert layout_of(encoded, {"x": (ArraySpec((), np.int64), True)}) is not first
        assert layout_of(encoded, {"x": (ArraySpec((), np.int32), False)}) is not first

    def test_show_a_view_for_each_column(self, encoded: EncodedItems) -> None:
        layout = layout_of(encoded, {"a": (ArraySpec((2,), np.float32), True), "b": (ArraySpec((), np.int8), False)})
        assert layout.num_views == 2
        assert layout.sampled_specs() == [ArraySpec((2,), np.float32), ArraySpec((None,), np.int8)]


class TestAnswers:
    def test_are_what_was_sent_whatever_the_order_of_chunks(self, encoded: EncodedItems) -> None:
        chunks = [encode(np.arange(4) + 10 * number) + bytes(number) for number in range(4)]
        rows = add(encoded, *chunks)
        sent = {
            1: item(rows[[2, 0, 3]], [(0, 0, 1, 0), (2, 0, 1, 0)], [(1, 1, 2, 0)], trajectory=b"the first"),
            2: item(rows[[1]], [(0, 0, 1, 0)], [(0, 0, 1, 0)], trajectory=b"2"),
            3: item(rows[[1, 0]], [(0, 0, 1, 0)], [(1, 0, 1, 0)], trajectory=b""),
        }
        layout = layout_of(encoded, {**STEP, "y": STEP["x"]})
        state = make_state()
        written = block(encoded, layout, list(sent.values()))
        state.insert(written, 0.0)
        encoded.drop_records(written)
        encoded.drop(rows)
        drawn = state.find(np.array([3, 1, 2, 1], np.uint64))
        answers = encoded.answers(layout, state.slots.runs(0, drawn), state.slots.runs(1, drawn))
        of_row = dict(zip(rows.tolist(), chunks, strict=True))
        assert len(answers) == 4
        for key, (trajectory, shown) in zip((3, 1, 2, 1), answers, strict=True):
            assert bytes(trajectory) == sent[key].trajectory
            assert sorted(map(bytes, shown)) == sorted(of_row[row] for row in sent[key].chunks)


class TestBlocks:
    def test_that_are_refused_leave_nothing(self, encoded: EncodedItems) -> None:
        rows = add(encoded, b"chunk")
        written = block(encoded, layout_of(encoded, STEP), [item(rows, [(0, 0, 1, 0)])] * 3)
        assert stored(encoded) == (3, 1)
        encoded.drop_records(written)
        assert stored(encoded) == (0, 1)

    def test_a_tensor_with_too_high_a_number_is_refused(self, encoded: EncodedItems) -> None:
        rows = add(encoded, b"chunk")
        with pytest.raises(InvalidArgument, match=f"tensor {1 << 24}"):
            block(encoded, layout_of(encoded, STEP), [item(rows, [(0, 0, 1, 1 << 24)])])
        assert stored(encoded) == (0, 1)

    def test_no_room_for_records_stores_none(self, encoded: EncodedItems, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = add(encoded, b"chunk")

        def full(*args: Any, **kwargs: Any) -> None:
            raise ResourceExhausted("no room")

        monkeypatch.setattr(row_store.RowStore, "write", full)
        with pytest.raises(ResourceExhausted):
            block(encoded, layout_of(encoded, STEP), [item(rows, [(0, 0, 1, 0)])])
        assert stored(encoded) == (0, 1)
