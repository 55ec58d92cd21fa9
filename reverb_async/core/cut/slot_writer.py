"""Writes images of slots back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.cut.image import LAST_EPISODE, OF_RECORD, ArrayBlock, image_dtype
from reverb_async.core.item import ItemLayout
from reverb_async.core.runs import Rows
from reverb_async.core.slots import FREE, LIVE, OUT, Slots
from reverb_async.errors import InvalidArgument


class SlotWriter:
    """Fills empty slots with what `SlotReader` read, block after block; of a slot the last image counts.

    Args:
        slots: of the table, with layouts that the images name.
        sampler_place: int64 ``[capacity]``, takes the places in the sampler's order,
        remover_place: and in the remover's.
        high_water: all slots are below this one.
    """

    def __init__(
        self, slots: Slots, sampler_place: NDArray[np.int64], remover_place: NDArray[np.int64], high_water: int
    ) -> None:
        self._slots = slots
        self._places = sampler_place, remover_place
        self._high_water = high_water

    def write(self, block: ArrayBlock) -> None:
        """Write a block.

        Raises:
            InvalidArgument: it is no block of such slots.
        """
        ids, values = block.ids, block.values
        if not len(ids):
            return
        names = values.dtype.names or ()
        num_views = 1 + sum(name.startswith("first") and name != "first" for name in names)
        if values.dtype != image_dtype(num_views) or values.shape != ids.shape:
            raise InvalidArgument(f"images of slots with the fields {names}")
        if int(ids.min()) < 0 or int(ids.max()) >= self._high_water:
            raise InvalidArgument(f"slots {int(ids.min())} to {int(ids.max())} of a table of {self._high_water}")
        state = values["state"]
        if int(state.min()) < FREE or int(state.max()) > OUT or int(values["unsettled"].min()) < 0:
            raise InvalidArgument("images of slots in a state that there is not")
        items = self._slots
        items.forget_more(ids)
        words = np.ascontiguousarray(values).view(np.uint64).reshape(len(ids), -1)
        items.words[ids] = words[:, :OF_RECORD]
        items.state[ids] = state
        items.unsettled[ids] = values["unsettled"]
        for places, name in zip(self._places, ("sampler", "remover"), strict=True):
            places[ids] = values[name]
        for number in range(1, num_views):
            items.set_view(number, ids, values[f"first{number}"], values[f"length{number}"])
        if len(block.more):
            self._write_more(block.more, num_views)

    def _write_more(self, more: NDArray[np.int64], num_views: int) -> None:
        if (
            int(more[:, 0].min()) < 0
            or int(more[:, 0].max()) >= self._high_water
            or int(more[:, 1].min()) < LAST_EPISODE
            or int(more[:, 1].max()) >= num_views
        ):
            raise InvalidArgument("runs of slots or views that there are not")
        items = self._slots
        spans = more[more[:, 1] == LAST_EPISODE]
        items.episode_spans.update(zip(spans[:, 0].tolist(), spans[:, 2].tolist(), strict=True))
        runs = more[more[:, 1] != LAST_EPISODE]
        if not len(runs):
            return
        cuts = np.flatnonzero(np.any(runs[1:, :2] != runs[:-1, :2], axis=1)) + 1
        for part in np.split(runs, cuts):
            slot, view = part[0, :2].tolist()
            items.pieces(view)[slot] = part[:, 2:].copy()

    def finish(self, layouts: Sequence[ItemLayout | None]) -> tuple[Rows, Rows]:
        """Begin to use the slots, after the last block.

        Args:
            layouts: by the number that records name.

        Returns:
            The slots of items in the table, and of those sampled out, ascending.

        Raises:
            InvalidArgument: the records contradict each other, or their layouts.
        """
        items, used = self._slots, slice(0, self._high_water)
        state = items.state[used]
        taken = np.flatnonzero(state)
        ids = items.layout[taken]
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= len(layouts)):
            raise InvalidArgument(f"items of layouts {int(ids.min())} to {int(ids.max())}, {len(layouts)} there are")
        counts = np.bincount(ids, minlength=len(layouts)).tolist()
        for layout, count in zip(layouts, counts, strict=True):
            if count and (layout is None or len(layout.stores) > items.num_views):
                raise InvalidArgument("items without a layout, or with fewer views than it has")
        if np.count_nonzero(items.times_sampled[used] < items.unsettled[used]):
            raise InvalidArgument("an item was drawn more often than it was sampled")
        first = {layout: at for at, layout in reversed(list(enumerate(layouts)))}
        if len(first) < len(layouts):  # what once were two may be one now
            items.layout[taken] = np.array([first[layout] for layout in layouts], np.int32)[ids]
        free = np.flatnonzero(state == FREE)[::-1]  # without a place the lowest is taken first
        places = np.maximum(self._places[0][free], 0)
        items.adopt(layouts, free[places.argsort(kind="stable")], self._high_water)
        return np.flatnonzero(state == LIVE), np.flatnonzero(state == OUT)
