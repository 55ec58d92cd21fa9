"""What goes out on an Insert stream: blocks of items, put together to messages, after what they use was declared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from reverb_async.core.leaf import Leaf
from reverb_async.core.nest import Structure
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows, encode_rows
from reverb_async.errors import ReplayError, Unavailable
from reverb_async.protocol.inserting import Column, Group, InsertRequest, Items, Layout, Segments, Steps
from reverb_async.protocol.message import Message
from reverb_async.protocol.rows import RowBlock

MAX_MESSAGE_BYTES = 4 << 20
"""A message takes no more once its buffers reach this size; one item or block may exceed it."""


class Outgoing:
    """An `InsertRequest` that grows.

    Attributes:
        stream: number of the stream it will go out on, unique in this process: a declaration made for another one has
            to be made again.
        nbytes: size of the steps it carries so far.
    """

    __slots__ = ("_groups", "_items", "_layouts", "_rows", "_steps", "cancel", "nbytes", "release", "stream")

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.nbytes = 0
        self.release: dict[int, int] = {}
        """By group, the first step that may still be named."""
        self.cancel: list[int] = []
        self._groups: list[Group] = []
        self._layouts: list[Layout] = []
        self._steps: list[Steps] = []
        self._items: list[Items] = []
        self._rows: list[RowBlock] = []

    @property
    def is_full(self) -> bool:
        """Whether more should go into another message."""
        return self.nbytes >= MAX_MESSAGE_BYTES

    @property
    def declarations(self) -> int:
        """How many groups or layouts it declares, whichever are more."""
        return max(len(self._groups), len(self._layouts))

    def declare_group(self, group: Group) -> None:
        """Add a group."""
        self._groups.append(group)

    def declare_layout(self, layout: Layout) -> None:
        """Add a layout, after its groups."""
        self._layouts.append(layout)

    def add_steps(self, group: int, first: int, count: int, columns: list[Column]) -> None:
        """Add steps of a declared group."""
        self._steps.append(Steps(group, first, count, columns))
        for column in columns:
            self.nbytes += column.data.nbytes + 8 * count if isinstance(column, VariableRows) else column.nbytes

    def add_items(self, items: Items) -> None:
        """Add items of a declared layout."""
        self._items.append(items)
        self.nbytes += items.keys.nbytes

    def add_rows(self, block: RowBlock) -> None:
        """Add rows of a declared layout."""
        self._rows.append(block)
        self.nbytes += block.records.nbytes

    def to_message(self) -> Message | None:
        """Encode; None if there is nothing to say."""
        message = InsertRequest(
            groups=self._groups,
            layouts=self._layouts,
            steps=self._steps,
            items=self._items,
            rows=self._rows,
            release=list(self.release.items()),
            cancel=self.cancel,
        ).to_message()
        return message if message.header else None


def stack_rows(leaves: Sequence[Leaf], spec: ArraySpec) -> Column:
    """Return values that fit `spec` as rows of a column; a single array is not copied."""
    if spec.is_variable:
        return encode_rows(leaves, spec)
    if len(leaves) == 1:
        return np.ascontiguousarray(leaves[0], spec.dtype)[None]
    return np.array(leaves, spec.dtype)


class Block(ABC):
    """Items of one layout for the same tables. It may grow until `sealed`: one `Items` on the wire.

    Items are settled, each exactly once, when the server has them, when it refused them, or when they were given up.
    """

    sealed = False

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items."""

    @abstractmethod
    def write(self, out: Outgoing, seq: int, start: int, stop: int) -> None:
        """Add the items ``[start:stop]`` to a message, with the steps its stream does not have; may be called again."""

    @abstractmethod
    def settled(self, start: int, stop: int, error: ReplayError | None) -> None:
        """Learn that the items ``[start:stop]`` are in (None), or are not and why."""


class Owner(Protocol):
    """Whoever fills a session."""

    def all_sent(self, out: Outgoing) -> None:
        """Learn that `out` carries all that was queued: steps that nothing names any more may be released in it."""

    def interrupted(self, error: Unavailable) -> None:
        """Learn that nothing answers. What is queued goes out when something does, unless it is withdrawn now."""

    def failed(self, error: ReplayError) -> None:
        """Learn that the session has ended for good; whatever was queued has been settled."""


class SentGroup:
    """A column group that is declared on each stream that needs it.

    Attributes:
        id: its number; never given to another group of the session.
        specs: dtype and shape of each column's rows.
        stream: the stream it was declared on last.
    """

    __slots__ = ("id", "specs", "stream")

    def __init__(self, group_id: int, specs: Sequence[ArraySpec]) -> None:
        self.id = group_id
        self.specs = tuple(specs)
        self.stream = -1

    def declare(self, out: Outgoing) -> None:
        """Declare the group on the stream of `out`, unless it is."""
        if self.stream != out.stream:
            self.stream = out.stream
            self.restart()
            out.declare_group(Group(self.id, self.specs))

    def restart(self) -> None:
        """Forget what an earlier stream was sent."""


class RowGroup(SentGroup):
    """A group whose steps belong to one item each: they travel with it, and nothing names them again."""

    __slots__ = ("_next",)

    def __init__(self, group_id: int, specs: Sequence[ArraySpec]) -> None:
        super().__init__(group_id, specs)
        self._next = 0

    def restart(self) -> None:
        """Number steps from 0 again."""
        self._next = 0

    def send(self, out: Outgoing, count: int, columns: list[Column]) -> Segments:
        """Add `count` rows to `out`, and return how as many items name them."""
        first, self._next = self._next, self._next + count
        out.add_steps(self.id, first, count, columns)
        out.release[self.id] = self._next
        return Segments(np.arange(first, self._next), np.ones(count, np.int64))


class SentLayout:
    """An item layout that is declared, with its groups, on each stream that needs it.

    Attributes:
        id: its number; never given to another layout of the session.
        structure: the nest a sample comes back as.
        groups: the group behind each view.
        leaves: (view, column of the view's group, squeeze) per leaf.
    """

    __slots__ = ("_stream", "groups", "id", "leaves", "structure")

    def __init__(
        self,
        layout_id: int,
        structure: Structure,
        groups: Sequence[SentGroup],
        leaves: Sequence[tuple[int, int, bool]],
    ) -> None:
        self.id = layout_id
        self.structure = structure
        self.groups = tuple(groups)
        self.leaves = tuple(leaves)
        self._stream = -1

    def declare(self, out: Outgoing) -> None:
        """Declare layout and groups on the stream of `out`, unless they are."""
        if self._stream != out.stream:
            self._stream = out.stream
            for group in self.groups:
                group.declare(out)
            views = tuple(group.id for group in self.groups)
            out.declare_layout(Layout(self.id, self.structure, views, self.leaves))
