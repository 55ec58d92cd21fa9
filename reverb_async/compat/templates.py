"""What messages look alike in: nearly all differ from one before in a few numbers and the content of tensors alone.

A message is compared as one large number, the first byte being the lowest: a mask, and a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

MAX_TEMPLATE_BYTES = 1 << 10
"""Longer messages are not worth it."""

_MAX_REMEMBERED_BYTES = 1 << 19
"""Of messages; what is known of hostile ones takes a hundred times as much."""
_MAX_ALIKE = 8
"""In one place; beyond that those that came last are kept alone."""

Shown = TypeVar("Shown")


class Template(NamedTuple, Generic[Shown]):
    """What some messages of one length have in common.

    Attributes:
        mask: ones where they are alike.
        value: what is there.
        places: where the numbers are that differ.
        shown: what was found out about the rest.
    """

    mask: int
    value: int
    places: tuple[slice, ...]
    shown: Shown


class Templates(Generic[Shown]):
    """Templates by whatever is known of a message before it is compared, its length at least.

    Attributes:
        find: returns those in one place, or what else it is given, as `dict.get` does. A message is like a template
            if ``bits & mask == value``, the first byte of the message being the lowest of `bits`.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, list[Template[Shown]]] = {}
        self._nbytes = 0
        self.find: Callable[[Hashable, Sequence[Template[Shown]]], Sequence[Template[Shown]]] = self._known.get

    def add(
        self,
        where: Hashable,
        message: bytes,
        numbers: Sequence[slice],
        contents: Sequence[slice],
        shown: Shown,
    ) -> None:
        """Remember a message.

        Args:
            where: the place.
            message: as it came.
            numbers: where it has numbers; others may be there, of as many bytes each.
            contents: where anything may be.
            shown: what was found out about the rest.
        """
        known = bytearray(b"\xff" * len(message))
        for place in numbers:
            known[place] = b"\x80" * (place.stop - place.start)
        for place in contents:
            known[place] = bytes(place.stop - place.start)
        mask = int.from_bytes(known, "little")
        self._nbytes += len(message)
        if self._nbytes > _MAX_REMEMBERED_BYTES:
            self._known.clear()
            self._nbytes = len(message)
        alike = self._known.setdefault(where, [])
        if len(alike) >= _MAX_ALIKE:
            alike.clear()
        alike.append(Template(mask, int.from_bytes(message, "little") & mask, tuple(numbers), shown))
