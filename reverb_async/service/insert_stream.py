"""The server's end of an Insert stream: decode, store steps, insert items or let them wait, answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.item import ItemBlock, ItemLayout, Leaf
from reverb_async.core.runs import Runs
from reverb_async.core.storage import RowStore
from reverb_async.errors import InvalidArgument, ReplayError, ResourceExhausted, TableClosed, Unavailable
from reverb_async.protocol.inserting import (
    Column,
    InsertRequestReader,
    InsertResponse,
    Items,
    Layout,
    Refusal,
    StepsHeader,
)
from reverb_async.protocol.message import Duplex, Message
from reverb_async.protocol.rows import RecordFormat, RowBlock
from reverb_async.replay import Replay
from reverb_async.service.row_intake import MAX_STEP_ROWS, Arrival, RowIntake
from reverb_async.service.step_rows import MAX_COPY_BYTES, OpenBytes, StepRows
from reverb_async.service.tasks import first_error
from reverb_async.service.waiting_items import WaitingItems, acceptable
from reverb_async.sessions import Session
from reverb_async.table import RowInsertion, Table, insert_now
from reverb_async.waiting import Deadline

MAX_WAITING_ITEMS = 65_536
"""A stream is read no further while so many of its items wait."""

MAX_DECLARATIONS = 4096
"""Groups, and layouts, that one stream may declare."""

MAX_ITEMS_PER_BLOCK = 16_384
"""A block is checked in one step, item by item if something is wrong with it."""

MAX_EPISODES_PER_ITEM = 1024
_MAX_EPISODE = 1 << 31
_SLICE_STEPS = 65_536


class InsertStream:
    """One stream of one writer's session.

    Messages are worked off one after the other and answered before the next is read, each in one synchronous step: but
    for very long ones, and for rows that are inserted together with others'. Short ones are worked off in the very step
    that received them. Items that have to wait become tasks of the stream, so that a full table holds up neither other
    tables nor the withdrawal of the waiting items.
    """

    def __init__(self, replay: Replay, intake: RowIntake, duplex: Duplex) -> None:
        self._replay = replay
        self._intake = intake
        self._duplex = duplex
        self._groups: dict[int, StepRows] = {}
        self._layouts: dict[int, tuple[ItemLayout, tuple[int, ...]]] = {}
        self._formats: dict[tuple[int, int], RecordFormat] = {}
        self._row_stores: set[RowStore] = set()
        self._waiting: dict[int, WaitingItems] = {}
        self._num_waiting = 0
        self._waiting_bytes = 0
        self._memory = replay.memory
        self._open_bytes = OpenBytes(replay.limits.client_bytes)
        self._outbox = InsertResponse()
        self._something_to_send = asyncio.Event()
        self._is_working = False
        self._is_sending = False
        self._rows: asyncio.Future[None] | None = None
        """Done when the rows that came last are in; None if they are."""
        self._room = asyncio.Event()
        self._next_seq = 1
        self._task: asyncio.Task[None] | None = None
        self._client_ended = False
        self._superseded = False
        self._table_closed: TableClosed | None = None
        self._ended = asyncio.Event()
        self._session: Session
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Serve the stream until its client ends it or vanishes; what waits then is withdrawn."""
        self._task = asyncio.current_task()
        message = await self._duplex.receive()
        if message is None:
            return
        identity = InsertRequestReader(message).session()
        if identity is None:
            raise InvalidArgument("the first message of an Insert stream must name the session")
        self._session = await self._replay.sessions.attach(identity, self)
        self._replay.count_writers(1)
        try:
            self._greet()
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._send_answers())
                self._duplex.listen(self._take)
                while message is not None:
                    await self._rows_inserted()
                    self._is_working = True
                    await self._work_off(InsertRequestReader(message))
                    self._is_working = False
                    await self._answer()
                    await self._wait_for_room()
                    message = await self._duplex.receive()
                await self._rows_inserted()
                await self._answer()
                for items in list(self._waiting.values()):
                    items.task.cancel()
                self._client_ended = True
                self._something_to_send.set()
            if self._table_closed is not None:
                raise self._table_closed
        except (asyncio.CancelledError, BaseExceptionGroup) as error:
            if self._superseded and self._task is not None and self._task.uncancel() == 0:
                raise Unavailable("its session was opened on another stream") from None
            raise first_error(error) from None
        finally:
            self._replay.count_writers(-1)
            if self._rows is not None:
                self._rows.cancel()
            self._close_groups()
            self._replay.sessions.detach(self._session)
            self._ended.set()

    async def withdraw(self) -> None:
        """End the stream with its waiting inserts, because its session opens another one."""
        assert self._task is not None
        if not self._superseded:
            self._superseded = True
            self._task.cancel()
        await self._ended.wait()

    def _greet(self) -> None:
        session = self._session
        self._outbox.applied_through = session.applied_through
        self._outbox.applied = session.beyond()
        self._outbox.epoch = self._replay.epoch
        self._outbox.refused = list(session.refusals)
        self._next_seq = session.applied_through + 1

    def _take(self, message: Message) -> bool:
        """Work off a short message while the next one is waited for; False if it has to wait its turn."""
        if self._rows is not None or self._is_crowded() or self._memory.used > self._memory.stage_below:
            return False
        self._is_working = True
        request = InsertRequestReader(message)
        if request.has_only_rows:
            self._add_rows(request.rows())
        else:
            self._declare_all(request)
            for steps in request.steps():
                rows = self._group(steps.group)
                columns = rows.read(request.buffers, steps.count)
                if steps.count:
                    rows.add(steps.first, steps.count, columns)
            for block in _in_order(request.items(), request.rows()):
                self._take_block(block)
            self._let_go(request)
        self._is_working = False
        self._answer_now()
        return True

    async def _work_off(self, request: InsertRequestReader) -> None:
        """Do what a message asks for."""
        self._declare_all(request)
        read: list[tuple[StepsHeader, StepRows, list[Column]]] = []
        for steps in request.steps():
            rows = self._group(steps.group)
            read.append((steps, rows, rows.read(request.buffers, steps.count)))
        items, records = request.items(), request.rows()
        if self._memory.used + request.nbytes > self._memory.stage_below:
            items, records = await self._wait_for_memory(request.nbytes, items, records)
        for steps, rows, columns in read:
            if sum(column.nbytes for column in columns if isinstance(column, np.ndarray)) > MAX_COPY_BYTES:
                await rows.add_long(steps.first, steps.count, columns)
            elif steps.count:
                rows.add(steps.first, steps.count, columns)
        await self._take_blocks(items, records)
        self._let_go(request)

    async def _wait_for_memory(
        self, nbytes: int, items: list[Items], rows: list[RowBlock]
    ) -> tuple[list[Items], list[RowBlock]]:
        """Wait until a message's bytes may be stored; return its items and rows whose time is not up then."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._is_working = False  # What waits in the tables' queues may get in meanwhile.
        while True:
            timeouts = [block.timeout for block in _in_order(items, rows) if block.timeout is not None]
            deadline = Deadline(began + min(timeouts) - loop.time() if timeouts else None)
            held = self._open_bytes.used + self._waiting_bytes
            try:
                await self._memory.wait(held, nbytes, deadline=deadline, notice=self._tell)
            except TimeoutError:
                waited = loop.time() - began
                for block in _in_order(items, rows):
                    if block.timeout is not None and block.timeout <= waited:
                        self._session.check_new(block.seq, _count(block))
                        names = ", ".join(map(repr, block.tables))
                        error = ResourceExhausted(f"an insert into {names} {self._memory.refusal()}")
                        self.refuse(block.seq, _count(block), error)
                items = [block for block in items if block.timeout is None or block.timeout > waited]
                rows = [block for block in rows if block.timeout is None or block.timeout > waited]
            else:
                self._is_working = True
                return items, rows

    def _declare_all(self, request: InsertRequestReader) -> None:
        for group in request.groups():
            if group.id in self._groups or len(self._groups) >= MAX_DECLARATIONS:
                raise InvalidArgument(f"group {group.id} is declared twice, or is one of more than {MAX_DECLARATIONS}")
            self._groups[group.id] = StepRows(self._replay.storage.group(group.columns), self._open_bytes)
        for layout in request.layouts():
            self._declare(layout)

    def _let_go(self, request: InsertRequestReader) -> None:
        for group_id, step in request.release():
            self._group(group_id).release(step)
        if self._open_bytes.used > self._open_bytes.limit:
            self._open_bytes.check()
        for seq in request.cancel():
            if seq in self._waiting:
                self._waiting[seq].deadline.expire()

    def _group(self, group_id: int) -> StepRows:
        try:
            return self._groups[group_id]
        except KeyError:
            raise InvalidArgument(f"group {group_id} was not declared on this stream") from None

    def _declare(self, layout: Layout) -> None:
        if layout.id in self._layouts or len(self._layouts) >= MAX_DECLARATIONS:
            raise InvalidArgument(f"layout {layout.id} is declared twice, or is one of more than {MAX_DECLARATIONS}")
        stores = tuple(self._group(view).store for view in layout.views)
        for view, column, _ in layout.leaves:
            if view >= len(stores) or column >= len(stores[view].specs):
                raise InvalidArgument(f"layout {layout.id} names column {column} of view {view}, which does not exist")
        if not layout.leaves or {view for view, _, _ in layout.leaves} != set(range(len(stores))):
            raise InvalidArgument(f"layout {layout.id} must have leaves, and use every one of its views")
        leaves = tuple(Leaf(view, column, squeeze) for view, column, squeeze in layout.leaves)
        self._layouts[layout.id] = (self._replay.layouts.get(layout.structure, stores, leaves), layout.views)

    # -- items --------------------------------------------------------------------------------------------------------

    async def _take_blocks(self, items: list[Items], rows: list[RowBlock]) -> None:
        """Take items and rows in the order of their numbers; rows alone may be inserted together with others'."""
        if not items and sum([block.count for block in rows]) <= MAX_STEP_ROWS:
            self._add_rows(rows)
            await self._rows_inserted()
            return
        taken = 0
        for block in _in_order(items, rows):
            count = _count(block)
            if taken and taken + count > MAX_STEP_ROWS:
                await self._answer()
                await asyncio.sleep(0)
                taken = 0
            taken += count
            self._take_block(block)

    def _take_block(self, block: Items | RowBlock) -> None:
        if isinstance(block, RowBlock):
            self._intake.insert([self._arrival(block)])
        else:
            self._take_items(block)

    def _add_rows(self, rows: list[RowBlock]) -> None:
        """Have rows inserted, now or together with others'."""
        if not rows:
            return
        self._rows = self._intake.add([self._arrival(block) for block in rows])
        if self._rows is not None:
            self._rows.add_done_callback(self._rows_are_in)

    async def _rows_inserted(self) -> None:
        """Wait for rows that are to be inserted together with others'."""
        if self._rows is not None:
            await asyncio.wait({self._rows})

    def _rows_are_in(self, done: asyncio.Future[None]) -> None:
        self._rows = None
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            self._tasks.create_task(_fail(error))
        self._answer_now()

    def _arrival(self, block: RowBlock) -> Arrival:
        self._number(block.seq, block.count)
        form = self._formats.get((block.layout, len(block.tables))) or self._open_rows(block.layout, len(block.tables))
        if block.records.nbytes != block.count * form.dtype.itemsize:
            raise InvalidArgument(
                f"{block.count} rows of {form.dtype.itemsize} bytes each cannot come as {block.records.nbytes} bytes"
            )
        return Arrival(self, self._layouts[block.layout][0], form, block)

    def _open_rows(self, layout_id: int, num_tables: int) -> RecordFormat:
        """Find out how the rows of a layout come as records."""
        if layout_id not in self._layouts:
            raise InvalidArgument(f"layout {layout_id} was not declared on this stream")
        layout = self._layouts[layout_id][0]
        store = layout.stores[0]
        form = None
        if len(layout.stores) == 1 and all(leaf.squeeze for leaf in layout.leaves):
            form = RecordFormat.of(store.specs, num_tables)
        if form is None:
            raise InvalidArgument(f"layout {layout_id} for {num_tables} tables does not make rows that come as records")
        if store not in self._row_stores:
            self._row_stores.add(store)
            self._intake.open(store)
        if len(self._formats) >= MAX_DECLARATIONS:
            raise InvalidArgument(f"rows of more than {MAX_DECLARATIONS} layouts and numbers of tables come as records")
        self._formats[layout_id, num_tables] = form
        return form

    def _take_items(self, items: Items) -> None:
        count = items.keys.shape[1]
        self._number(items.seq, count)
        try:
            tables = [self._replay.table(name) for name in items.tables]
            blocks = self._blocks(items)
        except ReplayError as error:
            self.refuse(items.seq, count, error)
            return
        self.insert(tables, blocks, items.seq, items.timeout)

    def _number(self, seq: int, count: int) -> None:
        """Refuse a block that is too long, or whose numbers were used before."""
        if count > MAX_ITEMS_PER_BLOCK:
            raise InvalidArgument(f"a block has {count} items; at most {MAX_ITEMS_PER_BLOCK} can be in one: cut it up")
        if seq < self._next_seq:
            raise InvalidArgument(f"item {seq} was sent before: the next one of this session is {self._next_seq}")
        self._session.check_new(seq, count)
        self._next_seq = seq + count

    def insert(self, tables: Sequence[Table], blocks: Sequence[ItemBlock], seq: int, timeout: float | None) -> None:
        """Insert what the tables accept and admit of items, numbered from `seq`; what they admit later waits."""
        count = len(blocks[0])
        if insert_now(tables, blocks):
            self.acknowledge(seq, count)
            return
        start = 0
        for stop, refused in acceptable(tables, blocks):
            if stop > start:
                self._insert(tables, [block.part(start, stop) for block in blocks], seq + start, timeout)
            if refused is not None:
                self.refuse(seq + stop, 1, refused)
            start = stop + 1

    def _blocks(self, items: Items) -> list[ItemBlock]:
        if items.layout not in self._layouts:
            raise InvalidArgument(f"layout {items.layout} was not declared on this stream")
        layout, view_groups = self._layouts[items.layout]
        count = items.keys.shape[1]
        if len(items.views) != len(view_groups):
            raise InvalidArgument(f"layout {items.layout} has {len(view_groups)} views, the items {len(items.views)}")
        views = []
        nbytes: NDArray[np.int64] | None = None
        for number, (group_id, segments) in enumerate(zip(view_groups, items.views, strict=True)):
            group = self._groups[group_id]
            runs = group.find(segments, count)
            if runs.uniform_length() != 1 and any(leaf.view == number and leaf.squeeze for leaf in layout.leaves):
                raise InvalidArgument(f"view {number} has leaves without a time axis, so its items show one step each")
            shown = runs.length * group.store.row_bytes if group.is_fixed else _bytes_of(group.store, runs)
            nbytes = shown if nbytes is None else nbytes + shown
            views.append(runs)
        assert nbytes is not None, "a layout has views"
        return [
            ItemBlock(layout, keys, priorities, tuple(views), nbytes, self._episodes(items))
            for keys, priorities in zip(items.keys, items.priorities, strict=True)
        ]

    def _episodes(self, items: Items) -> NDArray[np.int64] | None:
        """Return the episodes under numbers that no other session uses."""
        episodes = items.episodes
        if episodes is None:
            return None
        if len(episodes) == 1:  # as most are, when each step makes an item: a third of the time
            first, last = episodes.tolist()[0]
            if 0 <= first <= last < _MAX_EPISODE and last - first < MAX_EPISODES_PER_ITEM:
                offset = self._session.number << 31
                return np.array([[first + offset, last + offset]])
        span = episodes[:, 1] - episodes[:, 0]
        if int(episodes.min()) < 0 or int(episodes.max()) >= _MAX_EPISODE or int(span.min()) < 0:
            raise InvalidArgument(
                f"episodes must be ordered pairs from 0 to {_MAX_EPISODE - 1}, got {episodes[:4].tolist()}"
            )
        if int(span.max()) >= MAX_EPISODES_PER_ITEM or int(span.sum()) > MAX_ITEMS_PER_BLOCK:
            raise InvalidArgument(
                f"an item spans {int(span.max()) + 1} episodes, all of the block cross {int(span.sum())} ends of one; "
                f"at most {MAX_EPISODES_PER_ITEM} per item and {MAX_ITEMS_PER_BLOCK} ends per block can be"
            )
        numbered: NDArray[np.int64] = episodes + (self._session.number << 31)
        return numbered

    def _insert(self, tables: Sequence[Table], blocks: list[ItemBlock], seq: int, timeout: float | None) -> None:
        """Insert what is admitted at once; the rest waits in a task of its own."""
        for block in blocks:  # What waits shall not keep the whole message.
            block.keys, block.priorities = block.keys.copy(), block.priorities.copy()
        items = WaitingItems(self, seq, blocks[0], Deadline(timeout))
        insertion = RowInsertion(tables, blocks, items.admitted, self._duplex.peer)
        if insertion.try_now():
            return
        items.pin()
        self._waiting[seq] = items
        self._num_waiting += len(items.block)
        nbytes = int(items.block.nbytes.sum())
        self._waiting_bytes += nbytes
        items.task = self._tasks.create_task(self._insert_later(insertion, items))

        def done(_: asyncio.Task[None]) -> None:
            insertion.leave()
            items.unpin()
            del self._waiting[seq]
            self._num_waiting -= len(items.block)
            self._waiting_bytes -= nbytes
            self._room.set()

        items.task.add_done_callback(done)

    async def _insert_later(self, insertion: RowInsertion, items: WaitingItems) -> None:
        try:
            await insertion.wait(items.deadline, self._tell)
        except ReplayError as error:
            self.refuse(items.seq, items.remaining, error)

    def refuse(self, seq: int, count: int, error: ReplayError) -> None:
        """Note that items never will be in.

        When the table is closed nothing is said of them: the stream ends, once all else is said, with that error, and
        its writer may bring them to the next server.
        """
        if isinstance(error, TableClosed):
            self._table_closed = error
            self._duplex.finish_reading()
            return
        refusal = Refusal(seq, count, error.to_map())
        self._session.refuse(refusal)
        self._outbox.refused.append(refusal)
        self._announce()

    def acknowledge(self, seq: int, count: int) -> None:
        """Note, in the step that inserted them, that items are in."""
        self._session.settle(seq, count)
        acks = self._outbox.acks
        if acks and acks[-1][0] + acks[-1][1] == seq:
            acks[-1] = (acks[-1][0], acks[-1][1] + count)
        else:
            acks.append((seq, count))
        self._announce()

    # -- answers ------------------------------------------------------------------------------------------------------

    def _tell(self, reason: str) -> None:
        self._outbox.waiting = reason
        self._announce()

    def _announce(self) -> None:
        """Have the outbox sent: by whoever is working off a message, when that is done, or else soon."""
        if not self._is_working and self._rows is None:
            self._something_to_send.set()

    async def _send_answers(self) -> None:
        """Send what there is to say while no message is worked off."""
        while not self._client_ended or self._something_to_send.is_set():
            await self._something_to_send.wait()
            self._something_to_send.clear()
            await self._answer()

    def _answer_now(self) -> None:
        """Send the outbox, or leave that to the task if it would have to wait.

        With a log it always has to: what came in the same turn is written in one go.
        """
        if self._outbox and not self._is_sending:
            if self._replay.log is None and self._duplex.try_send(self._outbox.to_message()):
                self._outbox = InsertResponse()
            else:
                self._something_to_send.set()

    async def _answer(self) -> None:
        """Send the outbox, unless somebody is just at it, who then sends what came meanwhile as well."""
        if self._is_sending:
            return
        self._is_sending = True
        try:
            while self._outbox:
                message, self._outbox = self._outbox.to_message(), InsertResponse()
                if self._replay.log is not None:
                    await self._replay.logged()
                await self._duplex.send(message)
                self._room.set()
        finally:
            self._is_sending = False

    async def _wait_for_room(self) -> None:
        """Stop reading while too many items wait, or the client does not take its answers."""
        while self._is_crowded():
            self._room.clear()
            if self._memory.is_full:  # The stream may hold more when it is not.
                self._memory.call_when_less(self._room.set)
            await self._room.wait()

    def _is_crowded(self) -> bool:
        return (
            self._num_waiting > MAX_WAITING_ITEMS
            or (self._waiting_bytes and self._waits_with_too_much())
            or len(self._outbox.acks) + len(self._outbox.refused) > MAX_DECLARATIONS
        )

    def _waits_with_too_much(self) -> bool:
        memory = self._memory
        return self._waiting_bytes > (memory.share if memory.is_full else self._open_bytes.limit)

    def _close_groups(self) -> None:
        """Let go of all steps, in slices when there are many."""
        groups = list(self._groups.values())
        # An exception's traceback may keep this stream alive for a while; the stores must not wait for that.
        self._groups.clear()
        self._layouts.clear()
        while self._row_stores:
            self._intake.close(self._row_stores.pop())

        def next_slice() -> None:
            while groups:
                if groups[-1].close(_SLICE_STEPS):
                    asyncio.get_running_loop().call_soon(next_slice)
                    return
                groups.pop()

        next_slice()


def _count(block: Items | RowBlock) -> int:
    return block.count if isinstance(block, RowBlock) else block.keys.shape[1]


async def _fail(error: BaseException) -> None:
    raise error


def _in_order(items: list[Items], rows: list[RowBlock]) -> list[Items | RowBlock]:
    """Return blocks in the order of their numbers."""
    blocks: list[Items | RowBlock] = [*items, *rows]
    return sorted(blocks, key=lambda block: block.seq)


def _bytes_of(store: RowStore, runs: Runs) -> NDArray[np.int64]:
    """Return the bytes each item shows of rows that differ in size."""
    starts = np.cumsum(runs.length) - runs.length
    return np.add.reduceat(store.bytes_of(runs.rows()), starts)
