"""Which items of a writer have been applied, kept across its reconnects so that none is lost or doubled."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from reverb_async.errors import InvalidArgument
from reverb_async.protocol.inserting import Refusal

MAX_SESSIONS = 16_384
"""Sessions remembered; beyond, those that have been without a stream for longest are forgotten."""

MAX_AGE_S = 3600.0
"""A session without a stream is forgotten after this long."""

MAX_RANGES = 16_384
"""Settled ranges with gaps between them that one session may have."""

_MAX_REFUSALS = 256


class SessionStream(Protocol):
    """The stream a session is open on."""

    async def withdraw(self) -> None:
        """End the stream with all its waiting inserts, and return when it has ended."""


class Session:
    """One writer's identity on the server.

    Attributes:
        number: distinguishes sessions of this server.
        applied_through: every item up to this sequence number is settled: inserted, or refused for good.
        refusals: recent refusals, to be told again after a reconnect.
        stream: the stream it is open on.
        left_at: when its last stream ended, on the monotonic clock.
        openings: streams that are waiting to have it.
    """

    def __init__(self, identity: bytes, number: int) -> None:
        self.identity = identity
        self.number = number
        self.applied_through = 0
        self.refusals: list[Refusal] = []
        self.stream: SessionStream | None = None
        self.left_at = 0.0
        self.openings = 0
        # Settled ranges that do not follow `applied_through`, none next to another: starts by ends, and ends by starts.
        self._starts: dict[int, int] = {}
        self._beyond: dict[int, int] = {}
        self.changes: list[list[Any]] | None = None

    def settle(self, seq: int, count: int) -> None:
        """Note that items ``[seq, seq + count)`` are settled."""
        if self.changes is not None:
            self._record(seq, count, None)
        self._settle(seq, count)

    def _record(self, seq: int, count: int, error: Mapping[str, Any] | None) -> None:
        assert self.changes is not None
        last = self.changes[-1] if self.changes else None
        if last is not None and error is None is last[4] and last[0] is self.identity and last[2] + last[3] == seq:
            last[3] += count
        else:
            self.changes.append([self.identity, self.number, seq, count, error])

    def _settle(self, seq: int, count: int) -> None:
        start, stop = seq, seq + count
        if (left := self._starts.pop(start, None)) is not None:
            del self._beyond[left]
            start = left
        if (right := self._beyond.pop(stop, None)) is not None:
            del self._starts[right]
            stop = right
        if start == self.applied_through + 1:
            self.applied_through = stop - 1
        else:
            self._beyond[start], self._starts[stop] = stop, start

    def refuse(self, refusal: Refusal) -> None:
        """Settle items as refused."""
        if self.changes is not None:
            self._record(refusal.seq, refusal.count, refusal.error)
        self.refusals = [*self.refusals[1 - _MAX_REFUSALS :], refusal]
        self._settle(refusal.seq, refusal.count)

    @property
    def has_gaps(self) -> bool:
        """Whether `beyond` has ranges."""
        return bool(self._beyond)

    def beyond(self) -> list[tuple[int, int]]:
        """Return settled ranges (seq, count) that do not follow `applied_through`."""
        return [(start, stop - start) for start, stop in self._beyond.items()]

    def check_new(self, seq: int, count: int) -> None:
        """Raise `InvalidArgument` unless none of the items is settled."""
        if len(self._beyond) >= MAX_RANGES:
            raise InvalidArgument(
                f"this session's items have {MAX_RANGES} gaps between them: number items without gaps"
            )
        settled = seq <= self.applied_through or any(
            start < seq + count and seq < stop for start, stop in self._beyond.items()
        )
        if settled:
            raise InvalidArgument(f"items {seq} to {seq + count - 1} of this session were sent before")


class SessionsSnapshot:
    """What all sessions of a server have settled at this moment, to be written down later: there may be many."""

    def __init__(self, number: int, sessions: list[Session]) -> None:
        self._number = number
        self._sessions = sessions
        self._applied_through = [session.applied_through for session in sessions]
        # Most have neither; what is read here is replaced when it changes, or copied.
        self._more = {
            at: (session.beyond(), session.refusals)
            for at, session in enumerate(sessions)
            if session.refusals or session.has_gaps
        }

    def describe(self) -> dict[str, object]:
        """Return it as values MessagePack and JSON know, for `read_sessions`."""
        described = []
        for at, (session, applied_through) in enumerate(zip(self._sessions, self._applied_through, strict=True)):
            beyond, refusals = self._more.get(at, ([], []))
            told = [[refusal.seq, refusal.count, refusal.error] for refusal in refusals]
            gaps = [list(span) for span in beyond]
            described.append([session.identity.hex(), session.number, applied_through, gaps, told])
        return {"number": self._number, "sessions": described}


def read_sessions(described: Any) -> tuple[int, list[Session]]:
    """Return what `SessionsSnapshot.describe` wrote down, for `Sessions.adopt`.

    Raises:
        KeyError: or TypeError, or ValueError: it is anything else.
    """
    sessions = []
    for identity, number, applied_through, beyond, refusals in described["sessions"]:
        session = Session(bytes.fromhex(identity), int(number))
        session.applied_through = int(applied_through)
        session.refusals = [Refusal(int(seq), int(count), dict(error)) for seq, count, error in refusals]
        for start, count in beyond:
            session.settle(int(start), int(count))
        sessions.append(session)
    return int(described["number"]), sessions


class Sessions:
    """All sessions of a server."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, Session] = {}
        self._left: OrderedDict[bytes, Session] = OrderedDict()
        """Those without a stream, in the order in which they lost it."""
        self.number = 0
        """Of the newest session."""
        self._changes: list[list[Any]] | None = None

    def record(self, changes: list[list[Any]]) -> None:
        """Append what sessions settle to a list from now on: ``[identity, number, seq, count, error or None]``."""
        self._changes = changes
        for session in self._sessions.values():
            session.changes = changes

    def replay(self, changes: list[Any]) -> None:
        """Do what an earlier server recorded, after `restore`."""
        for identity, number, seq, count, error in changes:
            session = self._sessions.get(identity)
            if session is None:
                session = self._add(identity, int(number))
                self.detach(session)
            if error is None:
                session.settle(int(seq), int(count))
            else:
                session.refuse(Refusal(int(seq), int(count), error))

    def _add(self, identity: bytes, number: int) -> Session:
        session = self._sessions[identity] = Session(identity, number)
        session.changes = self._changes
        return session

    def __len__(self) -> int:
        return len(self._sessions)

    async def attach(self, identity: bytes, stream: SessionStream) -> Session:
        """Return the session of this identity, open on `stream`; ends the stream it was open on before."""
        session = self._sessions.get(identity)
        if session is None:
            self.number += 1
            session = self._add(identity, self.number)
        session.openings += 1
        try:
            while session.stream is not None:
                await session.stream.withdraw()
            session.stream = stream
        finally:
            session.openings -= 1
            self._sort(session)
        self._forget()
        return session

    def snapshot(self) -> SessionsSnapshot:
        """Return what every session has settled now."""
        return SessionsSnapshot(self.number, list(self._sessions.values()))

    def adopt(self, saved: tuple[int, list[Session]]) -> None:
        """Remember the sessions of an earlier server, of which none is open here; they begin to age now."""
        self.number, sessions = saved
        for session in sessions:
            session.changes = self._changes
            self._sessions[session.identity] = session
            self.detach(session)

    def detach(self, session: Session) -> None:
        """Note that the session's stream has ended."""
        session.stream = None
        session.left_at = time.monotonic()
        self._sort(session)

    def _sort(self, session: Session) -> None:
        self._left.pop(session.identity, None)
        if session.stream is None and not session.openings:
            self._left[session.identity] = session

    def _forget(self) -> None:
        horizon = time.monotonic() - MAX_AGE_S
        while self._left:
            identity, session = next(iter(self._left.items()))
            if session.left_at >= horizon and len(self._sessions) <= MAX_SESSIONS:
                return
            del self._left[identity], self._sessions[identity]
