from __future__ import annotations

from reverb_async.compat.episodes import MAX_REMEMBERED, EpisodeBook


def test_the_episodes_of_a_stream_are_numbered_one_after_the_other() -> None:
    numbers = EpisodeBook().stream()
    first = numbers.number(2**64 - 1)
    assert [numbers.number(each) for each in (5, 5, 0, 2**64 - 1, 9)] == [first + at for at in (1, 1, 2, 0, 3)]


def test_an_episode_keeps_its_number_on_another_stream() -> None:
    book = EpisodeBook()
    one, other = book.stream(), book.stream()
    number = one.number(7)
    assert other.number(7) == number


def test_streams_never_share_a_number() -> None:
    book = EpisodeBook()
    streams = [book.stream() for _ in range(10)]
    numbers = [stream.number(100 * at + each) for each in range(100) for at, stream in enumerate(streams)]
    assert len(set(numbers)) == 1000


def test_numbers_lie_beyond_those_of_native_sessions() -> None:
    assert EpisodeBook().stream().number(1) >= 1 << 62


def test_the_book_forgets_the_oldest() -> None:
    book = EpisodeBook()
    numbers = book.stream()
    first = numbers.number(0)
    for each in range(1, MAX_REMEMBERED + 1):
        numbers.number(each)
    assert book.get(0) is None
    assert numbers.number(0) > first
