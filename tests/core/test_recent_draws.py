"""Slots of keys drawn lately are those that the key index finds."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Items, keys, make_state, no_keys

from reverb_async.core import recent_draws
from reverb_async.core.recent_draws import RecentDraws
from reverb_async.core.selectors import Prioritized, Uniform
from reverb_async.core.table_state import TableState


def drawn_state(n: int = 100, **options: int) -> TableState:
    state = make_state(100, Prioritized(1.0), Uniform(), **options)
    state.insert(Items().block(range(n)), 0.0)
    return state


def test_recent_draws_are_found_as_the_index_finds_them() -> None:
    """Beside removals, evictions, keys that come back, hand-backs and resets."""
    state, items = make_state(100, Prioritized(1.0), Uniform()), Items()
    rng = np.random.default_rng(1)
    batches: list[np.ndarray] = []
    found = 0
    for _ in range(600):
        match int(rng.integers(12)):
            case 0 | 1:
                items.put(state, rng.permutation(300)[: int(rng.integers(1, 40))].tolist())
            case 2:
                state.mutate(no_keys(), np.zeros(0), rng.integers(300, size=5).astype(np.uint64))
            case 3 if rng.random() < 0.1:
                state.reset()
            case 4 if state.size:
                state.hand_back(state.draw(20))
            case _ if state.size:
                n, parts = int(rng.choice([3, 20, 50])), int(rng.integers(1, 4))
                draw = state.draw(n * parts)
                batches += [draw.part(at, at + n).keys for at in range(0, n * parts, n)]
        for drawn in batches[-12:]:
            quick, plain = state._recent.find(drawn), state.find(drawn)
            if quick is not None:
                found += 1
                assert quick[0].tolist() == plain.tolist()
                assert not quick[1] or len(set(plain.tolist())) == len(plain)
            if len(plain) and plain.min() >= 0:
                state.mutate(drawn, rng.random(len(drawn)) + 0.1, no_keys())
    assert found > 1000


def test_a_part_of_a_draw_is_found_and_another_cut_is_not() -> None:
    state = drawn_state()
    draw = state.draw(90)
    for at in range(0, 90, 30):
        recent = state._recent.find(draw.keys[at : at + 30])
        assert recent is not None
        assert recent[0].tolist() == draw.slots[at : at + 30].tolist()
    assert state._recent.find(draw.keys[7:37]) is None
    assert state._recent.find(draw.keys[::-1].copy()) is None


def test_keys_changed_by_their_owner_are_looked_up() -> None:
    state = drawn_state()
    draw = state.draw(20)
    draw.keys[3] = (int(draw.keys[3]) + 1) % 100
    state.mutate(draw.keys, np.full(20, 7.0), no_keys())
    assert state.slots.priority[state.find(draw.keys)].tolist() == [7.0] * 20
    assert np.count_nonzero(state.slots.priority == 7.0) == len(set(draw.keys.tolist()))


def test_after_a_removal_only_whole_draws_are_found() -> None:
    state = drawn_state()
    gone, kept = state.draw(20), state.draw(20)
    lost = keys(*(set(gone.keys.tolist()) - set(kept.keys.tolist())))
    state.mutate(no_keys(), np.zeros(0), lost)
    assert state._recent.find(gone.keys) is None
    assert state._recent.find(kept.keys) is not None
    assert state.mutate(gone.keys, np.ones(20), no_keys()).unknown == len(lost)


def test_the_last_of_keys_drawn_twice_wins() -> None:
    state = drawn_state(5)
    draw = state.draw(40)
    recent = state._recent.find(draw.keys)
    assert recent is not None
    assert not recent[1]
    assert state.mutate(draw.keys, np.arange(40) + 1.0, no_keys()).updated == len(set(draw.keys.tolist()))
    last = {key: at + 1.0 for at, key in enumerate(draw.keys.tolist())}
    assert state.slots.priority[state.find(keys(*last))].tolist() == list(last.values())


def test_few_draws_of_moderate_size_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_draws, "_MOST", 50)
    state = drawn_state()
    recent: RecentDraws = state._recent
    draws = [state.draw(n).keys for n in (51, 50, 15, *[20] * 8)]
    assert [recent.find(drawn) is not None for drawn in draws] == [False, False, False, *[True] * 8]
