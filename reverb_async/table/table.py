"""Table: a `TableState` whose rate limiter is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from reverb_async.core import rate_limiters, selectors
from reverb_async.core.draw import Draw, MutateResult
from reverb_async.core.encoded import EncodedLayout
from reverb_async.core.gather import GatherPlan
from reverb_async.core.info import CallStats, RateLimiterInfo, TableInfo, WaiterInfo
from reverb_async.core.item import ItemBlock, ItemLayout
from reverb_async.core.mutation import Mutation
from reverb_async.core.spec import Signature
from reverb_async.core.table_state import TableState
from reverb_async.errors import InvalidArgument, RateLimiterTimeout, ReplayError, SignatureMismatch, TableClosed
from reverb_async.metrics import RateMeter
from reverb_async.table.definition import check_definition, check_size, definition_from_plain, definition_to_plain
from reverb_async.table.insert_queue import InsertQueue
from reverb_async.table.sample_request import SampleRequest
from reverb_async.waiting import Deadline, Gate, reported

MAX_STEP_ITEMS = 65_536
"""No synchronous step touches more items than this."""

Notice = Callable[[str], None]

_UNIFORM, _FIFO, _AT_LEAST_ONE = selectors.Uniform(), selectors.Fifo(), rate_limiters.MinSize(1)


class Table:
    """A named set of items with a sampler, a remover and a rate limiter.

    Args:
        name: what clients call it.
        max_size: items it holds; one more evicts the remover's choice.
        sampler: picks items to sample.
        remover: picks items to evict.
        rate_limiter: admits inserts and samples.
        max_times_sampled: an item leaves the table with its n-th sample; 0 means never.
        max_bytes: evict also while the rows that all items show, the newest one included, have more bytes than this;
            what several items show counts for each of them, at its decoded size. A larger item is refused. What a
            server takes in memory is bounded by `Limits`.
        signature: a nest of `ArraySpec` that sampled data must match; None takes anything.
        seed: makes the draws reproducible.

    Raises:
        InvalidArgument: a value that cannot work, named with what would.
    """

    def __init__(
        self,
        name: str,
        *,
        max_size: int,
        sampler: selectors.Selector = _UNIFORM,
        remover: selectors.Selector = _FIFO,
        rate_limiter: rate_limiters.RateLimiter = _AT_LEAST_ONE,
        max_times_sampled: int = 0,
        max_bytes: int | None = None,
        signature: Any = None,
        seed: int | None = None,
    ) -> None:
        self._config: dict[str, Any] = {
            "name": name,
            "max_size": max_size,
            "sampler": sampler,
            "remover": remover,
            "rate_limiter": rate_limiter,
            "max_times_sampled": max_times_sampled,
            "max_bytes": max_bytes,
            "signature": signature,
            "seed": seed,
        }
        check_definition(self._config)
        self._signature = Signature.of(signature)
        self._fitting: WeakKeyDictionary[ItemLayout, list[tuple[int, int, int | None]]] = WeakKeyDictionary()
        try:
            self.state = self.new_state()
        except MemoryError:
            raise InvalidArgument(
                f"table {name!r}: max_size={max_size} needs more address space than this machine gives: "
                f"use a smaller one"
            ) from None
        self._last_insert = 0.0
        self.inserted = RateMeter()
        self.sampled = RateMeter()
        self.num_writers = 0
        """Insert streams that may bring items; only for messages."""
        self.num_samplers = 0
        """Sample streams open on this table; only for messages."""
        self._open = False
        self._closed = False
        self._ending = False
        self.refusal: ReplayError | None = None
        """Why nothing may change the table now but samplers; None: everybody may."""
        self.inserters = InsertQueue()
        """Where inserts wait; see `RowInsertion`."""
        self._samplers = Gate()
        self._at_head: SampleRequest | None = None
        """What the head of the waiting samplers wants."""

    @classmethod
    def queue(cls, name: str, max_size: int, *, signature: Any = None, max_bytes: int | None = None) -> Table:
        """Return a table that hands out every item once, oldest first; inserts wait while it is full."""
        check_size(name, max_size)
        return cls._once(name, max_size, selectors.Fifo(), rate_limiters.Queue(max_size), signature, max_bytes)

    @classmethod
    def stack(cls, name: str, max_size: int, *, signature: Any = None, max_bytes: int | None = None) -> Table:
        """Return a table that hands out every item once, newest first; inserts wait while it is full."""
        check_size(name, max_size)
        return cls._once(name, max_size, selectors.Lifo(), rate_limiters.Stack(max_size), signature, max_bytes)

    @classmethod
    def _once(
        cls,
        name: str,
        max_size: int,
        order: selectors.Selector,
        limiter: rate_limiters.RateLimiter,
        signature: Any,
        max_bytes: int | None,
    ) -> Table:
        return cls(
            name,
            max_size=max_size,
            sampler=order,
            remover=order,
            rate_limiter=limiter,
            max_times_sampled=1,
            max_bytes=max_bytes,
            signature=signature,
        )

    def new_state(self) -> TableState:
        """Return an empty state for a table of this definition."""
        config = self._config
        return TableState(
            max_size=int(config["max_size"]),
            sampler=config["sampler"],
            remover=config["remover"],
            rate_limiter=config["rate_limiter"],
            max_times_sampled=int(config["max_times_sampled"]),
            max_bytes=config["max_bytes"],
            rng=np.random.default_rng(config["seed"]),
        )

    def adopt(
        self, state: TableState, saved: Mapping[str, Any], *, resume: bool, unsaved: NDArray[np.int64] | None
    ) -> None:
        """Take a state that was restored, which nobody uses yet.

        Args:
            state: from `new_state`, filled.
            saved: the definition it had when it was saved.
            resume: note what changes from here on, for the next cut.
            unsaved: see `TableImage.unsaved`.
        """
        mine = self.definition
        if resume:  # unless the items have other places now
            is_same = all(mine[name] == saved[name] for name in ("name", "sampler", "remover"))
            state.watch(is_saved=is_same and unsaved is not None)
            if unsaved is not None:
                state.note_unsaved(unsaved)
        state.settle_restored(make_room=any(mine[name] != saved[name] for name in ("max_size", "max_bytes")))
        state.listeners = self.state.listeners
        state.count_in(self.state.memory)
        self.state = state
        live = state.live_slots()
        self._last_insert = float(state.slots.inserted_at[live].max()) if len(live) else 0.0

    @property
    def definition(self) -> dict[str, Any]:
        """The arguments the table was made with, as values MessagePack and JSON know."""
        return definition_to_plain(self._config)

    @classmethod
    def from_definition(cls, definition: Mapping[str, Any]) -> Table:
        """Return a table of a definition that `definition` gave.

        Raises:
            InvalidArgument: it is none.
        """
        config = definition_from_plain(definition)
        return cls(config.pop("name"), **config)

    def redefine(self, definition: Mapping[str, Any]) -> None:
        """Take on another definition of the same name, as `definition` gave it; nothing has happened to the table yet.

        Raises:
            InvalidArgument: it is none.
        """
        other = type(self).from_definition(definition)
        other.state.count_in(self.state.memory)
        self._config, self._signature, self.state = other._config, other._signature, other.state
        self._fitting.clear()

    def replace(self, **overrides: Any) -> Table:
        """Return a new, empty table with this one's definition, some of it replaced."""
        unknown = sorted(set(overrides) - set(self._config))
        if unknown:
            raise InvalidArgument(f"Table has no {unknown[0]!r}; what can be replaced: {', '.join(self._config)}")
        config = {**self._config, **overrides}
        return type(self)(config.pop("name"), **config)

    @property
    def name(self) -> str:
        """What clients call it."""
        return str(self._config["name"])

    @property
    def signature(self) -> Signature | None:
        """What sampled data must look like."""
        return self._signature

    def __repr__(self) -> str:
        return f"<Table {self.name!r}: {self.state.size} of {self.state.max_size} items>"

    def can_insert(self, n: int) -> bool:
        """Whether the rate limiter admits `n` more inserts now."""
        return self.state.limiter.can_insert(n)

    def can_sample(self, n: int) -> bool:
        """Whether the rate limiter admits `n` more samples now, those that `max_times_sampled` would end aside."""
        return self.state.limiter.can_sample(n)

    # -- inserting ----------------------------------------------------------------------------------------------------

    def check(self, block: ItemBlock) -> None:
        """Refuse a block that can never enter; changes nothing.

        Raises:
            SignatureMismatch: the items do not look as the signature says.
            InvalidArgument: a priority the selectors refuse, or an item beyond `max_bytes`.
        """
        if self._signature is not None and not isinstance(block.layout, EncodedLayout):  # whose door has checked them
            for at, view, wanted in self._fit(block.layout):
                length = block.views[view].length
                if wanted is not None and not bool((length == wanted).all()):
                    raise SignatureMismatch(
                        f"table {self.name!r}: {block.layout.structure.paths[at]} has "
                        f"{int(length[length != wanted][0])} steps, the signature wants {wanted}"
                    )
        self.state.check_insert(block)

    def _fit(self, layout: ItemLayout) -> list[tuple[int, int, int | None]]:
        """Check a layout against the signature, once; return (leaf, view, steps) of leaves with a time axis."""
        fit = self._fitting.get(layout)
        if fit is None:
            assert self._signature is not None
            self._signature.check(layout.structure, layout.sampled_specs(), what=f"table {self.name!r}")
            wanted = dict(zip(self._signature.structure.paths, self._signature.specs, strict=True))
            fit = []
            for at, (path, leaf) in enumerate(zip(layout.structure.paths, layout.leaves, strict=True)):
                shape = wanted[path].shape
                row_shape = layout.row_spec(leaf).shape
                if any(
                    have is None and want is not None for have, want in zip(row_shape[::-1], shape[::-1], strict=False)
                ):
                    raise SignatureMismatch(
                        f"table {self.name!r}: {path} comes in rows of varying shape {row_shape}, "
                        f"the signature wants {shape}"
                    )
                if not leaf.squeeze:
                    fit.append((at, leaf.view, shape[0]))
            self._fitting[layout] = fit
        return fit

    def insert_now(self, block: ItemBlock) -> None:
        """Insert a block that was checked and admitted; see `RowInsertion` for those that may have to wait."""
        self._last_insert = time.time()
        self.state.insert(block, self._last_insert)
        self.inserted.count(len(block))
        if self.state.limiter.can_sample(1):
            self._samplers.wake()

    def insert_refusal(self) -> str:
        """Say why the next insert is not admitted."""
        reason = self.state.limiter.insert_refusal(1)
        if not reason:
            if not self.state.slots.num_free:
                reason = "waits for samplers to acknowledge items"
            elif self.state.waits_for_memory:
                return f"table {self.name!r} {self.state.memory.refusal()}"
            else:
                reason = "serves inserts that came earlier"
        return f"table {self.name!r} {reason}; {_connected(self.num_samplers, 'sampler')}"

    def raise_if_closed(self) -> None:
        """Raise `TableClosed` after `close`."""
        if self._closed:
            raise TableClosed(f"table {self.name!r} is closed: its server is stopping")

    def raise_if_refusing(self) -> None:
        """Raise `TableClosed` after `close`, and `refusal` if there is one."""
        self.raise_if_closed()
        if self.refusal is not None:
            raise type(self.refusal)(str(self.refusal))

    def refuse_changes(self, refusal: ReplayError | None) -> None:
        """Refuse all changes but those of samplers with this error from now on, or, with None, none any more."""
        self.refusal = refusal
        self.inserters.wake()

    def raise_if_ending(self) -> None:
        """Raise `TableClosed` after `end_waits` or `close`: what is not admitted now never will be."""
        if self._ending or self._closed:
            raise TableClosed(f"table {self.name!r} is closed: its server is stopping")

    # -- sampling -----------------------------------------------------------------------------------------------------

    async def sample(
        self,
        n: int,
        *,
        deadline: Deadline | None = None,
        partial: bool = False,
        any_number: bool = False,
        notice: Notice | None = None,
        peer: str = "",
    ) -> Draw:
        """Draw `n` items, waiting for the rate limiter.

        Without `max_times_sampled` the admitted draws are counted while waiting and all `n` are drawn at the end; with
        it, items are drawn as they are admitted. Cancelling, or running out of time, undoes either. Whoever gets the
        draw must call `acknowledge` or `hand_back` with it.

        Args:
            n: how many.
            deadline: when to give up.
            partial: when the time is up, return what there is, if there is any.
            any_number: return as soon as there is any, with all there is then, `n` items at most.
            notice: called with a text when the wait gets long.

        Raises:
            RateLimiterTimeout: the deadline passed; nothing was drawn.
            TableClosed: the table was closed.
        """
        self.raise_if_closed()
        request = SampleRequest(self.state, n, any_number=any_number)
        if len(self._samplers) or not request.fill():
            await self._wait_for_samples(request, deadline or Deadline(None), partial, notice, peer)
        draw = request.draw()
        self.sampled.count(len(draw))
        self.inserters.wake()
        return draw

    def sample_now(self, n: int, most: int) -> Draw | None:
        """Draw up to `most` times `n` items in one step, as calls of `sample` would do one after the other.

        Every `n` of them may be acknowledged or handed back for themselves (`Draw.part`).

        Returns:
            A multiple of `n` items, the first n being the first call's and so on; None if the first call had to wait.

        Raises:
            TableClosed: the table was closed.
        """
        self.raise_if_closed()
        if len(self._samplers):
            return None
        calls = self.state.admitted_samples(n * most) // n
        if not calls:
            return None
        draw = self.state.draw(calls * n)
        whole = len(draw) - len(draw) % n
        if whole < len(draw):  # `max_times_sampled` has emptied the table; the call that comes last has to wait.
            self.state.hand_back(draw.part(whole, len(draw)))
            draw = draw.part(0, whole)
        if not whole:
            return None
        self.sampled.count(whole)
        self.inserters.wake()
        return draw

    async def _wait_for_samples(
        self, request: SampleRequest, deadline: Deadline, partial: bool, notice: Notice | None, peer: str
    ) -> None:
        def refusal() -> str:
            return self._sample_refusal(request)

        try:
            with self._samplers.standing(peer), reported(refusal, notice, crowd=self._samplers):
                async with deadline:
                    if len(self._samplers) > 1:
                        deadline.check()
                    async with self._samplers.turn:
                        self.raise_if_ending()
                        self._at_head = request
                        while not request.fill():
                            self.inserters.wake()  # What was reserved or drawn may admit inserts.
                            deadline.check()
                            await self._samplers.wait()
                            self.raise_if_ending()
        except TimeoutError:
            if not (partial and request.cut_short()):
                reason = refusal()  # before the request's own share is given back
                request.undo()
                self._wake_all()
                raise RateLimiterTimeout(reason) from None
        except BaseException:
            request.undo()
            self._wake_all()
            raise
        finally:
            if self._at_head is request:
                self._at_head = None
        request.waited = True

    def acknowledge(self, draw: Draw) -> None:
        """The caller's client has the items: they cannot be handed back any more."""
        self.state.acknowledge(draw)
        self.inserters.wake()

    def hand_back(self, draw: Draw) -> None:
        """Undo a draw that its client did not take."""
        self.state.hand_back(draw)
        self._wake_all()

    def plan(self, draw: Draw) -> GatherPlan:
        """Find the rows of a fresh draw; call it in the step that drew."""
        return GatherPlan(self.state.slots, draw.slots)

    def _sample_refusal(self, request: SampleRequest) -> str:
        reason = self.state.limiter.sample_refusal(request.missing) or "serves samples that came earlier"
        if request.count:
            reason += f"; {request.count} of the {request.size} items of the batch are collected"
        return f"table {self.name!r} {reason}; {_connected(self.num_writers, 'writer')}"

    # -- changing -----------------------------------------------------------------------------------------------------

    def mutate(
        self, keys: NDArray[np.uint64], priorities: NDArray[np.float64], deletes: NDArray[np.uint64]
    ) -> MutateResult:
        """Set priorities, then delete, in one step; see `TableState.mutate`."""
        self.raise_if_refusing()
        result = self.state.mutate(keys, priorities, deletes)
        if result.deleted:
            self.inserters.wake()
        return result

    def mutate_all(self, calls: Sequence[Mutation]) -> list[MutateResult | InvalidArgument]:
        """Do what `mutate` does for one call after the other, in one step; see `TableState.mutate_all`."""
        self.raise_if_refusing()
        results = self.state.mutate_all(calls)
        if any(isinstance(result, MutateResult) and result.deleted for result in results):
            self.inserters.wake()
        return results

    def reset(self) -> None:
        """Remove all items and set the counts to zero; waiting calls go on with the empty table."""
        self.raise_if_refusing()
        self.state.reset()
        self._wake_all()
        asyncio.get_running_loop().call_soon(self._dismantle)

    def _dismantle(self) -> None:
        if self.state.dismantle(MAX_STEP_ITEMS):
            asyncio.get_running_loop().call_soon(self._dismantle)

    def open(self) -> None:
        """Admit calls of the running event loop, also again after `close`.

        Raises:
            InvalidArgument: the table is open for another server.
        """
        if self._open:
            raise InvalidArgument(
                f"table {self.name!r} belongs to a running server: close that one, or make a new table with replace()"
            )
        self._open, self._closed, self._ending = True, False, False
        # What has been waited for is bound to the event loop of that time.
        if not len(self.inserters):
            self.inserters = InsertQueue()
        if not len(self._samplers):
            self._samplers = Gate()

    def end_waits(self) -> None:
        """End every wait with `TableClosed`, now and from now on; what need not wait goes on until `close`."""
        self._ending = True
        self._wake_all()

    def close(self) -> None:
        """End every wait with `TableClosed` and refuse new calls. Idempotent."""
        self._open, self._closed = False, True
        self._wake_all()

    def _wake_all(self) -> None:
        self.inserters.wake()
        self._samplers.wake()

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def info(self) -> TableInfo:
        """What there is to know about the table now. O(items), for the oldest one's age, if no selector is `Fifo`."""
        state, limiter = self.state, self.state.limiter
        waiters = []
        if len(self.inserters):
            waiters.append(
                WaiterInfo(
                    kind="insert",
                    reason=self.insert_refusal(),
                    since=self.inserters.oldest,
                    count=len(self.inserters),
                    peers=self.inserters.peers,
                )
            )
        if len(self._samplers):
            waiters.append(
                WaiterInfo(
                    kind="sample",
                    reason=self._sample_refusal(self._at_head or SampleRequest(state, 1)),
                    since=self._samplers.oldest,
                    count=len(self._samplers),
                    peers=self._samplers.peers,
                )
            )
        oldest, now = state.oldest_inserted_at(), time.time()
        return TableInfo(
            name=self.name,
            sampler_options=self._config["sampler"].options(),
            remover_options=self._config["remover"].options(),
            max_size=state.max_size,
            max_times_sampled=state.max_times_sampled,
            rate_limiter_info=RateLimiterInfo(
                samples_per_insert=limiter.limiter.samples_per_insert,
                min_size_to_sample=limiter.limiter.min_size_to_sample,
                min_diff=limiter.limiter.min_diff,
                max_diff=limiter.limiter.max_diff,
                insert_stats=CallStats(limiter.inserts),
                sample_stats=CallStats(limiter.samples),
            ),
            signature=None if self._signature is None else self._signature.nest,
            current_size=state.size,
            num_episodes=state.episodes.num_episodes,
            num_deleted_episodes=state.episodes.num_deleted,
            num_unique_samples=state.num_unique_samples,
            num_deletes=limiter.deletes,
            stored_bytes=state.nbytes,
            stored_rows=0,
            waiters=tuple(waiters),
            inserts_per_second=self.inserted.per_second(),
            samples_per_second=self.sampled.per_second(),
            oldest_item_age=0.0 if oldest is None else now - oldest,
            newest_item_age=0.0 if oldest is None else now - self._last_insert,
        )


def _connected(count: int, kind: str) -> str:
    return f"{count} {kind}{'' if count == 1 else 's'} connected"
