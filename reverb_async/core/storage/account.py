"""How much memory all that a server holds takes, counted as it changes."""

from __future__ import annotations

import math


class Account:
    """A running count of bytes, and the bounds that those who add to it respect.

    Whoever takes memory adds to `used`; `give_back` takes from it. Nothing is refused here.

    Attributes:
        used: bytes of live, staged and pinned rows, of tables' indices, and of messages that are being sent.
        grow_below: beyond it, tables take no items but such as replace others.
        stage_below: beyond it, nothing is stored that is not in a table yet; at least `grow_below`.
        is_waited_for: somebody waits for `used` to become less.
    """

    def __init__(self) -> None:
        self.used = 0
        self.grow_below: float = math.inf
        self.stage_below: float = math.inf
        self.is_waited_for = False

    def give_back(self, nbytes: int) -> None:
        """Count bytes no more."""
        self.used -= nbytes
        if self.is_waited_for:
            self.became_less()

    def became_less(self) -> None:
        """Tell those who wait; there are none unless somebody overrides this."""

    def refusal(self) -> str:
        """Say why tables do not grow."""
        return "waits for memory"
