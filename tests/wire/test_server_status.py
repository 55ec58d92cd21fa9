"""A server's status survives its message."""

from __future__ import annotations

from dataclasses import fields

import reverb_async as ra
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.server_status import status_from_proto, status_to_proto

MORE = {
    "refused_connections": {"too many connections": 3},
    "dropped_connections": {"silent": 1, "too many resets": 2},
    "last_checkpoint": "/there/ckpt-1",
}


def test_a_status_comes_back_as_it_was() -> None:
    numbers = {field.name: at for at, field in enumerate(fields(ra.ServerStatus), 1)}
    alarm = ra.Alarm(name="memory", message="full", since=5.5)
    status = ra.ServerStatus(**(numbers | {"epoch": b"e" * 16, "uptime": 2.5, "alarms": (alarm,)} | MORE))  # type: ignore[arg-type]
    assert status_from_proto(v1.ServerStatusResponse.parse(bytes(status_to_proto(status)))) == status


async def test_a_server_tells_what_it_holds() -> None:
    async with (
        ra.Server([ra.Table("t", max_size=10)], limits=ra.Limits(max_bytes=1 << 30, max_connections=9)) as server,
        ra.Client(server.address) as client,
    ):
        empty = await client.server_status()
        await client.insert({"x": 1.0}, {"t": 1.0})
        status = await client.server_status()
        assert (empty.memory_used, empty.memory_limit, empty.max_connections) == (0, 1 << 30, 9)
        assert 0 < status.stored_bytes == status.memory_used < 1000
        assert (status.epoch, status.writers, status.alarms) == (empty.epoch, 1, ())
        assert status.connections >= 2
        assert 0 < empty.uptime < status.uptime
