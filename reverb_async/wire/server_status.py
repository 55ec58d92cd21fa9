"""`ServerStatus` as its protobuf message and back."""

from __future__ import annotations

from dataclasses import fields

from reverb_async.core.info import Alarm, ServerStatus
from reverb_async.wire.generated.reverb_async import v1

_PLAIN = [field.name for field in fields(ServerStatus) if field.name != "alarms"]
"""Fields that are the same on both sides."""


def status_to_proto(status: ServerStatus) -> v1.ServerStatusResponse:
    """Return the message that describes a server."""
    alarms = [v1.Alarm(name=alarm.name, message=alarm.message, since=alarm.since) for alarm in status.alarms]
    return v1.ServerStatusResponse(**{name: getattr(status, name) for name in _PLAIN}, alarms=alarms)


def status_from_proto(message: v1.ServerStatusResponse) -> ServerStatus:
    """Return what a message says of a server."""
    alarms = tuple(Alarm(name=alarm.name, message=alarm.message, since=alarm.since) for alarm in message.alarms)
    return ServerStatus(**{name: getattr(message, name) for name in _PLAIN}, alarms=alarms)
