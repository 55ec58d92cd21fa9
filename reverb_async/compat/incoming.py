"""The chunks an insert stream may refer to, and items made of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from grpclib.const import Status
from numpy.typing import NDArray

from reverb_async.compat.columns import Fit, kind_of
from reverb_async.compat.episodes import EpisodeNumbers
from reverb_async.compat.recipes import Recipes, Tensor
from reverb_async.compat.scanning import Data
from reverb_async.compat.statuses import CallRefused, missing_chunk
from reverb_async.compat.tensors import TensorHead, string_widths
from reverb_async.compat.wire_format import ChunkView, ItemView
from reverb_async.core.encoded import EncodedItem, EncodedItems
from reverb_async.core.runs import Rows
from reverb_async.errors import ResourceExhausted
from reverb_async.limits import in_words
from reverb_async.table import Table

MAX_CHUNKS = 1 << 18
"""Chunks that one stream may keep and no item has to show."""

_STEP_BYTES = 4 << 20
_STEP_TENSORS = 8192
"""After so much was stored, others have a turn of the loop."""

MANY_CHUNKS = 16_384
"""After so many were held or dropped, others have a turn of the loop."""

_WIDTHS_INLINE_BYTES = 16 << 10
"""Longer chunks with strings are looked through in a thread."""
_MAX_REMEMBERED_HEADS = 64


class Chunk(NamedTuple):
    """A chunk that a stream holds.

    Attributes:
        row: where it is stored; the stream has a pin on it.
        nbytes: its encoded bytes.
        episode: the number of its episode.
        tensors: what is in it.
    """

    row: int
    nbytes: int
    episode: int
    tensors: tuple[Tensor, ...]


class IncomingItem(NamedTuple):
    """An item that may enter its table.

    Attributes:
        table: where it goes.
        key: the item's.
        priority: the item's.
        fit: the layout it has there.
        item: what is to be kept.
        episodes: the first and the last one's number.
    """

    table: Table
    key: int
    priority: float
    fit: Fit
    item: EncodedItem
    episodes: tuple[int, int]


class HeldChunks:
    """The chunks one stream has sent and not dropped, by key.

    Args:
        encoded: where they are stored.
        recipes: tell what items show of them.
        episodes: numbers the stream's episodes.
        max_bytes: what they may take, encoded as they are; a single message may bring more.

    Attributes:
        nbytes: what they take.
    """

    def __init__(
        self, encoded: EncodedItems, recipes: Recipes, episodes: EpisodeNumbers, max_bytes: int = 1 << 62
    ) -> None:
        self._max_bytes = max_bytes
        self._encoded = encoded
        self._recipes = recipes
        self._episodes = episodes
        self._chunks: dict[int, Chunk] = {}
        self._arrived: deque[Chunk] = deque()
        self._dropped: list[Chunk] = []
        self.nbytes = 0

    async def store(self, views: Sequence[ChunkView]) -> None:
        """Store chunks, to be given to `hold` one after the other. Lets others run while there are many.

        Raises:
            InvalidArgument: a tensor is of a kind that cannot be kept; perhaps others are stored.
            ResourceExhausted: the stream keeps too much, or the store is full.
        """
        start, nbytes, tensors = 0, 0, 0
        for at, view in enumerate(views):
            if nbytes and (nbytes + len(view.raw) > _STEP_BYTES or tensors + len(view.tensors) > _STEP_TENSORS):
                await self._store(views[start:at], nbytes)
                start, nbytes, tensors = at, 0, 0
                await asyncio.sleep(0)
            nbytes += len(view.raw)
            tensors += 1 + len(view.tensors)
        if nbytes:
            await self._store(views[start:], nbytes)

    async def _store(self, views: Sequence[ChunkView], nbytes: int) -> None:
        count = len(self._chunks) + len(self._arrived) + len(views)
        if count > MAX_CHUNKS or (self.nbytes and self.nbytes + nbytes > self._max_bytes):
            raise ResourceExhausted(
                f"the stream would keep {count} chunks of {in_words(self.nbytes + nbytes)}, more than {MAX_CHUNKS} or "
                f"max_client_bytes={in_words(self._max_bytes)}: create items, whose keep_chunk_keys drop what is not "
                f"needed any more"
            )
        tensors = await _tensors(views)
        keys = np.array([view.key for view in views], np.uint64)
        if nbytes > _STEP_BYTES:  # a long one, alone
            rows = await self._add_long(views[0].raw, keys)
        else:
            rows = self._encoded.add_chunks([view.raw for view in views], keys)
        number, new = self._episodes.number, tuple.__new__  # which is a fourth of a named tuple's own cost
        self._arrived += [
            new(Chunk, (row, len(raw), number(episode_id), known))
            for (_, episode_id, raw, _), row, known in zip(views, rows.tolist(), tensors, strict=True)
        ]
        self.nbytes += nbytes

    async def _add_long(self, chunk: Data, key: NDArray[np.uint64]) -> Rows:
        row = self._encoded.make_room(len(chunk), key)
        try:
            for start in range(0, len(chunk), _STEP_BYTES):
                self._encoded.fill(row, start, chunk[start : start + _STEP_BYTES])
                await asyncio.sleep(0)
        except BaseException:
            self._encoded.drop(row)
            raise
        return row

    def hold(self, views: Sequence[ChunkView]) -> None:
        """Let items show the next chunks that were stored; of several with one key the first counts."""
        chunks, next_arrived = self._chunks, self._arrived.popleft
        for key, _, _, _ in views:
            chunk = next_arrived()
            if chunks.setdefault(key, chunk) is not chunk:
                self._dropped.append(chunk)

    def forget(self) -> None:
        """Drop what was stored and is not held."""
        self._dropped += self._arrived
        self._arrived.clear()
        self.release()

    def keep_only(self, keys: Sequence[int]) -> None:
        """Let items show no other chunks any more.

        Raises:
            CallRefused: some of `keys` are not here; the stream cannot go on.
        """
        if len(keys) <= len(self._chunks):  # if there are more, some are missing: no need to look at a million
            self._dropped += [self._chunks.pop(key) for key in self._chunks.keys() - keys]
        if len(self._chunks) != len(keys):
            raise CallRefused(
                Status.FAILED_PRECONDITION,
                f"ReleaseOutOfRangeChunks: Kept less chunks than expected.  "
                f"chunks_.size() == {len(self._chunks)} != keep_keys.size() == {len(keys)}",
            )

    def release(self) -> None:
        """Let go of the chunks that were dropped, now that the items which show them hold them."""
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            self._let_go_in_slices(dropped)

    def close(self) -> None:
        """Drop all chunks."""
        self._let_go_in_slices([*self._chunks.values(), *self._arrived, *self._dropped])
        self._chunks.clear()
        self._arrived.clear()
        self._dropped = []

    def _let_go_in_slices(self, chunks: list[Chunk]) -> None:
        if chunks:
            self._let_go(chunks[-MANY_CHUNKS:])
            del chunks[-MANY_CHUNKS:]
        if chunks:
            asyncio.get_running_loop().call_soon(self._let_go_in_slices, chunks)

    def _let_go(self, chunks: Sequence[Chunk]) -> None:
        self.nbytes -= sum([chunk.nbytes for chunk in chunks])
        rows: Rows = np.array([chunk.row for chunk in chunks], np.int64)
        self._encoded.drop(rows)

    def take(self, table: Table, view: ItemView) -> IncomingItem:
        """Return an item of chunks that are here, checked.

        Raises:
            InvalidArgument: it can never enter `table`.
            CallRefused: it shows a chunk that is not here.
        """
        key, _, priority, _, trajectory, shape, chunk_keys = view
        try:
            chunks = [*map(self._chunks.__getitem__, chunk_keys)]
        except KeyError as error:
            raise missing_chunk(error.args[0]) from None
        rows, _, episodes, tensors = zip(*chunks, strict=True) if chunks else ((), (), (), ())
        fit, columns, nbytes = self._recipes.find(table, shape, tensors)
        new = tuple.__new__
        item = new(EncodedItem, (rows, columns, trajectory, nbytes))
        return new(IncomingItem, (table, key, priority, fit, item, _span(episodes)))


async def _tensors(views: Sequence[ChunkView]) -> list[tuple[Tensor, ...]]:
    """Return what is in each chunk; finds out in a thread how long strings are if there are many."""
    known = [_fixed_tensors(view.tensors) if len(view.tensors) <= _MAX_REMEMBERED_HEADS else None for view in views]
    others = [view.raw for view, tensors in zip(views, known, strict=True) if tensors is None]
    if sum(map(len, others)) > _WIDTHS_INLINE_BYTES:
        found = await asyncio.get_running_loop().run_in_executor(None, _widths, others)
    else:
        found = _widths(others)
    widths = iter(found)
    return [
        _varying_tensors(view, next(widths)) if tensors is None else tensors
        for view, tensors in zip(views, known, strict=True)
    ]


def _widths(chunks: Sequence[Data]) -> list[list[int]]:
    return [string_widths(chunk) for chunk in chunks]


def _varying_tensors(view: ChunkView, widths: Sequence[int]) -> tuple[Tensor, ...]:
    tensors = []
    for head, width in zip(view.tensors, widths, strict=True):
        kind, rows = kind_of(head.dtype, head.shape[1:]), head.shape[0]
        tensors.append(Tensor(kind, rows, kind.row_bytes or len(view.raw) // max(rows, 1), width))
    return tuple(tensors)


@lru_cache(maxsize=1024)
def _fixed_tensors(heads: tuple[TensorHead, ...]) -> tuple[Tensor, ...] | None:
    """Return tensors whose rows are all of one size: nothing but their heads matters."""
    kinds = [kind_of(head.dtype, head.shape[1:]) for head in heads]
    if not all([kind.row_bytes for kind in kinds]):
        return None
    return tuple([Tensor(kind, head.shape[0], kind.row_bytes, 0) for kind, head in zip(kinds, heads, strict=True)])


def _span(episodes: Sequence[int]) -> tuple[int, int]:
    """Return the first and last episode of an item if its episodes are numbered without a gap, else the last alone."""
    first = episodes[0]
    if episodes.count(first) == len(episodes):
        return first, first
    first, last = min(episodes), max(episodes)
    return (first, last) if len(set(episodes)) == last - first + 1 else (last, last)
