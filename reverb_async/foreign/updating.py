"""An Update stream to a genuine dm-reverb server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.scanning import Data
from reverb_async.compat.writing import write_mutate_request
from reverb_async.core.draw import MutateResult
from reverb_async.core.info import TableInfo
from reverb_async.errors import ReplayError, Unavailable
from reverb_async.protocol.message import Duplex
from reverb_async.protocol.updating import UpdateResponse, unpack

Call = Callable[[str, bytes], Awaitable[Data]]
"""Makes a unary call: method, request, answer."""


async def mutate(
    call: Call, table: str, keys: NDArray[np.uint64], priorities: NDArray[np.float64], deletes: NDArray[np.uint64]
) -> MutateResult:
    """Update, then delete, in two calls if both are wanted: in one, dm-reverb's server would delete first.

    The server does not say which keys it knew: all count as known.
    """
    nothing = np.zeros(0, np.uint64)
    if len(keys):
        await call("MutatePriorities", write_mutate_request(table, keys, priorities, nothing))
    if len(deletes):
        await call("MutatePriorities", write_mutate_request(table, nothing, np.zeros(0), deletes))
    return MutateResult(len(np.unique(keys)), len(np.unique(deletes)), 0)


async def serve_updates(call: Call, table: Callable[[str], Awaitable[TableInfo]], duplex: Duplex) -> None:
    """Pass every block on, one after the other; `table` describes one of the server's tables, or raises."""
    while (message := await duplex.receive()) is not None:
        answer = UpdateResponse(done := [], refused := [])
        for request in unpack(message):
            try:
                await table(request.table)
                result = await mutate(call, request.table, request.keys, request.priorities, request.deletes)
                done.append((request.seq, result))
            except Unavailable:
                raise
            except ReplayError as error:
                refused.append((request.seq, error.to_map()))
        await duplex.send(answer.to_message())
