"""What is made of rounds: figures, verdicts, ratios, histograms, lines."""

from __future__ import annotations

import math

import pytest

from benchmarks.processes import WorkerError, value_of
from benchmarks.result import PeerResult, Result, describe_latencies, result_of, rounded, simple_result, verdict
from benchmarks.subject import BYTES, GROWTH, ITEMS, MEGABYTES, MICROSECONDS, MILLISECONDS_P99, SHARE, Round, Subject


@pytest.mark.parametrize(
    ("measure", "value", "target", "expected"),
    [
        (ITEMS, 100.0, 100.0, "met"),
        (ITEMS, 99.9, 100.0, "missed"),
        (MICROSECONDS, 100.0, 100.0, "met"),
        (MICROSECONDS, 100.1, 100.0, "missed"),
        (BYTES, 201.0, 200.0, "missed"),
        (SHARE, 0.6, 0.5, "met"),
        (GROWTH, 2.1, 2.0, "missed"),
        (ITEMS, 1.0, None, "-"),
    ],
)
def test_a_verdict_knows_which_direction_is_better(measure, value, target, expected):
    assert verdict(measure, value, target) == expected


def test_a_ratio_above_one_means_ours_is_better_whatever_is_measured():
    assert ITEMS.ratio(200.0, 100.0) == 2.0
    assert MICROSECONDS.ratio(100.0, 200.0) == 2.0
    assert BYTES.ratio(400.0, 100.0) == 0.25
    assert ITEMS.ratio(1.0, 0.0) == math.inf


@pytest.mark.parametrize(
    ("value", "expected"),
    [(123456.789, 123457.0), (1234.5678, 1235.0), (12.345678, 12.35), (0.00123456, 0.001235), (0.0, 0.0), (-2.0, -2.0)],
)
def test_figures_keep_four_digits(value, expected):
    assert rounded(value) == expected


def answer(items: int, seconds: float, nbytes: int = 0) -> dict[str, float]:
    return {"items": items, "seconds": seconds, "nbytes": nbytes}


def test_rates_of_processes_add_up_each_over_its_own_seconds():
    assert value_of(ITEMS, [answer(100, 1.0), answer(100, 2.0)], []) == 150.0
    assert value_of(MEGABYTES, [answer(1, 2.0, 4_000_000)], []) == 2.0


def test_latencies_are_judged_by_their_percentile_in_the_measures_unit():
    latencies = [float(us) for us in range(1, 102)]
    assert value_of(MICROSECONDS, [], latencies) == 51.0
    assert value_of(MILLISECONDS_P99, [], [1000 * us for us in latencies]) == 100.0


def test_a_round_without_any_latency_is_refused():
    with pytest.raises(WorkerError, match="--seconds"):
        value_of(MICROSECONDS, [], [])


def test_a_histogram_counts_every_call_below_its_bound():
    latencies = [1.0, 10.0, 10.1, 100.0, 1000.0]
    described = describe_latencies(latencies, MICROSECONDS)
    assert described["count"] == 5
    assert described["p50"] == 10.1
    bounds = [bound for bound, _ in described["histogram_us"]]
    assert bounds == sorted(bounds)
    assert sum(count for _, count in described["histogram_us"]) == 5
    at = 0
    for bound, count in described["histogram_us"]:
        assert all(us <= bound * 1.001 for us in latencies[at : at + count])
        at += count


def played(value: float, items: int, server_cpu: float | None = 0.5, foreign: float | None = 0.1) -> Round:
    return Round(value, items, 1.0, server_cpu, 0.25, foreign)


def test_a_result_is_the_median_of_rounds_and_cpu_per_million():
    subject = Subject("name", "title", ITEMS, target=2.0, sizes={"batch": 1})
    result = result_of(subject, [played(3.0, 500_000), played(1.0, 250_000), played(2.0, 250_000)])
    assert (result.median, result.min, result.max, result.rounds) == (2.0, 1.0, 3.0, [3.0, 1.0, 2.0])
    assert result.verdict == "met"
    assert (result.server_cpu_s_per_million, result.client_cpu_s_per_million) == (1.5, 0.75)
    assert result.foreign_load == 0.1
    assert result.sizes == {"batch": 1}


def test_where_the_system_tells_nothing_nothing_is_claimed():
    result = result_of(Subject("name", "title", ITEMS), [played(1.0, 10, None, None)])
    assert result.server_cpu_s_per_million is None
    assert result.foreign_load is None
    assert result.verdict == "-"


def test_a_further_result_of_a_subject_has_its_own_target():
    subject = Subject("name", "title", ITEMS, target=5.0)
    assert simple_result(subject, [6.0]).verdict == "met"
    assert simple_result(subject, [6.0], name="name:memory", measure=BYTES).target is None
    assert simple_result(subject, [6.0], name="name:memory", measure=BYTES, target=5.0).verdict == "missed"


def test_a_line_reads_back_as_it_was():
    result = simple_result(Subject("name", "title µ", ITEMS), [1.0, 2.0], details={"histogram_us": [[1.0, 2]]})
    result.peers.append(PeerResult("dm-reverb 0.14.0", "writer", 1.0, 1.0, 1.0, [1.0], 1.5, None, "-"))
    assert Result.from_json(result.to_json()) == result
