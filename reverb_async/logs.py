"""What the log looks like: lines as text or JSON, and warnings that repeat themselves held back."""

from __future__ import annotations

import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Hashable
from datetime import UTC, datetime

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 60.0

_MAX_KINDS = 256
"""Kinds of lines that are remembered; who meets more logs some of them too often."""

_NUMBER = re.compile(r"(?<![\w'])\d+(?:\.\d+)?")
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class Repeats:
    """Warnings of which many alike may come: of each kind the first is logged, then one after 10 s, 20 s, 40 s, ...

    A line says how many of its kind were left out before it. The pauses are a minute at most; a kind that is quiet for
    long begins anew.

    Args:
        logger: where to.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def warning(
        self, text: str, *, kind: Hashable = None, count: bool = True, now: float | None = None, **fields: object
    ) -> None:
        """Log `text`, or count it.

        Args:
            text: the line.
            kind: what is alike; by default lines that differ in numbers only.
            count: whether the line tells of those left out; not, where its text says how many there are.
            now: seconds of a clock that is the same in all calls; by default the process's.
            fields: what the line is about, for logs that are read by programs.
        """
        key = _NUMBER.sub("#", text) if kind is None else kind
        now = time.monotonic() if now is None else now
        known = self._kinds.pop(key, None) or _Kind()
        self._kinds[key] = known
        if len(self._kinds) > _MAX_KINDS:
            self._kinds.popitem(last=False)
        if not known.is_due(now):
            known.left_out += 1
            return
        more, known.left_out = known.left_out, 0
        if more and count:
            text = f"{text} (and {more} more like it since the last such line)"
        self._logger.warning("%s", text, extra=fields)


class _Kind:
    """When lines of one kind were and may be logged."""

    def __init__(self) -> None:
        self.left_out = 0
        self._last: float | None = None
        self._pause = 0.0

    def is_due(self, now: float) -> bool:
        """Whether a line may be logged now; if so, it counts as logged."""
        if self._last is not None and now - self._last < 0.9 * self._pause:  # Timers are not exact.
            return False
        goes_on = self._last is not None and now - self._last < 3 * self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S) if goes_on else FIRST_PAUSE_S
        self._last = now
        return True


class JsonFormatter(logging.Formatter):
    """A line of JSON per record: ``time``, ``level``, ``logger``, ``message``, what `extra` added, ``error``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        described: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        described |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            described["error"] = self.formatException(record.exc_info)
        return json.dumps(described, default=str, ensure_ascii=False)


def set_up(level: str, form: str) -> None:
    """Have this package's log lines go to stderr; those of libraries from WARNING on.

    Args:
        level: ``"debug"``, ``"info"``, ``"warning"`` or ``"error"``.
        form: ``"text"`` or ``"json"``.
    """
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logging.basicConfig(handlers=[handler])
    # Ours only: grpclib has a line for every stream that a client drops.
    logging.getLogger("reverb_async").setLevel(level.upper())
