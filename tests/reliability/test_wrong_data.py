"""Data of a wrong dtype or shape, from a client that checks nothing, is refused by the server, at once and clearly."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.core.nest import flatten
from reverb_async.protocol.inserting import Group, InsertRequest, InsertResponse, Items, Layout, Segments, Steps

SIGNATURE = {"x": ra.ArraySpec((2,), np.float32)}
STRUCTURE = flatten({"x": 0})[1]


def request(value: np.ndarray) -> InsertRequest:
    """Insert one item that shows one step, whatever the table wants."""
    spec = ra.ArraySpec(value.shape, value.dtype)
    views = [Segments(np.zeros(1, np.int64), np.ones(1, np.int64))]
    return InsertRequest(
        session=bytes(range(16)),
        groups=[Group(0, (spec,))],
        layouts=[Layout(0, STRUCTURE, (0,), ((0, 0, True),))],
        steps=[Steps(0, 0, 1, [value[None]])],
        items=[Items(1, 0, ("t",), np.ones((1, 1), np.uint64), np.ones((1, 1)), views)],
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.zeros(2, np.float64), "float64 [2]"),
        (np.zeros(2, np.int32), "int32 [2]"),
        (np.zeros(3, np.float32), "float32 [3]"),
        (np.zeros((2, 1), np.float32), "float32 [2, 1]"),
        (np.zeros((), np.float32), "float32 []"),
    ],
)
async def test_wrong_dtypes_and_shapes_are_refused_by_the_server_itself(value: np.ndarray, found: str) -> None:
    table = ra.Table("t", max_size=10, signature=SIGNATURE)
    async with ra.Server([table]) as server, ra.Client(server.address) as client:
        transport = client._use().connector.transport  # behind the client's own checks
        stream = await transport.open("insert")
        async with asyncio.timeout(1):
            await stream.send(request(value).to_message())
            refused = []
            while not refused:
                message = await stream.receive()
                assert message is not None
                refused = InsertResponse.from_message(message).refused
        assert refused[0].error["type"] == "SignatureMismatch"
        wanted = f"table 't': column ('x',) is {found}, the signature wants float32 [2]"
        assert refused[0].error["message"].startswith(wanted)
        stream.abort()
        assert table.info.current_size == 0
        await client.insert({"x": np.zeros(2, np.float32)}, {"t": 1.0}, timeout=1)
