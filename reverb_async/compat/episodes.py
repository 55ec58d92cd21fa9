"""Numbers for the episodes of DeepMind's clients, which name theirs by 64 random bits."""

from __future__ import annotations

from collections import OrderedDict

from reverb_async.core.episodes import EpisodeRanges

MAX_REMEMBERED = 1 << 16

_PER_STREAM = 1 << 24


class EpisodeBook:
    """Numbers of recent episodes, so that one keeps its number when its writer comes on another stream.

    Args:
        ranges: the server's; items that were restored have numbers of it.
    """

    def __init__(self, ranges: EpisodeRanges | None = None) -> None:
        self._numbers: OrderedDict[int, int] = OrderedDict()
        self._ranges = ranges or EpisodeRanges()

    def stream(self) -> EpisodeNumbers:
        """Return what numbers the episodes of a new stream."""
        return EpisodeNumbers(self)

    def claim(self) -> int:
        """Return the first of `_PER_STREAM` numbers that nobody else uses."""
        return self._ranges.claim(_PER_STREAM)

    def get(self, episode_id: int) -> int | None:
        """Return an episode's number, if it is remembered."""
        return self._numbers.get(episode_id)

    def put(self, episode_id: int, number: int) -> None:
        """Remember an episode's number, and forget that of the oldest beyond `MAX_REMEMBERED`."""
        self._numbers[episode_id] = number
        if len(self._numbers) > MAX_REMEMBERED:
            self._numbers.popitem(last=False)


class EpisodeNumbers:
    """Numbers the episodes of one stream one after the other, so that those of an item are a range."""

    def __init__(self, book: EpisodeBook) -> None:
        self._book = book
        self._next = self._end = 0
        self._latest: tuple[int, int] | None = None

    def number(self, episode_id: int) -> int:
        """Return the number of an episode."""
        if self._latest is not None and self._latest[0] == episode_id:
            return self._latest[1]
        number = self._book.get(episode_id)
        if number is None:
            if self._next == self._end:
                self._next = self._book.claim()
                self._end = self._next + _PER_STREAM
            number, self._next = self._next, self._next + 1
            self._book.put(episode_id, number)
        self._latest = (episode_id, number)
        return number
