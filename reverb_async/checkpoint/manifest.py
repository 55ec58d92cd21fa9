"""The manifest of a checkpoint: which files it consists of, and what stands in them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from reverb_async.checkpoint.damage import Damage
from reverb_async.checkpoint.plain import pack
from reverb_async.checkpoint.records import FileFacts
from reverb_async.errors import CheckpointError

FORMAT = 1
MAGIC = b'{"magic": "reverb_async checkpoint", "format": '
NAME = "MANIFEST"

_MOST_BYTES = 1 << 30
_HEAD = re.compile(re.escape(MAGIC) + rb'([0-9]{1,9}), "digest": "([0-9a-f]{16})"')
_NO_DIGEST = b"0" * 16


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table in a checkpoint.

    Attributes:
        name: the table's.
        definition: its other parameters, as plain values.
        items: how many it holds.
        slots: how many slots its image spans.
        files: numbers of the files that hold its slots: all of them, then what changed, oldest first.
        nbytes: of the slots in each of `files`.
    """

    name: str
    definition: Mapping[str, Any]
    items: int
    slots: int
    files: tuple[int, ...]
    nbytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """A store in a checkpoint.

    Attributes:
        specs: its columns, as `ArraySpec.to_wire` writes them; no two stores have the same at the same time.
        num_rows: all live rows have lower numbers.
        rows: how many live rows each file holds that this checkpoint needs, by the file's number.
    """

    specs: tuple[Any, ...]
    num_rows: int
    rows: Mapping[int, int]

    @property
    def name(self) -> str:
        """What rows in files call it."""
        return store_name(self.specs)


def store_name(specs: Sequence[Any]) -> str:
    """Return what rows of these columns call their store: a digest."""
    return f"{xxhash.xxh3_64_intdigest(pack(list(specs))):016x}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """All there is to know about a checkpoint but what its files hold.

    Attributes:
        sequence: its number; later ones are higher.
        parent: the number of the one before it; 0: none.
        epoch: of the server that wrote it.
        time: seconds since the epoch, for people to read; nothing depends on it.
        version: of this package.
        state_file: number of the file with the state of server and tables.
        tables: all tables.
        stores: all stores.
        files: all files it needs, by number.
        log_position: number of the first file of the log that is not contained; None: there was no log.
    """

    sequence: int
    parent: int
    epoch: str
    time: float
    version: str
    state_file: int
    tables: tuple[TableFacts, ...]
    stores: tuple[StoreFacts, ...]
    files: Mapping[int, FileFacts] = field(default_factory=dict)
    log_position: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of all its files, those shared with other checkpoints included."""
        return sum(facts.nbytes for facts in self.files.values())

    def encode(self) -> bytes:
        """Return the manifest's bytes: JSON."""
        body = {
            "sequence": self.sequence,
            "parent": self.parent,
            "epoch": self.epoch,
            "time": self.time,
            "version": self.version,
            "log_position": self.log_position,
            "state_file": self.state_file,
            "tables": [
                {
                    "name": table.name,
                    "definition": table.definition,
                    "items": table.items,
                    "slots": table.slots,
                    "files": table.files,
                    "nbytes": table.nbytes,
                }
                for table in self.tables
            ],
            "stores": [
                {"specs": store.specs, "num_rows": store.num_rows, "rows": sorted(store.rows.items())}
                for store in self.stores
            ],
            "files": [{"number": number, **dataclasses.asdict(facts)} for number, facts in sorted(self.files.items())],
        }
        text = json.dumps(_to_json(body), indent=1, allow_nan=False).encode()
        head = MAGIC + b'%d, "digest": "%s",\n "manifest": ' % (FORMAT, _NO_DIGEST)
        whole = head + text + b"}\n"
        return whole.replace(_NO_DIGEST, _digest(whole), 1)


def is_ours(path: Path) -> bool:
    """Whether a manifest begins as ours do, whatever follows."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_manifest(path: Path, sequence: int) -> Manifest:
    """Read and check a manifest; not the files it names.

    Raises:
        Damage: it is not what was written.
        CheckpointError: it is of a format that this version does not know, or may not be read.
    """
    try:
        with path.open("rb") as file:
            whole = file.read(_MOST_BYTES)
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except OSError as error:
        raise Damage(path, 0, "a readable file", error.strerror or str(error)) from error
    head = _HEAD.match(whole)
    if head is None:
        same = next((at for at, (a, b) in enumerate(zip(whole, MAGIC, strict=False)) if a != b), len(MAGIC))
        raise Damage(path, min(same, len(whole)), "the head of a manifest", repr(whole[: len(MAGIC) + 40]))
    at = head.start(2)
    stored = head[2]
    found = _digest(whole[:at] + _NO_DIGEST + whole[at + len(stored) :])
    if found != stored:
        raise Damage(path, 0, f"{len(whole)} bytes with the digest {stored.decode()}", found.decode())
    if int(head[1]) != FORMAT:
        raise CheckpointError(
            f"{path}: is of format {int(head[1])}, this version of reverb_async reads format {FORMAT}: use a newer one"
        )
    try:
        manifest = _decode(_from_json(json.loads(whole)["manifest"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Damage(path, 0, "the manifest of a checkpoint", repr(error)) from error
    if manifest.sequence != sequence:
        raise Damage(path, 0, f"the manifest of checkpoint {sequence}", f"that of {manifest.sequence}")
    return manifest


def _decode(body: Any) -> Manifest:
    return Manifest(
        sequence=int(body["sequence"]),
        parent=int(body["parent"]),
        epoch=str(body["epoch"]),
        time=float(body["time"]),
        version=str(body["version"]),
        state_file=int(body["state_file"]),
        tables=tuple(
            TableFacts(
                name=str(table["name"]),
                definition=dict(table["definition"]),
                items=int(table["items"]),
                slots=int(table["slots"]),
                files=tuple(map(int, table["files"])),
                nbytes=tuple(map(int, table["nbytes"])),
            )
            for table in body["tables"]
        ),
        stores=tuple(
            StoreFacts(
                specs=tuple(store["specs"]),
                num_rows=int(store["num_rows"]),
                rows={int(number): int(rows) for number, rows in store["rows"]},
            )
            for store in body["stores"]
        ),
        files={
            int(facts["number"]): FileFacts(
                name=str(facts["name"]),
                nbytes=int(facts["nbytes"]),
                digest=str(facts["digest"]),
                rows=int(facts["rows"]),
            )
            for facts in body["files"]
        },
        log_position=body["log_position"],
    )


def _digest(whole: bytes) -> bytes:
    return b"%016x" % xxhash.xxh3_64_intdigest(whole)


def _to_json(value: Any) -> Any:
    """Return what JSON knows: infinities become ``{"float": "inf"}``, bytes ``{"bytes": "00ff"}``."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return value.item() if hasattr(value, "item") else value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"float"}:
        return float(value["float"])
    if value.keys() == {"bytes"}:
        return bytes.fromhex(value["bytes"])
    return {key: _from_json(entry) for key, entry in value.items()}
