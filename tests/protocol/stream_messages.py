"""One example of every stream message, behind ``golden/*.bin``.

What a released version wrote must be readable for ever, so these files are never rewritten: to add a message, name it
here and run this file, which writes only what is missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reverb_async.core.draw import MutateResult
from reverb_async.core.nest import flatten
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage.backing import aligned_empty
from reverb_async.core.variable import VariableRows, encode_rows
from reverb_async.protocol.inserting import (
    Group,
    InsertRequest,
    InsertResponse,
    Items,
    Layout,
    Refusal,
    Segments,
    Steps,
)
from reverb_async.protocol.packing import PackedBatches, Packer, PieceHead
from reverb_async.protocol.rows import RecordFormat, RowBlock
from reverb_async.protocol.sampled import SampledBatch, SampledLayout, SampledPiece
from reverb_async.protocol.sampling import SampleRequest, SampleResponse, Subscription
from reverb_async.protocol.updating import UpdateRequest, UpdateResponse
from reverb_async.wire.codec import encode

GOLDEN = Path(__file__).parent / "golden"

OBS, TEXT = ArraySpec((4,), np.float32), ArraySpec((), str)
STRUCTURE = flatten({"obs": 0, "note": 0})[1]
NOTES = encode_rows(["first", "", "dritte Zeile: äöü"], TEXT)


def int64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


insert_request = InsertRequest(
    session=bytes(range(16)),
    groups=[Group(0, (OBS, TEXT))],
    layouts=[Layout(3, STRUCTURE, (0, 0), ((0, 1, True), (1, 0, False)))],
    steps=[Steps(0, 5, 3, [np.arange(12, dtype=np.float32).reshape(3, 4), NOTES])],
    items=[
        Items(
            seq=7,
            layout=3,
            tables=("replay", "recent"),
            keys=np.array([[1, 2**62], [3, 4]], np.uint64),
            priorities=np.array([[0.5, np.nan], [1.0, 2.0]]),
            views=[Segments(int64(5, 6), int64(1, 1)), Segments(int64(5, 5, 7), int64(2, 1, 1), int64(1, 2))],
            episodes=np.array([[0, 0], [0, 1]], np.int64),
            timeout=1.5,
        )
    ],
    release=[(0, 5)],
    cancel=[3],
)

ROWS = (OBS, ArraySpec((), np.bool_), ArraySpec((2,), np.int16))
RECORDS = RecordFormat(ROWS, 2)
records = np.zeros(2, RECORDS.dtype)
records["key"], records["priority"] = [[1, 2**62], [3, 4]], [[0.5, np.nan], [1.0, 2.0]]
records["0"], records["1"], records["2"] = np.arange(8).reshape(2, 4), [True, False], [[-1, 1], [2, 3]]

insert_rows = InsertRequest(
    rows=[
        RowBlock(3, 9, 2, ("replay", "recent"), 1.5, records.view(np.uint8)),
        RowBlock(3, 11, 1, ("replay", "recent"), None, records[:1].view(np.uint8)),
    ],
)

insert_response = InsertResponse(
    applied_through=4,
    applied=[(7, 2)],
    acks=[(5, 2), (9, 1)],
    refused=[Refusal(11, 1, {"type": "InvalidArgument", "message": "priority -1.0"})],
    waiting="table 'replay' needs 1 more samples",
)

sample_request = SampleRequest(
    subscribe=Subscription("replay", 256, [("obs",), ("nested", 0)], partial=True),
    credits=2,
    consumed=5,
    withdraw=6,
    keys=np.array([0, 2**64 - 1], np.uint64),
    priorities=np.array([0.25, 1e300]),
    end=True,
)

_LAYOUT = SampledLayout(2, STRUCTURE, 2, ((0, True, TEXT), (1, False, OBS)))

sample_response = SampleResponse(
    layouts=[_LAYOUT],
    batches=[
        SampledBatch(
            seq=6,
            keys=np.array([9, 2**62, 11], np.uint64),
            probabilities=np.array([0.5, 0.25, 0.25]),
            priorities=np.array([2.0, 1.0, 1.0]),
            times_sampled=np.array([1, 2, 3], np.int32),
            table_sizes=int64(3, 3, 2),
            inserted_at=np.array([1.7e9, 1.7e9 + 1, 1.7e9 + 2]),
            rate_limited=True,
            pieces=[SampledPiece(_LAYOUT, int64(0, 1, 2), [1, int64(1, 2, 1)], [NOTES, np.ones((4, 4), np.float32)])],
        )
    ],
    failed=[(7, {"type": "RateLimiterTimeout", "message": "too late"})],
    waiting="table 'replay' needs 2 more inserts",
)

sample_request_together = SampleRequest(Subscription("replay", 1, together=32), credits=64)

_EVEN = SampledLayout(3, STRUCTURE, 1, ((0, True, TEXT), (0, True, OBS)))


def _packed(seq: int, count: int, size: int, heads: list[PieceHead], texts: list[VariableRows]) -> PackedBatches:
    """Return an entry whose bytes are 0, 1, 2, ... where no number is wanted."""
    packer, items = Packer(), count * size
    places = packer.heads(items, heads)
    behind = len(places)
    lengths = [[items if length == 1 else 2 * items for length in head.lengths] for head in heads]
    for head, totals in zip(heads, lengths, strict=True):
        packer.columns(places, head, totals)
    buffer = aligned_empty((places.nbytes,), np.dtype(np.uint8))
    buffer[...] = 0
    arrays = places.arrays(buffer)
    for number, array in enumerate(arrays[:behind]):
        array[...] = number + 1 if number < 6 else 2
    for array in arrays[behind:]:
        array[...] = np.arange(array.size).reshape(array.shape)
    return PackedBatches(seq, count, size, seq == 1, heads, buffer, texts)


sample_response_packed = SampleResponse(
    layouts=[_EVEN, _LAYOUT],
    packed=[
        _packed(1, 2, 3, [PieceHead(_EVEN, 6, False, (1,))], [encode_rows(list("abcdef"), TEXT)]),
        _packed(3, 2, 2, [PieceHead(_LAYOUT, 4, False, (1, -1))], [encode_rows(list("ghij"), TEXT)]),
    ],
)

update_request = UpdateRequest(3, "replay", np.array([1, 2], np.uint64), np.array([0.5, 0.0]), np.array([7], np.uint64))

update_response = UpdateResponse(
    [(3, MutateResult(2, 1, 0))], [(4, {"type": "TableNotFound", "name": "x", "tables": []})]
)

MESSAGES = {
    name: globals()[name]
    for name in (
        "insert_request",
        "insert_response",
        "insert_rows",
        "sample_request",
        "sample_response",
        "sample_request_together",
        "sample_response_packed",
        "update_request",
        "update_response",
    )
}

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, message in MESSAGES.items():
        path = GOLDEN / f"{name}.bin"
        if not path.exists():
            path.write_bytes(encode(message.to_message()).join())
