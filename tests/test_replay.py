from __future__ import annotations

import pytest
from helpers import settle

from reverb_async.errors import InvalidArgument, TableClosed, TableNotFound
from reverb_async.protocol.hello import KEYS_PER_BLOCK
from reverb_async.replay import Replay
from reverb_async.table import Table


def test_tables_are_found_by_name() -> None:
    one, two = Table("one", max_size=1), Table("two", max_size=1)
    replay = Replay([one, two])
    assert replay.table("one") is one
    assert list(replay.tables) == ["one", "two"]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    replay = Replay([Table("one", max_size=1), Table("two", max_size=1)])
    with pytest.raises(TableNotFound, match="no table named 'three'; this server has: 'one', 'two'"):
        replay.table("three")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ([], "at least one table"),
        ([Table("a", max_size=1), Table("a", max_size=2)], "two tables are named 'a'"),
        (["replay"], "must be reverb_async.Table objects, got 'replay'"),
    ],
)
def test_what_is_no_set_of_tables_is_refused(tables: list[Table], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        Replay(tables)


def test_no_key_is_granted_twice_and_all_are_below_2_to_the_63() -> None:
    replay = Replay([Table("a", max_size=1)])
    replay._next_block = (1 << 32) - 2
    firsts = [replay.grant_keys() for _ in range(5)]
    assert len({first // KEYS_PER_BLOCK for first in firsts}) == 5
    assert all(first % KEYS_PER_BLOCK == 0 and 0 <= first <= 2**63 - KEYS_PER_BLOCK for first in firsts)


def test_every_start_has_an_epoch_of_its_own() -> None:
    assert Replay([Table("a", max_size=1)]).epoch != Replay([Table("a", max_size=1)]).epoch


def test_tables_know_how_many_writers_there_are() -> None:
    replay = Replay([Table("a", max_size=1), Table("b", max_size=1)])
    replay.count_writers(1)
    replay.count_writers(1)
    replay.count_writers(-1)
    assert [table.num_writers for table in replay.tables.values()] == [1, 1]


async def test_closing_closes_every_table() -> None:
    replay = Replay([Table("a", max_size=1), Table("b", max_size=1)])
    replay.close()
    await settle()
    for table in replay.tables.values():
        with pytest.raises(TableClosed):
            table.raise_if_closed()
