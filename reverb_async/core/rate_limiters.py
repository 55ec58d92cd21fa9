"""When a table admits inserts and samples.

A limiter compares the table's counts with each other. With `I` inserts, `S` samples and `D` deletes so far::

    n more inserts are admitted   while  I + n - D <= min_size_to_sample,
                                  and if (I + n) * samples_per_insert - S <= max_diff
    n more samples are admitted   if     I - D >= min_size_to_sample
                                  and    I * samples_per_insert - S - n >= min_diff

Deletes do not change ``I * samples_per_insert - S``: emptying a table does not let more inserts in than it holds
fewer than `min_size_to_sample` items.
"""

from __future__ import annotations

import math
import operator
import sys
import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reverb_async.errors import InvalidArgument

_UNBOUNDED = sys.float_info.max


@dataclass(frozen=True, slots=True)
class RateLimiter:
    """The four numbers of the rule above, as they are.

    Raises:
        InvalidArgument: `samples_per_insert` is not a finite number > 0, `min_size_to_sample` not an integer >= 1, or
            a bound is not a number.
    """

    samples_per_insert: float
    min_size_to_sample: int
    min_diff: float
    max_diff: float

    def __post_init__(self) -> None:
        _set = object.__setattr__
        _set(self, "samples_per_insert", _positive("samples_per_insert", self.samples_per_insert))
        _set(self, "min_size_to_sample", _count("min_size_to_sample", self.min_size_to_sample))
        _set(self, "min_diff", _number("min_diff", self.min_diff))
        _set(self, "max_diff", _number("max_diff", self.max_diff))


class MinSize(RateLimiter):
    """Admit samples once the table holds `min_size_to_sample` items; admit inserts always."""

    __slots__ = ()

    def __init__(self, min_size_to_sample: int) -> None:
        super().__init__(1.0, min_size_to_sample, -_UNBOUNDED, _UNBOUNDED)

    def __repr__(self) -> str:
        return f"MinSize({self.min_size_to_sample})"


class SampleToInsertRatio(RateLimiter):
    """Keep samples and inserts in step: `samples_per_insert` samples for each insert, give or take a buffer.

    Args:
        samples_per_insert: samples wanted per insert, on average.
        min_size_to_sample: items the table must hold before it is sampled.
        error_buffer: a number allows ``samples_per_insert * min_size_to_sample`` plus and minus that number for
            ``inserts * samples_per_insert - samples``; a pair gives the bounds themselves.

    Raises:
        InvalidArgument: a number is out of range, or the bounds would block the table for ever.
    """

    __slots__ = ()

    def __init__(
        self,
        samples_per_insert: float,
        min_size_to_sample: int,
        error_buffer: float | Sequence[float] | NDArray[np.floating],
    ) -> None:
        ratio = _positive("samples_per_insert", samples_per_insert)
        centre = ratio * _number("min_size_to_sample", min_size_to_sample)
        if np.ndim(error_buffer) == 0:
            buffer = _number("error_buffer", error_buffer)
            low, high = centre - buffer, centre + buffer
        else:
            if np.shape(error_buffer) != (2,):
                raise InvalidArgument(f"error_buffer must be a number or a pair (low, high), got {error_buffer!r}")
            low, high = (_number("error_buffer", bound) for bound in np.asarray(error_buffer))
        least = 2.0 * max(1.0, ratio)
        if not high - low >= least:
            raise InvalidArgument(
                f"error_buffer {error_buffer!r} leaves {high - low:g} between the bounds; "
                f"with samples_per_insert {ratio:g} it takes at least {least:g}: error_buffer >= {least / 2:g}"
            )
        if high < centre:
            warnings.warn(
                f"the upper bound {high:g} of error_buffer is below samples_per_insert * min_size_to_sample = "
                f"{centre:g}: after deletes, inserts and samples may wait for each other",
                stacklevel=2,
            )
        if low > centre:
            raise InvalidArgument(
                f"the lower bound {low:g} of error_buffer is above samples_per_insert * min_size_to_sample = "
                f"{centre:g}: sampling would not start at min_size_to_sample"
            )
        super().__init__(ratio, min_size_to_sample, low, high)

    def __repr__(self) -> str:
        bounds = (self.min_diff, self.max_diff)
        return f"SampleToInsertRatio({self.samples_per_insert}, {self.min_size_to_sample}, {bounds})"


class Queue(RateLimiter):
    """Admit `size` inserts more than there were samples, and a sample for each insert; for `Table.queue`."""

    __slots__ = ()

    def __init__(self, size: int) -> None:
        super().__init__(1.0, 1, 0.0, float(_count("size", size)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self.max_diff)})"


class Stack(Queue):
    """The same rule as `Queue`; for `Table.stack`."""

    __slots__ = ()


class RateLimiterState:
    """The counts of one table and what its limiter makes of them; it answers and counts, it never waits.

    Attributes:
        inserts: items inserted since the last reset.
        samples: items sampled since the last reset.
        deletes: items removed, for whatever reason, since the last reset.
    """

    __slots__ = ("deletes", "inserts", "limiter", "samples")

    def __init__(self, limiter: RateLimiter) -> None:
        self.limiter = limiter
        self.reset()

    def reset(self) -> None:
        """Start counting from zero."""
        self.inserts = 0
        self.samples = 0
        self.deletes = 0

    @property
    def size(self) -> int:
        """How many items the table holds by these counts."""
        return self.inserts - self.deletes

    def can_insert(self, n: int = 1) -> bool:
        """Whether `n` more inserts are admitted now."""
        _check_n(n)
        if self.size + n <= self.limiter.min_size_to_sample:
            return True
        return self._is_below_max(n)

    def can_sample(self, n: int = 1) -> bool:
        """Whether `n` more samples are admitted now."""
        _check_n(n)
        if self.size < self.limiter.min_size_to_sample:
            return False
        return self._is_above_min(0, n)

    def _is_below_max(self, n: int) -> bool:
        limiter = self.limiter
        return (self.inserts + n) * limiter.samples_per_insert - self.samples <= limiter.max_diff

    def _is_above_min(self, before: int, n: int) -> bool:
        """Whether `n` samples would be admitted after `before` others, as far as the bound goes."""
        limiter = self.limiter
        return self.inserts * limiter.samples_per_insert - (self.samples + before) - n >= limiter.min_diff

    def admitted_inserts(self, n: int) -> int:
        """Return how many of `n` single inserts in a row are admitted now, the table growing with each.

        A table that is full and evicts one item per insert gives the same number, as it holds at least
        `min_size_to_sample` items.
        """
        free = min(n, self.limiter.min_size_to_sample - self.size)
        return max(free, _longest_prefix(n, self._is_below_max))

    def admitted_samples(self, n: int) -> int:
        """Return how many of `n` single samples in a row are admitted now, none of them removing its item."""
        if self.size < self.limiter.min_size_to_sample:
            return 0
        return _longest_prefix(n, lambda k: self._is_above_min(k - 1, 1))

    def count_inserts(self, n: int) -> None:
        """Count `n` inserts; a negative `n` takes them back."""
        self.inserts += n

    def count_samples(self, n: int) -> None:
        """Count `n` samples; a negative `n` takes them back."""
        self.samples += n

    def count_deletes(self, n: int) -> None:
        """Count `n` deletes; a negative `n` takes them back."""
        self.deletes += n

    def insert_refusal(self, n: int = 1) -> str:
        """Say what `n` more inserts wait for, like "needs 3 more samples (...)"; empty if they are admitted."""
        if self.can_insert(n):
            return ""
        limiter = self.limiter
        missing = (self.inserts + n) * limiter.samples_per_insert - limiter.max_diff - self.samples
        return f"needs {_more(missing, 'sample')} ({self._counts()}, max_diff {limiter.max_diff:g})"

    def sample_refusal(self, n: int = 1) -> str:
        """Say what `n` more samples wait for, like "needs 412 more inserts (...)"; empty if they are admitted."""
        if self.can_sample(n):
            return ""
        limiter = self.limiter
        if self.size < limiter.min_size_to_sample:
            missing: float = limiter.min_size_to_sample - self.size
            why = f"min_size_to_sample {limiter.min_size_to_sample}, holds {self.size}"
        else:
            missing = (limiter.min_diff + self.samples + n) / limiter.samples_per_insert - self.inserts
            why = f"{self._counts()}, min_diff {limiter.min_diff:g}"
        return f"needs {_more(missing, 'insert')} ({why})"

    def _counts(self) -> str:
        ratio = self.limiter.samples_per_insert
        return f"samples_per_insert {ratio:g}, {self.inserts} inserts, {self.samples} samples so far"


def _longest_prefix(n: int, is_admitted: Callable[[int], bool]) -> int:
    """Return the largest k <= n for which `is_admitted` holds, 0 if none; it must hold for all smaller ones then."""
    if n < 1 or not is_admitted(1):
        return 0
    if is_admitted(n):
        return n
    return bisect_left(range(1, n + 1), True, key=lambda k: not is_admitted(k))


def _more(missing: float, what: str) -> str:
    # Rounding may put the limit a hair to this side; one is missing in any case.
    if not missing < 2**53:
        return f"more {what}s than can be counted"
    count = max(1, math.ceil(missing))
    return f"{count} more {what}{'s' if count > 1 else ''}"


def _check_n(n: int) -> None:
    if n < 1:
        raise InvalidArgument(f"n must be >= 1, got {n}")


def _number(name: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise InvalidArgument(f"{name} must be a number, got {value!r}")
    return number


def _positive(name: str, value: object) -> float:
    number = _number(name, value)
    if not 0.0 < number < math.inf:
        raise InvalidArgument(f"{name} must be a finite number > 0, got {value!r}")
    return number


def _count(name: str, value: object) -> int:
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidArgument(f"{name} must be an integer, got {value!r}") from None
    if count < 1:
        raise InvalidArgument(f"{name} must be >= 1, got {count}")
    return count
