"""A row store against a dictionary, over random histories."""

from collections import Counter

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import BlobStore, RowCursor, RowStore
from reverb_async.core.storage.backing import PlatformBacking, PrivateBacking
from reverb_async.core.variable import decode_rows, encode_rows

NUMBER = ArraySpec((2,), np.int64)
TEXT = ArraySpec((), np.dtype("U"))
CURSORS = 2


class RowStoreMachine(RuleBasedStateMachine):
    """Rows are what their last writer made them as long as somebody holds them, and nobody else's."""

    @initialize(
        kind=st.sampled_from([PlatformBacking, PrivateBacking]),
        padding=st.sampled_from([0, 60_000, 700_000]),  # extents of 64, 64 and 4 rows
    )
    def start(self, kind: type[PrivateBacking], padding: int) -> None:
        self.blobs = BlobStore(reserve_bytes=1 << 20, backing=kind)
        specs = [NUMBER, TEXT, ArraySpec((padding,), np.uint8)]
        self.store = RowStore(specs, self.blobs, reserve_bytes=(40 + padding) * 2000, backing=kind)
        self.cursors = [RowCursor(self.store) for _ in range(CURSORS)]
        self.references: Counter[int] = Counter()
        self.pins: Counter[int] = Counter()
        self.content: dict[int, tuple[int, str]] = {}
        self.written = 0
        self.high_water = 0
        self.reached = 0

    def held(self) -> list[int]:
        return sorted(self.references.keys() | self.pins.keys())

    def keep(self, rows: NDArray[np.int64]) -> None:
        assert rows.dtype == np.int64
        fresh = rows.tolist()
        assert len(set(fresh)) == len(fresh)
        assert not self.references.keys() & set(fresh)
        assert not self.pins.keys() & set(fresh)
        self.pins.update(fresh)
        for row in fresh:
            self.written += 1
            self.content[row] = (self.written, "x" * (self.written * 7 % 200))
            self.reached = max(self.reached, row + 1)
        numbers = np.array([[self.content[row][0]] * 2 for row in fresh], np.int64).reshape(-1, 2)
        self.store.write(0, rows, numbers)
        self.store.write(1, rows, encode_rows([self.content[row][1] for row in fresh], TEXT))

    @rule(n=st.sampled_from([1, 1, 2, 30, 64, 65, 200]))
    def lease(self, n: int) -> None:
        if len(self.held()) < 600:
            self.keep(self.store.lease(n))

    @rule(n=st.sampled_from([1, 1, 1, 5, 63, 130]), cursor=st.integers(0, CURSORS - 1))
    def take(self, n: int, cursor: int) -> None:
        if len(self.held()) < 600:
            self.keep(self.cursors[cursor].take(n))

    @rule(cursor=st.integers(0, CURSORS - 1))
    def close(self, cursor: int) -> None:
        self.cursors[cursor].close()

    def some(self, data: st.DataObject, among: list[int]) -> list[int]:
        """Draw rows: a stretch of those in question, or any, with repeats."""
        first = data.draw(st.integers(0, len(among) - 1))
        if data.draw(st.booleans()):
            return among[first : first + data.draw(st.integers(1, 100))]
        return data.draw(st.lists(st.sampled_from(among), max_size=20))

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        rows = self.some(data, self.held())
        self.store.retain(np.array(rows, np.int64))
        self.references.update(rows)

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        rows = self.some(data, self.held())
        self.store.pin(np.array(rows, np.int64))
        self.pins.update(rows)

    def give_up(self, rows: list[int], counter: Counter[int]) -> NDArray[np.int64]:
        rows = list((Counter(rows) & counter).elements())
        counter.subtract(rows)
        for row in set(rows):
            if counter[row] == 0:
                del counter[row]
            if row not in self.references and row not in self.pins:
                del self.content[row]
        return np.array(rows, np.int64)

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.store.release(self.give_up(self.some(data, sorted(self.references)), self.references))

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        self.store.unpin(self.give_up(self.some(data, sorted(self.pins)), self.pins))

    @rule()
    def unpin_what_is_referenced(self) -> None:
        self.store.unpin(self.give_up([row for row in self.pins if row in self.references], self.pins))

    @rule(n=st.sampled_from([1, 64, 1 << 16]))
    def trim(self, n: int) -> None:
        self.store.trim(n)

    @invariant()
    def rows_hold_what_was_written(self) -> None:
        rows = np.array(self.held(), np.int64)
        wanted = [self.content[row] for row in rows.tolist()]
        assert self.store.gather(0, rows)[:, 0].tolist() == [number for number, _ in wanted]
        assert decode_rows(self.store.gather_variable(1, rows), TEXT) == [text for _, text in wanted]

    @invariant()
    def usage_adds_up(self) -> None:
        usage = self.store.usage()
        assert usage.live_rows == len(self.references)
        assert usage.staged_rows == len(self.pins.keys() - self.references.keys())
        assert usage.pinned_rows == len(self.pins)
        assert usage.live_rows + usage.staged_rows + usage.free_rows == self.store.capacity
        assert usage.used_bytes == len(self.held()) * self.store.row_bytes
        assert self.blobs.usage().live_rows == len(self.held())

    @invariant()
    def memory_is_bounded(self) -> None:
        self.high_water = max(self.high_water, len(self.held()))
        assert self.reached <= 1.25 * self.high_water + 64 * (CURSORS + 1)


TestRowStoreHistories = RowStoreMachine.TestCase
TestRowStoreHistories.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
