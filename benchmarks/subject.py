"""What a subject is, who works at it, and what a round of it gives."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import reverb_async as ra
    from benchmarks.result import Result

ROUNDS = 5
ROUND_S = 1.0

Direction = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Measure:
    """What kind of figure a subject's is.

    Attributes:
        kind: ``"rate"``, ``"latency"``, ``"duration"``, ``"bytes"`` or ``"ratio"``.
        unit: what it is counted in.
        better: whether a higher or a lower one is better.
        percentile: of latencies: which one is judged.
    """

    kind: Literal["rate", "latency", "duration", "bytes", "ratio"]
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
            ``"part"``: of a subject with a `run` of its own; ``"clients"``: dm-reverb's clients at our server.
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
    group: Literal["design", "sweep", "long", "part", "clients"] = "design"


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
