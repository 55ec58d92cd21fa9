"""What tables answer: draws of items, and what a change did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.runs import Rows


@dataclass(slots=True)
class Draw:
    """Items drawn in one step; whoever drew them acknowledges them or hands them back.

    Attributes:
        generation: the table's reset count at the time.
        slots: int64 ``[n]``.
        keys: uint64 ``[n]``.
        probabilities: float64 ``[n]``, of each draw at the time it was made.
        priorities: float64 ``[n]``.
        times_sampled: int32 ``[n]``, this draw included.
        table_sizes: int64 ``[n]``, items in the table just before each draw's removals.
        inserted_at: float64 ``[n]``, seconds since the epoch.
        versions: uint32 ``[n]``; a slot with another version holds another item by now.
        rate_limited: the caller had to wait for the rate limiter.
    """

    generation: int
    slots: Rows
    keys: NDArray[np.uint64]
    probabilities: NDArray[np.float64]
    priorities: NDArray[np.float64]
    times_sampled: NDArray[np.int32]
    table_sizes: NDArray[np.int64]
    inserted_at: NDArray[np.float64]
    versions: NDArray[np.uint32]
    rate_limited: bool = False

    def __len__(self) -> int:
        return len(self.slots)

    def part(self, start: int, stop: int) -> Draw:
        """Return the draws ``[start:stop]``, which may be acknowledged or handed back for themselves."""
        if start == 0 and stop == len(self.slots):
            return self
        return Draw(
            self.generation,
            self.slots[start:stop],
            self.keys[start:stop],
            self.probabilities[start:stop],
            self.priorities[start:stop],
            self.times_sampled[start:stop],
            self.table_sizes[start:stop],
            self.inserted_at[start:stop],
            self.versions[start:stop],
            self.rate_limited,
        )

    @classmethod
    def join(cls, draws: list[Draw]) -> Draw:
        """Return several draws of one table as one, in order."""
        if len(draws) == 1:
            return draws[0]

        return cls(
            draws[0].generation,
            np.concatenate([draw.slots for draw in draws]),
            np.concatenate([draw.keys for draw in draws]),
            np.concatenate([draw.probabilities for draw in draws]),
            np.concatenate([draw.priorities for draw in draws]),
            np.concatenate([draw.times_sampled for draw in draws]),
            np.concatenate([draw.table_sizes for draw in draws]),
            np.concatenate([draw.inserted_at for draw in draws]),
            np.concatenate([draw.versions for draw in draws]),
            any(draw.rate_limited for draw in draws),
        )


@dataclass(frozen=True, slots=True)
class MutateResult:
    """What `mutate_priorities` did.

    Attributes:
        updated: items whose priority was set.
        deleted: items removed.
        unknown: distinct keys that named no item of the table.
    """

    updated: int
    deleted: int
    unknown: int
