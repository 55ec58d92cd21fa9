"""Plots of results; needs matplotlib (the `bench` extra)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # Files only: there may be no screen.

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.result import BUCKETS_PER_DOUBLING, PeerResult, Result
from benchmarks.tables import number

_OURS = "#1f77b4"
_THEIRS = "#d98f4e"
_WIDTH = 7.5
_LATENCIES = ("latency-insert", "latency-sample", "latency-sample-prefetched", "latency-update", "info-latency")

Draw = Callable[[Sequence[Result]], Figure | None]


def draw_all(results: Sequence[Result], directory: Path) -> list[str]:
    """Draw every plot there are results for; return the files' names."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in PLOTS.items():
        figure = draw(results)
        if figure is None:
            continue
        figure.tight_layout()
        figure.savefig(directory / name, dpi=110, metadata={"Software": None})
        plt.close(figure)
        drawn.append(name)
    return drawn


def _parts(results: Sequence[Result], prefix: str, size: str) -> list[tuple[float, Result]]:
    found = [(float(result.sizes[size]), result) for result in results if result.subject.startswith(f"{prefix}/")]
    return sorted(found, key=lambda each: each[0])


def _line(axes: Axes, points: list[tuple[float, Result]], label: str) -> None:
    x = [at for at, _ in points]
    axes.plot(x, [result.median for _, result in points], marker="o", label=label)
    axes.fill_between(x, [result.min for _, result in points], [result.max for _, result in points], alpha=0.2)


def _finish(axes: Axes, x: str, y: str, *, logarithmic: bool = True) -> None:
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend()


def batch_size(results: Sequence[Result]) -> Figure | None:
    """Items per second by batch size."""
    sampled = _parts(results, "sweep-batch", "batch")
    inserted = _parts(results, "sweep-insert-batch", "batch")
    if not sampled and not inserted:
        return None
    figure, axes = plt.subplots(figsize=(_WIDTH, 4))
    _line(axes, sampled, "sample_batches, one learner")
    _line(axes, inserted, "insert_batch, 4 calls in flight")
    _finish(axes, "items per batch (41 bytes each)", "items/s")
    return figure


def payload_size(results: Sequence[Result]) -> Figure | None:
    """Megabytes per second by item size."""
    sampled = _parts(results, "sweep-payload", "payload_bytes")
    inserted = _parts(results, "sweep-insert-payload", "payload_bytes")
    if not sampled and not inserted:
        return None
    figure, axes = plt.subplots(figsize=(_WIDTH, 4))
    _line(axes, sampled, "sample_batches, one learner")
    _line(axes, inserted, "insert_batch, 4 calls in flight")
    _finish(axes, "bytes per item (batches of 256, of 16 MiB at most)", "MB/s")
    return figure


def processes(results: Sequence[Result]) -> Figure | None:
    """Items per second by number of learners and of actors."""
    learners = _parts(results, "sweep-learners", "learners")
    actors = _parts(results, "sweep-actors", "actors")
    if not learners and not actors:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(_WIDTH, 3.6))
    _line(left, learners, "all learners together")
    _finish(left, "learners (a process each)", "sampled items/s", logarithmic=False)
    _line(right, actors, "all actors together")
    _finish(right, "actors (a client each)", "inserted items/s", logarithmic=False)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    return figure


def table_size(results: Sequence[Result]) -> Figure | None:
    """Items per second by the number of items in the table."""
    uniform = _parts(results, "growth-uniform", "items")
    prioritized = _parts(results, "growth-prioritized", "items")
    if not uniform and not prioritized:
        return None
    figure, axes = plt.subplots(figsize=(_WIDTH, 4))
    _line(axes, uniform, "Uniform: sample")
    _line(axes, prioritized, "Prioritized: sample + update")
    _finish(axes, "items in the table", "items/s", logarithmic=False)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    return figure


def latencies(results: Sequence[Result]) -> Figure | None:
    """Histograms of latencies, ours and the peer's."""
    found = [result for result in results if result.subject in _LATENCIES and "histogram_us" in result.details]
    if not found:
        return None
    figure, grid = plt.subplots(len(found), 1, figsize=(_WIDTH, 2.1 * len(found)), squeeze=False)
    for axes, result in zip(grid[:, 0], found, strict=True):
        shown = [("reverb_async", result.details, _OURS)]
        shown += [(peer.name, peer.details, _THEIRS) for peer in result.peers if "histogram_us" in peer.details]
        for who, details, color in shown:
            _histogram(axes, details, who, result.unit, color)
        scale = 1000 if result.unit == "ms" else 1
        least = min(details["p50"] for _, details, _ in shown) * scale
        most = max(details["p99"] for _, details, _ in shown) * scale
        axes.set_title(result.subject, loc="left", fontsize=10)
        _finish(axes, "", "share of calls", logarithmic=False)
        axes.set_xscale("log", base=2)
        axes.set_xlim(least / 2, most * 2)
        axes.xaxis.set_major_formatter(_plain)
    grid[-1, 0].set_xlabel("µs")
    return figure


def _histogram(axes: Axes, details: dict[str, Any], label: str, unit: str, color: str) -> None:
    counts = {round(math.log2(edge) * BUCKETS_PER_DOUBLING): count for edge, count in details["histogram_us"]}
    buckets = range(min(counts), max(counts) + 1)
    shares = [counts.get(bucket, 0) / details["count"] for bucket in buckets]
    edges = [2.0 ** (bucket / BUCKETS_PER_DOUBLING) for bucket in (buckets[0] - 1, *buckets)]
    label = f"{label}: p50 {number(details['p50'], unit)}, p99 {number(details['p99'], unit)}"
    axes.stairs(shares, edges, fill=True, color=color, alpha=0.7, label=label)


def against_peers(results: Sequence[Result]) -> Figure | None:
    """How many times better ours is than the best that a peer has for the same work, a bar per subject."""
    bars = [(result, min(result.peers, key=lambda peer: peer.ratio)) for result in results if result.peers]
    if not bars:
        return None
    figure, axes = plt.subplots(figsize=(_WIDTH, 0.34 * len(bars) + 1.2))
    ratios = [peer.ratio for _, peer in bars]
    colors = [_OURS if ratio >= 1 else _THEIRS for ratio in ratios]
    axes.barh(range(len(bars)), [ratio - 1 for ratio in ratios], left=1, color=colors)
    axes.set_yticks(range(len(bars)), [_bar_label(result, peer) for result, peer in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    for at, ratio in enumerate(ratios):
        is_ahead = ratio >= 1
        axes.text(ratio, at, f" {ratio:.3g}x ", va="center", ha="left" if is_ahead else "right", fontsize=8)
    axes.set_xlim(min(0.5, min(ratios) / 2), max(2.0, max(ratios)) * 2)
    axes.xaxis.set_major_formatter(_plain)
    axes.set_xlabel("times better than the peer (rate, latency, memory)")
    axes.grid(alpha=0.3, axis="x")
    return figure


def _bar_label(result: Result, peer: PeerResult) -> str:
    return f"{result.subject} | {peer.name.split()[0]}"


def _plain(value: float, position: float) -> str:
    return f"{value:,.4g}"


def long_run(results: Sequence[Result]) -> Figure | None:
    """Rates and memory over the long run."""
    by_name = {result.subject: result for result in results}
    run, memory = by_name.get("long-run"), by_name.get("long-run:memory")
    if run is None or memory is None:
        return None
    figure, (above, below) = plt.subplots(2, 1, figsize=(_WIDTH, 4.5), sharex=True)
    rates = run.details["sampled_per_s"]
    seconds = [run.details["seconds"] * (at + 1) / len(rates) for at in range(len(rates))]
    above.plot(seconds, rates, label="sampled and updated")
    above.plot(seconds, run.details["inserted_per_s"], label="inserted")
    _finish(above, "", "items/s", logarithmic=False)
    above.set_ylim(bottom=0)
    below.plot(seconds, [nbytes / 2**20 for nbytes in memory.details["resident_bytes"]], label="server")
    _finish(below, "seconds", "resident MiB", logarithmic=False)
    below.set_ylim(bottom=0)
    return figure


PLOTS: dict[str, Draw] = {
    "peers.png": against_peers,
    "batch_size.png": batch_size,
    "payload_size.png": payload_size,
    "processes.png": processes,
    "table_size.png": table_size,
    "latencies.png": latencies,
    "long_run.png": long_run,
}
