"""Takes turns: a round of ours, a round of each peer, and again."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.harness import play_rounds, signed
from benchmarks.processes import Contestant, Worker, ours
from benchmarks.result import PeerResult, Result, describe_latencies, result_of, rounded, simple_result
from benchmarks.subject import Options, PeerWork, Round, Subject
from benchmarks.subjects.memory import bytes_per_item

_INFO_LOAD = PeerWork("dm-reverb", "dataset_prioritized_defaults")
"""What keeps the peer's server busy while `info_latency` asks it: as in our subject."""


@dataclass(slots=True)
class Peers:
    """Who can be compared with, and how they are run; a context manager.

    Attributes:
        reverb_python: an interpreter with dm-reverb, if there is one.
        cpprb_python: an interpreter with cpprb, if that is wanted.
        is_isolated: dm-reverb runs in a network namespace of its own.
    """

    reverb_python: Path | None
    cpprb_python: Path | None
    is_isolated: bool
    _stack: ExitStack = field(default_factory=ExitStack)
    _servers: dict[str, tuple[str, int]] = field(default_factory=dict)

    @classmethod
    def find(cls, reverb_python: Path | None, cpprb: bool, allow_open_port: bool) -> Peers:
        """Look whether the peers are there and can be run safely.

        Raises:
            SystemExit: one cannot, and why.
        """
        isolated = False
        if reverb_python is not None:
            reverb_python = reverb_python.absolute()  # Not resolved: the link is the environment.
            if not _can_import(reverb_python, "reverb"):
                raise SystemExit(f"{reverb_python} has no dm-reverb; make one with --make-peer-env DIR")
            isolated = _can_isolate()
            if not isolated and not allow_open_port:
                raise SystemExit(
                    "dm-reverb's server listens on every address, and no network namespace can be made here "
                    "(unshare -rn): give --allow-open-port if everybody who reaches this machine may use it"
                )
        cpprb_python = None
        if cpprb:
            candidates = [Path(sys.executable), *([reverb_python] if reverb_python else [])]
            cpprb_python = next((python for python in candidates if _can_import(python, "cpprb")), None)
            if cpprb_python is None:
                raise SystemExit("no cpprb: pip install cpprb, or --dm-reverb-python of a --make-peer-env")
        return cls(reverb_python, cpprb_python, isolated)

    def works(self, subject: Subject) -> bool:
        """Whether a peer can do the subject's work."""
        return any(self._python(work) is not None for work in subject.peers)

    def describe(self) -> str:
        """Say who runs where."""
        lines = []
        if self.reverb_python is not None:
            where = "a network namespace with nothing but its loopback" if self.is_isolated else "AN OPEN PORT"
            lines.append(f"dm-reverb: {self.reverb_python}, server and clients in {where}")
        if self.cpprb_python is not None:
            lines.append(f"cpprb: {self.cpprb_python}")
        return "\n".join(lines)

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def able(self, subject: Subject) -> list[PeerWork]:
        """Return what of a subject's peers can be run."""
        return [work for work in subject.peers if self._python(work) is not None]

    @contextmanager
    def contestant(self, subject: Subject, work: PeerWork, *, fresh: bool = False) -> Iterator[Contestant]:
        """Run the peer's server and workers, prepared and ready.

        One server of dm-reverb serves all subjects, so that its tables are filled once; `fresh` makes another one.
        """
        python = self._python(work)
        assert python is not None
        with Contestant(work.library, subject.measure) as contestant:
            if work.library == "cpprb":
                command = [str(python), "-m", "benchmarks.peers.cpprb_buffer", work.path]
                contestant.add(Worker(command, environment=_environment(), is_talkative=True))
            else:
                stack = contestant.stack if fresh else self._stack
                address, contestant.server_pid = self._serve(stack, python, fresh)
                works = [work] * work.processes
                if work.path == "info_latency":
                    works.insert(0, _INFO_LOAD)
                for each in works:
                    contestant.add(self.client(each, address, contestant.server_pid, counted=each is work))
            yield contestant

    def client(self, work: PeerWork, address: str, server_pid: int | None = None, *, counted: bool) -> Worker:
        """Start a client of dm-reverb, where that server of theirs runs; None: the shared one."""
        inside = self.inside() if server_pid is None else self._enter(server_pid)
        command = [*inside, str(self._python(work)), "-m", "benchmarks.peers.dm_reverb_client", work.path, address]
        return Worker(command, counted=counted, environment=_environment(), is_talkative=True)

    def inside(self) -> list[str]:
        """Return the words before a command that is to reach the shared server of dm-reverb, which is started."""
        assert self.reverb_python is not None
        return self._enter(self._serve(self._stack, self.reverb_python, False)[1])

    def _python(self, work: PeerWork) -> Path | None:
        return self.cpprb_python if work.library == "cpprb" else self.reverb_python

    def _serve(self, stack: ExitStack, python: Path, fresh: bool) -> tuple[str, int]:
        if not fresh and "shared" in self._servers:
            return self._servers["shared"]
        command = [str(python), "-m", "benchmarks.peers.dm_reverb_server"]
        if self.is_isolated:
            command = ["unshare", "-rn", *command, "--bring-up-loopback"]
        server = Worker(command, environment=_environment(), is_talkative=True)
        stack.callback(server.close)
        server.wait_until_ready()
        serving = f"localhost:{server.ready['port']}", int(server.ready["pid"])
        if not fresh:
            self._servers["shared"] = serving
        return serving

    def _enter(self, server_pid: int) -> list[str]:
        if not self.is_isolated:
            return []
        return ["nsenter", "--preserve-credentials", "--user", "--net", "--target", str(server_pid), "--"]


def compare(subject: Subject, peers: Peers, options: Options) -> Iterator[Result]:
    """Measure ours and its peers in one run."""
    works = peers.able(subject)
    if subject.measure.kind == "bytes":
        yield signed(_compare_memory(subject, works, peers))
        return
    with ExitStack() as stack:
        contestants = [stack.enter_context(ours(subject))]
        contestants += [stack.enter_context(peers.contestant(subject, work)) for work in works]
        mine, *theirs = play_rounds(contestants, options)
        settings = [each.workers[-1].ready.get("setting", {}) for each in contestants[1:]]
    result = result_of(subject, mine)
    for work, rounds, setting in zip(works, theirs, settings, strict=True):
        result.peers.append(describe_peer(subject, work, rounds, setting, result, peers))
    yield signed(result)


def describe_peer(
    subject: Subject,
    work: PeerWork,
    rounds: list[Round],
    setting: dict[str, Any],
    result: Result,
    peers: Peers,
) -> PeerResult:
    """Return a peer's figure of a subject, with all that is known of its rounds, beside our `result`."""
    values = [each.value for each in rounds]
    described = _peer_result(subject, work, statistics.median(values), values, result, peers)
    described.details |= {"setting": setting, **_usage(rounds), **_latencies(subject, rounds)}
    return described


def _compare_memory(subject: Subject, works: list[PeerWork], peers: Peers) -> Result:
    with ours(subject) as contestant:
        result = simple_result(subject, [bytes_per_item(contestant)])
    for work in works:
        with peers.contestant(subject, work, fresh=True) as contestant:
            value = bytes_per_item(contestant)
            setting = contestant.workers[-1].ready["setting"]
        result.peers.append(_peer_result(subject, work, value, [value], result, peers))
        result.peers[-1].details |= {"setting": setting}
    return result


def _peer_result(
    subject: Subject, work: PeerWork, median: float, values: list[float], result: Result, peers: Peers
) -> PeerResult:
    ratio = subject.measure.ratio(result.median, median)
    met = "-" if work.target is None else "met" if ratio >= work.target else "missed"
    return PeerResult(
        name=f"{work.library} {peer_version(peers, work)}",
        path=work.path,
        median=rounded(median),
        min=rounded(min(values)),
        max=rounded(max(values)),
        rounds=[rounded(value) for value in values],
        ratio=rounded(ratio),
        target_ratio=work.target,
        verdict=met,
    )


def _usage(rounds: list[Round]) -> dict[str, Any]:
    millions = sum(each.items for each in rounds) / 1e6
    if not millions:
        return {}
    servers = [each.server_cpu for each in rounds if each.server_cpu is not None]
    return {
        "server_cpu_s_per_million": rounded(sum(servers) / millions) if servers else None,
        "client_cpu_s_per_million": rounded(sum(each.client_cpu for each in rounds) / millions),
    }


def _latencies(subject: Subject, rounds: list[Round]) -> dict[str, Any]:
    return describe_latencies([us for each in rounds for us in each.latencies_us], subject.measure)


def peer_version(peers: Peers, work: PeerWork) -> str:
    """Return the version of a peer, as its interpreter tells it."""
    python = peers._python(work)
    assert python is not None
    code = f"from importlib.metadata import version; print(version({work.library!r}))"
    return subprocess.run([str(python), "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _can_import(python: Path, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([str(python), "-c", code], env=_environment()).returncode == 0
    except OSError as error:
        raise SystemExit(f"cannot run {python}: {error}") from None


def _can_isolate() -> bool:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], stderr=subprocess.DEVNULL).returncode == 0


def _environment() -> dict[str, str]:
    """Return what a peer's process gets: ours, with TensorFlow's start-up messages off."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
