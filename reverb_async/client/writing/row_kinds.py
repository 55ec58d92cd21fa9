"""Kinds of rows: how each is sent, learnt from its first row and from the tables' signatures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from reverb_async.client.checks import Target, targets_of, widened
from reverb_async.client.writing.batch_columns import BatchColumns
from reverb_async.client.writing.outgoing import RowGroup, SentLayout
from reverb_async.client.writing.row_values import RowLayout
from reverb_async.core.info import TableInfo
from reverb_async.core.leaf import Leaf
from reverb_async.core.nest import Structure
from reverb_async.core.spec import ArraySpec, as_leaf, leaf_spec

Tables = tuple[str, ...]
Wanted = list[ArraySpec | None]
"""What signatures say of each column."""
_CACHED = 1024


class RowKind:
    """Rows that go as records into the same tables.

    Attributes:
        layout: how they are sent.
        targets: the tables.
    """

    __slots__ = ("_looks", "_paths", "_wanted", "layout", "targets")

    def __init__(self, layout: RowLayout, structure: Structure, targets: tuple[Target, ...], wanted: Wanted) -> None:
        self.layout = layout
        self.targets = targets
        self._looks = [(spec.dtype, spec.fixed_shape) for spec in layout.specs]
        self._paths = structure.paths
        self._wanted = wanted

    def fitted(self, values: Sequence[object]) -> list[Any] | None:
        """Return values that can be copied into a record as they are; None if one looks different from its column."""
        row: list[Any] = list(values)
        for at, (dtype, shape) in enumerate(self._looks):
            value = row[at]
            if not (type(value) is np.ndarray or isinstance(value, np.number | np.bool_)):
                row[at] = value = as_leaf(value, self._paths[at], self._wanted[at])
                if not isinstance(value, np.ndarray):
                    return None
            if value.dtype != dtype or value.shape != shape:
                return None
        return row

    def count_of(self, columns: Sequence[object]) -> int:
        """Return how many rows columns have that can be copied into records as they are; 0 if they cannot."""
        counts = set()
        for column, (dtype, shape) in zip(columns, self._looks, strict=True):
            if type(column) is not np.ndarray or column.dtype != dtype or column.shape[1:] != shape or not column.ndim:
                return 0
            counts.add(len(column))
        return counts.pop() if len(counts) == 1 else 0


class RowKinds:
    """Finds out how a row is sent, and checks it on the way; remembers both."""

    def __init__(self) -> None:
        self._ids = itertools.count()
        self._infos: dict[str, TableInfo] | None = None
        self._known: dict[str, Target] = {}
        self._layouts: dict[object, RowLayout] = {}
        self._fits: dict[object, object] = {}
        self._wanted: dict[tuple[Structure, Tables], Wanted] = {}
        self._kinds: dict[tuple[Structure, Tables], RowKind] = {}

    def learn(self, tables: dict[str, TableInfo]) -> dict[str, Target]:
        """Return what is known of the tables."""
        if tables is not self._infos:
            self._infos = tables
            self._known = targets_of(tables)
            self._fits.clear()
            self._wanted.clear()
            self._kinds.clear()
        return self._known

    def known(self, structure: Structure, tables: Tables) -> RowKind | None:
        """Return how rows of this structure for these tables were sent at first, if they went as records."""
        return self._kinds.get((structure, tables))

    def row(
        self, structure: Structure, values: Sequence[object], targets: dict[str, Target]
    ) -> tuple[list[Leaf], RowLayout]:
        """Return one row's leaves, and how it is sent.

        Raises:
            SignatureMismatch: a table wants something else.
            InvalidArgument: a value is nothing that a column can hold.
        """
        tables = tuple(targets)
        wanted = self._wants(structure, targets)
        row = [as_leaf(value, path, want) for value, path, want in zip(values, structure.paths, wanted, strict=True)]
        key = (
            structure,
            tables,
            tuple([(leaf.dtype, leaf.shape) if isinstance(leaf, np.ndarray) else type(leaf) for leaf in row]),
        )
        kind = self._fits.get(key)
        if kind is None or kind not in self._layouts:
            kind = self._fit(structure, [leaf_spec(leaf) for leaf in row], targets)
            if len(self._fits) >= _CACHED:
                self._fits.clear()
            self._fits[key] = kind
        return row, self._remember(self._layouts[kind], structure, targets)

    def batch(self, columns: BatchColumns, targets: dict[str, Target]) -> RowLayout:
        """Return how a batch's rows are sent. Raises as `row`."""
        wanted = self._wants(columns.structure, targets)
        columns.fit_texts(wanted)
        for name, target in targets.items():
            columns.check([target.by_path.get(path) for path in columns.structure.paths], f"table {name!r}")
        layout = self._layouts[self._fit(columns.structure, columns.specs, targets)]
        return self._remember(layout, columns.structure, targets)

    def _remember(self, layout: RowLayout, structure: Structure, targets: dict[str, Target]) -> RowLayout:
        """Let `known` find rows that go as records."""
        tables = tuple(targets)
        if (structure, tables) not in self._kinds and layout.format(len(tables)) is not None:
            if len(self._kinds) >= _CACHED:
                self._kinds.clear()
            wanted = self._wants(structure, targets)
            self._kinds[structure, tables] = RowKind(layout, structure, tuple(targets.values()), wanted)
        return layout

    def _wants(self, structure: Structure, targets: dict[str, Target]) -> Wanted:
        """Return what the signatures say of each leaf; None where none does."""
        key = (structure, tuple(targets))
        wanted = self._wanted.get(key)
        if wanted is None:
            wanted = [_agreed([target.by_path.get(path) for target in targets.values()]) for path in structure.paths]
            if len(self._wanted) >= _CACHED:
                self._wanted.clear()
            self._wanted[key] = wanted
        return wanted

    def _fit(self, structure: Structure, specs: Sequence[ArraySpec], targets: dict[str, Target]) -> object:
        """Check specs against the signatures, and make a layout that takes them; return its key.

        A column looks as signatures say. Where none does, extents are free once they have differed.
        """
        for name, target in targets.items():
            if target.signature is not None:
                target.signature.check(structure, specs, what=f"table {name!r}")
        wanted = self._wants(structure, targets)
        kind = (structure, tuple((spec.dtype, len(spec.shape)) for spec in specs), tuple(wanted))
        layout = self._layouts.get(kind)
        before = specs if layout is None else layout.specs
        fitting = tuple(
            want or widened(old, new.shape) or new for want, old, new in zip(wanted, before, specs, strict=True)
        )
        if layout is None or fitting != layout.specs:
            number = next(self._ids)
            group = RowGroup(number, fitting)
            leaves = [(0, column, True) for column in range(len(fitting))]
            if len(self._layouts) >= _CACHED:
                self._layouts.clear()
            self._kinds.clear()
            self._layouts[kind] = RowLayout(SentLayout(number, structure, [group], leaves), group)
        return kind


def _agreed(wanted: Sequence[ArraySpec | None]) -> ArraySpec | None:
    """Return a spec that fits all of several signatures; where they contradict each other, the check will tell."""
    specs = [spec for spec in wanted if spec is not None]
    if not specs:
        return None
    shape = list(specs[0].shape)
    for spec in specs:
        if len(spec.shape) == len(shape):
            shape = [one if one is not None else other for one, other in zip(shape, spec.shape, strict=True)]
    return ArraySpec(shape, specs[0].dtype)
