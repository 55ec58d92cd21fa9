"""Bearer tokens: a server keeps their hashes, with names and scopes, in a file that it reads again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field

from reverb_async.errors import InvalidArgument
from reverb_async.security.files import State, state_of

logger = logging.getLogger("reverb_async")

SCOPES = ("read", "write", "admin")
"""``read``: sample. ``write``: insert, update and delete. ``admin``: reset, checkpoint. None contains another."""

MAX_TOKENS = 1000

_PREFIX = "ra_"
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Token:
    """What a server knows of a token.

    Attributes:
        name: whose it is, for logs and messages.
        scopes: what it allows.
        digest: SHA-256 of the token itself, which nobody but its owner keeps.
    """

    name: str
    scopes: frozenset[str]
    digest: bytes = field(repr=False)

    def to_line(self) -> str:
        """Return the line of a tokens file that says so."""
        return f"{self.name} {','.join(scope for scope in SCOPES if scope in self.scopes)} sha256:{self.digest.hex()}"


def make_token(name: str, scopes: Iterable[str]) -> tuple[str, Token]:
    """Return a new secret of 256 random bits, and what a server is to know of it.

    Raises:
        InvalidArgument: no such name or scope.
    """
    secret = _PREFIX + secrets.token_urlsafe(32)
    return secret, Token(_checked_name(name, "a token"), _checked_scopes(scopes, f"token {name!r}"), digest_of(secret))


def digest_of(secret: str) -> bytes:
    """Return what is kept of a token. It is too long to be guessed, so the hash need not be slow."""
    return hashlib.sha256(secret.encode()).digest()


class Tokens:
    """The tokens of a file: one per line, ``name scope[,scope] sha256:digest``; ``#`` begins a comment.

    Args:
        path: the file.

    Raises:
        InvalidArgument: it cannot be used; says where and why.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._state: State = state_of([self._path])
        self._use(read_usable(self._path))

    def _use(self, tokens: tuple[Token, ...]) -> None:
        self._tokens, self._known = tokens, frozenset(tokens)

    def find(self, secret: str) -> Token | None:
        """Return the token that is `secret`. Takes the same time whichever it is, and whether or not it is one."""
        digest, found = digest_of(secret), None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def has(self, token: Token) -> bool:
        """Whether a token that was found is still good, for the same scopes."""
        return token in self._known

    def refresh(self) -> bool:
        """Read the file again if it has changed, and return whether it has; one that cannot be used is logged, once."""
        state = state_of([self._path])
        if state == self._state:
            return False
        self._state = state
        try:
            self._use(read_usable(self._path))
        except InvalidArgument as error:
            logger.error("%s; the tokens in use stay", error)
            return False
        logger.info("%d tokens are good now, says %s", len(self._tokens), self._path)
        return True


def read_usable(path: str) -> tuple[Token, ...]:
    """Return the tokens of a file that has some; raises `InvalidArgument`."""
    tokens = read_tokens(path)
    if not tokens:
        raise InvalidArgument(
            f"{path}: has no token: nobody could do anything; `python -m reverb_async.tokens new` makes one"
        )
    return tokens


def read_tokens(path: str) -> tuple[Token, ...]:
    """Return the tokens of a file; raises `InvalidArgument`."""
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read().splitlines()
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: is not UTF-8 text, see byte {error.start}") from error
    if mode & stat.S_IWOTH and os.name == "posix":
        raise InvalidArgument(f"{path}: everybody on this machine may change it: chmod o-w {path}")
    tokens: dict[str, Token] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        place = f"{path}: line {number}"
        if len(words) != 3 or (digest := _DIGEST.fullmatch(words[2])) is None:
            # What stands there may be a token itself, so it is not shown.
            raise InvalidArgument(
                f"{place}: a line is: name scope[,scope] sha256:digest; `python -m reverb_async.tokens new` makes one"
            )
        token = Token(
            _checked_name(words[0], place), _checked_scopes(words[1].split(","), place), bytes.fromhex(digest[1])
        )
        if token.name in tokens:
            raise InvalidArgument(f"{place}: there are two tokens named {token.name!r}: names must be distinct")
        tokens[token.name] = token
    if len(tokens) > MAX_TOKENS:
        raise InvalidArgument(f"{path}: has {len(tokens)} tokens; at most {MAX_TOKENS}")
    return tuple(tokens.values())


def _checked_name(name: str, place: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"{place}: a name is up to 64 of A-Z a-z 0-9 _ . @ -, got {name!r:.80}")
    return name


def _checked_scopes(scopes: Iterable[str], place: str) -> frozenset[str]:
    given = frozenset(scopes)
    if not given or not given <= set(SCOPES):
        raise InvalidArgument(
            f"{place}: scopes are {', '.join(SCOPES)}, with commas between them, got {','.join(sorted(given))!r:.80}"
        )
    return given
