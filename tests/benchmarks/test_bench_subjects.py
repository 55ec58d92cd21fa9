"""The registry: what the design asks for is there, can be served, and peers run nothing of ours."""

from __future__ import annotations

import ast
from contextlib import AsyncExitStack
from pathlib import Path

import cramjam
import numpy as np
import pytest

import reverb_async as ra
from benchmarks import payloads
from benchmarks.peers.reverb_clients import TABLES as REVERB_TABLES
from benchmarks.peers.reverb_clients import is_native
from benchmarks.subject import Session
from benchmarks.subjects import ALL_SUBJECTS, CLIENTS, SUBJECTS, sampling
from benchmarks.subjects.sweeps import batch_for, size_name
from reverb_async.config import load

BENCHMARKS = Path(payloads.__file__).parent

TARGETS = {
    "sample-uniform": 1_000_000,
    "sample-prioritized": 750_000,
    "sample-update": 400_000,
    "sample-frames": 1_600,
    "sample-frames-shared": 6_000,
    "writer": 40_000,
    "insert-batch": 1_000_000,
    "insert-actors": 25_000,
    "mutate": 2_000_000,
    "large-insert": 1_200,
    "large-sample": 1_200,
    "latency-insert": 380,
    "latency-sample": 300,
    "latency-update": 350,
    "memory": 200,
    "memory-atari": 7_400,
    "blocked-writers": 0.5,
    "growth-uniform": 2,
    "growth-prioritized": 3,
    "info-latency": 50,
    "checkpoint-write": 0.2,
    "checkpoint-pause": 20,
    "checkpoint-increment": 0.05,
    "recovery": 3,
    "cuts-insert": 60,
    "cuts-insert-batch": 60,
    "cuts-writer": 60,
}
RATIOS = {
    "sample-uniform": 24,
    "sample-prioritized": 20,
    "sample-update": 10,
    "in-process-sample": 1.8,
    "in-process-update": 1.2,
}


@pytest.mark.parametrize(("name", "target"), TARGETS.items())
def test_every_row_of_the_design_is_a_subject_with_its_target(name, target):
    assert SUBJECTS[name].target == target


@pytest.mark.parametrize(("name", "ratio"), RATIOS.items())
def test_every_ratio_of_the_design_is_asked_of_a_peer(name, ratio):
    assert {peer.target for peer in SUBJECTS[name].peers} == {ratio}


@pytest.mark.parametrize("subject", ALL_SUBJECTS.values(), ids=lambda subject: subject.name)
def test_a_subject_can_be_measured(subject):
    if subject.tables:
        tables = load(None, list(subject.tables), {}).build_tables()
        assert [table.name for table in tables] == ["replay"]
    if subject.group == "clients":
        assert [peer.library for peer in subject.peers] == ["dm-reverb"]
        assert (subject.target is None) == (subject.peers[0].target is not None), "one of them is judged"
        assert is_native(subject) == (subject.target is not None)
    elif subject.roles:
        assert any(role.counted for role in subject.roles)
    else:
        assert subject.run is not None


def test_dm_reverbs_programs_have_the_ratios_that_were_asked_for():
    ratios = {name: subject.peers[0].target for name, subject in CLIENTS.items() if not is_native(subject)}
    assert len(ratios) == 10
    assert {ratio for name, ratio in ratios.items() if "mutate" in name} == {0.5}
    assert {ratio for name, ratio in ratios.items() if "mutate" not in name} == {0.8}


def test_our_server_can_serve_the_tables_of_dm_reverbs_programs():
    tables = {table.name: table for table in load(REVERB_TABLES, [], {}).build_tables()}
    served = {
        node.args[0].value
        for node in ast.walk(tree("peers", "dm_reverb_server.py"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "table"
        if isinstance(node.args[0], ast.Constant)
    }
    assert tables.keys() == served - {"frames", "large"}
    small = tables["uniform"].signature
    assert small is not None
    assert small == tables["prioritized"].signature
    assert sum(spec.row_bytes for spec in small.specs) == payloads.SMALL_BYTES


def test_parts_are_not_offered_on_the_command_line():
    assert not [subject for subject in SUBJECTS.values() if subject.group == "part"]


def tree(*path: str) -> ast.Module:
    return ast.parse(BENCHMARKS.joinpath(*path).read_text())


def test_every_path_of_a_peer_exists():
    assigned = next(
        node
        for node in tree("peers", "dm_reverb_client.py").body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "PATHS"
    )
    assert isinstance(assigned.value, ast.Dict)
    paths = {ast.literal_eval(key) for key in assigned.value.keys if key is not None}
    asked = {peer.path for subject in ALL_SUBJECTS.values() for peer in subject.peers if peer.library == "dm-reverb"}
    assert asked == paths
    assert {peer.path for subject in SUBJECTS.values() for peer in subject.peers if peer.library == "cpprb"} == {
        "sample",
        "sample_update",
    }


@pytest.mark.parametrize(
    "path",
    [
        ("__init__.py",),
        ("payloads.py",),
        ("rounds.py",),
        ("peers", "__init__.py"),
        ("peers", "dm_reverb_server.py"),
        ("peers", "dm_reverb_client.py"),
        ("peers", "dm_reverb_work.py"),
        ("peers", "dm_reverb_sampling.py"),
        ("peers", "dm_reverb_writing.py"),
        ("peers", "dm_reverb_idle.py"),
        ("peers", "cpprb_buffer.py"),
    ],
)
def test_what_runs_under_a_peers_python_imports_nothing_of_ours(path):
    imported = set()
    for node in ast.walk(tree(*path)):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    ours = {name for name in imported if name.split(".")[0] in ("reverb_async", "benchmarks")}
    assert all(name in ("benchmarks.payloads", "benchmarks.rounds") or "peers.dm_reverb_" in name for name in ours)


@pytest.mark.parametrize(
    ("make", "nbytes"),
    [
        (payloads.small, payloads.SMALL_BYTES),
        (payloads.columns, payloads.COLUMNS_BYTES),
        (payloads.frames, payloads.FRAME_BYTES),
        (payloads.game_frames, 84 * 84),
    ],
)
def test_payloads_have_the_bytes_that_titles_say(make, nbytes):
    data = make(np.random.default_rng(0), 3)
    assert sum(column.nbytes for column in data.values()) == 3 * nbytes
    assert {len(column) for column in data.values()} == {3}
    assert sum(np.asarray(value).nbytes for value in payloads.row(data, 1).values()) == nbytes


def test_game_frames_compress_about_as_those_of_atari_do():
    frames = payloads.game_frames(np.random.default_rng(0), 16)["frame"]
    sizes = [len(cramjam.snappy.compress_raw(frame.tobytes())) for frame in frames]
    assert 0.25 < np.mean(sizes) / frames[0].nbytes < 0.45
    assert len(np.unique(frames, axis=0)) == 16


@pytest.mark.parametrize("update", [False, True])
async def test_a_bare_table_is_drawn_from_as_the_service_does(monkeypatch, update):
    monkeypatch.setattr(sampling, "IN_PROCESS_ITEMS", 600)
    async with AsyncExitStack() as stack:
        work = await sampling.in_process(Session(ra.Client("127.0.0.1:1"), 0, stack), update=update)
        tally = await work(0.01)
    assert tally.items >= 256
    assert tally.items % 256 == 0


def test_mixed_columns_are_eight_of_eight_dtypes():
    data = payloads.columns(np.random.default_rng(0), 1)
    assert len(data) == len({column.dtype for column in data.values()}) == 8


def test_sweeps_keep_batches_within_sixteen_mebibytes():
    assert [batch_for(nbytes) for nbytes in (41, 1 << 10, 1 << 20, 16 << 20, 64 << 20)] == [256, 256, 16, 1, 1]
    assert [size_name(nbytes) for nbytes in (41, 1 << 10, 16 << 20)] == ["41B", "1KiB", "16MiB"]
