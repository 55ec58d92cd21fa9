"""grpclib handlers: they hand streams and calls to the service, and errors back as statuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from grpclib.const import Handler
from grpclib.server import Stream

from reverb_async.protocol.message import Duplex
from reverb_async.service.service import ReplayService
from reverb_async.wire.duplex import GrpcServerDuplex
from reverb_async.wire.generated.grpc.health.v1 import (
    HealthBase,
    HealthCheckRequest,
    HealthCheckResponse,
    HealthCheckResponseServingStatus,
)
from reverb_async.wire.generated.reverb_async.v1 import (
    CheckpointRequest,
    CheckpointResponse,
    HelloRequest,
    HelloResponse,
    MutatePrioritiesRequest,
    MutatePrioritiesResponse,
    ReplayBase,
    ResetRequest,
    ResetResponse,
    ServerInfoRequest,
    ServerInfoResponse,
    ServerStatusRequest,
    ServerStatusResponse,
)
from reverb_async.wire.memory_offer import memory_offer_to_proto
from reverb_async.wire.open_streams import OpenStreams
from reverb_async.wire.server_status import status_to_proto
from reverb_async.wire.status import errors_as_status
from reverb_async.wire.table_info import table_info_to_proto

SERVICE = "reverb_async.v1.Replay"
INSERT = f"/{SERVICE}/Insert"

MAX_PARTS = 16
"""A message in parts may be so many times as long as one that is not."""


class ReplayHandlers(ReplayBase):
    """The native service on grpclib."""

    def __init__(self, service: ReplayService) -> None:
        self._service = service
        self._streams = OpenStreams()
        self._max_unit_bytes = MAX_PARTS * service.replay.limits.max_message_bytes

    def __mapping__(self) -> dict[str, Handler]:
        """Return the handlers; the three streams bypass the generated per-message classes."""
        handlers: dict[str, Handler] = dict(super().__mapping__())
        for name, serve in (
            ("Insert", self._service.insert),
            ("Sample", self._service.sample),
            ("Update", self._service.update),
        ):
            path = f"/{SERVICE}/{name}"
            handlers[path] = handlers[path]._replace(func=self._streaming(serve))
        return handlers

    def _streaming(self, serve: Callable[[Duplex], Awaitable[None]]) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
        async def handle(stream: Stream[Any, Any]) -> None:
            with errors_as_status():
                duplex = GrpcServerDuplex(stream, max_unit_bytes=self._max_unit_bytes)
                await self._streams.serve(duplex, lambda: serve(duplex))

        return handle

    def finish(self) -> None:
        """Refuse new streams, and let those there are do what they have been asked for, then end."""
        self._streams.finish()

    async def wait(self, timeout: float) -> None:
        """Wait until all streams have ended, for so many seconds at most."""
        await self._streams.wait(timeout)

    async def close(self, timeout: float) -> None:
        """End all streams with `TableClosed` and refuse new ones."""
        await self._streams.close(timeout)

    async def hello(self, message: HelloRequest) -> HelloResponse:
        """Introduce client and server to each other."""
        with errors_as_status():
            self._streams.refuse_when_closing()
            hello = self._service.hello(message.protocol_version)
            return HelloResponse(
                protocol_version=hello.protocol_version,
                features=list(hello.features),
                server_epoch=hello.server_epoch,
                key_block=hello.key_block,
                max_message_bytes=hello.max_message_bytes,
                shared_memory=None if hello.memory is None else memory_offer_to_proto(hello.memory),
            )

    async def mutate_priorities(self, message: MutatePrioritiesRequest) -> MutatePrioritiesResponse:
        """Set priorities, then delete."""
        with errors_as_status():
            result = await self._service.mutate_priorities(
                message.table, message.update_keys, message.update_priorities, message.delete_keys
            )
            return MutatePrioritiesResponse(updated=result.updated, deleted=result.deleted, unknown=result.unknown)

    async def reset(self, message: ResetRequest) -> ResetResponse:
        """Empty a table."""
        with errors_as_status():
            await self._service.reset(message.table)
            return ResetResponse()

    async def server_info(self, message: ServerInfoRequest) -> ServerInfoResponse:
        """Describe all tables."""
        with errors_as_status():
            return ServerInfoResponse(tables=[table_info_to_proto(info) for info in self._service.server_info()])

    async def server_status(self, message: ServerStatusRequest) -> ServerStatusResponse:
        """Describe the server itself."""
        with errors_as_status():
            return status_to_proto(self._service.server_status())

    async def checkpoint(self, message: CheckpointRequest) -> CheckpointResponse:
        """Write a checkpoint."""
        with errors_as_status():
            return CheckpointResponse(path=await self._service.checkpoint())


class HealthHandlers(HealthBase):
    """gRPC's health service: SERVING from start to close, for the server as a whole and for its services, by name."""

    def __init__(self, services: Sequence[str] = (SERVICE,)) -> None:
        self._services = {"", *services}
        self._serving = asyncio.Event()
        self._serving.set()
        self._stopped = asyncio.Event()

    def close(self) -> None:
        """Tell everybody that the server is stopping."""
        self._serving.clear()
        self._stopped.set()

    def _status(self, service: str) -> HealthCheckResponse:
        statuses = HealthCheckResponseServingStatus
        if service not in self._services:
            return HealthCheckResponse(status=statuses.SERVICE_UNKNOWN)
        return HealthCheckResponse(status=statuses.SERVING if self._serving.is_set() else statuses.NOT_SERVING)

    async def check(self, message: HealthCheckRequest) -> HealthCheckResponse:
        """Answer once."""
        return self._status(message.service)

    async def watch(self, message: HealthCheckRequest) -> AsyncIterator[HealthCheckResponse]:
        """Answer now and when it changes."""
        yield self._status(message.service)
        await self._stopped.wait()
        yield self._status(message.service)
