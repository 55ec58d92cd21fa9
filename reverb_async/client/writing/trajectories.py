"""From a trajectory as the user writes it to an item in the queue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from reverb_async.client.checks import Target, as_priority, widened
from reverb_async.client.writing.columns import scalar_types
from reverb_async.client.writing.grouping import Grouping, TrajectoryLayout
from reverb_async.client.writing.history import ColumnHistory, TrajectoryColumn
from reverb_async.client.writing.items import ItemQueue, ItemShape
from reverb_async.client.writing.outgoing import RowGroup
from reverb_async.client.writing.steps import StepBuffer
from reverb_async.client.writing.windows import Range
from reverb_async.core.dtypes import DType
from reverb_async.core.nest import Path, Structure, flatten
from reverb_async.core.spec import ArraySpec, as_leaf, leaf_spec, listed_hint
from reverb_async.core.tree import Node, Tree
from reverb_async.errors import InvalidArgument, SignatureMismatch

_CACHED = 1024
_KINDS = 64
"""Tables and structures whose items are remembered, up to `_CACHED` shapes of each."""


class Trajectories:
    """Makes items of trajectories; what it learns of one serves the next one that looks like it.

    Args:
        steps: the writer's.
        queue: takes the items.
        validate: check items against the tables' signatures.
    """

    def __init__(self, steps: StepBuffer, queue: ItemQueue, grouping: Grouping, *, validate: bool) -> None:
        self._steps = steps
        self._queue = queue
        self._grouping = grouping
        self._validate = validate
        self._routes: dict[tuple[str, Structure], dict[tuple[object, ...], _Route]] = {}
        self._last: tuple[str, Structure | None] = ("", None)
        self._last_routes: dict[tuple[object, ...], _Route] = {}
        self._layouts: dict[tuple[Structure, tuple[Range, ...], int], TrajectoryLayout] = {}
        self._own: dict[tuple[Structure, tuple[int, ...]], _OwnColumns] = {}

    def forget(self) -> None:
        """Look at everything anew: a column changed, or the tables did."""
        self.forget_routes()
        self._layouts.clear()

    def forget_routes(self) -> None:
        """Look at each item's shape anew."""
        self._routes.clear()
        self._last = ("", None)

    def add(self, table: str, priority: object, trajectory: object) -> int:
        """Queue an item and return its key. All or nothing: whatever it raises, nothing was queued.

        Raises:
            InvalidArgument: the trajectory or the priority is no such thing.
            SignatureMismatch: the table wants something else.
            ExpiredReference: a step is not kept any more.
        """
        leaves, structure = flatten(trajectory)
        version = self._steps.clock.version
        # An item stands where its first column does. Its pattern says how the columns are cut, where those stand that
        # do not stand there too, and which values are not from the history.
        pattern: list[object] = []
        place: int | None = None
        own: list[Any] = []
        for leaf in leaves:
            if type(leaf) is TrajectoryColumn:
                if leaf.version != version:
                    self._check_column(leaf, leaves, structure)
                pattern.append(leaf.window)
                first = leaf.first
                if first != place:
                    if place is None:
                        place = first
                    else:
                        pattern.append(first - place)
            else:
                pattern.append(None)
                own.append(leaf)
        if place is None:
            place = 0
        if (table, structure) != self._last:
            self._turn_to(table, structure)
        known = tuple(pattern)
        route = self._last_routes.get(known)
        brought: Sequence[Any] = ()
        if own:
            columns = self._own_columns(structure, leaves) if route is None else route.own
            assert columns is not None
            brought = columns.fit(own, self._target(table))
            if route is not None and route.shape.layout.own is not columns.group:
                route = None
        if route is None:
            route = self._new_route(table, structure, leaves)
            if len(self._last_routes) >= _CACHED:
                self._last_routes.clear()
            self._last_routes[known] = route
        if type(priority) is not float or not 0.0 <= priority < math.inf:
            priority = as_priority(priority, table, is_prioritized=route.is_prioritized)
        steps, shape = self._steps, route.shape
        episodes = (steps.episode, steps.episode)
        if steps.spans_episodes and shape.lowest is not None:
            episodes = steps.episodes(place + shape.lowest, place + shape.last)
        return self._queue.add(table, shape, place, priority, brought, episodes)

    def _turn_to(self, table: str, structure: Structure) -> None:
        """Let `_last_routes` be those of the table and the structure."""
        self._last = (table, structure)
        routes = self._routes.get(self._last)
        if routes is None:
            if len(self._routes) >= _KINDS:
                self._routes.clear()
            routes = self._routes[self._last] = {}
        self._last_routes = routes

    def _check_column(self, column: TrajectoryColumn, leaves: Sequence[object], structure: Structure) -> None:
        path = structure.paths[next(at for at, leaf in enumerate(leaves) if leaf is column)]
        if column.column.clock is not self._steps.clock:
            raise InvalidArgument(
                f"trajectory column {path} is from another writer's history; items are made of their own writer's steps"
            )
        if not len(column):
            raise InvalidArgument(f"trajectory column {path} is empty: select at least one step, or leave it out")
        column.check()

    def _target(self, table: str) -> Target | None:
        return (self._steps.targets or {}).get(table)

    def _own_columns(self, structure: Structure, leaves: Sequence[object]) -> _OwnColumns:
        own_at = tuple(at for at, leaf in enumerate(leaves) if type(leaf) is not TrajectoryColumn)
        columns = self._own.get((structure, own_at))
        if columns is None:
            if len(self._own) >= _CACHED:
                self._own.clear()
            columns = _OwnColumns([structure.paths[at] for at in own_at], self._grouping)
            self._own[structure, own_at] = columns
        return columns

    def _new_route(self, table: str, structure: Structure, leaves: Sequence[object]) -> _Route:
        """Check what all items of this kind have in common."""
        if not leaves:
            raise InvalidArgument("the trajectory is empty: an item needs at least one column")
        missing = _none_at(structure.tree, ())
        if missing is not None:
            raise InvalidArgument(f"trajectory column {missing} is None; leave it out")
        columns = [leaf if isinstance(leaf, TrajectoryColumn) else None for leaf in leaves]
        for column in columns:
            if column is not None:
                self._check_column(column, leaves, structure)
        own = self._own_columns(structure, leaves) if None in columns else None
        target = self._target(table)
        if self._validate and target is not None and target.signature is not None:
            own_specs = iter(own.specs if own is not None else ())
            specs = [next(own_specs) if column is None else _sampled_spec(column) for column in columns]
            target.signature.check(structure, specs, what=f"table {table!r}")
            for path, column, spec in zip(structure.paths, columns, specs, strict=True):
                wanted = target.by_path[path].shape
                has_time = column is not None and not column.squeeze
                if column is not None and has_time and wanted[0] not in (None, len(column)):
                    raise SignatureMismatch(
                        f"table {table!r}: column {path} has {len(column)} steps, the signature wants {wanted[0]}"
                    )
                if any(
                    got is None and want is not None
                    for got, want in list(zip(spec.shape, wanted, strict=True))[has_time:]
                ):
                    raise SignatureMismatch(
                        f"table {table!r}: column {path} has steps of different shapes, {spec}, since another table's "
                        f"signature allows that; this one wants {target.by_path[path]}"
                    )
        cuts: dict[tuple[Range, ...], int] = {}
        cut_of = [-1 if column is None else cuts.setdefault(column.ranges, len(cuts)) for column in columns]
        pattern = tuple(
            (-1 if column is None else column.window.code, cut) for column, cut in zip(columns, cut_of, strict=True)
        )
        layout_key = (structure, pattern, -1 if own is None else own.group.id)
        layout = self._layouts.get(layout_key)
        if layout is None:
            layout, has_split = self._grouping.layout(structure, columns, cut_of, None if own is None else own.group)
            if has_split or len(self._layouts) >= _CACHED:
                self.forget()
                self._turn_to(table, structure)
            self._layouts[layout_key] = layout
        place = next((column.first for column in columns if column is not None), 0)
        shape = ItemShape(layout, [tuple((first - place, length) for first, length in ranges) for ranges in cuts])
        return _Route(shape, own, target is not None and target.is_prioritized)


class _Route:
    """How items that look alike enter one table."""

    __slots__ = ("is_prioritized", "own", "shape")

    def __init__(self, shape: ItemShape, own: _OwnColumns | None, is_prioritized: bool) -> None:
        self.shape = shape
        self.own = own
        self.is_prioritized = is_prioritized


class _OwnColumns:
    """Values that come with each item instead of from a history: a row per item in a group of their own.

    Attributes:
        specs: their dtypes and shapes; extents that differed between items are None.
        group: theirs; another one when a spec changed.
    """

    def __init__(self, paths: Sequence[Path], grouping: Grouping) -> None:
        self._paths = paths
        self._grouping = grouping
        self._groups: dict[tuple[ArraySpec, ...], RowGroup] = {}
        self._loose: dict[int, ArraySpec] = {}
        self._last_target: Target | None = None
        self._takes: list[tuple[type, tuple[int | None, ...], DType]] = []
        """What the last values were, if ones like them can be stored as they stand."""
        self.specs: tuple[ArraySpec, ...] = ()
        self.group = RowGroup(-1, ())

    def fit(self, values: Sequence[object], target: Target | None) -> list[Any]:
        """Return copies of an item's values, arrays or scalars; the columns are made to fit them.

        Raises:
            InvalidArgument: one is nothing that a column can hold.
        """
        if target is self._last_target and len(self._takes) == len(values):
            known = self._copies(values)
            if known is not None:
                return known
        leaves = []
        specs = []
        takes = []
        for at, (value, path) in enumerate(zip(values, self._paths, strict=True)):
            if isinstance(value, ColumnHistory):
                hint = listed_hint(path, self._paths, value.dtype)
                raise InvalidArgument(
                    f"trajectory column {path} is a whole history: select steps of it, as in history['x'][-4:]"
                    + (f"; {hint} to append()" if hint else "")
                )
            wanted = None if target is None else target.by_path.get(path)
            leaf = as_leaf(value, path, wanted)
            leaves.append(leaf.copy() if isinstance(leaf, np.ndarray) else leaf)
            got = leaf_spec(leaf)
            if (type(value) is np.ndarray and leaf is value) or type(value) in scalar_types(got.dtype):
                takes.append((type(value), got.shape, got.dtype))
            if wanted is not None and wanted.dtype == got.dtype and wanted.admits(got.shape):
                specs.append(wanted)
                continue
            before = self._loose.get(at)
            if before is not got:
                if before is not None and before.dtype == got.dtype:
                    got = widened(before, got.shape) or got
                self._loose[at] = got
            specs.append(got)
        if tuple(specs) != self.specs:
            self.specs = tuple(specs)
            if len(self._groups) >= _CACHED:
                self._groups.clear()
            if self.specs not in self._groups:
                self._groups[self.specs] = self._grouping.new_row_group(self.specs)
            self.group = self._groups[self.specs]
        self._last_target, self._takes = target, takes
        return leaves

    def _copies(self, values: Sequence[Any]) -> list[Any] | None:
        """Return copies of values like the last ones, for which nothing changes; None if they are not like them."""
        copies: list[Any] = []
        for value, (kind, shape, dtype) in zip(values, self._takes, strict=True):
            if type(value) is not kind:
                return None
            if isinstance(value, np.ndarray):
                if value.shape != shape or value.dtype != dtype:
                    return None
                copies.append(value.copy())
            else:
                copies.append(value)
        return copies


def _sampled_spec(column: TrajectoryColumn) -> ArraySpec:
    spec = column.column.spec
    return spec if column.squeeze else ArraySpec((None, *spec.shape), spec.dtype)


def _none_at(tree: Tree, at: Path) -> Path | None:
    if tree is None:
        return at
    if not isinstance(tree, Node):
        return None
    for part, child in zip(tree.parts, tree.children, strict=True):
        found = _none_at(child, (*at, part))
        if found is not None:
            return found
    return None
