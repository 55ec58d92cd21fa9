"""The subjects about checkpoints, with few items; times are not judged here."""

from __future__ import annotations

from benchmarks.subjects import checkpoints


async def test_times_of_writing_and_restoring(tmp_path):
    written, restored = await checkpoints.write_and_restore(tmp_path, 500)
    assert written > 0
    assert restored > 0


async def test_bytes_of_a_second_checkpoint(tmp_path):
    share = await checkpoints.share_of_bytes(tmp_path, 20_000)
    assert 0 < share <= 0.05


async def test_pauses_beside_other_work(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "WARM_UP_S", 0.05)
    longest, details = await checkpoints.longest_pause(tmp_path, 2_000)
    assert longest > 0
    assert details["bytes"] > 0
