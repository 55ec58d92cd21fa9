"""Where arrays stand in a packed entry's buffer."""

from __future__ import annotations

import numpy as np
import pytest

from reverb_async.protocol.packing import Places

SHAPES = [((3,), "f8"), ((3, 0, 2), "i4"), ((1,), "?"), ((2, 5), "U3"), ((3, 1), "c16"), ((2,), "M8[s]")]


@pytest.mark.parametrize("start", [0, 2])
def test_settled_places_give_the_same_arrays(start: int) -> None:
    places = Places()
    for shape, kind in SHAPES:
        places.add(shape, np.dtype(kind))
    buffer = np.arange(places.nbytes + 7, dtype=np.uint8)
    before = places.arrays(buffer, start)
    places.settle()
    after = places.arrays(buffer, start)
    assert len(before) == len(after) == len(SHAPES) - start
    for one, other, (shape, kind) in zip(before, after, SHAPES[start:], strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype) == (shape, np.dtype(kind))
        assert one.ctypes.data == other.ctypes.data
        assert one.strides == other.strides
        assert other.flags.writeable
        assert other.flags.c_contiguous
    buffer.flags.writeable = False
    assert not any(array.flags.writeable for array in places.arrays(buffer))


@pytest.mark.parametrize("shape", [(1 << 28,), (1 << 40, 0)])
def test_places_beyond_what_a_record_can_hold_stay_as_they_are(shape: tuple[int, ...]) -> None:
    places = Places()
    places.add((1,), np.dtype(np.int32))
    places.add(shape, np.dtype(np.float64))
    places.settle()
    if places.nbytes < 1 << 20:
        (_, array) = places.arrays(np.zeros(places.nbytes, np.uint8))
        assert array.shape == shape
    assert places.nbytes == 64 + 8 * np.prod(shape, dtype=np.int64)
