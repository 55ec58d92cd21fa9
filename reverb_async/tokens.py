"""Makes tokens: ``python -m reverb_async.tokens new NAME --scope read,write``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from reverb_async.errors import InvalidArgument
from reverb_async.security.tokens import SCOPES, make_token, read_tokens


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m reverb_async.tokens", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = commands.add_parser(
        "new",
        help="make a token",
        description="Print a new token on stdout. Only its hash goes into the server's file: keep the token itself "
        "where its client finds it.",
        allow_abbrev=False,
    )
    new.add_argument("name", metavar="NAME", help="whose it is; servers name it in logs and messages")
    new.add_argument("--scope", metavar="SCOPE,...", required=True, help=f"what it allows: {', '.join(SCOPES)}")
    new.add_argument("--file", metavar="FILE", type=Path, help="add the hash to this file (otherwise: to stderr)")
    args = parser.parse_args(argv)
    try:
        secret, token = make_token(args.name, args.scope.split(","))
        if args.file is None:
            print(f"the line for the server's tokens file: {token.to_line()}", file=sys.stderr)
        else:
            _add(args.file, token.name, token.to_line())
    except InvalidArgument as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(secret)
    return 0


def _add(path: Path, name: str, line: str) -> None:
    """Write the file anew with one line more: a server never sees a part of it."""
    text = ""
    if path.exists():
        if any(token.name == name for token in read_tokens(os.fspath(path))):
            raise InvalidArgument(f"{path}: there is a token named {name!r}: delete its line to replace it")
        text = path.read_text(encoding="utf-8")
    text += "" if not text or text.endswith("\n") else "\n"
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{text}{line}\n")
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(written, path.stat().st_mode & 0o777)
        os.replace(written, path)
    except OSError as error:
        written.unlink(missing_ok=True)
        raise InvalidArgument(f"{path}: cannot be written: {error.strerror or error}") from error


if __name__ == "__main__":
    sys.exit(main())
