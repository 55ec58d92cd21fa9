from __future__ import annotations

import numpy as np
import pytest

from reverb_async.checkpoint.plain import pack, unpack


def test_plain_values_of_any_size_can_be_packed():
    value = {"a": 2**200, "b": -(2**70), "c": b"\0", "d": [None, True, 1.5, float("inf")], 5: "x", "n": np.int32(3)}
    assert unpack(pack(value)) == value


def test_other_values_are_refused():
    with pytest.raises(TypeError, match="plain values, not a set"):
        pack({"a": {1}})


@pytest.mark.parametrize("packed", [b"", b"\x93\x01", pack({"a": 1}) + b"x", b"\xc7\x01\x09\x00"])
def test_other_bytes_are_refused(packed):
    with pytest.raises(ValueError):  # noqa: PT011 - any will do
        unpack(packed)
