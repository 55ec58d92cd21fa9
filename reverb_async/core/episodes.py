"""How many episodes a table's items come from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reverb_async.core.runs import Rows, as_run

NO_EPISODE = -1
"""The item counts as an episode of its own."""


def count_episodes(slots: Rows, first: Rows, last: Mapping[int, int]) -> tuple[dict[int, int], int]:
    """Return how many items refer to each episode, and how many are an episode of their own.

    Args:
        slots: int64 ``[n]``, where the items are.
        first: by slot, the item's first episode.
        last: by slot, the last one of those few that refer to more.
    """
    if len(slots) == 1:  # np.unique would take a third of the time that a single insert takes
        slot = int(slots[0])
        episode = int(first[slot])
        if episode == NO_EPISODE:
            return {}, 1
        return dict.fromkeys(range(episode, last.get(slot, episode) + 1), 1), 0
    episodes = first[as_run(slots) or slots]
    if len(episodes) and not last and bool((episodes == episodes[0]).all()):
        episode = int(episodes[0])
        return ({}, len(slots)) if episode == NO_EPISODE else ({episode: len(slots)}, 0)
    counts: dict[int, int] = {}
    alone = 0
    for episode, count in zip(*(part.tolist() for part in np.unique(episodes, return_counts=True)), strict=True):
        if episode == NO_EPISODE:
            alone = count
        else:
            counts[episode] = count
    if last:
        for slot, episode in zip(slots.tolist(), episodes.tolist(), strict=True):
            for further in range(episode + 1, last.get(slot, episode) + 1):
                counts[further] = counts.get(further, 0) + 1
    return counts, alone


class EpisodeRanges:
    """Hands out ranges of numbers for the episodes of clients that name theirs otherwise.

    Attributes:
        next: the first number that nobody was given; numbers below 2**62 belong to sessions of native writers.
    """

    def __init__(self) -> None:
        self.next = 1 << 62

    def claim(self, count: int) -> int:
        """Return the first of `count` numbers that nobody else uses."""
        first, self.next = self.next, self.next + count
        return first


class EpisodeCounter:
    """Counts distinct episodes, and those whose last item has gone; Reverb's `num_episodes` and `num_deleted_episodes`.

    Items that are an episode of their own are counted without an entry each.
    """

    def __init__(self) -> None:
        self._items: dict[int, int] = {}
        self._alone = 0
        self.num_deleted = 0

    @property
    def num_episodes(self) -> int:
        """Distinct episodes that items refer to."""
        return len(self._items) + self._alone

    def add(self, counts: Mapping[int, int], alone: int) -> None:
        """Count new items: how many refer to each episode, and how many are an episode of their own."""
        for episode, count in counts.items():
            self._items[episode] = self._items.get(episode, 0) + count
        self._alone += alone

    def delete(self, counts: Mapping[int, int], alone: int) -> None:
        """Count removed items."""
        for episode, count in counts.items():
            left = self._items[episode] - count
            if left:
                self._items[episode] = left
            else:
                del self._items[episode]
                self.num_deleted += 1
        self._alone -= alone
        self.num_deleted += alone

    def undelete(self, counts: Mapping[int, int], alone: int) -> None:
        """Count removed items that return; episodes that had gone with them have not."""
        self.num_deleted -= alone + sum(episode not in self._items for episode in counts)
        self.add(counts, alone)
