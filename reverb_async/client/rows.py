"""Inserting rows: data that are items as they stand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.batch_columns import BatchColumns
from reverb_async.client.checks import MAX_VARIABLE_RANK, Target, check_timeout, targets_of, widened
from reverb_async.client.connector import NOW_S
from reverb_async.client.insert_session import CLOSE_S, Connection, InsertSession
from reverb_async.client.outgoing import MAX_MESSAGE_BYTES, Block, Outgoing, RowGroup, SentLayout
from reverb_async.client.row_blocks import (
    MAX_ROWS,
    BatchRows,
    Call,
    Deadline,
    RowLayout,
    SingleRows,
    as_rows_of,
    part_of,
)
from reverb_async.core.info import TableInfo
from reverb_async.core.leaf import Leaf
from reverb_async.core.nest import Structure, flatten
from reverb_async.core.spec import ArraySpec, as_leaf, leaf_spec
from reverb_async.core.variable import VariableRows
from reverb_async.errors import (
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    RateLimiterTimeout,
    ReplayError,
    SignatureMismatch,
    TableNotFound,
    Unavailable,
)

Tables = tuple[str, ...]
_CACHED = 1024


class RowInserter:
    """Inserts rows over one stream, which all calls of a client share.

    Single rows that are inserted in the same turn of the loop travel together. A stream that breaks is opened again, and rows
    that had not arrived are sent again: each enters once.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._session: InsertSession | None = None
        self._is_closed = False
        self._kinds = _RowKinds()
        self._open: dict[tuple[RowLayout, Tables], SingleRows] = {}
        self._unsettled: dict[Block, None] = {}

    async def insert(
        self, data: object, priorities: Mapping[str, float | None], timeout: float | None = None
    ) -> dict[str, int]:
        """Insert one row into one or several tables, in one step. See `Client.insert`."""
        check_timeout(timeout)
        self._check_usable()
        leaves, structure = flatten(data)
        if not leaves:
            raise InvalidArgument("there is nothing to insert: the data have no values")
        values = [_kept(leaf, path) for leaf, path in zip(leaves, structure.paths, strict=True)]
        deadline = Deadline(timeout)
        targets = await self._targets(priorities, timeout)
        try:
            row, layout = self._kinds.row(structure, values, targets)
        except SignatureMismatch:
            targets = await self._targets(priorities, timeout, refresh=True)
            row, layout = self._kinds.row(structure, values, targets)
        tables = tuple(targets)
        weights = [target.priority(priorities[name]) for name, target in targets.items()]
        keys = (await self._keys(len(tables), timeout)).tolist()
        call = Call(1)
        block = self._open_block(layout, tables, deadline.left())
        block.add(call, row, keys, weights)
        await self._wait(call, [block], deadline.left())
        if call.error is not None:
            raise _refused(call.error, {name: np.empty(0, np.uint64) for name in tables})
        return dict(zip(tables, keys, strict=True))

    async def insert_batch(
        self, batch: object, priorities: Mapping[str, Any], timeout: float | None = None
    ) -> dict[str, NDArray[np.uint64]]:
        """Insert rows, in their order. See `Client.insert_batch`."""
        check_timeout(timeout)
        self._check_usable()
        columns = BatchColumns(batch)
        deadline = Deadline(timeout)
        targets = await self._targets(priorities, timeout)
        try:
            layout = self._kinds.batch(columns, targets)
        except SignatureMismatch:
            targets = await self._targets(priorities, timeout, refresh=True)
            layout = self._kinds.batch(columns, targets)
        tables, count = tuple(targets), columns.count
        weights = np.stack([target.priorities(priorities[name], count) for name, target in targets.items()])
        keys = (await self._keys(len(tables) * count, timeout)).reshape(len(tables), count)
        data = [as_rows_of(column, spec) for column, spec in zip(columns.columns, layout.specs, strict=True)]
        cuts = _cuts(data, count)
        # With a timeout the next rows go out when those before them are in: what is admitted must be the first rows.
        turns = [cuts] if timeout is None else [[cut] for cut in cuts]
        admitted: list[tuple[int, int]] = []
        for turn in turns:
            call = Call(turn[-1][1] - turn[0][0])
            blocks = [
                BatchRows(
                    layout,
                    tables,
                    deadline.left(),
                    call,
                    start,
                    np.ascontiguousarray(keys[:, start:stop]),
                    np.ascontiguousarray(weights[:, start:stop]),
                    [part_of(column, start, stop) for column in data],
                    self._forget,
                )
                for start, stop in turn
            ]
            for block in blocks:
                self._submit(block)
            await self._wait(call, blocks, deadline.left())
            admitted += call.admitted
            if call.error is not None:
                is_in = np.zeros(count, np.bool_)
                for start, stop in admitted:
                    is_in[start:stop] = True
                raise _refused(call.error, {name: one[is_in] for name, one in zip(tables, keys, strict=True)})
        return dict(zip(tables, keys, strict=True))

    async def close(self) -> None:
        """End; calls that wait raise `Closed`. Idempotent."""
        self._is_closed = True
        if self._session is not None:
            if self._unsettled:
                self._session.drop(Closed("the client was closed while the call waited"))
            await self._session.close()

    # -- steps of a call ----------------------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._is_closed:
            raise Closed(f"the client of {self._connection.address} was closed")

    async def _targets(
        self, priorities: Mapping[str, Any], timeout: float | None, *, refresh: bool = False
    ) -> dict[str, Target]:
        if not isinstance(priorities, Mapping) or not priorities:
            raise InvalidArgument(
                f"priorities say which tables the data go to, as in priorities={{'replay': 1.0}}, got {priorities!r:.60}"
            )
        async with self._answer_within(timeout):
            known = self._kinds.learn(await self._connection.tables(refresh))
            if not known.keys() >= priorities.keys():
                known = self._kinds.learn(await self._connection.tables(True))
        for name in priorities:
            if name not in known:
                raise TableNotFound(name, known)
        return {name: known[name] for name in priorities}

    async def _keys(self, count: int, timeout: float | None) -> NDArray[np.uint64]:
        keys = self._connection.try_next_keys(count)
        if keys is None:
            async with self._answer_within(timeout):
                keys = await self._connection.next_keys(count)
        return keys

    @asynccontextmanager
    async def _answer_within(self, timeout: float | None) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(None if timeout is None else max(timeout, NOW_S)):
                yield
        except TimeoutError as error:
            if isinstance(error, ReplayError):
                raise
            raise self._no_answer(timeout) from None

    def _no_answer(self, timeout: float | None) -> DeadlineExceeded:
        return DeadlineExceeded(f"inserting: {self._connection.address} did not answer within {timeout} s")

    def _live_session(self) -> InsertSession:
        if self._session is None or (self._session.error is not None and not self._is_closed):
            self._session = InsertSession(self._connection, self, "insert()")
        return self._session

    def _submit(self, block: Block) -> None:
        self._check_usable()
        self._live_session().submit(block)
        self._unsettled[block] = None

    def _open_block(self, layout: RowLayout, tables: Tables, timeout: float | None) -> SingleRows:
        """Return a block that takes another row: those with a timeout travel alone, for time runs out for a whole block."""
        block = self._open.get((layout, tables)) if timeout is None else None
        if block is None or block.is_full:
            block = SingleRows(layout, tables, timeout, self._forget, self._insert_again)
            self._submit(block)
            if timeout is None:
                self._open[layout, tables] = block
        return block

    def _forget(self, block: Block) -> None:
        self._unsettled.pop(block, None)
        if isinstance(block, SingleRows) and self._open.get((block.layout, block.tables)) is block:
            del self._open[block.layout, block.tables]

    def _insert_again(self, block: SingleRows, at: int) -> None:
        call = block.calls[at]
        try:
            again = self._open_block(block.layout, block.tables, None)
        except ReplayError as error:
            call.settled(0, 1, error)
        else:
            again.add(call, block.rows[at], block.keys[at], block.priorities[at])

    async def _wait(self, call: Call, blocks: Sequence[Block], timeout: float | None) -> None:
        """Wait until all rows are settled; the server keeps the time, as long as it answers."""
        try:
            if timeout is None:
                await call.future
            else:
                patience = max(timeout, NOW_S)
                await asyncio.wait({call.future}, timeout=patience)
                if not call.future.done() and all(block.sealed for block in blocks):
                    await asyncio.wait({call.future}, timeout=timeout + NOW_S - patience)
        except asyncio.CancelledError:
            await self._withdraw(call, blocks)
            raise
        if not call.future.done():
            await self._withdraw(call, blocks)
            if call.error is not None or call.unsettled:
                raise self._no_answer(timeout)

    async def _withdraw(self, call: Call, blocks: Sequence[Block]) -> None:
        """Give up; returns when the server has let go of the rows, or does not answer."""
        call.is_withdrawn = True
        if call.future.cancelled():
            call.future = asyncio.get_running_loop().create_future()
        error = RateLimiterTimeout("the call was withdrawn")
        for block in blocks:
            if block not in self._unsettled:
                # Settled, or the row went into another block when others of its own were withdrawn.
                block = next((one for one in self._unsettled if isinstance(one, SingleRows) and call in one.calls), block)
            if isinstance(block, SingleRows) and not block.sealed and len(block) > 1:
                block.remove(call)
                call.settled(0, 1, error)
            elif block in self._unsettled:
                self._live_session().withdraw(block, error)
        if call.unsettled:
            await asyncio.wait({call.future}, timeout=CLOSE_S)

    # -- for the session ----------------------------------------------------------------------------------------------

    def all_sent(self, out: Outgoing) -> None:
        """Do nothing: rows are released in the message that brings them."""

    def interrupted(self, error: Unavailable) -> None:
        """Let the calls that wait fail."""
        for block in list(self._unsettled):
            self._live_session().withdraw(block, error)

    def failed(self, error: ReplayError) -> None:
        """Do nothing: the calls know, and the next one opens another session."""


class _RowKinds:
    """Kinds of rows and how they are sent: learnt from the first of each kind, and from the tables' signatures."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._infos: dict[str, TableInfo] | None = None
        self._known: dict[str, Target] = {}
        self._layouts: dict[object, RowLayout] = {}
        self._fits: dict[object, object] = {}
        self._wanted: dict[tuple[Structure, Tables], list[ArraySpec | None]] = {}

    def learn(self, tables: dict[str, TableInfo]) -> dict[str, Target]:
        """Return what is known of the tables."""
        if tables is not self._infos:
            self._infos = tables
            self._known = targets_of(tables)
            self._fits.clear()
            self._wanted.clear()
        return self._known

    def row(
        self, structure: Structure, values: Sequence[object], targets: dict[str, Target]
    ) -> tuple[list[Leaf], RowLayout]:
        """Return one row's leaves, and how it is sent.

        Raises:
            SignatureMismatch: a table wants something else.
            InvalidArgument: a value is nothing that a column can hold.
        """
        tables = tuple(targets)
        wanted = self._wants(structure, targets)
        row = [as_leaf(value, path, want) for value, path, want in zip(values, structure.paths, wanted, strict=True)]
        key = (structure, tables, tuple([(leaf.dtype, leaf.shape) if isinstance(leaf, np.ndarray) else type(leaf) for leaf in row]))
        kind = self._fits.get(key)
        if kind is None or kind not in self._layouts:
            kind = self._fit(structure, [leaf_spec(leaf) for leaf in row], targets)
            if len(self._fits) >= _CACHED:
                self._fits.clear()
            self._fits[key] = kind
        return row, self._layouts[kind]

    def batch(self, columns: BatchColumns, targets: dict[str, Target]) -> RowLayout:
        """Return how a batch's rows are sent. Raises as `row`."""
        wanted = self._wants(columns.structure, targets)
        columns.fit_texts(wanted)
        for name, target in targets.items():
            columns.check([target.by_path.get(path) for path in columns.structure.paths], f"table {name!r}")
        return self._layouts[self._fit(columns.structure, columns.specs, targets)]

    def _wants(self, structure: Structure, targets: dict[str, Target]) -> list[ArraySpec | None]:
        key = (structure, tuple(targets))
        wanted = self._wanted.get(key)
        if wanted is None:
            wanted = [
                next((target.by_path[path] for target in targets.values() if path in target.by_path), None)
                for path in structure.paths
            ]
            if len(self._wanted) >= _CACHED:
                self._wanted.clear()
            self._wanted[key] = wanted
        return wanted

    def _fit(self, structure: Structure, specs: Sequence[ArraySpec], targets: dict[str, Target]) -> object:
        """Check specs against the signatures, and make a layout that takes them; return its key."""
        for name, target in targets.items():
            if target.signature is not None:
                target.signature.check(structure, specs, what=f"table {name!r}")
        kind = (structure, tuple((spec.dtype, len(spec.shape)) for spec in specs))
        layout = self._layouts.get(kind)
        if layout is None:
            wanted = self._wants(structure, targets)
            fitting = tuple(_loosened(spec, want) for spec, want in zip(specs, wanted, strict=True))
        else:
            fitting = tuple(widened(old, new.shape) or new for old, new in zip(layout.specs, specs, strict=True))
        if layout is None or fitting != layout.specs:
            number = next(self._ids)
            group = RowGroup(number, fitting)
            leaves = [(0, column, True) for column in range(len(fitting))]
            if len(self._layouts) >= _CACHED:
                self._layouts.clear()
            self._layouts[kind] = RowLayout(SentLayout(number, structure, [group], leaves), group)
        return kind


def _loosened(spec: ArraySpec, wanted: ArraySpec | None) -> ArraySpec:
    """Return the signature's spec if extents may differ there."""
    if wanted is not None and None in wanted.shape and 0 < len(wanted.shape) <= MAX_VARIABLE_RANK:
        return wanted
    return spec


def _kept(leaf: object, path: tuple[str | int, ...]) -> object:
    """Return what does not change when the caller goes on: arrays are copied."""
    if type(leaf) in (bool, int, float, complex, str, bytes):
        return leaf
    value = as_leaf(leaf, path)
    return value.copy() if isinstance(value, np.ndarray) else value


def _cuts(columns: Sequence[Any], count: int) -> list[tuple[int, int]]:
    """Cut rows into parts (start, stop) that make good messages."""
    nbytes = sum(column.data.nbytes if isinstance(column, VariableRows) else column.nbytes for column in columns)
    step = max(1, min(MAX_ROWS, MAX_MESSAGE_BYTES * count // max(nbytes, 1)))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _refused(error: ReplayError, admitted: dict[str, NDArray[np.uint64]]) -> ReplayError:
    if isinstance(error, RateLimiterTimeout):
        return RateLimiterTimeout(str(error), admitted)
    return error.with_traceback(None)
