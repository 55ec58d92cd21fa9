"""Tables of a checkpoint as files for other programs: NPZ, or Parquet."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reverb_async.checkpoint.image import CheckpointOnDisk
from reverb_async.checkpoint.npz import write_npz
from reverb_async.compat.tensors import decode_chunk_tensor
from reverb_async.core.gather import GatherPlan, Piece
from reverb_async.core.spec import ArraySpec
from reverb_async.core.variable import VariableRows
from reverb_async.errors import InvalidArgument
from reverb_async.replay import Replay
from reverb_async.table import Table

FORMATS = ("npz", "parquet")
PART_ITEMS = 65_536
"""Items of one file."""

Format = Literal["npz", "parquet"]


@dataclass(frozen=True, slots=True)
class ExportedColumn:
    """One leaf of the items of a part.

    Attributes:
        name: its path, joined by dots.
        spec: one row of it.
        lengths: rows of each item, int64 ``[items]``; None: one row each, without a time axis.
        values: all rows.
    """

    name: str
    spec: ArraySpec
    lengths: NDArray[np.int64] | None
    values: NDArray[Any] | VariableRows


def export(image: CheckpointOnDisk, out: Path, kind: Format, tables: list[str]) -> list[Path]:
    """Write the items of some tables, oldest first; return the files, each of at most 65,536 items of one structure.

    Args:
        image: a whole checkpoint; it is restored into memory.
        out: a directory, made if it is not there; files of the same names are replaced.
        kind: ``"npz"`` or ``"parquet"``.
        tables: their names.

    Raises:
        InvalidArgument: there is no such table, or pyarrow is not installed.
    """
    for name in tables:
        if name not in image.tables:
            known = ", ".join(map(repr, image.tables)) or "none"
            raise InvalidArgument(f"the checkpoint has no table {name!r}; it has: {known}")
    write = write_npz
    if kind == "parquet":
        from reverb_async.checkpoint.parquet import write_parquet

        write = write_parquet
    replay = Replay([Table.from_definition(table.state["definition"]) for table in image.tables.values()])
    replay.encoded.decode = decode_chunk_tensor
    replay.restore(image, resume=False)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name in tables:
        for part, (info, columns) in enumerate(_parts(replay.tables[name])):
            path = out / f"{urllib.parse.quote(name, safe='')}-{part:05d}.{kind}"
            write(path, info, columns)
            written.append(path)
    return written


def _parts(table: Table) -> Iterator[tuple[dict[str, NDArray[Any]], list[ExportedColumn]]]:
    slots = table.state.slots
    live = table.state.live_slots()
    ordered = live[np.lexsort((slots.key[live], slots.inserted_at[live]))]
    for start in range(0, len(ordered), PART_ITEMS):
        chosen = ordered[start : start + PART_ITEMS]
        plan = GatherPlan(slots, chosen)
        for piece in plan.run([None] * len(plan.parts)):
            mine = chosen if piece.positions is None else chosen[piece.positions]
            yield slots.describe(mine), _columns(piece, len(mine))


def _columns(piece: Piece, count: int) -> list[ExportedColumn]:
    columns = []
    structure = piece.layout.structure
    for path, leaf, values in zip(structure.paths, piece.layout.leaves, piece.columns, strict=True):
        length = piece.lengths[leaf.view]
        lengths = np.full(count, length, np.int64) if isinstance(length, int) else length
        name = ".".join(map(str, path)) or "data"
        columns.append(ExportedColumn(name, piece.layout.row_spec(leaf), None if leaf.squeeze else lengths, values))
    return columns
