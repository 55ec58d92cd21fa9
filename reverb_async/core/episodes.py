"""How many episodes a table's items come from."""

from __future__ import annotations

from collections.abc import Mapping


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
