"""Cuts against copies of everything visible at their barriers, over random histories."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from cut_rig import Disk
from world import World, visible

from reverb_async.core import rate_limiters, selectors, table_items
from reverb_async.table import Table

SELECTORS = [
    selectors.Uniform(),
    selectors.Prioritized(0.6),
    selectors.Fifo(),
    selectors.Lifo(),
    selectors.MinHeap(),
    selectors.MaxHeap(),
]
LIMITERS = [rate_limiters.MinSize(1), rate_limiters.SampleToInsertRatio(1.5, 2, 8.0), rate_limiters.Queue(6)]
CHANGES = {"insert": 30, "write": 10, "let_go": 5, "draw": 20, "reserve": 5, "settle": 10, "mutate": 15, "dismantle": 5}


class History:
    """Two tables, what happens to them, and the checkpoints made meanwhile; the seed decides it all."""

    def __init__(self, seed: int) -> None:
        self.random = choose = random.Random(seed)
        max_bytes = choose.choice([None, None, 200])
        self.definitions = [
            {
                "name": name,
                "max_size": choose.randint(2, 6),
                "sampler": choose.choice(SELECTORS),
                "remover": choose.choice(SELECTORS),
                "rate_limiter": choose.choice(LIMITERS),
                "max_times_sampled": choose.choice([0, 0, 1, 2]),
                "max_bytes": max_bytes,
                "seed": seed,
            }
            for name in "ab"
        ]
        self.world = self.fresh()
        self.disk = Disk(self.world.replay)
        self.twin: World | None = None
        self.twin_disk = self.disk

    def fresh(self) -> World:
        return World([Table(**definition) for definition in self.definitions])

    # -- what happens -------------------------------------------------------------------------------------------------

    def change(self) -> None:
        """Do something, and let the twin do the same: it must have the same outcome."""
        choose = self.random
        method, table = choose.choices(list(CHANGES), list(CHANGES.values()))[0], choose.randrange(2)
        args: dict[str, tuple[Any, ...]] = {
            "insert": (choose.choice([[0], [1], [0, 1], [0, 1]]), choose.randrange(3), self.items()),
            "write": (choose.randint(1, 8),),
            "let_go": (choose.randrange(20),),
            "draw": (table, choose.randint(1, 6)),
            "reserve": (table, choose.randint(1, 3)),
            "settle": (choose.randrange(20), choose.random() < 0.5),
            "mutate": (
                table,
                [(choose.randrange(12), choose.choice([0.0, 0.5, 1.0, 3.0])) for _ in range(choose.randint(1, 5))],
                [choose.randrange(12) for _ in range(choose.randrange(3))],
            ),
            "dismantle": (table, choose.random() < 0.25),
        }
        answer = getattr(self.world, method)(*args[method])
        if self.twin is not None:
            assert getattr(self.twin, method)(*args[method]) == answer

    def items(self) -> list[tuple[Any, ...]]:
        choose = self.random
        episodes = [None] + [(first, first + more) for first in range(4) for more in range(3)]
        return [
            (
                choose.randrange(12),
                choose.choice([0.0, 0.0, 0.5, 1.0, 1.0, 2.0, math.nan]),
                [(choose.randrange(24), choose.randint(1, 4)) for _ in range(choose.randint(1, 3))],
                choose.randrange(20),
                choose.choice(episodes),
            )
            for _ in range(choose.randint(1, 5))
        ]

    def save(self) -> None:
        """Things change between the slices of a cut, which is committed in the end or given up where it is."""
        choose = self.random
        expected = visible(self.world, settled=True)
        saving = self.disk.begin(full=choose.random() < 0.3, block=choose.randint(1, 4))
        for _ in range(choose.randrange(12)):
            for _ in range(choose.randrange(6)):
                saving.step()
            self.change()
        committed = choose.random() < 0.7
        saving.finish(committed)
        for store, rows in zip(self.world.stores, (self.world.steps, self.world.actions), strict=False):
            assert store.usage().pinned_rows == len(rows)
        if committed:
            self.check(self.disk, expected)
        if self.twin is not None:  # whose checkpoints build on what it was restored from
            self.twin_disk.save(block=choose.randint(1, 4))
            self.check(self.twin_disk, visible(self.twin, settled=True))

    def check(self, disk: Disk, expected: Any) -> None:
        restored = self.fresh()
        restored.replay.restore(disk.image)
        assert visible(restored, settled=False) == expected
        restored.empty()

    def save_and_follow(self) -> None:
        """From now on a second server, restored from what is saved here, does all that the first one does."""
        self.world.quiet()
        self.disk.save(block=4)
        self.twin = self.fresh()
        self.twin.replay.restore(self.disk.image)
        self.twin.now, self.twin.num_written = self.world.now, self.world.num_written
        self.twin_disk = Disk(self.twin.replay, self.disk)

    def run(self) -> None:
        for _ in range(12):
            step = self.random.choices(["go on", "save", "follow"], [45, 43, 12])[0]
            if step == "save":
                self.save()
            elif step == "follow":
                self.save_and_follow()
            else:
                for _ in range(self.random.randint(1, 12)):
                    self.change()
        self.world.quiet()
        self.world.empty()


@pytest.fixture(autouse=True)
def few_spare_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of six items need no room for 65536 more, which takes longer to reserve than all else here."""
    monkeypatch.setattr(table_items, "_SPARE_SLOTS", 64)


@pytest.mark.parametrize("seed", range(24))
def test_what_is_saved_equals_what_was_there_and_who_restores_it_goes_on_alike(seed: int) -> None:
    History(seed).run()


@pytest.mark.soak
@pytest.mark.parametrize("part", range(1, 17))
def test_what_is_saved_equals_what_was_there_in_many_histories(part: int) -> None:
    for seed in range(50 * part, 50 * part + 50):
        try:
            History(seed).run()
        except Exception as error:
            error.add_note(f"in the history of seed {seed}")
            raise
