"""What is restored from a checkpoint and the log behind it, against copies of everything visible at each frame."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_cut_histories import History, few_spare_slots  # noqa: F401
from world import World, visible

from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.loading import read_checkpoint, with_log
from reverb_async.checkpoint.log_file import NOWHERE
from reverb_async.checkpoint.saving import Saver
from reverb_async.checkpoint.write_ahead import WriteAheadLog


class LoggedHistory(History):
    """A history that is logged, with checkpoints of which some are never finished."""

    def __init__(self, seed: int, path: Path) -> None:
        super().__init__(seed)
        self.directory = Directory(path)
        for each in (path, self.directory.segments, self.directory.log):
            each.mkdir(exist_ok=True)
        self.log = _Log(self)
        self.expected: dict[str, Any] = {}
        self.num_compared = 0

    def flush(self) -> None:
        """End a turn of the loop: what has changed by now makes a frame."""
        self.log._write()
        self.log._check()

    def copy(self) -> None:
        """Take down what whoever is started now must find."""
        self.expected = _promised(self.world, visible(self.world, settled=True))

    def recover(self) -> None:
        """Have another server start from what is on disk: from each checkpoint, as if later ones were damaged."""
        for sequence in self.directory.sequences():
            restored = self.fresh()
            logged, log = with_log(self.directory, read_checkpoint(self.directory, sequence), "fail")
            restored.replay.restore(logged)
            assert _promised(restored, visible(restored, settled=False)) == self.expected
            restored.empty()
            assert log.end == self.log._file.position
            self.num_compared += 1

    async def go(self) -> None:
        with ThreadPoolExecutor(1) as thread:
            self.log.begin(self.log.prepare(), NOWHERE)
            saver = Saver(self.world.replay, self.directory, thread, self.log)
            await saver.save(lambda: None)
            self.copy()
            for _ in range(8):
                saving = asyncio.create_task(saver.save(self.flush)) if self.random.random() < 0.4 else None
                for _ in range(self.random.randint(1, 6)):
                    for _ in range(self.random.randint(1, 4)):
                        self.change()
                    await asyncio.sleep(0)
                    self.flush()
                if saving is not None and self.random.random() < 0.3:
                    saving.cancel()
                if saving is not None:
                    await asyncio.wait({saving})
                self.directory.prune(2)
                self.flush()
                self.recover()
            await self.log.close()


class _Log(WriteAheadLog):
    def __init__(self, history: LoggedHistory) -> None:
        super().__init__(history.world.replay, history.directory, sync=False)
        self._history = history

    def _write(self) -> None:
        if self._capture:
            self._history.copy()
        super()._write()


def _promised(world: World, seen: dict[str, Any]) -> dict[str, Any]:
    """Leave out what nobody is promised: generators' states, chunks of no item, and draws that remove nothing."""
    del seen["encoded"]
    for name, table in world.replay.tables.items():
        del seen[name]["rng"]
        if table.state.max_times_sampled == 0:
            seen[name]["items"] = {key: (item[0], *item[2:]) for key, item in seen[name]["items"].items()}
            seen[name]["limiter"] = seen[name]["limiter"][0], seen[name]["limiter"][2]
            seen[name]["counts"] = seen[name]["counts"][0], seen[name]["counts"][2]
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_what_was_logged_is_restored(seed: int, tmp_path: Path) -> None:
    history = LoggedHistory(seed, tmp_path)
    asyncio.run(history.go())
    assert history.num_compared >= 8


@pytest.mark.soak
@pytest.mark.parametrize("hundred", range(1, 9))
def test_what_was_logged_is_restored_in_many_histories(hundred: int, tmp_path: Path) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        try:
            asyncio.run(LoggedHistory(seed, tmp_path / str(seed)).go())
        except Exception as error:
            error.add_note(f"in the history of seed {seed}")
            raise
