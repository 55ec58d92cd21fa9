"""The data that subjects move: NumPy alone, so that a peer's processes import the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL_BYTES = 41
FRAME_BYTES = 84 * 84 * 4
COLUMNS_BYTES = 200
LARGE_BYTES = 16 << 20

Columns = dict[str, NDArray[Any]]


def small(rng: np.random.Generator, n: int) -> Columns:
    """Return `n` transitions of 41 bytes in 5 columns."""
    return {
        "obs": rng.random((n, 4), np.float32),
        "action": rng.integers(0, 4, n, np.int32),
        "reward": rng.random(n, np.float32),
        "next_obs": rng.random((n, 4), np.float32),
        "done": rng.random(n) < 0.01,
    }


def columns(rng: np.random.Generator, n: int) -> Columns:
    """Return `n` transitions of 200 bytes in 8 columns of different dtypes."""
    return {
        "position": rng.random((n, 8), np.float64),
        "velocity": rng.random((n, 16), np.float32),
        "image": rng.integers(0, 256, (n, 5, 8), np.uint8),
        "tokens": rng.integers(0, 1000, (n, 5), np.int16),
        "clock": rng.integers(0, 2**40, n, np.int64),
        "half": rng.random((n, 4)).astype(np.float16),
        "id": rng.integers(0, 2**31, n, np.uint32),
        "mask": rng.random((n, 2)) < 0.5,
    }


def frames(rng: np.random.Generator, n: int) -> Columns:
    """Return `n` stacks of four 84x84 frames, random bytes: nothing that could be compressed."""
    return {"frame": rng.integers(0, 256, (n, 84, 84, 4), np.uint8)}


def game_frames(rng: np.random.Generator, n: int) -> Columns:
    """Return `n` frames 84x84 as of an old game: a textured background, a score, six moving sprites.

    Snappy leaves 36 % of one, and 17 % of a run of them: about as of Atari's.
    """
    field = np.repeat(np.arange(40, 54, dtype=np.uint8), 6)[:, None] + np.zeros(84, np.uint8)
    field[:8] = 0
    field[20:32] = rng.integers(60, 200, (2, 14), np.uint8).repeat(6, 0).repeat(6, 1)
    field[rng.random((84, 84)) < 0.1] += 9
    shown = np.repeat(field[None], n, axis=0)
    for sprite in range(6):
        look = rng.integers(100, 256, (8, 8), np.uint8)
        top, left = rng.integers(8, 70, 2)
        for at in range(n):
            y, x = (top + at * (sprite % 3)) % 76, (left + at * (1 + sprite % 2)) % 76
            shown[at, y : y + 8, x : x + 8] = look
    return {"frame": shown}


def blobs(rng: np.random.Generator, n: int, nbytes: int) -> Columns:
    """Return `n` arrays of `nbytes` random bytes."""
    return {"data": np.frombuffer(rng.bytes(n * nbytes), np.uint8).reshape(n, nbytes)}


def row(data: Columns, at: int) -> dict[str, Any]:
    """Return one row of columns, as a step or an item."""
    return {name: column[at] for name, column in data.items()}
