"""``[limits]`` of the TOML file, and the flags of the same names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from reverb_async.config.settings import Setting, to_toml
from reverb_async.errors import InvalidArgument
from reverb_async.limits import Limits

LIMIT_FLAGS = {
    "max_bytes": "memory for all that the server holds, such as 8GiB; none is no limit (default none)",
    "full_timeout": "seconds an insert waits for memory, while none becomes free, before it fails (default 60)",
    "max_message_bytes": "the longest message (default 64MiB)",
    "max_client_bytes": "what one writer may have here that is in no table; none: 1GiB, or 1/16 of max-bytes",
    "max_connections": "connections at once (default 4096)",
}
"""What can be set, and what ``--help`` says about it."""


def _bytes_or_none(setting: Setting) -> int | None:
    return None if setting.value == "none" else setting.nbytes()


_READERS: dict[str, Callable[[Setting], Any]] = {
    "max_bytes": _bytes_or_none,
    "full_timeout": lambda setting: setting.finite(zero=True),
    "max_message_bytes": Setting.nbytes,
    "max_client_bytes": _bytes_or_none,
    "max_connections": lambda setting: setting.integer(1),
}


def read_limits(settings: Mapping[str, Setting]) -> Limits:
    """Return the limits that are set, and defaults.

    Raises:
        InvalidArgument: naming key, value and what would work.
    """
    read = {key: _READERS[key](setting) for key, setting in settings.items()}
    for key, value in read.items():
        try:
            Limits(**{key: value})
        except InvalidArgument as error:
            raise settings[key].refuse(str(error).removeprefix(f"Limits: {key} ")) from None
    return Limits(**read)


def limits_to_toml(limits: Limits) -> str:
    """Return the ``[limits]`` section."""
    lines = ["[limits]"]
    for field in fields(limits):
        value = getattr(limits, field.name)
        lines.append(f"{field.name} = {to_toml('none' if value is None else value)}")
    return "\n".join(lines) + "\n"
