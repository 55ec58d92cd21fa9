"""Trees: what structures are made of, and how they travel."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from reverb_async.core.records import MAX_NAME, RECORD_KINDS, RecordKind, check_names, generic, make, registry
from reverb_async.errors import InvalidArgument

Path = tuple[str | int, ...]
"""Where a leaf stands: keys of dicts, fields of records, positions in sequences; ``()`` when the nest is a leaf."""

MAX_DEPTH = 64
MAX_LEAVES = 16384
MAX_NODES = 4 * MAX_LEAVES
"""Containers, leaves and Nones together: empty containers have no leaves, yet cost memory."""


class _LeafType(enum.Enum):
    LEAF = "*"


LEAF = _LeafType.LEAF


@dataclass(frozen=True, slots=True)
class Node:
    """A container of a nest.

    Attributes:
        kind: an OrderedDict counts as a dict.
        name: of a record's class, else "".
        keys: of a dict (sorted) or the fields of a record (in order); ``()`` for lists and tuples.
        children: as many as `keys` where there are any.
        cls: the class that `Structure.with_types` chose for a record.
    """

    kind: Literal["dict", "list", "tuple"] | RecordKind
    name: str
    keys: tuple[str, ...]
    children: tuple[Tree, ...]
    cls: type | None = field(default=None, compare=False)

    @property
    def parts(self) -> Sequence[str | int]:
        """What stands in a path for each child."""
        return range(len(self.children)) if self.kind in ("list", "tuple") else self.keys


Tree = Node | Literal[_LeafType.LEAF] | None


def tree_paths(tree: Tree, at: Path) -> Iterator[Path]:
    """Yield the path of each leaf of a tree that stands at `at`."""
    if tree is LEAF:
        yield at
    elif isinstance(tree, Node):
        for part, child in zip(tree.parts, tree.children, strict=True):
            yield from tree_paths(child, (*at, part))


def pieces(tree: Tree) -> Iterator[str]:
    """Yield the pieces of a text that describes `tree`; large trees have many."""
    if not isinstance(tree, Node):
        yield "None" if tree is None else "*"
        return
    opening, closing, label = {"dict": ("{", "}", "{!r}: "), "list": ("[", "]", ""), "tuple": ("(", ")", "")}.get(
        tree.kind, (tree.name + "(", ")", "{}=")
    )
    yield opening
    for position, (part, child) in enumerate(zip(tree.parts, tree.children, strict=True)):
        yield (", " if position else "") + label.format(part)
        yield from pieces(child)
    yield ("," if tree.kind == "tuple" and len(tree.children) == 1 else "") + closing


def build(tree: Tree, leaves: Iterator[object]) -> object:
    """Put the next of `leaves` wherever `tree` has one."""
    if tree is LEAF:
        return next(leaves)
    if tree is None:
        return None
    values = [build(child, leaves) for child in tree.children]
    if tree.kind == "dict":
        return dict(zip(tree.keys, values, strict=True))
    if tree.kind == "list":
        return values
    if tree.kind == "tuple":
        return tuple(values)
    cls = tree.cls or registry.find(tree.kind, tree.name, tree.keys) or generic(tree.name, tree.keys)
    return make(cls, tree.keys, values)


def to_wire(tree: Tree) -> object:
    """Return lists, text and numbers that `WireReader` reads; `Structure.to_wire` has the form."""
    if not isinstance(tree, Node):
        return None if tree is None else 0
    children = [to_wire(child) for child in tree.children]
    if tree.kind in RECORD_KINDS:
        return [tree.kind, tree.name, list(tree.keys), *children]
    return [tree.kind, list(tree.keys), *children] if tree.kind == "dict" else [tree.kind, *children]


class WireReader:
    """Reads one structure that a stranger sent."""

    def __init__(self) -> None:
        self._nodes = 0
        self._leaves = 0

    def read(self, wire: object, depth: int) -> Tree:
        """Return the tree that `wire` describes, or raise InvalidArgument; `depth` containers are around it."""
        self._nodes += 1
        if type(wire) is int and wire == 0:
            self._leaves += 1
        if self._nodes > MAX_NODES or self._leaves > MAX_LEAVES:
            raise InvalidArgument(
                f"a structure has at most {MAX_LEAVES} leaves and {MAX_NODES} nodes, this one has more"
            )
        if wire is None:
            return None
        if type(wire) is int and wire == 0:
            return LEAF
        if not isinstance(wire, list | tuple) or not wire:
            raise InvalidArgument(f"a structure is 0, None or [kind, ...], got a {type(wire).__name__}")
        if depth >= MAX_DEPTH:
            raise InvalidArgument(f"a structure is at most {MAX_DEPTH} deep, this one is deeper")
        kind, *rest = wire
        if kind in ("list", "tuple"):
            return Node(kind, "", (), self._children(rest, depth))
        if kind == "dict" and rest:
            keys = _names(rest[0], "keys")
            if any(one >= other for one, other in itertools.pairwise(keys)):
                raise InvalidArgument("the keys of a dict must be sorted and distinct")
            return self._named("dict", "", keys, rest[1:], depth)
        if kind in RECORD_KINDS and len(rest) >= 2 and isinstance(rest[0], str):
            fields = _names(rest[1], "fields")
            check_names(rest[0], fields)
            return self._named(kind, rest[0], fields, rest[2:], depth)
        raise InvalidArgument("a structure names an unknown kind of container, or its parts are missing")

    def _named(
        self, kind: Literal["dict"] | RecordKind, name: str, keys: tuple[str, ...], wires: list[object], depth: int
    ) -> Node:
        if len(keys) != len(wires):
            raise InvalidArgument(f"a {kind} of {len(keys)} names came with {len(wires)} children")
        return Node(kind, name, keys, self._children(wires, depth))

    def _children(self, wires: list[object], depth: int) -> tuple[Tree, ...]:
        return tuple(self.read(wire, depth + 1) for wire in wires)


def _names(wire: object, what: str) -> tuple[str, ...]:
    if not isinstance(wire, list | tuple) or not all(isinstance(name, str) for name in wire):
        raise InvalidArgument(f"the {what} of a container must be a list of text")
    for name in wire:
        check_key(name)
    return tuple(wire)


def check_key(key: str) -> None:
    """Refuse a key that cannot travel.

    Raises:
        InvalidArgument: it is longer than 1024 characters, or no valid Unicode.
    """
    if len(key) > MAX_NAME:
        raise InvalidArgument(f"the key {key[:40]!r}... has {len(key)} characters, at most {MAX_NAME} are allowed")
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"the key {key!r} has a lone surrogate, which is not valid Unicode") from error
