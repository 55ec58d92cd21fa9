"""Samples of DeepMind's protocol as batches of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reverb_async.compat.messages import ChunkView, SampleEntry, SampleInfo
from reverb_async.compat.tensors import decode_chunk_tensor
from reverb_async.core.dtypes import BYTES, TEXT
from reverb_async.core.nest import Path, Structure, flatten
from reverb_async.core.spec import ArraySpec, Signature
from reverb_async.core.variable import encode_rows
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.inserting import Column
from reverb_async.protocol.sampled import SampledBatch, SampledLayout, SampledPiece

Values = NDArray[Any] | list[bytes]
"""The rows of one column of an item: ``[length, *row_shape]``, or one `bytes` per row."""


@dataclass(slots=True)
class ForeignItem:
    """One sample, decoded.

    Attributes:
        info: what the server says of it.
        columns: its rows, in flatten order.
        squeezed: columns without a time axis, which have one row.
    """

    info: SampleInfo
    columns: list[Values]
    squeezed: list[bool]


@dataclass(slots=True)
class ItemReader:
    """Puts samples together that come in parts."""

    _info: SampleInfo | None = None
    _chunks: dict[int, ChunkView] = field(default_factory=dict)

    def feed(self, entry: SampleEntry) -> ForeignItem | None:
        """Take a part; return the sample if it was the last.

        Raises:
            InvalidArgument: it is malformed.
        """
        if entry.info is not None and self._info is None:
            self._info = entry.info
        self._chunks.update((chunk.key, chunk) for chunk in entry.chunks)
        if not entry.end_of_sequence:
            return None
        info, chunks = self._info, self._chunks
        self._info, self._chunks = None, {}
        if info is None:
            raise InvalidArgument("the server sent a sample without its item")
        tensors: dict[tuple[int, int], Values] = {}
        columns = []
        for slices, _ in info.item.columns:
            parts = []
            for key, offset, length, index in slices:
                if (key, index) not in tensors:
                    if key not in chunks:
                        raise InvalidArgument(f"the server sent item {info.item.key} without its chunk {key}")
                    tensors[key, index] = decode_chunk_tensor(chunks[key].raw, index)
                rows = tensors[key, index][offset : offset + length]
                if len(rows) != length:
                    raise InvalidArgument(f"item {info.item.key} shows rows that its chunk {key} has not")
                parts.append(rows)
            columns.append(_joined(parts))
        return ForeignItem(info, columns, [squeeze for _, squeeze in info.item.columns])


def _joined(parts: list[Values]) -> Values:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    return np.concatenate(parts)


class BatchMaker:
    """Makes the batches of one stream, and the layouts their items have.

    Args:
        signature: the table's; an item's columns are nested by it, and where it lacks the time axis that dm-reverb adds
            to an item of one step, so does the item. Without one they come as a list.
        wanted: paths of the leaves wanted, None for all.
    """

    def __init__(self, signature: Signature | None, wanted: Sequence[Path] | None) -> None:
        self._signature = signature
        self._wanted = wanted
        self._known: dict[object, tuple[SampledLayout, list[int]]] = {}
        self._undeclared: list[SampledLayout] = []

    def declarations(self) -> list[SampledLayout]:
        """Return the layouts the client was not told about yet; from now on it was."""
        declared, self._undeclared = self._undeclared, []
        return declared

    def batch(self, seq: int, items: Sequence[ForeignItem]) -> SampledBatch:
        """Return items as the batch of this number."""
        infos = [item.info for item in items]
        kinds: dict[int, list[int]] = {}
        layouts: dict[int, tuple[SampledLayout, list[int]]] = {}
        for position, item in enumerate(items):
            layout, leaves = self._layout(item)
            layouts[layout.id] = layout, leaves
            kinds.setdefault(layout.id, []).append(position)
        pieces = []
        for number, positions in kinds.items():
            layout, leaves = layouts[number]
            pieces.append(_piece(layout, leaves, [items[at] for at in positions], positions, len(items)))
        return SampledBatch(
            seq,
            np.array([info.item.key for info in infos], np.uint64),
            np.array([info.probability for info in infos], np.float64),
            np.array([info.item.priority for info in infos], np.float64),
            np.array([info.item.times_sampled for info in infos], np.int32),
            np.array([info.table_size for info in infos], np.int64),
            np.array([info.inserted_at for info in infos], np.float64),
            infos[0].rate_limited,
            pieces,
        )

    def _layout(self, item: ForeignItem) -> tuple[SampledLayout, list[int]]:
        wanted: Sequence[ArraySpec | None] = [None] * len(item.columns)
        is_nested = self._signature is not None and len(self._signature.specs) == len(item.columns)
        if is_nested:
            assert self._signature is not None
            wanted = self._signature.specs
        is_one_step = all(len(column) == 1 for column in item.columns)
        shown = []
        for column, squeezed, spec in zip(item.columns, item.squeezed, wanted, strict=True):
            row = _row_spec(column, spec)
            lacks_time = is_one_step and spec is not None and len(spec.shape) == len(row.shape)
            shown.append((squeezed or lacks_time, row))
        key = (is_nested, tuple(shown))
        known = self._known.get(key)
        if known is None:
            structure = self._signature.structure if is_nested and self._signature else _listed(len(shown))
            leaves = list(range(len(shown)))
            if self._wanted is not None:
                structure, leaves = structure.select(self._wanted)
            chosen = tuple((view, *shown[leaf]) for view, leaf in enumerate(leaves))
            layout = SampledLayout(len(self._known), structure, len(leaves), chosen)
            known = self._known[key] = layout, leaves
            self._undeclared.append(layout)
        return known


def _listed(count: int) -> Structure:
    return flatten([np.float32(0)] * count)[1]


def _row_spec(column: Values, wanted: ArraySpec | None) -> ArraySpec:
    if isinstance(column, list):
        return ArraySpec((), TEXT if wanted is not None and wanted.dtype == TEXT else BYTES)
    return ArraySpec(column.shape[1:], column.dtype)


def _piece(
    layout: SampledLayout, leaves: list[int], items: list[ForeignItem], positions: list[int], size: int
) -> SampledPiece:
    lengths: list[int | NDArray[np.int64]] = []
    columns: list[Column] = []
    for leaf, (_, _, spec) in zip(leaves, layout.leaves, strict=True):
        each = np.array([len(item.columns[leaf]) for item in items], np.int64)
        lengths.append(int(each[0]) if bool((each == each[0]).all()) else each)
        rows = [item.columns[leaf] for item in items]
        if spec.is_variable:
            flat = [row for part in rows for row in part]
            columns.append(encode_rows([row.decode() if spec.dtype == TEXT else row for row in flat], spec))
        else:
            columns.append(np.concatenate(rows))
    return SampledPiece(layout, None if len(items) == size else np.array(positions, np.int64), lengths, columns)
