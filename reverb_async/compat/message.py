"""Reading messages that are small and rare, whoever sent them.

The generated classes are made for sound messages: given others they fail with whatever comes to hand, or not at all.
"""

from __future__ import annotations

from collections.abc import Collection

from reverb_async.compat.scanning import FIXED64, LENGTH, VARINT, Data, as_data, double, expect, fields, int64, text


class Message:
    """The fields of a serialized message, by number; what they mean is the reader's business.

    A field that is absent reads as zero or empty; of a single field that occurs twice the last counts.

    Args:
        encoded: the message.
        name: what it is, for errors.

    Raises:
        InvalidArgument: the bytes are no message. So do the methods, if a field has another type than is asked for.
    """

    __slots__ = ("_data", "_fields", "name")

    def __init__(self, encoded: Data, name: str) -> None:
        self.name = name
        self._data = as_data(encoded)
        self._fields: dict[int, list[tuple[int, int, int]]] = {}
        for number, *field in fields(self._data, 0, len(self._data), name):
            self._fields.setdefault(number, []).append((field[0], field[1], field[2]))

    @property
    def numbers(self) -> Collection[int]:
        """Which fields there are."""
        return self._fields.keys()

    def unsigned(self, number: int) -> int:
        """Return a uint64, bool or enum field."""
        return self._last(number, VARINT)[0]

    def integer(self, number: int) -> int:
        """Return an int32 or int64 field."""
        return int64(self.unsigned(number))

    def double(self, number: int) -> float:
        """Return a double field."""
        start, stop = self._last(number, FIXED64)
        return double(self._data, start) if stop else 0.0

    def text(self, number: int) -> str:
        """Return a string field."""
        return text(self._data, *self._last(number, LENGTH), f"{self.name}, field {number}")

    def message(self, number: int) -> Message:
        """Return a message field."""
        start, stop = self._last(number, LENGTH)
        return Message(self._data[start:stop], self.name)

    def messages(self, number: int) -> list[Message]:
        """Return a repeated field of messages."""
        return [Message(each, self.name) for each in self.encoded(number)]

    def encoded(self, number: int) -> list[Data]:
        """Return a repeated field of messages, unread."""
        return [self._data[start:stop] for start, stop in self._all(number, LENGTH)]

    def _last(self, number: int, wire_type: int) -> tuple[int, int]:
        return self._all(number, wire_type)[-1] if number in self._fields else (0, 0)

    def _all(self, number: int, wire_type: int) -> list[tuple[int, int]]:
        found = []
        for got, start, stop in self._fields.get(number, ()):
            expect(got, wire_type, f"{self.name}: field {number}", stop)
            found.append((start, stop))
        return found
