"""What travels on an Update stream: blocks of new priorities and deletes, answered in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.draw import MutateResult
from reverb_async.protocol.fields import integer, items_of, text
from reverb_async.protocol.message import BufferReader, Message

MAX_KEYS = 65_536
"""Keys in one block: one synchronous step on the server."""


@dataclass(slots=True)
class UpdateRequest:
    """Client to server: one call of `mutate_priorities`.

    Attributes:
        seq: the call's number on this stream.
        table: the table's name.
        keys: uint64 ``[n]``, items to give new priorities.
        priorities: float64 ``[n]``.
        deletes: uint64 ``[m]``, items to delete afterwards.
    """

    seq: int
    table: str
    keys: NDArray[np.uint64]
    priorities: NDArray[np.float64]
    deletes: NDArray[np.uint64]

    def to_message(self) -> Message:
        """Encode."""
        header = {"seq": self.seq, "table": self.table, "updates": len(self.keys), "deletes": len(self.deletes)}
        return Message(header, [self.keys, self.priorities, self.deletes])

    @classmethod
    def from_message(cls, message: Message) -> UpdateRequest:
        """Decode; raises `InvalidArgument` for anything malformed."""
        header, reader = message.header, BufferReader(message)
        updates = integer(header.get("updates", 0), "updates")
        deletes = integer(header.get("deletes", 0), "deletes")
        return cls(
            integer(header.get("seq"), "seq"),
            text(header.get("table"), "table"),
            reader.array(np.uint64, (updates,)),
            reader.array(np.float64, (updates,)),
            reader.array(np.uint64, (deletes,)),
        )


@dataclass(slots=True)
class UpdateResponse:
    """Server to client: what calls did (number, counts), and which were refused (number, `ReplayError.to_map`)."""

    done: Sequence[tuple[int, MutateResult]] = ()
    refused: Sequence[tuple[int, dict[str, Any]]] = ()

    def to_message(self) -> Message:
        """Encode."""
        header: dict[str, Any] = {}
        if self.done:
            header["done"] = [[seq, result.updated, result.deleted, result.unknown] for seq, result in self.done]
        if self.refused:
            header["refused"] = [list(pair) for pair in self.refused]
        return Message(header)

    @classmethod
    def from_message(cls, message: Message) -> UpdateResponse:
        """Decode; raises `InvalidArgument` for anything malformed."""
        header = message.header
        done = [
            (
                integer(seq, "seq"),
                MutateResult(integer(updated, "updated"), integer(deleted, "deleted"), integer(unknown, "unknown")),
            )
            for seq, updated, deleted, unknown in items_of(header, "done", 4)
        ]
        return cls(done, [(integer(seq, "seq"), error) for seq, error in items_of(header, "refused", 2)])
