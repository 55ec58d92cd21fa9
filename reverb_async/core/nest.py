"""Nests of values: dicts, lists, tuples, namedtuples and dataclasses, taken apart and put together in dm-tree's order.

The order is: dict keys sorted (of an OrderedDict too), sequences and fields as they stand. None is a place without
a value.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence, Set, ValuesView
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from reverb_async.core.records import (
    NAMESPACE,
    RecordKind,
    check_names,
    field_names,
    record_kind,
    registry,
    walks_alike,
)
from reverb_async.core.structure import Structure
from reverb_async.core.tree import LEAF, MAX_DEPTH, MAX_LEAVES, MAX_NODES, Node, Path, Tree, check_key, tree_paths
from reverb_async.errors import InvalidArgument

__all__ = ["Path", "Structure", "flatten"]

MAX_NUMBERS = 16
"""A list of more Python numbers is meant as an array, not as that many columns."""

_NUMBERS = frozenset({bool, int, float, complex})
_PLAIN: frozenset[type] = _NUMBERS | {np.ndarray, str, bytes, np.bool_, np.int32, np.int64, np.float32, np.float64}
_CACHED = 4096


@dataclass(frozen=True, slots=True)
class _Known:
    """What has been learnt of nests that optree describes alike.

    Attributes:
        structure: theirs.
        order: where optree has each leaf, by place in our order; None if the orders agree.
        numbers: places of leaves that, all being Python numbers, are too many columns; per list or tuple.
    """

    structure: Structure
    order: tuple[int, ...] | None
    numbers: tuple[tuple[int, ...], ...]


# Typed for nests of one type, which ours are not.
_optree_flatten: Callable[..., tuple[list[object], optree.PyTreeSpec]] = optree.tree_flatten

_leaf_types: set[type] = set(_PLAIN)
_known: dict[optree.PyTreeSpec, _Known] = {}
# Most steps are plain dicts of arrays. For these the keys, as they stand, tell the structure and pick the values in
# order.
_flat: dict[tuple[str, ...], tuple[Callable[[dict[str, object]], tuple[object, ...]], Structure]] = {}


def flatten(data: object) -> tuple[list[object], Structure]:
    """Return the values of a nest and its structure; values are not looked at, but for what they are not.

    Raises:
        InvalidArgument: a container of another type, a key that is no text, a list of more than 16 Python numbers, or
            too deep (64) or large (16384 leaves) a nest; the message has the path and the way out.
    """
    if type(data) is dict:
        flat = _flat.get(tuple(data))
        if flat is not None:
            values = flat[0](data)
            if _leaf_types.issuperset(map(type, values)):
                return list(values), flat[1]
    try:
        leaves, spec = _optree_flatten(data, namespace=NAMESPACE)
    except RecursionError as error:
        raise InvalidArgument(f"the data are more than {MAX_DEPTH} deep; do they contain themselves?") from error
    except AttributeError:  # of a dataclass with an unset field
        return _learn(data)  # raises, knowing where
    known = _known.get(spec)
    if known is None or not _leaf_types.issuperset(map(type, leaves)):
        return _learn(data)
    if known.order is not None:
        leaves = [leaves[place] for place in known.order]
    if known.numbers and any(_too_many(leaves[place] for place in places) for places in known.numbers):
        return _learn(data)  # raises, knowing where
    return leaves, known.structure


def _too_many(values: Iterator[object]) -> bool:
    return sum(type(value) in _NUMBERS for value in values) > MAX_NUMBERS


def _learn(data: object) -> tuple[list[object], Structure]:
    """Flatten in Python, with all checks, and note what was found for the next time."""
    walk = _Walk()
    structure = Structure(walk.tree(data, (), 0))
    if len(_leaf_types) > _CACHED:
        _leaf_types.intersection_update(_PLAIN)
    _leaf_types.update(map(type, walk.leaves))
    found, spec = _optree_flatten(data, namespace=NAMESPACE)
    if walks_alike(spec, found):
        marks = [object() for _ in range(spec.num_leaves)]
        replayed = _Walk()
        replayed.tree(spec.unflatten(marks), (), 0)
        place = {id(mark): index for index, mark in enumerate(marks)}
        order = tuple(place[id(mark)] for mark in replayed.leaves)
        if len(_known) >= _CACHED:
            _known.clear()
        _known[spec] = _Known(structure, None if order == tuple(range(len(order))) else order, tuple(walk.numbers))
    tree = structure.tree
    if (
        type(data) is dict
        and isinstance(tree, Node)
        and len(tree.keys) > 1
        and all(child is LEAF for child in tree.children)
    ):
        if len(_flat) >= _CACHED:
            _flat.clear()
        _flat[tuple(data)] = (operator.itemgetter(*tree.keys), structure)
    return walk.leaves, structure


class _Walk:
    """One walk through a nest, checking everything."""

    def __init__(self) -> None:
        self.leaves: list[object] = []
        self.numbers: list[tuple[int, ...]] = []
        self._nodes = 0

    def tree(self, value: object, path: Path, depth: int) -> Tree:
        self._nodes += 1
        if self._nodes > MAX_NODES or len(self.leaves) >= MAX_LEAVES:
            raise InvalidArgument(f"the data have {MAX_LEAVES} columns or more; stack values into arrays")
        if value is None:
            return None
        kind = type(value)
        if kind in _PLAIN:
            return self._leaf(value)
        record = record_kind(kind)
        if record is None and kind not in (dict, OrderedDict, list, tuple):
            _refuse_containers(value, path)
            return self._leaf(value)
        if depth >= MAX_DEPTH:
            raise InvalidArgument(f"column {path[:4]}... is more than {MAX_DEPTH} deep; does the nest contain itself?")
        if record is not None:
            return self._record(value, record, path, depth)
        if isinstance(value, dict):
            return self._dict(value, path, depth)
        return self._sequence(value, path, depth)  # type: ignore[arg-type]  # a list or a tuple, by `kind`

    def _leaf(self, value: object) -> Tree:
        self.leaves.append(value)
        return LEAF

    def _dict(self, value: dict[Any, object], path: Path, depth: int) -> Node:
        for key in value:
            if not isinstance(key, str):
                raise InvalidArgument(
                    f"the dict at {path} has the key {repr(key)[:60]} of type {type(key).__name__}; "
                    "keys are str: pass {str(k): v for k, v in x.items()}"
                )
            check_key(key)
        keys = sorted(value)
        children = tuple(self.tree(value[key], (*path, key), depth + 1) for key in keys)
        return Node("dict", "", tuple(map(str.__str__, keys)), children)

    def _sequence(self, value: list[object] | tuple[object, ...], path: Path, depth: int) -> Node:
        if _too_many(iter(value)):
            raise InvalidArgument(f"column {path}: {_array_instead(value, path)}")
        first = len(self.leaves)
        children = tuple(self.tree(child, (*path, index), depth + 1) for index, child in enumerate(value))
        if sum(child is LEAF for child in children) > MAX_NUMBERS:
            places, at = [], first
            for child in children:
                if child is LEAF:
                    places.append(at)
                at += 1 if child is LEAF else sum(1 for _ in tree_paths(child, ()))
            self.numbers.append(tuple(places))
        return Node("list" if type(value) is list else "tuple", "", (), children)

    def _record(self, value: object, kind: RecordKind, path: Path, depth: int) -> Node:
        cls = type(value)
        fields = field_names(cls)
        check_names(cls.__name__, fields)
        values: Sequence[object] = (
            value if isinstance(value, tuple) else [self._field(value, name, path) for name in fields]
        )
        if len(values) != len(fields):
            raise InvalidArgument(
                f"the {cls.__name__} at {path} has {len(values)} values for the fields {fields}; use a dict"
            )
        registry.remember(cls, kind, fields)
        children = tuple(self.tree(child, (*path, name), depth + 1) for name, child in zip(fields, values, strict=True))
        return Node(kind, cls.__name__, fields, children)

    @staticmethod
    def _field(value: object, name: str, path: Path) -> object:
        try:
            return getattr(value, name)
        except AttributeError as error:
            raise InvalidArgument(
                f"the {type(value).__name__} at {path} has no value for its field {name!r}; set it, to None perhaps"
            ) from error


def _array_instead(value: Sequence[object], path: Path) -> str:
    name = next((part for part in reversed(path) if isinstance(part, str)), "x")
    kinds = {type(number) for number in value}
    dtype = (
        "np.complex64"
        if complex in kinds
        else "np.float32"
        if float in kinds
        else "np.int32"
        if int in kinds
        else "np.bool_"
    )
    return f"{name!r} is {len(value)} columns; pass np.asarray({name}, {dtype})"


def _refuse_containers(value: object, path: Path) -> None:
    kind = type(value)
    if (
        getattr(kind, "__nest_leaf__", False)
        or hasattr(kind, "__array__")
        or isinstance(value, str | bytes | bytearray | memoryview | type)
    ):
        return
    if isinstance(value, Set) and not isinstance(value, KeysView):
        way_out = "use a tuple or a dict"
    elif isinstance(value, Mapping):
        way_out = "pass dict(x)"
    elif isinstance(value, tuple):
        way_out = "pass tuple(x)"
    elif isinstance(value, range):
        way_out = "pass np.arange(...)"
    elif isinstance(value, Sequence | Iterator | KeysView | ValuesView):
        way_out = "pass np.asarray(list(x)) for one column, or list(x) for a column per element"
    else:
        return
    raise InvalidArgument(f"column {path} is a {kind.__name__}; {way_out}")
