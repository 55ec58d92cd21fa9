"""Filling a table with what a cut saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reverb_async.core.cut.image import TableImage
from reverb_async.core.cut.plain import restore_generator
from reverb_async.core.cut.slot_writer import SlotWriter
from reverb_async.core.item import ItemLayout
from reverb_async.core.runs import Rows
from reverb_async.core.selectors import Fifo, Lifo, MaxHeap, MinHeap, Selector, from_options
from reverb_async.core.slots import Slots
from reverb_async.core.storage import RowStore
from reverb_async.core.storage.restoring import RestoringStore
from reverb_async.errors import InvalidArgument

if TYPE_CHECKING:
    from reverb_async.core.table_items import TableItems

_BATCH = 1 << 18
"""Slots handled in one go, so that little memory is taken on the way."""


def restore_items(
    table: TableItems,
    image: TableImage,
    layouts: Sequence[ItemLayout | None],
    stores: Mapping[RowStore, RestoringStore],
    *,
    same_generator: bool = True,
) -> None:
    """Fill a fresh table, and count the references its items take; `settle_restored` follows when the rows are there.

    Args:
        table: nothing was ever inserted.
        image: what it held; its definition may differ.
        layouts: those of ``image.state["layouts"]``.
        stores: where the rows will be.
        same_generator: random draws go on as they would have; otherwise the table's own generator begins.

    Raises:
        InvalidArgument: the image contradicts itself; the table is good for nothing then.
    """
    try:
        _restore(table, image, layouts, stores, same_generator=same_generator)
    except (KeyError, TypeError, OverflowError) as error:
        raise InvalidArgument(f"the table's counts are not whole: {error!r}") from error


def _restore(
    table: TableItems,
    image: TableImage,
    layouts: Sequence[ItemLayout | None],
    stores: Mapping[RowStore, RestoringStore],
    *,
    same_generator: bool,
) -> None:
    state = image.state
    high_water = int(state["high_water"])
    table.start_restoring(high_water)
    slots = table.slots
    writer = SlotWriter(slots, table.sampler_place, table.remover_place, high_water)
    for block in image.blocks():
        writer.write(block)
    live, out = writer.finish(layouts)
    used = np.concatenate([live, out])
    _count_references(slots, used, stores)
    _check_keys(slots, live)
    table.adopt(live)
    for at in range(0, len(live), _BATCH):
        part = live[at : at + _BATCH]
        table.index.insert(slots.key[part], part)
    for name, kind, selector, places in (
        ("sampler", table.sampler_kind, table.sampler, table.sampler_place),
        ("remover", table.remover_kind, table.remover, table.remover_place),
    ):
        kind.check_priorities(slots.priority[live])
        if _order_of(kind) == _order_of(from_options(state["definition"][name])):
            selector.rebuild(live, slots.priority[live], places[live], state[name])
        else:
            places[used] = _by_age(slots, used)
            selector.rebuild(live, slots.priority[live], places[live], {})
    inserts, samples, deletes = state["limiter"]
    if inserts - deletes != table.size or state["size"] != table.size or state["nbytes"] != table.nbytes:
        raise InvalidArgument(
            f"{len(live)} items of {table.nbytes} bytes came, there were {state['size']} of {state['nbytes']} bytes, "
            f"{inserts} inserts and {deletes} deletes"
        )
    table.limiter.inserts, table.limiter.samples, table.limiter.deletes = int(inserts), int(samples), int(deletes)
    table.generation = int(state["generation"])
    table.num_changes = int(state["num_changes"])
    table.num_unique_samples = int(state["num_unique_samples"])
    table.episodes.num_deleted = int(state["num_deleted_episodes"])
    highest = state["highest_priority"]
    table.highest_priority = -np.inf if highest is None else float(highest)
    if same_generator:
        restore_generator(table.rng, state["rng"])


def _order_of(kind: Selector) -> type:
    """Return what places mean: two kinds of selectors may understand each other's."""
    return Fifo if isinstance(kind, Lifo) else MinHeap if isinstance(kind, MaxHeap) else type(kind)


def _by_age(slots: Slots, used: Rows) -> Rows:
    """Return the rank of each slot by the time of its insertion, from 1, and by number among equals."""
    ranks = np.empty(len(used), np.int64)
    ranks[np.lexsort((used, slots.inserted_at[used]))] = np.arange(1, len(used) + 1)
    return ranks


def _check_keys(slots: Slots, live: Rows) -> None:
    keys = slots.key[live]
    if np.count_nonzero(keys[1:] <= keys[:-1]) == 0:
        return
    keys.sort()
    if np.count_nonzero(keys[1:] == keys[:-1]):
        raise InvalidArgument("two items have the same key")


def _count_references(slots: Slots, used: Rows, stores: Mapping[RowStore, RestoringStore]) -> None:
    for at in range(0, len(used), _BATCH):
        part = used[at : at + _BATCH]
        for layout_id, positions in slots.by_layout(part):
            layout = slots.layouts[layout_id]
            assert layout is not None, "adopt() has looked"
            for view, store in enumerate(layout.stores):
                runs = slots.runs(view, part if positions is None else part[positions])
                first, length = runs.first, runs.length
                if runs.pieces:
                    whole = np.ones(len(runs), np.bool_)
                    whole[list(runs.pieces)] = False
                    pieces = np.concatenate(list(runs.pieces.values()))
                    if any(int(part[:, 1].sum()) != length[at] for at, part in runs.pieces.items()):
                        raise InvalidArgument("runs that do not add up to their item's rows")
                    first = np.concatenate([first[whole], pieces[:, 0]])
                    length = np.concatenate([length[whole], pieces[:, 1]])
                stores[store].retain(first, length)
