"""The server's end of an Update stream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from reverb_async.core.draw import MutateResult
from reverb_async.core.mutation import Mutation
from reverb_async.errors import InvalidArgument, ReplayError
from reverb_async.protocol.message import Duplex
from reverb_async.protocol.updating import MAX_KEYS, UpdateRequest, UpdateResponse, unpack
from reverb_async.replay import Replay


async def serve_updates(replay: Replay, duplex: Duplex) -> None:
    """Apply blocks of updates and deletes as they come; a refused block harms no other.

    The blocks of a message are applied in order, consecutive ones of a table in one step, and answered together.
    """
    while (message := await duplex.receive()) is not None:
        done: list[tuple[int, MutateResult]] = []
        refused: list[tuple[int, dict[str, Any]]] = []
        for number, step in enumerate(_steps(unpack(message))):
            if number:
                await asyncio.sleep(0)
            for request, result in zip(step, _apply(replay, step), strict=True):
                if isinstance(result, ReplayError):
                    refused.append((request.seq, result.to_map()))
                else:
                    done.append((request.seq, result))
        await replay.logged()
        await duplex.send(UpdateResponse(done, refused).to_message())


def _steps(requests: list[UpdateRequest]) -> Iterator[list[UpdateRequest]]:
    """Cut requests into stretches of one table and `MAX_KEYS` keys, or a single request."""
    for _, of_table in groupby(requests, lambda request: request.table):
        step: list[UpdateRequest] = []
        num_keys = 0
        for request in of_table:
            if step and num_keys + request.num_keys > MAX_KEYS:
                yield step
                step, num_keys = [], 0
            step.append(request)
            num_keys += request.num_keys
        yield step


def _apply(replay: Replay, step: list[UpdateRequest]) -> Sequence[MutateResult | ReplayError]:
    if step[0].num_keys > MAX_KEYS:
        return [InvalidArgument(f"one call changes {step[0].num_keys} keys; at most {MAX_KEYS}: cut it up")]
    try:
        table = replay.table(step[0].table)
        return table.mutate_all([Mutation(request.keys, request.priorities, request.deletes) for request in step])
    except ReplayError as error:
        return [error] * len(step)
