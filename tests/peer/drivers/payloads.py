"""Data that the tests and the peers' processes make alike: both know what to find. Needs NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np

DTYPES: dict[str, type[np.generic]] = {
    **{kind.__name__: kind for kind in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64)},
    **{kind.__name__: kind for kind in (np.int64, np.float16, np.float32, np.float64, np.complex64, np.complex128)},
    "flags": np.bool_,
}

STRINGS: list[str | bytes] = ["", "plain", "Grüße, 世界", b"\x00\xff raw", "x" * 1000]


def arrays(shape: tuple[int, ...]) -> dict[str, Any]:
    """Return an array of every dtype, with all bit patterns possible: also NaN and infinity."""
    random = np.random.default_rng(len(shape) + sum(shape))
    made = {}
    for name, dtype in DTYPES.items():
        if dtype is np.bool_:
            made[name] = np.asarray(random.random(shape) < 0.5)
        else:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            made[name] = np.frombuffer(random.bytes(size), dtype).reshape(shape)
    return made


def same(found: Any, sent: Any, name: str = "") -> None:
    """Check that arrays are the same bit by bit."""
    assert (found.shape, found.dtype) == (sent.shape, sent.dtype), (name, found.shape, found.dtype, sent.shape)
    assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(sent).tobytes(), name
