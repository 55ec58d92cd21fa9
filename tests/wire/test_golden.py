"""Bytes written once must be readable for ever."""

from __future__ import annotations

import pytest
from golden_messages import CONTROL, FRAMES, GOLDEN

from reverb_async.wire.codec import decode


@pytest.mark.parametrize("name", FRAMES)
def test_old_frames_are_readable(name):
    decoded, expected = decode((GOLDEN / f"{name}.bin").read_bytes()), FRAMES[name]
    assert decoded.header == expected.header
    assert [buffer.tobytes() for buffer in decoded.buffers] == [buffer.tobytes() for buffer in expected.buffers]


@pytest.mark.parametrize("name", CONTROL)
def test_old_control_messages_are_readable(name):
    assert type(CONTROL[name]).parse((GOLDEN / f"{name}.bin").read_bytes()) == CONTROL[name]


def test_every_golden_file_is_tested():
    assert {path.stem for path in GOLDEN.glob("*.bin")} == FRAMES.keys() | CONTROL.keys()
