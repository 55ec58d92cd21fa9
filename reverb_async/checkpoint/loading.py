"""Finding the newest checkpoint that is whole."""

from __future__ import annotations

import contextlib
import logging
from typing import Literal

from reverb_async.checkpoint.damage import Damage
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.image import CheckpointOnDisk
from reverb_async.checkpoint.log_file import FRAME, LogReader
from reverb_async.checkpoint.log_reading import LogOnDisk, read_log
from reverb_async.checkpoint.logged_image import LoggedImage
from reverb_async.checkpoint.manifest import read_manifest
from reverb_async.errors import CheckpointError

logger = logging.getLogger("reverb_async")

OnCorrupt = Literal["previous", "fail"]


def newest_whole(directory: Directory, on_corrupt: OnCorrupt) -> CheckpointOnDisk | None:
    """Read and check checkpoints, the newest first, until one is whole; None: there is none at all.

    Those found damaged are logged and put aside as ``ckpt-....corrupt``, once a whole one has been found.

    Raises:
        CheckpointError: one is damaged and `on_corrupt` is ``"fail"``; all are, or have lost their manifest; or one is
            of a later format.
    """
    damaged: list[tuple[int, Damage]] = []
    bare = directory.without_manifest()
    for path in bare:
        logger.warning("%s is left alone: it has no manifest, so it is not, or no longer, a checkpoint", path)
    for sequence in directory.sequences():
        try:
            image = read_checkpoint(directory, sequence)
        except Damage as damage:
            logger.error("checkpoint %s is damaged: %s", directory.checkpoint_path(sequence), damage)
            if on_corrupt == "fail":
                raise CheckpointError(
                    f"checkpoint {directory.checkpoint_path(sequence)} is damaged: {damage}; on_corrupt='previous' "
                    f"takes the one before, if it is whole"
                ) from damage
            damaged.append((sequence, damage))
            continue
        for bad, _ in damaged:
            directory.mark_corrupt(bad)
        if damaged:
            logger.error("using the previous checkpoint, %s", directory.checkpoint_path(sequence))
        return image
    if damaged:
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints in {directory.path} is whole; the newest: {damaged[0][1]}; "
            f"to start empty, move the directory away"
        )
    if bare and directory.last_segment():  # The next save would remove what it cannot know to be needed.
        raise CheckpointError(
            f"{bare[-1]} has no manifest, and there is no other checkpoint, but files of one; put it back, or "
            f"to start empty, move {directory.path} away"
        )
    return None


def read_checkpoint(directory: Directory, sequence: int) -> CheckpointOnDisk:
    """Read and check one checkpoint.

    Raises:
        Damage: it is not what was written.
        CheckpointError: it is of a later format.
    """
    image = CheckpointOnDisk(directory, read_manifest(directory.manifest_path(sequence), sequence))
    directory.verified.add(sequence)
    return image


def with_log(
    directory: Directory, image: CheckpointOnDisk, on_corrupt: OnCorrupt
) -> tuple[CheckpointOnDisk | LoggedImage, LogOnDisk]:
    """Read and check the log that follows a checkpoint; return what both hold together.

    Raises:
        CheckpointError: the log is damaged and `on_corrupt` is ``"fail"``.
    """
    log = LogOnDisk()
    manifest = image.manifest
    if manifest.log_position is None:
        return image, log
    logged = LoggedImage(directory, image, log)
    is_newest = not directory.has_newer(manifest.sequence)
    read_log(
        directory,
        log,
        int(manifest.log_position),
        logged.add,
        is_newest=is_newest,
        may_be_cut=on_corrupt == "previous",
    )
    logged.finish()
    return logged, log


def refuse_log_alone(directory: Directory) -> None:
    """Raise `CheckpointError` if a log has frames: there is no checkpoint that they belong to."""
    for number in directory.log_numbers():
        with contextlib.suppress(Damage):
            if any(record.kind == FRAME for record in LogReader(directory.log_path(number))):
                raise CheckpointError(
                    f"{directory.log_path(number)} goes on from a checkpoint, and {directory.path} has none; "
                    f"to start empty, move the directory away"
                )
