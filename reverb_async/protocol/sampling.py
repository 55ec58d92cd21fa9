"""What travels on a Sample stream.

The client asks for batches by granting *credits*: one credit, one batch. Batches are numbered from 1 and answered in
order, each in a message of its own or several together (`Subscription.together`). `consumed` acknowledges them;
whatever is not acknowledged when the stream ends goes back to the table. Priority updates ride along and are applied
before any later draw of the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.nest import Path, Structure
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.fields import integer, items_of, text
from reverb_async.protocol.inserting import put_column, take_column
from reverb_async.protocol.message import Buffer, BufferReader, Message
from reverb_async.protocol.packing import MAX_BATCHES_PER_ENTRY, PackedBatches
from reverb_async.protocol.sampled import MAX_BATCH_SIZE, SampledBatch, SampledLayout, SampledPiece
from reverb_async.protocol.unpacking import Unpacker
from reverb_async.protocol.updating import MAX_KEYS


@dataclass(slots=True)
class Subscription:
    """The first message's part that says what is wanted.

    Attributes:
        table: the table's name.
        batch_size: items per batch.
        columns: paths (or prefixes of paths) of the leaves wanted; None for all.
        partial: a withdrawn batch is answered with what there is, if there is anything.
        together: batches that one message may carry, in the packed form (see `protocol.packing`); 0: every batch comes
            in a message of its own, in the plain form.
    """

    table: str
    batch_size: int
    columns: list[Path] | None = None
    partial: bool = False
    together: int = 0


@dataclass(slots=True)
class SampleRequest:
    """Client to server.

    Attributes:
        subscribe: in the first message, and only there.
        credits: further batches wanted.
        consumed: all batches up to this number belong to the caller.
        withdraw: unanswered batches up to this number are to be answered now: filled at once, or refused.
        keys: uint64 ``[n]``, items to give new priorities, applied in order.
        priorities: float64 ``[n]``.
        end: nothing follows; hand back what is not consumed, then end the stream.
        returned: `protocol.lending.Returned.to_wire` of what the client has to say of lent batches.
    """

    subscribe: Subscription | None = None
    credits: int = 0
    consumed: int = 0
    withdraw: int = 0
    keys: NDArray[np.uint64] | None = None
    priorities: NDArray[np.float64] | None = None
    end: bool = False
    returned: dict[str, Any] | None = None

    def to_message(self) -> Message:
        """Encode."""
        header: dict[str, Any] = {}
        buffers: list[Buffer] = []
        if self.subscribe is not None:
            wanted = self.subscribe
            header["subscribe"] = {
                "table": wanted.table,
                "batch_size": wanted.batch_size,
                "columns": None if wanted.columns is None else [list(path) for path in wanted.columns],
                "partial": wanted.partial,
            }
            if wanted.together:
                header["subscribe"]["together"] = wanted.together
        for name in ("credits", "consumed", "withdraw"):
            if getattr(self, name):
                header[name] = getattr(self, name)
        if self.keys is not None and self.priorities is not None:
            header["updates"] = len(self.keys)
            buffers += [self.keys, self.priorities]
        if self.end:
            header["end"] = True
        if self.returned:
            header["returned"] = self.returned
        return Message(header, buffers)

    @classmethod
    def from_message(cls, message: Message) -> SampleRequest:
        """Decode.

        Raises:
            InvalidArgument: the message is malformed.
        """
        header, reader = message.header, BufferReader(message)
        request = cls(
            _subscription(header["subscribe"]) if header.get("subscribe") is not None else None,
            integer(header.get("credits", 0), "credits"),
            integer(header.get("consumed", 0), "consumed"),
            integer(header.get("withdraw", 0), "withdraw"),
            end=bool(header.get("end", False)),
            returned=header.get("returned"),
        )
        if header.get("updates"):
            count = integer(header["updates"], "updates")
            if count > MAX_KEYS:
                raise InvalidArgument(f"one message updates {count} keys; at most {MAX_KEYS}: cut it up")
            request.keys = reader.array(np.uint64, (count,))
            request.priorities = reader.array(np.float64, (count,))
        return request


def _subscription(entry: Any) -> Subscription:
    if not isinstance(entry, dict):
        raise InvalidArgument(f"subscribe must be a map, got {entry!r:.60}")
    batch_size = integer(entry.get("batch_size"), "batch_size")
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise InvalidArgument(f"batch_size must be from 1 to {MAX_BATCH_SIZE}, got {batch_size}")
    columns: list[Path] | None = None
    if entry.get("columns") is not None:
        columns = []
        for path in items_of(entry, "columns"):
            if not isinstance(path, list | tuple) or not all(isinstance(name, str | int) for name in path):
                raise InvalidArgument(f"a column's path must be a list of str and int, got {path!r:.60}")
            columns.append(tuple(path))
    together = min(integer(entry.get("together", 0), "together"), MAX_BATCHES_PER_ENTRY)
    return Subscription(text(entry.get("table"), "table"), batch_size, columns, bool(entry.get("partial")), together)


@dataclass(slots=True)
class SampleResponse:
    """Server to client.

    Attributes:
        layouts: declarations, before they are used.
        batches: in the order of their numbers, in the plain form; a reader puts those of `packed` here, too.
        packed: the same in the packed form.
        failed: (number, `ReplayError.to_map`) of batches that were withdrawn and could not be filled.
        waiting: why a batch still waits; sent when a wait gets long.
    """

    layouts: Sequence[SampledLayout] = ()
    batches: Sequence[SampledBatch] = ()
    failed: Sequence[tuple[int, dict[str, Any]]] = ()
    waiting: str | None = None
    packed: Sequence[PackedBatches] = ()

    def to_message(self) -> Message:
        """Encode."""
        header: dict[str, Any] = {}
        buffers: list[Buffer] = []
        if self.layouts:
            header["layouts"] = [
                [
                    layout.id,
                    layout.structure.to_wire(),
                    layout.num_views,
                    [[view, squeeze, spec.to_wire()] for view, squeeze, spec in layout.leaves],
                ]
                for layout in self.layouts
            ]
        if self.batches:
            header["batches"] = [_batch_header(batch, buffers) for batch in self.batches]
        if self.packed:
            header["packed"] = [packed.to_header(buffers) for packed in self.packed]
        if self.failed:
            header["failed"] = [list(pair) for pair in self.failed]
        if self.waiting is not None:
            header["waiting"] = self.waiting
        return Message(header, buffers)


def _batch_header(batch: SampledBatch, buffers: list[Buffer]) -> list[Any]:
    buffers += batch.info
    pieces = []
    for piece in batch.pieces:
        count = len(batch.keys) if piece.positions is None else len(piece.positions)
        if piece.positions is not None:
            buffers.append(piece.positions)
        lengths = [length if isinstance(length, int) else -1 for length in piece.lengths]
        buffers += [length for length in piece.lengths if not isinstance(length, int)]
        for column in piece.columns:
            put_column(buffers, column)
        pieces.append([piece.layout.id, count, piece.positions is not None, lengths])
    return [batch.seq, len(batch.keys), batch.rate_limited, pieces]


@dataclass(slots=True)
class SampleResponseReader:
    """Decodes `SampleResponse` messages of one stream; remembers the layouts they declare."""

    _layouts: dict[int, SampledLayout] = field(default_factory=dict)
    _unpacker: Unpacker = field(init=False)

    def __post_init__(self) -> None:
        self._unpacker = Unpacker(self._layouts)

    @property
    def layouts(self) -> Mapping[int, SampledLayout]:
        """What was declared so far, by number."""
        return self._layouts

    def read(self, message: Message) -> SampleResponse:
        """Decode one message; raises `InvalidArgument` if it is malformed."""
        header, reader = message.header, BufferReader(message)
        for entry in items_of(header, "layouts", 4):
            leaves = tuple(
                (integer(view, "view"), bool(squeeze), ArraySpec.from_wire(spec))
                for view, squeeze, spec in items_of({"leaves": entry[3]}, "leaves", 3)
            )
            layout = SampledLayout(
                integer(entry[0], "layout"), Structure.from_wire(entry[1]), integer(entry[2], "views"), leaves
            )
            if layout.id in self._layouts:
                raise InvalidArgument(f"layout {layout.id} is declared twice")
            if any(view >= layout.num_views for view, _, _ in leaves):
                raise InvalidArgument(f"layout {layout.id} has {layout.num_views} views, a leaf names another")
            self._layouts[layout.id] = layout
        batches = [self._batch(entry, reader) for entry in items_of(header, "batches", 4)]
        for entry in items_of(header, "packed", 5):
            batches += self._unpacker.read(entry, reader)
        failed = [(integer(seq, "seq"), error) for seq, error in items_of(header, "failed", 2)]
        waiting = header.get("waiting")
        return SampleResponse((), batches, failed, None if waiting is None else text(waiting, "waiting"))

    def _batch(self, entry: list[Any], reader: BufferReader) -> SampledBatch:
        size = integer(entry[1], "size")
        return SampledBatch(
            integer(entry[0], "seq"),
            reader.array(np.uint64, (size,)),
            reader.array(np.float64, (size,)),
            reader.array(np.float64, (size,)),
            reader.array(np.int32, (size,)),
            reader.array(np.int64, (size,)),
            reader.array(np.float64, (size,)),
            bool(entry[2]),
            [self._piece(piece, reader) for piece in items_of({"pieces": entry[3]}, "pieces", 4)],
        )

    def _piece(self, entry: list[Any], reader: BufferReader) -> SampledPiece:
        layout = self._layouts.get(entry[0])
        if layout is None:
            raise InvalidArgument(f"a batch names layout {entry[0]!r:.60}, which was not declared")
        count = integer(entry[1], "count")
        positions = reader.array(np.int64, (count,)) if entry[2] else None
        lengths: list[int | NDArray[np.int64]] = []
        totals = []
        for length in entry[3]:
            if length == -1:
                each = reader.array(np.int64, (count,))
                lengths.append(each)
                totals.append(int(each.sum()))
            else:
                lengths.append(integer(length, "length"))
                totals.append(count * length)
        columns = [take_column(reader, spec, totals[view]) for view, _, spec in layout.leaves]
        return SampledPiece(layout, positions, lengths, columns)
