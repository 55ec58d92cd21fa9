"""What sampling returns: one item as a `Sample`, many as a `Batch`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reverb_async.client.sampling.collate import Collator
from reverb_async.client.updates import as_priorities
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.sampled import SampledBatch


class PriorityUpdater(Protocol):
    """Where new priorities go."""

    async def update(self, keys: NDArray[np.uint64], priorities: NDArray[np.float64]) -> None:
        """Queue them, or set them."""


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """What the table knew of an item when it was drawn.

    Attributes:
        key: its key.
        probability: of this draw, at the time it was made.
        table_size: items in the table at that time.
        priority: its priority.
        times_sampled: how often it has been sampled, this draw included.
        rate_limited: the draw had to wait for the rate limiter.
        inserted_at: seconds since the epoch, by the server's clock.
    """

    key: int
    probability: float
    table_size: int
    priority: float
    times_sampled: int
    rate_limited: bool
    inserted_at: float


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One item.

    Attributes:
        data: as it was inserted: arrays are the caller's own, numbers are NumPy scalars, text and bytes Python's.
        info: what the table knew of it.
    """

    data: Any
    info: SampleInfo


@dataclass(frozen=True, slots=True, eq=False)
class BatchInfo:
    """What the table knew of the items of a batch: `SampleInfo` as arrays, ``[B]`` each.

    Attributes:
        key: uint64.
        probability: float64.
        table_size: int64.
        priority: float64.
        times_sampled: int32.
        rate_limited: bool.
        inserted_at: float64, seconds since the epoch, by the server's clock.
    """

    key: NDArray[np.uint64]
    probability: NDArray[np.float64]
    table_size: NDArray[np.int64]
    priority: NDArray[np.float64]
    times_sampled: NDArray[np.int32]
    rate_limited: NDArray[np.bool_]
    inserted_at: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B items.

    Attributes:
        data: nested like an item; a leaf is ``[B, *item_shape]``, or what `ragged` asked for.
        info: what the table knew of them.
        lengths: with ``ragged="pad"``, nested like `data`: int64 ``[B]``, each item's rows; else None.
        table: the name of the table they are from.
    """

    data: Any
    info: BatchInfo
    lengths: Any
    table: str
    _updater: PriorityUpdater = field(repr=False)

    def __len__(self) -> int:
        return len(self.info.key)

    async def update_priorities(self, priorities: ArrayLike) -> None:
        """Give the items new priorities; of an item that was drawn several times, the last one counts.

        Returns once they are checked and queued: they travel with the stream's next request and are applied before any
        later draw for it. After the stream was left, and for `Client.sample_batch`, they are.

        Args:
            priorities: ``[B]``; copied.

        Raises:
            InvalidArgument: they are not B, or one is not finite, or not one that the table's sampler takes.
        """
        await self._updater.update(self.info.key.copy(), as_priorities(priorities, len(self.info.key)))

    def importance_weights(self, exponent: float, *, normalize: Literal["max"] | None = "max") -> NDArray[np.float32]:
        """Return ``(table_size * probability) ** -exponent``, float32 ``[B]`` (Schaul et al., 2016, arXiv:1511.05952).

        Args:
            exponent: the paper's beta: 0 corrects nothing, 1 everything.
            normalize: ``"max"`` divides by the largest of the batch; None does not.

        Raises:
            InvalidArgument: `exponent` is no finite number, or `normalize` something else.
        """
        if isinstance(exponent, bool) or not isinstance(exponent, int | float | np.number) or not np.isfinite(exponent):
            raise InvalidArgument(f"exponent must be a finite number, usually from 0 to 1, got {exponent!r:.60}")
        if normalize not in ("max", None):
            raise InvalidArgument(f"normalize is 'max' or None, got {normalize!r:.60}")
        weights = (self.info.table_size * self.info.probability) ** -float(exponent)
        if normalize == "max" and len(weights):
            weights /= weights.max()
        return weights.astype(np.float32)


def make_sample(sampled: SampledBatch, collator: Collator) -> Sample:
    """Return the only item of a batch."""
    info = SampleInfo(
        sampled.keys.item(0),
        sampled.probabilities.item(0),
        sampled.table_sizes.item(0),
        sampled.priorities.item(0),
        sampled.times_sampled.item(0),
        sampled.rate_limited,
        sampled.inserted_at.item(0),
    )
    return Sample(collator.single(sampled), info)


def make_batch(sampled: SampledBatch, collator: Collator, table: str, updater: PriorityUpdater) -> Batch:
    """Return a batch as the caller asked for it.

    Raises:
        InvalidArgument: its items do not go together.
    """
    data, lengths = collator.batch(sampled)
    info = BatchInfo(
        sampled.keys,
        sampled.probabilities,
        sampled.table_sizes,
        sampled.priorities,
        sampled.times_sampled,
        (np.ones if sampled.rate_limited else np.zeros)(len(sampled.keys), np.bool_),
        sampled.inserted_at,
    )
    return Batch(data, info, lengths, table, updater)
