"""grpclib handlers for `deepmind.reverb.ReverbService`: messages pass as bytes, errors as that service's statuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from grpclib.const import Cardinality, Handler
from grpclib.server import Stream

from reverb_async.compat.bytes_stream import BytesStream
from reverb_async.compat.scanning import Data, as_data
from reverb_async.compat.service import DeepMindService
from reverb_async.compat.statuses import errors_as_status, to_status
from reverb_async.errors import InvalidArgument, ReplayError
from reverb_async.limits import Limits
from reverb_async.replay import Replay
from reverb_async.wire.http2 import BytesCall
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

    def __init__(self, replay: Replay, save: Callable[[], Awaitable[str]] | None = None) -> None:
        self._service = DeepMindService(replay, save)
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
                incoming = BytesStream(stream)
                await self._streams.serve(incoming, lambda: serve(incoming))

        return handle

    def _unary(self, make: Callable[[Data], Awaitable[bytes]]) -> BytesCall:
        async def answered(request: Data | None) -> bytes:
            if request is None:
                raise InvalidArgument("the call ended without a request")
            return await make(request)

        async def answer(request: Data | None) -> bytes:
            try:
                return await self._streams.serve(None, lambda: answered(request))
            except ReplayError as error:
                raise to_status(error) from error

        async def serve(stream: Stream[Any, Any]) -> None:
            messages = BytesStream(stream)
            with errors_as_status():
                request = await self._streams.serve(messages, messages.receive)
            message = await answer(request)
            with errors_as_status():
                await messages.send([message])

        return BytesCall(lambda body: answer(None if body is None else as_data(body)), serve)

    def finish(self) -> None:
        """Refuse new streams, and let those there are do what they have been asked for, then end."""
        self._streams.finish()

    async def wait(self, timeout: float) -> None:
        """Wait until all streams have ended, for so many seconds at most."""
        await self._streams.wait(timeout)

    async def close(self, timeout: float) -> None:
        """End all streams as cancelled and refuse new ones."""
        await self._streams.close(timeout)
        await self._service.close()
