"""``python -m reverb_async.checkpoint``."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from server_rig import fill, make_table, serving, values

import reverb_async as ra
from reverb_async.checkpoint.__main__ import main


def tables():
    signature = {"t": ra.ArraySpec((), str), "b": ra.ArraySpec((), bytes), "r": ra.ArraySpec((None, 2), np.int64)}
    return make_table(), ra.Table.queue("text/queue", 10, signature=signature), ra.Table("steps", max_size=10)


@pytest.fixture
async def saved(tmp_path):
    """Return a directory of two checkpoints, of two tables."""
    path = tmp_path / "checkpoints"
    async with serving(path, *tables()) as (client, _):
        keys = (await fill(client, 0, 40))["replay"]
        await client.mutate_priorities("replay", (keys[:1], np.array([77.0])))
        await client.checkpoint()
        await fill(client, 40, 10)
        for n in (1, 3):
            item = {"t": "ö" * n, "b": b"\0" * n, "r": np.arange(n * 2).reshape(n, 2)}
            await client.insert(item, {"text/queue": 1.0})
        async with client.trajectory_writer(num_keep_alive_refs=4) as writer:
            for step in range(4):
                writer.append({"x": np.float32(step), "c": np.complex64(1j * step)})
                history = writer.history
                if step >= 2:
                    taken = {"x": history["x"][1 - step :], "c": history["c"][-1]}
                    await writer.create_item("steps", 1.0, trajectory=taken)
    return path


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_ls_lists_the_newest_first(saved, capsys):
    assert main(["ls", str(saved), "--json"]) == 0
    newest, oldest = lines(capsys)
    assert (newest["sequence"], newest["items"]) == (2, {"replay": 50, "text/queue": 2, "steps": 2})
    assert oldest["items"] == {"replay": 40, "text/queue": 0, "steps": 0}
    assert main(["ls", str(saved)]) == 0
    head, first, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["sequence", "written", "bytes", "items", "path"]
    assert "replay 50, text/queue 2, steps 2" in first


async def test_verify_names_what_is_damaged(saved, capsys):
    assert main(["verify", str(saved), "--json"]) == 0
    assert [line["whole"] for line in lines(capsys)] == [True, True]
    newest = max((saved / "segments").iterdir())
    newest.write_bytes(newest.read_bytes()[:-64])
    assert main(["verify", str(saved), "--json"]) == 1
    bad, good = lines(capsys)
    assert bad["file"] == str(newest)
    assert bad["expected"] != bad["found"]
    assert good["whole"]
    assert main(["verify", str(saved), "--sequence", "1"]) == 0
    assert main(["verify", str(saved)]) == 1
    assert str(newest) in capsys.readouterr().out
    assert (saved / f"ckpt-{2:020d}").is_dir(), "only servers put damaged checkpoints aside"


async def test_verify_reads_the_log_behind_a_checkpoint_too(tmp_path, capsys):
    checkpointer = ra.Checkpointer(tmp_path / "served")
    server = ra.Server([ra.Table("replay", max_size=100)], port=None, checkpointer=checkpointer, durability="wal")
    async with server:
        for x in range(5):
            await server.client().insert_batch({"x": np.full(3, x)}, {"replay": 1.0})
        shutil.copytree(tmp_path / "served", tmp_path / "left")
    assert main(["verify", str(tmp_path / "left"), "--json"]) == 0
    (line,) = lines(capsys)
    assert line["frames"] == 5
    newest = max((tmp_path / "left" / "log").iterdir())
    whole = bytearray(newest.read_bytes())
    whole[len(whole) // 2] ^= 1
    newest.write_bytes(whole)
    assert main(["verify", str(tmp_path / "left"), "--json"]) == 1
    (line,) = lines(capsys)
    assert line["file"] == str(newest)


async def test_show_describes_tables_and_columns(saved, capsys):
    assert main(["show", str(saved), "--json"]) == 0
    (shown,) = lines(capsys)
    table = shown["tables"][0]
    assert (table["table"], table["max_size"], table["seed"]) == ("replay", "10000", "3")
    assert table["sampler"] == "Prioritized(priority_exponent=0.6)"
    assert {"columns": "int32 [], bool [], float32 [4]", "rows": 50} in shown["stores"]
    assert main(["show", str(saved), "--sequence", "1"]) == 0
    assert "items: 40" in capsys.readouterr().out


async def test_export_writes_npz(saved, tmp_path, capsys):
    assert main(["export", str(saved), str(tmp_path / "out"), "--json"]) == 0
    files = [line["file"] for line in lines(capsys)]
    assert [path.rpartition("/")[2] for path in files] == [
        *("replay-00000.npz", "text%2Fqueue-00000.npz", "steps-00000.npz"),
    ]
    small = np.load(files[0])
    assert small["info.priority"].tolist().count(77.0) == 1
    assert small["data.action"].tolist() == list(range(50))
    for name, expected in values(small["data.action"]).items():
        np.testing.assert_array_equal(small[f"data.{name}"], expected)
    text, steps = np.load(files[1]), np.load(files[2])
    assert text["data.t"].tobytes().decode() == "öööö"
    assert text["data.t.ends"].tolist() == [2, 8]
    assert steps["data.x"].tolist() == [2, 2, 3]
    assert steps["data.x.offsets"].tolist() == [0, 1, 3]
    assert steps["data.c"].tolist() == [2j, 3j]


async def test_export_writes_parquet(saved, tmp_path, capsys):
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    assert main(["export", str(saved), str(out), "--format", "parquet"]) == 0
    small = pq.read_table(out / "replay-00000.parquet").to_pydict()
    assert small["data.action"] == list(range(50))
    assert small["data.obs"] == values(np.arange(50))["obs"].tolist()
    text = pq.read_table(out / "text%2Fqueue-00000.parquet").to_pylist()
    assert [row["data.t"] for row in text] == ["ö", "ööö"]
    assert [row["data.b"] for row in text] == [b"\0", b"\0\0\0"]
    assert [row["data.r"] for row in text] == [[[0, 1]], [[0, 1], [2, 3], [4, 5]]]
    steps = pq.read_table(out / "steps-00000.parquet").to_pylist()
    assert [row["data.x"] for row in steps] == [[2], [2, 3]]
    assert [row["data.c"] for row in steps] == [[0, 2], [0, 3]]


async def test_export_writes_one_table_of_an_older_checkpoint(saved, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(saved), str(out), "--sequence", "1", "--table", "replay"]) == 0
    assert [path.name for path in out.iterdir()] == ["replay-00000.npz"]
    assert len(np.load(out / "replay-00000.npz")["info.key"]) == 40


async def test_what_is_not_there_is_said(saved, tmp_path, capsys):
    assert main(["export", str(saved), str(tmp_path / "out"), "--table", "nope"]) == 2
    assert "no table 'nope'; it has: 'replay', 'text/queue', 'steps'" in capsys.readouterr().err
    assert main(["ls", str(saved), "--sequence", "9"]) == 2
    assert "no checkpoint 9 in" in capsys.readouterr().err
    assert main(["ls", str(tmp_path / "nowhere")]) == 2


async def test_it_reads_while_a_server_has_the_directory(saved, capsys):
    async with serving(saved, *tables()):
        assert main(["verify", str(saved)]) == 0


async def test_items_of_deepmind_clients_are_exported(tmp_path, capsys):
    path = tmp_path / "checkpoints"
    server = ra.Server([make_table()], checkpointer=ra.Checkpointer(path))
    async with server, ra.Client(f"reverb://{server.address}") as client:
        await client.insert({"a": np.arange(3, dtype=np.int32), "b": "text"}, {"replay": 2.0})
    assert main(["export", str(path), str(tmp_path / "out"), "--json"]) == 0
    (line,) = lines(capsys)
    exported = np.load(line["file"])
    assert any(array.tolist() in ([[0, 1, 2]], [[[0, 1, 2]]]) for array in exported.values())
