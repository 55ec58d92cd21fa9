"""From what a server sent to what the caller asked for: nests of arrays, ragged columns as chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from reverb_async.client.sampling.leaf_values import (
    Listed,
    Rows,
    Stacked,
    Values,
    empty,
    leaf_values,
    merged,
    owned,
    single_value,
)
from reverb_async.core.nest import Path, Structure
from reverb_async.core.ragged import Ragged
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.sampled import SampledBatch, SampledLayout, SampledPiece

RaggedMode: TypeAlias = Literal["error", "pad", "flat", "list"]
PadSide: TypeAlias = Literal["left", "right"]
Columns: TypeAlias = "str | Path | Iterable[str | Path]"

_MAX_TYPED = 4096
_WAY_OUT = "pass ragged='pad' (with pad_value=, pad_to=), 'flat' (values and offsets) or 'list'"


def as_columns(columns: object) -> list[Path] | None:
    """Return paths for what a caller may pass as `columns`: a name, a path (a tuple), or several of these; None is all.

    Raises:
        InvalidArgument: it is anything else.
    """
    if columns is None:
        return None
    if isinstance(columns, str):
        return [(columns,)]
    if isinstance(columns, tuple):
        return [_as_path(columns)]
    if isinstance(columns, Mapping) or not isinstance(columns, Iterable):
        raise InvalidArgument(f"columns are a name, a path or a list of these, got a {type(columns).__name__}")
    paths = [(column,) if isinstance(column, str) else _as_path(column) for column in columns]
    if not paths:
        raise InvalidArgument("columns=[] selects nothing; pass None for all columns")
    return paths


def _as_path(path: object) -> Path:
    if not isinstance(path, tuple | list) or not all(type(part) in (str, int) for part in path):
        raise InvalidArgument(f"a column is a name or a path like ('obs', 0), got {path!r:.60}")
    return tuple(path)


@dataclass(slots=True)
class Collator:
    """How the data of one call are put together.

    Args:
        structure: classes for records, see `Structure.with_types`; None: as found.
        ragged: what to do with items of unequal length.
        pad_value: for ``"pad"``; one number, or numbers by column. Text is padded with empty text.
        pad_to: for ``"pad"``: the length to pad to, one or by column; None: the batch's longest item.
        pad_side: for ``"pad"``.

    Raises:
        InvalidArgument: a value that cannot work.
    """

    structure: Any = None
    ragged: RaggedMode = "error"
    pad_value: Any = 0
    pad_to: Any = None
    pad_side: PadSide = "right"
    _typed: dict[int, tuple[SampledLayout, Structure]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ragged not in get_args(RaggedMode):
            raise InvalidArgument(f"ragged is 'error', 'pad', 'flat' or 'list', got {self.ragged!r:.60}")
        if self.pad_side not in get_args(PadSide):
            raise InvalidArgument(f"pad_side is 'left' or 'right', got {self.pad_side!r:.60}")
        if self.ragged != "pad":
            is_filled = type(self.pad_value) is not int or self.pad_value != 0
            given = {"pad_value": is_filled, "pad_to": self.pad_to is not None, "pad_side": self.pad_side != "right"}
            if any(given.values()):
                names = " and ".join(name for name, is_given in given.items() if is_given)
                raise InvalidArgument(f"{names}: nothing is padded with ragged={self.ragged!r}; pass ragged='pad'")

    def single(self, sampled: SampledBatch) -> Any:
        """Return the data of a batch of one item as the item itself, without a batch axis."""
        (piece,) = sampled.pieces
        leaves = [
            single_value(spec, squeeze, column)
            for (_, squeeze, spec), column in zip(piece.layout.leaves, piece.columns, strict=True)
        ]
        return self._structure(piece.layout).unflatten(leaves)

    def batch(self, sampled: SampledBatch) -> tuple[Any, Any]:
        """Return a batch's data, and their lengths if they are padded (else None); both nested like an item.

        Arrays are views of what was received where that is possible.

        Raises:
            InvalidArgument: the items do not go together; names the column, or the structures.
        """
        pieces = sampled.pieces
        structure = self._common_structure(pieces)
        if self.ragged == "error" and len(pieces) == 1:
            leaves = _stacked(pieces[0], len(sampled.keys))
            if leaves is not None:
                return structure.unflatten(leaves), None
        columns = self._columns(pieces, structure, len(sampled.keys))
        if self.ragged != "pad":
            collate = {"error": _refused, "flat": _flat, "list": _listed}[self.ragged]
            return structure.unflatten([collate(path, values) for path, values in columns]), None
        padded = [self._padded(path, values) for path, values in columns]
        return (
            structure.unflatten([values for values, _ in padded]),
            structure.unflatten([lengths for _, lengths in padded]),
        )

    # -- structure ----------------------------------------------------------------------------------------------------

    def _structure(self, layout: SampledLayout) -> Structure:
        known = self._typed.get(id(layout))
        if known is None:
            structure = layout.structure if self.structure is None else layout.structure.with_types(self.structure)
            for name in ("pad_to", "pad_value"):
                _check_names(name, getattr(self, name), structure.paths)
            if len(self._typed) >= _MAX_TYPED:
                self._typed.clear()
            known = self._typed[id(layout)] = (layout, structure)
        return known[1]

    def _common_structure(self, pieces: Sequence[SampledPiece]) -> Structure:
        if len(pieces) > 1 and any(piece.layout.structure != pieces[0].layout.structure for piece in pieces[1:]):
            counts: dict[Structure, int] = {}
            for piece in pieces:
                assert piece.positions is not None
                counts[piece.layout.structure] = counts.get(piece.layout.structure, 0) + len(piece.positions)
            found = ", ".join(f"{count} of {structure.describe()}" for structure, count in counts.items())
            raise InvalidArgument(
                f"the batch has items of different structure: {found}; "
                f"select what they share with columns=, or keep them in tables of their own"
            )
        return self._structure(pieces[0].layout)

    def _columns(self, pieces: Sequence[SampledPiece], structure: Structure, size: int) -> list[tuple[Path, Values]]:
        columns = []
        for at, path in enumerate(structure.paths):
            parts = []
            for piece in pieces:
                view, squeeze, spec = piece.layout.leaves[at]
                positions = np.arange(size) if piece.positions is None else piece.positions
                values = leaf_values(spec, squeeze, piece.lengths[view], piece.columns[at], len(positions))
                parts.append((positions, values))
            columns.append((path, parts[0][1] if len(parts) == 1 else merged(parts, size)))
        return columns

    # -- padding ------------------------------------------------------------------------------------------------------

    def _padded(self, path: Path, values: Values) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return ``[B, longest, *row_shape]`` and lengths ``[B]``; a value without an axis has the length 1."""
        width = _by_column(self.pad_to, path, None)
        if isinstance(values, Listed):
            _check_dtypes(path, values)
            raise InvalidArgument(
                f"column {path} cannot be padded: its items differ in more than their length, {_shapes(values)}; "
                "pass ragged='list'"
            )
        if isinstance(values, Stacked):
            size, wide = len(values.values), values.values.shape[1] if values.values.ndim > 1 else 1
            lengths = np.full(size, wide)
            fixed = values.values.ndim == 1 or not (values.varies or isinstance(self.pad_to, Mapping))
            if fixed or width is None or width == wide:
                return values.values, lengths
            values = Rows(values.values.reshape(size * wide, *values.values.shape[2:]), lengths)
        longest = int(values.lengths.max(initial=0))
        if width is None:
            width = longest
        if isinstance(width, bool) or not isinstance(width, int | np.integer) or width < 1:
            raise InvalidArgument(f"pad_to of column {path} must be an int >= 1, got {width!r:.60}")
        if width < longest:
            raise InvalidArgument(f"column {path} has items of {longest} rows, pad_to is {width}: raise it")
        return self._filled(path, values, int(width)), values.lengths

    def _filled(self, path: Path, rows: Rows, width: int) -> NDArray[Any]:
        values = rows.values
        out = empty((len(rows.lengths), width, *values.shape[1:]), values.dtype)
        fill = _by_column(self.pad_value, path, 0)
        if values.dtype == object:
            fill = type(values.flat[0])() if values.size else ""
        elif values.dtype.kind in "US":
            fill = values.dtype.type()
        try:
            out[...] = fill
            fits = values.dtype.kind not in "biu" or not out.size or bool(out.flat[0] == fill)
        except (OverflowError, ValueError, TypeError):
            fits = False
        if not fits:
            raise InvalidArgument(
                f"pad_value {fill!r:.60} does not fit column {path} of {values.dtype}; name the columns it is for, "
                f"as in pad_value={{'tokens': -1}}"
            )
        places = np.arange(width)
        if self.pad_side == "right":
            out[places < rows.lengths[:, None]] = values
        else:
            out[places >= width - rows.lengths[:, None]] = values
        return out


def _stacked(piece: SampledPiece, size: int) -> list[Any] | None:
    """Return the columns of a batch of fixed rows and equal lengths, as views; None if it is not one."""
    if piece.layout.is_plain:
        return list(piece.columns)
    leaves = []
    for (view, squeeze, _), column in zip(piece.layout.leaves, piece.columns, strict=True):
        length = piece.lengths[view]
        if not isinstance(column, np.ndarray) or not isinstance(length, int):
            return None
        leaves.append(column if squeeze else column.reshape(size, length, *column.shape[1:]))
    return leaves


def _refused(path: Path, values: Values) -> NDArray[Any]:
    if isinstance(values, Stacked):
        return values.values
    if isinstance(values, Rows):
        if (values.lengths == values.lengths[0]).all():
            return values.values.reshape(len(values.lengths), int(values.lengths[0]), *values.values.shape[1:])
        lengths = ", ".join(map(str, values.lengths[:8].tolist())) + (", ..." if len(values.lengths) > 8 else "")
        raise InvalidArgument(
            f"column {path} has items of {values.lengths.min()} to {values.lengths.max()} rows ([{lengths}]); "
            f"{_WAY_OUT}"
        )
    _check_dtypes(path, values)
    raise InvalidArgument(f"column {path} has items of unequal shape, {_shapes(values)}; pass ragged='list'")


def _flat(path: Path, values: Values) -> NDArray[Any] | Ragged:
    """Return a `Ragged` of whatever may vary, also when it happens not to; text cannot be flat."""
    if isinstance(values, Stacked):
        if not values.varies or values.values.dtype == object:
            return values.values
        size, wide = values.values.shape[:2]
        flat = values.values.reshape(size * wide, *values.values.shape[2:])
        return Ragged(flat, np.arange(size + 1) * wide)
    if isinstance(values, Rows) and values.values.dtype != object:
        return Ragged(values.values, values.offsets())
    if isinstance(values, Listed):
        _check_dtypes(path, values)
    what = "text, which has no flat form" if isinstance(values, Rows) else f"of unequal shape, {_shapes(values)}"
    raise InvalidArgument(f"column {path} cannot be flat: its items are {what}; pass ragged='list'")


def _listed(path: Path, values: Values) -> NDArray[Any] | list[Any]:
    """Return a list of whatever may vary, also when it happens not to."""
    if isinstance(values, Stacked) and not values.varies:
        return values.values
    return values.values if isinstance(values, Listed) else [owned(item) for item in values.items()]


def _check_dtypes(path: Path, values: Listed) -> None:
    """Refuse items of different dtypes; what else keeps items apart is the caller's to tell."""
    counts = Counter(_dtype_of(item) for item in values.values)
    if len(counts) > 1:
        found = ", ".join(f"{count} {dtype}" for dtype, count in counts.items())
        raise InvalidArgument(
            f"column {path} has items of different dtypes: {found}; insert one, as in np.float32(x), "
            "or give the table a signature"
        )


def _dtype_of(item: Any) -> str:
    """Return the name of an item's dtype; the item may be a `Ragged`, or a list of rows."""
    while isinstance(item, list) and item:
        item = item[0]
    if isinstance(item, Ragged):
        item = item.values
    return str(getattr(item, "dtype", type(item).__name__))


def _shapes(values: Listed, most: int = 4) -> str:
    shapes = [str(list(np.shape(item))) if isinstance(item, np.ndarray) else "ragged" for item in values.values]
    dtypes = sorted({str(item.dtype) for item in values.values if isinstance(item, np.ndarray)})
    return (
        ", ".join(shapes[:most]) + (", ..." if len(shapes) > most else "") + " of " + " and ".join(dtypes or ["rows"])
    )


# -- options by column ------------------------------------------------------------------------------------------------


def _by_column(option: Any, path: Path, default: Any) -> Any:
    """Return what an option says of a column: one value for all, or a dict by path or nested like the data."""
    for at, part in enumerate(path):
        if isinstance(option, Mapping):
            if path[at:] in option:
                return option[path[at:]]
            if part not in option:
                return default
            option = option[part]
        elif isinstance(option, list | tuple) and isinstance(part, int):
            option = option[part] if part < len(option) else default
        elif isinstance(option, tuple) and hasattr(option, str(part)):
            option = getattr(option, str(part))
        else:
            break
    return default if option is None else option


def _check_names(name: str, option: Any, paths: Sequence[Path]) -> None:
    """Refuse a dict that speaks of columns which do not exist."""
    if not isinstance(option, Mapping):
        return
    known = {path[:1] for path in paths} | set(paths)
    for key in option:
        if (key if isinstance(key, tuple) else (key,)) not in known:
            columns = ", ".join(map(str, paths[:16]))
            raise InvalidArgument(f"{name} names the column {key!r:.60}; there are {columns}")
