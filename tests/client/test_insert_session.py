"""The insert session against a server that the test plays."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest
from helpers import settle
from insert_rig import PlayedServer, PlayedStream

from reverb_async.client.events import Blocked, ItemsLost
from reverb_async.client.writing.insert_session import _MAX_DECLARED, MAX_IN_FLIGHT, InsertSession
from reverb_async.client.writing.outgoing import Block, Outgoing, RowGroup, SentLayout
from reverb_async.core.nest import flatten
from reverb_async.core.spec import ArraySpec
from reverb_async.errors import (
    Closed,
    InvalidArgument,
    RateLimiterTimeout,
    ReplayError,
    SignatureMismatch,
    TableClosed,
    Unavailable,
)
from reverb_async.protocol.inserting import InsertRequestReader, InsertResponse, Items, Refusal

STRUCTURE = flatten(0)[1]


def make_layout(number: int = 0) -> SentLayout:
    return SentLayout(number, STRUCTURE, [RowGroup(number, [ArraySpec((), np.int64)])], [(0, 0, True)])


class Rows(Block):
    """Rows that hold their own position."""

    def __init__(self, count: int, layout: SentLayout) -> None:
        self.count = count
        self.layout = layout
        self.outcomes: dict[int, ReplayError | None] = {}

    def __len__(self) -> int:
        return self.count

    def write(self, out: Outgoing, seq: int, start: int, stop: int) -> None:
        self.layout.declare(out)
        (group,) = self.layout.groups
        assert isinstance(group, RowGroup)
        segments = group.send(out, stop - start, [np.arange(start, stop)])
        keys = np.arange(start, stop, dtype=np.uint64)[None]
        out.add_items(Items(seq, self.layout.id, ("t",), keys, np.ones((1, stop - start)), [segments]))

    def settled(self, start: int, stop: int, error: ReplayError | None) -> None:
        for at in range(start, stop):
            assert at not in self.outcomes, "settled twice"
            self.outcomes[at] = error

    @property
    def admitted(self) -> list[int]:
        return [at for at, error in sorted(self.outcomes.items()) if error is None]


class Owner:
    def __init__(self) -> None:
        self.interruptions: list[Unavailable] = []
        self.failures: list[ReplayError] = []
        self.idle = 0

    def all_sent(self, out: Outgoing) -> None:
        self.idle += 1

    def interrupted(self, error: Unavailable) -> None:
        self.interruptions.append(error)

    def failed(self, error: ReplayError) -> None:
        self.failures.append(error)


class Play:
    """A session, its owner, and its server."""

    def __init__(self) -> None:
        self.server = PlayedServer()
        self.owner = Owner()
        self.session = InsertSession(self.server, self.owner, "the test")
        self.layout = make_layout()

    @property
    def stream(self) -> PlayedStream:
        return self.server.streams[-1]

    def submit(self, count: int) -> Rows:
        rows = Rows(count, self.layout)
        self.session.submit(rows)
        return rows

    async def start(self, count: int) -> Rows:
        """Send a first block."""
        rows = self.submit(count)
        await settle()
        self.stream.greet()
        await settle()
        return rows

    async def lose(self) -> None:
        """Lose the stream; the next one has been opened when this returns."""
        number = len(self.server.streams)
        self.stream.answer(Unavailable("cut"))
        await self.server.opened(number + 1)

    async def ack(self, seq: int, count: int) -> None:
        self.stream.answer(InsertResponse(acks=[(seq, count)]))
        await settle()

    async def refuse(self, seq: int, count: int, error: ReplayError) -> None:
        self.stream.answer(InsertResponse(refused=[Refusal(seq, count, error.to_map())]))
        await settle()


@pytest.fixture
async def play():
    play = Play()
    yield play
    play.session.drop(Closed("end of test"))
    await settle()


async def test_nothing_is_opened_before_there_is_something_to_send(play: Play) -> None:
    await settle()
    assert not play.server.streams


async def test_what_is_queued_in_one_turn_goes_out_in_one_message_with_consecutive_numbers(play: Play) -> None:
    blocks = [play.submit(count) for count in (2, 3, 1)]
    await settle()
    play.stream.greet()
    await settle()
    assert len(play.stream.sent) == 2
    assert play.stream.sequences() == [(1, 2), (3, 3), (6, 1)]
    await play.ack(1, 6)
    assert [block.admitted for block in blocks] == [[0, 1], [0, 1, 2], [0]]


async def test_a_message_takes_no_more_blocks_once_it_is_large(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reverb_async.client.writing.insert_session.MAX_IN_FLIGHT", 1 << 30)
    for _ in range(3):
        play.submit(400_000)
    await settle()
    play.stream.greet()
    await settle()
    assert len(play.stream.sent) == 1 + 3


async def test_groups_and_layouts_are_declared_once_per_stream(play: Play) -> None:
    await play.start(1)
    play.submit(1)
    await settle()
    declared = [len(InsertRequestReader(message).groups()) for message in play.stream.sent]
    assert declared == [0, 1, 0]
    await play.lose()
    play.stream.greet()
    await settle()
    assert [len(InsertRequestReader(message).layouts()) for message in play.stream.sent] == [0, 1]


async def test_after_a_reconnect_only_what_was_not_applied_is_sent_again_under_its_numbers(play: Play) -> None:
    first = await play.start(4)
    second, third = play.submit(3), play.submit(2)
    await settle()
    await play.ack(1, 1)
    identity = play.stream.session
    await play.lose()
    assert play.stream.session == identity
    play.stream.greet(applied_through=2, applied=[(6, 1)])
    await settle()
    assert play.stream.sequences() == [(3, 2), (5, 1), (7, 1), (8, 2)]
    assert play.stream.items()[0].keys.tolist() == [[2, 3]]
    await play.ack(3, 3)
    await play.ack(7, 3)
    assert first.admitted == [0, 1, 2, 3]
    assert second.admitted == [0, 1, 2]
    assert third.admitted == [0, 1]


async def test_a_refusal_reaches_the_item_it_is_about(play: Play) -> None:
    rows = await play.start(3)
    await play.refuse(2, 1, SignatureMismatch("wrong"))
    await play.ack(1, 1)
    await play.ack(3, 1)
    assert rows.admitted == [0, 2]
    assert isinstance(rows.outcomes[1], SignatureMismatch)


async def test_a_refusal_told_again_in_the_greeting_counts_once(play: Play) -> None:
    rows = await play.start(2)
    await play.lose()
    play.stream.greet(applied_through=2, refused=[Refusal(2, 1, SignatureMismatch("wrong").to_map())])
    await settle()
    assert rows.admitted == [0]
    assert isinstance(rows.outcomes[1], SignatureMismatch)
    assert len(play.stream.sent) == 1


async def test_a_server_that_forgot_the_session_gets_another_one_with_numbers_from_1(play: Play) -> None:
    await play.start(5)
    await play.ack(1, 5)
    rows = play.submit(2)
    await settle()
    identity = play.stream.session
    await play.lose()
    play.stream.greet(applied_through=0)
    await settle()
    await play.server.opened(3)
    assert play.stream.session != identity
    play.stream.greet()
    await settle()
    assert play.stream.sequences() == [(1, 2)]
    await play.ack(1, 2)
    assert rows.admitted == [0, 1]


async def test_a_block_that_was_not_sent_is_withdrawn_at_once_and_takes_no_number(play: Play) -> None:
    gone, kept = play.submit(2), play.submit(1)
    play.session.withdraw(gone, RateLimiterTimeout("withdrawn"))
    assert len(gone.outcomes) == 2
    await settle()
    play.stream.greet()
    await settle()
    assert play.stream.sequences() == [(1, 1)]
    assert not kept.outcomes


async def test_a_block_that_was_sent_is_withdrawn_when_the_server_says_so(play: Play) -> None:
    rows = await play.start(4)
    play.session.withdraw(rows, RateLimiterTimeout("withdrawn"))
    await settle()
    assert InsertRequestReader(play.stream.sent[-1]).cancel() == [1]
    assert not rows.outcomes
    await play.ack(1, 1)
    await play.refuse(2, 3, RateLimiterTimeout("needs more samples"))
    assert rows.admitted == [0]
    assert len(rows.outcomes) == 4


async def test_blocks_wait_while_very_many_items_are_in_flight_and_those_can_be_withdrawn(play: Play) -> None:
    rows = await play.start(MAX_IN_FLIGHT - 1)
    over, held, kept = play.submit(2), play.submit(1), play.submit(3)
    await settle()
    assert play.stream.sequences() == [(1, MAX_IN_FLIGHT - 1), (MAX_IN_FLIGHT, 2)]
    play.session.withdraw(held, RateLimiterTimeout("withdrawn"))
    assert len(held.outcomes) == 1
    play.session.withdraw(over, RateLimiterTimeout("withdrawn"))
    await settle()
    assert InsertRequestReader(play.stream.sent[-1]).cancel() == [MAX_IN_FLIGHT]
    await play.ack(1, 2)
    assert play.stream.sequences()[2:] == [(MAX_IN_FLIGHT + 2, 3)]
    assert rows.admitted == [0, 1]
    assert not kept.outcomes


async def test_the_limit_on_items_in_flight_holds_across_reconnects(play: Play) -> None:
    await play.start(MAX_IN_FLIGHT)
    play.submit(1)
    await play.lose()
    play.stream.greet(applied_through=0)
    await settle()
    assert play.stream.sequences() == [(1, MAX_IN_FLIGHT)]
    await play.refuse(1, MAX_IN_FLIGHT, RateLimiterTimeout("no room"))
    assert play.stream.sequences()[1:] == [(MAX_IN_FLIGHT + 1, 1)]


async def test_what_a_refusal_separated_is_withdrawn_too(play: Play) -> None:
    rows = await play.start(4)
    play.session.withdraw(rows, RateLimiterTimeout("withdrawn"))
    await settle()
    await play.ack(1, 1)
    await play.refuse(2, 1, SignatureMismatch("wrong"))
    assert InsertRequestReader(play.stream.sent[-1]).cancel() == [3]


async def test_a_withdrawal_while_disconnected_leaves_no_gap_in_the_numbers(play: Play) -> None:
    gone = await play.start(2)
    kept = play.submit(1)
    await settle()
    play.server.refusals.extend([Unavailable("down")])
    play.stream.answer(Unavailable("cut"))
    await settle()
    play.session.withdraw(gone, RateLimiterTimeout("withdrawn"))
    assert len(gone.outcomes) == 2
    await play.server.opened(2)
    play.stream.greet(applied_through=0)
    await play.server.opened(3)
    play.stream.greet()
    await settle()
    assert play.stream.sequences() == [(1, 1)]
    await play.ack(1, 1)
    assert kept.admitted == [0]


async def test_a_withdrawal_while_blocks_are_sent_again_under_other_numbers_names_the_new_one(play: Play) -> None:
    class Long(Rows):
        def write(self, out: Outgoing, seq: int, start: int, stop: int) -> None:
            super().write(out, seq, start, stop)
            if len(play.server.streams) == 3:
                play.session.withdraw(blocks[1], RateLimiterTimeout("withdrawn"))

    await play.start(2)
    await play.ack(1, 2)
    blocks = [Long(1, play.layout), *(Rows(1, play.layout) for _ in range(3))]
    for block in blocks:
        play.session.submit(block)
    await settle()
    assert play.stream.sequences()[1:] == [(3, 1), (4, 1), (5, 1), (6, 1)]
    await play.lose()
    play.stream.greet(applied_through=0)  # The server forgot the session.
    await play.server.opened(3)
    play.stream.greet()
    await settle()
    assert play.stream.sequences() == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert {seq for message in play.stream.sent for seq in InsertRequestReader(message).cancel()} == {2}


async def test_an_error_of_the_stream_is_permanent(play: Play) -> None:
    sent = await play.start(1)
    play.stream.answer(InvalidArgument("you lie"))
    await settle()
    assert isinstance(sent.outcomes[0], InvalidArgument)
    assert isinstance(play.owner.failures[0], InvalidArgument)
    with pytest.raises(InvalidArgument, match="you lie"):
        play.submit(1)
    assert play.stream.is_aborted


async def test_while_nothing_answers_blocks_stay_queued_and_the_owner_knows(play: Play) -> None:
    play.server.refusals.append(Unavailable("nobody there"))
    rows = play.submit(1)
    await settle()
    assert [str(error) for error in play.owner.interruptions] == ["nobody there"]
    assert not rows.outcomes
    play.stream.greet()
    await settle()
    await play.ack(1, 1)
    assert rows.admitted == [0]


async def test_a_closed_table_interrupts_without_waiting_for_a_reconnect(play: Play) -> None:
    rows = await play.start(1)
    play.stream.answer(TableClosed("stopping"))
    await settle()
    assert isinstance(play.owner.interruptions[0], TableClosed)
    assert not rows.outcomes


async def test_a_lost_stream_with_nothing_to_resend_is_not_reopened(play: Play) -> None:
    await play.start(1)
    await play.ack(1, 1)
    play.stream.answer(Unavailable("cut"))
    await asyncio.sleep(0.1)
    assert len(play.server.streams) == 1
    play.submit(1)
    await settle()
    assert len(play.server.streams) == 2


async def test_a_long_wait_of_the_server_is_logged(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    await play.start(1)
    with caplog.at_level(logging.WARNING):
        play.stream.answer(InsertResponse(waiting="table 't' needs 3 more samples"))
        await settle()
    assert "played:1" in caplog.text
    assert "needs 3 more samples" in caplog.text


async def test_close_ends_the_stream_in_order(play: Play) -> None:
    await play.start(1)
    await play.ack(1, 1)
    await play.session.close()
    assert play.stream.is_ended
    await play.session.close()
    with pytest.raises(Closed):
        play.submit(1)


async def test_close_does_not_wait_long_for_a_server_that_is_silent(play: Play) -> None:
    rows = await play.start(1)
    async with asyncio.timeout(3):
        await play.session.close()
    assert isinstance(rows.outcomes[0], Closed)
    assert play.stream.is_aborted


async def test_drop_settles_everything_and_aborts_the_stream(play: Play) -> None:
    sent, queued = await play.start(2), play.submit(1)
    play.session.drop(Closed("enough"))
    assert len(sent.outcomes) == 2
    assert len(queued.outcomes) == 1
    await settle()
    assert play.stream.is_aborted


async def test_a_stream_that_declared_very_much_makes_way_for_another(play: Play) -> None:
    await play.start(1)
    for number in range(1, _MAX_DECLARED + 1):
        play.session.submit(Rows(1, make_layout(number)))
    await settle()
    waiting = play.submit(1)
    await settle()
    first = play.stream
    assert not first.is_ended
    await play.ack(1, _MAX_DECLARED + 1)
    assert first.is_ended
    await play.server.opened(2)
    play.stream.greet(applied_through=_MAX_DECLARED + 1)
    await settle()
    assert play.stream.sequences() == [(_MAX_DECLARED + 2, 1)]
    assert not waiting.outcomes


async def test_a_stream_that_breaks_while_sending_tells_the_reason_the_receiver_learns(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    await play.start(1)

    async def send(message: object) -> None:
        raise Unavailable("the stream has ended")

    monkeypatch.setattr(play.stream, "send", send)
    play.submit(1)
    await settle()
    play.stream.answer(InvalidArgument("the reason"))
    await settle()
    assert isinstance(play.owner.failures[0], InvalidArgument)


def take_at_once(stream):
    """Let a stream take messages without waiting."""

    def try_send(message):
        stream.sent.append(message)
        return True

    stream.try_send = try_send


async def test_what_is_queued_in_one_turn_goes_out_at_once_in_one_message(play: Play) -> None:
    await play.start(1)
    take_at_once(play.stream)
    play.submit(2)
    play.submit(3)
    assert play.stream.sequences() == [(1, 1)]
    await asyncio.sleep(0)
    assert play.stream.sequences() == [(1, 1), (2, 2), (4, 3)]
    number = len(play.stream.sent)
    play.submit(4)
    play.session.speak_now()
    assert play.stream.sequences()[3:] == [(7, 4)]
    play.session.speak_now()
    await settle()
    assert len(play.stream.sent) == number + 1


async def test_blocks_that_cannot_go_out_at_once_are_sent_in_order(play: Play) -> None:
    await play.start(1)
    for _ in range(2):
        play.submit(2)
        play.session.speak_now()  # It is refused, and handed to the task.
        play.submit(3)
        await settle()
    assert play.stream.sequences() == [(1, 1), (2, 2), (4, 3), (7, 2), (9, 3)]


async def test_a_message_that_cannot_be_encoded_ends_the_session(play: Play) -> None:
    await play.start(1)

    def try_send(message):
        raise InvalidArgument("too many buffers")

    play.stream.try_send = try_send  # type: ignore[method-assign]
    rows = play.submit(1)
    await settle()
    assert isinstance(play.session.error, InvalidArgument)
    assert isinstance(rows.outcomes[0], InvalidArgument)


async def test_what_a_new_process_does_not_know_of_confirmed_items_is_told_and_the_rest_sent_again(play: Play) -> None:
    rows = play.submit(10)
    await settle()
    play.stream.greet(epoch=b"1" * 16)
    await play.ack(1, 3)
    await play.refuse(4, 1, InvalidArgument("no"))
    await play.ack(6, 3)  # 5, 9 and 10 are not confirmed
    await play.lose()
    play.stream.greet(applied_through=2, epoch=b"2" * 16)  # restored from a checkpoint
    await settle()
    assert play.server.events == [ItemsLost("the test", 4)]  # 4 was refused, not lost
    await play.server.opened(3)
    play.stream.greet(epoch=b"2" * 16)
    await settle()
    assert [count for _, count in play.stream.sequences()] == [1, 2]
    await play.ack(1, 3)
    assert rows.admitted == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    play.submit(1)
    await play.lose()
    play.stream.greet(epoch=b"3" * 16)
    await play.server.opened(5)
    assert play.server.events[1:] == [ItemsLost("the test", 3)]


@pytest.mark.parametrize(("epoch", "applied"), [(b"1" * 16, 0), (b"2" * 16, 4), (b"2" * 16, 3), (None, 4)])
async def test_nothing_is_told_as_lost_that_the_server_has_or_has_forgotten_for_its_age(
    play: Play, epoch: bytes | None, applied: int
) -> None:
    play.submit(4)
    await settle()
    play.stream.greet(epoch=b"1" * 16)
    await play.ack(1, 3)
    await play.lose()
    play.stream.greet(applied_through=applied, epoch=epoch)
    await settle()
    assert not play.server.events


async def test_a_long_wait_is_told(play: Play) -> None:
    await play.start(1)
    play.stream.answer(InsertResponse(waiting="the queue is full"))
    await settle()
    assert play.server.events == [Blocked("the test", "the queue is full")]
