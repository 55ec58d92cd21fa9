"""The shape of a nest without its values: what stands where, under which name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import optree

from reverb_async.core.records import NAMESPACE, RECORD_KINDS, field_names, record_kind, registry, walks_alike
from reverb_async.core.tree import LEAF, Node, Path, Tree, WireReader, build, pieces, to_wire, tree_paths
from reverb_async.errors import InvalidArgument


class Structure:
    """The shape of a nest: immutable, hashable, equal when kinds, names and places are.

    `flatten` makes it from data, `from_wire` from another process's description. None is a place without a value.
    """

    __slots__ = ("__weakref__", "_hash", "_paths", "_restore", "_restore_version", "_tree")

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._paths: tuple[Path, ...] | None = None
        self._hash: int | None = None
        self._restore: Callable[[Sequence[object]], object] | None = None
        self._restore_version = -1

    @property
    def tree(self) -> Tree:
        """What `flatten` and the wire build and read."""
        return self._tree

    @property
    def paths(self) -> tuple[Path, ...]:
        """The path of each leaf, in flatten order."""
        if self._paths is None:
            self._paths = tuple(tree_paths(self._tree, ()))
        return self._paths

    @property
    def num_leaves(self) -> int:
        """How many values a nest of this structure has."""
        return len(self.paths)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return self._tree == other._tree if isinstance(other, Structure) else NotImplemented

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(self._tree)
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        return Structure.from_wire, (self.to_wire(),)

    def __repr__(self) -> str:
        return f"Structure({self.describe()})"

    def describe(self, most: int = 200) -> str:
        """Return a text like ``{'action': *, 'obs': (*, None)}``, cut after about `most` characters."""
        text = ""
        for piece in pieces(self._tree):
            text += piece
            if len(text) > most:
                return text[:most] + "..."
        return text

    def unflatten(self, leaves: Sequence[object]) -> object:
        """Put `leaves`, one per path, in their places.

        A record becomes an instance of the class that `flatten` saw in this process, if exactly one fits; else a
        namedtuple.
        """
        assert len(leaves) == self.num_leaves, f"{len(leaves)} leaves for {self}"
        if self._restore is None or self._restore_version != registry.version:
            self._restore_version = registry.version
            self._restore = self._restorer()
        return self._restore(leaves)

    def _restorer(self) -> Callable[[Sequence[object]], object]:
        # optree rebuilds nests in C++, if it does so as `build` would; it learns this one from an example.
        example: Any = build(self._tree, iter([0] * self.num_leaves))
        leaves, spec = optree.tree_flatten(example, namespace=NAMESPACE)
        if walks_alike(spec, leaves):
            return spec.unflatten
        return lambda leaves: build(self._tree, iter(leaves))

    def to_wire(self) -> object:
        """Return plain values MessagePack knows.

        A leaf is 0, no value is None; containers are ``["list", *children]``, ``["tuple", *children]``,
        ``["dict", keys, *children]``, ``["namedtuple", name, fields, *children]`` and
        ``["dataclass", name, fields, *children]``.
        """
        return to_wire(self._tree)

    @classmethod
    def from_wire(cls, wire: object) -> Structure:
        """Rebuild what `to_wire` returned.

        Raises:
            InvalidArgument: it is anything else, deeper than 64, or has more than 16384 leaves.
        """
        return cls(WireReader().read(wire, 0))

    def select(self, columns: str | Iterable[str | Path]) -> tuple[Structure, list[int]]:
        """Return the structure of some columns, and which leaves of this one are theirs.

        Args:
            columns: names, or paths; what a path leads to is taken whole. Their order does not matter.

        Returns:
            The structure, in which the others are dropped from dicts and None elsewhere, so that paths stay what they
            are; and indices, ascending.

        Raises:
            InvalidArgument: a column is unknown or holds no value, or none was given.
        """
        wanted = {_as_path(column) for column in ([columns] if isinstance(columns, str) else columns)}
        if not wanted:
            raise InvalidArgument(f"no columns given; there are {_listed(self.paths)}")
        unknown = set(wanted)
        chosen = []
        for index, path in enumerate(self.paths):
            prefixes = {path[:length] for length in range(len(path) + 1)}
            if not wanted.isdisjoint(prefixes):
                chosen.append(index)
                unknown -= prefixes
        if unknown:
            raise InvalidArgument(f"no column {_listed(sorted(unknown, key=str))}; there are {_listed(self.paths)}")
        kept = set(chosen)
        return Structure(_pruned(self._tree, iter(index in kept for index in range(self.num_leaves)))), chosen

    def with_types(self, template: object) -> Structure:
        """Return the same structure whose records come back as the classes named in `template`.

        Args:
            template: a namedtuple or dataclass class, for the nest itself; or a nest of them, whose dicts may leave
                keys out. An instance of such a class stands for its class and may hold templates in its fields. Other
                values name nothing.

        Raises:
            InvalidArgument: a class has other fields, or stands where there is no record.
        """
        return Structure(_typed(self._tree, template, ()))

    def merge(self, other: Structure) -> Structure:
        """Return a structure with the places of both: dicts and sequences grow, a value takes the place of None.

        Raises:
            InvalidArgument: naming the path where they contradict each other.
        """
        if self == other:
            return self
        return Structure(_merged(self._tree, other._tree, ()))


def _as_path(column: object) -> Path:
    path = (column,) if isinstance(column, str | int) else column
    if not isinstance(path, list | tuple) or not all(type(part) in (str, int) for part in path):
        raise InvalidArgument(f"a column is a name or a path like ('obs', 0), got a {type(column).__name__}")
    return tuple(path)


def _listed(paths: Sequence[Path], most: int = 16) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return (", ".join(str(path)[:100] for path in paths[:most]) or "none") + more


def _pruned(tree: Tree, kept: Iterator[bool]) -> Tree:
    if tree is LEAF:
        return LEAF if next(kept) else None
    if tree is None:
        return None
    children = tuple(_pruned(child, kept) for child in tree.children)
    if all(child is None for child in children):
        return None
    if tree.kind != "dict":
        return replace(tree, children=children)
    named = [(key, child) for key, child in zip(tree.keys, children, strict=True) if child is not None]
    return Node("dict", "", tuple(key for key, _ in named), tuple(child for _, child in named))


def _typed(tree: Tree, template: object, at: Path) -> Tree:
    cls = template if isinstance(template, type) else type(template)
    kind = record_kind(cls)
    if kind is None:
        if isinstance(template, type):
            raise InvalidArgument(f"structure: {cls.__name__} at {at} is neither a namedtuple nor a dataclass")
        if not isinstance(template, dict | list | tuple) or tree is None:
            return tree
        parts = template if isinstance(template, dict) else dict(enumerate(template))
    else:
        if tree is None:
            return None
        fields = field_names(cls)
        if not isinstance(tree, Node) or tree.kind not in RECORD_KINDS or tree.keys != fields:
            raise InvalidArgument(
                f"structure: {cls.__name__} at {at} has the fields {fields}, "
                f"the data have {Structure(tree).describe()} there"
            )
        registry.walk(cls, kind, fields)
        tree = replace(tree, cls=cls)
        parts = {} if isinstance(template, type) else {name: getattr(template, name) for name in fields}
    if not isinstance(tree, Node) or not parts.keys() <= set(tree.parts):
        raise InvalidArgument(
            f"structure: not all of {sorted(map(str, parts))[:16]} exist at {at}, "
            f"the data have {Structure(tree).describe()} there"
        )
    children = tuple(
        _typed(child, parts[part], (*at, part)) if part in parts else child
        for part, child in zip(tree.parts, tree.children, strict=True)
    )
    return replace(tree, children=children)


def _merged(one: Tree, other: Tree, at: Path) -> Tree:
    if one is None or other is None or one == other:
        return other if one is None else one
    if not isinstance(one, Node) or not isinstance(other, Node):
        _contradict(one, other, at)
    if one.kind != other.kind or one.name != other.name or (one.kind in RECORD_KINDS and one.keys != other.keys):
        _contradict(one, other, at)
    mine, theirs = (dict(zip(node.parts, node.children, strict=True)) for node in (one, other))
    longer = mine if len(mine) >= len(theirs) else theirs
    parts = sorted({**mine, **theirs}, key=str) if one.kind == "dict" else list(longer)
    children = tuple(_merged(mine.get(part), theirs.get(part), (*at, part)) for part in parts)
    return replace(one, keys=tuple(map(str, parts)) if one.keys or other.keys else (), children=children)


def _contradict(one: Tree, other: Tree, at: Path) -> NoReturn:
    raise InvalidArgument(
        f"at {at} the data had {Structure(one).describe(80)}, now {Structure(other).describe(80)}; "
        "give one of them another name"
    )
