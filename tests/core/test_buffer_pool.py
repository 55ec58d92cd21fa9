"""Tests of `reverb_async.core.buffer_pool`."""

from __future__ import annotations

import numpy as np
import pytest

from reverb_async.core.buffer_pool import BufferPool

SIZE = 1 << 20


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def test_a_buffer_nobody_looks_at_is_used_again() -> None:
    pool = BufferPool()
    buffer = pool.take(SIZE)
    first = address(buffer)
    del buffer
    assert address(pool.take(SIZE - 1000)) == first


@pytest.mark.parametrize(
    "look",
    [
        lambda buffer: buffer,
        lambda buffer: buffer[100:200],
        lambda buffer: buffer[:64].view(np.float32).reshape(4, 4)[1:],
        lambda buffer: memoryview(buffer)[10:20],
        lambda buffer: memoryview(buffer[10:20]).cast("B"),
        lambda buffer: np.frombuffer(memoryview(buffer[:80]), np.int16),
        lambda buffer: iter(buffer),
    ],
)
def test_a_buffer_is_kept_for_whoever_has_a_view_of_it(look: object) -> None:
    pool = BufferPool()
    buffer = pool.take(SIZE)
    first = address(buffer)
    view = look(buffer)  # type: ignore[operator]
    del buffer
    other = pool.take(SIZE)
    assert address(other) != first
    del view
    assert address(pool.take(SIZE)) == first


def test_all_buffers_ever_taken_and_kept_are_distinct_memory() -> None:
    pool = BufferPool(max_buffers=4)
    kept = [pool.take(SIZE) for _ in range(20)]
    for number, buffer in enumerate(kept):
        buffer[:] = number
    assert all((buffer == number).all() for number, buffer in enumerate(kept))


@pytest.mark.parametrize("size", [1, 63, 1000, 1 << 17, (1 << 17) + 1, SIZE])
def test_buffers_are_aligned_writable_and_of_the_size_asked_for(size: int) -> None:
    buffer = BufferPool().take(size)
    assert buffer.shape == (size,)
    assert address(buffer) % 64 == 0
    assert buffer.flags.writeable
    assert buffer.flags.c_contiguous


def test_a_much_larger_buffer_is_not_spent_on_a_small_one() -> None:
    pool = BufferPool()
    large = pool.take(8 * SIZE)
    at = address(large)
    del large
    assert address(pool.take(SIZE)) != at


def test_the_pool_remembers_no_more_than_it_may() -> None:
    pool = BufferPool(max_buffers=3, max_bytes=4 * SIZE)
    for _ in range(10):
        kept = [pool.take(SIZE) for _ in range(5)]
        assert len(pool._rooms) <= 3
        del kept
    pool.take(3 * SIZE + SIZE // 2)
    assert sum(room.size for room in pool._rooms) <= 5 * SIZE
    assert pool.take(5 * SIZE).size == 5 * SIZE


def test_a_pool_that_is_cleared_keeps_nothing_and_takes_nothing_away() -> None:
    pool = BufferPool()
    kept = pool.take(1 << 20)
    kept[:] = 7
    pool.take(1 << 20)
    pool.clear()
    assert pool._rooms == []
    other = pool.take(1 << 20)
    other[:] = 8
    assert (kept == 7).all()
    assert pool._nbytes == pool._rooms[0].size
