from __future__ import annotations

import numpy as np
import pytest
from helpers import ITEM_BYTES, Items, keys, keys_of, make_state, no_keys, shown, times_sampled

from reverb_async.core import selectors
from reverb_async.core.draw import Draw
from reverb_async.core.table_state import TableState

ORDERED = [selectors.Fifo(), selectors.Lifo(), selectors.MinHeap(), selectors.MaxHeap()]


@pytest.fixture
def items() -> Items:
    return Items()


def once(sampler: selectors.Selector | None = None, max_times_sampled: int = 1, max_size: int = 100) -> TableState:
    return make_state(max_size, sampler or selectors.Fifo(), max_times_sampled=max_times_sampled)


class TestHandingBack:
    @pytest.mark.parametrize("sampler", ORDERED, ids=repr)
    def test_items_return_to_their_old_place(self, items: Items, sampler: selectors.Selector) -> None:
        state = once(sampler)
        items.put(state, range(6), [3.0, 1.0, 3.0, 2.0, 1.0, 2.0])
        order = state.draw(6)
        state.hand_back(order)
        first = state.draw(2)
        items.put(state, [9], 2.0)
        state.hand_back(first)
        again = [key for key in state.draw(7).keys.tolist() if key != 9]
        assert again == order.keys.tolist()

    def test_all_counts_are_undone(self, items: Items) -> None:
        state = once(max_times_sampled=2)
        items.put(state, range(3), episodes=[[1, 1], [1, 2], [2, 2]])
        state.hand_back(state.draw(5))
        assert (state.limiter.inserts, state.limiter.samples, state.limiter.deletes) == (3, 0, 0)
        assert times_sampled(state) == {0: 0, 1: 0, 2: 0}
        assert (state.size, state.nbytes, state.num_unique_samples) == (3, 3 * ITEM_BYTES, 0)
        assert (state.episodes.num_episodes, state.episodes.num_deleted) == (2, 0)
        assert not state.slots.unsettled.any()

    def test_a_draw_made_before_a_reset_is_void(self, items: Items) -> None:
        for settle in (TableState.hand_back, TableState.acknowledge):
            state = once()
            items.put(state, range(3))
            draw = state.draw(2)
            state.reset()
            items.put(state, [0])
            settle(state, draw)
            assert keys_of(state) == [0]
            assert (state.limiter.inserts, state.limiter.samples) == (1, 0)

    def test_an_item_whose_key_was_inserted_anew_does_not_return(self, items: Items) -> None:
        state = once()
        items.put(state, [1], 1.0)
        draw = state.draw(1)
        items.put(state, [1], 2.0)
        state.hand_back(draw)
        assert state.size == 1
        assert state.slots.priority[state.find(keys(1))].tolist() == [2.0]
        assert state.limiter.samples == 0
        assert items.held() == (1, 0)

    def test_of_two_items_with_one_key_in_one_draw_the_newer_returns(self, items: Items) -> None:
        state = once()
        items.put(state, [1], 1.0)
        older = state.draw(1)
        items.put(state, [1], 2.0)
        state.hand_back(Draw.join([older, state.draw(1)]))
        assert state.size == 1
        assert state.slots.priority[state.find(keys(1))].tolist() == [2.0]
        assert items.held() == (1, 0)

    @pytest.mark.parametrize("max_times_sampled", [0, 2])
    def test_a_new_item_of_the_same_key_and_slot_keeps_its_count(self, items: Items, max_times_sampled: int) -> None:
        state = once(max_times_sampled=max_times_sampled)
        items.put(state, [1])
        draw = state.draw(1)
        state.mutate(no_keys(), np.zeros(0), keys(1))
        items.put(state, [1])
        state.hand_back(draw)
        assert times_sampled(state) == {1: 0}
        assert state.num_unique_samples == 1  # what has left cannot be taken out of the count

    @pytest.mark.parametrize("acknowledged_first", [False, True])
    @pytest.mark.parametrize("handed_back", [0, 1])
    def test_an_item_drawn_twice_returns_when_one_draw_does(
        self, items: Items, handed_back: int, acknowledged_first: bool
    ) -> None:
        state = once(max_times_sampled=2)
        items.put(state, [1, 2])
        draws = [state.draw(1), state.draw(1)]
        assert keys_of(state) == [2]
        if acknowledged_first:
            state.acknowledge(draws[1 - handed_back])
            state.hand_back(draws[handed_back])
        else:
            state.hand_back(draws[handed_back])
            state.acknowledge(draws[1 - handed_back])
        assert times_sampled(state) == {1: 1, 2: 0}
        assert state.draw(1).keys.tolist() == [1]
        assert state.num_unique_samples == 1

    def test_sampled_out_items_hold_rows_until_every_draw_is_acknowledged(self, items: Items) -> None:
        state = once(max_times_sampled=2)
        items.put(state, [1])
        draws = [state.draw(1), state.draw(1)]
        assert state.size == 0
        state.acknowledge(draws[0])
        assert items.held() == (1, 0)
        state.acknowledge(draws[1])
        assert items.held() == (0, 0)

    @pytest.mark.parametrize("settle", [TableState.hand_back, TableState.acknowledge])
    def test_a_drawn_item_that_is_deleted_keeps_its_rows_for_the_draw_and_does_not_return(
        self, items: Items, settle: object
    ) -> None:
        state = once(max_times_sampled=2, max_size=1)
        items.put(state, [1])
        draw = state.draw(1)
        items.put(state, [2])  # evicts it
        items.put(state, [3])
        assert shown(state, draw) == [1]
        assert items.held() == (2, 0)
        settle(state, draw)  # type: ignore[operator]
        assert keys_of(state) == [3]
        assert items.held() == (1, 0)

    def test_the_table_may_exceed_its_size_until_the_next_insert(self, items: Items) -> None:
        state = once(max_size=3)
        items.put(state, range(3))
        draw = state.draw(2)
        items.put(state, [3, 4])
        state.hand_back(draw)
        assert keys_of(state) == [0, 1, 2, 3, 4]
        items.put(state, [5])
        assert keys_of(state) == [3, 4, 5]

    def test_slots_of_settled_draws_are_used_again(self, items: Items) -> None:
        state = once(max_size=10)
        for start in range(0, 500, 10):
            items.put(state, range(start, start + 10))
            draw = state.draw(10)
            (state.acknowledge if start % 20 else state.hand_back)(draw)
        assert state.slots.high_water <= 40
        assert items.held() == (state.size, 0)
