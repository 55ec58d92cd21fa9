"""Drawing from a table, and handing back what was drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.changes import ChangeKind
from reverb_async.core.draw import Draw
from reverb_async.core.mutation import occurrence
from reverb_async.core.runs import Rows
from reverb_async.core.slots import GONE, LIVE, OUT
from reverb_async.core.table_items import TableItems


class TableDraws(TableItems):
    """What samplers do with a table; see `TableState`."""

    def admitted_samples(self, n: int) -> int:
        """Return how many of `n` samples the rate limiter admits now, if none of them removes its item."""
        return self.limiter.admitted_samples(n)

    def reserve_samples(self, n: int) -> None:
        """Count `n` admitted samples that `draw` makes later."""
        self.num_reserved += n
        self.limiter.count_samples(n)

    def return_samples(self, n: int) -> None:
        """Take back what `reserve_samples` counted."""
        self.num_reserved -= n
        self.limiter.count_samples(-n)

    def draw(self, n: int, *, reserved: int = 0) -> Draw:
        """Draw up to `n` admitted items, fewer only if `max_times_sampled` empties the table below its minimum size.

        Args:
            n: how many; at most what `admitted_samples` allows on top of `reserved`.
            reserved: how many of them `reserve_samples` has counted before.
        """
        if self.max_times_sampled < 1:
            slots, probabilities = self.sampler.sample(n, self.rng)
            draw = self._record(slots, probabilities, np.full(n, self.size))
        elif self.sampler_kind.is_deterministic:
            draw = self._draw_in_order(n)
        else:
            draw = self._draw_until_exhausted(n)
        self.limiter.count_samples(len(draw) - reserved)
        self.num_reserved -= reserved
        return draw

    def _draw_in_order(self, n: int) -> Draw:
        """A deterministic sampler repeats its head until that is used up: whole stretches of its order are known."""
        heads = self.sampler.first(n)
        left = self.max_times_sampled - self.slots.times_sampled[heads].astype(np.int64)
        slots = np.repeat(heads, left)[:n]
        used_up = np.cumsum(left)
        gone_before = np.searchsorted(used_up, np.arange(len(slots)), side="right")
        sizes = self.size - gone_before
        slots = slots[sizes >= self.limiter.limiter.min_size_to_sample]
        draw = self._record(slots, np.ones(len(slots)), sizes[: len(slots)])
        self._sample_out(heads[: np.searchsorted(used_up, len(slots), side="right")])
        return draw

    def _draw_until_exhausted(self, n: int) -> Draw:
        """Draw with replacement up to the first item that is used up, remove it, go on: as drawing one by one does."""
        draws: list[Draw] = []
        ahead = 1
        while n and self.size >= self.limiter.limiter.min_size_to_sample:
            slots, probabilities = self.sampler.sample(min(n, ahead), self.rng)
            times = self.slots.times_sampled[slots] + occurrence(slots)
            used_up = np.flatnonzero(times >= self.max_times_sampled)
            count = int(used_up[0]) + 1 if len(used_up) else len(slots)
            ahead = 2 * count  # As far ahead as lately went well: what lies behind a used-up item is drawn in vain.
            draws.append(self._record(slots[:count], probabilities[:count], np.full(count, self.size)))
            if len(used_up):
                self._sample_out(slots[count - 1 : count])
            n -= count
        return Draw.join(draws)

    def _record(self, slots: Rows, probabilities: NDArray[np.float64], sizes: NDArray[np.int64]) -> Draw:
        """Count the draws and note what their callers are told."""
        items = self.slots
        if items.watch is not None:
            # Draws that remove nothing are many, and nobody is promised that they are remembered.
            (items.watch.touch if self.max_times_sampled >= 1 else items.watch.touch_unlogged)(slots)
        seen = items.read(slots)
        occurrences = occurrence(slots)
        times = seen["times_sampled"] + occurrences
        keys = seen["key"].copy()
        self._recent.note(keys, slots, is_distinct=not occurrences.shape)
        items.times_sampled[slots] = times  # the last of duplicates is the highest, and is what stays
        self.num_unique_samples += len(times) - int(
            times.item(0) > 1 if len(times) == 1 else np.count_nonzero(times - 1)
        )
        if self.max_times_sampled >= 1:
            np.add.at(items.unsettled, slots, np.int32(1))
            self.num_unsettled += len(slots)
        return Draw(
            self.generation,
            slots,
            keys,
            probabilities,
            seen["priority"].copy(),
            times,
            sizes,
            seen["inserted_at"].copy(),
            seen["version"].copy(),
        )

    def _sample_out(self, slots: Rows) -> None:
        """Remove used-up items; their slots and rows stay until the draw is acknowledged."""
        if not len(slots):
            return
        self.sampler_place[slots] = self.sampler.place(slots)
        self.remover_place[slots] = self.remover.place(slots)
        self._detach(slots, ChangeKind.SAMPLE_OUT)
        self.slots.state[slots] = OUT

    def acknowledge(self, draw: Draw) -> None:
        """The caller has the items: sampled-out ones are gone for good once no other draw may hand them back."""
        if draw.generation == self.generation and self.max_times_sampled >= 1:
            self._settle(draw.slots)

    def _settle(self, slots: Rows) -> None:
        """Note that draws of these slots are settled; free those that held on to nothing else."""
        items = self.slots
        self._touch(slots)
        self.num_unsettled -= len(slots)
        np.subtract.at(items.unsettled, slots, np.int32(1))
        slots = np.unique(slots[(items.state[slots] != LIVE) & (items.unsettled[slots] == 0)])
        if len(slots):
            items.free(slots)

    def hand_back(self, draw: Draw) -> None:
        """Undo a draw: limiter and item counts, and used-up items return to their old place. Void after a reset."""
        if draw.generation != self.generation:
            return
        self.limiter.count_samples(-len(draw))
        items = self.slots
        self._touch(draw.slots)
        slots = draw.slots[(items.version[draw.slots] == draw.versions) & (items.state[draw.slots] != GONE)]
        np.subtract.at(items.times_sampled, slots, np.int32(1))
        self.num_unique_samples -= int(np.count_nonzero(items.times_sampled[np.unique(slots)] == 0))
        if self.max_times_sampled >= 1:
            self._return(slots[items.state[slots] == OUT])
            self._settle(draw.slots)

    def hand_back_all(self) -> None:
        """Undo all draws that are not acknowledged, of a table that was restored and has counted none of them."""
        items = self.slots
        used = slice(0, items.high_water)
        drawn = np.flatnonzero(items.unsettled[used] > 0)
        self._touch(drawn)
        items.times_sampled[drawn] -= items.unsettled[drawn]
        items.unsettled[drawn] = 0
        self.num_unique_samples -= int(np.count_nonzero(items.times_sampled[drawn] == 0))
        out = np.flatnonzero(items.state[used] == OUT)
        self._return(out[items.inserted_at[out].argsort(kind="stable")])
        gone = np.flatnonzero(items.state[used] == GONE)
        if len(gone):
            items.free(gone)

    def _return(self, out: Rows) -> None:
        """Put sampled-out items, in draw order, back in the table; not those whose keys were inserted anew since."""
        if not len(out):
            return
        items = self.slots
        self._touch(out)
        items.state[out] = GONE
        latest = out[::-1]  # Of two items with one key, the newer was drawn later.
        back = latest[np.unique(items.key[latest], return_index=True)[1]]
        back = back[self.index.find(items.key[back]) < 0]
        if not len(back):
            return
        items.state[back] = LIVE
        self.index.insert(items.key[back], back)
        self.sampler.restore(back, items.priority[back], self.sampler_place[back])
        self.remover.restore(back, items.priority[back], self.remover_place[back])
        self.size += len(back)
        self.nbytes += int(items.nbytes[back].sum())
        self.episodes.undelete(*items.episodes_of(back))
        self.limiter.count_deletes(-len(back))
        self._emit(ChangeKind.HAND_BACK, back, items.priority[back])
