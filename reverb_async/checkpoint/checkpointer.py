"""Checkpointer: keeps what a server holds on disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from reverb_async.alarms import Alarms
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.file_system import FileSystem
from reverb_async.checkpoint.image import CheckpointOnDisk
from reverb_async.checkpoint.jobs import until_done
from reverb_async.checkpoint.loading import OnCorrupt, newest_whole, refuse_log_alone, with_log
from reverb_async.checkpoint.log_file import NOWHERE, Position
from reverb_async.checkpoint.policy import RestorePolicy, agree, restore
from reverb_async.checkpoint.saving import Saver
from reverb_async.checkpoint.write_ahead import FULL, Durability, WriteAheadLog
from reverb_async.errors import CheckpointError, Closed, InvalidArgument, ReplayError, ResourceExhausted
from reverb_async.replay import Replay

logger = logging.getLogger("reverb_async")

T = TypeVar("T")

_FIRST_RETRY_S = 5.0

ALARM = "checkpoint"
"""The alarm of a server whose last attempt to save failed."""


class Checkpointer:
    """Saves what a server holds, while it serves, and restores it when it starts. Belongs to one server.

    A checkpoint appears whole or not at all. Later ones share the files of earlier ones as far as nothing changed.

    Args:
        path: a directory, made if it is not there; one server at a time uses it. Files in it that are not a
            checkpoint's are left alone.
        keep: how many checkpoints are kept, those that were found whole; 2 at least.
        every: seconds between checkpoints; None: only `Client.checkpoint`, `save` and an orderly end of the server
            make one.
        restore: what to do when the server's tables are not those of the checkpoint: ``"strict"`` refuses to start,
            ``"config"`` takes the server's definitions, ``"checkpoint"`` the checkpoint's.
        on_corrupt: what to do when the newest checkpoint is damaged: take the ``"previous"`` one, or ``"fail"``.

    Raises:
        InvalidArgument: a value that cannot work.

    Attributes:
        path: the directory.
        alarm: why the last attempt to save failed; None: it did not. Clients see it in `Client.server_status`.
        last_path: the newest checkpoint; None: there is none.
        last_saved: when it was written, in seconds since the epoch.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        keep: int = 3,
        every: float | None = None,
        restore: RestorePolicy = "strict",
        on_corrupt: OnCorrupt = "previous",
    ) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 2:
            raise InvalidArgument(f"keep must be an int >= 2, so that there is one to fall back on, got {keep!r}")
        if every is not None and not (isinstance(every, int | float) and 0 < every < math.inf):
            raise InvalidArgument(f"every must be a number of seconds > 0, or None, got {every!r}")
        for name, value, choices in (
            ("restore", restore, ("strict", "config", "checkpoint")),
            ("on_corrupt", on_corrupt, ("previous", "fail")),
        ):
            if value not in choices:
                raise InvalidArgument(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        self.path = Path(path)
        self.alarm: str | None = None
        self.last_path: str | None = None
        self.last_saved: float | None = None
        self._keep = keep
        self._every = every
        self._restore: RestorePolicy = restore
        self._on_corrupt: OnCorrupt = on_corrupt
        self._files = FileSystem()
        self._directory = Directory(self.path.absolute(), self._files)
        self._thread: ThreadPoolExecutor | None = None
        self._saver: Saver | None = None
        self._alarms: Alarms | None = None
        self._running: asyncio.Task[str] | None = None
        self._next: asyncio.Task[str] | None = None
        self._timers: list[asyncio.Task[None]] = []
        self._log: WriteAheadLog | None = None
        self._failures = 0

    async def start(self, replay: Replay, durability: Durability = "memory") -> None:
        """Take the directory, and restore the newest checkpoint that is whole into tables that hold nothing yet.

        What a log adds to it is restored, too. Blocks a thread, not the event loop. Called by `Server.start`.

        Args:
            replay: the server's tables.
            durability: whether to write a log, see `Server`.

        Raises:
            CheckpointError: the directory is in use or cannot be used, no checkpoint is whole, or the tables are not
                those of the checkpoint.
            InvalidArgument: another server has this checkpointer.
        """
        if self._thread is not None:
            raise InvalidArgument("this checkpointer belongs to another server: make one for each")
        self._thread = ThreadPoolExecutor(1, "reverb_async-checkpoint")
        try:
            await self._do(self._directory.prepare)
            self._alarms = replay.alarms
            if durability != "memory":
                self._log = WriteAheadLog(replay, self._directory, sync=durability == "wal_fsync")
            self._saver = Saver(replay, self._directory, self._thread, self._log)
            image = await self._do(newest_whole, self._directory, self._on_corrupt)
            self._saver.last_number = await self._do(self._directory.last_segment)
            end = NOWHERE
            if image is None:
                await self._do(refuse_log_alone, self._directory)
                logger.info("no checkpoint in %s: starting empty", self.path)
            else:
                end = await self._restore_from(replay, image)
            await self._do(self._tidy)
            if self._log is not None:
                await self._begin_log(self._log, end)
        except BaseException:
            await self.close(save=False)
            raise
        if self._every is not None:
            self._timers.append(asyncio.create_task(self._save_regularly(self._every), name="checkpoints"))
        if self._log is not None:
            self._timers.append(asyncio.create_task(self._save_for(self._log), name="checkpoints for the log"))

    async def save(self) -> str:
        """Write a checkpoint of what the server holds now, or somewhat later; return its path.

        Callers share one, unless it began before they called. Cancelling leaves it to go on.

        Raises:
            ResourceExhausted: the disk is full. Nothing is left of the attempt; older checkpoints are as they were.
            CheckpointError: it could not be written for another reason; the same holds.
            Closed: the checkpointer was closed, or no server has started it.
        """
        if self._saver is None:
            raise Closed("this checkpointer is not in use: give it to a server, and start that")
        if self._next is None:
            self._next = asyncio.create_task(self._save_after(self._running), name="checkpoint")
            self._next.add_done_callback(_heard)
        return await asyncio.shield(self._next)

    async def close(self, *, save: bool = True) -> None:
        """Let the directory go, after a last checkpoint if `save`. Idempotent.

        Raises:
            ReplayError: what `save` raises; the directory was let go nevertheless.
        """
        for timer in self._timers:
            timer.cancel()
        if self._timers:
            await asyncio.wait(self._timers)
            self._timers = []
        try:
            if save and self._saver is not None:
                await self.save()
        finally:
            pending = [task for task in (self._running, self._next) if task is not None]
            if pending:
                await asyncio.wait(pending)
            self._saver = None
            if self._log is not None:
                await self._log.close()
                self._log = None
            if self._thread is not None:
                await self._do(self._directory.release)
                self._thread.shutdown(wait=False)
                self._thread = None

    # -- starting -----------------------------------------------------------------------------------------------------

    async def _begin_log(self, log: WriteAheadLog, end: Position) -> None:
        log.begin(await self._do(log.prepare), end)
        if log.failure is not None:
            try:
                await self.save()
            except ReplayError:  # logged, and an alarm
                log.wants_checkpoint.set()

    async def _restore_from(self, replay: Replay, image: CheckpointOnDisk) -> Position:
        """Restore a checkpoint and what the log adds; return where the log can go on."""
        assert self._saver is not None
        manifest, started = image.manifest, time.monotonic()
        path = str(self._directory.checkpoint_path(manifest.sequence))
        logged, log = await self._do(with_log, self._directory, image, self._on_corrupt)
        is_same = agree(replay, logged, self._restore, path)
        await self._do(restore, replay, logged, path)
        self.last_path, self.last_saved = path, manifest.time
        self._saver.last, self._saver.held = manifest, image.held
        items = {name: table.state.size for name, table in replay.tables.items()}
        frames = f" and {len(log.frames)} frames of the log" if log.frames else ""
        logger.info("restored %s%s: %s items, %.2f s", path, frames, items, time.monotonic() - started)
        return log.end if is_same else NOWHERE

    def _tidy(self) -> None:
        """Remove what killed or failed attempts left, as far as nothing may need it."""
        try:
            self._directory.prune(self._keep)
        except (OSError, CheckpointError) as error:
            logger.warning("checkpoints in %s: what is not needed any more cannot be removed: %s", self.path, error)

    # -- saving -------------------------------------------------------------------------------------------------------

    async def _save_after(self, running: asyncio.Task[str] | None) -> str:
        if running is not None:
            await asyncio.wait([running])
        this = self._running = asyncio.current_task()
        try:
            return await self._save()
        finally:
            self._running = None
            if self._next is this:
                self._next = None

    async def _save(self) -> str:
        assert self._saver is not None
        started = time.monotonic()
        try:
            manifest = await self._saver.save(self._has_begun)
        except OSError as error:
            raise self._failed(_refusal(error, self.path, self.last_path)) from error
        except MemoryError as error:
            raise self._failed(ResourceExhausted("no memory was left to write a checkpoint with")) from error
        except ReplayError as error:
            raise self._failed(error) from None
        self.alarm, self._failures = None, 0
        if self._alarms is not None:
            self._alarms.clear(ALARM)
        path = str(self._directory.checkpoint_path(manifest.sequence))
        self.last_path, self.last_saved = path, manifest.time
        items = sum(table.items for table in manifest.tables)
        logger.info("checkpoint %s: %d items, %.2f s", path, items, time.monotonic() - started)
        await self._do(self._tidy)
        return path

    def _has_begun(self) -> None:
        """From here on a call of `save` wants another checkpoint than the one that is being written."""
        self._next = None

    def _failed(self, error: ReplayError) -> ReplayError:
        self._failures += 1
        self.alarm = str(error)
        if self._alarms is not None:
            self._alarms.give(ALARM, self.alarm)
        logger.error("no checkpoint: %s", error)
        return error

    async def _save_regularly(self, every: float) -> None:
        while True:
            retry = _FIRST_RETRY_S * 2 ** min(self._failures - 1, 16) if self._failures else every
            await asyncio.sleep(min(every, retry))
            with contextlib.suppress(ReplayError):  # logged, and an alarm
                await self.save()

    async def _save_for(self, log: WriteAheadLog) -> None:
        """Save whenever the log wants it."""
        failures = 0
        while True:
            await log.wants_checkpoint.wait()
            log.wants_checkpoint.clear()
            try:
                await self.save()
                failures = 0
            except ReplayError:  # logged, and an alarm
                log.wants_checkpoint.set()
                await asyncio.sleep(_FIRST_RETRY_S * 2 ** min(failures, 6))
                failures += 1

    async def _do(self, work: Callable[..., T], *args: Any) -> T:
        assert self._thread is not None
        return await until_done(self._thread.submit(work, *args))


def _refusal(error: OSError, path: Path, last: str | None) -> ReplayError:
    """Return what to tell those who asked for a checkpoint that the disk did not take."""
    kind = ResourceExhausted if error.errno in FULL else CheckpointError
    kept = "there is no older one" if last is None else f"{last} is {'as it was' if Path(last).exists() else 'gone'}"
    return kind(
        f"the checkpoint could not be written to {path}: {error.strerror or error}; "
        f"what there was of it is removed, {kept}"
    )


def _heard(task: asyncio.Task[str]) -> None:
    """Take note of a failure that nobody may be waiting for any more: it is logged already."""
    if not task.cancelled():
        task.exception()
