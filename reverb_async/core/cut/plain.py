"""Counts, generators and layouts as plain values: dicts, lists, str, int, float, bool and None."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from reverb_async.core.encoded.items import EncodedItems
from reverb_async.core.encoded.layout import EncodedLayout
from reverb_async.core.item import ItemLayout, Layouts, Leaf
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import RowStore
from reverb_async.core.structure import Structure
from reverb_async.errors import InvalidArgument

if TYPE_CHECKING:
    from reverb_async.core.table_items import TableItems


def counts_of(
    table: TableItems, stores: Mapping[RowStore, int], definition: Mapping[str, Any]
) -> Callable[[], dict[str, Any]]:
    """Copy a table's counts, and return what writes them down later.

    Args:
        table: whose.
        stores: the number of each store that its layouts name.
        definition: what is told of the table.
    """
    counts = counters_of(table)
    generator: Mapping[str, Any] = table.rng.bit_generator.state
    layouts = list(table.slots.layouts)

    def describe() -> dict[str, Any]:
        return {
            "definition": dict(definition),
            **counts,
            "rng": _with_text(generator),
            "layouts": [None if layout is None else layout_to_plain(layout, stores) for layout in layouts],
        }

    return describe


def counters_of(table: TableItems) -> dict[str, Any]:
    """Return what a table counts."""
    limiter = table.limiter
    return {
        "size": table.size,
        "nbytes": table.nbytes,
        "high_water": table.slots.high_water,
        "generation": table.generation,
        "num_changes": table.num_changes,
        "num_unique_samples": table.num_unique_samples,
        "num_deleted_episodes": table.episodes.num_deleted,
        "highest_priority": None if table.highest_priority == -np.inf else table.highest_priority,
        # What was reserved, or drawn and not settled, is as if it had not been asked for.
        "limiter": [limiter.inserts, limiter.samples - table.num_reserved - table.num_unsettled, limiter.deletes],
        "sampler": table.sampler.counters(),
        "remover": table.remover.counters(),
    }


def _with_text(state: Any) -> Any:
    """Return a generator's state with its integers as text: some have 128 bits."""
    if isinstance(state, Mapping):
        return {name: _with_text(value) for name, value in state.items()}
    return str(state) if isinstance(state, int) else state


def _with_integers(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {name: value if name == "bit_generator" else _with_integers(value) for name, value in state.items()}
    return int(state)


def restore_generator(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Let `rng` go on as the generator did whose state was written down.

    Raises:
        InvalidArgument: it is the state of another kind of generator, or none.
    """
    try:
        rng.bit_generator.state = _with_integers(state)
    except (TypeError, ValueError, KeyError) as error:
        raise InvalidArgument(f"this is no state of a {type(rng.bit_generator).__name__}: {error}") from error


def layout_to_plain(layout: ItemLayout, stores: Mapping[RowStore, int]) -> list[object]:
    """Return ``[kind, structure, stores, leaves, specs]``.

    The kind is "rows" or "encoded"; leaves are ``[view, column, squeeze]`` each; specs are those of encoded columns.
    """
    is_encoded = isinstance(layout, EncodedLayout)
    return [
        "encoded" if is_encoded else "rows",
        layout.structure.to_wire(),
        [stores[store] for store in layout.stores],
        [[leaf.view, leaf.column, leaf.squeeze] for leaf in layout.leaves],
        [spec.to_wire() for spec in layout.specs] if isinstance(layout, EncodedLayout) else [],
    ]


def layout_from_plain(plain: Any, stores: Sequence[RowStore], layouts: Layouts, encoded: EncodedItems) -> ItemLayout:
    """Return the layout that `layout_to_plain` wrote down.

    Raises:
        InvalidArgument: it is anything else.
    """
    try:
        kind, wire, numbers, leaf_parts, specs = plain
        structure = Structure.from_wire(wire)
        leaves = tuple(Leaf(int(view), int(column), bool(squeeze)) for view, column, squeeze in leaf_parts)
        named = tuple(stores[number] for number in numbers if number >= 0)
        is_whole = len(named) == len(numbers) and len(leaves) == structure.num_leaves
        if kind == "encoded" and is_whole and named == encoded.stores and len(specs) == len(leaves):
            squeezed = [leaf.squeeze for leaf in leaves]
            return encoded.layout(structure, [ArraySpec.from_wire(spec) for spec in specs], squeezed)
        is_whole = is_whole and all(0 <= leaf.view < len(named) for leaf in leaves)
        if kind == "rows" and is_whole and all(0 <= leaf.column < len(named[leaf.view].specs) for leaf in leaves):
            return layouts.get(structure, named, leaves)
    except (TypeError, ValueError, IndexError) as error:
        raise InvalidArgument(f"no layout of items: {error}") from error
    raise InvalidArgument(f"no layout of items: {str(plain)[:200]}")
