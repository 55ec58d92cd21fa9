"""What a subject is, what a round of it gives, and what is reported of it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import reverb_async as ra

ROUNDS = 5
ROUND_S = 1.0

Direction = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Measure:
    """What kind of figure a subject's is.

    Attributes:
        kind: ``"rate"``, ``"latency"``, ``"bytes"`` or ``"ratio"``.
        unit: what it is counted in.
        better: whether a higher or a lower one is better.
        percentile: of latencies: which one is judged.
    """

    kind: Literal["rate", "latency", "bytes", "ratio"]
    unit: str
    better: Direction
    percentile: int = 50

    def is_met(self, value: float, target: float) -> bool:
        """Whether a figure reaches its target."""
        return value >= target if self.better == "higher" else value <= target

    def ratio(self, ours: float, theirs: float) -> float:
        """Return how many times better ours is."""
        first, second = (ours, theirs) if self.better == "higher" else (theirs, ours)
        return first / second if second else math.inf


ITEMS = Measure("rate", "items/s", "higher")
KEYS = Measure("rate", "keys/s", "higher")
MEGABYTES = Measure("rate", "MB/s", "higher")
MICROSECONDS = Measure("latency", "µs", "lower")
MILLISECONDS_P99 = Measure("latency", "ms", "lower", percentile=99)
BYTES = Measure("bytes", "B", "lower")
SHARE = Measure("ratio", "x", "higher")
GROWTH = Measure("ratio", "x", "lower")


@dataclass(slots=True)
class Tally:
    """What one process did in one round.

    Attributes:
        items: items (or keys) that were moved.
        nbytes: bytes of their data.
        latencies_us: how long each operation took.
        details: anything else; the last round's are reported.
    """

    items: int = 0
    nbytes: int = 0
    latencies_us: list[float] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


Work = Callable[[float], Awaitable[Tally]]
"""Works for about so many seconds."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a worker has while it lives.

    Attributes:
        client: connects when it is first used; subjects without a server leave it alone.
        number: the process's number among those of its role.
        stack: is closed before the process ends.
    """

    client: ra.Client
    number: int
    stack: AsyncExitStack

    async def another_client(self) -> ra.Client:
        """Return one more client of the server, without shared memory."""
        return await self.stack.enter_async_context(type(self.client)(self.client.address, shared_memory=False))


@dataclass(frozen=True, slots=True)
class Role:
    """Processes of one kind.

    Attributes:
        prepare: returns the work of a round.
        processes: how many there are.
        counted: what they do counts for the result; the others are only there.
        shared_memory: they may use shared memory; the others use the socket.
    """

    prepare: Callable[[Session], Awaitable[Work]]
    processes: int = 1
    counted: bool = True
    shared_memory: bool = False


@dataclass(frozen=True, slots=True)
class PeerWork:
    """The same work on another library.

    Attributes:
        library: ``"dm-reverb"`` or ``"cpprb"``.
        path: which of its interfaces does it; the name of a function in `benchmarks.peers`.
        target: how many times better ours must be, if that was promised.
        processes: how many client processes do it.
    """

    library: Literal["dm-reverb", "cpprb"]
    path: str
    target: float | None = None
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Options:
    """How a run measures.

    Attributes:
        rounds: timed rounds per subject.
        seconds: length of a round.
        full: include what needs much memory or minutes.
        long_seconds: length of the long run.
    """

    rounds: int = ROUNDS
    seconds: float = ROUND_S
    full: bool = False
    long_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured.

    Attributes:
        name: on the command line, and in docs/benchmarks.md.
        title: one line for humans: everything that the figure depends on.
        measure: what the figure is.
        target: what design §8 asks for, if it does.
        tables: ``--table`` flags of the server; empty: the subject needs no server.
        roles: the processes, prepared in this order.
        sizes: batch size, bytes of an item and the like.
        run: measures it, if rounds of the roles' work are not all.
        peers: the same work elsewhere.
        group: what ``python -m benchmarks`` calls it together with others: ``"design"``, ``"sweep"``, ``"long"``;
            ``"part"``: of a subject with a `run` of its own.
    """

    name: str
    title: str
    measure: Measure
    target: float | None = None
    tables: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    sizes: Mapping[str, int | float | str] = field(default_factory=dict)
    run: Callable[[Subject, Options], Iterable[Result]] | None = None
    peers: tuple[PeerWork, ...] = ()
    group: Literal["design", "sweep", "long", "part"] = "design"


@dataclass(frozen=True, slots=True)
class Round:
    """What all processes of a subject did in one round.

    Attributes:
        value: the round's figure, in the measure's unit.
        items: items moved by the processes that count.
        seconds: wall time.
        server_cpu: CPU seconds of the server; None without one, or where the system does not tell.
        client_cpu: CPU seconds of all clients.
        foreign_load: cores that other programs kept busy.
        latencies_us: of the processes that count.
        details: of the last process that counts and has any.
    """

    value: float
    items: int
    seconds: float
    server_cpu: float | None
    client_cpu: float
    foreign_load: float | None
    latencies_us: list[float] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


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
