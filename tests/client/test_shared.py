"""One attempt for many: made once, its outcome told to all, given up with the last who waits."""

from __future__ import annotations

import asyncio

import pytest

from reverb_async.client.shared import Shared
from reverb_async.testing import settle


class Attempts:
    """Counts attempts, each of which lasts until it is told its outcome."""

    def __init__(self) -> None:
        self.count = 0
        self.given_up = 0
        self.outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> int:
        self.count += 1
        try:
            return await self.outcome
        except asyncio.CancelledError:
            self.given_up += 1
            raise


async def test_all_who_come_while_it_lasts_share_what_it_returns():
    shared: Shared[int] = Shared()
    attempts = Attempts()
    joined = [asyncio.create_task(shared.join(attempts)) for _ in range(5)]
    await settle()
    attempts.outcome.set_result(7)
    assert await asyncio.gather(*joined) == [7] * 5
    assert attempts.count == 1


async def test_all_share_a_failure_and_the_next_makes_another_attempt():
    shared: Shared[int] = Shared()
    attempts = Attempts()
    joined = [asyncio.create_task(shared.join(attempts)) for _ in range(5)]
    await settle()
    attempts.outcome.set_exception(ConnectionError("nobody there"))
    outcomes = await asyncio.gather(*joined, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["nobody there"] * 5
    again = Attempts()
    again.outcome.set_result(8)
    assert await shared.join(again) == 8
    assert attempts.count == again.count == 1


async def test_it_goes_on_while_somebody_waits_and_is_given_up_with_the_last():
    shared: Shared[int] = Shared()
    attempts = Attempts()
    joined = [asyncio.create_task(shared.join(attempts)) for _ in range(3)]
    await settle()
    for at, one in enumerate(joined):
        assert attempts.given_up == 0, at
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        await settle()
    assert attempts.given_up == 1
    again = Attempts()
    again.outcome.set_result(9)
    assert await shared.join(again) == 9
