"""Decoded tensors that are kept."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from reverb_async.core.encoded.tensor_cache import TENSOR_BITS, Tensor, TensorCache
from reverb_async.errors import InvalidArgument


def cache_of(max_bytes: int, decoded: list[int] | None = None) -> TensorCache:
    """Return a cache whose chunks decode to 1000 bytes."""

    def decode(chunk: memoryview, tensor: int) -> Tensor:
        if decoded is not None:
            decoded.append(tensor)
        return np.full(1000, tensor, np.uint8)

    return TensorCache(decode, max_bytes, nullcontext())


def kept(cache: TensorCache, keys: range | list[int]) -> list[int]:
    return [key for key in keys if key not in [keys[at] for at in cache.missing(list(keys))]]


def test_keeps_what_was_read_last_within_its_bytes() -> None:
    cache = cache_of(10_000)
    for key in range(20):
        cache.add(key, memoryview(b"chunk"))
        assert cache.nbytes <= 10_000
        if key >= 2:
            assert next(cache.get_all([2])) is not None
    left = kept(cache, range(20))
    assert left[0] == 2
    assert left[1:] == list(range(20))[-len(left) + 1 :]
    assert len(left) >= 6


def test_adding_a_tensor_again_counts_it_once() -> None:
    cache = cache_of(10_000)
    cache.add(5, memoryview(b"chunk"))
    once = cache.nbytes
    for _ in range(30):
        cache.add(5, memoryview(b"chunk"))
    assert cache.nbytes == once


def test_a_tensor_larger_than_the_cache_is_decoded_and_pushes_nothing_out() -> None:
    cache = TensorCache(lambda chunk, tensor: np.zeros(10 if tensor else 10**6, np.uint8), 5_000, nullcontext())
    cache.add(1, memoryview(b"chunk"))
    large = cache.add(0, memoryview(b"chunk"))
    assert len(large) == 10**6
    assert kept(cache, [0, 1]) == [1]


def test_the_key_names_the_tensor_of_the_chunk() -> None:
    decoded: list[int] = []
    cache = cache_of(10_000, decoded)
    cache.add(9 << TENSOR_BITS | 3, memoryview(b"chunk"))
    assert decoded == [3]
    assert cache.missing([8 << TENSOR_BITS | 3, 9 << TENSOR_BITS | 3, 9 << TENSOR_BITS | 4]) == [0, 2]


def test_a_view_of_the_chunk_does_not_keep_the_chunk() -> None:
    chunk = bytearray(1 << 20)
    cache = TensorCache(lambda chunk, tensor: np.frombuffer(chunk, np.uint8, 8), 5_000, nullcontext())
    tensor = cache.add(0, memoryview(chunk))
    chunk[0] = 1
    assert isinstance(tensor, np.ndarray)
    assert tensor.base is None
    assert tensor[0] == 0


def test_values_no_sound_array_holds_are_refused() -> None:
    cache = TensorCache(lambda chunk, tensor: np.frombuffer(chunk, np.bool_), 5_000, nullcontext())
    with pytest.raises(InvalidArgument, match="bools"):
        cache.add(0, memoryview(b"\x02"))
    assert cache.nbytes == 0


def test_without_a_decoder_nothing_is_taken_for_damaged() -> None:
    with pytest.raises(RuntimeError, match="nobody said how"):
        TensorCache(None, 1000, nullcontext()).add(0, memoryview(b"chunk"))
