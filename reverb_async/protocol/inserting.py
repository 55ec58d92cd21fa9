"""What travels on an Insert stream.

A stream belongs to one *session*: a writer's 128-bit identity, which survives reconnects, and a sequence number per
item. The client declares column groups and item layouts, sends steps, and then items that name ranges of these steps.
The server answers which items are in, which were refused, and, when a wait gets long, why.

Steps are numbered per group by the client, from 0, never backwards; items may name steps of their own stream only, and
only until the client released them. Every message of this module is a map of optional parts, so one message can carry
all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.nest import Structure
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.fields import integer, integers, items_of, number, text, texts
from reverb_async.protocol.message import Buffer, BufferReader, Message
from reverb_async.protocol.rows import RowBlock

Column = NDArray[Any] | VariableRows
"""Values of one column: ``[n, *row_shape]``, or variable rows."""


@dataclass(slots=True)
class Group:
    """Declares a column group: columns whose steps are stored together."""

    id: int
    columns: tuple[ArraySpec, ...]


@dataclass(slots=True)
class Layout:
    """Declares how items are put together.

    Attributes:
        id: the client's number for it.
        structure: the nest a sample comes back as.
        views: the group behind each view.
        leaves: (view, column of the view's group, squeeze) per leaf of `structure`.
    """

    id: int
    structure: Structure
    views: tuple[int, ...]
    leaves: tuple[tuple[int, int, bool], ...]


@dataclass(slots=True)
class Steps:
    """Steps ``[first, first + count)`` of a group; one `Column` per column of the group, `count` rows each."""

    group: int
    first: int
    count: int
    columns: list[Column]


@dataclass(slots=True)
class Segments:
    """Steps that items show in one view, as ranges of consecutive steps.

    Attributes:
        first: int64 ``[s]``, first step of each range.
        length: int64 ``[s]``, its number of steps.
        counts: int64 ``[n]``, ranges per item, or None when each has exactly one.
    """

    first: NDArray[np.int64]
    length: NDArray[np.int64]
    counts: NDArray[np.int64] | None = None


@dataclass(slots=True)
class Items:
    """Items ``[seq, seq + n)`` of the session, of one layout, each going into all of `tables` in one step.

    Attributes:
        seq: sequence number of the first; the session's first item has number 1.
        layout: their layout.
        tables: distinct names.
        keys: uint64 ``[tables, n]``.
        priorities: float64 ``[tables, n]``; NaN asks for the highest priority in the table so far.
        views: one per view of the layout.
        episodes: int64 ``[n, 2]``, first and last episode of each item's steps (the client's numbers), or None when
            each item is an episode of its own.
        timeout: seconds to wait for the rate limiters; None waits.
    """

    seq: int
    layout: int
    tables: tuple[str, ...]
    keys: NDArray[np.uint64]
    priorities: NDArray[np.float64]
    views: list[Segments]
    episodes: NDArray[np.int64] | None = None
    timeout: float | None = None


@dataclass(slots=True)
class InsertRequest:
    """Client to server.

    Attributes:
        session: 16 bytes; in the first message of a stream, and only there.
        groups: declarations, before they are used.
        layouts: declarations, before they are used.
        steps: stored before `items` are looked at.
        items: to insert.
        rows: to insert; among `items` in the order of their numbers.
        release: (group, step): the client will not name earlier steps of the group any more.
        cancel: sequence numbers of the first item of blocks to withdraw; what of them is inserted stays.
    """

    session: bytes | None = None
    groups: Sequence[Group] = ()
    layouts: Sequence[Layout] = ()
    steps: Sequence[Steps] = ()
    items: Sequence[Items] = ()
    rows: Sequence[RowBlock] = ()
    release: Sequence[tuple[int, int]] = ()
    cancel: Sequence[int] = ()

    def to_message(self) -> Message:
        """Encode."""
        header: dict[str, Any] = {}
        buffers: list[Buffer] = []
        if self.session is not None:
            header["session"] = self.session
        if self.groups:
            header["groups"] = [[group.id, [spec.to_wire() for spec in group.columns]] for group in self.groups]
        if self.layouts:
            header["layouts"] = [
                [layout.id, layout.structure.to_wire(), list(layout.views), [list(leaf) for leaf in layout.leaves]]
                for layout in self.layouts
            ]
        if self.steps:
            header["steps"] = [[steps.group, steps.first, steps.count] for steps in self.steps]
            for steps in self.steps:
                for column in steps.columns:
                    put_column(buffers, column)
        if self.items:
            header["items"] = [_items_header(items, buffers) for items in self.items]
        if self.rows:
            header["rows"] = [
                [block.layout, block.seq, block.count, list(block.tables), block.timeout] for block in self.rows
            ]
            buffers += [block.records for block in self.rows]
        if self.release:
            header["release"] = [list(pair) for pair in self.release]
        if self.cancel:
            header["cancel"] = list(self.cancel)
        return Message(header, buffers)


def put_column(buffers: list[Buffer], column: Column) -> None:
    """Append a column's buffers: its array; or data, sizes and shapes of variable rows."""
    if isinstance(column, VariableRows):
        buffers += [column.data, column.sizes, column.shapes]
    else:
        buffers.append(column)


def take_column(reader: BufferReader, spec: ArraySpec, count: int) -> Column:
    """Read what `put_column` wrote: `count` rows of `spec`.

    Raises:
        InvalidArgument: the buffers do not fit.
    """
    if not spec.is_variable:
        return reader.array(spec.dtype, (count, *spec.fixed_shape))
    data = reader.bytes()
    rows = VariableRows(data, reader.array(np.int64, (count,)), reader.array(np.int32, (count, len(spec.shape))))
    rows.validate(spec)
    return rows


def _count_of(count: Any, tables: Any) -> int:
    """Return the number of items of a block, after a look at its tables."""
    number_of_items, names = integer(count, "count"), texts(tables, "tables")
    if not names or len(set(names)) != len(names) or number_of_items < 1:
        raise InvalidArgument(f"a block of items needs distinct tables and a count >= 1, got {names} and {count}")
    return number_of_items


def _items_header(items: Items, buffers: list[Buffer]) -> dict[str, Any]:
    buffers += [items.keys, items.priorities]
    segments = []
    for view in items.views:
        segments.append([len(view.first), view.counts is not None])
        if view.counts is not None:
            buffers.append(view.counts)
        buffers += [view.first, view.length]
    if items.episodes is not None:
        buffers.append(items.episodes)
    return {
        "seq": items.seq,
        "layout": items.layout,
        "tables": list(items.tables),
        "count": items.keys.shape[1],
        "segments": segments,
        "episodes": items.episodes is not None,
        "timeout": items.timeout,
    }


@dataclass(slots=True)
class StepsHeader:
    """The announced part of `Steps`; its columns follow in the message's buffers."""

    group: int
    first: int
    count: int


class InsertRequestReader:
    """Decodes an `InsertRequest` part by part: how steps look depends on groups that the receiver knows.

    Read in this order: `session`, `groups`, `layouts`, `steps` with `take_column` for each, `items`, `rows`,
    `release`, `cancel`. Every method raises `InvalidArgument` for anything malformed.
    """

    def __init__(self, message: Message) -> None:
        self._message = message
        self._header = message.header
        self.buffers = BufferReader(message)

    @property
    def nbytes(self) -> int:
        """Size of all buffers in bytes."""
        return self._message.nbytes

    @property
    def has_only_rows(self) -> bool:
        """Whether nothing but `rows` is to be read."""
        return len(self._header) == 1 and "rows" in self._header

    def session(self) -> bytes | None:
        """Return the session's 16 bytes, if given."""
        session = self._header.get("session")
        if session is not None and (not isinstance(session, bytes) or len(session) != 16):
            raise InvalidArgument(f"a session is 16 bytes, got {session!r:.60}")
        return session

    def groups(self) -> list[Group]:
        """Return declared groups."""
        declared = []
        for entry in items_of(self._header, "groups", 2):
            columns = tuple(ArraySpec.from_wire(spec) for spec in items_of({"columns": entry[1]}, "columns"))
            if not columns:
                raise InvalidArgument("a column group needs at least one column")
            declared.append(Group(integer(entry[0], "group"), columns))
        return declared

    def layouts(self) -> list[Layout]:
        """Return declared layouts; whether they fit the groups is the receiver's to check."""
        declared = []
        for entry in items_of(self._header, "layouts", 4):
            structure = Structure.from_wire(entry[1])
            leaves = tuple(
                (integer(leaf[0], "view"), integer(leaf[1], "column"), bool(leaf[2]))
                for leaf in items_of({"leaves": entry[3]}, "leaves", 3)
            )
            if len(leaves) != structure.num_leaves:
                raise InvalidArgument(f"a layout has {len(leaves)} leaves, its structure {structure.num_leaves}")
            declared.append(Layout(integer(entry[0], "layout"), structure, tuple(integers(entry[2], "views")), leaves))
        return declared

    def steps(self) -> list[StepsHeader]:
        """Return what steps follow; take the columns of each from `buffers` in turn."""
        return [
            StepsHeader(integer(entry[0], "group"), integer(entry[1], "step"), integer(entry[2], "count"))
            for entry in items_of(self._header, "steps", 3)
        ]

    def items(self) -> list[Items]:
        """Return item blocks."""
        return [self._items(entry) for entry in items_of(self._header, "items")]

    def _items(self, entry: Any) -> Items:
        if not isinstance(entry, dict):
            raise InvalidArgument(f"a block of items must be a map, got {entry!r:.60}")
        tables = tuple(texts(entry.get("tables"), "tables"))
        count = _count_of(entry.get("count"), tables)
        keys = self.buffers.array(np.uint64, (len(tables), count))
        priorities = self.buffers.array(np.float64, (len(tables), count))
        views = []
        for total, counted in items_of(entry, "segments", 2):
            total = integer(total, "segments")
            counts = self.buffers.array(np.int64, (count,)) if counted else None
            if counts is None and total != count:
                raise InvalidArgument(f"{count} items of one range each cannot have {total} ranges")
            if counts is not None and (
                int(counts.min()) < 1 or int(counts.max()) > total or int(counts.sum()) != total
            ):
                raise InvalidArgument(f"the ranges of {count} items must be >= 1 each and {total} together")
            views.append(
                Segments(self.buffers.array(np.int64, (total,)), self.buffers.array(np.int64, (total,)), counts)
            )
        episodes = self.buffers.array(np.int64, (count, 2)) if entry.get("episodes") else None
        return Items(
            integer(entry.get("seq"), "seq"),
            integer(entry.get("layout"), "layout"),
            tables,
            keys,
            priorities,
            views,
            episodes,
            None if entry.get("timeout") is None else number(entry["timeout"], "timeout"),
        )

    def rows(self) -> list[RowBlock]:
        """Return row blocks; whether their records are as long as they must be is the receiver's to check."""
        if "rows" not in self._header:
            return []
        return [
            RowBlock(
                integer(layout, "layout"),
                integer(seq, "seq"),
                _count_of(count, tables),
                tuple(tables),
                None if timeout is None else number(timeout, "timeout"),
                self.buffers.bytes(),
            )
            for layout, seq, count, tables, timeout in items_of(self._header, "rows", 5)
        ]

    def release(self) -> list[tuple[int, int]]:
        """Return (group, first step still nameable) pairs."""
        return [
            (integer(group, "group"), integer(step, "step")) for group, step in items_of(self._header, "release", 2)
        ]

    def cancel(self) -> list[int]:
        """Return first sequence numbers of blocks to withdraw."""
        return integers(self._header.get("cancel", ()), "cancel")


@dataclass(slots=True)
class Refusal:
    """Items ``[seq, seq + count)`` were not inserted, and why (`ReplayError.to_map`)."""

    seq: int
    count: int
    error: dict[str, Any]


@dataclass(slots=True)
class InsertResponse:
    """Server to client.

    Attributes:
        applied_through: in the first message: all items up to this sequence number have been applied in this session
            before.
        applied: in the first message: ranges (seq, count) beyond that which have been applied too.
        epoch: in the first message: the server process's, as in its hello.
        acks: ranges (seq, count) of items that are in.
        refused: items that are not, and never will be.
        waiting: why items still wait; sent when a wait gets long.
    """

    applied_through: int | None = None
    applied: list[tuple[int, int]] = field(default_factory=list)
    acks: list[tuple[int, int]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    waiting: str | None = None
    epoch: bytes | None = None

    def __bool__(self) -> bool:
        """Return whether it says anything."""
        return bool(self.acks or self.refused or self.applied_through is not None or self.waiting is not None)

    def to_message(self) -> Message:
        """Encode."""
        header: dict[str, Any] = {}
        if self.applied_through is not None:
            header["applied_through"] = self.applied_through
            header["applied"] = [list(pair) for pair in self.applied]
            if self.epoch is not None:
                header["epoch"] = self.epoch
        if self.acks:
            header["acks"] = [list(pair) for pair in self.acks]
        if self.refused:
            header["refused"] = [[refusal.seq, refusal.count, refusal.error] for refusal in self.refused]
        if self.waiting is not None:
            header["waiting"] = self.waiting
        return Message(header)

    @classmethod
    def from_message(cls, message: Message) -> InsertResponse:
        """Decode."""
        header = message.header
        acks = [(integer(seq, "seq"), integer(count, "count")) for seq, count in items_of(header, "acks", 2)]
        if acks and len(header) == 1:  # as nearly always
            return cls(acks=acks)
        through = header.get("applied_through")
        waiting, epoch = header.get("waiting"), header.get("epoch")
        return cls(
            None if through is None else integer(through, "applied_through"),
            [(integer(seq, "seq"), integer(count, "count")) for seq, count in items_of(header, "applied", 2)],
            acks,
            [
                Refusal(integer(seq, "seq"), integer(count, "count"), error)
                for seq, count, error in items_of(header, "refused", 3)
            ],
            None if waiting is None else text(waiting, "waiting"),
            epoch if isinstance(epoch, bytes) else None,
        )
