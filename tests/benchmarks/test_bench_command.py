"""The command line, the page it writes, and one short run of everything from the command to the line."""

from __future__ import annotations

import json

import pytest

from benchmarks import __main__ as command
from benchmarks.peers import comparison
from benchmarks.report import TemplateError, write_report
from benchmarks.result import PeerResult, Result, describe_latencies, simple_result
from benchmarks.subject import BYTES, ITEMS, MICROSECONDS, Subject
from benchmarks.subjects import ALL_SUBJECTS, CLIENTS, SUBJECTS


def line(subject: str, median: float, *, peer: float | None = None) -> Result:
    known = ALL_SUBJECTS[subject]
    result = simple_result(known, [median, median * 2, median / 2])
    result.at, result.command, result.foreign_load = "2026-01-02T00:00:00Z", "python -m benchmarks x", 0.5
    result.machine = {"cpu": "2 x Some", "memory": "4 GiB", "system": "Linux", "python": "3.11.7", "numpy": "2.4"}
    result.client_cpu_s_per_million = 1.5
    if known.measure.kind == "latency":
        result.details = describe_latencies([100.0, 200.0, 300.0], known.measure)
    if peer is not None:
        work = known.peers[0]
        ratio = known.measure.ratio(median, peer)
        result.peers.append(
            PeerResult("dm-reverb 0.14.0", work.path, peer, peer, peer, [peer], ratio, work.target, "missed")
        )
        result.peers[0].details = {"setting": {"threads": 8, "tried": [[1, 2]]}, **result.details}
    return result


def test_without_a_name_all_subjects_are_listed(capsys):
    assert command.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in SUBJECTS)


@pytest.mark.parametrize("arguments", [["sample-unifrom"], ["peers", "sample-uniform"]])
def test_what_cannot_be_measured_is_refused_by_name(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "no subject 'sample-unifrom'" in said or "--dm-reverb-python PATH" in said


def test_dm_reverbs_clients_need_dm_reverb(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["reverb-clients", "writer"])
    assert ended.value.code == 2
    assert "--dm-reverb-python PATH" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["reverb-clients", "wirter", "--dm-reverb-python", "/nowhere"])
    said = capsys.readouterr().err
    assert "no subject 'wirter'" in said
    assert all(name.rpartition("/")[2] in said for name in CLIENTS)


def test_groups_and_sweeps_stand_for_their_subjects():
    parser = command.argparse.ArgumentParser()
    chosen = command._chosen(parser, ["sweep-batch", "writer", "sweep-batch/4"], SUBJECTS)
    assert [subject.name for subject in chosen][:3] == ["sweep-batch/1", "sweep-batch/4", "sweep-batch/16"]
    assert len({subject.name for subject in chosen}) == len(chosen) == 8
    alone = command._chosen(parser, ["alone"], SUBJECTS)
    everything = command._chosen(parser, ["all"], SUBJECTS)
    assert {subject.name for subject in alone} == {subject.name for subject in everything if not subject.peers}


def test_a_short_run_gives_one_line_of_json(tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    arguments = ["insert-batch", "--rounds", "2", "--seconds", "0.05", "--json", str(file), "--markdown"]
    assert command.main(arguments) == 0
    result = Result.from_json(file.read_text())
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[0])["subject"] == "insert-batch"
    assert "| `insert-batch`" in printed
    assert result.min > 0
    assert len(result.rounds) == 2
    assert result.client_cpu_s_per_million > 0
    assert result.machine["numpy"]


def test_of_a_subject_the_last_line_counts_but_one_beside_peers_stays(tmp_path):
    file = tmp_path / "lines.jsonl"
    lines = [line("writer", 1.0), line("writer", 2.0, peer=1.0), line("writer", 3.0), line("sample-uniform", 4.0)]
    file.write_text("".join(each.to_json() + "\n" for each in lines))
    read = command._read([file])
    assert [(result.subject, result.median) for result in read] == [("sample-uniform", 4.0), ("writer", 2.0)]


def test_the_page_has_every_figure_from_its_line():
    results = [line("sample-uniform", 1_234_567.0, peer=50_000.0), line("latency-insert", 250.0, peer=500.0)]
    page = write_report(results, ["peers.png"], "images")
    assert "2 x Some, 4 GiB, Linux, Python 3.11.7; numpy 2.4. Measured on 2026-01-02." in page
    assert "**1,234,567 items/s** (617,284 to 2,469,134) †" in page
    assert "24.7x" in page
    assert "≥ 24x: missed" in page
    assert "| `latency-insert` | dm-reverb 0.14.0 `latency_insert` | 200 µs |" in page
    assert "- `sample-uniform`, dm-reverb 0.14.0 `dataset_uniform`: threads=8\n" in page
    assert "](images/peers.png)" in page
    assert "2 of 2 results" in page
    assert "- `sample-uniform` against dm-reverb 0.14.0 `dataset_uniform`: 24.7x, asked ≥ 24x\n" in page
    assert "{{" not in page


def test_dm_reverbs_clients_have_a_section_of_their_own():
    results = [line("reverb-clients/writer", 9_000.0, peer=10_000.0), line("reverb-clients/native-ragged", 39_000.0)]
    page = write_report(results, [], "images", "{{ clients }}")
    assert "| `writer`: legacy Writer, an item per step, small | **9,000 items/s** (4,500 to 18,000) † |" in page
    assert "| 10,000 items/s (10,000 to 10,000) | 0.9x | ≥ 0.8x | missed |" in page
    assert "| - | - | ≥ 40,000 | missed |" in page
    assert "writer" not in write_report(results, [], "images", "{{ table }}")
    assert "`reverb-clients/native-ragged`: 39,000 items/s" in write_report(results, [], "images", "{{ missed }}")


def test_remarks_may_name_figures_but_none_that_do_not_exist():
    results = [line("writer", 40_000.0, peer=20_000.0)]
    text = "{{ value writer }}, {{ ratio writer structured_writer }}, {{ value mutate }}"
    assert write_report(results, [], "images", text) == "40,000 items/s, 2x, (not measured)"
    with pytest.raises(TemplateError, match="speed writer"):
        write_report(results, [], "images", "{{ speed writer }}")


def test_the_page_names_every_target_that_was_missed():
    results = [line("writer", 39_000.0), line("mutate", 2_100_000.0), line("latency-update", 351.0)]
    missed = write_report(results, [], "images", "{{ missed }}")
    assert missed == "- `writer`: 39,000 items/s, asked ≥ 40,000\n- `latency-update`: 351 µs, asked ≤ 350"
    assert write_report(results[1:2], [], "images", "{{ missed }}") == "None."


def test_plots_are_drawn_of_what_was_measured(tmp_path):
    plots = pytest.importorskip("benchmarks.plots")
    results = [line("sample-uniform", 2.0, peer=1.0), line("latency-insert", 2.0, peer=1.0)]
    results += [line(f"sweep-batch/{batch}", float(batch)) for batch in (1, 4, 16)]
    drawn = plots.draw_all(results, tmp_path / "new")
    assert drawn == ["peers.png", "batch_size.png", "latencies.png"]
    assert all((tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_a_server_that_binds_every_address_needs_a_namespace_or_leave(monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "_can_import", lambda python, module: True)
    monkeypatch.setattr(comparison, "_can_isolate", lambda: False)
    with pytest.raises(SystemExit, match="--allow-open-port"):
        comparison.Peers.find(tmp_path / "python", False, False)
    open_port = comparison.Peers.find(tmp_path / "python", False, True)
    assert "AN OPEN PORT" in open_port.describe()
    assert open_port._enter(1) == []
    monkeypatch.setattr(comparison, "_can_isolate", lambda: True)
    isolated = comparison.Peers.find(tmp_path / "python", False, True)
    assert isolated.is_isolated
    assert "nothing but its loopback" in isolated.describe()
    assert isolated._enter(7)[:1] == ["nsenter"]


def test_peers_that_are_not_there_are_named(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="cannot run"):
        comparison.Peers.find(tmp_path / "no-python", False, False)
    monkeypatch.setattr(comparison, "_can_import", lambda python, module: False)
    with pytest.raises(SystemExit, match="--make-peer-env"):
        comparison.Peers.find(tmp_path / "python", False, False)
    with pytest.raises(SystemExit, match="no cpprb"):
        comparison.Peers.find(None, True, False)


def test_only_subjects_that_a_present_peer_can_do_are_compared(tmp_path):
    cpprb = comparison.Peers(None, tmp_path, False)
    assert cpprb.works(SUBJECTS["in-process-sample"])
    assert not cpprb.works(SUBJECTS["sample-uniform"])
    assert not comparison.Peers(None, None, False).works(SUBJECTS["writer"])


def test_a_peer_is_judged_by_ratios_of_medians(monkeypatch):
    monkeypatch.setattr(comparison, "peer_version", lambda peers, work: "1.0")
    subject: Subject = SUBJECTS["in-process-sample"]
    ours = simple_result(subject, [180.0, 181.0, 500.0])
    peers = comparison.Peers(None, None, False)
    judged = comparison._peer_result(subject, subject.peers[0], 100.0, [90.0, 100.0, 110.0], ours, peers)
    assert (judged.name, judged.ratio, judged.verdict) == ("cpprb 1.0", 1.81, "met")
    worse = comparison._peer_result(subject, subject.peers[0], 101.0, [101.0], ours, peers)
    assert worse.verdict == "missed"
    assert {ITEMS.better, BYTES.better, MICROSECONDS.better} == {"higher", "lower"}
