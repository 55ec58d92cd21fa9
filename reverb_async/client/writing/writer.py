"""Writing trajectories: steps are appended, items are made of slices of their history."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import numpy as np

from reverb_async.client.checks import check_chunk_length, check_timeout, positive, targets_of
from reverb_async.client.retry import NOW_S
from reverb_async.client.writing.columns import ColumnBuffer
from reverb_async.client.writing.connection import Connection
from reverb_async.client.writing.grouping import Grouping
from reverb_async.client.writing.items import ItemQueue
from reverb_async.client.writing.steps import StepBuffer
from reverb_async.client.writing.trajectories import Trajectories
from reverb_async.core.nest import Path
from reverb_async.errors import Closed, DeadlineExceeded, InvalidArgument, ReplayError, SignatureMismatch, TableNotFound

logger = logging.getLogger("reverb_async")

_TURN = 32
"""After so many items in a row `create_item` gives the loop a turn."""

_numbers = itertools.count(1)


class TrajectoryWriter:
    """Appends steps and creates items of them; made by `Client.trajectory_writer`.

    Items reach each table in the order of their creation. A stream that breaks is opened again, and what had not
    arrived is sent again: each item enters once. An item that the server refuses ends the writer: every later call but
    `close` raises the reason.

    Leaving ``async with`` flushes and closes, also after an exception that is not the service's; after a `ReplayError`
    or a cancellation it drops what the server has not confirmed and logs how much.

    Args:
        connection: the client's.
        num_keep_alive_refs: how many steps of each column can be selected from `history`.
        max_in_flight_items: `create_item` waits while so many items are not confirmed.
        chunk_length: accepted for Reverb's sake; steps are not chunked.
        validate_items: check items against the tables' signatures before they are sent.

    Raises:
        InvalidArgument: a number below 1, or `chunk_length` above `num_keep_alive_refs`.
    """

    def __init__(
        self,
        connection: Connection,
        num_keep_alive_refs: int,
        *,
        max_in_flight_items: int = 64,
        chunk_length: int | None = None,
        validate_items: bool = True,
    ) -> None:
        self._closed = True  # until the arguments are found to be right
        keep = positive(num_keep_alive_refs, "num_keep_alive_refs")
        self._max_in_flight = positive(max_in_flight_items, "max_in_flight_items")
        check_chunk_length(chunk_length, keep)
        self._connection = connection
        self._validate = bool(validate_items)
        self._name = f"trajectory writer {next(_numbers)}"

        def forget(column: ColumnBuffer) -> None:
            if grouping.forget(column):
                trajectories.forget()

        # None of these refers to the writer, so that one that is dropped without `close` is collected, and ends.
        queue = ItemQueue(connection, self._name, lambda out: grouping.release(out))
        self._steps = StepBuffer(keep, queue.needed_from, forget)
        grouping = Grouping(self._steps.clock)
        trajectories = Trajectories(self._steps, queue, grouping, validate=self._validate)
        self._queue = queue
        self._trajectories = trajectories
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._queue.in_flight} items in flight"
        return f"<TrajectoryWriter at {self._connection.address}: {self.episode_steps} steps, {state}>"

    # -- steps --------------------------------------------------------------------------------------------------------

    def append(self, data: object, *, partial_step: bool = False) -> None:
        """Store a copy of one step. Never waits.

        Columns may come and go; a column that a step leaves out has no value there. The first value of a column fixes
        its dtype and shape; extents stay free where the signature of a table has None, once it is known (in ``async
        with``, or after the first `create_item`). After an error nothing has changed, and the step can be appended
        again.

        Args:
            data: a nest of arrays, numbers, str and bytes; None is no value.
            partial_step: leave the step open: the next call adds other columns to it.

        Raises:
            InvalidArgument: a value does not fit its column, naming both, or is set in the open step already.
            Closed: the writer was closed.
            ReplayError: what ended the writer.
        """
        if self._closed or self._queue.error is not None:
            self._check_usable()
        self._steps.append(data, partial_step)

    def append_sequence(self, steps: object) -> None:
        """Store copies of several steps: the same as to `append` them one by one, but all or none are stored.

        Args:
            steps: a nest of arrays ``[T, *step_shape]`` (or `Ragged`), all of the same ``T``.

        Raises:
            InvalidArgument: lengths differ, a leaf has no leading axis, or as `append`.
        """
        self._check_usable()
        self._steps.append_sequence(steps)

    @property
    def history(self) -> Any:
        """What was appended since the last clear, nested like the union of all steps; leaves are `ColumnHistory`.

        Raises:
            InvalidArgument: nothing was ever appended.
        """
        return self._steps.history

    @property
    def episode_steps(self) -> int:
        """Steps of the current episode, without an open one."""
        return self._steps.episode_steps

    def configure(self, path: str | Path, *, num_keep_alive_refs: int, max_chunk_length: int | None = None) -> None:
        """Keep another number of steps of one column, which may not have been seen yet.

        Args:
            path: the column: its key, or its path in the nest.
            num_keep_alive_refs: how many of its steps can be selected.
            max_chunk_length: accepted for Reverb's sake.

        Raises:
            InvalidArgument: a number below 1, or `max_chunk_length` above `num_keep_alive_refs`.
        """
        keep = positive(num_keep_alive_refs, "num_keep_alive_refs")
        check_chunk_length(max_chunk_length, keep)
        self._check_usable()
        self._steps.configure((path,) if isinstance(path, str) else tuple(path), keep)

    # -- items --------------------------------------------------------------------------------------------------------

    async def create_item(
        self, table: str, priority: float | None = None, *, trajectory: object, timeout: float | None = None
    ) -> int:
        """Queue an item and return its key; it is sent at once. Waits only for a place among `max_in_flight_items`.

        Under load it gives the event loop a turn now and then, so that items travel while others are made.

        Args:
            table: the table's name.
            priority: None is the highest in the table so far.
            trajectory: a nest of selections from `history`; numbers, arrays, str and bytes in it are stored with the
                item.
            timeout: seconds to wait for a place; None waits, 0 does not.

        Raises:
            InvalidArgument: the trajectory or the priority is wrong; `ExpiredReference`: a step is not kept any more;
                `SignatureMismatch`: the table wants something else.
            TableNotFound: there is no such table.
            DeadlineExceeded: no place in time; nothing was queued.
            Unavailable: nothing answers; nothing was queued.
            Closed: the writer was closed.
            ReplayError: what ended the writer.
        """
        if timeout is not None:
            check_timeout(timeout)
        queue = self._queue
        if self._closed or queue.error is not None:
            self._check_usable()
        if queue.unsent >= _TURN:  # Let the session send them, so that the server works on them meanwhile.
            await asyncio.sleep(0)
            self._check_usable()
        targets = self._steps.targets
        if queue.in_flight >= self._max_in_flight or targets is None or table not in targets or not queue.has_key:
            await self._make_ready(table, timeout)
        try:
            return self._trajectories.add(table, priority, trajectory)
        except SignatureMismatch:
            async with self._limit(None if timeout is None else max(timeout, NOW_S), "the server did not answer"):
                await self._learn_tables(refresh=True)  # The server may have been replaced by one with other tables.
        return self._trajectories.add(table, priority, trajectory)

    async def _make_ready(self, table: str, timeout: float | None) -> None:
        queue, targets = self._queue, self._steps.targets
        if targets is None or table not in targets or not queue.has_key:
            # Asking the server is not the waiting that `timeout` is about.
            async with self._limit(None if timeout is None else max(timeout, NOW_S), "the server did not answer"):
                await self._ask_server(table)
        if timeout is None:
            await self._wait_for_place()
        else:
            async with self._limit(timeout, f"none of max_in_flight_items={self._max_in_flight} places became free"):
                await self._wait_for_place()
        self._check_usable()

    async def _ask_server(self, table: str) -> None:
        if self._steps.targets is None:
            await self._learn_tables()
        if self._validate and table not in (self._steps.targets or ()):
            await self._learn_tables(refresh=True)
            if table not in (self._steps.targets or ()):
                raise TableNotFound(table, self._steps.targets or ())
        if not self._queue.has_key:
            await self._queue.fetch_keys()

    async def _wait_for_place(self) -> None:
        queue = self._queue
        while queue.in_flight >= self._max_in_flight or not queue.has_key:
            await queue.wait_until(self._max_in_flight - 1)
            if not queue.has_key:  # Somebody else who waited took the last one.
                await queue.fetch_keys()

    async def _learn_tables(self, *, refresh: bool = False) -> None:
        self._steps.targets = targets_of(await self._connection.tables(refresh))
        self._trajectories.forget()

    async def flush(self, block_until_num_items: int = 0, *, timeout: float | None = None) -> None:
        """Wait until at most `block_until_num_items` items are not confirmed by the server.

        Raises:
            DeadlineExceeded: not in time; the items go in later.
            Unavailable: nothing answers; the items stay queued, and go in when something does.
            InvalidArgument: a negative number.
            Closed: the writer was closed.
            ReplayError: what ended the writer.
        """
        if isinstance(block_until_num_items, bool) or not isinstance(block_until_num_items, int | np.integer):
            raise InvalidArgument(f"block_until_num_items is an int >= 0, got {block_until_num_items!r:.60}")
        if block_until_num_items < 0:
            raise InvalidArgument(f"block_until_num_items must be >= 0, got {block_until_num_items}")
        check_timeout(timeout)
        self._check_usable()
        if timeout is None:
            await self._queue.wait_until(int(block_until_num_items))
            return
        async with self._limit(timeout, "the tables did not admit all items"):
            await self._queue.wait_until(int(block_until_num_items))

    async def end_episode(self, *, clear_buffers: bool = True, timeout: float | None = None) -> None:
        """Flush, and let the next step begin a new episode.

        Args:
            clear_buffers: empty `history`; without it, items may span episodes.
            timeout: seconds to wait for the flush.

        Raises:
            DeadlineExceeded: the flush took longer; the episode goes on, and the call can be repeated.
            ReplayError: as `flush`; the episode goes on.
        """
        await self.flush(timeout=timeout)
        self._steps.end_episode(clear_buffers)
        self._queue.session.wake()

    # -- ending -------------------------------------------------------------------------------------------------------

    async def close(self, *, timeout: float | None = None) -> None:
        """Flush and end. Idempotent. After the server refused an item it drops what is left, and does not raise.

        Raises:
            DeadlineExceeded: the flush took longer; the writer stays open, to be closed again, or ended with `abort`.
            Unavailable: nothing answers; the same.
        """
        if self._closed:
            return
        if self._queue.error is None:
            await self.flush(timeout=timeout)
            self._closed = True
            await self._queue.session.close()
        else:
            self.abort()

    def abort(self) -> None:
        """End at once; items that the server has not confirmed are dropped, and logged. Never waits; idempotent."""
        if not self._closed:
            self._closed = True
            unconfirmed = self._queue.drop(Closed(f"this {type(self).__name__} was aborted"))
            if unconfirmed:
                logger.warning("%s dropped %d items that were not confirmed", self._name, unconfirmed)

    async def __aenter__(self) -> TrajectoryWriter:
        self._check_usable()
        await self._learn_tables()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                if not self._closed:
                    await self.flush()  # which, other than `close`, tells that an item was refused
                await self.close()
            elif isinstance(error, Exception) and not isinstance(error, ReplayError):
                if self._queue.in_flight and self._queue.error is None and not self._closed:
                    logger.warning(
                        "%s: leaving after %.200r: waiting for %d unconfirmed items",
                        self._name,
                        error,
                        self._queue.in_flight,
                    )
                try:
                    await self.close()
                except ReplayError as second:  # The first error matters more.
                    logger.warning("%s could not flush: %s", self._name, second)
        finally:
            self.abort()
            await self._queue.session.close()

    def __del__(self) -> None:
        if not self._closed:
            unconfirmed = self._queue.in_flight
            if unconfirmed:
                logger.warning(
                    "%s was dropped without close(), with %d items that were not confirmed", self._name, unconfirmed
                )
            self._queue.session.drop_soon(Closed("the writer was dropped"))

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._closed:
            raise Closed("this TrajectoryWriter is closed; make another one with client.trajectory_writer(...)")
        self._queue.check()

    @asynccontextmanager
    async def _limit(self, timeout: float | None, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout) as scope:
                yield
        except TimeoutError as error:
            if not scope.expired() or isinstance(error, ReplayError):
                raise
            raise DeadlineExceeded(
                f"{what} within {timeout} s: {self._queue.in_flight} items of this writer are not confirmed by "
                f"{self._connection.address}"
            ) from None
