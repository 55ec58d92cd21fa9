"""`deepmind.reverb.ReverbService` on the tables of a `Replay`: what a server does for DeepMind's clients."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import numpy as np
from grpclib.const import Status
from numpy.typing import NDArray

from reverb_async.compat.bytes_stream import BytesStream
from reverb_async.compat.columns import ColumnLayouts
from reverb_async.compat.episodes import EpisodeBook
from reverb_async.compat.insert_stream import InsertStream
from reverb_async.compat.message import Message
from reverb_async.compat.native_items import NativeItems
from reverb_async.compat.recipes import Recipes
from reverb_async.compat.sample_stream import SampleStream
from reverb_async.compat.scanning import Data
from reverb_async.compat.signatures import signature_bytes
from reverb_async.compat.statuses import NO_CHECKPOINTER, CallRefused, check_priorities
from reverb_async.compat.table_info import server_info_bytes
from reverb_async.compat.table_inserts import TableInserts
from reverb_async.compat.tensors import decode_chunk_tensor
from reverb_async.compat.wire_format import MutateRequest, read_mutate_request
from reverb_async.errors import InvalidArgument
from reverb_async.replay import Replay
from reverb_async.table import Table
from reverb_async.wire.generated.deepmind import reverb

MAX_ADOPTED_ITEMS = 65_536
MAX_ADOPTED_BYTES = 256 << 20
"""Items, and what they show, that wait although their streams have ended; further streams do not end before theirs."""

MAX_INLINE_BYTES = 32 << 10
"""Longer requests are read in a thread: hostile ones take much longer than others of their size."""

MAX_STEP_KEYS = 65_536
"""Longer lists of keys are worked off in parts, between which others have their turn."""


class DeepMindService:
    """Serves one `Replay` to DeepMind's clients. Every method raises `ReplayError`s only."""

    def __init__(self, replay: Replay, save: Callable[[], Awaitable[str]] | None = None) -> None:
        self.replay = replay
        self._save = save
        self.encoded = replay.encoded
        self.encoded.decode = decode_chunk_tensor
        self.recipes = Recipes(ColumnLayouts(self.encoded))
        self.episodes = EpisodeBook(replay.episodes)
        self.native_items = NativeItems(replay.limits.cached_bytes // 5)
        # Clients keep signatures until it changes.
        self._tables_state_id = (secrets.randbits(64), secrets.randbits(63) + 1)
        self._signatures = [_encoded_signature(table) for table in replay.tables.values()]
        self._adopted: set[TableInserts] = set()

    async def insert(self, stream: BytesStream) -> None:
        """Serve an InsertStream to its end."""
        await InsertStream(self, stream).run()

    async def sample(self, stream: BytesStream) -> None:
        """Serve a SampleStream to its end."""
        await SampleStream(self, stream).run()

    async def initialize_connection(self, stream: BytesStream) -> None:
        """Tell a sampler that it is in another process: an address of ours would be followed."""
        if await stream.receive() is not None:
            await stream.send([b""])

    async def adopt(self, waiting: Sequence[TableInserts]) -> None:
        """Look after items that wait although their stream ends; holds the caller up when there are too many."""
        everyone = (*waiting, *self._adopted)
        count, nbytes = sum(inserts.count for inserts in everyone), sum(inserts.nbytes for inserts in everyone)
        for inserts in waiting:
            if count > MAX_ADOPTED_ITEMS or nbytes > min(MAX_ADOPTED_BYTES, self.replay.limits.client_bytes):
                await inserts.finish()
                continue
            self._adopted.add(inserts)
            inserts.when_done(self._adopted.discard)

    async def mutate_priorities(self, body: Data) -> bytes:
        """Delete, then set priorities, as DeepMind's server does; keys that are not there are passed over."""
        if len(body) > MAX_INLINE_BYTES:
            request = await asyncio.get_running_loop().run_in_executor(None, read_mutate_request, body)
        else:
            request = read_mutate_request(body)
        table = self.replay.table(request.table)
        deletes = request.deletes
        if not len(deletes) and len(request.keys) <= MAX_STEP_KEYS:
            with suppress(InvalidArgument):  # perhaps those of keys that are not there: looked at below
                table.mutate(request.keys, request.priorities, deletes)
                return b""
        keys, priorities = await to_be_set(table, request)
        for start in range(0, len(deletes), MAX_STEP_KEYS):
            table.mutate(keys[:0], priorities[:0], deletes[start : start + MAX_STEP_KEYS])
            if start:
                await asyncio.sleep(0)
        for start in range(0, len(keys), MAX_STEP_KEYS):
            table.mutate(keys[start : start + MAX_STEP_KEYS], priorities[start : start + MAX_STEP_KEYS], deletes[:0])
            if start:
                await asyncio.sleep(0)
        await self.replay.logged()
        return b""

    async def reset(self, body: Data) -> bytes:
        """Empty a table."""
        self.replay.table(Message(body, "ResetRequest").text(1)).reset()
        await self.replay.logged()
        return b""

    async def server_info(self, body: Data) -> bytes:
        """Describe all tables."""
        infos = [table.info for table in self.replay.tables.values()]
        return server_info_bytes(zip(infos, self._signatures, strict=True), self._tables_state_id)

    async def checkpoint(self, body: Data) -> bytes:
        """Have everything written to disk and answer with the path."""
        if self._save is None:
            raise CallRefused(Status.INVALID_ARGUMENT, NO_CHECKPOINTER)
        return bytes(reverb.CheckpointResponse(checkpoint_path=await self._save()))

    async def close(self) -> None:
        """Withdraw what still waits."""
        for inserts in list(self._adopted):
            inserts.withdraw()
            await inserts.finish()


def _encoded_signature(table: Table) -> bytes | None:
    """Return a table's signature as clients are told it; None, which allows anything, if they could not express it."""
    if table.signature is None:
        return None
    try:
        return signature_bytes(table.signature)
    except InvalidArgument:
        return None


async def to_be_set(table: Table, request: MutateRequest) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Return keys and priorities to set: all, or, if some are wrong, those of items that stay when others are deleted.

    Raises:
        InvalidArgument: a priority among these is one that the table refuses.
    """
    keys, priorities = request.keys, request.priorities
    try:
        table.state.check_priorities(priorities)
    except InvalidArgument:
        known, deletes = await _known(table, keys), request.deletes
        keys, priorities, deletes = keys[known], priorities[known], deletes[await _known(table, deletes)]
        stays = ~await asyncio.get_running_loop().run_in_executor(None, np.isin, keys, deletes)
        keys, priorities = keys[stays], priorities[stays]
        check_priorities(table, priorities)
    return keys, priorities


async def _known(table: Table, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which of `keys` the table has, looked up in parts, between which others have their turn."""
    known = np.empty(len(keys), np.bool_)
    for start in range(0, len(keys), MAX_STEP_KEYS):
        known[start : start + MAX_STEP_KEYS] = table.state.find(keys[start : start + MAX_STEP_KEYS]) >= 0
        await asyncio.sleep(0)
    return known
