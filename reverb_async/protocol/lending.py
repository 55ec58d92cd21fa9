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
from reverb_async.protocol.control_page import LEASE_SLOTS
from reverb_async.protocol.fields import integer, integers, items_of
from reverb_async.protocol.inserting import put_column, take_column
from reverb_async.protocol.message import BufferReader, Message
from reverb_async.protocol.sampled import SampledBatch, SampledLayout, SampledPiece

FEATURE = "shared_memory"

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
    arrays: list[NDArray[Any]] = [
        batch.keys,
        batch.probabilities,
        batch.priorities,
        batch.times_sampled,
        batch.table_sizes,
        batch.inserted_at,
    ]
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


_MAX_ROWS = 1 << 31
_ALIGNED_WORDS = 8
_INFO = tuple(np.dtype(kind) for kind in (np.uint64, np.float64, np.float64, np.int32, np.int64, np.float64))
"""Keys, probabilities, priorities, times sampled, table sizes, insertion times."""
_INT64 = np.dtype(np.int64)


def _words(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Return arrays of words (of half words once) in one, each beginning at a multiple of 64 bytes."""
    ends = [0]
    for array in arrays:
        ends.append(ends[-1] - -len(array) // _ALIGNED_WORDS * _ALIGNED_WORDS)
    words = np.zeros(ends[-1], np.int64)
    for start, array in zip(ends, arrays, strict=False):
        words[start : start + len(array)].view(array.dtype)[: len(array)] = array
    return words


class _WordReader:
    """Takes out what `_words` put in."""

    def __init__(self, buffer: NDArray[np.uint8]) -> None:
        self._words = buffer[: len(buffer) // 8 * 8].view(np.int64)
        self._next = 0

    def array(self, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """Return the next array; raises `InvalidArgument` if there are not so many words left."""
        start, self._next = self._next, self._next - -count // _ALIGNED_WORDS * _ALIGNED_WORDS
        if self._next > len(self._words):
            raise InvalidArgument(
                f"a lent batch has {len(self._words)} words, its header speaks of {self._next} and more"
            )
        return self._words[start : start + count].view(dtype)[:count]

    def check_end(self) -> None:
        """Raise `InvalidArgument` unless everything was read."""
        if self._next != len(self._words):
            raise InvalidArgument(f"a lent batch has {len(self._words)} words, its header speaks of {self._next}")


def used_views(layout: SampledLayout, places: Places) -> list[bool]:
    """Return, per view, whether the client needs its row numbers."""
    used = [False] * layout.num_views
    for (view, _, _), place in zip(layout.leaves, places, strict=True):
        used[view] = used[view] or place is not None
    return used


class LendingReader:
    """Decodes the `Lending` in the messages of one stream; remembers what they declare.

    Attributes:
        stores: by the stream's number.
        places: by layout id.
    """

    def __init__(self) -> None:
        self.stores: dict[int, LentStore] = {}
        self.places: dict[int, Places] = {}

    def read(self, message: Message, layouts: Mapping[int, SampledLayout]) -> list[LentBatch]:
        """Return the lent batches in a message.

        Args:
            message: the message.
            layouts: those declared so far, in this message, too.

        Raises:
            InvalidArgument: it is malformed.
        """
        header = message.header
        for store in items_of(header, "stores", 4):
            declared = LentStore(*integers(store, "store"))
            self.stores[declared.id] = declared
        for id, entries in items_of(header, "places", 2):
            layout = _known(layouts, id, "layout")
            places = tuple(map(_place, items_of({"places": entries}, "places")))
            self._check(layout, places)
            self.places[layout.id] = places
        reader = BufferReader(message)
        return [self._batch(entry, reader, layouts) for entry in items_of(header, "lent", 6)]

    def _check(self, layout: SampledLayout, places: Places) -> None:
        if len(places) != len(layout.leaves):
            raise InvalidArgument(f"layout {layout.id} has {len(layout.leaves)} leaves and {len(places)} places")
        for (_, _, spec), place in zip(layout.leaves, places, strict=True):
            if (place is None) != spec.is_variable:
                raise InvalidArgument(f"a column of {spec} has {'no ' if place is None else 'a '}place in memory")
            if place is None:
                continue
            store = _known(self.stores, place.store, "store")
            if place.capacity < 1 or place.offset + place.capacity * spec.row_bytes > store.nbytes:
                raise InvalidArgument(
                    f"{place.capacity} rows of {spec} from byte {place.offset} on do not fit into {store.nbytes} bytes"
                )

    def _batch(self, entry: list[Any], reader: BufferReader, layouts: Mapping[int, SampledLayout]) -> LentBatch:
        size, slot = integer(entry[1], "size"), integer(entry[3], "slot")
        if slot >= LEASE_SLOTS:
            raise InvalidArgument(f"a lease has the slot {slot}; there are {LEASE_SLOTS}")
        words = _WordReader(reader.bytes())
        info = [words.array(dtype, size) for dtype in _INFO]
        pieces, rows = [], []
        for piece in items_of({"pieces": entry[5]}, "pieces", 4):
            read, needed = self._piece(piece, words, reader, layouts)
            pieces.append(read)
            rows.append(needed)
        words.check_end()
        keys, probabilities, priorities, times, sizes, inserted_at = info
        batch = SampledBatch(
            integer(entry[0], "seq"), keys, probabilities, priorities, times, sizes, inserted_at, bool(entry[2]), pieces
        )
        return LentBatch(batch, rows, slot, integer(entry[4], "lease"))

    def _piece(
        self, entry: list[Any], words: _WordReader, reader: BufferReader, layouts: Mapping[int, SampledLayout]
    ) -> tuple[SampledPiece, list[Rows | None]]:
        layout = _known(layouts, entry[0], "layout")
        places = _known(self.places, entry[0], "layout with places")
        count = integer(entry[1], "count")
        positions = words.array(_INT64, count) if entry[2] else None
        lengths: list[int | Rows] = []
        totals = []
        for length in items_of({"lengths": entry[3]}, "lengths"):
            if length == -1:
                each = words.array(_INT64, count)
                if count and not 0 <= each.min() <= each.max() <= _MAX_ROWS:
                    raise InvalidArgument(f"an item has 0 to {_MAX_ROWS} rows, got {each.min()} to {each.max()}")
                lengths.append(each)
                totals.append(int(each.sum()))
            else:
                lengths.append(integer(length, "length"))
                totals.append(count * length)
        if len(totals) != layout.num_views:
            raise InvalidArgument(f"layout {layout.id} has {layout.num_views} views, a piece {len(totals)} lengths")
        rows = [
            words.array(_INT64, total) if used else None
            for total, used in zip(totals, used_views(layout, places), strict=True)
        ]
        columns = [
            take_column(reader, spec, totals[view])
            for (view, _, spec), place in zip(layout.leaves, places, strict=True)
            if place is None
        ]
        return SampledPiece(layout, positions, lengths, columns), rows


def _place(entry: object) -> Place | None:
    if entry is None:
        return None
    numbers = integers(entry, "place")
    if len(numbers) != 3:
        raise InvalidArgument(f"a place must be [store, offset, capacity], got {entry!r:.60}")
    return Place(*numbers)


def _known(known: Mapping[int, Any], id: object, what: str) -> Any:
    found = known.get(id) if isinstance(id, int) else None
    if found is None:
        raise InvalidArgument(f"a message names the {what} {id!r:.60}, which was not declared")
    return found
