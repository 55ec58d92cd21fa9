"""The server's end of an Update stream."""

from __future__ import annotations

from reverb_async.errors import InvalidArgument, ReplayError
from reverb_async.protocol.message import Duplex
from reverb_async.protocol.updating import MAX_KEYS, UpdateRequest, UpdateResponse
from reverb_async.replay import Replay


async def serve_updates(replay: Replay, duplex: Duplex) -> None:
    """Apply blocks of updates and deletes as they come; a refused block harms no other."""
    while (message := await duplex.receive()) is not None:
        request = UpdateRequest.from_message(message)
        try:
            if len(request.keys) + len(request.deletes) > MAX_KEYS:
                raise InvalidArgument(
                    f"one call changes {len(request.keys) + len(request.deletes)} keys; at most {MAX_KEYS}: cut it up"
                )
            result = replay.table(request.table).mutate(request.keys, request.priorities, request.deletes)
        except ReplayError as error:
            answer = UpdateResponse(refused=[(request.seq, error.to_map())])
        else:
            answer = UpdateResponse(done=[(request.seq, result)])
        await duplex.send(answer.to_message())
