"""Workers and rounds: with small programs instead of clients."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.harness import _telling, play_rounds
from benchmarks.processes import Contestant, Worker, WorkerError
from benchmarks.subject import ITEMS, Options

COUNTING = """
from benchmarks.rounds import work_in_rounds
work_in_rounds(lambda seconds: (int(seconds * 1000), 7, [1.0, 2.0]), {"setting": {"threads": 2}})
"""
FAILING = (
    "import sys; print('{}', flush=True); sys.stdin.readline(); print('out of luck', file=sys.stderr); sys.exit(3)"
)


def worker(code: str, **options: bool) -> Worker:
    return Worker([sys.executable, "-c", code], **options)


def test_a_contestant_adds_up_what_its_counted_workers_did():
    with Contestant("ours", ITEMS) as contestant:
        contestant.add(worker(COUNTING))
        contestant.add(worker(COUNTING))
        contestant.add(worker(COUNTING, counted=False))
        assert contestant.workers[0].ready["setting"] == {"threads": 2}
        first = contestant.play(0.005)
        second = contestant.play(0.010)
    assert (first.items, second.items) == (10, 20)
    assert first.latencies_us == [1.0, 2.0, 1.0, 2.0]
    assert first.value > 0
    assert first.details["others_items_per_s"] > 0
    assert first.server_cpu is None


def test_a_worker_that_ends_fails_the_round_with_its_last_words():
    with Contestant("ours", ITEMS) as contestant:
        contestant.add(worker(FAILING, is_talkative=True))
        with pytest.raises(WorkerError, match=r"exit status 3(.|\n)*out of luck"):
            contestant.play(0.01)


def test_a_worker_that_ends_while_it_prepares_is_an_error():
    with Contestant("ours", ITEMS) as contestant, pytest.raises(WorkerError, match="exit status 4"):
        contestant.add(worker("raise SystemExit(4)"))


def test_a_worker_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(processes, "PREPARE_S", 0.05)
    monkeypatch.setattr(processes, "_LEAVE_S", 0.05)
    with Contestant("ours", ITEMS) as contestant, pytest.raises(WorkerError, match="said nothing"):
        contestant.add(worker("import time; time.sleep(100)"))


def test_all_processes_are_gone_afterwards():
    with Contestant("ours", ITEMS) as contestant:
        pid = contestant.add(worker(COUNTING)).pid
        assert Path(f"/proc/{pid}").exists() or sys.platform != "linux"
    assert not Path(f"/proc/{pid}").exists()


def test_contestants_take_turns_after_a_warm_up():
    turns: list[tuple[str, float]] = []

    class Player(Contestant):
        def play(self, seconds):
            turns.append((self.name, seconds))
            return len(turns)

    rounds = play_rounds([Player("a", ITEMS), Player("b", ITEMS)], Options(rounds=2, seconds=2.0))
    assert [name for name, _ in turns] == ["a", "b", "a", "b", "a", "b"]
    assert [seconds for _, seconds in turns] == [1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    assert rounds == [[3, 5], [4, 6]]


def test_a_recorded_command_names_no_path_of_this_machine():
    told = _telling(["peers", "writer", "--dm-reverb-python", "/a/python", "--json=/b", "--plots", "/c", "--markdown"])
    assert told == ["peers", "writer", "--dm-reverb-python", "PATH"]
