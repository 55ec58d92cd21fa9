"""grpclib handlers for `deepmind.reverb.ReverbService`: messages pass as bytes, errors as that service's statuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from grpclib.const import Cardinality, Handler
from grpclib.server import Stream

from reverb_async.compat.bytes_stream import BytesStream
from reverb_async.compat.scanning import Data
from reverb_async.compat.service import DeepMindService
from reverb_async.compat.statuses import errors_as_status
from reverb_async.errors import InvalidArgument
from reverb_async.limits import Limits
from reverb_async.replay import Replay
from reverb_async.wire.open_streams import OpenStreams

SERVICE = "deepmind.reverb.ReverbService"
INSERT = f"/{SERVICE}/InsertStream"

_LEAST_INSERT_BYTES = 64 << 20


def message_limits(limits: Limits) -> dict[str, int]:
    """Return the longest messages, by service and method.

    Clients cut a request once it exceeds 40 MiB, but never a chunk. Other messages have little more than a table's
    name, and are read where they arrive.
    """
    return {
        SERVICE: 64 << 10,
        INSERT: max(8 * limits.max_message_bytes, _LEAST_INSERT_BYTES),
        f"/{SERVICE}/MutatePriorities": limits.max_message_bytes,
    }


class DeepMindHandlers:
    """DeepMind's service on grpclib."""

    def __init__(self, replay: Replay) -> None:
        self._service = DeepMindService(replay)
        self._streams = OpenStreams()

    def __mapping__(self) -> dict[str, Handler]:
        """Return the handlers. They bypass grpclib's codec, so the message types do not matter."""
        service = self._service
        streams: dict[str, Callable[[BytesStream], Awaitable[None]]] = {
            "InsertStream": service.insert,
            "SampleStream": service.sample,
            "InitializeConnection": service.initialize_connection,
        }
        calls: dict[str, Callable[[Data], Awaitable[bytes]]] = {
            "MutatePriorities": service.mutate_priorities,
            "Reset": service.reset,
            "ServerInfo": service.server_info,
            "Checkpoint": service.checkpoint,
        }
        return {
            **{
                f"/{SERVICE}/{name}": Handler(self._streaming(serve), Cardinality.STREAM_STREAM, bytes, bytes)
                for name, serve in streams.items()
            },
            **{
                f"/{SERVICE}/{name}": Handler(self._unary(answer), Cardinality.UNARY_UNARY, bytes, bytes)
                for name, answer in calls.items()
            },
        }

    @property
    def cached_bytes(self) -> int:
        """What is kept of items that were encoded."""
        return self._service.native_items.nbytes

    def forget_what_is_gone(self) -> None:
        """Let caches go that nobody needs any more."""
        self._service.native_items.forget_what_is_gone()

    def _streaming(self, serve: Callable[[BytesStream], Awaitable[None]]) -> Callable[[Stream[Any, Any]], Any]:
        async def handle(stream: Stream[Any, Any]) -> None:
            with errors_as_status():
                await self._streams.serve(lambda: serve(BytesStream(stream)))

        return handle

    def _unary(self, answer: Callable[[Data], Awaitable[bytes]]) -> Callable[[Stream[Any, Any]], Any]:
        async def serve(stream: BytesStream) -> None:
            request = await stream.receive()
            if request is None:
                raise InvalidArgument("the call ended without a request")
            await stream.send([await answer(request)])

        return self._streaming(serve)

    async def close(self) -> None:
        """End all streams as cancelled and refuse new ones."""
        await self._streams.close()
        await self._service.close()
