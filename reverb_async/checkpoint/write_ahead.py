"""The log that a server writes ahead of its acknowledgements."""

from __future__ import annotations

import asyncio
import errno
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from reverb_async.capture import Capture
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.frames import write_frame
from reverb_async.checkpoint.jobs import until_done
from reverb_async.checkpoint.log_file import NOWHERE, LogWriter, Position
from reverb_async.errors import CheckpointError, Closed, InvalidArgument, ReplayError, ResourceExhausted
from reverb_async.replay import Replay

logger = logging.getLogger("reverb_async")

Durability = Literal["memory", "wal", "wal_fsync"]
DURABILITIES: tuple[Durability, ...] = ("memory", "wal", "wal_fsync")

MIN_LOG_BYTES = 256 << 20
"""A log longer than this, and than half of what the server holds, is made superfluous by a checkpoint."""

_ALARM = "log"

FULL = {errno.ENOSPC, errno.EFBIG, *(getattr(errno, name) for name in ("EDQUOT",) if hasattr(errno, name))}


def check_durability(durability: object, checkpointer: object) -> None:
    """Raise `InvalidArgument` unless a server with this checkpointer, or None, can have this durability."""
    if durability not in DURABILITIES:
        raise InvalidArgument(f"durability must be one of {', '.join(map(repr, DURABILITIES))}, got {durability!r:.60}")
    if durability != "memory" and checkpointer is None:
        raise InvalidArgument(
            f"durability={durability!r} needs a checkpointer, whose directory holds the log: "
            f"checkpointer=Checkpointer(path)"
        )


class WriteAheadLog:
    """Writes what changes in a replay, a frame per turn of the event loop at least; see `capture.Log`.

    Frames are written where they arise: to the page cache, which a killed server leaves behind. With `sync` a thread
    has the disk keep them, many in one go, before `durable` returns.

    Once a write has failed nothing is acknowledged, and the tables refuse everything but samplers, until a checkpoint
    has made the log superfluous: `rotate` in the step of its cut, `committed` at its end.

    Args:
        replay: to be restored yet; nothing may have changed in it.
        directory: prepared.
        sync: have the disk keep frames.

    Attributes:
        failure: why nothing is acknowledged; None: all is well.
        wants_checkpoint: set when one should be made soon: to be rid of a failure, or of a long log.
    """

    def __init__(self, replay: Replay, directory: Directory, *, sync: bool) -> None:
        self._replay = replay
        self._directory = directory
        self._sync = sync
        self._capture = Capture(replay, self._due)
        self._is_due = False
        self._file: LogWriter | None = None
        self._ended: list[LogWriter] = []
        """Former files of which the disk may not have all."""
        self._written = 0
        self._synced = 0
        self._syncing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "reverb_async-log") if sync else None
        self._limit = MIN_LOG_BYTES
        self.failure: ReplayError | None = None
        self.wants_checkpoint = asyncio.Event()

    # -- files --------------------------------------------------------------------------------------------------------

    def prepare(self) -> LogWriter:
        """Begin the next file; blocks. Nothing is lost if it is never used.

        Raises:
            OSError: the disk does not take it.
        """
        directory, files = self._directory, self._directory.files
        number = directory.next_log(0 if self._file is None else self._file.number)
        file = LogWriter(files, directory.log_path(number), number)
        try:
            file.sync()
            files.sync_directory(directory.log)
        except BaseException:
            file.close()
            raise
        return file

    def begin(self, file: LogWriter, after: Position) -> None:
        """Log what changes from the restoring on.

        Args:
            file: to be written first.
            after: what it goes on from; `NOWHERE`: nothing is acknowledged or admitted before there is a checkpoint.
        """
        self._capture.attach_all()
        self._replay.log = self
        self._file = file
        try:
            file.follow(after)
        except OSError as error:
            self.fail(error)
            return
        if after == NOWHERE:
            self.failure = CheckpointError(
                f"the log in {self._directory.log} begins with a checkpoint, none is there yet"
            )
            self._refuse(self.failure)
        self._write()

    def rotate(self, file: LogWriter) -> None:
        """Go on in another file, in the step that makes a cut.

        Raises:
            OSError: the disk does not take it; nothing has changed.
        """
        self._write()
        try:
            file.follow(NOWHERE if self._file is None else self._file.position)
        except BaseException:
            file.close()
            raise
        if self._file is not None:
            self._end_file(self._file)
        self._capture.forget()
        self._capture.begin_file()
        self._file = file

    def _end_file(self, file: LogWriter) -> None:
        if self._sync:
            self._ended.append(file)
        else:
            file.close()

    async def linked(self) -> None:
        """Have the disk keep what leads to the file that the last `rotate` began, before a checkpoint names that.

        Whoever falls back on the checkpoint before needs the way from there.
        """
        if not self._sync:
            return
        if self._syncing is not None:  # which may have begun before
            await asyncio.wait({self._syncing})
        if self._syncing is None:
            self._syncing = asyncio.create_task(self._sync_files(), name="log")
        syncing = self._syncing
        await asyncio.wait({syncing})
        syncing.result()

    def committed(self) -> None:
        """Note that there is a checkpoint of the last cut: what was not logged before it does not matter any more."""
        self._limit = max(MIN_LOG_BYTES, self._replay.storage.usage().used_bytes // 2)
        if self._file is None:
            return
        if self._file.nbytes <= self._limit:
            self.wants_checkpoint.clear()
        if self.failure is not None:
            self.failure = None
            self._replay.alarms.clear(_ALARM)
            self._refuse(None)

    async def close(self) -> None:
        """Write what has changed, and end."""
        self._replay.log = None
        self._write()
        if self._syncing is not None:
            await asyncio.wait({self._syncing})
        if self._sync and self.failure is None:
            await self._sync_files()
        for file in self._ended:
            file.close()
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.failure is None:
            self.failure = Closed("the server is stopping")
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _due(self) -> None:
        if not self._is_due and self._replay.log is self:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        """Write what has changed, if anything has; never raises."""
        self._is_due = False
        if not self._capture:
            return
        if self._file is None:
            if self.failure is not None:
                self._capture.forget()
            return
        try:
            write_frame(self._file, self._capture.take())
        except Exception as error:  # Whatever it is: what was taken is not in the log.
            self.fail(error)
            if not isinstance(error, OSError | MemoryError):
                logger.exception("this should not have happened")
            return
        self._written += 1
        if self._file.nbytes > self._limit:
            self.wants_checkpoint.set()

    def fail(self, error: BaseException) -> None:
        """Acknowledge and admit nothing any more, until there is a checkpoint."""
        kind = ResourceExhausted if isinstance(error, OSError) and error.errno in FULL else CheckpointError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or repr(error)
        failure = kind(
            f"the log in {self._directory.log} cannot be written: {reason}; "
            f"inserts, updates, deletes and resets are refused until a checkpoint has succeeded"
        )
        file, self._file = self._file, None
        if file is not None:
            try:
                file.cut_off()
            except OSError:
                logger.warning("%s: what is left of a frame cannot be removed", file.path)
            self._end_file(file)
        self._capture.forget()
        self._stop(failure)

    def _stop(self, failure: ReplayError) -> None:
        self.failure = failure
        self._replay.alarms.give(_ALARM, str(failure))
        self._refuse(failure)
        self.wants_checkpoint.set()

    def _refuse(self, refusal: ReplayError | None) -> None:
        for table in self._replay.tables.values():
            table.refuse_changes(refusal)

    async def durable(self) -> None:
        """See `capture.Log`."""
        self._write()
        self._check()
        target = self._written if self._sync else 0
        while self._synced < target:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync_files(), name="log")
            syncing = self._syncing
            await asyncio.wait({syncing})
            syncing.result()
            self._check()

    def _check(self) -> None:
        if self.failure is not None:
            raise type(self.failure)(str(self.failure))

    async def _sync_files(self) -> None:
        """Have the disk keep what was written so far; never raises."""
        assert self._thread is not None
        target, ended = self._written, list(self._ended)
        files = ended if self._file is None else [*ended, self._file]
        try:
            await until_done(self._thread.submit(_sync_all, files))
        except OSError as error:
            self.fail(error)
        else:
            self._synced = max(self._synced, target)
            for file in ended:
                file.close()
            del self._ended[: len(ended)]
        finally:
            self._syncing = None


def _sync_all(files: list[LogWriter]) -> None:
    for file in files:
        file.sync()
