"""Reads what `protocol.lending` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.errors import InvalidArgument
from reverb_async.protocol.control_page import LEASE_SLOTS
from reverb_async.protocol.fields import integer, integers, items_of
from reverb_async.protocol.inserting import take_column
from reverb_async.protocol.lending import (
    ALIGNED_WORDS,
    MAX_LENT_BYTES,
    LentBatch,
    LentStore,
    Place,
    Places,
    Rows,
    used_views,
)
from reverb_async.protocol.message import BufferReader, Message
from reverb_async.protocol.sampled import INFO, MAX_ITEM_ROWS, SampledBatch, SampledLayout, SampledPiece

_INT64 = np.dtype(np.int64)


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
            if declared.id in self.stores:
                raise InvalidArgument(f"store {declared.id} was declared before")
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
        info = [words.array(dtype, size) for dtype in INFO]
        pieces, rows = [], []
        count = nbytes = 0
        for piece in items_of({"pieces": entry[5]}, "pieces", 4):
            read, needed = self._piece(piece, words, reader, layouts)
            for (view, _, spec), place in zip(read.layout.leaves, self.places[read.layout.id], strict=True):
                mine = needed[view]
                nbytes += 0 if place is None or mine is None else len(mine) * spec.row_bytes
            if read.positions is not None and not _lie_below(size, read.positions):
                raise InvalidArgument(f"positions lie between 0 and {size - 1}")
            pieces.append(read)
            rows.append(needed)
            count += piece[1]
        words.check_end()
        if nbytes > MAX_LENT_BYTES:
            raise InvalidArgument(f"a lent batch has {nbytes} bytes, more than {MAX_LENT_BYTES}")
        if count != size or (len(pieces) > 1 and not all(piece.positions is not None for piece in pieces)):
            raise InvalidArgument(f"a batch of {size} items cannot be made of pieces of {count}")
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
                if count and not 0 <= each.min() <= each.max() <= MAX_ITEM_ROWS:
                    raise InvalidArgument(f"an item has 0 to {MAX_ITEM_ROWS} rows, got {each.min()} to {each.max()}")
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


def _lie_below(size: int, positions: Rows) -> bool:
    return not len(positions) or bool(positions.min() >= 0 and positions.max() < size)


def _known(known: Mapping[int, Any], id: object, what: str) -> Any:
    found = known.get(id) if isinstance(id, int) else None
    if found is None:
        raise InvalidArgument(f"a message names the {what} {id!r:.60}, which was not declared")
    return found


class _WordReader:
    """Takes out what `protocol.lending` put into one buffer of words."""

    def __init__(self, buffer: NDArray[np.uint8]) -> None:
        self._words = buffer[: len(buffer) // 8 * 8].view(np.int64)
        self._next = 0

    def array(self, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """Return the next array; raises `InvalidArgument` if there are not so many words left."""
        start, self._next = self._next, self._next - -count // ALIGNED_WORDS * ALIGNED_WORDS
        if self._next > len(self._words):
            raise InvalidArgument(
                f"a lent batch has {len(self._words)} words, its header speaks of {self._next} and more"
            )
        return self._words[start : start + count].view(dtype)[:count]

    def check_end(self) -> None:
        """Raise `InvalidArgument` unless everything was read."""
        if self._next != len(self._words):
            raise InvalidArgument(f"a lent batch has {len(self._words)} words, its header speaks of {self._next}")
