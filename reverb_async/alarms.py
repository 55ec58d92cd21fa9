"""What is wrong with a server at the moment, for its users to see."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from reverb_async.core.info import Alarm

logger = logging.getLogger("reverb_async")


class Alarms:
    """The alarms of one server, by name. Beginning and end of each are logged."""

    def __init__(self) -> None:
        self._alarms: dict[str, Alarm] = {}

    def __iter__(self) -> Iterator[Alarm]:
        return iter(list(self._alarms.values()))

    def __contains__(self, name: str) -> bool:
        return name in self._alarms

    def give(self, name: str, message: str) -> None:
        """Say that something is wrong; said again, the message replaces the last one."""
        known = self._alarms.get(name)
        if known is None:
            logger.warning("alarm %r: %s", name, message)
        self._alarms[name] = Alarm(name=name, message=message, since=time.time() if known is None else known.since)

    def clear(self, name: str) -> None:
        """Say that it is right again. Idempotent."""
        if self._alarms.pop(name, None) is not None:
            logger.info("alarm %r is over", name)
