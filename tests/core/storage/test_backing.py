import gc
import os

import numpy as np
import pytest

from reverb_async.core.storage.backing import (
    PAGE,
    Backing,
    PlatformBacking,
    PrivateBacking,
    aligned_empty,
    physical_memory,
    round_up,
)
from reverb_async.errors import ResourceExhausted

sparse_only = pytest.mark.skipif(not PlatformBacking.sparse, reason="memory is not sparse on this platform")
both_kinds = pytest.mark.parametrize("kind", [PlatformBacking, PrivateBacking])


@both_kinds
def test_memory_is_zero_writable_and_begins_at_a_page(kind: type[Backing]) -> None:
    backing = kind(3 * PAGE + 5)
    assert backing.array.nbytes >= 3 * PAGE + 5
    assert not backing.array.any()
    assert backing.array.ctypes.data % PAGE == 0
    backing.array[:] = 7
    assert backing.resident_bytes() >= backing.array.nbytes


@both_kinds
def test_what_is_impossible_to_reserve_is_refused(kind: type[Backing]) -> None:
    with pytest.raises(ResourceExhausted, match="4611686018427387904 bytes"):
        kind(1 << 62)


@sparse_only
def test_only_touched_pages_are_resident() -> None:
    backing = PlatformBacking(1 << 34)
    assert backing.resident_bytes() == 0
    backing.array[5 * PAGE : 7 * PAGE] = 1
    assert backing.resident_bytes() == 2 * PAGE


@sparse_only
def test_released_pages_go_back_under_live_views_and_read_as_zeros() -> None:
    backing = PlatformBacking(8 * PAGE)
    view = backing.array[:]
    view[:] = 1
    backing.release(PAGE - 1, 3 * PAGE + 1)
    assert backing.resident_bytes() == 6 * PAGE
    assert np.flatnonzero(view == 0).tolist() == list(range(PAGE, 3 * PAGE))
    view[PAGE] = 9
    assert view[PAGE] == 9


@sparse_only
def test_a_range_without_a_whole_page_releases_nothing() -> None:
    backing = PlatformBacking(2 * PAGE)
    backing.array[:] = 1
    backing.release(1, 2 * PAGE - 1)
    assert backing.array.all()


@sparse_only
def test_views_outlive_the_backing_and_its_descriptor_is_closed() -> None:
    backing = PlatformBacking(PAGE)
    view, descriptor = backing.array[:8], backing.fd
    assert descriptor is not None
    view[:] = 3
    del backing
    gc.collect()
    assert view.tolist() == [3] * 8
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@sparse_only
def test_nobody_can_shorten_the_file_under_the_mapping() -> None:
    backing = PlatformBacking(2 * PAGE)
    assert backing.fd is not None
    with pytest.raises(PermissionError):
        os.ftruncate(backing.fd, PAGE)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (1000, 7)])
@pytest.mark.parametrize("dtype", [np.bool_, np.float32, np.complex128, "U3"])
def test_aligned_arrays_are_owned_writable_and_contiguous(shape: tuple[int, ...], dtype: str) -> None:
    array = aligned_empty(shape, np.dtype(dtype))
    assert array.shape == shape
    assert array.dtype == np.dtype(dtype)
    assert array.ctypes.data % 64 == 0
    assert array.flags.c_contiguous
    assert array.flags.writeable


def test_sizes_are_rounded_up() -> None:
    assert [round_up(value, 64) for value in (0, 1, 64, 65)] == [0, 64, 64, 128]
    assert physical_memory() > 1 << 20
