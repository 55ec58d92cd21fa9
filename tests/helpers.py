"""Items, inserts and clocks for the tests of tables."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from reverb_async.core import rate_limiters, selectors
from reverb_async.core.draw import Draw
from reverb_async.core.gather import GatherPlan
from reverb_async.core.item import ItemBlock, ItemLayout, Leaf
from reverb_async.core.nest import flatten
from reverb_async.core.runs import Runs
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import RowCursor, Storage
from reverb_async.core.table_state import TableState
from reverb_async.table import RowInsertion, Table
from reverb_async.waiting import Deadline

ITEM_BYTES = 8


class Items:
    """Makes items of one row, which holds the item's key; and knows what they hold in the store."""

    def __init__(self, storage: Storage | None = None) -> None:
        self.storage = storage or Storage(reserve_bytes=1 << 26)
        self.store = self.storage.group((ArraySpec((), np.int64),))
        self.layout = ItemLayout(flatten({"key": 0})[1], (self.store,), (Leaf(0, 0, True),))
        self._cursor = RowCursor(self.store)

    def block(
        self, keys: Iterable[int], priorities: ArrayLike = 1.0, *, nbytes: int = ITEM_BYTES, episodes: Any = None
    ) -> ItemBlock:
        """Return new items whose rows are pinned; `release` them."""
        named = np.array(list(keys), np.uint64)
        rows = self._cursor.take(len(named))
        self.store.write(0, rows, named.astype(np.int64))
        return ItemBlock(
            self.layout,
            named,
            np.broadcast_to(np.asarray(priorities, np.float64), len(named)).copy(),
            (Runs.of_rows(rows),),
            np.full(len(named), nbytes),
            None if episodes is None else np.asarray(episodes, np.int64),
        )

    def release(self, block: ItemBlock) -> None:
        """Let go of the rows of a block; those of items stay."""
        self.store.unpin(block.views[0].rows())

    def put(self, state: TableState, keys: Iterable[int], priorities: ArrayLike = 1.0, **more: Any) -> None:
        """Insert as a server does, without asking the rate limiter."""
        block = self.block(keys, priorities, **more)
        state.check_insert(block)
        state.insert(block, 0.0)
        self.release(block)

    async def insert(
        self, tables: Table | Sequence[Table], keys: Iterable[int], priorities: ArrayLike = 1.0, **more: Any
    ) -> None:
        """Insert the same items into tables, waiting in their queues."""
        block = self.block(keys, priorities)
        try:
            await insert_block(tables, block, **more)
        finally:
            self.release(block)

    def held(self) -> tuple[int, int]:
        """Return how many rows items refer to, and how many rows have a pin."""
        usage = self.storage.usage()
        return usage.live_rows, usage.pinned_rows


async def insert_block(
    tables: Table | Sequence[Table],
    block: ItemBlock,
    *,
    timeout: float | None = None,
    deadline: Deadline | None = None,
    notice: Callable[[str], None] | None = None,
    admitted: Callable[[int], None] = lambda count: None,
) -> None:
    tables = [tables] if isinstance(tables, Table) else tables
    insertion = RowInsertion(tables, [block] * len(tables), admitted)
    try:
        if not insertion.try_now():
            await insertion.wait(deadline or Deadline(timeout), notice)
    finally:
        insertion.leave()


def make_state(
    max_size: int = 100,
    sampler: selectors.Selector | None = None,
    remover: selectors.Selector | None = None,
    rate_limiter: rate_limiters.RateLimiter | None = None,
    *,
    max_times_sampled: int = 0,
    max_bytes: int | None = None,
    seed: int = 0,
) -> TableState:
    return TableState(
        max_size=max_size,
        sampler=sampler or selectors.Uniform(),
        remover=remover or selectors.Fifo(),
        rate_limiter=rate_limiter or rate_limiters.MinSize(1),
        max_times_sampled=max_times_sampled,
        max_bytes=max_bytes,
        rng=np.random.default_rng(seed),
    )


def keys_of(state: TableState) -> list[int]:
    """Return the keys of all items, ascending."""
    return sorted(state.slots.key[state.live_slots()].tolist())


def times_sampled(state: TableState) -> dict[int, int]:
    slots = state.live_slots()
    return dict(zip(state.slots.key[slots].tolist(), state.slots.times_sampled[slots].tolist(), strict=True))


def shown(state: TableState, draw: Draw) -> list[int]:
    """Return the data of drawn `Items`: their keys, if all is well."""
    values = np.full(len(draw), -1)
    for piece in (plan := GatherPlan(state.slots, draw.slots)).run([None] * len(plan.layouts)):
        values[slice(None) if piece.positions is None else piece.positions] = piece.columns[0]
    return values.tolist()


def no_keys() -> NDArray[np.uint64]:
    return np.zeros(0, np.uint64)


def keys(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, np.uint64)


async def settle() -> None:
    """Let every task run until it waits for something that no other task will do."""
    for _ in range(20):
        await asyncio.sleep(0)


class Clock:
    """The time of the running loop, which passes only when `advance` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)

    async def advance(self, seconds: float) -> None:
        await settle()
        self.now += seconds
        await settle()
