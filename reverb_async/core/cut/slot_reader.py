"""Reads images of slots."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.cut.image import LAST_EPISODE, NO_MORE, OF_RECORD, image_dtype
from reverb_async.core.runs import Rows, as_run
from reverb_async.core.selectors.base import SelectorState
from reverb_async.core.slots import FREE, GONE, OUT, Slots


class SlotReader:
    """Everything about a slot that is saved, wherever it is kept.

    Args:
        slots: of the table.
        sampler: and where slots stand in its order,
        remover: and in this one's.
        sampler_place: int64 ``[capacity]``, where sampled-out items stood,
        remover_place: in both.

    Attributes:
        dtype: of the images; items inserted later may need another one.
    """

    def __init__(
        self,
        slots: Slots,
        sampler: SelectorState,
        remover: SelectorState,
        sampler_place: NDArray[np.int64],
        remover_place: NDArray[np.int64],
    ) -> None:
        self.slots = slots
        self._orders = ((sampler, sampler_place), (remover, remover_place))
        self.num_views = slots.num_views
        self.dtype = image_dtype(self.num_views)

    def values(self, slots: Rows) -> NDArray[np.void]:
        """Return the images of `slots` as they are now, ``[n]``."""
        items = self.slots
        at = as_run(slots) or slots
        words = np.empty((len(slots), self.dtype.itemsize // 8), np.uint64)
        words[:, :OF_RECORD] = items.words[at]
        values: NDArray[np.void] = words.view(self.dtype).reshape(-1)
        state = items.state[at]
        if np.count_nonzero(is_gone := state == GONE):
            state = np.where(is_gone, np.uint8(FREE), state)
        values["state"] = state
        values["unsettled"] = items.unsettled[at] * (state != FREE)
        values["sampler"], values["remover"] = self.places(slots, state)
        for number in range(1, self.num_views):
            values[f"first{number}"], values[f"length{number}"] = items.view(number, slots)
        return values

    def places(self, slots: Rows, state: NDArray[np.uint8]) -> tuple[Rows, Rows]:
        """Return where slots in some states stand in the sampler's order and in the remover's, ``[n]`` each."""
        is_out = np.flatnonzero(state == OUT)
        sampler, remover = (order.peek(slots) for order, _ in self._orders)
        if len(is_out):
            for places, (_, place) in zip((sampler, remover), self._orders, strict=True):
                places[is_out] = place[slots[is_out]]
        return sampler, remover

    def more(self, slots: Rows) -> NDArray[np.int64]:
        """Return what few items have; see `ArrayBlock.more`."""
        items, found = self.slots, []
        for number in range(self.num_views):
            pieces = items.pieces(number)
            for slot in _among(slots, pieces):
                runs = pieces[slot]
                rows = np.empty((len(runs), 4), np.int64)
                rows[:, 0], rows[:, 1], rows[:, 2:] = slot, number, runs
                found.append(rows)
        spans = items.episode_spans
        crossing = _among(slots, spans)
        if crossing:
            found.append(np.array([(slot, LAST_EPISODE, spans[slot], 0) for slot in crossing], np.int64))
        return np.concatenate(found) if found else NO_MORE


def _among(slots: Rows, known: dict[int, object] | dict[int, int] | dict[int, Rows]) -> list[int]:
    return [slot for slot in slots.tolist() if slot in known] if known else []
