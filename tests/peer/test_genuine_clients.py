"""All scenarios of `drivers`, run by dm-reverb's own clients against our server; and against theirs, as a yardstick."""

from __future__ import annotations

import pytest
from peer_rig import GenuineServers, Named, OurServer, Peer, scenarios

pytestmark = pytest.mark.peer

SCENARIOS = scenarios()


def ids(scenario: Named) -> str:
    return f"{scenario.module}-{scenario.name}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=ids)
def test_our_server(scenario: Named, peer: Peer) -> None:
    config = peer.call("scenario", "config_of", module=scenario.module, name=scenario.name)
    with OurServer(config) as server:
        peer.call("scenario", "run", module=scenario.module, name=scenario.name, address=server.address)


@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if not each.needs_ours], ids=ids)
def test_the_genuine_server(scenario: Named, genuine: GenuineServers) -> None:
    client = genuine.client
    address = genuine.serve(client.call("scenario", "config_of", module=scenario.module, name=scenario.name))
    client.call("scenario", "run", module=scenario.module, name=scenario.name, address=address)
