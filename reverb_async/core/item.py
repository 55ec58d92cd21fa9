"""What an item is: the layout its data have, and blocks of new items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from reverb_async.core.nest import Structure
from reverb_async.core.runs import Runs
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import RowStore


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where one leaf of the sampled nest comes from.

    Attributes:
        view: which of the item's views (sequences of rows).
        column: which column of that view's store.
        squeeze: the view has one row and the leaf no time axis.
    """

    view: int
    column: int
    squeeze: bool


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ItemLayout:
    """How items of one kind are put together; shared by all of them, and told apart by identity (see `Layouts`).

    Attributes:
        structure: the nest a sample comes back as.
        stores: the store behind each view.
        leaves: one per leaf of `structure`, in flatten order.
    """

    structure: Structure
    stores: tuple[RowStore, ...]
    leaves: tuple[Leaf, ...]

    @property
    def num_views(self) -> int:
        """How many views the leaves are cut from."""
        return len(self.stores)

    def row_spec(self, leaf: Leaf) -> ArraySpec:
        """Return dtype and shape of one row of `leaf`, without a time axis."""
        return self.stores[leaf.view].specs[leaf.column]

    def sampled_specs(self) -> list[ArraySpec]:
        """Return what each sampled leaf looks like; the time axis of unsqueezed leaves is None."""
        specs = []
        for leaf in self.leaves:
            spec = self.row_spec(leaf)
            specs.append(spec if leaf.squeeze else ArraySpec((None, *spec.shape), spec.dtype))
        return specs


class Layouts:
    """Makes layouts; gives the same one for the same parts, so that items of many writers share it while it lives."""

    def __init__(self) -> None:
        self._layouts: WeakValueDictionary[object, ItemLayout] = WeakValueDictionary()

    def get(self, structure: Structure, stores: tuple[RowStore, ...], leaves: tuple[Leaf, ...]) -> ItemLayout:
        """Return the layout of these parts."""
        parts = (structure, stores, leaves)
        layout = self._layouts.get(parts)
        if layout is None:
            layout = self._layouts[parts] = ItemLayout(*parts)
        return layout


@dataclass(slots=True)
class ItemBlock:
    """New items of one layout, for one table.

    Attributes:
        layout: the layout all share.
        keys: uint64 ``[n]``.
        priorities: float64 ``[n]``; NaN asks for the highest priority in the table so far.
        views: one `Runs` of `n` sequences per view of the layout.
        nbytes: int64 ``[n]``, bytes of the rows each item shows (rows shared between items count for each).
        episodes: int64 ``[n, 2]``, first and last episode of each item's steps, or None when each is an episode of its
            own.
    """

    layout: ItemLayout
    keys: NDArray[np.uint64]
    priorities: NDArray[np.float64]
    views: tuple[Runs, ...]
    nbytes: NDArray[np.int64]
    episodes: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, start: int, stop: int) -> ItemBlock:
        """Return the items ``[start:stop]``."""
        if start == 0 and stop == len(self.keys):
            return self
        return ItemBlock(
            self.layout,
            self.keys[start:stop],
            self.priorities[start:stop],
            tuple(view.part(start, stop) for view in self.views),
            self.nbytes[start:stop],
            None if self.episodes is None else self.episodes[start:stop],
        )

    @classmethod
    def join(cls, blocks: Sequence[ItemBlock]) -> ItemBlock:
        """Return the items of several blocks of one layout, all of them with episodes or all without."""
        episodes = [block.episodes for block in blocks if block.episodes is not None]
        return cls(
            blocks[0].layout,
            np.concatenate([block.keys for block in blocks]),
            np.concatenate([block.priorities for block in blocks]),
            tuple(Runs.join(views) for views in zip(*(block.views for block in blocks), strict=True)),
            np.concatenate([block.nbytes for block in blocks]),
            np.concatenate(episodes) if episodes else None,
        )

    def at(self, positions: NDArray[np.intp]) -> ItemBlock:
        """Return the items at `positions`, ascending."""
        where = {int(position): at for at, position in enumerate(positions)}
        return ItemBlock(
            self.layout,
            self.keys[positions],
            self.priorities[positions],
            tuple(
                Runs(
                    view.first[positions],
                    view.length[positions],
                    {where[at]: runs for at, runs in view.pieces.items() if at in where},
                )
                for view in self.views
            ),
            self.nbytes[positions],
            None if self.episodes is None else self.episodes[positions],
        )
