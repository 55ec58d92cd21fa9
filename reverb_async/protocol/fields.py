"""Reading values from headers that a stranger may have written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from reverb_async.errors import InvalidArgument


def integer(value: Any, what: str) -> int:
    """Return a non-negative int below 2**63."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InvalidArgument(f"{what} must be an int from 0 to 2**63 - 1, got {value!r:.60}")
    return value


def number(value: Any, what: str) -> float:
    """Return a finite float."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidArgument(f"{what} must be a finite number, got {value!r:.60}")
    return float(value)


def text(value: Any, what: str) -> str:
    """Return a str."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} must be a str, got {value!r:.60}")
    return value


def integers(value: Any, what: str) -> list[int]:
    """Return a list of non-negative ints."""
    return [integer(entry, what) for entry in _entries(value, what)]


def texts(value: Any, what: str) -> list[str]:
    """Return a list of str."""
    return [text(entry, what) for entry in _entries(value, what)]


def items_of(header: Mapping[str, Any], key: str, width: int | None = None) -> list[Any]:
    """Return the list under `key`, empty if absent; with `width`, its entries must be lists of that length."""
    if key not in header:
        return []
    entries = _entries(header[key], key)
    if width is not None:
        for entry in entries:
            if not isinstance(entry, list | tuple) or len(entry) != width:
                raise InvalidArgument(f"{key} must hold lists of {width} entries, got {entry!r:.60}")
    return list(entries)


def _entries(value: Any, what: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidArgument(f"{what} must be a list, got {value!r:.60}")
    return value
