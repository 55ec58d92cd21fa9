"""The client: a server's tables from the outside."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.arguments import (
    as_limit,
    as_prefetch,
    as_subscription,
    check_address,
    check_connect_timeout,
    check_credentials,
    check_priorities,
    check_table_name,
)
from reverb_async.client.checks import check_timeout, positive
from reverb_async.client.events import Events
from reverb_async.client.parts import Parts
from reverb_async.client.retry import time_limit
from reverb_async.client.sampling.batch import Batch, Sample, make_batch, make_sample
from reverb_async.client.sampling.batch_stream import BatchStream
from reverb_async.client.sampling.collate import Collator, Columns, PadSide, RaggedMode
from reverb_async.client.sampling.sampler import BatchSampler, Sampler
from reverb_async.client.shared_memory import SharedMemory, check_shared_memory
from reverb_async.client.transport import Transport
from reverb_async.client.updates import Updates, as_keys, as_updates
from reverb_async.client.writing.writer import TrajectoryWriter
from reverb_async.core.draw import MutateResult
from reverb_async.core.info import ServerStatus, TableInfo
from reverb_async.errors import Closed
from reverb_async.security import ClientTLS, Credentials

_ATTEMPT_S = 10.0
"""One attempt to connect takes no longer, so that there are several."""


class Client:
    """A connection to one server; connects at the first call, and again whenever it is lost.

    Use it with ``async with``, or `close` it. It belongs to the event loop of its first call; pickled, it is the
    address and the options, a token included, and connects anew elsewhere. `timeout` is seconds in every method: None
    waits, 0 is now or fail.

    Args:
        address: ``"host:port"`` or ``"unix:///path"``; ``"reverb://host:port"`` is a server of DeepMind's dm-reverb.
        connect_timeout: while nothing answers, calls wait so many seconds, then raise `Unavailable`; None: for ever.
        shared_memory: ``"auto"``: large batches are read in the memory of a server on the same host and of the same
            user (Linux), see `transport`; everything else travels over the wire. False: everything does.
        tls: encrypt the connections, and check the server's certificate: True, with what the system trusts, or a
            `ClientTLS`.
        token: what the server knows this client by: the token itself, the path of a file (a `pathlib.Path`) that has
            it, or a function that returns it; file and function are asked again for every call and stream.
        insecure: send the token although it can be read on its way: without `tls`, to another machine.

    Raises:
        InvalidArgument: an argument is none of these.

    A server's refusals are `PermissionDenied`, by any method.
    """

    def __init__(
        self,
        address: str,
        *,
        connect_timeout: float | None = 60.0,
        shared_memory: Literal["auto", False] = "auto",
        tls: bool | ClientTLS = False,
        token: str | os.PathLike[str] | Callable[[], str] | None = None,
        insecure: bool = False,
    ) -> None:
        check_address(address)
        check_connect_timeout(connect_timeout)
        check_shared_memory(shared_memory)
        check_credentials(address, tls, token, insecure)
        self._address = address
        self._options: dict[str, Any] = {
            "connect_timeout": connect_timeout,
            "shared_memory": shared_memory,
            "tls": tls,
            "token": token,
            "insecure": insecure,
        }
        self._set_up(None)

    @classmethod
    def _over(cls, transport: Transport) -> Client:
        """Return a client over an existing transport, which it closes."""
        client = cls.__new__(cls)
        client._address = transport.address
        client._options = {"connect_timeout": 60.0, "shared_memory": "auto"}
        client._set_up(transport)
        return client

    def _set_up(self, transport: Transport | None) -> None:
        self._is_over_transport = transport is not None
        self._parts: Parts | None = None
        if transport is not None:  # A server in the same process hands its arrays over: there is nothing to gain.
            self._parts = Parts(transport, self._options["connect_timeout"], SharedMemory(False))
        self._closing: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._address

    @property
    def transport(self) -> str:
        """How the server is reached: ``"tcp"``, ``"tls"``, ``"unix"``, ``"in-process"``, ``"reverb"`` (DeepMind's way).

        After the first call also whether its memory is shared, ``"tcp + shared memory"``, or why not:
        ``"tcp (no shared memory: the server is on another host)"``.
        """
        if self._parts is not None:
            connector = self._parts.connector
            return connector.memory.describe(connector.transport.name)
        scheme, found, _ = self._address.partition("://")
        return scheme if found else "tls" if self._options["tls"] else "tcp"

    # -- inserting ----------------------------------------------------------------------------------------------------

    async def insert(
        self, data: Any, priorities: Mapping[str, float | None], *, timeout: float | None = None
    ) -> dict[str, int]:
        """Insert one item into one or several tables, in one step, when all of them admit it.

        Args:
            data: a nest of values; a sample's data are the same again, without an added axis.
            priorities: by table; None is the highest in the table so far.
            timeout: seconds for the tables' rate limiters.

        Returns:
            The item's key in each table.

        Raises:
            RateLimiterTimeout: a table did not admit it in time.
            TableNotFound: there is no such table.
            SignatureMismatch: the data do not fit a table's signature.
            InvalidArgument: the data or a priority are not such.
        """
        check_priorities(priorities)
        return await self._use().rows.insert(data, priorities, timeout=timeout)

    async def insert_batch(
        self, batch: Any, priorities: Mapping[str, Any], *, timeout: float | None = None
    ) -> dict[str, NDArray[np.uint64]]:
        """Insert B items, in order; a timeout or a cancellation keeps those that were admitted.

        Args:
            batch: a nest of arrays ``[B, ...]`` or `Ragged` of B elements; row i is item i.
            priorities: by table: one for all, ``[B]``, or None for the highest in the table so far.
            timeout: seconds for the tables' rate limiters, for all items together.

        Returns:
            The items' keys in each table: uint64 ``[B]``.

        Raises:
            RateLimiterTimeout: not all were admitted in time; its `keys` are those that were.
            TableNotFound: there is no such table.
            SignatureMismatch: the data do not fit a table's signature.
            InvalidArgument: the data or a priority are not such.
        """
        check_priorities(priorities)
        return await self._use().rows.insert_batch(batch, priorities, timeout=timeout)

    def trajectory_writer(
        self,
        num_keep_alive_refs: int,
        *,
        max_in_flight_items: int = 64,
        chunk_length: int | None = None,
        validate_items: bool = True,
    ) -> TrajectoryWriter:
        """Return a writer of steps and of items made of them; see `TrajectoryWriter`.

        Args:
            num_keep_alive_refs: steps that items may still refer to.
            max_in_flight_items: `create_item` waits while so many are not acknowledged.
            chunk_length: steps sent together; None leaves it to the writer.
            validate_items: check items against the tables' signatures before they are sent.
        """
        return TrajectoryWriter(
            self._use().connector,
            num_keep_alive_refs,
            max_in_flight_items=max_in_flight_items,
            chunk_length=chunk_length,
            validate_items=validate_items,
        )

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(
        self,
        table: str,
        *,
        num_samples: int | None = None,
        prefetch: int = 1,
        timeout: float | None = None,
        columns: Columns | None = None,
        structure: Any = None,
    ) -> Sampler:
        """Return an asynchronous iterator of `Sample`.

        Args:
            table: the table's name.
            num_samples: how many; None: no end. No more are ever drawn.
            prefetch: draws that are asked for before they are needed; what is not delivered is handed back.
            timeout: seconds for each element.
            columns: a name, a path (a tuple), or a list of these; None for all.
            structure: a namedtuple or dataclass class, or a nest of them, that data come back as.

        Raises:
            InvalidArgument: an argument is not such.
        """
        stream = self._stream(table, 1, columns, False, as_prefetch(prefetch), as_limit(num_samples, "num_samples"))
        check_timeout(timeout)
        return Sampler(stream, Collator(structure), timeout)

    def sample_batches(
        self,
        table: str,
        batch_size: int,
        *,
        num_batches: int | None = None,
        prefetch: int = 2,
        timeout: float | None = None,
        allow_partial: bool = False,
        columns: Columns | None = None,
        structure: Any = None,
        ragged: RaggedMode = "error",
        pad_value: Any = 0,
        pad_to: Any = None,
        pad_side: PadSide = "right",
    ) -> BatchSampler:
        """Return an asynchronous iterator of `Batch`.

        Args:
            table: the table's name.
            batch_size: items per batch.
            num_batches: how many; None: no end. No more are ever drawn.
            prefetch: batches that are asked for before they are needed; what is not delivered is handed back.
            timeout: seconds for each batch.
            allow_partial: when the time is up, take fewer items than `batch_size`, if there are any.
            columns: a name, a path (a tuple), or a list of these; None for all.
            structure: a namedtuple or dataclass class, or a nest of them, that data come back as.
            ragged: what to do with items of unequal length: ``"error"``; ``"pad"`` them, see `Batch.lengths`;
                ``"flat"`` for `Ragged`; ``"list"``.
            pad_value: for ``"pad"``: one, or a dict by column.
            pad_to: for ``"pad"``: the length to pad to, or a dict by column; None: the batch's longest.
            pad_side: for ``"pad"``.

        Raises:
            InvalidArgument: an argument is not such.
        """
        stream = self._stream(
            table, batch_size, columns, allow_partial, as_prefetch(prefetch), as_limit(num_batches, "num_batches")
        )
        check_timeout(timeout)
        return BatchSampler(stream, Collator(structure, ragged, pad_value, pad_to, pad_side), timeout)

    async def sample_one(
        self,
        table: str,
        *,
        timeout: float | None = None,
        columns: Columns | None = None,
        structure: Any = None,
    ) -> Sample:
        """Draw one item; nothing is prefetched. Arguments as for `sample`.

        Raises:
            RateLimiterTimeout: the rate limiter did not admit it in time.
            TableNotFound: there is no such table.
            DeadlineExceeded: the server did not answer in time.
        """
        check_timeout(timeout)
        collator = Collator(structure)
        return await self._use().pool.draw(
            as_subscription(table, 1, columns), timeout, lambda sampled: make_sample(sampled, collator)
        )

    async def sample_batch(
        self,
        table: str,
        batch_size: int,
        *,
        timeout: float | None = None,
        allow_partial: bool = False,
        columns: Columns | None = None,
        structure: Any = None,
        ragged: RaggedMode = "error",
        pad_value: Any = 0,
        pad_to: Any = None,
        pad_side: PadSide = "right",
    ) -> Batch:
        """Draw one batch; nothing is prefetched. Arguments as for `sample_batches`.

        Raises:
            RateLimiterTimeout: the rate limiter did not admit it in time.
            TableNotFound: there is no such table.
            DeadlineExceeded: the server did not answer in time.
            InvalidArgument: the items do not go together; they were handed back.
        """
        check_timeout(timeout)
        collator = Collator(structure, ragged, pad_value, pad_to, pad_side)
        parts = self._use()
        updater = parts.updates.of(table)
        return await parts.pool.draw(
            as_subscription(table, batch_size, columns, allow_partial),
            timeout,
            lambda sampled: make_batch(sampled, collator, table, updater),
        )

    def _stream(
        self, table: str, batch_size: int, columns: Columns | None, partial: bool, prefetch: int, limit: int | None
    ) -> BatchStream:
        wanted = as_subscription(table, batch_size, columns, partial)
        return self._use().open_stream(wanted, prefetch=prefetch, limit=limit)

    # -- the rest -----------------------------------------------------------------------------------------------------

    async def mutate_priorities(
        self, table: str, updates: Updates | None = None, deletes: Any = None, *, timeout: float | None = 10.0
    ) -> MutateResult:
        """Set priorities, then delete items; keys that name no item are counted, not refused.

        Args:
            table: the table's name.
            updates: ``{key: priority}``, or (keys, priorities).
            deletes: keys, in a list or an array.
            timeout: seconds. More than 64k keys are applied in several steps.

        Raises:
            TableNotFound: there is no such table.
            InvalidArgument: a key is no integer from 0 to 2**64 - 1, or a priority not one that the sampler takes.
            DeadlineExceeded: the server did not answer in time; the changes may have been made.
        """
        check_table_name(table)
        check_timeout(timeout)
        keys, priorities = as_updates(updates)
        return await self._use().updates.mutate(table, keys, priorities, as_keys(deletes, "deletes"), timeout=timeout)

    async def reset(self, table: str, *, timeout: float | None = 10.0) -> None:
        """Remove all items of a table and zero its counts; calls that wait for it go on waiting.

        Raises:
            TableNotFound: there is no such table.
            DeadlineExceeded: the server did not answer in time.
        """
        check_table_name(table)
        check_timeout(timeout)
        connector = self._use().connector
        async with time_limit(timeout, connector, f"resetting {table!r}"):
            await connector.call(lambda: connector.transport.reset(table), f"resetting {table!r}")

    async def server_info(self, *, timeout: float | None = 10.0) -> dict[str, TableInfo]:
        """Describe all tables, by name.

        Raises:
            DeadlineExceeded: the server did not answer in time.
        """
        check_timeout(timeout)
        connector = self._use().connector
        async with time_limit(timeout, connector, "asking for server_info"):
            return dict(await connector.describe())

    async def server_status(self, *, timeout: float | None = 10.0) -> ServerStatus:
        """Describe the server itself: memory, connections, alarms.

        Raises:
            DeadlineExceeded: the server did not answer in time.
        """
        check_timeout(timeout)
        connector = self._use().connector
        async with time_limit(timeout, connector, "asking for server_status"):
            return await connector.call(lambda: connector.transport.server_status(), "asking for server_status")

    async def checkpoint(self, *, timeout: float | None = None) -> str:
        """Have the server write a checkpoint of what it holds now, or somewhat later; return its path there.

        Cancelling, or running out of time, leaves the server to finish it.

        Raises:
            ResourceExhausted: the server's disk is full; older checkpoints are as they were.
            CheckpointError: it could not be written, or the server keeps everything in memory.
            DeadlineExceeded: the server did not answer in time.
        """
        check_timeout(timeout)
        connector = self._use().connector
        async with time_limit(timeout, connector, "writing a checkpoint"):
            return await connector.call(connector.transport.checkpoint, "writing a checkpoint")

    def events(self, *, capacity: int = 1000) -> Events:
        """Return an asynchronous iterator of what happens from now on that no call tells of; see `reverb_async.events`.

        It never holds the client up: what nobody takes is dropped, the oldest first, and counted (`Events.dropped`).

        Args:
            capacity: events kept.
        """
        return self._use().connector.events.listen(positive(capacity, "capacity"))

    # -- coming and going ---------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Client:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __enter__(self) -> None:
        raise TypeError("a Client is asynchronous: use `async with`")

    def __exit__(self, *error: object) -> None:
        return None

    async def close(self) -> None:
        """Hand back what samplers did not deliver, end all streams. Idempotent; takes a second or two at most."""
        self._is_closed = True
        if self._closing is None:
            if self._parts is None or self._parts.connector.is_elsewhere():
                return
            self._closing = asyncio.get_running_loop().create_task(self._parts.close(), name=f"closing {self._address}")
        await asyncio.shield(self._closing)

    async def _close_with_server(self) -> None:
        """Close because the server, in this process, does: calls get `TableClosed` from now on."""
        if not self._is_closed and self._parts is not None:
            self._parts.connector.is_server_closed = True
        await self.close()

    def _check_open(self) -> None:
        if self._is_closed and self._parts is not None:
            raise self._parts.connector.closed_error()
        if self._is_closed:
            raise Closed(f"the client of {self._address} was closed; make another one")

    def _use(self) -> Parts:
        self._check_open()
        if self._parts is None:
            patience = self._options["connect_timeout"]
            tls, token = self._options["tls"], self._options["token"]
            transport = _connect(
                self._address,
                _ATTEMPT_S if patience is None else min(_ATTEMPT_S, patience or _ATTEMPT_S),
                Credentials(ClientTLS() if tls is True else tls or None, token),
            )
            self._parts = Parts(transport, patience, SharedMemory(self._options["shared_memory"] == "auto"))
        return self._parts

    # -- as a value ---------------------------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        if self._is_over_transport:
            raise TypeError(
                f"this client lives in its server's process ({self._address}) and cannot be pickled; "
                "elsewhere, connect with Client(server.address)"
            )
        return _rebuilt, (self._address, self._options)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Client):
            return NotImplemented
        if self._is_over_transport or other._is_over_transport:
            return self is other
        return (self._address, self._options) == (other._address, other._options)

    def __hash__(self) -> int:
        return id(self) if self._is_over_transport else hash(self._address)

    def __repr__(self) -> str:
        return f"<Client of {self._address}{', closed' if self._is_closed else ''}>"


def _connect(address: str, timeout: float, credentials: Credentials) -> Transport:
    """Return the transport to an address; only clients of other processes need what is imported here."""
    if address.startswith("reverb://"):
        from reverb_async.foreign.transport import ForeignTransport

        return ForeignTransport(address, timeout)
    from reverb_async.wire.transport import GrpcTransport

    return GrpcTransport(address, timeout, credentials)


def _rebuilt(address: str, options: dict[str, Any]) -> Client:
    return Client(address, **options)
