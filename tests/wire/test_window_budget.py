"""Room for long messages: who gets it, in what order, and who has to do without."""

from __future__ import annotations

import asyncio

from reverb_async.errors import ResourceExhausted
from reverb_async.wire.http2 import window
from reverb_async.wire.http2.window import Hold, WindowBudget


class Sender:
    """A stream with a long message."""

    def __init__(self, budget: WindowBudget, nbytes: int, *, is_stored: bool = False) -> None:
        self.told: list[object] = []
        self.budget = budget
        self.hold = Hold(nbytes, is_stored, lambda: self.told.append("granted"), self.told.append)
        budget.hold(self.hold)

    @property
    def has_room(self) -> bool:
        return self.hold.is_granted

    def done(self) -> None:
        self.budget.release(self.hold)


async def test_messages_get_room_in_their_order() -> None:
    budget = WindowBudget(100)
    first, second, third, fourth = (Sender(budget, nbytes) for nbytes in (60, 60, 10, 500))
    assert [each.has_room for each in (first, second, third, fourth)] == [True, False, False, False]
    first.done()
    assert [each.told for each in (first, second, third, fourth)] == [[], ["granted"], ["granted"], []]
    second.done()
    assert not fourth.has_room
    third.done()
    assert fourth.has_room  # alone it may be longer
    assert budget.held == 500
    fourth.done()
    assert budget.held == 0


async def test_who_gives_up_makes_way() -> None:
    budget = WindowBudget(100)
    first, second, third = (Sender(budget, nbytes) for nbytes in (60, 90, 40))
    second.done()
    assert third.has_room
    first.done()
    third.done()
    assert budget.held == 0


async def test_what_cannot_be_stored_does_not_hold_up_others() -> None:
    budget = WindowBudget(100)
    is_full = True
    budget.may_store = lambda nbytes: not is_full
    storing, other = Sender(budget, 60, is_stored=True), Sender(budget, 60)
    assert (storing.has_room, other.has_room) == (False, True)
    assert list(budget.waiting_for_memory()) == [storing.hold]
    is_full = False
    budget.wake()
    assert not storing.has_room
    assert list(budget.waiting_for_memory()) == []
    other.done()
    assert storing.has_room
    storing.done()


async def test_a_message_that_comes_too_slowly_is_refused_once_others_wait(monkeypatch) -> None:
    monkeypatch.setattr(window, "PATIENCE_S", 0.0)
    budget = WindowBudget(100)
    slow = Sender(budget, 60)
    await asyncio.sleep(0.001)
    budget.look_after()
    assert slow.told == []
    waiting = Sender(budget, 60)
    budget.look_after()
    (error,) = slow.told
    assert isinstance(error, ResourceExhausted)
    slow.done()
    assert waiting.has_room
    waiting.done()
