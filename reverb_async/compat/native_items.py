"""Natively written items as chunks and flat trajectories."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.scanning import varint
from reverb_async.compat.tensors import encode_tensor
from reverb_async.core.episodes import NO_EPISODE
from reverb_async.core.gather import GatherPlan, Piece
from reverb_async.core.runs import Rows
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows
from reverb_async.errors import InvalidArgument
from reverb_async.table import Table

MAX_CACHED_BYTES = 64 << 20

_Key = tuple[Table, int, int]
"""Table, slot, and the slot's version, which tells an item from its predecessors there."""


class FlatItem(NamedTuple):
    """An item as DeepMind's clients read it.

    Attributes:
        trajectory: the serialized `FlatTrajectory`.
        chunks: the serialized `ChunkData` it refers to.
    """

    trajectory: bytes | memoryview
    chunks: Sequence[bytes | memoryview]

    @property
    def nbytes(self) -> int:
        """Bytes of all that."""
        return len(self.trajectory) + sum(map(len, self.chunks))


class NativeItems:
    """Encodes items, and remembers the last ones.

    Args:
        max_bytes: what is remembered at most.
    """

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._max_bytes = max_bytes
        self.nbytes = 0
        """What is remembered."""
        self._cache: OrderedDict[_Key, FlatItem] = OrderedDict()

    def part(self, table: Table, slots: Rows, versions: NDArray[np.uint32]) -> NativePart:
        """Return what is to be read for items of a draw; to be called in the step that drew."""
        keys: list[_Key] = [(table, *of) for of in zip(slots.tolist(), versions.tolist(), strict=True)]
        known = {key: self._cache[key] for key in keys if key in self._cache}
        for key in known:
            self._cache.move_to_end(key)
        missing = list(dict.fromkeys(key for key in keys if key not in known))
        return NativePart(self, table, keys, known, missing)

    def forget_what_is_gone(self) -> None:
        """Forget everything once the tables of what is remembered are empty; until then new items push it out."""
        if self._cache and not any(table.state.size for table in {table for table, _, _ in self._cache}):
            self._cache.clear()
            self.nbytes = 0

    def remember(self, key: _Key, item: FlatItem) -> None:
        """Keep an item for the next draw that shows it."""
        if key in self._cache:
            return
        self._cache[key] = item
        self.nbytes += item.nbytes
        while self.nbytes > self._max_bytes:
            self.nbytes -= self._cache.popitem(last=False)[1].nbytes


class NativePart:
    """The natively written items of a draw, in its order."""

    def __init__(
        self, items: NativeItems, table: Table, keys: list[_Key], found: dict[_Key, FlatItem], missing: list[_Key]
    ) -> None:
        self._items = items
        self._keys = keys
        self._found = found
        self._missing = missing
        slots = np.array([slot for _, slot, _ in missing], np.int64)
        self._plan = GatherPlan(table.state.slots, slots)
        self._alone = table.state.slots.episode[slots] == NO_EPISODE

    def pin(self) -> None:
        """Keep the rows from being reused until `unpin`."""
        self._plan.pin()

    def unpin(self) -> None:
        """Let go of the rows."""
        self._plan.unpin()

    def read(self) -> list[FlatItem]:
        """Return the items; in a thread, if the rows are pinned.

        Raises:
            InvalidArgument: one cannot be expressed in DeepMind's protocol.
        """
        for piece in self._plan.run([None] * len(self._plan.parts)):
            places = np.arange(len(self._missing)) if piece.positions is None else piece.positions
            for place, item in zip(places.tolist(), _flat_items(piece, self._alone[places]), strict=True):
                self._found[self._missing[place]] = item
        return [self._found[key] for key in self._keys]

    def remember(self) -> None:
        """Keep what was read for the next draws."""
        for key in self._missing:
            self._items.remember(key, self._found[key])


def _flat_items(piece: Piece, alone: NDArray[np.bool_]) -> list[FlatItem]:
    """Return the items of a piece; `alone` says which of them belong to no episode."""
    layout = piece.layout
    squeezed = tuple([leaf.squeeze for leaf in layout.leaves])
    row_squeezed = (False,) * len(squeezed) if all(squeezed) else squeezed
    count = len(alone)
    views = [
        [length] * count if isinstance(length, int) else [int(each) for each in length] for length in piece.lengths
    ]
    columns: list[list[bytes]] = []
    for leaf, column in zip(layout.leaves, piece.columns, strict=True):
        columns.append(_chunks(column, layout.row_spec(leaf), views[leaf.view]))
    items = []
    for at in range(count):
        lengths = tuple([views[leaf.view][at] for leaf in layout.leaves])
        # What `insert` wrote looks as if DeepMind's `insert` had: a sequence of one step.
        trajectory = _trajectory(row_squeezed if alone[at] else squeezed, lengths)
        items.append(FlatItem(trajectory, [_keyed(number, column[at]) for number, column in enumerate(columns, 1)]))
    return items


def _chunks(column: NDArray[np.generic] | VariableRows, spec: ArraySpec, lengths: Sequence[int]) -> list[bytes]:
    """Return each item's chunk of one column, all but its key."""
    chunks = []
    start = 0
    rows = column.split() if isinstance(column, VariableRows) else []
    for length in lengths:
        stop = start + length
        if not isinstance(column, VariableRows):
            tensor = encode_tensor(column[start:stop])
        elif not spec.dtype.itemsize:
            tensor = encode_tensor([row.tobytes() for row in rows[start:stop]])
        else:
            tensor = encode_tensor(_joined(rows[start:stop], column.shapes[start:stop], spec))
        start = stop
        data = b"\x0a" + varint(len(tensor)) + tensor
        # sequence_range: an episode with the id 0, whose steps are these; then data, and how many tensors it has
        head = b"" if length < 2 else b"\x18" + varint(length - 1)
        chunks.append(b"\x12" + varint(len(head)) + head + b"\x2a" + varint(len(data)) + data + b"\x30\x01")
    return chunks


def _joined(rows: Sequence[NDArray[np.uint8]], shapes: NDArray[np.int32], spec: ArraySpec) -> NDArray[np.generic]:
    if len(shapes) > 1 and bool((shapes != shapes[0]).any()):
        raise InvalidArgument(
            f"an item has rows of different shapes, {shapes[0].tolist()} and others, in a column of {spec}: "
            f"DeepMind's protocol has no way to say that"
        )
    return np.concatenate(rows).view(spec.dtype).reshape(len(rows), *shapes[0].tolist())


def _keyed(number: int, chunk: bytes) -> bytes:
    return b"\x08" + varint(number) + chunk


@lru_cache(maxsize=256)
def _trajectory(squeezed: tuple[bool, ...], lengths: tuple[int, ...]) -> bytes:
    """Return the `FlatTrajectory` of columns that show all rows of one chunk each; chunks are numbered from 1."""
    encoded = []
    for number, (squeeze, length) in enumerate(zip(squeezed, lengths, strict=True), 1):
        part = b"\x08" + varint(number) + b"\x18" + varint(length)
        column = b"\x0a" + varint(len(part)) + part + (b"\x10\x01" if squeeze else b"")
        encoded.append(b"\x0a" + varint(len(column)) + column)
    return b"".join(encoded)
