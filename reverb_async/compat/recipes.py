"""What incoming items show of their chunks: found out once for all items that differ in their data alone."""

from __future__ import annotations

from typing import NamedTuple

from reverb_async.compat.columns import ColumnHead, ColumnLayouts, Fit, Kind
from reverb_async.compat.messages import Shape
from reverb_async.core.encoded import Columns
from reverb_async.errors import InvalidArgument
from reverb_async.table import Table

MAX_ITEM_BYTES = 4 << 30
"""Decoded bytes that one item may show; slices may show the same rows again and again."""

_MAX_REMEMBERED = 1024
_MAX_REMEMBERED_PARTS = 256
"""Columns, slices and chunks of an item whose recipe is remembered."""


class Tensor(NamedTuple):
    """One tensor of a chunk.

    Attributes:
        kind: its rows'.
        rows: how many.
        row_bytes: of one decoded row, of strings about.
        width: of its longest string, if rows are arrays of strings.
    """

    kind: Kind
    rows: int
    row_bytes: int
    width: int


class Recipe(NamedTuple):
    """What an item is, but for its data.

    Attributes:
        fit: the layout it has in its table.
        columns: see `EncodedItem`.
        nbytes: decoded bytes it shows.
    """

    fit: Fit
    columns: Columns
    nbytes: int


class Recipes:
    """Finds out what items are, and remembers it for the next ones."""

    def __init__(self, layouts: ColumnLayouts) -> None:
        self._layouts = layouts
        self._known: dict[object, Recipe] = {}

    def find(self, table: Table, shape: Shape, chunks: tuple[tuple[Tensor, ...], ...]) -> Recipe:
        """Return what an item is, checked.

        Args:
            table: where it goes.
            shape: what it shows of its chunks.
            chunks: the tensors of each chunk.

        Raises:
            InvalidArgument: it can never enter `table`.
        """
        key = (table, shape, chunks)
        recipe = self._known.get(key)
        if recipe is None:
            recipe = self._make(table, shape.columns, shape.squeezed, chunks)
            parts = shape.num_slices + sum(map(len, chunks)) + len(shape.columns)
            if parts <= _MAX_REMEMBERED_PARTS:
                if len(self._known) >= _MAX_REMEMBERED:
                    self._known.clear()
                self._known[key] = recipe
        return recipe

    def _make(
        self, table: Table, columns: Columns, squeezed: tuple[bool, ...], chunks: tuple[tuple[Tensor, ...], ...]
    ) -> Recipe:
        heads: list[ColumnHead] = []
        lengths: list[int] = []
        nbytes = 0
        for number, (slices, squeeze) in enumerate(zip(columns, squeezed, strict=True)):
            length = width = 0
            kind: Kind | None = None
            for position, offset, count, index in slices:
                tensors = chunks[position]
                if not 0 <= index < len(tensors):
                    raise InvalidArgument(f"column {number}: its chunk has {len(tensors)} tensors, no {index}")
                tensor = tensors[index]
                if offset < 0 or count < 1 or offset + count > tensor.rows:
                    raise InvalidArgument(
                        f"column {number}: rows {offset} to {offset + count - 1} are shown of tensor {index} "
                        f"of a chunk, which has {tensor.rows}"
                    )
                if kind is None:
                    kind = tensor.kind
                elif kind is not tensor.kind:
                    raise InvalidArgument(f"column {number} has rows of {kind.spec} and of {tensor.kind.spec}")
                length += count
                nbytes += count * tensor.row_bytes
                width = max(width, tensor.width)
            if kind is None:
                raise InvalidArgument("Item trajectory must not be empty.")
            if squeeze and length != 1:
                raise InvalidArgument(f"column {number} is squeezed, which takes one row, but has {length}")
            heads.append(ColumnHead(kind, squeeze, width))
            lengths.append(length)
        if not columns:
            raise InvalidArgument("Item trajectory must not be empty.")
        if nbytes > MAX_ITEM_BYTES:
            raise InvalidArgument(f"an item shows {nbytes} bytes; at most {MAX_ITEM_BYTES} can be: cut it up")
        fit = self._layouts.find(table, tuple(heads), is_one_step=max(lengths) == 1)
        fit.check(table, lengths)
        return Recipe(fit, columns, nbytes)
