"""A request for several items while the rate limiter admits them bit by bit."""

from __future__ import annotations

from reverb_async.core.draw import Draw
from reverb_async.core.table_state import TableState


class SampleRequest:
    """A request for items while it is being filled: permits, or items already drawn where sampling removes them.

    Args:
        state: the table's.
        size: how many items are wanted.
        any_number: fewer will do, if there is one at least.

    Attributes:
        size: how many items are wanted.
        count: how many of them are admitted.
        waited: the request could not be filled at once.
    """

    def __init__(self, state: TableState, size: int, *, any_number: bool = False) -> None:
        self._state = state
        self._any_number = any_number
        self.size = size
        self.count = 0
        self._generation = state.generation
        self._draws: list[Draw] = []
        self.waited = False

    @property
    def missing(self) -> int:
        """How many items are not admitted yet."""
        return self.size - self.count

    def fill(self) -> bool:
        """Take what the rate limiter admits now; return whether the request is complete."""
        state = self._state
        if self._generation != state.generation:  # A reset voids what was taken before it.
            self._generation, self.count, self._draws = state.generation, 0, []
        admitted = state.admitted_samples(self.missing)
        if not admitted:
            return False
        if state.max_times_sampled >= 1:
            self._draws.append(state.draw(admitted))
            self.count += len(self._draws[-1])
        elif admitted == self.missing:
            self._draws.append(state.draw(self.size, reserved=self.count))
            self.count = self.size
        else:
            state.reserve_samples(admitted)
            self.count += admitted
        return self.count == self.size or (self._any_number and self.cut_short())

    def cut_short(self) -> bool:
        """Settle for what was admitted so far; return False if that is nothing."""
        if self._generation != self._state.generation or not self.count or not (self._draws or self._state.size):
            return False
        if not self._draws:
            self._draws.append(self._state.draw(self.count, reserved=self.count))
        return True

    def undo(self) -> None:
        """Give everything back."""
        if self._generation != self._state.generation:
            return
        if self._draws:
            for draw in reversed(self._draws):
                self._state.hand_back(draw)
        elif self.count:
            self._state.return_samples(self.count)

    def draw(self) -> Draw:
        """Return the items of the filled request."""
        draw = Draw.join(self._draws)
        draw.rate_limited = self.waited
        return draw
