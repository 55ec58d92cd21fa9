import gc
import weakref

import numpy as np
import pytest

from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import MAX_KINDS, Storage
from reverb_async.core.storage.backing import PrivateBacking
from reverb_async.core.variable import encode_rows
from reverb_async.errors import ResourceExhausted

FLOATS = ArraySpec((2,), np.float32)
TEXT = ArraySpec((), np.dtype("U"))


def test_groups_of_one_kind_share_a_store() -> None:
    storage = Storage(reserve_bytes=1 << 20)
    store = storage.group([FLOATS, TEXT])
    assert storage.group((FLOATS, ArraySpec((), np.dtype("U")))) is store
    assert storage.group([TEXT, FLOATS]) is not store


def test_a_store_goes_with_its_last_reference() -> None:
    storage = Storage(reserve_bytes=1 << 20)
    store = storage.group([FLOATS])
    column, gone = store.columns[0], weakref.ref(store)
    rows = store.lease(4)
    store.write(0, rows, np.ones((4, 2), np.float32))
    view = column[rows[0] : rows[0] + 4]
    del store, column
    gc.collect()
    assert gone() is None
    assert view.all()
    assert storage.usage().used_bytes == 0


def test_the_number_of_kinds_is_limited_but_dead_ones_do_not_count() -> None:
    storage = Storage(reserve_bytes=1 << 16, backing=PrivateBacking)
    stores = [storage.group([ArraySpec((size,), np.uint8)]) for size in range(MAX_KINDS)]
    with pytest.raises(ResourceExhausted, match="256 kinds"):
        storage.group([FLOATS])
    assert storage.group([ArraySpec((3,), np.uint8)]) is stores[3]
    del stores[7]
    gc.collect()
    assert storage.group([FLOATS]).row_bytes == 8


def test_usage_adds_up_rows_and_blobs() -> None:
    storage = Storage(reserve_bytes=1 << 20)
    numbers, texts = storage.group([FLOATS]), storage.group([TEXT])
    rows = numbers.lease(10)
    numbers.retain(rows)
    named = texts.lease(3)
    texts.write(0, named, encode_rows(["a", "b", "c"], TEXT))
    usage = storage.usage()
    assert usage.live_rows == 10 + 3
    assert usage.staged_rows == 3
    assert usage.used_bytes == numbers.usage().used_bytes + texts.usage().used_bytes + storage.blobs.usage().used_bytes
    texts.unpin(named)
    assert storage.usage().live_rows == 10
    assert storage.blobs.usage().used_bytes == 0


def test_trimming_reaches_all_stores() -> None:
    storage = Storage(reserve_bytes=1 << 26)
    numbers, texts = storage.group([FLOATS]), storage.group([TEXT])
    for store in (numbers, texts):
        store.unpin(store.lease(50_000))
    blobs = storage.blobs.put(encode_rows(["x" * 100] * 50_000, TEXT))
    storage.blobs.release(blobs)
    while storage.trim(1 << 14):
        pass
    if numbers.backing.sparse:
        assert storage.usage().resident_bytes < 1 << 18
