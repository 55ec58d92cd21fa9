from __future__ import annotations

from cut_rig import Disk
from helpers import Items, keys_of

from reverb_async.replay import Replay
from reverb_async.table import Table


def test_a_full_cut_of_one_table_restores() -> None:
    replay = Replay([Table("a", max_size=10, seed=1)])
    items = Items(replay.storage)
    state = replay.tables["a"].state
    items.put(state, range(5))
    disk = Disk(replay)
    disk.save()
    again = Replay([Table("a", max_size=10, seed=1)])
    again.restore(disk.image)
    assert keys_of(again.tables["a"].state) == [0, 1, 2, 3, 4]
