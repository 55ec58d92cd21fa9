"""Items that a table does not take at once: those that wait, and those among others that it never will."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from reverb_async.core.item import ItemBlock
from reverb_async.errors import ReplayError
from reverb_async.table import Table
from reverb_async.waiting import Deadline


class Acknowledging(Protocol):
    """The stream that items came on."""

    def acknowledge(self, seq: int, count: int) -> None:
        """Note, in the step that inserted them, that items are in."""


class WaitingItems:
    """Items that stand in the tables' queues, and the hold on their rows meanwhile."""

    task: asyncio.Task[None]

    def __init__(self, stream: Acknowledging, first_seq: int, block: ItemBlock, deadline: Deadline) -> None:
        self._stream = stream
        self.seq = first_seq
        self.block = block
        self.deadline = deadline
        self.remaining = len(block)

    def admitted(self, count: int) -> None:
        """Note that the next `count` items are in."""
        self._stream.acknowledge(self.seq, count)
        self.seq += count
        self.remaining -= count

    def pin(self) -> None:
        """Keep the rows although the client may release their steps."""
        for store, runs in zip(self.block.layout.stores, self.block.views, strict=True):
            store.pin(runs.rows())

    def unpin(self) -> None:
        """Let go of the rows."""
        for store, runs in zip(self.block.layout.stores, self.block.views, strict=True):
            store.unpin(runs.rows())


def acceptable(tables: Sequence[Table], blocks: Sequence[ItemBlock]) -> list[tuple[int, ReplayError | None]]:
    """Split items into stretches the tables accept: (end of the stretch, error of the item that stands there)."""

    def check(start: int, stop: int) -> None:
        for table, block in zip(tables, blocks, strict=True):
            table.raise_if_refusing()
            table.check(block.part(start, stop))

    count = len(blocks[0])
    try:
        check(0, count)
    except ReplayError:
        pass
    else:
        return [(count, None)]
    stretches: list[tuple[int, ReplayError | None]] = []
    for at in range(count):  # Something is wrong with one item at least: find out which, so that the others get in.
        try:
            check(at, at + 1)
        except ReplayError as error:
            stretches.append((at, error))
    return [*stretches, (count, None)]
