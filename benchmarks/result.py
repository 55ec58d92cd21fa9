"""What is reported of a subject: one line, with a verdict, and with peers' figures beside it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.subject import Measure, Round, Subject


@dataclass(slots=True)
class PeerResult:
    """A peer's figure, from the same run, and how ours compares."""

    name: str
    path: str
    median: float
    min: float
    max: float
    rounds: list[float]
    ratio: float
    target_ratio: float | None
    verdict: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """One line of results."""

    subject: str
    title: str
    kind: str
    unit: str
    better: str
    median: float
    min: float
    max: float
    rounds: list[float]
    target: float | None
    verdict: str
    server_cpu_s_per_million: float | None = None
    client_cpu_s_per_million: float | None = None
    foreign_load: float | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    peers: list[PeerResult] = field(default_factory=list)
    group: str = "design"
    at: str = ""
    command: str = ""
    machine: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Result:
        """Read a line back."""
        fields = json.loads(line)
        return cls(**{**fields, "peers": [PeerResult(**peer) for peer in fields["peers"]]})


def rounded(value: float) -> float:
    """Keep four digits: no figure here is more exact."""
    if value == 0 or not math.isfinite(value):
        return value
    digits = 3 - math.floor(math.log10(abs(value)))
    return round(value, digits) if digits > 0 else float(round(value))


def verdict(measure: Measure, value: float, target: float | None) -> str:
    """Return ``"met"``, ``"missed"``, or ``"-"`` where nothing was promised."""
    if target is None:
        return "-"
    return "met" if measure.is_met(value, target) else "missed"


def simple_result(
    subject: Subject,
    values: list[float],
    *,
    name: str = "",
    title: str = "",
    measure: Measure | None = None,
    target: float | None = None,
    details: Mapping[str, Any] | None = None,
) -> Result:
    """Return a line for figures that a subject's `run` found; by default the subject's own name, title and measure."""
    measure = measure or subject.measure
    target = subject.target if not name else target
    median = statistics.median(values)
    return Result(
        subject=name or subject.name,
        title=title or subject.title,
        kind=measure.kind,
        unit=measure.unit,
        better=measure.better,
        median=rounded(median),
        min=rounded(min(values)),
        max=rounded(max(values)),
        rounds=[rounded(value) for value in values],
        target=target,
        verdict=verdict(measure, median, target),
        sizes=dict(subject.sizes),
        details=dict(details or {}),
        group=subject.group,
    )


def result_of(subject: Subject, rounds: list[Round]) -> Result:
    """Return the line for a subject's rounds."""
    result = simple_result(subject, [each.value for each in rounds], details=rounds[-1].details)
    millions = sum(each.items for each in rounds) / 1e6
    servers = [each.server_cpu for each in rounds if each.server_cpu is not None]
    foreign = [each.foreign_load for each in rounds if each.foreign_load is not None]
    if millions:
        result.client_cpu_s_per_million = rounded(sum(each.client_cpu for each in rounds) / millions)
        result.server_cpu_s_per_million = rounded(sum(servers) / millions) if servers else None
    result.foreign_load = round(statistics.mean(foreign), 2) if foreign else None
    result.details |= describe_latencies([us for each in rounds for us in each.latencies_us], subject.measure)
    return result


BUCKETS_PER_DOUBLING = 4
"""Of the histograms."""


def describe_latencies(latencies_us: list[float], measure: Measure) -> dict[str, Any]:
    """Return count, p50, p90, p99 in the measure's unit, and a histogram: [upper bound in µs, count] pairs."""
    if not latencies_us:
        return {}
    values = np.array(latencies_us)
    percentiles = np.percentile(values, [50, 90, 99]) / (1000 if measure.unit == "ms" else 1)
    buckets, counts = np.unique(np.ceil(np.log2(values) * BUCKETS_PER_DOUBLING), return_counts=True)
    return {
        "count": len(values),
        **{name: rounded(float(value)) for name, value in zip(("p50", "p90", "p99"), percentiles, strict=True)},
        "histogram_us": [
            [rounded(float(2.0 ** (bucket / BUCKETS_PER_DOUBLING))), int(count)]
            for bucket, count in zip(buckets, counts, strict=True)
        ],
    }
