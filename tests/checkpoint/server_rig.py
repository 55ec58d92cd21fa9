"""Servers with checkpoints, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

import reverb_async as ra
from reverb_async.checkpoint.file_system import FileSystem

NAME = "replay"


def make_table(**changes: Any) -> ra.Table:
    return ra.Table(**{"name": NAME, "max_size": 10_000, "sampler": ra.selectors.Prioritized(0.6), "seed": 3} | changes)


@asynccontextmanager
async def serving(
    path: Path, *tables: ra.Table, files: FileSystem | None = None, **options: Any
) -> AsyncIterator[tuple[ra.Client, ra.Checkpointer]]:
    """Serve tables from a directory of checkpoints, without listening."""
    checkpointer = ra.Checkpointer(path, **options)
    if files is not None:
        checkpointer._directory.files = files
    server = ra.Server(list(tables) or [make_table()], port=None, checkpointer=checkpointer)
    async with server:
        yield server.client(), checkpointer


async def fill(client: ra.Client, start: int, count: int, table: str = NAME) -> dict[str, np.ndarray]:
    """Insert small items whose values follow from their number; return their keys."""
    at = np.arange(start, start + count)
    return await client.insert_batch(values(at), {table: at % 7 + 1.0})


def values(at: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "obs": (at[:, None] + np.arange(4)).astype(np.float32),
        "action": at.astype(np.int32),
        "done": at % 2 == 0,
    }


async def until(condition: Callable[[], object]) -> None:
    """Wait until something has happened that nobody announces."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def everything(client: ra.Client, server_tables: dict[str, ra.Table]) -> dict[str, Any]:
    """Return keys, priorities and counts of all items, as the tables hold them."""
    found = {}
    for name, table in server_tables.items():
        slots = table.state.live_slots()
        described = table.state.slots.describe(slots)
        order = described["key"].argsort()
        found[name] = {field: column[order].tolist() for field, column in described.items()}
    return found
