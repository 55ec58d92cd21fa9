from __future__ import annotations

from reverb_async.core.episodes import EpisodeCounter


def test_an_episode_counts_once_however_many_items_refer_to_it() -> None:
    counter = EpisodeCounter()
    counter.add({1: 2, 2: 1}, 0)
    counter.add({1: 1}, 0)
    assert (counter.num_episodes, counter.num_deleted) == (2, 0)


def test_an_episode_is_deleted_with_its_last_item() -> None:
    counter = EpisodeCounter()
    counter.add({1: 2, 2: 1}, 0)
    counter.delete({1: 1, 2: 1}, 0)
    assert (counter.num_episodes, counter.num_deleted) == (1, 1)
    counter.delete({1: 1}, 0)
    assert (counter.num_episodes, counter.num_deleted) == (0, 2)


def test_an_episode_that_comes_again_is_deleted_again() -> None:
    counter = EpisodeCounter()
    for _ in range(2):
        counter.add({1: 1}, 0)
        counter.delete({1: 1}, 0)
    assert (counter.num_episodes, counter.num_deleted) == (0, 2)


def test_items_on_their_own_count_without_an_entry_each() -> None:
    counter = EpisodeCounter()
    counter.add({}, 1000)
    counter.delete({}, 300)
    assert (counter.num_episodes, counter.num_deleted) == (700, 300)
    assert not counter._items


def test_items_that_return_undo_the_deletion_of_their_episodes_only() -> None:
    counter = EpisodeCounter()
    counter.add({1: 1, 2: 2}, 1)
    counter.delete({1: 1, 2: 1}, 1)
    counter.undelete({1: 1, 2: 1}, 1)
    assert (counter.num_episodes, counter.num_deleted) == (3, 0)
