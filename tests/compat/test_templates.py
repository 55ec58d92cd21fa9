from __future__ import annotations

import pytest

from reverb_async.compat import templates as module
from reverb_async.compat.templates import Template, Templates


def find(templates: Templates[str], message: bytes) -> list[str]:
    bits = int.from_bytes(message, "little")
    return [each.shown for each in templates.find(len(message), ()) if bits & each.mask == each.value]


def test_messages_that_differ_in_numbers_and_contents_alone_are_found() -> None:
    templates: Templates[str] = Templates()
    templates.add(8, b"\x08\x81\x01\x22\x03abc", [slice(1, 3)], [slice(5, 8)], "one")
    assert find(templates, b"\x08\xff\x7f\x22\x03\x00\xff\x00") == ["one"]
    for message in (
        b"\x08\x01\x81\x22\x03abc",
        b"\x10\x81\x01\x22\x03abc",
        b"\x08\x81\x01\x22\x04abc",
        b"\x08\x81\x01\x22\x03ab",
    ):
        assert find(templates, message) == []


def test_of_messages_in_one_place_the_last_ones_are_remembered() -> None:
    templates: Templates[str] = Templates()
    for number in range(module._MAX_ALIKE + 1):
        templates.add(1, bytes([number]), [], [], str(number))
    assert [each.shown for each in templates.find(1, ())] == [str(module._MAX_ALIKE)]


def test_what_is_remembered_is_bounded_by_the_bytes_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_REMEMBERED_BYTES", 10)
    templates: Templates[str] = Templates()
    for where in range(6):
        templates.add(where, b"abc", [], [], "a")
    assert [where for where in range(6) if templates.find(where, ())] == [3, 4, 5]
    assert templates.find(4, ()) == [Template(0xFFFFFF, int.from_bytes(b"abc", "little"), (), "a")]
