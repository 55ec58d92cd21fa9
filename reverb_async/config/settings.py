"""Values that users write into TOML files and onto command lines, each with the place where it was written."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from reverb_async.errors import InvalidArgument

_UNITS = {
    unit + suffix: base**power
    for power, unit in enumerate(("", "k", "m", "g", "t"))
    for suffix, base in (("ib", 1024), ("b", 1000))
    if unit or suffix == "b"
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kmgt]i?b|b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value as its user wrote it.

    Attributes:
        value: what TOML made of it.
        where: place and key, for messages: ``run.toml: table "replay", key "max_size"``.
    """

    value: object
    where: str

    def refuse(self, why: str) -> InvalidArgument:
        """Return the error to raise: where it is, what is wrong."""
        return InvalidArgument(f"{self.where}: {why}")

    def integer(self, least: int, most: int | None = None) -> int:
        """Read an integer; 1e6 is one."""
        value = self.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < least
            or (most is not None and value > most)
        ):
            bounds = f">= {least}" if most is None else f"from {least} to {most}"
            raise self.refuse(f"must be an integer {bounds}, got {shown(self.value)}")
        return value

    def nbytes(self) -> int:
        """Read a size: an integer, or a text such as ``8GiB`` or ``500 MB``."""
        match = _SIZE.fullmatch(self.value.strip()) if isinstance(self.value, str) else None
        if match is not None:
            return int(float(match[1]) * _UNITS[match[2].lower()])
        if isinstance(self.value, str):
            raise self.refuse(f"must be bytes, such as 8GiB, 500MB or 1000000, got {shown(self.value)}")
        return self.integer(1, 2**63 - 1)

    def number(self) -> float:
        """Read a number; infinities are numbers, nan is none."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise self.refuse(f"must be a number, got {shown(value)}")
        try:
            return float(value)
        except OverflowError:
            raise self.refuse(f"must be a number below 1.8e308, got {shown(value)}") from None

    def finite(self, *, zero: bool = False) -> float:
        """Read a finite number > 0, or >= 0 if `zero` is allowed."""
        number = self.number()
        if not 0.0 <= number < math.inf or (number == 0.0 and not zero):
            raise self.refuse(f"must be a finite number {'>= 0' if zero else '> 0'}, got {shown(self.value)}")
        return number

    def text(self) -> str:
        """Read a text that is not empty."""
        value = self.value
        if not isinstance(value, str) or not value:
            raise self.refuse(f"must be a non-empty text, got {shown(value)}")
        if not value.isprintable():
            raise self.refuse(f"must be printable, got {shown(value)}")
        return value

    def boolean(self) -> bool:
        """Read true or false."""
        if not isinstance(self.value, bool):
            raise self.refuse(f"must be true or false, got {shown(self.value)}")
        return self.value

    def choice(self, choices: Iterable[str]) -> str:
        """Read one of the `choices`."""
        known = list(choices)
        if not isinstance(self.value, str) or self.value not in known:
            listed = ", ".join(f'"{name}"' for name in known)
            raise self.refuse(f"must be one of {listed}, got {shown(self.value)}{_did_you_mean(self.value, known)}")
        return self.value


def read_text(path: Path) -> str:
    """Return what a file says.

    Raises:
        InvalidArgument: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: is not UTF-8 text, see byte {error.start}") from error


def check_keys(given: Iterable[str], known: Iterable[str], place: str) -> None:
    """Refuse the first key that is not `known`, with the one that was probably meant."""
    names = list(known)
    for key in given:
        if key not in names:
            way_out = _did_you_mean(key, names) or f"; known are {', '.join(sorted(names))}"
            raise InvalidArgument(f"{place}key {shown(key)}: there is no such key{way_out}")


def _did_you_mean(word: object, known: list[str]) -> str:
    close = difflib.get_close_matches(str(word).lower(), known, n=1)
    return f"; did you mean {shown(close[0])}?" if close else ""


def shown(value: object) -> str:
    """Return a value as its user wrote it, shortened."""
    text = to_toml(value) if isinstance(value, bool | int | float | str | list | dict) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def to_toml(value: object) -> str:
    """Return a value as TOML on one line; `tomllib` reads it back as it was."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's, but for one character.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return "[" + ", ".join(map(to_toml, value)) + "]"
        case Mapping():
            pairs = (f"{_toml_key(key)} = {to_toml(entry)}" for key, entry in value.items())
            return "{" + ", ".join(pairs) + "}"
    return str(value)  # Dates and times, which are no setting: only messages show them.


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else to_toml(key)


def parse_flag(text: str) -> tuple[str, dict[str, object]]:
    """Read what follows ``--table``: ``name:key=value,key=value``. Values are TOML; texts need no quotes.

    Raises:
        InvalidArgument: it is something else.
    """
    name, _, rest = text.partition(":")
    if not name or "=" in name:
        raise InvalidArgument(f"--table: a table's name comes first, as in replay:max_size=1e6, got {shown(text)}")
    Setting(name, "--table").text()
    place = table_place("--table", name)
    settings: dict[str, object] = {}
    for part in _split(rest):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if not value:
            raise InvalidArgument(f"{place}key {shown(key)}: it has no value: write {key}=VALUE")
        if key in settings:
            raise InvalidArgument(f"{place}key {shown(key)}: it is given twice: drop one")
        settings[key] = parse_value(value)
    return name, settings


def table_place(source: str, name: str) -> str:
    """Return how messages about one table begin."""
    return f"{source}: table {shown(name)}, "


def _split(text: str) -> list[str]:
    """Split at commas, but not within brackets and quotes."""
    token = re.compile(r'"(?:\\.|[^"\\])*"|\'[^\']*\'|[\[{(]|[\]})]|,|[^,"\'\[\]{}()]+|.', re.DOTALL)
    parts, depth = [""], 0
    for found in token.finditer(text):
        depth += (found[0] in "[{(") - (found[0] in "]})")
        if found[0] == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += found[0]
    return [part for part in parts if part.strip()]


def parse_value(text: str) -> object:
    """Read one value from the command line: TOML, or a text without quotes."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    if parsed.keys() == {"value"}:
        return parsed["value"]
    for number in (int, float):  # TOML knows neither 007 nor .5.
        try:
            return number(text)
        except ValueError:
            pass
    return text
