"""What travels on an Update stream: blocks of new priorities and deletes, answered in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.draw import MutateResult
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.fields import integer, items_of, text
from reverb_async.protocol.message import BufferReader, Message

MAX_KEYS = 65_536
"""Keys in one block: one synchronous step on the server."""

MAX_CALLS = 1_024
"""Blocks in one message."""


@dataclass(slots=True)
class UpdateRequest:
    """Client to server: one call of `mutate_priorities`. A message carries one or several, see `pack`.

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

    @property
    def num_keys(self) -> int:
        """Updates and deletes."""
        return len(self.keys) + len(self.deletes)

    def to_message(self) -> Message:
        """Encode this call alone."""
        return pack([self])


def pack(requests: Sequence[UpdateRequest]) -> Message:
    """Encode one or more requests: the header describes the first, under "more" the others as [seq, table, updates,
    deletes]; the buffers hold the keys of all, their priorities, and their deletes.
    """
    first = requests[0]
    header: dict[str, Any] = {
        "seq": first.seq,
        "table": first.table,
        "updates": len(first.keys),
        "deletes": len(first.deletes),
    }
    if len(requests) == 1:
        return Message(header, [first.keys, first.priorities, first.deletes])
    header["more"] = [[other.seq, other.table, len(other.keys), len(other.deletes)] for other in requests[1:]]
    return Message(
        header,
        [
            np.concatenate([request.keys for request in requests]),
            np.concatenate([request.priorities for request in requests]),
            np.concatenate([request.deletes for request in requests]),
        ],
    )


def unpack(message: Message) -> list[UpdateRequest]:
    """Decode; raises `InvalidArgument` for anything malformed."""
    header, reader = message.header, BufferReader(message)
    described = [
        (header.get("seq"), header.get("table"), header.get("updates", 0), header.get("deletes", 0)),
        *items_of(header, "more", 4),
    ]
    if len(described) > MAX_CALLS:
        raise InvalidArgument(f"a message carries {len(described)} calls; at most {MAX_CALLS}")
    calls = [
        (integer(seq, "seq"), text(table, "table"), integer(updates, "updates"), integer(deletes, "deletes"))
        for seq, table, updates, deletes in described
    ]
    updates, deletes = sum(call[2] for call in calls), sum(call[3] for call in calls)
    all_keys = reader.array(np.uint64, (updates,))
    all_priorities = reader.array(np.float64, (updates,))
    all_deletes = reader.array(np.uint64, (deletes,))
    requests = []
    at = deleted = 0
    for seq, table, updates, deletes in calls:
        part, gone = slice(at, at + updates), slice(deleted, deleted + deletes)
        requests.append(UpdateRequest(seq, table, all_keys[part], all_priorities[part], all_deletes[gone]))
        at, deleted = part.stop, gone.stop
    return requests


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
