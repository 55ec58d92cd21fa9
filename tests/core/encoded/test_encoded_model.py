"""Encoded items in tables against dictionaries, over random histories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from encoded_rig import add, block, decode, encode, item, layout_of, pinned, stored
from helpers import keys_of, make_state
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reverb_async.core.draw import Draw
from reverb_async.core.encoded import EncodedItem, EncodedItems
from reverb_async.core.gather import GatherPlan
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import Storage
from reverb_async.core.table_state import TableState
from reverb_async.core.variable import VariableRows, decode_rows

CHUNK_ROWS = 4

keys = st.integers(0, 7)
slices = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, CHUNK_ROWS - 1), st.integers(1, CHUNK_ROWS)), min_size=1, max_size=3
)


@dataclass(eq=False)
class PlainItem:
    key: int
    number: int
    shown: tuple[list[int], list[bytes]]
    chunks: set[int]
    sent: EncodedItem
    """The same for all tables that it was inserted into at once: so is its record."""
    is_out: bool = False


class EncodedMachine(RuleBasedStateMachine):
    """Whatever happens to encoded items, they read as they were sent, and leave nothing when they are gone."""

    @initialize(
        max_times_sampled=st.sampled_from([0, 1]),
        squeezed=st.booleans(),
        max_cached_bytes=st.sampled_from([0, 1000, 1 << 20]),
    )
    def start(self, max_times_sampled: int, squeezed: bool, max_cached_bytes: int) -> None:
        self.encoded = EncodedItems(Storage(reserve_bytes=1 << 24), decode, max_cached_bytes)
        self.squeezed = squeezed
        self.max_times_sampled = max_times_sampled
        nest = {"a": (ArraySpec((), np.int64), squeezed), "b": (ArraySpec((), bytes), False)}
        self.layout = layout_of(self.encoded, nest)
        self.tables = [make_state(4, max_times_sampled=max_times_sampled, seed=seed) for seed in range(2)]
        self.plain: list[dict[int, PlainItem]] = [{}, {}]
        self.draws: list[tuple[int, Draw, list[PlainItem]]] = []
        self.chunks: dict[int, bytes] = {}
        """All that were ever sent, by number."""
        self.held: dict[int, int] = {}
        """Rows of those their stream has not dropped, by number."""
        self.rows: dict[int, int] = {}
        self.inserted = 0

    @rule(count=st.integers(1, 3))
    def send_chunks(self, count: int) -> None:
        numbers = range(len(self.chunks), len(self.chunks) + count)
        for number in numbers:
            first = 10 * number
            texts = [b"x" * (first + at) for at in range(CHUNK_ROWS)]
            self.chunks[number] = encode(np.arange(first, first + CHUNK_ROWS), texts)
        rows = add(self.encoded, *[self.chunks[number] for number in numbers])
        self.held.update(zip(numbers, rows.tolist(), strict=True))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 50))
    def drop_a_chunk(self, which: int) -> None:
        number = list(self.held)[which % len(self.held)]
        self.encoded.drop(np.array([self.held.pop(number)]))

    @precondition(lambda self: self.held)
    @rule(named=st.lists(st.tuples(keys, slices), min_size=1, max_size=3), into=st.sampled_from([[0], [1], [0, 1]]))
    def insert(self, named: list[tuple[int, list[tuple[int, int, int]]]], into: list[int]) -> None:
        sent = [self.item_of(shown) for _, shown in named]
        written = block(self.encoded, self.layout, [each for each, *_ in sent], [key for key, _ in named])
        for table in into:
            self.tables[table].check_insert(written)
            self.tables[table].insert(written, 0.0)
            for (key, _), (each, shown, chunks) in zip(named, sent, strict=True):
                if key not in self.plain[table]:
                    self.inserted += 1
                    self.plain[table][key] = PlainItem(key, self.inserted, shown, chunks, each)
                    self.evict(table)
        self.encoded.drop_records(written)

    def item_of(self, shown: list[tuple[int, int, int]]) -> tuple[EncodedItem, tuple[list[int], list[bytes]], set[int]]:
        """Return an item of these (chunk, offset, length), what it shows, and the numbers of its chunks."""
        names = list(self.held)
        cut = [(names[chunk % len(names)], offset, min(length, CHUNK_ROWS - offset)) for chunk, offset, length in shown]
        firsts = [(cut[0][0], cut[0][1], 1)] if self.squeezed else cut
        numbers = list(dict.fromkeys(number for number, _, _ in (*cut, *firsts)))
        columns = [
            [(numbers.index(number), offset, length, tensor) for number, offset, length in parts]
            for tensor, parts in ((0, firsts), (1, cut))
        ]
        ints = [10 * number + offset + at for number, offset, length in firsts for at in range(length)]
        texts = [b"x" * (10 * number + offset + at) for number, offset, length in cut for at in range(length)]
        rows = [self.held[number] for number in numbers]
        return item(rows, *columns, trajectory=repr(cut).encode()), (ints, texts), set(numbers)

    def evict(self, table: int) -> None:
        plain = self.plain[table]
        while len(plain) > 4:
            del plain[min(plain, key=lambda key: plain[key].number)]

    @rule(table=st.integers(0, 1), n=st.integers(1, 5))
    def sample(self, table: int, n: int) -> None:
        state, plain = self.tables[table], self.plain[table]
        n = state.admitted_samples(n)
        if not n:
            return
        draw = state.draw(n)
        items = [plain[key] for key in draw.keys.tolist()]
        self.read(state, draw, items)
        if self.max_times_sampled:
            for each in items:
                each.is_out = True
                del plain[each.key]
        self.draws.append((table, draw, items))

    def read(self, state: TableState, draw: Draw, items: list[PlainItem]) -> None:
        (piece,) = GatherPlan(state.slots, draw.slots).run([None])
        ints, texts = piece.columns
        assert isinstance(texts, VariableRows)
        assert ints.tolist() == [value for each in items for value in each.shown[0]]
        assert decode_rows(texts, ArraySpec((), bytes)) == [value for each in items for value in each.shown[1]]
        for length, column in zip(piece.lengths, range(2), strict=True):
            assert np.broadcast_to(length, len(items)).tolist() == [len(each.shown[column]) for each in items]
        runs = [state.slots.runs(view, draw.slots) for view in range(2)]
        answers = self.encoded.answers(self.layout, runs[0], runs[1])
        for each, (trajectory, chunks) in zip(items, answers, strict=True):
            assert bytes(trajectory) == each.sent.trajectory
            assert sorted(map(bytes, chunks)) == sorted(self.chunks[number] for number in each.chunks)

    @precondition(lambda self: self.draws)
    @rule(which=st.integers(0, 50), back=st.booleans())
    def settle(self, which: int, back: bool) -> None:
        table, draw, items = self.draws.pop(which % len(self.draws))
        if not back:
            self.tables[table].acknowledge(draw)
            return
        self.tables[table].hand_back(draw)
        for each in reversed(items):
            if each.is_out and each.key not in self.plain[table]:
                each.is_out = False
                self.plain[table][each.key] = each

    @rule(table=st.integers(0, 1), gone=st.lists(keys, max_size=3))
    def delete(self, table: int, gone: list[int]) -> None:
        self.tables[table].mutate(np.zeros(0, np.uint64), np.zeros(0), np.array(gone, np.uint64))
        for key in gone:
            self.plain[table].pop(key, None)

    @rule(table=st.integers(0, 1))
    def reset(self, table: int) -> None:
        self.tables[table].reset()
        while self.tables[table].dismantle():
            pass
        self.plain[table].clear()
        self.draws = [draw for draw in self.draws if draw[0] != table]

    @invariant()
    def nothing_is_kept_that_nobody_needs(self) -> None:
        if not hasattr(self, "tables"):
            return
        for state, plain in zip(self.tables, self.plain, strict=True):
            assert keys_of(state) == sorted(plain)
        kept = [each for plain in self.plain for each in plain.values()]
        kept += [each for _, _, items in self.draws for each in items if each.is_out]
        chunks = set(self.held).union(*(each.chunks for each in kept))
        assert stored(self.encoded) == (len({id(each.sent) for each in kept}), len(chunks))
        assert pinned(self.encoded) == (0, len(self.held))
        assert self.encoded.tensors.nbytes <= self.encoded.tensors._max_bytes

    def teardown(self) -> None:
        if hasattr(self, "tables"):
            for table in range(2):
                self.reset(table)
            self.encoded.drop(np.array(list(self.held.values()), np.int64))
            assert stored(self.encoded) == (0, 0)
            assert pinned(self.encoded) == (0, 0)


TestEncodedItems = EncodedMachine.TestCase
TestEncodedItems.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
