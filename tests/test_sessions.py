from __future__ import annotations

import asyncio

import pytest
from helpers import settle

from reverb_async import sessions
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.inserting import Refusal
from reverb_async.sessions import Session, Sessions


class Stream:
    """Ends when it is withdrawn, some steps later."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.session: Session
        self.withdrawn = 0

    async def open(self, identity: bytes) -> Session:
        self.session = await self._sessions.attach(identity, self)
        return self.session

    async def withdraw(self) -> None:
        self.withdrawn += 1
        await asyncio.sleep(0)
        self.close()

    def close(self) -> None:
        if self.session.stream is self:
            self._sessions.detach(self.session)


class TestSettling:
    async def test_items_in_order_move_the_mark(self) -> None:
        session = await Stream(Sessions()).open(b"a" * 16)
        session.settle(1, 3)
        session.settle(4, 1)
        assert (session.applied_through, session.beyond()) == (4, [])

    async def test_items_out_of_order_are_remembered_until_the_gap_closes(self) -> None:
        session = await Stream(Sessions()).open(b"a" * 16)
        session.settle(4, 2)
        session.settle(8, 1)
        assert (session.applied_through, session.beyond()) == (0, [(4, 2), (8, 1)])
        session.settle(1, 3)
        assert (session.applied_through, session.beyond()) == (5, [(8, 1)])
        session.settle(6, 2)
        assert (session.applied_through, session.beyond()) == (8, [])

    async def test_ranges_behind_a_gap_grow_together(self) -> None:
        session = await Stream(Sessions()).open(b"a" * 16)
        for seq in (2, 6, 4, 3, 5):
            session.settle(seq, 1)
        assert (session.applied_through, session.beyond()) == (0, [(2, 5)])
        for seq in range(7, 5000):
            session.settle(seq, 1)
        assert session.beyond() == [(2, 4998)]
        session.settle(1, 1)
        assert (session.applied_through, session.beyond()) == (4999, [])

    async def test_items_numbered_with_endless_gaps_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sessions, "MAX_RANGES", 3)
        session = await Stream(Sessions()).open(b"a" * 16)
        for seq in (2, 4, 6):
            session.check_new(seq, 1)
            session.settle(seq, 1)
        with pytest.raises(InvalidArgument, match="number items without gaps"):
            session.check_new(8, 1)

    async def test_refused_items_are_settled_and_told_again(self) -> None:
        session = await Stream(Sessions()).open(b"a" * 16)
        refusal = Refusal(1, 2, {"type": "InvalidArgument", "message": "no"})
        session.refuse(refusal)
        assert session.applied_through == 2
        assert session.refusals == [refusal]

    async def test_only_the_latest_refusals_are_kept(self) -> None:
        session = await Stream(Sessions()).open(b"a" * 16)
        for seq in range(1, 1001):
            session.refuse(Refusal(seq, 1, {}))
        assert [refusal.seq for refusal in session.refusals] == list(range(745, 1001))

    @pytest.mark.parametrize(("seq", "count"), [(1, 1), (3, 1), (1, 9), (5, 1), (4, 2), (6, 3), (4, 9)])
    async def test_items_that_are_settled_are_not_taken_again(self, seq: int, count: int) -> None:
        session = await Stream(Sessions()).open(b"a" * 16)
        session.settle(1, 3)
        session.settle(5, 2)
        with pytest.raises(InvalidArgument, match="sent before"):
            session.check_new(seq, count)

    @pytest.mark.parametrize(("seq", "count"), [(4, 1), (7, 9)])
    async def test_items_that_are_not_settled_are_new(self, seq: int, count: int) -> None:
        session = await Stream(Sessions()).open(b"a" * 16)
        session.settle(1, 3)
        session.settle(5, 2)
        session.check_new(seq, count)


class TestReopening:
    async def test_the_same_identity_finds_its_session(self) -> None:
        sessions = Sessions()
        first = Stream(sessions)
        session = await first.open(b"a" * 16)
        session.settle(1, 5)
        first.close()
        again, other = await Stream(sessions).open(b"a" * 16), await Stream(sessions).open(b"b" * 16)
        assert again is session
        assert again.applied_through == 5
        assert other.number != session.number
        assert len(sessions) == 2

    async def test_the_old_stream_ends_before_the_new_one_begins(self) -> None:
        sessions = Sessions()
        old, new = Stream(sessions), Stream(sessions)
        session = await old.open(b"a" * 16)
        await new.open(b"a" * 16)
        assert old.withdrawn == 1
        assert session.stream is new

    async def test_of_many_streams_that_reopen_at_once_one_is_left(self) -> None:
        sessions = Sessions()
        streams = [Stream(sessions) for _ in range(5)]
        await asyncio.gather(*(stream.open(b"a" * 16) for stream in streams))
        assert sum(stream.session.stream is stream for stream in streams) == 1
        assert len(sessions) == 1

    async def test_giving_up_while_the_old_stream_ends_leaves_the_session_whole(self) -> None:
        sessions = Sessions()
        old, new = Stream(sessions), Stream(sessions)
        session = await old.open(b"a" * 16)
        task = asyncio.create_task(new.open(b"a" * 16))
        await asyncio.sleep(0)
        task.cancel()
        await settle()
        old.close()
        assert session.stream is None
        assert await Stream(sessions).open(b"a" * 16) is session


class TestForgetting:
    async def test_sessions_without_a_stream_are_bounded_in_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sessions, "MAX_SESSIONS", 100)
        kept = Sessions()
        for number in range(300):
            stream = Stream(kept)
            await stream.open(number.to_bytes(16))
            stream.close()
        assert len(kept) <= 101

    async def test_open_sessions_do_not_keep_others_from_being_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sessions, "MAX_SESSIONS", 100)
        kept = Sessions()
        open_ones = [await Stream(kept).open(number.to_bytes(16)) for number in range(50)]
        for number in range(100, 400):
            stream = Stream(kept)
            await stream.open(number.to_bytes(16))
            stream.close()
        assert len(kept) <= 101
        for number, session in enumerate(open_ones):
            assert (await Stream(kept).open(number.to_bytes(16))) is session

    async def test_they_are_forgotten_after_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0
        monkeypatch.setattr(sessions.time, "monotonic", lambda: now)
        kept = Sessions()
        stream = Stream(kept)
        session = await stream.open(b"a" * 16)
        stream.close()
        now = sessions.MAX_AGE_S - 1
        stream = Stream(kept)
        assert await stream.open(b"a" * 16) is session
        stream.close()
        now += sessions.MAX_AGE_S + 1
        await Stream(kept).open(b"b" * 16)
        assert len(kept) == 1
        assert await Stream(kept).open(b"a" * 16) is not session

    async def test_a_session_forgotten_while_it_is_reopened_is_kept_after_all(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sessions, "MAX_SESSIONS", 1)
        kept = Sessions()
        old, new = Stream(kept), Stream(kept)
        session = await old.open(b"a" * 16)
        reopening = asyncio.create_task(new.open(b"a" * 16))
        await asyncio.sleep(0)
        old.close()  # nobody has it open for a moment, in which another one arrives
        await Stream(kept).open(b"b" * 16)
        assert await reopening is session
        assert session.stream is new
        assert len(kept) == 2
