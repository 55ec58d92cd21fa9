"""The account of a storage is what its stores use, after any steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import Account, RowCursor, RowStore, Storage
from reverb_async.core.variable import encode_rows

TEXT = ArraySpec((), np.dtype("U"))


def counted(storage: Storage) -> int:
    """Count anew what the rows in use take."""
    pools = [pool for pool, _ in storage.blobs._pools.values()]
    stores: list[RowStore] = [*storage._groups.values(), *pools]
    return sum((store._extents.used_rows - store.reserved_rows) * store.width for store in stores)


@given(st.lists(st.tuples(st.sampled_from(["lease", "take", "text", "free", "close"]), st.integers(1, 70))))
def test_the_account_is_what_rows_in_use_take(steps: list[tuple[str, int]]) -> None:
    storage = Storage(reserve_bytes=1 << 24)
    plain, text = storage.group((ArraySpec((3,), np.float64),)), storage.group((TEXT,))
    cursors = {store: RowCursor(store) for store in (plain, text)}
    held: list[tuple[RowStore, np.ndarray]] = []
    for step, n in steps:
        if step == "lease":
            held.append((plain, plain.lease(n)))
        elif step == "take":
            held.append((plain, cursors[plain].take(n)))
        elif step == "text":
            rows = cursors[text].take(n)
            text.write(0, rows, encode_rows(["x" * (at * n) for at in range(n)], TEXT))
            held.append((text, rows))
        elif step == "close":
            cursors[plain].close()
        elif held:
            store, rows = held.pop(n % len(held))
            store.unpin(rows)
        assert storage.account.used == counted(storage)
    for store, rows in held:
        store.unpin(rows)
    assert storage.account.used == counted(storage) == 0


def test_who_waits_is_told_of_what_is_given_back() -> None:
    told = []

    class Told(Account):
        def became_less(self) -> None:
            told.append(self.used)

    account = Told()
    store = Storage(reserve_bytes=1 << 20, account=account).group((ArraySpec((), np.int64),))
    rows = store.lease(4)
    store.unpin(rows[:2])
    account.is_waited_for = True
    store.unpin(rows[2:])
    assert told == [0]
    assert account.used == 0


def test_without_a_bound_nothing_is_full() -> None:
    account = Account()
    account.used = 1 << 60
    assert account.used <= account.grow_below <= account.stage_below
    assert account.grow_below == pytest.approx(float("inf"))
