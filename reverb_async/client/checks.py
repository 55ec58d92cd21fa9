"""What a client checks before it sends items to a table: the server would refuse them too, later and less clearly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.info import TableInfo
from reverb_async.core.nest import Path
from reverb_async.core.spec import ArraySpec, Signature
from reverb_async.errors import InvalidArgument

MAX_VARIABLE_RANK = 8
"""Columns of a higher rank cannot be variable."""


class Target:
    """A table as a sender sees it.

    Attributes:
        name: the table's name.
        signature: what its items look like, or None.
        by_path: the signature's specs.
        is_prioritized: its sampler refuses negative priorities.
    """

    __slots__ = ("by_path", "is_prioritized", "name", "signature")

    def __init__(self, info: TableInfo) -> None:
        self.name = info.name
        self.signature = Signature.of(info.signature)
        self.by_path: dict[Path, ArraySpec] = {}
        if self.signature is not None:
            self.by_path = dict(zip(self.signature.structure.paths, self.signature.specs, strict=True))
        self.is_prioritized = "prioritized" in info.sampler_options

    def priority(self, value: object) -> float:
        """Return an item's priority; NaN, which asks for the highest so far, for None.

        Raises:
            InvalidArgument: it is no number, not finite, or negative where it must not be.
        """
        return as_priority(value, self.name, is_prioritized=self.is_prioritized)

    def priorities(self, value: object, count: int) -> NDArray[np.float64]:
        """Return priorities of `count` items, float64 ``[count]``, from one for all, one each, or None.

        Raises:
            InvalidArgument: naming the first that is wrong, or the wrong shape.
        """
        if value is None or isinstance(value, int | float | str):
            return np.full(count, self.priority(value))
        try:
            array = np.array(value)
            if array.dtype.kind not in "biuf":
                raise TypeError
            array = array.astype(np.float64, copy=False)
        except (TypeError, ValueError):
            raise InvalidArgument(
                f"table {self.name!r}: priorities are a number, {count} numbers or None, got {value!r:.60}"
            ) from None
        if array.ndim == 0:
            return np.full(count, self.priority(array.item()))
        if array.shape != (count,):
            raise InvalidArgument(
                f"table {self.name!r}: a batch of {count} rows needs one priority, or {count}, "
                f"got shape {list(array.shape)}"
            )
        wrong = ~np.isfinite(array)
        if self.is_prioritized:
            wrong |= array < 0
        if wrong.any():
            self.priority(array[int(wrong.argmax())].item())
        return array


def targets_of(tables: Mapping[str, TableInfo]) -> dict[str, Target]:
    """Return what to check, by table."""
    return {name: Target(info) for name, info in tables.items()}


def as_priority(value: object, table: str, *, is_prioritized: bool) -> float:
    """Return an item's priority; NaN for None. See `Target.priority`."""
    if value is None:
        return math.nan
    if type(value) is not float:
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            value = float(value)  # type: ignore[arg-type]  # its TypeError is caught
        except (TypeError, ValueError):
            raise InvalidArgument(
                f"table {table!r}: a priority is a number, or None for the highest so far, got {value!r:.60}"
            ) from None
    if not math.isfinite(value):
        raise InvalidArgument(f"table {table!r}: a priority must be finite, got {value}")
    if value < 0 and is_prioritized:
        raise InvalidArgument(f"table {table!r}: its sampler is Prioritized, so a priority must be >= 0, got {value}")
    return value


def widened(spec: ArraySpec, shape: Sequence[int | None]) -> ArraySpec | None:
    """Return a spec that takes rows of `spec` and of `shape`; None if no column holds both."""
    if spec.admits(shape):
        return spec
    if len(spec.shape) != len(shape) or len(shape) > MAX_VARIABLE_RANK:
        return None
    extents = (one if one == other else None for one, other in zip(spec.shape, shape, strict=True))
    return ArraySpec(extents, spec.dtype)


def check_timeout(timeout: object) -> None:
    """Refuse what is no number of seconds."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float | np.number) or not timeout >= 0:
        raise InvalidArgument(f"timeout is seconds >= 0, or None to wait as long as it takes, got {timeout!r:.60}")


def positive(value: int, what: str) -> int:
    """Return an int; refuse what is none, or below 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidArgument(f"{what} must be an int >= 1, got {value!r:.60}")
    return int(value)


def check_chunk_length(length: int | None, keep: int) -> None:
    """Refuse what Reverb would refuse; nothing depends on it here."""
    if length is not None and positive(length, "the chunk length") > keep:
        raise InvalidArgument(f"the chunk length must not exceed num_keep_alive_refs={keep}, got {length}")
