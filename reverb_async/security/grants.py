"""What the call that is being served may do."""

from __future__ import annotations

from contextvars import ContextVar

from reverb_async.security.tokens import SCOPES, Token

granted: ContextVar[Token | None] = ContextVar("granted", default=None)
"""The token of the call whose handler runs now; None where nobody is asked for one."""


def denial(scope: str, call: str) -> str | None:
    """Say why the call that is being served may not do `call` as well, which needs `scope`; None if it may."""
    token = granted.get()
    return None if token is None or scope in token.scopes else lacking(token, scope, call)


def lacking(token: Token, scope: str, call: str) -> str:
    """Say that a token does not suffice."""
    has = ", ".join(scope for scope in SCOPES if scope in token.scopes)
    return f"{call} needs a token with the scope {scope!r}; the token {token.name!r} has {has}"
