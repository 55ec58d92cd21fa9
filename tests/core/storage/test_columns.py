import numpy as np
import pytest

from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage.backing import PAGE, Backing, PlatformBacking, PrivateBacking
from reverb_async.core.storage.columns import MAX_ROWS, Columns
from reverb_async.errors import ResourceExhausted

SPECS = (ArraySpec((3,), np.float32), ArraySpec((), np.bool_), ArraySpec((None,), np.int8), ArraySpec((), "U4"))
both_kinds = pytest.mark.parametrize("kind", [PlatformBacking, PrivateBacking])


@both_kinds
def test_each_column_is_an_array_of_its_own_from_a_page_on(kind: type[Backing]) -> None:
    columns = Columns(SPECS, 1 << 20, kind)
    assert [array.dtype for array in columns.arrays] == [np.float32, np.bool_, np.uint64, np.dtype("U4")]
    assert [array.shape[1:] for array in columns.arrays] == [(3,), (), (), ()]
    assert columns.row_bytes == 12 + 1 + 8 + 16
    assert all(offset % PAGE == 0 for offset in columns.offsets)
    for value, array in enumerate((*columns.arrays, columns.counts)):
        assert len(array) == columns.capacity
        array[:] = np.asarray(value + 1).astype(array.dtype)
    for value, array in enumerate((*columns.arrays, columns.counts)):
        assert (array == np.asarray(value + 1).astype(array.dtype)).all()


@pytest.mark.parametrize(("row", "extent"), [(1, 64), (28_224, 64), (100_000, 32), (1 << 20, 2), (16 << 20, 1)])
def test_extents_of_large_rows_are_short(row: int, extent: int) -> None:
    assert Columns([ArraySpec((row,), np.uint8)], 1 << 30, PlatformBacking).extent == extent


def test_there_are_never_more_rows_than_fit_into_int32() -> None:
    assert Columns([ArraySpec((0,), np.uint8)], 1 << 50, PrivateBacking).limit == MAX_ROWS


def test_columns_of_no_bytes_and_no_columns_at_all_are_allowed() -> None:
    empty = Columns([ArraySpec((2, 0), np.float64)], 1 << 20, PlatformBacking)
    assert empty.arrays[0].shape == (empty.capacity, 2, 0)
    assert Columns([], 1 << 20, PlatformBacking).capacity > 0


def test_rows_larger_than_the_reservation_are_refused_by_name() -> None:
    with pytest.raises(ResourceExhausted, match=r"uint8 \[100000\].*100000 bytes.*too large"):
        Columns([ArraySpec((100_000,), np.uint8)], 1 << 16, PlatformBacking)


def test_many_columns_are_not_all_listed_in_an_error() -> None:
    with pytest.raises(ResourceExhausted, match="and 6 more columns"):
        Columns([ArraySpec((1 << 20,), np.uint8)] * 10, 1 << 16, PlatformBacking)


class ScarceBacking(PrivateBacking):
    """Address space is short."""

    sparse = True

    def __init__(self, nbytes: int) -> None:
        if nbytes > 1 << 22:
            raise ResourceExhausted(f"{nbytes} bytes are too many")
        super().__init__(nbytes)


def test_with_little_address_space_stores_are_smaller_and_say_why_once_they_are_full() -> None:
    columns = Columns(SPECS, None, ScarceBacking)
    assert 1 << 20 < columns.backing.array.nbytes <= 1 << 22
    assert columns.capacity == columns.limit > 0
    with pytest.raises(ResourceExhausted, match=f"{columns.limit + 1} are needed; .* too many"):
        columns.grow(columns.limit + 1, columns.limit)


def test_a_size_that_was_asked_for_is_not_made_smaller() -> None:
    with pytest.raises(ResourceExhausted, match="too many"):
        Columns(SPECS, 1 << 30, ScarceBacking)


def test_private_memory_grows_and_keeps_its_rows() -> None:
    columns = Columns(SPECS, 1 << 20, PrivateBacking)
    first = columns.capacity
    assert first < columns.limit
    columns.arrays[0][:] = np.arange(first)[:, None]
    columns.counts[:] = 5
    columns.grow(first + 1, first)
    assert columns.capacity >= 2 * first
    assert (columns.arrays[0][:first] == np.arange(first)[:, None]).all()
    assert (columns.counts[:first] == 5).all()
    assert not columns.counts[first:].any()


def test_nothing_grows_beyond_the_limit() -> None:
    columns = Columns(SPECS, 1 << 20, PrivateBacking)
    columns.grow(columns.limit, 0)
    assert columns.capacity == columns.limit
    with pytest.raises(ResourceExhausted, match=rf"full: it has room for {columns.limit} rows of 37 bytes"):
        columns.grow(columns.limit + 1, 0)
