"""Who may call what: every call of a protected server shows a token, and its scope is looked at."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from grpclib.const import Status
from grpclib.events import RecvRequest, listen
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from reverb_async.errors import PermissionDenied
from reverb_async.logs import Repeats
from reverb_async.metrics import AccessCounts
from reverb_async.security import Token, Tokens
from reverb_async.security.grants import granted, lacking
from reverb_async.wire.http2 import ReplayServer, peer_name

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Serve = Callable[[Stream[Any, Any]], Coroutine[Any, Any, None]]

logger = logging.getLogger("reverb_async")

_REPLAY, _HEALTH = "/reverb_async.v1.Replay/", "/grpc.health.v1.Health/"

CALLS: dict[str, tuple[str | None, str]] = {
    f"{_REPLAY}Hello": (None, "connecting"),
    f"{_REPLAY}ServerInfo": (None, "server_info"),
    f"{_REPLAY}ServerStatus": (None, "server_status"),
    f"{_HEALTH}Check": (None, "a health check"),
    f"{_HEALTH}Watch": (None, "a health check"),
    f"{_REPLAY}Sample": ("read", "sampling"),
    f"{_REPLAY}Insert": ("write", "inserting"),
    f"{_REPLAY}Update": ("write", "mutate_priorities"),
    f"{_REPLAY}MutatePriorities": ("write", "mutate_priorities"),
    f"{_REPLAY}Reset": ("admin", "reset"),
    f"{_REPLAY}Checkpoint": ("admin", "checkpoint"),
}
"""By method: the scope it needs, None: any token will do; and what users call it. Others need ``admin``.

Writers, too, must know what the tables are like, so every token may ask for `server_info`.
"""


class Access:
    """Asks every call for a token.

    Args:
        tokens: those that are good.

    Attributes:
        counts: calls that were refused.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.counts = AccessCounts()
        self._tokens = tokens
        self._served: dict[asyncio.Task[Any], Token] = {}
        self._revoked: set[asyncio.Task[Any]] = set()
        self._repeats = Repeats(logger)

    def protect(self, server: ReplayServer) -> None:
        """Have every call of a server pass here first."""
        listen(server, RecvRequest, self._on_request)

    def refresh(self) -> None:
        """Read the tokens again if they have changed; calls and streams whose token is not good any more end."""
        if not self._tokens.refresh():
            return
        for task, token in self._served.items():
            if not self._tokens.has(token) and task not in self._revoked:
                self._revoked.add(task)
                task.cancel()

    async def _on_request(self, event: RecvRequest) -> None:
        shown = event.metadata.getall("authorization", [])
        token = self._admit(event.method_name, [str(value) for value in shown], peer_name(event.peer))
        event.method_func = partial(self._serve, token, event.method_func)

    def _admit(self, method: str, shown: Sequence[str], peer: str) -> Token:
        """Return the token of a call.

        Raises:
            GRPCError: it has none, or one that does not suffice.
        """
        scope, call = CALLS.get(method, ("admin", method))
        token = _find(self._tokens, shown)
        if token is None:
            self.counts.unauthenticated += 1
            why = "the one shown is not known here" if shown else "none was shown: Client(..., token=)"
            self._refused(peer, call, f"{call} needs a token; {why}", None)
            raise _refusal(Status.UNAUTHENTICATED, f"{call} needs a token; {why}")
        if scope is not None and scope not in token.scopes:
            text = lacking(token, scope, call)
            self._denied(peer, call, text, token)
            raise _refusal(Status.PERMISSION_DENIED, text)
        return token

    async def _serve(self, token: Token, serve: Serve, stream: Stream[Any, Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._served[task] = token
        granted.set(token)
        try:
            await serve(stream)
        except GRPCError as error:
            if error.status is Status.PERMISSION_DENIED:
                self._denied(peer_name(stream.peer), "update_priorities", str(error.message), token)
            raise
        except asyncio.CancelledError:
            if task in self._revoked and task.uncancel() == 0:
                raise _refusal(Status.UNAUTHENTICATED, f"the token {token.name!r} was withdrawn or changed") from None
            raise
        finally:
            del self._served[task]
            self._revoked.discard(task)

    def _denied(self, peer: str, call: str, why: str, token: Token) -> None:
        self.counts.denied += 1
        self._refused(peer, call, why, token.name)

    def _refused(self, peer: str, call: str, why: str, token: str | None) -> None:
        kind = ("refused", token, call)
        self._repeats.warning(f"refused {peer}: {why}", kind=kind, event="refused", peer=peer, token=token)


def _find(tokens: Tokens, shown: Sequence[str]) -> Token | None:
    if len(shown) != 1:
        return None
    scheme, _, secret = shown[0].partition(" ")
    return tokens.find(secret) if scheme.lower() == "bearer" else None


def _refusal(status: Status, text: str) -> GRPCError:
    return GRPCError(status, text, PermissionDenied(text).to_map())
