"""Where a server listens, and to whom."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from ssl import SSLContext

from reverb_async.errors import InvalidArgument
from reverb_async.security import ServerTLS
from reverb_async.wire.http2 import ReplayServer

logger = logging.getLogger("reverb_async")

LOOPBACK = "127.0.0.1"


def checked_tls(tls: object) -> ServerTLS:
    """Return `tls`, if it is such; raises `InvalidArgument`."""
    if not isinstance(tls, ServerTLS):
        raise InvalidArgument(f"tls is a ServerTLS(certificate, key), got {tls!r:.60}")
    return tls


def reverb_port(insecure: bool | int, is_served: bool, is_protected: bool) -> int | None:
    """Return the port of the listener that is for DeepMind's clients alone, None if there is none."""
    if insecure is False:
        if is_served and is_protected:
            logger.info(
                "clients of dm-reverb are not served: they know neither TLS nor tokens (reverb_compat_insecure)"
            )
        return None
    if not is_served or not is_protected:
        why = "and reverb_compat=False does not" if is_protected else "which they are anyway without tls and tokens"
        raise InvalidArgument(f"reverb_compat_insecure={insecure!r} has dm-reverb's clients served, {why}: drop one")
    if not isinstance(insecure, int) or not 0 <= insecure < 65536:
        raise InvalidArgument(f"reverb_compat_insecure is True (any free port), a port, or False, got {insecure!r}")
    return 0 if insecure is True else insecure


async def listen(server: ReplayServer, host: str, port: int, ssl: SSLContext | None = None) -> None:
    """Listen on TCP; raises `InvalidArgument` if that cannot be."""
    try:
        await server.start(host, port, ssl=ssl)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InvalidArgument(
                f"port {port} of {host} is taken by another process: stop that one, choose another port, "
                f"or let port=0 pick a free one"
            ) from error
        raise InvalidArgument(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


async def listen_unix(server: ReplayServer, path: str) -> None:
    """Listen on a Unix socket; raises `InvalidArgument` if that cannot be."""
    _make_way(path)
    try:
        await server.start(path=path)
    except OSError as error:
        raise InvalidArgument(f"cannot listen on {path}: {error.strerror or error}") from error


def _make_way(path: str) -> None:
    """Remove the socket file that a killed server left behind; refuse anything else in its place."""
    if not hasattr(socket, "AF_UNIX"):
        raise InvalidArgument("this platform has no Unix sockets: use TCP")
    if not os.path.exists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise InvalidArgument(f"{path} exists and is not a socket: choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(path) == 0:
            raise InvalidArgument(f"another server listens on {path}: stop it, or choose another path")
    os.unlink(path)
