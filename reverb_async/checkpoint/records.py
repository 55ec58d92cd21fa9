"""Files of checksummed records: what every file of a checkpoint but the manifest is.

A record is a prefix of 24 bytes (magic, length of the header, length of the record, digest), a MessagePack map, and
buffers; header and buffers each end at a multiple of 64 bytes. The digest is XXH3-64 of all other bytes of the record,
seeded with its place in the file. The first record of a file says what the file is, the last one that it is complete.
The file's own digest is that of its prefixes, which contain the records' digests.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from reverb_async.checkpoint.damage import Damage
from reverb_async.checkpoint.file_system import FileSystem
from reverb_async.checkpoint.plain import pack, unpack
from reverb_async.core.storage.backing import aligned_empty

FORMAT = 1
ALIGNMENT = 64

_SHORT = 128 << 10
"""Copying so few bytes costs less than handling them in parts."""

MAGIC = b"RvAs"
_PREFIX = struct.Struct("<4sIQQ")
_SUM_OFFSET = 16
_END = "end"
_FILE = "file"

Header = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a manifest says about a file.

    Attributes:
        name: within the directory of segments.
        nbytes: its length.
        digest: 16 hexadecimal digits.
        rows: how many rows it holds, dead ones included.
    """

    name: str
    nbytes: int
    digest: str
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One record that was read and found whole.

    Attributes:
        offset: where it begins in its file.
        header: its map.
        buffers: uint8 arrays, 64-byte aligned.
    """

    offset: int
    header: Header
    buffers: list[NDArray[np.uint8]]

    @property
    def kind(self) -> str:
        """What it holds."""
        return str(self.header.get("kind"))


class RecordWriter:
    """Writes one file; on any error it is left as it is, to be removed by the caller.

    Args:
        files: makes the system calls.
        path: where; must not exist.
        what: what the file holds; `RecordReader` asks for it.
    """

    def __init__(self, files: FileSystem, path: Path, what: str) -> None:
        self._files = files
        self.path = path
        self.nbytes = 0
        self.is_open = True
        self._digest = xxhash.xxh3_64()
        self._records = 0
        self._file = files.create(path)
        try:
            self.add({"kind": _FILE, "format": FORMAT, "what": what}, ())
        except BaseException:
            self.close()
            raise

    def add(self, header: Header, arrays: Sequence[NDArray[Any]]) -> None:
        """Append a record; `arrays` must be C-contiguous.

        Raises:
            OSError: the disk does not take it.
        """
        buffers = [array.tobytes() if array.nbytes <= _SHORT else _raw(array) for array in arrays]
        packed = pack({**header, "sizes": [len(buffer) for buffer in buffers]})
        parts: list[Any] = [packed + bytes(-(len(packed) + _PREFIX.size) % ALIGNMENT)]
        for buffer in buffers:
            parts.append(buffer)
            if padding := -len(buffer) % ALIGNMENT:
                parts.append(bytes(padding))
        length = _PREFIX.size + sum(map(len, parts))
        if length <= _SHORT:
            parts = [b"".join(parts)]
        start = _PREFIX.pack(MAGIC, len(packed), length, 0)
        digest = _digest_of([start[:_SUM_OFFSET], *parts], self.nbytes)
        prefix = start[:_SUM_OFFSET] + digest.to_bytes(8, "little")
        self._files.write(self._file, [prefix, *parts])
        self._digest.update(prefix)
        self.nbytes += length
        self._records += 1

    def finish(self) -> FileFacts:
        """Say that the file is complete, have the disk keep it, close it."""
        try:
            self.add({"kind": _END, "records": self._records}, ())
            self._files.sync(self._file)
        finally:
            self.close()
        return FileFacts(self.path.name, self.nbytes, f"{self._digest.intdigest():016x}")

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self.is_open:
            self.is_open = False
            self._files.close(self._file)


class RecordReader:
    """Reads one file, record by record, each checked before it is handed out.

    Args:
        path: where.
        what: what the file must hold.
        facts: what a manifest says of it; None: nothing is known.
    """

    def __init__(self, path: Path, what: str, facts: FileFacts | None = None) -> None:
        self._path = path
        self._what = what
        self._facts = facts

    def __iter__(self) -> Iterator[Record]:
        """Yield all records but the first and the last.

        Raises:
            Damage: the file is not what was written; all that was yielded before is whole.
        """
        try:
            with self._path.open("rb", buffering=0) as file:
                yield from self._read(file)
        except OSError as error:
            raise Damage(self._path, 0, "a readable file", error.strerror or str(error)) from error

    def at(self, offsets: Sequence[int]) -> Iterator[Record]:
        """Yield the records that begin at some offsets.

        Raises:
            Damage: they are not what was written.
        """
        try:
            with self._path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                for offset in offsets:
                    file.seek(offset)
                    yield self._read_one(file, offset, size)[0]
        except OSError as error:
            raise Damage(self._path, 0, "a readable file", error.strerror or str(error)) from error

    def verify(self) -> int:
        """Read everything; return how many records there are between the first and the last.

        Raises:
            Damage: the file is not what was written.
        """
        return sum(1 for _ in self)

    def _read(self, file: BinaryIO) -> Iterator[Record]:
        size = os.fstat(file.fileno()).st_size
        if self._facts is not None and size != self._facts.nbytes:
            raise Damage(self._path, min(size, self._facts.nbytes), f"{self._facts.nbytes} bytes", f"{size} bytes")
        digest, offset, records, kind = xxhash.xxh3_64(), 0, 0, ""
        while offset < size:
            record, prefix, length = self._read_one(file, offset, size)
            digest.update(prefix)
            kind = record.kind
            if records == 0:
                self._check_first(record)
            elif kind == _END:
                if record.header.get("records") != records or offset + length != size:
                    raise Damage(
                        self._path,
                        offset,
                        f"the end of a file of {record.header.get('records')} records",
                        f"{records} records and {size - offset - length} further bytes",
                    )
            else:
                yield record
            offset += length
            records += 1
        if kind != _END:
            raise Damage(self._path, offset, "a record that ends the file", "the end of the file")
        found = f"{digest.intdigest():016x}"
        if self._facts is not None and found != self._facts.digest:
            raise Damage(self._path, 0, f"a file with the digest {self._facts.digest}", found)

    def _check_first(self, record: Record) -> None:
        header = record.header
        if record.kind != _FILE or header.get("what") != self._what:
            raise Damage(self._path, 0, f"a file of {self._what}", f"one of {header.get('what', 'something else')!r}")
        if header.get("format") != FORMAT:
            raise Damage(self._path, 0, f"format {FORMAT}", f"format {header.get('format')!r:.20}")

    def _read_one(self, file: BinaryIO, offset: int, size: int) -> tuple[Record, bytes, int]:
        prefix = file.read(_PREFIX.size)
        if len(prefix) < _PREFIX.size:
            raise Damage(self._path, offset, f"a record's prefix of {_PREFIX.size} bytes", f"{len(prefix)} bytes")
        magic, header_bytes, length, stored = _PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise Damage(self._path, offset, f"a record that begins with {MAGIC!r}", repr(magic))
        if length % ALIGNMENT or not _PREFIX.size + header_bytes <= length <= size - offset:
            raise Damage(
                self._path,
                offset + 4,
                f"a record that fits into the {size - offset} bytes to the file's end",
                f"one of {length} bytes with a header of {header_bytes}",
            )
        # With the prefix in front of it, so that what follows lies aligned.
        memory: NDArray[np.uint8] = aligned_empty((length,), np.dtype(np.uint8)).view(np.uint8)
        rest = memory[_PREFIX.size :]
        _read_into(file, rest, self._path, offset)
        found = _digest_of([prefix[:_SUM_OFFSET], rest.data], offset)
        if found != stored:
            raise Damage(self._path, offset, f"a record with the digest {stored:016x}", f"{found:016x}")
        header, buffers = self._split(memory, header_bytes, offset)
        return Record(offset, header, buffers), prefix, length

    def _split(self, memory: NDArray[np.uint8], header_bytes: int, offset: int) -> tuple[Header, list[Any]]:
        """Find header and buffers in a record whose digest is right: what is wrong now was written so."""
        at = _PREFIX.size
        try:
            header = unpack(memory[at : at + header_bytes].tobytes())
            sizes = header["sizes"]
        except (ValueError, KeyError, TypeError) as error:
            raise Damage(self._path, offset, "a header in MessagePack", repr(error)) from error
        at += header_bytes
        buffers = []
        for nbytes in sizes:
            at += -at % ALIGNMENT
            if not isinstance(nbytes, int) or not 0 <= nbytes <= len(memory) - at:
                raise Damage(self._path, offset, f"a buffer of at most {len(memory) - at} bytes", f"{nbytes!r:.30}")
            buffers.append(memory[at : at + nbytes])
            at += nbytes
        return header, buffers


def is_segment(path: Path) -> bool:
    """Whether a file begins as ours do."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _raw(array: NDArray[Any]) -> memoryview:
    assert array.flags.c_contiguous
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(b"")


def _digest_of(parts: Sequence[Any], offset: int) -> int:
    digest = xxhash.xxh3_64(seed=offset)
    for part in parts:
        digest.update(part)
    return digest.intdigest()


def _read_into(file: BinaryIO, memory: NDArray[np.uint8], path: Path, offset: int) -> None:
    view = memory.data
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]  # unbuffered files have it
        if not count:
            raise Damage(path, offset, f"{len(view)} more bytes", "the end of the file")
        view = view[count:]
