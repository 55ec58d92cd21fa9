"""What a log costs, measured."""

from __future__ import annotations

from benchmarks.subject import Options
from benchmarks.subjects.durability import SUBJECTS, measure_cost


def test_servers_with_and_without_a_log_take_turns() -> None:
    (subject,) = SUBJECTS
    results = list(measure_cost(subject, Options(rounds=1, seconds=0.05)))
    assert [result.subject for result in results] == ["wal-cost", "wal-fsync-cost"]
    assert all(result.median > 0 for result in results)
    assert {"memory_items_per_s", "wal_items_per_s", "wal_fsync_items_per_s"} <= results[0].details.keys()
