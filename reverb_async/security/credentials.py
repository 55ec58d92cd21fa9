"""What a client shows of itself, and what it wants to see of its server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from reverb_async.errors import InvalidArgument
from reverb_async.security.tls import ClientTLS

TokenSource = str | os.PathLike[str] | Callable[[], str]
"""A token; the path of a file that has it; or what returns it. The last two are asked again for every call."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a client's connections are made and its calls are signed.

    Attributes:
        tls: None: connections are not encrypted.
        token: None: calls have none.
    """

    tls: ClientTLS | None = None
    token: TokenSource | None = field(default=None, repr=False)

    def headers(self) -> list[tuple[str, str]]:
        """Return what is added to a call's headers.

        Raises:
            InvalidArgument: there should be a token, and is none.
        """
        if self.token is None:
            return []
        return [("authorization", f"Bearer {_read(self.token)}")]


def _read(source: TokenSource) -> str:
    if isinstance(source, str):
        token, where = source, "token"
    elif isinstance(source, os.PathLike):
        where = f"token: {os.fspath(source)}"
        try:
            with open(source, encoding="utf-8") as file:
                token = file.read().strip()
        except OSError as error:
            raise InvalidArgument(f"{where} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError:
            raise InvalidArgument(f"{where} is not a text") from None
    else:
        token, where = source(), "token: what its function returns"
    check_token(token, where)
    return token


def check_token(token: object, where: str) -> None:
    """Refuse what is no token, without showing it."""
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
        what = f"a {type(token).__name__}" if not isinstance(token, str) else "empty" if not token else "something else"
        raise InvalidArgument(f"{where}: a token is one word of printable ASCII characters; this is {what}")
