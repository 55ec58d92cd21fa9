"""`Client.mutate_priorities`: one Update stream per client, shared by all calls."""

from __future__ import annotations

import asyncio
import operator
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reverb_async.client.connector import Connector
from reverb_async.client.conversation import Conversation
from reverb_async.client.retry import time_limit
from reverb_async.core.draw import MutateResult
from reverb_async.errors import InvalidArgument, ReplayError, from_map
from reverb_async.protocol.message import Message
from reverb_async.protocol.updating import MAX_KEYS, UpdateRequest, UpdateResponse, pack
from reverb_async.waiting import FIRST_WARNING_S, reported

Updates: TypeAlias = "Mapping[int, float] | tuple[ArrayLike, ArrayLike]"
"""New priorities: ``{key: priority}``, or keys and priorities, ``[n]`` each."""

UPDATE_S = 10.0
"""What `Batch.update_priorities` allows a server that must answer first."""

_PACKED_KEYS = 1_024
_PACKED_CALLS = 64
"""What travels in one message at most, if it is more than one call: enough that its overhead does not count, so little
that the server works on one message while the callers of another prepare their next calls."""

_CLOSE_S = 1.0
_NO_KEYS = np.zeros(0, np.uint64)
_NO_PRIORITIES = np.zeros(0, np.float64)


class UpdateStream(Conversation):
    """Sends blocks of updates and deletes as they come, those without an answer again after a lost connection."""

    def __init__(self, connector: Connector) -> None:
        super().__init__(connector, "update", "updating priorities")
        self._seq = 0
        self._unsent: deque[tuple[UpdateRequest, asyncio.Future[MutateResult]]] = deque()
        self._unanswered: dict[int, tuple[UpdateRequest, asyncio.Future[MutateResult]]] = {}

    async def mutate(
        self,
        table: str,
        keys: NDArray[np.uint64],
        priorities: NDArray[np.float64],
        deletes: NDArray[np.uint64],
        *,
        timeout: float | None,
    ) -> MutateResult:
        """Set priorities, then delete.

        Args:
            table: the table's name.
            keys: uint64 ``[n]``; the last of duplicates wins.
            priorities: float64 ``[n]``.
            deletes: uint64 ``[m]``.
            timeout: seconds; None waits for ever.

        Raises:
            ReplayError: the server's refusal. More than 64k keys are sent in blocks; earlier ones stay applied.
            DeadlineExceeded: there was no answer in time; what was sent may be applied.
        """
        blocks = list(_blocks(table, keys, priorities, deletes))
        what = f"updating priorities in {table!r}"
        with ExitStack() as scope:
            if timeout is None or timeout > FIRST_WARNING_S:
                scope.enter_context(
                    reported(lambda: f"{what} at {self.connector.address}", repeats=self.connector.repeats)
                )
            async with time_limit(timeout, self.connector, what):
                results = await self._answers(blocks)
        if len(results) == 1:
            return results[0]
        return MutateResult(*(sum(getattr(result, count) for result in results) for count in MutateResult.__slots__))

    async def _answers(self, blocks: list[UpdateRequest]) -> list[MutateResult]:
        answers = [self._submit(block) for block in blocks]
        try:
            # One by one: the first refusal ends the call, whose other answers nobody needs then.
            return [await answer for answer in answers]
        finally:
            for answer in answers:
                if not answer.cancel() and not answer.cancelled():
                    answer.exception()  # Looked at, so that asyncio does not complain.

    def _submit(self, request: UpdateRequest) -> asyncio.Future[MutateResult]:
        if self.finishing:
            raise self.connector.closed_error()
        self.start()
        self._seq += 1
        request.seq = self._seq
        answer = asyncio.get_running_loop().create_future()
        self._unsent.append((request, answer))
        self.poke()
        return answer

    def of(self, table: str) -> TableUpdates:
        """Return where the priorities of one table's items go."""
        return TableUpdates(self, table)

    async def close(self) -> None:
        """Wait up to a second for answers, then end the stream; calls without one get `Closed`."""
        await self.finish(_CLOSE_S)

    # -- the stream's side --------------------------------------------------------------------------------------------

    @property
    def needed(self) -> bool:
        """Whether a call waits."""
        return bool(self._unsent or self._unanswered)

    def opened(self) -> None:
        """Say again what has no answer."""
        self._unsent.extendleft(reversed(self._unanswered.values()))
        self._unanswered.clear()

    def compose(self) -> Message | None:
        """Return the next blocks whose callers still wait, several if they are small."""
        requests: list[UpdateRequest] = []
        num_keys = 0
        while self._unsent and len(requests) < _PACKED_CALLS:
            request, answer = self._unsent[0]
            num_keys += request.num_keys
            if requests and num_keys > _PACKED_KEYS:
                break
            self._unsent.popleft()
            if answer.done():
                num_keys -= request.num_keys
                continue
            self._unanswered[request.seq] = (request, answer)
            requests.append(request)
        return pack(requests) if requests else None

    def take(self, message: Message) -> None:
        """Hand answers to those who wait for them."""
        response = UpdateResponse.from_message(message)
        for seq, result in response.done:
            if (asked := self._unanswered.pop(seq, None)) is not None and not asked[1].done():
                asked[1].set_result(result)
        for seq, described in response.refused:
            if (asked := self._unanswered.pop(seq, None)) is not None and not asked[1].done():
                asked[1].set_exception(_naming(asked[0].table, from_map(described)))

    def closed(self, error: ReplayError | None) -> None:
        """Tell everybody who waits."""
        waiting = [answer for _, answer in (*self._unanswered.values(), *self._unsent)]
        self._unanswered.clear()
        self._unsent.clear()
        for answer in waiting:
            if not answer.done():
                answer.set_exception(error or self.connector.closed_error())


def _naming(table: str, error: ReplayError) -> ReplayError:
    """Return the error with the table's name, which selectors do not know."""
    if type(error) is not InvalidArgument or repr(table) in str(error):
        return error
    return InvalidArgument(f"table {table!r}: {error}")


class TableUpdates:
    """Sets priorities of one table's items; what `Batch.update_priorities` needs of a stream."""

    def __init__(self, stream: UpdateStream, table: str) -> None:
        self._stream = stream
        self._table = table

    async def update(self, keys: NDArray[np.uint64], priorities: NDArray[np.float64]) -> None:
        """Set them, and return when the server has done so; raises as `UpdateStream.mutate` does."""
        await self._stream.mutate(self._table, keys, priorities, _NO_KEYS, timeout=UPDATE_S)


def _blocks(
    table: str, keys: NDArray[np.uint64], priorities: NDArray[np.float64], deletes: NDArray[np.uint64]
) -> Iterable[UpdateRequest]:
    """Cut a call into blocks a server takes; one at least, so that the table's name is looked up."""
    if len(keys) + len(deletes) <= MAX_KEYS:
        yield UpdateRequest(0, table, keys, priorities, deletes)
        return
    for start in range(0, len(keys), MAX_KEYS):
        part = slice(start, start + MAX_KEYS)
        yield UpdateRequest(0, table, keys[part], priorities[part], _NO_KEYS)
    for start in range(0, len(deletes), MAX_KEYS):
        yield UpdateRequest(0, table, _NO_KEYS, _NO_PRIORITIES, deletes[start : start + MAX_KEYS])


# -- checking arguments -----------------------------------------------------------------------------------------------


def as_updates(updates: object) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Return keys and priorities, copied: uint64 ``[n]`` and float64 ``[n]``; see `Updates`.

    Raises:
        InvalidArgument: they are anything else.
    """
    if updates is None:
        return _NO_KEYS, _NO_PRIORITIES
    if isinstance(updates, Mapping):
        keys, priorities = list(updates), list(updates.values())
    elif isinstance(updates, tuple) and len(updates) == 2:
        keys, priorities = updates
    else:
        raise InvalidArgument(
            f"updates are {{key: priority}} or (keys, priorities), got {_kind(updates)}: "
            "pass dict(zip(keys, priorities))"
        )
    checked = as_keys(keys, "updates")
    return checked, as_priorities(priorities, len(checked))


def as_keys(keys: object, what: str) -> NDArray[np.uint64]:
    """Return keys as a new uint64 ``[n]``.

    Raises:
        InvalidArgument: one is no integer from 0 to 2**64 - 1.
    """
    if keys is None:
        return _NO_KEYS
    if isinstance(keys, str | bytes | int | float | np.generic) or not isinstance(keys, Iterable):
        raise InvalidArgument(f"{what}: pass a list or an array of keys, got {_kind(keys)}")
    if not isinstance(keys, np.ndarray):
        keys = keys if isinstance(keys, Sequence) else list(keys)
        if not len(keys):
            return _NO_KEYS
    try:
        array = np.array(keys)
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"{what}: keys are integers [n], got {_kind(keys)} ({error})") from error
    if array.ndim != 1:
        raise InvalidArgument(f"{what}: keys are [n], got an array of shape {list(array.shape)}")
    if array.dtype.kind == "u":
        return array.astype(np.uint64, copy=False)
    if array.dtype.kind == "i" and (not len(array) or array.min() >= 0):
        return array.astype(np.uint64)
    if isinstance(keys, np.ndarray) and array.dtype.kind != "i" and array.dtype != object:
        raise InvalidArgument(f"{what}: keys are integers, got {array.dtype}; a float cannot tell large keys apart")
    # A mixture, which numpy may have made floats of: one by one, also to name the one that is wrong.
    return np.array([_as_key(key, what) for key in keys], np.uint64)


def _as_key(key: Any, what: str) -> int:
    try:
        number = operator.index(key)
    except TypeError:
        raise InvalidArgument(f"{what}: keys are integers, got {_kind(key)}: {key!r:.60}") from None
    if isinstance(key, bool | np.bool_) or not 0 <= number < 1 << 64:
        raise InvalidArgument(f"{what}: keys are integers from 0 to 2**64 - 1, got {key!r:.60}")
    return number


def as_priorities(priorities: object, count: int) -> NDArray[np.float64]:
    """Return priorities as a new float64 ``[count]``.

    Raises:
        InvalidArgument: they are not as many, or one is not finite.
    """
    try:
        array = np.array(priorities, np.float64)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidArgument(f"priorities are numbers [{count}], got {_kind(priorities)} ({error})") from error
    if array.shape != (count,):
        raise InvalidArgument(
            f"priorities are [{count}], one per key, got the shape {list(array.shape)}"
            + (": np.ravel them" if array.size == count else "")
        )
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InvalidArgument(f"priorities must be finite, number {at} is {array[at]}")
    return array


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
