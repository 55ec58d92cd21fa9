"""hpack that remembers what repeats: peers send the same headers with every call, and get the same back."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from hpack import Decoder, Encoder, HeaderTuple
from hpack.table import HeaderTable

# It logs every header, and so every token, of programs that log everything from DEBUG on.
logging.getLogger("hpack").setLevel(logging.INFO)

MAX_BLOCKS = 32
"""What is remembered at most; then it begins anew."""

MAX_BLOCK_BYTES = 1024
"""Longer blocks are not remembered."""


class RememberingEncoder(Encoder):
    """Encodes headers once, for as long as the table of headers that both sides keep stays what it is."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[Any, ...], bytes] = {}

    def encode(self, headers: Iterable[Any], huffman: bool = True) -> bytes:
        """Return the block that tells a peer's decoder of `headers`, pairs of names and values."""
        headers = tuple(headers)
        table = self.header_table
        resized = table.resized  # The block is to tell so, once, and entries may be gone.
        known = None if resized else self._known.get(headers)
        if known is not None:
            return known
        entries, newest = len(table.dynamic_entries), _newest(table)
        block = super().encode(headers, huffman)
        if resized or len(table.dynamic_entries) != entries or _newest(table) is not newest:
            self._known.clear()
        elif len(block) <= MAX_BLOCK_BYTES and not any(isinstance(header, HeaderTuple) for header in headers):
            _remember(self._known, headers, block)
        return block


class RememberingDecoder(Decoder):
    """Decodes a block once, for as long as the table of headers that both sides keep stays what it is."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[bytes, list[HeaderTuple]] = {}

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:
        """Return the headers in a block.

        Raises:
            HPACKError: the block is malformed, or its headers are too long.
        """
        known = self._known.get(data) if raw else None
        if known is not None:
            return list(known)
        table = self.header_table
        entries, newest = len(table.dynamic_entries), _newest(table)
        headers = list(super().decode(data, raw))
        if len(table.dynamic_entries) != entries or _newest(table) is not newest:
            self._known.clear()
        elif raw and len(data) <= MAX_BLOCK_BYTES:
            _remember(self._known, data, headers)
        return headers


def _newest(table: HeaderTable) -> tuple[bytes, bytes] | None:
    """Return the entry at a table's head: a new one, once anything has entered it."""
    return table.dynamic_entries[0] if table.dynamic_entries else None


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= MAX_BLOCKS:
        known.clear()
    known[key] = value
