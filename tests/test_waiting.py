from __future__ import annotations

import asyncio
import logging

import pytest
from helpers import Clock, settle

from reverb_async.waiting import Deadline, Gate, make_condition, reported


class TestDeadline:
    async def test_no_timeout_lets_the_body_run_as_long_as_it_likes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, done = Clock(monkeypatch), asyncio.Event()

        async def body() -> None:
            async with Deadline(None):
                await done.wait()

        task = asyncio.create_task(body())
        await clock.advance(1e6)
        assert not task.done()
        done.set()
        await task

    async def test_the_body_gets_a_timeout_error_when_the_time_is_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock(monkeypatch)

        async def body() -> None:
            async with Deadline(5):
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await clock.advance(4.9)
        assert not task.done()
        await clock.advance(0.2)
        with pytest.raises(TimeoutError):
            await task

    async def test_zero_lets_the_body_run_to_its_first_check(self) -> None:
        async with Deadline(0) as deadline:
            await asyncio.sleep(0)
            assert deadline.expired
            with pytest.raises(TimeoutError):
                deadline.check()

    async def test_it_can_be_ended_from_outside_before_during_and_after(self) -> None:
        early = Deadline(None)
        early.expire()
        async with early:
            with pytest.raises(TimeoutError):
                early.check()
        deadline = Deadline(None)

        async def body() -> None:
            async with deadline:
                deadline.check()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await settle()
        deadline.expire()
        deadline.expire()
        with pytest.raises(TimeoutError):
            await task
        deadline.expire()
        await settle()

    async def test_cancelling_the_body_stays_a_cancellation(self) -> None:
        async def body() -> None:
            async with Deadline(60):
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class TestReported:
    async def test_long_waits_are_logged_after_10_20_and_40_seconds(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock, told, reasons = Clock(monkeypatch), [], iter(["one thing", "another", "a third"])
        done = asyncio.Event()

        async def wait() -> None:
            with reported(lambda: f"table 't' needs {next(reasons)}", told.append):
                await done.wait()

        task = asyncio.create_task(wait())
        await settle()
        seen = []
        with caplog.at_level(logging.WARNING, "reverb_async"):
            for _ in range(45):
                before = len(caplog.messages)
                await clock.advance(1)
                if len(caplog.messages) > before:
                    seen.append(clock.now - 1000.0)
        assert seen == [10.0, 20.0, 40.0]
        assert (
            caplog.messages
            == told
            == [
                "table 't' needs one thing; has waited 10 s",
                "table 't' needs another; has waited 20 s",
                "table 't' needs a third; has waited 40 s",
            ]
        )
        done.set()
        await task
        await clock.advance(1000)
        assert len(told) == 3

    async def test_those_who_wait_for_the_same_share_a_line_that_says_how_many_they_are(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock, gate, told, done = Clock(monkeypatch), Gate(), [], asyncio.Event()

        async def wait(number: int) -> None:
            with gate.standing(f"peer {number % 20}"), reported(lambda: "table 't' is full", told.append, crowd=gate):
                await done.wait()

        tasks = [asyncio.create_task(wait(number)) for number in range(130)]
        await settle()
        with caplog.at_level(logging.WARNING, "reverb_async"):
            for _ in range(25):
                await clock.advance(1)
        assert caplog.messages == [
            "table 't' is full; has waited 10 s; 130 calls wait, the longest for 0 s",  # Of another clock.
            "table 't' is full; has waited 20 s; 130 calls wait, the longest for 0 s",
        ]
        assert len(told) == 260  # Each is told of its own wait.
        assert caplog.records[0].peers == tuple(f"peer {number}" for number in range(8))
        done.set()
        await asyncio.gather(*tasks)
        assert gate.peers == ()

    async def test_short_waits_are_not_mentioned(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = Clock(monkeypatch)
        with reported(lambda: "never said"):
            await clock.advance(9.9)
        await clock.advance(100)
        assert not caplog.messages


class TestGate:
    async def test_it_counts_who_stands_and_since_when(self) -> None:
        gate = Gate()
        assert len(gate) == 0
        with gate.standing():
            since = gate.oldest
            with gate.standing():
                assert len(gate) == 2
                assert gate.oldest == since
            assert len(gate) == 1
        assert len(gate) == 0

    async def test_waking_lets_the_head_look_again(self) -> None:
        gate, looked = Gate(), []

        async def head() -> None:
            async with gate.turn:
                while len(looked) < 2:
                    await gate.wait()
                    looked.append(True)

        task = asyncio.create_task(head())
        await settle()
        gate.wake()
        assert not looked  # nothing runs within the step that wakes
        await settle()
        assert len(looked) == 1
        gate.wake()
        await task

    async def test_waking_nobody_is_fine(self) -> None:
        Gate().wake()


async def test_a_condition_is_notified_from_synchronous_code_and_survives_cancelled_waiters() -> None:
    condition = make_condition()
    tasks = [asyncio.create_task(condition.wait()) for _ in range(3)]
    await settle()
    tasks[0].cancel()
    condition.notify_all()
    await settle()
    assert [task.cancelled() for task in tasks] == [True, False, False]
    assert all(task.done() for task in tasks)
