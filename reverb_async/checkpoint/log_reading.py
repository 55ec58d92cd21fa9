"""Reading the log from one checkpoint on: which frames follow it, without a gap."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from reverb_async.checkpoint.content import Malformed
from reverb_async.checkpoint.damage import Damage
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.frames import Frame, read_frame
from reverb_async.checkpoint.log_file import FOLLOWS, FRAME, NOWHERE, LogReader, Position
from reverb_async.checkpoint.records import Record
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import CheckpointError, InvalidArgument

logger = logging.getLogger("reverb_async")

Specs = dict[int, list[ArraySpec]]


@dataclass(slots=True)
class LogOnDisk:
    """The frames that follow a checkpoint.

    Attributes:
        frames: where they stand: numbers of files and offsets, in order.
        end: what the next frame would follow; `NOWHERE`: nothing can follow.
        specs: of the stores that each file names.
        nbytes: of the files, as far as they are whole.
    """

    frames: list[Position] = field(default_factory=list)
    end: Position = NOWHERE
    specs: dict[int, Specs] = field(default_factory=dict)
    nbytes: int = 0


def read_log(
    directory: Directory,
    log: LogOnDisk,
    first: int,
    add: Callable[[Position, Frame], None],
    *,
    is_newest: bool,
    may_be_cut: bool,
) -> None:
    """Read all files of the log from `first` on, checking all of it.

    A frame that a killed server has not finished is passed over, with a warning. Where anything else is missing or
    damaged, all before it counts.

    Args:
        directory: where the log is.
        log: takes down where the frames are.
        first: number of the file that begins with a checkpoint.
        add: is given each frame, in order; it may take as much memory as everything that was inserted in a turn.
        is_newest: no later checkpoint was there, whole or not.
        may_be_cut: after damage use what is before it, and say so; otherwise fail.

    Raises:
        CheckpointError: the log is damaged, and that is not to be passed over.
    """
    log.end = (first, 0)
    for number in [number for number in directory.log_numbers() if number >= first]:
        path = directory.log_path(number)
        reader, specs = LogReader(path), log.specs.setdefault(number, {})
        damage: Damage | None = None
        follows: Position | None = None
        try:
            for record in reader:
                if follows is None:
                    follows = _followed(record)
                    if number != first and follows != log.end:
                        break
                else:
                    place = number, record.offset
                    frame = decoded(directory, number, record, specs)
                    try:
                        add(place, frame)
                    except LookupError as error:
                        raise Damage(path, record.offset, "what fits to the frames before", repr(error)) from error
                    log.frames.append(place)
        except Damage as error:
            damage = error
        if follows is None and (damage is None or not reader.has_record_after(reader.end)):
            if number == first:
                log.end = (first, reader.end)
            continue  # it was just begun: nothing is in it
        if follows is not None and number != first and follows != log.end:
            expected = f"what follows byte {log.end[1]} of file {log.end[0]}"
            gap = Damage(path, 0, expected, f"what follows byte {follows[1]} of file {follows[0]}")
            if is_newest:
                logger.warning("the log was not written for a while, and nothing was acknowledged since: %s", gap)
            else:
                _damaged(gap, may_be_cut)
            log.end = NOWHERE
            break
        log.end = (number, reader.end)
        log.nbytes += reader.end
        if damage is not None and reader.has_record_after(reader.end):
            _damaged(damage, may_be_cut)
            log.end = NOWHERE
            break
        if damage is not None:
            cut = path.stat().st_size - reader.end
            logger.warning(
                "%s: the %d bytes from byte %d on are a frame that was never finished: left out", path, cut, reader.end
            )


def decoded(directory: Directory, number: int, record: Record, specs: Specs) -> Frame:
    """Return what a record holds.

    Raises:
        Damage: it is no frame.
    """
    try:
        if record.kind != FRAME:
            raise Malformed(f"a record of kind {record.kind!r:.30}")
        return read_frame(record, specs)
    except (Malformed, InvalidArgument, LookupError, TypeError, ValueError, StopIteration) as error:
        raise Damage(directory.log_path(number), record.offset, "a frame", str(error) or repr(error)) from error


def read_frames(directory: Directory, log: LogOnDisk, places: Sequence[Position]) -> Iterator[Frame]:
    """Yield frames again, one in memory at a time."""
    for number, of_file in groupby(places, lambda place: place[0]):
        for record in LogReader(directory.log_path(number)).at([offset for _, offset in of_file]):
            yield decoded(directory, number, record, log.specs[number])


def _followed(record: Record) -> Position:
    if record.kind != FOLLOWS:
        return NOWHERE
    return int(record.header["log"]), int(record.header["at"])


def _damaged(damage: Damage, may_be_cut: bool) -> None:
    if not may_be_cut:
        raise CheckpointError(
            f"the log is damaged: {damage}; on_corrupt='previous' uses what is before that"
        ) from damage
    logger.error("the log is damaged, what was acknowledged after this place is lost: %s", damage)
