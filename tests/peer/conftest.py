"""Peers, made once for all tests; and why there are none, said aloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from peer_rig import GenuineServers, Peer

_missing: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in _missing:
        terminalreporter.section("genuine dm-reverb: NOT TESTED", red=True, bold=True)
        terminalreporter.line(reason)


def _do_without(reason: str) -> NoReturn:
    if reason not in _missing:
        _missing.append(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def peer_python() -> Path:
    """Return an interpreter that has dm-reverb."""
    from benchmarks.peers.environment import NoEnvironmentError, shared_environment

    try:
        return shared_environment()
    except NoEnvironmentError as error:
        _do_without(f"No genuine client ran: {error}")


@pytest.fixture(scope="session")
def peer(peer_python: Path) -> Iterator[Peer]:
    """Give a process with genuine clients."""
    peer = Peer(peer_python)
    yield peer
    peer.close()


@pytest.fixture(scope="session")
def another_peer(peer_python: Path) -> Iterator[Peer]:
    """Give a second process with genuine clients."""
    peer = Peer(peer_python)
    yield peer
    peer.close()


@pytest.fixture(scope="session")
def genuine(peer_python: Path) -> Iterator[GenuineServers]:
    """Give genuine servers."""
    if not GenuineServers.are_possible():
        _do_without("No genuine server ran: it listens on every address, and `unshare -rn` is not possible here")
    servers = GenuineServers(peer_python)
    yield servers
    servers.close()
