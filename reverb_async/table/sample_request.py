"""A request for several items while the rate limiter admits them bit by bit."""

from __future__ import annotations

from reverb_async.core.table_state import Draw, TableState


class SampleRequest:
    """A request for `n` items while it is being filled: permits, or items already drawn where sampling removes them."""

    def __init__(self, state: TableState, n: int) -> None:
        self._state = state
        self._n = n
        self._count = 0
        self._generation = state.generation
        self._draws: list[Draw] = []
        self.waited = False

    @property
    def missing(self) -> int:
        """How many items are not admitted yet."""
        return self._n - self._count

    def fill(self) -> bool:
        """Take what the rate limiter admits now; return whether the request is complete."""
        state = self._state
        if self._generation != state.generation:  # A reset voids what was taken before it.
            self._generation, self._count, self._draws = state.generation, 0, []
        admitted = state.admitted_samples(self.missing)
        if not admitted:
            return False
        if state.max_times_sampled >= 1:
            self._draws.append(state.draw(admitted))
            self._count += len(self._draws[-1])
        elif admitted == self.missing:
            self._draws.append(state.draw(self._n, reserved=self._count))
            self._count = self._n
        else:
            state.reserve_samples(admitted)
            self._count += admitted
        return self._count == self._n

    def cut_short(self) -> bool:
        """Settle for what was admitted so far; return False if that is nothing."""
        if self._generation != self._state.generation or not self._count or not (self._draws or self._state.size):
            return False
        if not self._draws:
            self._draws.append(self._state.draw(self._count, reserved=self._count))
        return True

    def undo(self) -> None:
        """Give everything back."""
        if self._generation != self._state.generation:
            return
        if self._draws:
            for draw in reversed(self._draws):
                self._state.hand_back(draw)
        elif self._count:
            self._state.return_samples(self._count)

    def draw(self) -> Draw:
        """Return the items of the filled request."""
        draw = Draw.join(self._draws)
        draw.rate_limited = self.waited
        return draw
