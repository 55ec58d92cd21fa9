import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage.backing import Backing, PlatformBacking, PrivateBacking
from reverb_async.core.storage.blob_store import CLASS_BYTES, BlobStore
from reverb_async.core.variable import VariableRows, decode_rows, encode_rows
from reverb_async.errors import InvalidArgument, ResourceExhausted

BYTES = ArraySpec((), np.dtype("S"))
both_kinds = pytest.mark.parametrize("kind", [PlatformBacking, PrivateBacking])


def put(store: BlobStore, *values: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]":
    return store.put(encode_rows(values, BYTES))


def get(store: BlobStore, handles: "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]") -> list[object]:
    return list(decode_rows(store.get(handles, 0), BYTES))


def test_size_classes_waste_at_most_an_eighth() -> None:
    assert CLASS_BYTES[0] == 64
    assert CLASS_BYTES[-1] == 1 << 30
    least = CLASS_BYTES[:-1] + 1
    assert ((CLASS_BYTES[1:] - least) / CLASS_BYTES[1:]).max() <= 0.125


@both_kinds
@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.integers(0, 3000).map(lambda n: bytes([n % 251]) * n), max_size=40), data=st.data())
def test_blobs_of_all_sizes_come_back_in_any_order(
    kind: type[Backing], values: list[bytes], data: st.DataObject
) -> None:
    store = BlobStore(reserve_bytes=1 << 22, backing=kind)
    handles = put(store, *values)
    assert len(set(handles.tolist())) == len(values)
    assert 0 not in handles
    order = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=60) if values else st.just([]))
    assert get(store, handles[np.array(order, np.int64)]) == [values[at] for at in order]
    assert store.usage().live_rows == len(values)
    store.release(handles)
    assert store.usage().live_rows == 0


@given(shapes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
@settings(max_examples=25, deadline=None)
def test_arrays_keep_their_shapes(shapes: list[tuple[int, int, int]]) -> None:
    spec = ArraySpec((None, None, None), np.int16)
    arrays = [np.full(shape, at, np.int16) for at, shape in enumerate(shapes)]
    store = BlobStore(reserve_bytes=1 << 22)
    handles = store.put(encode_rows(arrays, spec))
    for wanted, got in zip(arrays, decode_rows(store.get(handles, 3), spec), strict=True):
        assert isinstance(got, np.ndarray)
        assert got.shape == wanted.shape
        assert (got == wanted).all()
    back = store.get(handles, 3)
    assert (back.sizes.dtype, back.shapes.dtype, back.data.dtype) == (np.int64, np.int32, np.uint8)
    assert back.data.flags.writeable


def test_views_show_what_copies_hold() -> None:
    store = BlobStore(reserve_bytes=1 << 22)
    values = [b"", b"a" * 64, b"b" * 1000, b"c" * 65, b"a" * 64]
    handles = put(store, *values)[[4, 2, 0, 3, 1, 2]]
    assert [bytes(view) for view in store.views(handles)] == get(store, handles)


def test_a_blob_lives_as_long_as_somebody_counts_it() -> None:
    store = BlobStore(reserve_bytes=1 << 22)
    handles = put(store, b"one", b"x" * 500)
    store.retain(handles[[0, 0, 1]])
    store.release(handles)
    assert get(store, handles) == [b"one", b"x" * 500]
    store.release(handles)
    assert store.usage().live_rows == 1
    assert get(store, handles[:1]) == [b"one"]
    store.release(handles[:1])
    assert store.usage().live_rows == 0


def test_the_largest_size_is_known_without_a_look_at_the_blobs() -> None:
    store = BlobStore(reserve_bytes=1 << 22)
    for size in (1, 500, 70):
        handles = put(store, b"x" * size)
        assert store.largest_bytes >= store.sizes(handles).max()
    assert store.largest_bytes <= 500 * 9 / 8


def test_freed_blobs_are_replaced_in_place() -> None:
    store = BlobStore(reserve_bytes=1 << 22)
    for _ in range(50):
        handles = put(store, *[b"a" * 100] * 300)
        store.release(handles)
    assert int((handles & np.uint64(0xFFFF_FFFF)).max()) <= 640


@pytest.mark.parametrize(("room", "size", "count"), [(1 << 17, 1000, 100), (6 << 20, 1 << 20, 6)])
def test_all_blobs_are_stored_or_none(room: int, size: int, count: int) -> None:
    store = BlobStore(reserve_bytes=room)
    with pytest.raises(ResourceExhausted, match="full"):
        put(store, b"small", *[b"x" * size] * count)
    usage = store.usage()
    assert (usage.live_rows, usage.staged_rows, usage.pinned_rows) == (0, 0, 0)
    handles = put(store, *[b"x" * size] * (count // 2))
    assert get(store, handles[:1]) == [b"x" * size]


def test_a_blob_too_large_for_the_reservation_is_refused() -> None:
    with pytest.raises(ResourceExhausted, match="too large for a store"):
        put(BlobStore(reserve_bytes=1 << 16), b"x" * (1 << 17))


def test_more_than_eight_dimensions_and_more_than_a_gibibyte_are_refused() -> None:
    store = BlobStore(reserve_bytes=1 << 22)
    none = np.empty(0, np.uint8)
    with pytest.raises(InvalidArgument, match="at most 8 dimensions, got 9"):
        store.put(VariableRows(none, np.zeros(1, np.int64), np.zeros((1, 9), np.int32)))
    with pytest.raises(InvalidArgument, match="at most 1073741824 bytes, got 1073741825"):
        store.put(VariableRows(none, np.array([(1 << 30) + 1]), np.zeros((1, 0), np.int32)))


def test_empty_calls_do_nothing() -> None:
    store = BlobStore(reserve_bytes=1 << 22)
    handles = put(store)
    assert handles.dtype == np.uint64
    assert get(store, handles) == []
    store.retain(handles)
    store.release(handles)
    assert not store.trim()


@pytest.mark.skipif(not PlatformBacking.sparse, reason="memory is not sparse on this platform")
def test_memory_of_freed_blobs_goes_back() -> None:
    store = BlobStore()
    handles = put(store, *[b"x" * 1000] * 20_000, *[b"x" * 3_000_000] * 4)
    assert store.usage().resident_bytes > 32_000_000
    store.release(handles)
    while store.trim():
        pass
    assert store.usage().resident_bytes < 4096 * 64
