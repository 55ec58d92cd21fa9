"""How encoded items are put together, and how they look to native readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reverb_async.core.encoded.tensor_cache import TensorCache
from reverb_async.core.item import ItemLayout, Leaf
from reverb_async.core.nest import Structure
from reverb_async.core.spec import ArraySpec
from reverb_async.core.storage import RowStore

CHUNK, KEY, ORDINAL = range(3)
"""Columns of the chunk store: the chunk as it came, its sender's key, and a number that no other chunk ever had."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedLayout(ItemLayout):
    """The layout of encoded items.

    Items are runs of rows in two stores: one row with the item's record, and its chunks, ascending. Readers see a view
    for each column instead.

    Attributes:
        specs: one row of each column.
        tensors: decodes chunks.
    """

    specs: tuple[ArraySpec, ...]
    tensors: TensorCache

    @classmethod
    def of(
        cls,
        structure: Structure,
        stores: tuple[RowStore, RowStore],
        specs: Sequence[ArraySpec],
        squeezed: Sequence[bool],
        tensors: TensorCache,
    ) -> EncodedLayout:
        """Return the layout of items with these columns, in flatten order of `structure`."""
        leaves = tuple(Leaf(column, 0, squeeze) for column, squeeze in enumerate(squeezed))
        return cls(structure, stores, leaves, tuple(specs), tensors)

    @property
    def num_views(self) -> int:
        """How many views readers see."""
        return len(self.specs)

    def row_spec(self, leaf: Leaf) -> ArraySpec:
        """Return dtype and shape of one row of `leaf`, without a time axis."""
        return self.specs[leaf.view]
