"""What `Client.sample` and `Client.sample_batches` return, and the streams that single draws share."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, NoReturn, Self, TypeAlias, TypeVar

from reverb_async.client.sampling.batch import Batch, Sample, make_batch, make_sample
from reverb_async.client.sampling.batch_stream import HURRIED_LEAVE_S, LEAVE_S, BatchStream
from reverb_async.client.sampling.collate import Collator
from reverb_async.core.nest import Path
from reverb_async.errors import DeadlineExceeded, RateLimiterTimeout
from reverb_async.protocol.sampled import SampledBatch
from reverb_async.protocol.sampling import Subscription

_MAX_IDLE = 16

_Element = TypeVar("_Element", Sample, Batch)


class _Iterator(AsyncIterator[_Element], Generic[_Element]):
    """Elements of one stream. Left bare, it hands back what it did not deliver once nobody refers to it any more."""

    _use: str
    _instead: str

    def __init__(self, stream: BatchStream, collator: Collator, timeout: float | None) -> None:
        self._stream = stream
        self._collator = collator
        self._timeout = timeout

    async def __anext__(self) -> _Element:
        """Return the next element; from then on it is the caller's.

        Raises:
            RateLimiterTimeout: the rate limiter did not admit it within `timeout`; the iterator stays usable.
            DeadlineExceeded: the server did not answer in time; the iterator stays usable.
            Unavailable: the server could not be reached; the iterator stays usable.
            TableNotFound: there is no such table.
            InvalidArgument: the items do not go together (nothing is lost: leaving hands them back), or another task
                waits for the next element.
            Closed: the iterator, or its client, was closed.
        """
        try:
            stream = self._stream
            if stream.exhausted:
                await stream.leave()
                raise StopAsyncIteration
            element = self._make(await stream.head(self._timeout))
            stream.accept()
            return element
        except BaseException:
            del self  # Whoever keeps the error, with its traceback, must not keep the iterator from being collected.
            raise

    @abstractmethod
    def _make(self, sampled: SampledBatch) -> _Element:
        """Return an element as the caller asked for it."""

    async def aclose(self) -> None:
        """Leave: acknowledge what was delivered, send queued priorities, hand back the rest. Idempotent."""
        await self._stream.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.leave(HURRIED_LEAVE_S if isinstance(error, asyncio.CancelledError) else LEAVE_S)

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)
        if stream is not None:
            stream.leave_soon()

    def __iter__(self) -> NoReturn:
        raise TypeError(f"this iterator is asynchronous: use `async for {self._use}`")

    def __await__(self) -> NoReturn:
        raise TypeError(f"this is an iterator: use `async for {self._use}`, or `await client.{self._instead}(...)`")

    def __enter__(self) -> NoReturn:
        raise TypeError("this iterator is asynchronous: use `async with`")

    def __exit__(self, *error: object) -> None:
        return None


class Sampler(_Iterator[Sample]):
    """Asynchronous iterator of `Sample`, and asynchronous context manager; see `Client.sample`."""

    _use = "sample in client.sample(...)"
    _instead = "sample_one"

    def _make(self, sampled: SampledBatch) -> Sample:
        return make_sample(sampled, self._collator)


class BatchSampler(_Iterator[Batch]):
    """Asynchronous iterator of `Batch`, and asynchronous context manager; see `Client.sample_batches`."""

    _use = "batch in client.sample_batches(...)"
    _instead = "sample_batch"

    def _make(self, sampled: SampledBatch) -> Batch:
        return make_batch(sampled, self._collator, self._stream.table, self._stream)


_Kind: TypeAlias = tuple[str, int, tuple[Path, ...] | None, bool]


class StreamPool:
    """Open streams that prefetch nothing, for draws of one batch each.

    Args:
        open_stream: makes a stream for a subscription.
    """

    def __init__(self, open_stream: Callable[[Subscription], BatchStream]) -> None:
        self._open_stream = open_stream
        self._idle: dict[_Kind, list[BatchStream]] = {}

    async def draw(
        self, wanted: Subscription, timeout: float | None, make: Callable[[SampledBatch], _Element]
    ) -> _Element:
        """Draw one batch; if `make` refuses it, or the caller is cancelled, it is handed back.

        Raises:
            ReplayError: see `BatchStream.head`.
        """
        kind: _Kind = (
            wanted.table,
            wanted.batch_size,
            None if wanted.columns is None else tuple(wanted.columns),
            wanted.partial,
        )
        stream = self._take(kind) or self._open_stream(wanted)
        patience = HURRIED_LEAVE_S
        try:
            element = make(await stream.head(timeout))
            stream.accept()
            return element
        except DeadlineExceeded as error:
            patience = HURRIED_LEAVE_S if isinstance(error, RateLimiterTimeout) else 0.0
            raise
        finally:
            if stream.is_clean and sum(map(len, self._idle.values())) < _MAX_IDLE:
                self._idle.setdefault(kind, []).append(stream)
            else:
                await stream.leave(patience)

    def _take(self, kind: _Kind) -> BatchStream | None:
        waiting = self._idle.get(kind, [])
        while waiting:
            stream = waiting.pop()
            if not waiting:
                del self._idle[kind]
            if stream.is_clean:
                return stream
        return None
