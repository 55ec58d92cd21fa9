import threading
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import BlobStore, RowCursor, RowStore
from reverb_async.core.storage.backing import Backing, PlatformBacking, PrivateBacking
from reverb_async.core.variable import decode_rows, encode_rows
from reverb_async.errors import ResourceExhausted

FLOATS = ArraySpec((4,), np.float32)
FLAG = ArraySpec((), np.bool_)
TEXT = ArraySpec((), np.dtype("U"))
sparse_only = pytest.mark.skipif(not PlatformBacking.sparse, reason="memory is not sparse on this platform")
both_kinds = pytest.mark.parametrize("kind", [PlatformBacking, PrivateBacking])


def fill(store: RowStore, rows: NDArray[np.int64]) -> None:
    """Write a value made from its row number into each row of the first column."""
    store.write(0, rows, np.repeat(rows.astype(np.float32), 4).reshape(-1, 4))


def store_rows(store: RowStore, n: int) -> NDArray[np.int64]:
    rows = store.lease(n)
    store.retain(rows)
    store.unpin(rows)
    return rows


def trim_all(store: RowStore) -> None:
    while store.trim():
        pass


@both_kinds
@pytest.mark.parametrize("n", [0, 1, 2, 64, 300, 5000])
def test_what_is_written_is_gathered(kind: type[Backing], n: int) -> None:
    store = RowStore([FLOATS, FLAG], reserve_bytes=1 << 22, backing=kind)
    rows = store.lease(n)
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == n
    fill(store, rows)
    store.write(1, rows, rows % 3 == 0)
    mixed = np.random.default_rng(n).permutation(np.concatenate((rows, rows)))
    for wanted in (rows, rows[:1], rows[::-1], mixed):
        values = store.gather(0, wanted)
        assert values.ctypes.data % 64 == 0
        assert values.shape == (len(wanted), 4)
        assert (values == wanted[:, None]).all()
        assert (store.gather(1, wanted) == (wanted % 3 == 0)).all()
    out = np.empty((n, 4), np.float32)
    assert store.gather(0, rows, out) is out
    assert (out == rows[:, None]).all()
    assert store.gather(0, slice(1, 3)).shape == (2, 4)
    for row in rows[:1].tolist():
        assert store.gather(0, slice(row, row + 1)).tolist() == [[row] * 4]


def test_scattered_rows_are_written_where_they_belong() -> None:
    store = RowStore([FLOATS], reserve_bytes=1 << 22)
    rows = store.lease(100)
    fill(store, rows)
    fill(store, np.array([70, 3, 5], np.int64))
    assert (store.gather(0, rows) == rows[:, None]).all()


def test_gathered_arrays_belong_to_the_caller() -> None:
    store = RowStore([FLOATS], reserve_bytes=1 << 22)
    rows = store.lease(10)
    fill(store, rows)
    for wanted in (rows, rows[::-1]):
        store.gather(0, wanted)[...] = -1
    assert (store.gather(0, rows) == rows[:, None]).all()


@both_kinds
def test_a_full_store_says_so_and_stays_as_it_is(kind: type[Backing]) -> None:
    store = RowStore([FLOATS], reserve_bytes=24 * 640, backing=kind)
    rows = store.lease(600)
    with pytest.raises(ResourceExhausted, match=r"float32 \[4\].*full.*room for 640 rows of 16 bytes.*641 are needed"):
        store.lease(41)
    assert store.usage().staged_rows == 600
    store.lease(40)
    store.unpin(rows[100:141])
    assert len(store.lease(41)) == 41


def test_rows_are_free_only_without_references_and_pins() -> None:
    store = RowStore([FLOATS], reserve_bytes=24 * 64)
    rows = store.lease(64)
    store.retain(rows[[5, 5]])
    store.pin(rows[6:7])
    store.unpin(rows)
    for holder in (store.release, store.release):
        with pytest.raises(ResourceExhausted):
            store.lease(63)
        holder(rows[5:6])
    assert rows[6] not in store.lease(63)
    store.unpin(rows[6:7])
    assert store.lease(1).tolist() == [rows[6]]


@sparse_only
def test_pinned_rows_keep_their_content_through_release_reuse_and_trim() -> None:
    store = RowStore([FLOATS])
    rows = store_rows(store, 1 << 19)
    fill(store, rows)
    pinned = np.sort(np.random.default_rng(1).choice(rows, 500, replace=False))
    store.pin(pinned)
    store.release(rows)
    trim_all(store)
    again = store.lease(1 << 18)
    store.write(0, again, np.full((len(again), 4), -1, np.float32))
    assert not np.isin(again, pinned).any()
    assert (store.gather(0, pinned) == pinned[:, None]).all()
    store.unpin(pinned)
    assert store.usage().pinned_rows == 1 << 18


@both_kinds
def test_usage_adds_up(kind: type[Backing]) -> None:
    store = RowStore([FLOATS, FLAG], reserve_bytes=1 << 20, backing=kind)
    rows = store.lease(300)
    store.retain(rows[:200])
    store.unpin(rows[:100])
    usage = store.usage()
    assert (usage.live_rows, usage.staged_rows, usage.pinned_rows) == (200, 100, 200)
    assert usage.live_rows + usage.staged_rows + usage.free_rows == store.capacity
    assert usage.used_bytes == 300 * 17
    assert usage.resident_bytes >= 300 * 8
    assert all(type(value) is int for value in (usage.live_rows, usage.staged_rows, usage.pinned_rows))


def test_text_is_kept_and_dropped_with_its_row() -> None:
    blobs = BlobStore(reserve_bytes=1 << 22)
    store = RowStore([TEXT, FLAG], blobs, reserve_bytes=1 << 20)
    rows = store.lease(5)
    words = ["", "a", "ä" * 100, "b" * 5000, "c"]
    store.write(0, rows, encode_rows(words, TEXT))
    order = np.array([3, 0, 3, 2], np.int64)
    assert decode_rows(store.gather_variable(0, rows[order]), TEXT) == [words[at] for at in order]
    store.retain(rows[1:3])
    store.unpin(rows)
    assert blobs.usage().live_rows == 2
    assert decode_rows(store.gather_variable(0, rows[1:3]), TEXT) == words[1:3]
    store.release(rows[1:3])
    assert blobs.usage().live_rows == 0
    unwritten = store.lease(5)
    store.unpin(unwritten)
    assert blobs.usage().live_rows == 0


def test_text_written_over_other_text_drops_it() -> None:
    blobs = BlobStore(reserve_bytes=1 << 22)
    store = RowStore([TEXT], blobs, reserve_bytes=1 << 20)
    rows = store.lease(2)
    store.write(0, rows, encode_rows(["one", "two"], TEXT))
    store.write(0, rows[1:], encode_rows(["three"], TEXT))
    assert decode_rows(store.gather_variable(0, rows), TEXT) == ["one", "three"]
    assert blobs.usage().live_rows == 2


def test_two_variable_columns_do_not_disturb_each_other() -> None:
    blobs = BlobStore(reserve_bytes=1 << 22)
    ragged = ArraySpec((None, 2), np.int8)
    store = RowStore([TEXT, ragged], blobs, reserve_bytes=1 << 20)
    rows = store.lease(2)
    store.write(0, rows, encode_rows(["one", "two"], TEXT))
    store.write(1, rows, encode_rows([np.ones((3, 2), np.int8), np.zeros((0, 2), np.int8)], ragged))
    assert store.gather_variable(1, rows).shapes.tolist() == [[3, 2], [0, 2]]
    store.unpin(rows)
    assert blobs.usage().live_rows == 0


def test_a_store_with_text_needs_a_place_for_it() -> None:
    with pytest.raises(AssertionError, match="blob store"):
        RowStore([TEXT], reserve_bytes=1 << 20)


def test_rows_of_a_stream_stay_consecutive_beside_other_streams() -> None:
    store = RowStore([FLOATS], reserve_bytes=1 << 22)
    one, other = RowCursor(store), RowCursor(store)
    mine, others = [], []
    for _ in range(64):
        mine.append(one.take(1))
        others.append(other.take(3))
    assert (np.diff(np.concatenate(mine)) == 1).all()
    assert np.count_nonzero(np.diff(np.concatenate(others)) != 1) <= 2


def test_a_cursor_takes_what_is_left_of_its_extent_first() -> None:
    store = RowStore([FLOATS], reserve_bytes=1 << 22)
    cursor = RowCursor(store)
    assert cursor.take(0).tolist() == []
    assert cursor.take(60).tolist() == list(range(60))
    assert cursor.take(70).tolist() == list(range(60, 130))
    assert store.usage().staged_rows == 130
    cursor.close()
    cursor.close()
    assert store.usage().staged_rows == 130
    assert store.usage().free_rows == store.capacity - 130
    assert cursor.take(1).tolist() == [192]


def test_a_cursor_that_finds_no_room_takes_nothing() -> None:
    store = RowStore([FLOATS], reserve_bytes=24 * 128)
    cursor = RowCursor(store)
    cursor.take(100)
    with pytest.raises(ResourceExhausted):
        cursor.take(29)
    assert cursor.take(28).tolist() == list(range(100, 128))


@both_kinds
@pytest.mark.parametrize("order", ["fifo", "lifo", "random"])
@pytest.mark.parametrize("step", [1, 7, 256])
def test_memory_follows_the_high_water_mark_whatever_the_order_of_freeing(
    kind: type[Backing], order: str, step: int
) -> None:
    rng = np.random.default_rng(3)
    store = RowStore([FLOATS], reserve_bytes=1 << 24, backing=kind)
    cursors = [RowCursor(store) for _ in range(5)]
    live, high_water, reached = np.empty(0, np.int64), 0, 0
    for turn in range(800 if step < 100 else 400):
        rows = cursors[turn % 5].take(step)
        store.retain(rows)
        store.unpin(rows)
        live = np.concatenate((live, rows))
        high_water, reached = max(high_water, len(live)), max(reached, int(rows.max()) + 1)
        while len(live) > 300 + 5 * step + rng.integers(0, 100 + step):
            at = {"fifo": 0, "lifo": len(live) - 3, "random": int(rng.integers(len(live) - 3))}[order]
            store.release(live[at : at + 3])
            live = np.delete(live, slice(at, at + 3))
    assert store.usage().live_rows == len(live)
    assert reached <= 1.25 * high_water + 64 * len(cursors)


@pytest.mark.parametrize("rounds", [30])
def test_random_turnover_of_a_large_store_stays_within_the_bound(rounds: int) -> None:
    rng = np.random.default_rng(4)
    store = RowStore([FLOATS])
    live = store_rows(store, 200_000)
    reached = 0
    for _ in range(rounds):
        live = rng.permutation(live)
        store.release(live[:20_000])
        rows = store_rows(store, 20_000)
        live = np.concatenate((live[20_000:], rows))
        reached = max(reached, int(rows.max()) + 1)
    assert reached <= 1.25 * 200_000


@sparse_only
@pytest.mark.parametrize(
    "order",
    [lambda rows: rows, lambda rows: rows[::-1], np.random.default_rng(5).permutation],
    ids=["fifo", "lifo", "random"],
)
def test_all_memory_goes_back_when_everything_is_released(
    order: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> None:
    store = RowStore([FLOATS, FLAG, ArraySpec((3,), np.uint8)])
    rows = store_rows(store, 400_000)
    fill(store, rows)
    store.write(1, rows, np.ones(len(rows), np.bool_))
    full = store.usage().resident_bytes
    assert full >= 400_000 * 17
    for part in np.array_split(order(rows), 40):
        store.release(part)
    assert store.usage().resident_bytes < full  # some went on the way
    trim_all(store)
    assert store.usage().resident_bytes == 0


@sparse_only
def test_a_small_store_keeps_its_memory_until_it_is_trimmed_empty() -> None:
    store = RowStore([FLOATS])
    rows = store_rows(store, 10_000)
    fill(store, rows)
    full = store.usage().resident_bytes
    store.release(rows[:-1])
    assert not store.trim()
    assert store.usage().resident_bytes == full
    store.release(rows[-1:])
    assert not store.trim()
    assert store.usage().resident_bytes == 0


@sparse_only
def test_free_memory_above_an_eighth_goes_back_without_being_asked() -> None:
    store = RowStore([ArraySpec((1000,), np.uint8)])
    rows = store_rows(store, 200_000)
    store.write(0, rows, np.ones((len(rows), 1000), np.uint8))
    for part in np.array_split(rows[:100_000], 400):
        store.release(part)
    usage = store.usage()
    assert usage.resident_bytes <= 1.25 * usage.used_bytes + (6 << 20)


@sparse_only
def test_large_rows_go_back_one_by_one() -> None:
    size = 5 << 20
    store = RowStore([ArraySpec((size,), np.uint8)], reserve_bytes=1 << 30)
    rows = store_rows(store, 10)
    for row in rows:
        store.write(0, rows[row : row + 1], np.ones((1, size), np.uint8))
    for at in (3, 8, 0, 5, 6, 9):
        store.release(rows[at : at + 1])
    trim_all(store)
    assert store.usage().resident_bytes <= 6 * size
    assert store.gather(0, rows[4:5]).all()


class WatchedBacking(PlatformBacking):  # type: ignore[misc,valid-type]  # which class that is depends on the platform
    """Remembers how much is given back."""

    given_back = 0

    def release(self, start: int, stop: int) -> None:
        WatchedBacking.given_back += stop - start
        super().release(start, stop)


def test_a_trim_handles_a_bounded_number_of_rows_and_bytes() -> None:
    width = 24
    store = RowStore([FLOATS], backing=WatchedBacking, slack_bytes=1 << 40)  # nothing goes back on its own
    store.release(store_rows(store, 300_000))
    for limit, most in ((1 << 14, 1 << 14), (1 << 16, 1 << 16), (1 << 30, 1 << 16)):
        WatchedBacking.given_back = 0
        assert store.trim(limit)
        assert 0 < WatchedBacking.given_back <= most * width + 4096 * 64
    store = RowStore([ArraySpec((1 << 20,), np.uint8)], backing=WatchedBacking, slack_bytes=1 << 40)
    store.release(store_rows(store, 100))
    WatchedBacking.given_back = 0
    store.trim()
    assert 0 < WatchedBacking.given_back <= 33 << 20


def test_rows_gathered_in_a_thread_are_those_that_were_pinned() -> None:
    for kind in (PlatformBacking, PrivateBacking):
        store = RowStore([FLOATS], reserve_bytes=1 << 24, backing=kind)
        rows = store_rows(store, 1000)
        fill(store, rows)
        store.pin(rows)
        store.release(rows)
        results: list[bool] = []

        def gather(store: RowStore = store, rows: NDArray[np.int64] = rows, results: list[bool] = results) -> None:
            results.extend(bool((store.gather(0, rows) == rows[:, None]).all()) for _ in range(50))

        thread = threading.Thread(target=gather)
        thread.start()
        for _ in range(100):
            fresh = store.lease(2000)
            fill(store, fresh)
        thread.join()
        assert all(results)
        store.unpin(rows)
