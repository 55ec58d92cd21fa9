"""Strategies that pick items: as a table's *sampler* those to sample, as its *remover* those that make room.

The descriptions here are frozen values that tables may share; `build` makes the state that works for one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from reverb_async.core.selectors.base import SelectorState
from reverb_async.core.selectors.heap import MaxHeap, MinHeap
from reverb_async.core.selectors.ordered import Fifo, Lifo
from reverb_async.core.selectors.prioritized import Prioritized
from reverb_async.core.selectors.uniform import Uniform
from reverb_async.errors import InvalidArgument

Selector: TypeAlias = Uniform | Prioritized | Fifo | Lifo | MinHeap | MaxHeap

__all__ = [
    "Fifo",
    "Lifo",
    "MaxHeap",
    "MinHeap",
    "Prioritized",
    "Selector",
    "SelectorState",
    "Uniform",
    "from_options",
]


def from_options(options: Mapping[str, object]) -> Selector:
    """Return the selector that `options()` described; ``is_deterministic`` may be absent, the rest must be exact.

    Raises:
        InvalidArgument: no selector has these options.
    """
    match {name: value for name, value in options.items() if name != "is_deterministic"}:
        case {"uniform": True, **rest} if not rest:
            return Uniform()
        case {"fifo": True, **rest} if not rest:
            return Fifo()
        case {"lifo": True, **rest} if not rest:
            return Lifo()
        case {"heap": {"min_heap": bool(is_min)}, **rest} if not rest:
            return MinHeap() if is_min else MaxHeap()
        case {"prioritized": {"priority_exponent": float() | int() as exponent}, **rest} if not rest:
            return Prioritized(exponent)
    raise InvalidArgument(
        f"no selector has the options {dict(options)!r}; known are fifo, lifo, uniform (each True), "
        "heap {'min_heap': bool} and prioritized {'priority_exponent': number}"
    )
