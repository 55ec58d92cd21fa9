"""A directory of checkpoints: its names, its lock, what is in it, what may be removed.

::

    LOCK                          held by the server that writes here
    segments/seg-<20 digits>      files of records, never changed, shared by checkpoints
    log/log-<20 digits>           what changed since a checkpoint, see `log_file`; each goes on from the one before
    ckpt-<20 digits>/MANIFEST     a checkpoint; higher numbers are later
    ckpt-<20 digits>.corrupt      one that was found damaged
    segments/tmp-seg-..., tmp-ckpt-...   what is being written or removed

Whatever else lies there is somebody else's and is left alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from reverb_async.checkpoint import manifest as manifests
from reverb_async.checkpoint.damage import Damage
from reverb_async.checkpoint.file_system import FileSystem
from reverb_async.checkpoint.lock import Lock
from reverb_async.checkpoint.manifest import Manifest, read_manifest
from reverb_async.checkpoint.records import is_segment
from reverb_async.errors import CheckpointError

logger = logging.getLogger("reverb_async")

MAX_SEGMENT = 2**31 - 1
"""Rows keep the number of the file that holds them in 32 bits."""

_CHECKPOINT = re.compile(r"ckpt-([0-9]{20})")
_CORRUPT = re.compile(r"ckpt-([0-9]{20})\.corrupt")
_LOG = re.compile(r"log-([0-9]{20})")
_SEGMENT = re.compile(r"seg-([0-9]{20})")
_UNFINISHED_CHECKPOINT = re.compile(r"tmp-ckpt-[0-9]{20}")
_UNFINISHED_SEGMENT = re.compile(r"tmp-seg-[0-9]{20}")


class Directory:
    """Where checkpoints are kept.

    Args:
        path: the directory; made by `prepare`.
        files: makes the system calls.

    Attributes:
        verified: numbers of checkpoints that were found whole.
    """

    def __init__(self, path: Path, files: FileSystem | None = None) -> None:
        self.path = path
        self.segments = path / "segments"
        self.log = path / "log"
        self.files = files or FileSystem()
        self.verified: set[int] = set()
        self._lock = Lock(path / "LOCK")

    # -- names --------------------------------------------------------------------------------------------------------

    def checkpoint_path(self, sequence: int) -> Path:
        """Return where a checkpoint is, or would be."""
        return self.path / f"ckpt-{sequence:020d}"

    def manifest_path(self, sequence: int) -> Path:
        """Return where a checkpoint's manifest is."""
        return self.checkpoint_path(sequence) / manifests.NAME

    def segment_path(self, number: int) -> Path:
        """Return where a file of records is, or would be."""
        return self.segments / f"seg-{number:020d}"

    def log_path(self, number: int) -> Path:
        """Return where a file of the log is, or would be."""
        return self.log / f"log-{number:020d}"

    def log_numbers(self) -> list[int]:
        """Return the numbers of all files of the log, ascending."""
        return sorted(int(name) for name in _matching(self.log, _LOG) if is_segment(self.log / f"log-{name}"))

    def next_log(self, after: int = 0) -> int:
        """Return a number for the next file of the log: higher than those of all there are."""
        return max([after, *(int(name) for name in _matching(self.log, _LOG))]) + 1

    def sequences(self) -> list[int]:
        """Return the numbers of all checkpoints, the newest first; directories without a manifest are none."""
        numbers = [int(name) for name in _matching(self.path, _CHECKPOINT)]
        return sorted((number for number in numbers if self.manifest_path(number).exists()), reverse=True)

    def has_newer(self, sequence: int) -> bool:
        """Whether there is, or was, a checkpoint with a higher number."""
        return any(int(name) > sequence for kind in (_CHECKPOINT, _CORRUPT) for name in _matching(self.path, kind))

    def without_manifest(self) -> list[Path]:
        """Return directories named as checkpoints that have no manifest: not ours, or somebody has removed it."""
        paths = (self.path / f"ckpt-{name}" for name in _matching(self.path, _CHECKPOINT))
        return sorted(path for path in paths if path.is_dir() and not (path / manifests.NAME).exists())

    def next_sequence(self) -> int:
        """Return a number for the next checkpoint: higher than those of all there are, and free.

        Raises:
            CheckpointError: the highest number is taken.
        """
        ours = [number for number in self.sequences() if manifests.is_ours(self.manifest_path(number))]
        corrupt = [
            int(name)
            for name in _matching(self.path, _CORRUPT)
            if manifests.is_ours(self.path / f"ckpt-{name}.corrupt" / manifests.NAME)
        ]
        taken = {int(name) for pattern in (_CHECKPOINT, _CORRUPT) for name in _matching(self.path, pattern)}
        sequence = max([0, *ours, *corrupt]) + 1
        while sequence in taken:
            sequence += 1
        if sequence >= 10**20:
            raise CheckpointError(f"{self.path}: there is no number left after the newest checkpoint's: move it away")
        return sequence

    def last_segment(self) -> int:
        """Return the highest number of our files of records; 0: there is none."""
        names = _matching(self.segments, _SEGMENT)
        ours = (int(name) for name in names if int(name) <= MAX_SEGMENT and is_segment(self.segments / f"seg-{name}"))
        return max(ours, default=0)

    def next_segment(self, after: int) -> int:
        """Return a number for another file of records: the next free one.

        Raises:
            CheckpointError: the highest number is taken.
        """
        number = after + 1
        while self.segment_path(number).exists():
            number += 1
        if number > MAX_SEGMENT:
            raise CheckpointError(f"{self.segments}: there is no number left after {MAX_SEGMENT}: use a new directory")
        return number

    # -- coming and going ---------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the directory if it is not there, take its lock, and remove what a killed server left unfinished.

        Raises:
            CheckpointError: another server has it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self.segments.mkdir(exist_ok=True)
            self.log.mkdir(exist_ok=True)
            self.files.sync_directory(self.path)
        except OSError as error:
            self._lock.release()
            raise CheckpointError(f"{self.path} cannot hold checkpoints: {error.strerror or error}") from error
        for name in _names(self.segments):
            if _UNFINISHED_SEGMENT.fullmatch(name):
                self._discard_file(self.segments / name)
        for name in _names(self.path):
            if _UNFINISHED_CHECKPOINT.fullmatch(name):
                self._discard_directory(self.path / name)

    def release(self) -> None:
        """Give up the lock. Idempotent."""
        self._lock.release()

    def mark_corrupt(self, sequence: int) -> None:
        """Put a damaged checkpoint aside, unless it is not sure that it is ours."""
        path = self.checkpoint_path(sequence)
        if not manifests.is_ours(path / manifests.NAME):
            logger.error("%s is left where it is: its manifest does not begin as one of ours does", path)
            return
        try:
            self.files.rename(path, path.with_name(f"{path.name}.corrupt"))
            self.files.sync_directory(self.path)
        except OSError as error:
            logger.error("%s cannot be renamed: %s", path, error.strerror or error)

    def prune(self, keep: int) -> None:
        """Remove what nobody needs any more; what cannot be removed is logged and tried again next time.

        Checkpoints older than the `keep` newest that were found whole go, then files that no checkpoint names, damaged
        ones included.
        """
        whole = 0
        for sequence in self.sequences():
            if whole >= keep and self._readable(self.manifest_path(sequence), sequence) is not None:
                self._remove_checkpoint(sequence)
            whole += sequence in self.verified
        self.remove_unused_segments()
        self.remove_unused_logs()

    def remove_unused_segments(self) -> None:
        """Remove files of records that no manifest names."""
        needed: set[int] = set()
        for name in _names(self.path):
            if found := _CHECKPOINT.fullmatch(name) or _CORRUPT.fullmatch(name):
                manifest = self._readable(self.path / name / manifests.NAME, int(found[1]))
                needed.update(() if manifest is None else manifest.files)
        for name in _matching(self.segments, _SEGMENT):
            path = self.segments / f"seg-{name}"
            if int(name) not in needed and is_segment(path):
                self._discard_file(path)

    def remove_unused_logs(self) -> None:
        """Remove files of the log that are older than the oldest checkpoint: restoring that needs all after it."""
        firsts = []
        for sequence in self.sequences():
            manifest = self._readable(self.manifest_path(sequence), sequence)
            if manifest is not None and manifest.log_position is not None:
                firsts.append(int(manifest.log_position))
        if firsts:
            for number in self.log_numbers():
                if number < min(firsts):
                    self._discard_file(self.log_path(number))

    def discard_checkpoint(self, sequence: int) -> bool:
        """Remove a checkpoint that did not come about, as far as it got; return whether nothing is left of it."""
        path = self.checkpoint_path(sequence)
        unfinished = path.with_name(f"tmp-{path.name}")
        if path.exists() and not unfinished.exists():
            self._remove_checkpoint(sequence)
        elif unfinished.exists():
            self._discard_directory(unfinished)
        return not path.exists() and not unfinished.exists()

    def discard_segments(self, numbers: Iterable[int]) -> None:
        """Remove files of records of a checkpoint that did not come about, finished or not."""
        for number in numbers:
            path = self.segment_path(number)
            for candidate in (path, path.with_name(f"tmp-{path.name}")):
                if candidate.exists():
                    self._discard_file(candidate)

    def _remove_checkpoint(self, sequence: int) -> None:
        path = self.checkpoint_path(sequence)
        unfinished = path.with_name(f"tmp-{path.name}")
        try:
            self.files.rename(path, unfinished)  # In one step, so that there is never a checkpoint without a manifest.
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error.strerror or error)
            return
        self._discard_directory(unfinished)

    def _discard_directory(self, path: Path) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                self.files.unlink(path / manifests.NAME)
            self.files.remove_directory(path)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error.strerror or error)

    def _discard_file(self, path: Path) -> None:
        try:
            self.files.unlink(path)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error.strerror or error)

    @staticmethod
    def _readable(path: Path, sequence: int) -> Manifest | None:
        try:
            return read_manifest(path, sequence)
        except Damage:
            return None


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _matching(path: Path, pattern: re.Pattern[str]) -> list[str]:
    """Return the numbers, as they are written, of what has names of one kind in a directory."""
    return [found[1] for name in _names(path) if (found := pattern.fullmatch(name))]
