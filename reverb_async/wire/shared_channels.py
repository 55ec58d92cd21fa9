"""Connections that the clients of one event loop share."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from reverb_async.security.tls import ClientTLS
from reverb_async.wire.http2 import SILENCE_S, ReplayChannel

Target = tuple[str | None, int | None, str | None]
"""Host and port, or the path of a Unix socket."""


class SharedChannel:
    """A channel that is closed when the last of its users has let go of it."""

    def __init__(self, channel: ReplayChannel) -> None:
        self.channel = channel
        self._users = 0

    def join(self) -> SharedChannel:
        """Count a user, who will call `leave`."""
        self._users += 1
        return self

    def leave(self) -> None:
        """Count one user less."""
        self._users -= 1
        if not self._users:
            self.channel.close()

    @property
    def is_used(self) -> bool:
        """Whether it is open."""
        return self._users > 0


_channels: WeakValueDictionary[tuple[int, Target, float | None, ClientTLS | None], SharedChannel] = (
    WeakValueDictionary()
)


def shared_channel(target: Target, connect_timeout: float | None, tls: ClientTLS | None = None) -> SharedChannel:
    """Return the channel of the running event loop to a server, joined; it is made for the first who asks."""
    # A channel keeps its loop alive: while the channel lives no other loop has this id.
    key = (id(asyncio.get_running_loop()), target, connect_timeout, tls)
    shared = _channels.get(key)
    if shared is None or not shared.is_used:
        host, port, path = target
        channel = ReplayChannel(host, port, path=path, connect_timeout=connect_timeout, tls=tls, silence_s=SILENCE_S)
        shared = _channels[key] = SharedChannel(channel)
    return shared.join()
