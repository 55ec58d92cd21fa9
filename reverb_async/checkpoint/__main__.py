"""``python -m reverb_async.checkpoint``: look at checkpoints without a server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reverb_async.checkpoint.damage import Damage
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.export import FORMATS, export
from reverb_async.checkpoint.image import CheckpointOnDisk
from reverb_async.checkpoint.loading import read_checkpoint, with_log
from reverb_async.checkpoint.manifest import Manifest, read_manifest
from reverb_async.checkpoint.policy import described
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import CheckpointError, ReplayError

_DAMAGED, _FAILED = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 1 if a checkpoint is damaged, 2 if there is none, or the call is wrong."""
    args = _parser().parse_args(argv)
    directory = Directory(args.directory)
    try:
        sequences = _chosen(directory, args.sequence)
        status: int = args.command(directory, sequences, args)
    except ReplayError as error:
        print(f"error: {error}", file=sys.stderr)
        return _DAMAGED if isinstance(error, Damage) else _FAILED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reverb_async.checkpoint", description="Look at checkpoints; a server may be using them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("ls", _ls, "list checkpoints by their manifests"),
        ("verify", _verify, "read and check every byte"),
        ("show", _show, "say what is in one, by default the newest"),
        ("export", _export, "write the items of one as NPZ or Parquet"),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("directory", type=Path, metavar="DIR", help="the directory of checkpoints")
        sub.add_argument("--sequence", type=int, metavar="N", help="only this one, by its number")
        sub.add_argument("--json", action="store_true", help="one JSON value per line")
        sub.set_defaults(command=command)
        if name == "export":
            sub.add_argument("out", type=Path, metavar="OUT", help="a directory for the files")
            sub.add_argument("--table", action="append", metavar="NAME", help="only this table; repeatable")
            sub.add_argument("--format", choices=FORMATS, default="npz")
    return parser


def _chosen(directory: Directory, sequence: int | None) -> list[int]:
    sequences = directory.sequences()
    if sequence is None and sequences:
        return sequences
    if sequence in sequences:
        return [sequence]
    what = "checkpoint" if sequence is None else f"checkpoint {sequence}"
    known = f"; there are {', '.join(map(str, sequences))}" if sequences else ""
    raise ReplayError(f"there is no {what} in {directory.path}{known}")


def _ls(directory: Directory, sequences: list[int], args: argparse.Namespace) -> int:
    rows, status = [], 0
    for sequence in sequences:
        try:
            manifest = read_manifest(directory.manifest_path(sequence), sequence)
        except Damage as damage:
            if not directory.manifest_path(sequence).exists():
                continue  # A server has removed it meanwhile.
            status = _DAMAGED
            rows.append({"sequence": sequence, "damage": str(damage)})
            continue
        rows.append({**_summary(manifest), "path": str(directory.checkpoint_path(sequence))})
    _print(rows, args.json, ("sequence", "written", "bytes", "items", "path", "damage"))
    return status


def _verify(directory: Directory, sequences: list[int], args: argparse.Namespace) -> int:
    rows, status = [], 0
    for sequence in sequences:
        try:
            image = read_checkpoint(directory, sequence)
            frames = len(with_log(directory, image, "fail")[1].frames)
        except CheckpointError as error:
            damage = error if isinstance(error, Damage) else error.__cause__
            if not isinstance(damage, Damage):
                raise
            if not directory.manifest_path(sequence).exists():
                continue
            status = _DAMAGED
            rows.append(
                {
                    "sequence": sequence,
                    "whole": False,
                    "file": str(damage.path),
                    "offset": damage.offset,
                    "expected": damage.expected,
                    "found": damage.found,
                }
            )
            continue
        facts = {"bytes": image.manifest.nbytes, "files": len(image.manifest.files), "frames": frames}
        rows.append({"sequence": sequence, "whole": True, **facts})
    _print(rows, args.json, ("sequence", "whole", "bytes", "files", "frames", "file", "offset", "expected", "found"))
    return status


def _show(directory: Directory, sequences: list[int], args: argparse.Namespace) -> int:
    manifest = read_manifest(directory.manifest_path(sequences[0]), sequences[0])
    tables = [
        {
            "table": table.name,
            "items": table.items,
            **{
                field: described(field, value)
                for field, value in table.definition.items()
                if field != "name" and value is not None
            },
        }
        for table in manifest.tables
    ]
    stores = [
        {"columns": ", ".join(str(ArraySpec.from_wire(spec)) for spec in store.specs), "rows": sum(store.rows.values())}
        for store in manifest.stores
    ]
    if args.json:
        print(json.dumps({**_summary(manifest), "epoch": manifest.epoch, "tables": tables, "stores": stores}))
        return 0
    for name, value in {**_summary(manifest), "parent": manifest.parent, "version": manifest.version}.items():
        print(f"{name}: {value}")
    for table in tables:
        print()
        for name, value in table.items():
            print(f"{name}: {value}")
    print()
    _print(stores, False, ("rows", "columns"))
    return 0


def _export(directory: Directory, sequences: list[int], args: argparse.Namespace) -> int:
    image: CheckpointOnDisk = read_checkpoint(directory, sequences[0])
    written = export(image, args.out, args.format, args.table or list(image.tables))
    _print([{"file": str(path), "bytes": path.stat().st_size} for path in written], args.json, ("bytes", "file"))
    return 0


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "sequence": manifest.sequence,
        "written": datetime.fromtimestamp(manifest.time, UTC).isoformat(timespec="seconds"),
        "bytes": manifest.nbytes,
        "items": {table.name: table.items for table in manifest.tables},
    }


def _print(rows: Iterable[dict[str, Any]], as_json: bool, fields: Sequence[str]) -> None:
    """Print rows as JSON lines, or as columns: those fields that any row has."""
    rows = list(rows)
    if as_json:
        print(*map(json.dumps, rows), sep="\n")
        return
    shown = [field for field in fields if any(field in row for row in rows)]
    lines = [shown, *([_text(row.get(field, "")) for field in shown] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(shown))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
