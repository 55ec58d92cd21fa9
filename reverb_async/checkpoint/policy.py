"""What to restore when a server's tables are not those of the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from reverb_async.checkpoint.image import CheckpointOnDisk
from reverb_async.checkpoint.logged_image import LoggedImage
from reverb_async.checkpoint.plain import pack, unpack
from reverb_async.core import selectors
from reverb_async.core.rate_limiters import RateLimiter
from reverb_async.core.spec import Signature
from reverb_async.errors import CheckpointError, ReplayError
from reverb_async.replay import Replay
from reverb_async.table import Table

logger = logging.getLogger("reverb_async")

RestorePolicy = Literal["strict", "config", "checkpoint"]

_HARMLESS = frozenset({"name", "seed"})
"""A seed decides nothing about what is there."""


def agree(replay: Replay, image: CheckpointOnDisk | LoggedImage, policy: RestorePolicy, name: str) -> bool:
    """Make sure that a replay's tables and those of a checkpoint fit together, and log how they differ.

    Args:
        replay: nothing has happened to its tables yet; with the policy ``"checkpoint"`` some get other definitions, or
            are added.
        image: verified.
        policy: see `Checkpointer`.
        name: the checkpoint's, for messages.

    Returns:
        Whether nothing differs, so that the tables are just as they were.

    Raises:
        CheckpointError: the policy is ``"strict"`` and something differs, or a definition cannot be read.
    """
    differences = list(_differences(replay, image))
    if differences and policy == "strict":
        raise CheckpointError(
            f"checkpoint {name} is not of these tables: {'; '.join(differences)}. restore='config' takes the server's "
            f"definitions, 'checkpoint' the checkpoint's"
        )
    for difference in differences:
        taken = "the server's" if policy == "config" else "the checkpoint's"
        logger.warning("checkpoint %s: %s; restore=%r: %s counts", name, difference, policy, taken)
    if policy == "checkpoint":
        try:
            _redefine(replay, image)
        except ReplayError as error:
            raise CheckpointError(f"checkpoint {name} cannot be restored: {error}") from error
    return not differences


def restore(replay: Replay, image: CheckpointOnDisk | LoggedImage, name: str) -> None:
    """Fill the tables of a replay that agrees with a checkpoint. Blocks while it reads.

    Raises:
        CheckpointError: the checkpoint contradicts itself, or there is no room.
    """
    try:
        replay.restore(image)
    except ReplayError as error:
        raise CheckpointError(f"checkpoint {name} cannot be restored: {error}") from error
    for table, saved in image.tables.items():
        if table in replay.tables and (left := saved.facts.items - replay.tables[table].state.size) > 0:
            logger.warning("checkpoint %s: %d items of table %r had no room", name, left, table)


def _redefine(replay: Replay, image: CheckpointOnDisk | LoggedImage) -> None:
    for name, saved in image.tables.items():
        if name not in replay.tables:
            replay.add(Table.from_definition(saved.state["definition"]))
        elif list(_changes(saved.state["definition"], replay.tables[name])):
            replay.tables[name].redefine(saved.state["definition"])


def _differences(replay: Replay, image: CheckpointOnDisk | LoggedImage) -> list[str]:
    differences = []
    for name, saved in image.tables.items():
        if name in replay.tables:
            for field, old, new in _changes(saved.state["definition"], replay.tables[name]):
                differences.append(f"table {name!r} had {field}={old}, the server's has {field}={new}")
        else:
            differences.append(f"table {name!r} with {saved.facts.items} items is only in the checkpoint")
    differences += [f"table {name!r} is only on the server" for name in replay.tables if name not in image.tables]
    return differences


def _changes(saved: Mapping[str, Any], table: Table) -> list[tuple[str, str, str]]:
    """Return what differs between a saved definition and a table's: field, then both as text."""
    now = unpack(pack(table.definition))  # lists and tuples are the same
    return [
        (field, described(field, saved.get(field)), described(field, value))
        for field, value in now.items()
        if field not in _HARMLESS and saved.get(field) != value
    ]


def described(field: str, value: Any) -> str:
    """Return one field of a saved definition as a person would write it."""
    if field == "rate_limiter":
        spi, size, low, high = value
        return str(RateLimiter(spi, size, float(low), float(high)))
    if field in ("sampler", "remover"):
        return str(selectors.from_options(value))
    if field == "signature":
        return "None" if value is None else str(Signature.from_wire(value).nest)
    return str(value)
