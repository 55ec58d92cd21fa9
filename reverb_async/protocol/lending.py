"""What travels on a Sample stream when a client on the server's host reads sampled rows in the server's memory itself.

Instead of a column's values the server sends which rows of which of its memory files they are, and a *lease* on them:
the rows stay as they are until the lease ends, which the control page shows (see `protocol.control_page`). The client
copies the rows when the message arrives and says so in its next request. What it could not copy, because the server
had revoked the lease, goes back to the table as if it had not been drawn.

Columns of variable size, and batches too small to be worth it, travel in the message as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.errors import InvalidArgument
from reverb_async.protocol.fields import integer, integers
from reverb_async.protocol.inserting import put_column
from reverb_async.protocol.message import Message
from reverb_async.protocol.sampled import SampledBatch, SampledLayout

FEATURE = "shared_memory"

MAX_LENT_BYTES = 1 << 30
"""What a client copies for one batch, at most: rows may be named again and again, so a message is no bound."""

Rows = NDArray[np.int64]


@dataclass(slots=True)
class Returned:
    """Client to server: what has become of lent batches; part of a `SampleRequest`.

    Attributes:
        secret: in the first message of a stream: the client maps the control page, as this shows.
        copied: batches up to this number are copied or given up: their leases are not needed any more.
        lost: numbers of batches, among these, that could not be copied: they go back to the table.
        stop: the client cannot map a store: lend nothing more on this stream.
    """

    secret: bytes | None = None
    copied: int = 0
    lost: Sequence[int] = ()
    stop: bool = False

    def to_wire(self) -> dict[str, Any]:
        """Return plain values."""
        entry: dict[str, Any] = {}
        if self.secret is not None:
            entry["secret"] = self.secret
        if self.copied:
            entry["copied"] = self.copied
        if self.lost:
            entry["lost"] = list(self.lost)
        if self.stop:
            entry["stop"] = True
        return entry

    @classmethod
    def from_wire(cls, entry: object) -> Returned:
        """Rebuild what `to_wire` returned; raises `InvalidArgument`."""
        if not isinstance(entry, dict):
            raise InvalidArgument(f"returned must be a map, got {entry!r:.60}")
        secret = entry.get("secret")
        if secret is not None and not isinstance(secret, bytes):
            raise InvalidArgument(f"secret must be bytes, got {secret!r:.60}")
        return cls(
            secret,
            integer(entry.get("copied", 0), "copied"),
            tuple(integers(entry.get("lost", ()), "lost")),
            bool(entry.get("stop", False)),
        )


@dataclass(frozen=True, slots=True)
class LentStore:
    """Declares a memory file, once per stream.

    Attributes:
        id: the stream's number for it.
        fd: the server's descriptor.
        inode: the file's.
        nbytes: its size.
    """

    id: int
    fd: int
    inode: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a column of fixed rows lies.

    Attributes:
        store: the stream's number for the memory file.
        offset: where row 0 begins.
        capacity: rows there are.
    """

    store: int
    offset: int
    capacity: int


Places = tuple[Place | None, ...]
"""One per leaf of a layout; None for columns of variable size."""


@dataclass(slots=True)
class LentBatch:
    """A batch, some columns of which are still in the server's memory.

    Attributes:
        batch: the batch; the columns of its pieces are only those without a place, in the order of the leaves.
        rows: per piece, and per view of its layout: int64 row numbers, or None if no leaf with a place needs them.
        slot: the lease's word in the control page.
        lease: the lease's id.
    """

    batch: SampledBatch
    rows: list[list[Rows | None]]
    slot: int
    lease: int


@dataclass(slots=True)
class Lending:
    """Server to client: part of a message whose other part is a `SampleResponse` without batches.

    Attributes:
        stores: declarations, before they are used.
        places: by layout id; declarations, before they are used.
        batches: in the order of their numbers.
    """

    stores: Sequence[LentStore] = ()
    places: Mapping[int, Places] = field(default_factory=dict)
    batches: Sequence[LentBatch] = ()

    def put(self, message: Message) -> None:
        """Add this to a message that has no buffers yet."""
        assert not message.buffers
        if self.stores:
            message.header["stores"] = [[store.id, store.fd, store.inode, store.nbytes] for store in self.stores]
        if self.places:
            message.header["places"] = [
                [
                    layout,
                    [None if place is None else [place.store, place.offset, place.capacity] for place in places],
                ]
                for layout, places in self.places.items()
            ]
        message.header["lent"] = [_put_batch(message, lent) for lent in self.batches]


def _put_batch(message: Message, lent: LentBatch) -> list[Any]:
    """Add a batch to a message: one buffer of what the table knows of the items, then places and rows, as words."""
    batch = lent.batch
    arrays = [*batch.info]
    pieces, columns = [], []
    for piece, views in zip(batch.pieces, lent.rows, strict=True):
        count = len(batch.keys) if piece.positions is None else len(piece.positions)
        if piece.positions is not None:
            arrays.append(piece.positions)
        lengths = [length if isinstance(length, int) else -1 for length in piece.lengths]
        arrays += [length for length in piece.lengths if not isinstance(length, int)]
        arrays += [rows for rows in views if rows is not None]
        columns += piece.columns
        pieces.append([piece.layout.id, count, piece.positions is not None, lengths])
    message.buffers.append(_words(arrays))
    for column in columns:
        put_column(message.buffers, column)
    return [batch.seq, len(batch.keys), batch.rate_limited, lent.slot, lent.lease, pieces]


ALIGNED_WORDS = 8


def _words(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Return arrays of words (of half words once) in one, each beginning at a multiple of 64 bytes."""
    ends = [0]
    for array in arrays:
        ends.append(ends[-1] - -len(array) // ALIGNED_WORDS * ALIGNED_WORDS)
    words = np.zeros(ends[-1], np.int64)
    for start, array in zip(ends, arrays, strict=False):
        words[start : start + len(array)].view(array.dtype)[: len(array)] = array
    return words


def used_views(layout: SampledLayout, places: Places) -> list[bool]:
    """Return, per view, whether the client needs its row numbers."""
    used = [False] * layout.num_views
    for (view, _, _), place in zip(layout.leaves, places, strict=True):
        used[view] = used[view] or place is not None
    return used
