"""dm-reverb's clients at our server, and at their own, in turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import play_rounds, signed
from benchmarks.peers.comparison import Peers, describe_peer
from benchmarks.processes import Contestant, Worker, serving, worker_command
from benchmarks.result import Result, result_of
from benchmarks.subject import Options, Subject

TABLES = Path(__file__).with_name("reverb_clients.toml")


@dataclass(slots=True)
class OurServer:
    """Our server with the tables of `dm_reverb_server`, started where that runs when it is first needed.

    Attributes:
        peers: who know where that is.
        stack: ends it.
    """

    peers: Peers
    stack: ExitStack
    _address: str = ""
    _pid: int = 0
    _inside: Sequence[str] = field(default_factory=list)

    @contextmanager
    def contestant(self, subject: Subject) -> Iterator[Contestant]:
        """Run a subject's client of dm-reverb and its native roles on our server.

        Roles that do not count prepare for the client; for those that do the client prepares.
        """
        if not self._address:
            self._inside = self.peers.inside()
            arguments = ["--config", str(TABLES)]
            self._address, self._pid = self.stack.enter_context(serving(arguments, self._inside))
        counted = is_native(subject)
        with Contestant("reverb_async", subject.measure) as contestant:
            contestant.server_pid = self._pid
            if counted:
                self._add_client(contestant, subject)
            for at, role in enumerate(subject.roles):
                command = [*self._inside, *worker_command(subject, at, 0, self._address)]
                contestant.add(Worker(command, counted=role.counted))
            if not counted:
                self._add_client(contestant, subject)
            yield contestant

    def _add_client(self, contestant: Contestant, subject: Subject) -> None:
        contestant.add(self.peers.client(subject.peers[0], self._address, counted=not is_native(subject)))


def is_native(subject: Subject) -> bool:
    """Whether a native client's rate is what counts, so that there is nothing to compare with."""
    return any(role.counted for role in subject.roles)


def compare_clients(subject: Subject, ours: OurServer, options: Options) -> Iterator[Result]:
    """Measure a client of dm-reverb at both servers in one run, or a native client alone."""
    peers, work = ours.peers, subject.peers[0]
    with ExitStack() as stack:
        contestants = [stack.enter_context(ours.contestant(subject))]
        if not is_native(subject):
            contestants.append(stack.enter_context(peers.contestant(subject, work)))
        mine, *theirs = play_rounds(contestants, options)
        settings = [each.workers[-1].ready.get("setting", {}) for each in contestants]
    result = result_of(subject, mine)
    result.details |= {"setting": settings[0]}
    for rounds in theirs:
        result.peers.append(describe_peer(subject, work, rounds, settings[1], result, peers))
    yield signed(result)
