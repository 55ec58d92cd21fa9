"""Inserting rows: data that are items as they stand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.checks import Target, check_timeout
from reverb_async.client.retry import NOW_S
from reverb_async.client.writing.batch_columns import BatchColumns
from reverb_async.client.writing.connection import Connection
from reverb_async.client.writing.copies import MAX_COPY_BYTES, Copies
from reverb_async.client.writing.insert_session import CLOSE_S, InsertSession
from reverb_async.client.writing.outgoing import MAX_MESSAGE_BYTES, Block, Outgoing
from reverb_async.client.writing.row_blocks import MAX_ROWS, BatchRows, Call, Deadline, SingleRows
from reverb_async.client.writing.row_kinds import RowKinds
from reverb_async.client.writing.row_values import BatchRecords, BatchValues, RowLayout, Tables, as_rows_of
from reverb_async.core.nest import Structure, flatten
from reverb_async.core.spec import as_leaf
from reverb_async.errors import (
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    RateLimiterTimeout,
    ReplayError,
    ResourceExhausted,
    SignatureMismatch,
    TableNotFound,
    Unavailable,
)

_CUTS_PER_TURN = 8
_T = TypeVar("_T")


class RowInserter:
    """Inserts rows over one stream, which all calls of a client share.

    Single rows that are inserted in the same turn of the loop travel together. A stream that breaks is opened again,
    and rows that had not arrived are sent again: each enters once.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._session: InsertSession | None = None
        self._is_closed = False
        self._kinds = RowKinds()
        self._copies = Copies()
        self._open: dict[tuple[RowLayout, Tables], SingleRows] = {}
        self._unsettled: dict[Block, None] = {}

    async def insert(
        self, data: object, priorities: Mapping[str, float | None], timeout: float | None = None
    ) -> dict[str, int]:
        """Insert one row into one or several tables, in one step. See `Client.insert`."""
        check_timeout(timeout)
        self._check_usable()
        _check_priorities(priorities)
        leaves, structure = flatten(data)
        if timeout is None and (known := self._insert_known(leaves, structure, priorities)) is not None:
            call, block, keys = known
            await self._wait(call, [block], None)
            if call.error is not None:
                raise _refused(call.error, {name: np.empty(0, np.uint64) for name in priorities})
            return dict(zip(priorities, keys, strict=True))
        return await self._insert(leaves, structure, priorities, timeout)

    def _insert_known(
        self, leaves: list[object], structure: Structure, priorities: Mapping[str, float | None]
    ) -> tuple[Call, Block, list[int]] | None:
        """Queue a row of a kind that was inserted before; None if it is of no such kind, or something must be asked."""
        tables = self._connection.known_tables
        if tables is None:
            return None
        self._kinds.learn(tables)
        kind = self._kinds.known(structure, tuple(priorities))
        row = None if kind is None else kind.fitted(leaves)
        if kind is None or row is None:
            return None
        weights = [target.priority(priorities[target.name]) for target in kind.targets]
        keys = []
        for _ in weights:
            if (key := self._connection.try_next_key()) is None:
                return None
            keys.append(key)
        call = Call(1)
        block = self._open_block(kind.layout, tuple(priorities), None)
        block.add(call, row, keys, weights)
        return call, block, keys

    async def _insert(
        self,
        leaves: list[object],
        structure: Structure,
        priorities: Mapping[str, float | None],
        timeout: float | None,
    ) -> dict[str, int]:
        if not leaves:
            raise InvalidArgument("there is nothing to insert: the data have no values")
        values = [await self._kept(leaf, path) for leaf, path in zip(leaves, structure.paths, strict=True)]
        deadline = Deadline(timeout)
        targets, (row, layout) = await self._fitted(
            lambda targets: self._kinds.row(structure, values, targets), priorities, timeout
        )
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
        _check_priorities(priorities)
        deadline = Deadline(timeout)
        known = self._known_batch(batch, priorities)
        values, keys = known or await self._batch(BatchColumns(batch, self._copies), priorities, timeout)
        tables, count = tuple(priorities), keys.shape[1]
        cuts = _cuts(values.nbytes, count)
        # Rows go out in turns, the next when those before are in: a server reads no further while very many wait.
        # With a timeout each cut is a turn, for what is admitted must be the first rows.
        per_turn = _CUTS_PER_TURN if timeout is None else 1
        turns = [cuts[at : at + per_turn] for at in range(0, len(cuts), per_turn)]
        admitted: list[tuple[int, int]] = []
        for turn in turns:
            call = Call(turn[-1][1] - turn[0][0])
            blocks = [
                BatchRows(values, tables, deadline.left(), call, start, stop, self._forget) for start, stop in turn
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

    def _known_batch(
        self, batch: object, priorities: Mapping[str, Any]
    ) -> tuple[BatchRecords, NDArray[np.uint64]] | None:
        """Return rows of a kind that was inserted before, as records, and their keys; None as `_insert_known`."""
        if (infos := self._connection.known_tables) is None:
            return None
        self._kinds.learn(infos)
        try:
            columns, structure = flatten(batch)
        except InvalidArgument:  # A long list of str looks like too many columns; `BatchColumns` knows better.
            return None
        kind = self._kinds.known(structure, tuple(priorities))
        if kind is None or not (count := kind.count_of(columns)):
            return None
        weights = [target.priorities(priorities[target.name], count) for target in kind.targets]
        keys = self._connection.try_next_keys(len(weights) * count)
        form = kind.layout.format(len(weights))
        if keys is None or form is None or count * form.dtype.itemsize > MAX_COPY_BYTES:
            return None
        keys = keys.reshape(len(weights), count)
        return BatchRecords(kind.layout, form, keys, np.array(weights), cast("list[NDArray[Any]]", columns)), keys

    async def _batch(
        self, columns: BatchColumns, priorities: Mapping[str, Any], timeout: float | None
    ) -> tuple[BatchRecords | BatchValues, NDArray[np.uint64]]:
        """Return a batch's rows, which do not change when the caller's do, and their keys, uint64 ``[tables, n]``."""
        targets, layout = await self._fitted(
            lambda targets: self._kinds.batch(columns, targets), priorities, timeout, columns.keep
        )
        tables, count = tuple(targets), columns.count
        weights = np.stack([target.priorities(priorities[name], count) for name, target in targets.items()])
        new_keys = self._connection.try_next_keys(len(tables) * count)
        if new_keys is None:
            await columns.keep()
            new_keys = await self._keys(len(tables) * count, timeout)
        keys = new_keys.reshape(len(tables), count)
        form = layout.format(len(tables))
        if form is None or count * form.dtype.itemsize > MAX_COPY_BYTES:
            await columns.keep()
        data = [as_rows_of(column, spec) for column, spec in zip(columns.columns, layout.specs, strict=True)]
        if form is None:
            return BatchValues(layout, keys, weights, data), keys
        return BatchRecords(layout, form, keys, weights, data), keys

    async def close(self) -> None:
        """End; calls that wait raise `Closed`. Idempotent."""
        self._is_closed = True
        if self._session is not None:
            if self._unsettled:
                self._session.drop(Closed("the client was closed while the call waited"))
            await self._session.close()

    # -- steps of a call ----------------------------------------------------------------------------------------------

    async def _kept(self, leaf: object, path: tuple[str | int, ...]) -> object:
        """Return what does not change when the caller goes on."""
        if type(leaf) in (bool, int, float, complex, str, bytes):
            return leaf
        value = as_leaf(leaf, path)
        return await self._copies.of(value) if isinstance(value, np.ndarray) else value

    def _check_usable(self) -> None:
        if self._is_closed:
            raise Closed(f"the client of {self._connection.address} was closed")

    async def _fitted(
        self,
        fit: Callable[[dict[str, Target]], _T],
        priorities: Mapping[str, Any],
        timeout: float | None,
        before_waiting: Callable[[], Awaitable[None]] | None = None,
    ) -> tuple[dict[str, Target], _T]:
        """Return the tables, and what `fit` makes of them."""
        tables = self._connection.known_tables
        if tables is not None and tables.keys() >= priorities.keys():
            known = self._kinds.learn(tables)
            targets = {name: known[name] for name in priorities}
            with suppress(SignatureMismatch):
                return targets, fit(targets)
        # None were asked for yet, or the server was replaced by one with other tables.
        if before_waiting is not None:
            await before_waiting()
        async with self._answer_within(timeout):
            known = self._kinds.learn(await self._connection.tables(tables is not None))
        for name in priorities:
            if name not in known:
                raise TableNotFound(name, known)
        targets = {name: known[name] for name in priorities}
        return targets, fit(targets)

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
        """Return a block that takes another row. Rows with a timeout travel alone: time runs out for a whole block."""
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
            again.add_from(block, at)

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
                block = next(
                    (one for one in self._unsettled if isinstance(one, SingleRows) and call in one.calls), block
                )
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


def _check_priorities(priorities: object) -> None:
    if not isinstance(priorities, Mapping) or not priorities:
        raise InvalidArgument(
            f"priorities say which tables the data go to, as in priorities={{'replay': 1.0}}, got {priorities!r:.60}"
        )


def _cuts(nbytes: int, count: int) -> list[tuple[int, int]]:
    """Cut rows into parts (start, stop) that make good messages."""
    step = max(1, min(MAX_ROWS, MAX_MESSAGE_BYTES * count // max(nbytes, 1)))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _refused(error: ReplayError, admitted: dict[str, NDArray[np.uint64]]) -> ReplayError:
    if isinstance(error, RateLimiterTimeout | ResourceExhausted):
        return type(error)(str(error), admitted)
    return error.with_traceback(None)
