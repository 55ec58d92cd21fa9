"""Which items of a session have numbers and are not settled, and which were refused."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from reverb_async.client.writing.outgoing import Block, Outgoing
from reverb_async.errors import ReplayError

_MAX_RANGES = 4096
"""Of refused items; what is older is in a checkpoint, if there are any."""


class Stretch:
    """Items ``[start:stop]`` of a block, numbered from `seq`, none of them settled.

    Attributes:
        sent_seq: the first number of the block in which the server got them.
        withdrawn: with what to settle them if the server does not have them; None while they are wanted.
    """

    __slots__ = ("block", "sent_seq", "seq", "start", "stop", "withdrawn")

    def __init__(self, block: Block, start: int, stop: int, seq: int) -> None:
        self.block = block
        self.start = start
        self.stop = stop
        self.seq = seq
        self.sent_seq = seq
        self.withdrawn: ReplayError | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def write(self, out: Outgoing) -> None:
        """Add the items to a message."""
        self.sent_seq = self.seq
        self.block.write(out, self.seq, self.start, self.stop)


class Unsettled:
    """Stretches by number. Numbers are consecutive, from 1.

    Attributes:
        num_items: how many items they are.
    """

    def __init__(self) -> None:
        self.num_items = 0
        self._stretches: dict[int, Stretch] = {}
        self._next_seq = 1

    def __bool__(self) -> bool:
        return bool(self._stretches)

    def __iter__(self) -> Iterator[Stretch]:
        """Go through all stretches, ascending; they may be taken out meanwhile."""
        return iter(sorted(self._stretches.values(), key=lambda stretch: stretch.seq))

    @property
    def settled(self) -> int:
        """How many numbers were given to items that are settled."""
        return self._next_seq - 1 - self.num_items

    def add(self, block: Block) -> Stretch:
        """Number the items of a block."""
        stretch = Stretch(block, 0, len(block), self._next_seq)
        self._stretches[stretch.seq] = stretch
        self._next_seq += len(block)
        self.num_items += len(block)
        return stretch

    def remove(self, stretch: Stretch, error: ReplayError) -> None:
        """Settle a stretch."""
        del self._stretches[stretch.seq]
        self.num_items -= len(stretch)
        stretch.block.settled(stretch.start, stretch.stop, error)

    def number_anew(self) -> None:
        """Give numbers from 1 to all that is left, in the same order."""
        left = list(self)
        self._stretches.clear()
        self._next_seq = 1
        for stretch in left:
            stretch.seq = stretch.sent_seq = self._next_seq
            self._stretches[stretch.seq] = stretch
            self._next_seq += len(stretch)

    def settle(self, seq: int, count: int, error: ReplayError | None) -> list[int]:
        """Settle the items ``[seq, seq + count)``, but for those that are already.

        Returns:
            Numbers of stretches that are to be withdrawn and of which the server does not know it yet: a refusal in the
            middle of a block made two blocks of the rest, and the second one has a number of its own.
        """
        apart = []
        end = seq + count
        while seq < end:
            stretch = self._stretches.get(seq) or self._overlapping(seq, end)
            if stretch is None:
                break
            first, last = max(seq, stretch.seq), min(end, stretch.seq + len(stretch))
            start, stop = stretch.start + first - stretch.seq, stretch.start + last - stretch.seq
            rest = self._cut_out(stretch, start, stop)
            if rest is not None:
                rest.withdrawn = stretch.withdrawn
                if error is None:
                    rest.sent_seq = stretch.sent_seq
                elif rest.withdrawn is not None:
                    apart.append(rest.seq)
            stretch.block.settled(start, stop, error)
            seq = last
        return apart

    def _overlapping(self, seq: int, end: int) -> Stretch | None:
        overlapping = [one for one in self._stretches.values() if one.seq < end and seq < one.seq + len(one)]
        return min(overlapping, key=lambda stretch: stretch.seq, default=None)

    def _cut_out(self, stretch: Stretch, start: int, stop: int) -> Stretch | None:
        """Take items ``[start:stop]`` out of a stretch, which keeps those before; return a stretch of those behind."""
        del self._stretches[stretch.seq]
        self.num_items -= stop - start
        rest = None
        if stop < stretch.stop:
            rest = Stretch(stretch.block, stop, stretch.stop, stretch.seq + stop - stretch.start)
            self._stretches[rest.seq] = rest
        if stretch.start < start:
            stretch.stop = start
            self._stretches[stretch.seq] = stretch
        return rest


class Refused:
    """Which items were refused, of late: a server that has forgotten them has not lost them."""

    def __init__(self) -> None:
        self._ranges: deque[tuple[int, int]] = deque(maxlen=_MAX_RANGES)

    def add(self, seq: int, count: int) -> None:
        """Note items ``[seq, seq + count)``."""
        if self._ranges and sum(self._ranges[-1]) == seq:
            seq, before = self._ranges.pop()
            count += before
        self._ranges.append((seq, count))

    def count_outside(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Return how many of them are in none of these ranges (seq, count), which do not overlap."""
        count = sum(count for _, count in self._ranges)
        for first, length in ranges:
            for seq, n in self._ranges:
                count -= max(0, min(seq + n, first + length) - max(seq, first))
        return count
