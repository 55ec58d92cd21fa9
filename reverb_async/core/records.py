"""Namedtuples and dataclasses in nests: their fields, and the classes this process has seen."""

from __future__ import annotations

import dataclasses
import keyword
import operator
import unicodedata
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal

import optree

from reverb_async.errors import InvalidArgument

RecordKind = Literal["namedtuple", "dataclass"]
RECORD_KINDS: tuple[RecordKind, RecordKind] = ("namedtuple", "dataclass")

NAMESPACE = "reverb_async"
"""Where our dataclasses are registered with optree; its other users do not see them."""

MAX_NAME = 1024
"""Characters of a key, a field, or a class name."""
_MAX_CLASSES = 4096
"""How many names of classes, and how many dataclasses, are remembered; whoever makes more gets generic records."""


# A dataclass that is one of these too holds more than its fields.
_NOT_MADE_OF_FIELDS = (dict, list, set, frozenset, str, bytes, int, float, complex, BaseException)


def record_kind(cls: type) -> RecordKind | None:
    """Whether instances of `cls` are containers with named fields, and of which kind."""
    if issubclass(cls, tuple):
        return "namedtuple" if isinstance(getattr(cls, "_fields", None), tuple) else None
    if (
        not dataclasses.is_dataclass(cls)
        or issubclass(cls, _NOT_MADE_OF_FIELDS)
        or getattr(cls, "__nest_leaf__", False)
    ):
        return None
    return "dataclass"


def field_names(cls: type) -> tuple[str, ...]:
    """Return the fields of a record class, in order."""
    if issubclass(cls, tuple):
        return tuple(cls._fields)  # type: ignore[attr-defined]  # `record_kind` saw it
    return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]  # `record_kind` saw it


def check_names(name: str, fields: Sequence[str]) -> None:
    """Refuse a class name or field names that are no Python names; they may come from a stranger.

    Raises:
        InvalidArgument: naming the first that is not.
    """
    for each in (name, *fields):
        # Python normalises the names it compiles, which would make two distinct ones the same.
        normal = len(each) <= MAX_NAME and unicodedata.normalize("NFKC", each) == each
        if not normal or not each.isidentifier() or keyword.iskeyword(each):
            raise InvalidArgument(f"{each[:60]!r} is no name for a record or its field; use a dict")
    if len(set(fields)) != len(fields):
        raise InvalidArgument(f"the fields of {name!r} are not distinct")


class _Registry:
    """Classes seen by `flatten`, by what travels of them: kind, name and fields."""

    def __init__(self) -> None:
        self.version = 0
        # By origin too, so that a class defined anew (a notebook cell run twice) replaces its former self.
        self._seen: dict[tuple[RecordKind, str, tuple[str, ...]], dict[str, weakref.ref[type]]] = {}
        self._walked: set[type] = set()

    def remember(self, cls: type, kind: RecordKind, fields: tuple[str, ...]) -> None:
        """Note that this process has `cls`, and let optree walk it."""
        key = (kind, cls.__name__, fields)
        if key not in self._seen and len(self._seen) >= _MAX_CLASSES:
            return
        origins = self._seen.setdefault(key, {})
        origin = f"{cls.__module__}.{cls.__qualname__}"
        known = origins.get(origin)
        if known is None or known() is not cls:
            for gone in [name for name, ref in origins.items() if ref() is None]:
                del origins[gone]
            if len(origins) < 16:  # from two on the name is ambiguous anyway
                origins[origin] = weakref.ref(cls)
                self.version += 1
        self.walk(cls, kind, fields)

    def walk(self, cls: type, kind: RecordKind, fields: tuple[str, ...]) -> None:
        """Let optree walk `cls`; namedtuples it walks anyway."""
        if kind == "namedtuple" or cls in self._walked or len(self._walked) >= _MAX_CLASSES:
            return

        def children(value: object) -> tuple[tuple[object, ...], None]:
            return read(value), None

        def restored(_: object, values: Iterable[object]) -> Any:
            return make(cls, fields, tuple(values))

        read = _reader(fields)
        try:
            optree.register_pytree_node(cls, children, restored, namespace=NAMESPACE)
        except (
            ValueError
        ):  # another thread was faster, or optree has its own idea of the class: `flatten` walks it in Python
            return
        self._walked.add(cls)

    def is_walked(self, cls: type | None) -> bool:
        """Whether optree walks this dataclass as `flatten` does."""
        return cls in self._walked

    def find(self, kind: RecordKind, name: str, fields: tuple[str, ...]) -> type | None:
        """Return the one class of this process that travels so; None if there is none, or more than one."""
        live = [cls for ref in list(self._seen.get((kind, name, fields), {}).values()) if (cls := ref()) is not None]
        return live[0] if len(live) == 1 else None


registry = _Registry()


def walks_alike(spec: optree.PyTreeSpec, leaves: Iterable[object]) -> bool:
    """Whether optree, which found both, finds the leaves that we find, and makes records as `make` does."""
    return _containers_alike(spec) and all(record_kind(type(leaf)) is None for leaf in leaves)


def _containers_alike(spec: optree.PyTreeSpec) -> bool:
    if spec.kind == optree.PyTreeKind.CUSTOM and not registry.is_walked(spec.type):
        return False
    if spec.kind == optree.PyTreeKind.NAMEDTUPLE and _has_own_constructor(spec.type):
        return False
    return all(map(_containers_alike, spec.children()))


def _has_own_constructor(cls: type | None) -> bool:
    assert cls is not None, "optree names the class of a namedtuple"
    maker = next(base for base in cls.__mro__ if "__new__" in vars(base))
    return "_fields" not in vars(maker)


def _reader(fields: tuple[str, ...]) -> Callable[[object], tuple[object, ...]]:
    if len(fields) > 1:
        return operator.attrgetter(*fields)
    return lambda value: tuple(getattr(value, name) for name in fields)


def make(cls: type, fields: Sequence[str], values: Sequence[object]) -> object:
    """Make a record from its fields' values; like unpickling, without calling a dataclass's ``__init__``.

    A constructor that checks or converts is meant for single steps, not for batches of them.
    """
    if issubclass(cls, tuple):
        return cls._make(values)  # type: ignore[attr-defined]  # a namedtuple
    record = object.__new__(cls)
    for name, value in zip(fields, values, strict=True):
        object.__setattr__(record, name, value)  # frozen ones too
    return record


@lru_cache(maxsize=1024)
def generic(name: str, fields: tuple[str, ...]) -> type:
    """Return a namedtuple class for records whose own class is not known here.

    A field like ``_x``, which namedtuples cannot have, becomes ``_0``, its place.
    """
    base: type = namedtuple(name, fields, rename=True)  # type: ignore[misc]  # names known at run time only

    def reduce(record: Any) -> tuple[Any, ...]:
        return _remake, (name, fields, tuple(record))

    return type(name, (base,), {"__slots__": (), "__module__": __name__, "__reduce__": reduce})


def _remake(name: str, fields: tuple[str, ...], values: tuple[object, ...]) -> object:
    return make(generic(name, fields), fields, values)
