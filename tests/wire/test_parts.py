"""Long messages in parts."""

from __future__ import annotations

import contextlib
import copy
import itertools
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reverb_async.core.buffer_pool import BufferPool
from reverb_async.errors import InvalidArgument, ResourceExhausted
from reverb_async.protocol.message import Message
from reverb_async.wire.codec import decode, encode
from reverb_async.wire.parts import Assembler, split

sizes = st.lists(st.integers(0, 40), max_size=8)


def message_of(sizes: list[int]) -> Message:
    numbers = itertools.count()
    return Message({"table": "t"}, [np.array([next(numbers) % 251 for _ in range(n)], np.uint8) for n in sizes])


def over_the_wire(part: Message) -> Message:
    return decode(encode(part).join())


@given(sizes, st.integers(1, 50))
def test_what_is_split_is_put_together(sizes, limit):
    message = message_of(sizes)
    parts = list(split(message, limit))
    assert all(part.nbytes <= limit for part in parts)
    assembler = Assembler()
    *before, whole = [assembler.feed(over_the_wire(part)) for part in parts]
    assert before == [None] * (len(parts) - 1)
    assert whole.header == message.header
    assert [buffer.tobytes() for buffer in whole.buffers] == [buffer.tobytes() for buffer in message.buffers]


def test_short_messages_pass_untouched():
    message = message_of([10, 20])
    assert [id(part) for part in split(message, 30)] == [id(message)]
    assert Assembler(max_unit_bytes=1).feed(message) is message


def test_parts_view_the_memory_of_the_message():
    message = Message({}, [np.zeros((100, 10), np.float32)])
    for part in split(message, 1000):
        assert all(np.shares_memory(buffer, message.buffers[0]) for buffer in part.buffers)


def test_assembled_buffers_are_aligned_and_writable():
    assembler = Assembler()
    *_, whole = [assembler.feed(part) for part in split(message_of([100, 0, 33]), 10)]
    for buffer in whole.buffers:
        assert buffer.flags.writeable
        assert not buffer.nbytes or buffer.ctypes.data % 64 == 0


def test_one_stream_carries_several_long_messages():
    assembler = Assembler()
    for sizes in ([30, 40], [7], [50]):
        wholes = [assembler.feed(part) for part in split(message_of(sizes), 8)]
        assert [buffer.nbytes for buffer in wholes[-1].buffers] == sizes


def test_a_message_above_the_limit_is_refused_at_its_first_part():
    first = next(split(message_of([40, 40]), 10))
    with pytest.raises(ResourceExhausted, match="80 bytes exceeds the limit of 79"):
        Assembler(max_unit_bytes=79).feed(first)


def lie(number: int, **changes: object) -> list[Message]:
    parts = [copy.deepcopy(part) for part in split(message_of([25, 0, 15]), 10)]
    parts[number].header.update(changes)
    return parts


def test_liars_are_refused():
    good = list(split(message_of([25, 0, 15]), 10))
    histories = {
        "a part is missing": [good[0], good[2]],
        "a part comes twice": [good[0], good[0]],
        "it begins in the middle": good[1:],
        "another message in between": [good[0], Message({"a": 1})],
        "the last part comes too early": lie(0, parts=2)[:1] + lie(1, parts=2)[1:2],
        "the number of parts changes": lie(1, parts=9),
        "more parts than bytes": [
            *(lie(number, parts=5)[number] for number in range(4)),
            Message({"part": 4, "parts": 5, "pieces": [[2, 15, 0]]}, [np.empty(0, np.uint8)]),
        ],
        "no part number": lie(0, part=None),
        "a negative part number": lie(0, part=-1),
        "a part number that is a bool": lie(0, part=False),
        "no parts": lie(0, parts=0),
        "no sizes": lie(0, sizes=None),
        "a negative size": lie(0, sizes=[25, -1, 16]),
        "a size that is no number": lie(0, sizes=[25, "0", 15]),
        "too many sizes": lie(0, sizes=[0] * 70_000),
        "no header": lie(0, header=None),
        "a header with other keys than strings": lie(0, header={1: 2}),
        "no pieces": lie(1, pieces=None),
        "fewer pieces than buffers": lie(1, pieces=[]),
        "a gap": lie(1, pieces=[[0, 11, 10]]),
        "an overlap": lie(1, pieces=[[0, 9, 10]]),
        "another buffer": lie(1, pieces=[[2, 0, 10]]),
        "a wrong length": lie(1, pieces=[[0, 10, 9]]),
        "a piece that is no list": lie(1, pieces=[7]),
        "a piece beyond its buffer": lie(0, sizes=[5, 0, 35]),
    }
    for what, parts in histories.items():
        assembler = Assembler()
        with pytest.raises(InvalidArgument):  # noqa: PT012
            for part in parts:
                assert assembler.feed(part) is None, what
            pytest.fail(what)


values = (
    st.none()
    | st.integers(-3, 40)
    | st.lists(st.lists(st.integers(-3, 40), max_size=4), max_size=4)
    | st.text(max_size=2)
)


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(["part", "parts", "pieces", "sizes", "header"]), values),
            st.lists(st.integers(0, 40), max_size=3),
        ),
        max_size=4,
    )
)
def test_random_parts_never_raise_anything_but_replay_errors(parts):
    assembler = Assembler(max_unit_bytes=1000)
    with contextlib.suppress(InvalidArgument, ResourceExhausted):
        for header, sizes in parts:
            assembler.feed(Message(header, message_of(sizes).buffers))


def test_a_message_that_is_forgotten_midway_leaves_nothing_behind():
    assembler = Assembler()
    first, *_ = split(message_of([100]), 10)
    assert assembler.feed(first) is None
    memory = weakref.ref(assembler._unit._buffers[0])
    assembler.clear()
    assert memory() is None
    short = message_of([5])
    assert assembler.feed(short) is short, "no part is missing any more"


def test_the_memory_of_a_message_is_used_again_once_nobody_has_it():
    assembler = Assembler(pool=BufferPool())

    def whole():
        *_, made = [assembler.feed(part) for part in split(Message({}, [np.zeros(1 << 20, np.uint8)]), 300_000)]
        return made.buffers[0]

    kept = whole()
    again = {whole().ctypes.data for _ in range(5)}
    assert len(again) == 1
    assert kept.ctypes.data not in again
