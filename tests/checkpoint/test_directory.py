from __future__ import annotations

import logging
import os
import shutil

import numpy as np
import pytest
from checkpoint_rig import FailingDisk, contents, directory_at, write_checkpoint

from reverb_async.checkpoint.damage import Damage
from reverb_async.checkpoint.directory import Directory
from reverb_async.checkpoint.loading import newest_whole, read_checkpoint
from reverb_async.checkpoint.records import RecordReader
from reverb_async.errors import CheckpointError


def saved(path, directory=None):
    """Write a checkpoint and one on top of it; return both and what they hold."""
    directory = directory or directory_at(path)
    first = write_checkpoint(directory, 1)
    second = write_checkpoint(directory, 2, last=first)
    return directory, first, second


def newest(path):
    image = newest_whole(directory_at(path), "previous")
    return None if image is None else (image.manifest.sequence, contents(image))


def files_of(path):
    return {entry.relative_to(path): entry.read_bytes() for entry in sorted(path.rglob("*")) if entry.is_file()}


def test_a_checkpoint_holds_what_was_written_and_what_it_shares(tmp_path):
    directory, first, second = saved(tmp_path)
    assert directory.sequences() == [2, 1]
    state, table, slots, rows = contents(read_checkpoint(directory, 2))
    _, _, before, rows_before = contents(read_checkpoint(directory, 1))
    assert state == {"seed": 2}
    assert table == {"big": 2**100, "seed": 2}
    for at in range(40):
        assert (slots[at] == before[at]) == (at % 7 != 0)
        assert (rows[at] == rows_before[at]) == (at % 7 != 0)
    assert set(first.files) & set(second.files)


def test_after_any_failed_call_nothing_is_left_and_the_old_checkpoint_is_as_it_was(tmp_path):
    directory_at(tmp_path / "before")
    first = write_checkpoint(Directory(tmp_path / "before"), 1)
    before = files_of(tmp_path / "before")
    for at in range(1, 1000):
        path = tmp_path / f"fail{at}"
        shutil.copytree(tmp_path / "before", path)
        disk = FailingDisk(at)
        try:
            write_checkpoint(Directory(path, disk), 2, last=first)
        except OSError:
            assert files_of(path) == before
            shutil.rmtree(path)
        else:
            break
    assert at > 20


def test_every_changed_byte_is_found_and_the_previous_checkpoint_is_used(tmp_path, caplog):
    directory, first, second = saved(tmp_path / "c")
    rng = np.random.default_rng(0)
    old = contents(read_checkpoint(directory, 1))
    own = [directory.manifest_path(2)] + [directory.segment_path(n) for n in second.files if n not in first.files]
    assert len(own) >= 3
    for path in own:
        whole = path.read_bytes()
        for place in [0, len(whole) - 1, *rng.integers(0, len(whole), 200).tolist()]:
            changed = bytearray(whole)
            changed[place] ^= int(rng.integers(1, 256))
            path.write_bytes(changed)
            with pytest.raises(Damage) as caught:
                read_checkpoint(directory, 2)
            assert str(path) in str(caught.value)
            assert caught.value.expected != caught.value.found
            assert 0 <= caught.value.offset <= place
        caplog.clear()
        image = newest_whole(directory_at(tmp_path / "c"), "previous")
        assert image is not None
        assert contents(image) == old
        assert any(str(path) in record.getMessage() and "at byte" in record.getMessage() for record in caplog.records)
        path = path if path.exists() else tmp_path / "c" / f"ckpt-{2:020d}.corrupt" / "MANIFEST"
        path.write_bytes(whole)
        aside = tmp_path / "c" / f"ckpt-{2:020d}.corrupt"
        if aside.exists():
            os.rename(aside, directory.checkpoint_path(2))


def test_every_truncation_at_the_end_of_a_record_is_found(tmp_path):
    directory, _, second = saved(tmp_path)
    for number in second.files:
        path = directory.segment_path(number)
        whole = path.read_bytes()
        what = "rows" if second.files[number].rows else "items"
        boundaries = [0, *(record.offset for record in RecordReader(path, what))]
        for boundary in [
            *boundaries,
            *(at + 1 for at in boundaries),
            *(at - 1 for at in boundaries[1:]),
            len(whole) - 1,
        ]:
            path.write_bytes(whole[:boundary])
            with pytest.raises(Damage, match=path.name):
                read_checkpoint(directory, 2)
        path.write_bytes(whole + b"\0")
        with pytest.raises(Damage, match=path.name):
            read_checkpoint(directory, 2)
        path.unlink()
        with pytest.raises(Damage, match=path.name):
            read_checkpoint(directory, 2)
        path.write_bytes(whole)
    read_checkpoint(directory, 2)


def test_a_file_in_another_ones_place_is_found(tmp_path):
    directory, _, second = saved(tmp_path)
    rows = [number for number, facts in second.files.items() if facts.rows]
    shutil.copy(directory.segment_path(rows[0]), directory.segment_path(rows[1]))
    with pytest.raises(Damage):
        read_checkpoint(directory, 2)


def test_on_corrupt_fail_refuses_and_touches_nothing(tmp_path):
    directory, _, _ = saved(tmp_path)
    directory.manifest_path(2).write_bytes(b"")
    before = files_of(tmp_path)
    with pytest.raises(CheckpointError, match="is damaged"):
        newest_whole(directory_at(tmp_path), "fail")
    assert files_of(tmp_path) == before


def test_without_a_whole_checkpoint_nothing_starts_empty_in_silence(tmp_path):
    directory, first, _ = saved(tmp_path)
    shared = next(iter(first.files))
    directory.segment_path(shared).unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints .* move the directory away"):
            newest_whole(directory_at(tmp_path), "previous")


def test_a_checkpoint_that_lost_its_manifest_is_told_and_the_last_one_not_forgotten(tmp_path, caplog):
    directory, first, second = saved(tmp_path)
    directory.manifest_path(2).unlink()
    assert newest_whole(directory_at(tmp_path), "previous").manifest == first
    assert f"{directory.checkpoint_path(2)} is left alone: it has no manifest" in caplog.text
    assert directory.next_sequence() == 3
    directory.manifest_path(1).unlink()
    before = files_of(tmp_path)
    with pytest.raises(CheckpointError, match=f"ckpt-{2:020d} has no manifest, .* put it back"):
        newest_whole(directory_at(tmp_path), "previous")
    assert files_of(tmp_path) == before
    for number in {*first.files, *second.files}:
        directory.segment_path(number).unlink()
    assert newest_whole(directory_at(tmp_path), "previous") is None, "what is not ours stops nobody"


def test_a_later_format_is_no_damage(tmp_path):
    directory, _, _ = saved(tmp_path)
    path = directory.manifest_path(2)
    from reverb_async.checkpoint import manifest

    text = path.read_bytes().replace(b'"format": 1', b'"format": 2')
    at = text.index(b'"digest": "') + len(b'"digest": "')
    text = text[:at] + b"0" * 16 + text[at + 16 :]
    path.write_bytes(text[:at] + manifest._digest(text) + text[at + 16 :])
    with pytest.raises(CheckpointError, match="format 2") as caught:
        newest_whole(directory_at(tmp_path), "previous")
    assert not isinstance(caught.value, Damage)
    assert directory.sequences() == [2, 1]


def test_the_oldest_go_and_what_only_they_need(tmp_path):
    directory = directory_at(tmp_path)
    last = None
    manifests = {}
    for seed in range(6):
        last = write_checkpoint(directory, seed, last=last if seed % 3 else None)
        manifests[last.sequence] = last
        directory.prune(2)
        kept = directory.sequences()
        assert kept == [seed + 1, seed][: seed + 1]
        needed = {directory.segment_path(number).name for s in kept for number in manifests[s].files}
        assert {path.name for path in directory.segments.iterdir()} == needed
        for sequence in kept:
            read_checkpoint(directory, sequence)


def test_checkpoints_that_were_not_read_do_not_count_as_kept(tmp_path):
    for seed in range(3):
        write_checkpoint(directory_at(tmp_path), seed)
    later = directory_at(tmp_path)
    write_checkpoint(later, 3)
    later.prune(2)
    assert later.sequences() == [4, 3, 2, 1]
    write_checkpoint(later, 4)
    later.prune(2)
    assert later.sequences() == [5, 4]


def test_what_others_put_there_is_never_touched(tmp_path, caplog):
    path = tmp_path / "c"
    directory = directory_at(path)
    first = write_checkpoint(directory, 0)
    strange = {
        "zzz.txt": b"mine",
        "ckpt-1": b"a file",
        f"ckpt-{7:020d}": b"a file, too",
        f"ckpt-{10**19:020d}/notes.txt": b"from 2099",
        f"ckpt-{3:020d}/deep/er/notes.txt": b"no manifest",
        f"ckpt-{9:020d}/MANIFEST": b"my own manifest",
        "checkpoints/ckpt-00000000000000000001/MANIFEST": b"x",
        f"segments/seg-{12:020d}": b"not a segment",
        f"segments/seg-{99:020d}": b"nor this",
        "segments/notes.txt": b"notes",
        f"segments/seg-{5:020d}.bak/x": b"y",
        "tmp-mine": b"z",
    }
    for name, text in strange.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(text)
    directory = Directory(path)
    directory.prepare()
    with caplog.at_level(logging.ERROR):
        assert newest_whole(directory, "previous").manifest == first
    last = first
    for seed in range(6):
        last = write_checkpoint(directory, seed, last=last if seed % 2 else None)
        directory.prune(2)
    assert newest_whole(directory, "previous").manifest == last
    for name, text in strange.items():
        assert (path / name).read_bytes() == text
    directory.release()


def test_a_name_from_the_future_does_not_stop_new_checkpoints(tmp_path):
    directory = directory_at(tmp_path)
    write_checkpoint(directory, 0)
    (tmp_path / f"ckpt-{10**20 - 1:020d}").mkdir()
    second = write_checkpoint(directory, 1)
    assert second.sequence == 2
    directory.prune(2)
    assert (tmp_path / f"ckpt-{10**20 - 1:020d}").is_dir()


def test_the_order_does_not_depend_on_clocks(tmp_path):
    directory = directory_at(tmp_path)
    for seed in range(4):
        manifest = write_checkpoint(directory, seed)
        for entry in directory.checkpoint_path(manifest.sequence).iterdir():
            os.utime(entry, (10**9 - 10**7 * seed,) * 2)
        os.utime(directory.checkpoint_path(manifest.sequence), (10**9 - 10**7 * seed,) * 2)
        directory.prune(2)
    assert directory.sequences() == [4, 3]
    assert newest_whole(directory, "previous").manifest.sequence == 4


def test_one_server_at_a_time_has_a_directory(tmp_path):
    first, second = Directory(tmp_path / "c"), Directory(tmp_path / "c")
    first.prepare()
    with pytest.raises(CheckpointError, match=rf"in use by another server \(process {os.getpid()}\)"):
        second.prepare()
    first.release()
    second.prepare()
    second.release()
    second.release()


def test_a_place_that_cannot_hold_checkpoints_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"file/c cannot hold checkpoints"):
        Directory(tmp_path / "file" / "c").prepare()
