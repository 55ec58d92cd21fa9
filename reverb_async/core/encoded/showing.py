"""Which items show a row."""

from __future__ import annotations

import numpy as np

from reverb_async.core.runs import Rows
from reverb_async.core.slots import LIVE, Slots
from reverb_async.core.storage import RowStore


def showing(items: Slots, store: RowStore, row: int) -> Rows:
    """Return the slots of a table's items that refer to a row of `store`. O(slots in use)."""
    used = slice(0, items.high_water)
    found = []
    for number in range(items.num_views):
        layouts = [
            id
            for id, layout in enumerate(items.layouts)
            if layout is not None and layout.stores[number : number + 1] == (store,)
        ]
        if not layouts:
            continue
        first, length = items.view(number, used)
        slots = np.flatnonzero((first <= row) & (row < first + length))
        if several := items.pieces(number):
            slots = np.array([slot for slot in slots.tolist() if slot not in several], np.int64)
            pieces = [
                slot
                for slot, runs in several.items()
                if bool(((runs[:, 0] <= row) & (row < runs[:, 0] + runs[:, 1])).any())
            ]
            slots = np.concatenate([slots, np.array(pieces, np.int64)])
        found.append(slots[(items.state[slots] == LIVE) & np.isin(items.layout[slots], layouts)])
    return np.concatenate(found) if found else np.zeros(0, np.int64)
