"""Leases: nothing is let go while the control page says it is held, and nobody holds more than the bounds allow."""

from __future__ import annotations

import sys

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from reverb_async.core.storage.backing import PrivateBacking
from reverb_async.errors import InvalidArgument
from reverb_async.protocol.control_page import LEASE_SLOTS, ControlPage, ControlView
from reverb_async.service import leases as leases_module
from reverb_async.service.leases import MAX_AGE_S, PATIENCE_S, SWITCH, Lease, Leases

MAX_BYTES = 100


class Rows:
    """What is leased; checks the order of things."""

    def __init__(self, view: ControlView) -> None:
        self._view = view
        self.pins = 0
        self.lease: Lease | None = None

    def pin(self) -> None:
        assert self.pins == 0
        self.pins = 1

    def unpin(self) -> None:
        assert self.pins == 1
        assert self.lease is not None
        assert not self._view.holds(self.lease.slot, self.lease.id), "the rows go before the page says so"
        self.pins = 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_leases(max_bytes: int = MAX_BYTES) -> tuple[Leases, ControlView, Clock]:
    page = ControlPage(PrivateBacking)
    clock = Clock()
    return Leases(page, max_bytes=max_bytes, clock=clock), ControlView(page._backing.array), clock


def grant(leases: Leases, view: ControlView, nbytes: int) -> Rows | None:
    rows = Rows(view)
    rows.lease = leases.grant(rows, nbytes)
    return None if rows.lease is None else rows


class LeaseMachine(RuleBasedStateMachine):
    """`Leases` must agree with a list of (rows, bytes, time)."""

    def __init__(self) -> None:
        super().__init__()
        self.leases, self.view, self.clock = make_leases()
        self.held: list[tuple[Rows, int, float]] = []
        self.ids: set[int] = set()
        self.gone: list[Rows] = []

    def _drop_older_than(self, age: float) -> None:
        horizon = self.clock.now - age
        self.gone += [rows for rows, _, since in self.held if since <= horizon]
        self.held = [entry for entry in self.held if entry[2] > horizon]

    def _bytes(self) -> int:
        return sum(nbytes for _, nbytes, _ in self.held)

    @rule(nbytes=st.integers(1, MAX_BYTES + 10))
    def grant(self, nbytes: int) -> None:
        rows = grant(self.leases, self.view, nbytes)
        if self._bytes() + nbytes > MAX_BYTES:
            self._drop_older_than(PATIENCE_S)
        assert (rows is not None) == (self._bytes() + nbytes <= MAX_BYTES)
        if rows is not None:
            assert rows.lease.id not in self.ids
            assert rows.lease.id != 0
            self.ids.add(rows.lease.id)
            self.held.append((rows, nbytes, self.clock.now))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        rows, _, _ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.leases.end(rows.lease)
        self.gone.append(rows)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def end_again(self, data: st.DataObject) -> None:
        self.leases.end(data.draw(st.sampled_from(self.gone)).lease)

    @rule(seconds=st.sampled_from([0.1, PATIENCE_S, 7.0, MAX_AGE_S]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def expire(self) -> None:
        assert not self.leases.expire()
        self._drop_older_than(MAX_AGE_S)

    @invariant()
    def agree(self) -> None:
        assert len(self.leases) == len(self.held)
        assert self.leases.leased_bytes == self._bytes() <= MAX_BYTES
        for rows, _, _ in self.held:
            assert rows.pins == 1
            assert rows.lease.holds
            assert self.view.holds(rows.lease.slot, rows.lease.id)
        for rows in self.gone:
            assert rows.pins == 0
            assert not rows.lease.holds
            assert not self.view.holds(rows.lease.slot, rows.lease.id)


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_no_more_leases_than_words_in_the_page():
    leases, view, clock = make_leases(LEASE_SLOTS * 2)
    held = [grant(leases, view, 1) for _ in range(LEASE_SLOTS)]
    assert all(held)
    assert grant(leases, view, 1) is None
    leases.end(held[17].lease)
    again = grant(leases, view, 1)
    assert again.lease.slot == held[17].lease.slot
    assert again.lease.id == LEASE_SLOTS + 1
    clock.now = PATIENCE_S
    assert grant(leases, view, 1) is not None, "what is old makes room"


def test_many_old_leases_are_revoked_some_at_a_time():
    leases, view, clock = make_leases(LEASE_SLOTS)
    for _ in range(200):
        grant(leases, view, 1)
    clock.now = MAX_AGE_S
    left = []
    while leases.expire():
        left.append(len(leases))
    assert left == [136, 72, 8]
    assert len(leases) == leases.leased_bytes == 0
    assert leases.num_revoked == 200


def test_without_a_page_nothing_is_lent():
    leases = Leases()
    assert leases.offer() is None
    assert leases.grant(None, 1) is None
    assert not leases.is_secret(bytes(16))
    assert not leases.expire()


def test_private_memory_is_not_offered():
    leases, _, _ = make_leases()
    assert leases.offer() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process map another's memory")
class TestOfferOfThisProcess:
    def test_it_names_page_and_process(self):
        leases = Leases.of_this_process()
        offer = leases.offer()
        assert offer.token == leases._page.token
        assert not leases.is_secret(offer.token)
        assert leases.is_secret(leases._page.secret)

    def test_the_environment_switches_it_off(self, monkeypatch):
        monkeypatch.setenv(SWITCH, "off")
        assert Leases.of_this_process().offer() is None
        monkeypatch.setenv(SWITCH, "auto")
        assert Leases.of_this_process().offer() is not None
        monkeypatch.setenv(SWITCH, "no")
        with pytest.raises(InvalidArgument, match="REVERB_ASYNC_SHARED_MEMORY is 'off', 'auto' or not set, got 'no'"):
            Leases.of_this_process()

    def test_a_host_that_does_not_tell_who_it_is_offers_nothing(self, monkeypatch):
        def refuse(token: bytes) -> bytes:
            raise OSError("no boot id")

        monkeypatch.setattr(leases_module, "host_mark", refuse)
        assert Leases.of_this_process().offer() is None
