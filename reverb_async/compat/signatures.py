"""Signatures as dm-reverb describes them: `tensorflow.StructuredValue`.

Both sides flatten alike, dict keys sorted, so columns agree by place. Where the two differ:

- None, a place without a value, becomes an empty tuple; None of theirs is refused, as it is there.
- A dataclass becomes a namedtuple. ``str`` becomes DT_STRING, which comes back as ``bytes``; so does fixed-width text.
- The names of specs and the bounds of bounded ones have no counterpart here: whoever must give them back as they were
  keeps the message (`EncodedSignature`).
- A shape whose rank is unknown, and specs of anything but tensors, cannot be expressed; they are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from reverb_async.compat.message import Message
from reverb_async.compat.scanning import Data
from reverb_async.compat.tensors import NAMES, dtype_of, number_of
from reverb_async.core.nest import Path, Structure
from reverb_async.core.records import RECORD_KINDS, check_names
from reverb_async.core.spec import ArraySpec, Signature
from reverb_async.core.tree import LEAF, MAX_DEPTH, MAX_LEAVES, MAX_NODES, Node, Tree, check_key
from reverb_async.errors import InvalidArgument
from reverb_async.wire.generated import tensorflow as tf

MAX_BYTES = 16 << 20
"""A signature's message is not larger; what makes them large are the bounds of bounded specs."""

_NONE = 1
_KINDS = {33: "spec", 35: "spec", 51: "list", 52: "tuple", 53: "dict", 54: "namedtuple"}
"""By their numbers in `StructuredValue`; 33 is a plain and 35 a bounded tensor spec."""


@dataclass(frozen=True, slots=True)
class EncodedSignature(Signature):
    """A signature that came from outside.

    Attributes:
        encoded: the message it was read from, to be given back as it is.
    """

    encoded: bytes


def read_signature(encoded: Data) -> EncodedSignature:
    """Return the signature that a serialized `StructuredValue` describes.

    Raises:
        InvalidArgument: it is malformed, too deep or too large, has no columns, or something that cannot be expressed
            here; naming the place as dm-reverb does, ``a/b/0``.
    """
    if len(encoded) > MAX_BYTES:
        raise InvalidArgument(f"a signature has at most {MAX_BYTES} bytes, this one has {len(encoded)}")
    reader = _Reader()
    structure = Structure(reader.read(Message(encoded, "the signature"), ()))
    if not reader.specs:
        raise InvalidArgument(f"the signature {structure.describe()} has no columns")
    return EncodedSignature(structure, tuple(reader.specs), bytes(encoded))


def signature_bytes(signature: Signature) -> bytes:
    """Return a signature as a serialized `StructuredValue`; one that came from outside, as it came.

    Raises:
        InvalidArgument: a column's dtype has no counterpart, naming both.
    """
    if isinstance(signature, EncodedSignature):
        return signature.encoded
    columns = iter(zip(signature.structure.paths, signature.specs, strict=True))

    def value(tree: Tree) -> tf.StructuredValue:
        if tree is None:
            # None in any table's signature has dm-reverb's clients refuse to know any of the tables.
            return tf.StructuredValue(tuple_value=tf.TupleValue())
        if tree is LEAF:
            return tf.StructuredValue(tensor_spec_value=_tensor_spec(*next(columns)))
        children = [value(child) for child in tree.children]
        if tree.kind == "list":
            return tf.StructuredValue(list_value=tf.ListValue(values=children))
        if tree.kind == "tuple":
            return tf.StructuredValue(tuple_value=tf.TupleValue(values=children))
        named = zip(tree.keys, children, strict=True)
        if tree.kind in RECORD_KINDS:
            pairs = [tf.PairValue(key=key, value=child) for key, child in named]
            return tf.StructuredValue(named_tuple_value=tf.NamedTupleValue(name=tree.name, values=pairs))
        return tf.StructuredValue(dict_value=tf.DictValue(fields=dict(named)))

    return bytes(value(signature.structure.tree))


def _tensor_spec(path: Path, spec: ArraySpec) -> tf.TensorSpecProto:
    try:
        dtype = tf.DataType(number_of(spec.dtype))
    except InvalidArgument as error:
        raise InvalidArgument(f"column {path} of the signature: {error}") from None
    dims = [tf.TensorShapeProtoDim(size=-1 if extent is None else extent) for extent in spec.shape]
    return tf.TensorSpecProto(shape=tf.TensorShapeProto(dim=dims), dtype=dtype)


class _Reader:
    """One walk through a message, collecting the specs."""

    def __init__(self) -> None:
        self.specs: list[ArraySpec] = []
        self._nodes = 0

    def read(self, value: Message, path: Path) -> Tree:
        """Return the tree that a `StructuredValue` at `path` describes."""
        self._nodes += 1
        if self._nodes > MAX_NODES or len(self.specs) >= MAX_LEAVES:
            raise InvalidArgument(f"a signature has at most {MAX_LEAVES} columns, this one has more")
        if len(path) > MAX_DEPTH:
            raise InvalidArgument(f"a signature is at most {MAX_DEPTH} deep, this one is deeper")
        if len(value.numbers) != 1:
            _refuse(path, "has several values" if value.numbers else "has no value")
        (kind,) = value.numbers
        content = value.message(kind) if kind in _KINDS else value
        match _KINDS.get(kind):
            case "spec":
                self.specs.append(_array_spec(content, path))
                return LEAF
            case "list" | "tuple" as name:
                return Node(name, "", (), self._children(enumerate(content.messages(1)), path))
            case "dict":
                fields = {entry.text(1): entry.message(2) for entry in content.messages(1)}
                for key in fields:
                    check_key(key)
                keys = tuple(sorted(fields))
                return Node("dict", "", keys, self._children(((key, fields[key]) for key in keys), path))
            case "namedtuple":
                pairs = [(entry.text(1), entry.message(2)) for entry in content.messages(2)]
                names = tuple(name for name, _ in pairs)
                check_names(content.text(1), names)
                return Node("namedtuple", content.text(1), names, self._children(pairs, path))
        _refuse(
            path,
            "is None; leave it out"
            if kind == _NONE
            else f"is of the kind {kind} of tensorflow.StructuredValue; columns are tensor specs",
        )

    def _children(self, parts: Iterable[tuple[str | int, Message]], path: Path) -> tuple[Tree, ...]:
        return tuple(self.read(child, (*path, part)) for part, child in parts)


def _array_spec(spec: Message, path: Path) -> ArraySpec:
    """Read a `TensorSpecProto`, or the same fields of a `BoundedTensorSpecProto`."""
    shape, dtype = spec.message(2), spec.unsigned(3)
    if shape.unsigned(3):
        _refuse(path, "has a shape of unknown rank; give it one dim of size -1 for each dimension")
    sizes = [dim.integer(1) for dim in shape.messages(2)]
    if min(sizes, default=0) < -1:
        _refuse(path, f"has a dim of size {min(sizes)}; -1 is any size")
    if dtype not in NAMES:
        _refuse(path, f"has TensorFlow's dtype number {dtype}, which has no counterpart here")
    try:
        return ArraySpec([None if size == -1 else size for size in sizes], dtype_of(dtype))
    except InvalidArgument as error:
        _refuse(path, f"cannot be a column: {error}")


def _refuse(path: Path, why: str) -> NoReturn:
    place = f"column {'/'.join(map(str, path))[:200]}" if path else "the signature"
    raise InvalidArgument(f"{place} {why}")
