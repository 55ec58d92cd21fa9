"""Tokens: who may call what of a server."""

from __future__ import annotations

import asyncio
import logging
import pickle

import numpy as np
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

import reverb_async as ra
from reverb_async.replay import Replay
from reverb_async.security.tokens import make_token
from reverb_async.server.access import CALLS
from reverb_async.server.rpc import HealthHandlers, ReplayHandlers
from reverb_async.service.service import ReplayService
from reverb_async.testing import until
from reverb_async.wire.generated.deepmind.reverb import ServerInfoRequest as DeepMindServerInfoRequest
from reverb_async.wire.generated.grpc.health.v1 import HealthCheckRequest, HealthCheckResponse
from reverb_async.wire.generated.reverb_async.v1 import ServerInfoRequest, ServerInfoResponse
from reverb_async.wire.http2 import ReplayChannel

SERVER_INFO = "/reverb_async.v1.Replay/ServerInfo"
DEEPMIND = "/deepmind.reverb.ReverbService/ServerInfo"


class Owners:
    """Tokens of a file, by name."""

    def __init__(self, path):
        self.path = path
        self.secrets = {}
        self.lines = {}

    def add(self, name, *scopes):
        self.secrets[name], token = make_token(name, scopes)
        self.lines[name] = token.to_line()
        self.write()
        return self.secrets[name]

    def drop(self, name):
        del self.lines[name]
        self.write()

    def write(self):
        self.path.write_text("\n".join(self.lines.values()))


@pytest.fixture
def owners(tmp_path):
    found = Owners(tmp_path / "tokens")
    found.add("reader", "read")
    found.add("writer", "write")
    found.add("learner", "read", "write")
    found.add("operator", "admin")
    return found


def make_table():
    return ra.Table("t", max_size=100)


@pytest.fixture
async def server(owners):
    async with ra.Server([make_table()], tokens=owners.path) as server, server.client() as client:
        await client.insert({"x": 1.0}, {"t": 1.0})  # In the server's own process nobody is asked for a token.
        yield server


async def call(server, *headers, path=SERVER_INFO, address=None):
    """Make a call with these headers; return its status."""
    host, port = (address or server.address).rsplit(":", 1)
    channel = ReplayChannel(host, int(port))
    kinds = {SERVER_INFO: ServerInfoResponse, DEEPMIND: bytes}
    requests = {SERVER_INFO: ServerInfoRequest(), DEEPMIND: DeepMindServerInfoRequest()}
    request, kind = requests.get(path, HealthCheckRequest()), kinds.get(path, HealthCheckResponse)
    try:
        made = await channel.open_call(path, headers)
        try:
            await made.send(request, type(request), end=True)
            await made.receive_body() if kind is bytes else await made.receive(kind)
        finally:
            made.abort()
    except GRPCError as error:
        return error.status
    finally:
        channel.close()
    return Status.OK


async def take(batches, count):
    """Take so many batches, over several seconds if there are many."""
    for _ in range(count):
        await anext(batches)
        await asyncio.sleep(0.01)


def test_every_method_has_its_place():
    service = ReplayService(Replay([ra.Table("t", max_size=1)]), 1 << 20)
    served = {*ReplayHandlers(service).__mapping__(), *HealthHandlers().__mapping__()}
    assert served <= CALLS.keys()


USES = {
    "insert": lambda client: client.insert({"x": 2.0}, {"t": 1.0}),
    "sample": lambda client: client.sample_one("t"),
    "mutate": lambda client: client.mutate_priorities("t", {5: 1.0}),
    "reset": lambda client: client.reset("t"),
    "server_info": lambda client: client.server_info(),
}


@pytest.mark.parametrize(
    ("owner", "use", "refusal"),
    [
        ("reader", "sample", None),
        ("reader", "insert", "inserting needs a token with the scope 'write'; the token 'reader' has read"),
        ("reader", "mutate", "mutate_priorities needs a token with the scope 'write'; the token 'reader' has read"),
        ("reader", "reset", "reset needs a token with the scope 'admin'; the token 'reader' has read"),
        ("writer", "insert", None),
        ("writer", "mutate", None),
        ("writer", "sample", "sampling needs a token with the scope 'read'; the token 'writer' has write"),
        ("learner", "sample", None),
        ("learner", "insert", None),
        ("learner", "reset", "reset needs a token with the scope 'admin'; the token 'learner' has read, write"),
        ("operator", "reset", None),
        ("operator", "sample", "sampling needs a token with the scope 'read'; the token 'operator' has admin"),
        *((owner, "server_info", None) for owner in ("reader", "writer", "operator")),
    ],
)
async def test_a_token_allows_what_its_scopes_say(server, owners, owner, use, refusal):
    async with ra.Client(server.address, token=owners.secrets[owner]) as client:
        if refusal is None:
            await USES[use](client)
            assert server.access.counts.denied == 0
            return
        with pytest.raises(ra.PermissionDenied) as error:
            await USES[use](client)
        assert str(error.value) == refusal
        assert server.access.counts.denied == 1
        await client.server_info()  # The client is as good as before.


async def test_a_checkpoint_needs_admin(server, owners):
    async with ra.Client(server.address, token=owners.secrets["operator"]) as client:
        with pytest.raises(ra.CheckpointError):
            await client.checkpoint()
    async with ra.Client(server.address, token=owners.secrets["learner"]) as client:
        with pytest.raises(ra.PermissionDenied, match="checkpoint needs a token with the scope 'admin'"):
            await client.checkpoint()


async def test_updates_along_with_samples_need_write_too(server, owners):
    async with ra.Client(server.address, token=owners.secrets["reader"]) as client:
        batches = client.sample_batches("t", 2)
        await (await anext(batches)).update_priorities(np.array([5.0, 5.0]))
        with pytest.raises(ra.PermissionDenied, match="update_priorities needs a token with the scope 'write'"):
            await take(batches, 100)
    async with (
        ra.Client(server.address, token=owners.secrets["learner"]) as client,
        client.sample_batches("t", 2) as batches,
    ):
        await (await anext(batches)).update_priorities(np.array([5.0, 5.0]))
        await anext(batches)
    async with server.client() as client:
        assert (await client.sample_one("t")).info.priority == 5.0


@pytest.mark.parametrize("use", USES)
async def test_without_a_known_token_nothing_can_be_done(server, owners, use):
    for token, why in ((None, "none was shown"), ("ra_of_somebody_else", "the one shown is not known here")):
        async with ra.Client(server.address, token=token) as client:
            async with asyncio.timeout(5):  # It is no matter of trying again.
                with pytest.raises(ra.PermissionDenied, match=f"needs a token; {why}"):
                    await USES[use](client)
    assert server.access.counts.unauthenticated == 2


async def test_headers_that_are_no_token_are_refused(server, owners):
    good = owners.secrets["reader"]
    assert await call(server, ("authorization", f"Bearer {good}")) is Status.OK
    assert await call(server, ("authorization", f"bearer {good}")) is Status.OK
    for headers in (
        [],
        [("authorization", "")],
        [("authorization", good)],
        [("authorization", "Bearer ")],
        [("authorization", f"Basic {good}")],
        [("authorization", f"Bearer  {good}")],
        [("authorization", f"Bearer {good}x")],
        [("authorization", "Bearer " + "x" * 30_000)],
        [("authorization", f"Bearer {good}"), ("authorization", "Bearer x")],
        [("token", f"Bearer {good}")],
    ):
        assert await call(server, *headers) is Status.UNAUTHENTICATED


async def test_the_health_service_asks_too(server, owners):
    path = "/grpc.health.v1.Health/Check"
    assert await call(server, path=path) is Status.UNAUTHENTICATED
    assert await call(server, ("authorization", f"Bearer {owners.secrets['writer']}"), path=path) is Status.OK


async def test_tokens_are_never_shown_and_many_failures_are_one_line(server, owners, caplog):
    secret = "ra_a_secret_of_another_server"
    caplog.set_level(logging.DEBUG)
    client = ra.Client(server.address, token=secret)
    assert secret not in repr(client)
    async with client:
        for _ in range(50):
            with pytest.raises(ra.PermissionDenied) as error:
                await client.server_info()
            assert secret not in str(error.value)
    async with ra.Client(server.address, token=owners.secrets["reader"]) as client:
        with pytest.raises(ra.PermissionDenied):
            await client.reset("t")
    assert not any(secret in record.getMessage() + str(record.__dict__) for record in caplog.records)
    assert not any(owners.secrets["reader"] in record.getMessage() + str(record.__dict__) for record in caplog.records)
    refused = [record for record in caplog.records if getattr(record, "event", None) == "refused"]
    assert len(refused) == 2
    assert refused[0].getMessage().startswith("refused 127.0.0.1:")
    assert refused[1].token == "reader"
    assert (server.access.counts.unauthenticated, server.access.counts.denied) == (50, 1)


class TestChangedTokens:
    async def test_streams_of_a_withdrawn_token_end_and_others_stay(self, server, owners):
        async with (
            ra.Client(server.address, token=owners.secrets["reader"]) as reader,
            ra.Client(server.address, token=owners.secrets["learner"]) as learner,
        ):
            ended, stays = (client.sample_batches("t", 2, prefetch=1) for client in (reader, learner))
            await anext(ended)
            await anext(stays)
            owners.drop("reader")
            with pytest.raises(ra.PermissionDenied, match="'reader' was withdrawn or changed"):
                await take(ended, 500)
            await anext(stays)
            with pytest.raises(ra.PermissionDenied, match="not known here"):
                await reader.server_info()
            await stays.aclose()
        assert not server.access._revoked

    async def test_a_waiting_call_of_a_withdrawn_token_ends_and_leaves_the_queue(self, owners):
        table = ra.Table.queue("q", 1)
        async with (
            ra.Server([table], tokens=owners.path) as server,
            ra.Client(server.address, token=owners.secrets["writer"]) as client,
        ):
            await client.insert({"x": 1}, {"q": 1.0})
            waiting = asyncio.create_task(client.insert({"x": 2}, {"q": 1.0}))
            await until(lambda: bool(table.info.waiters))
            owners.drop("writer")
            with pytest.raises(ra.PermissionDenied):
                async with asyncio.timeout(5):
                    await waiting
            await until(lambda: not table.info.waiters)
            assert table.info.current_size == 1

    async def test_a_new_token_is_good_within_a_second_or_so(self, server, owners):
        secret = owners.add("newcomer", "read")
        async with ra.Client(server.address, token=secret) as client, asyncio.timeout(5):
            while True:
                try:
                    await client.server_info()
                    break
                except ra.PermissionDenied:
                    await asyncio.sleep(0.05)


class TestClients:
    async def test_a_token_may_stand_in_a_file_or_come_from_a_function(self, server, owners, tmp_path):
        file = tmp_path / "mine"
        file.write_text(owners.secrets["writer"] + "\n")
        async with ra.Client(server.address, token=file) as client:
            await client.insert({"x": 1.0}, {"t": 1.0})
            with pytest.raises(ra.PermissionDenied):
                await client.sample_one("t")
            file.write_text(owners.secrets["learner"])
            await client.sample_one("t")
            file.unlink()
            with pytest.raises(ra.InvalidArgument, match=r"token: \S+mine cannot be read: No such file"):
                await client.server_info()
        async with ra.Client(server.address, token=lambda: owners.secrets["reader"]) as client:
            await client.sample_one("t")
        async with ra.Client(server.address, token=lambda: None) as client:
            with pytest.raises(ra.InvalidArgument, match="what its function returns: a token is one word"):
                await client.sample_one("t")

    async def test_a_pickled_client_shows_the_same_token(self, server, owners):
        client = ra.Client(server.address, token=owners.secrets["reader"])
        copy = pickle.loads(pickle.dumps(client))
        assert copy == client
        assert copy != ra.Client(server.address)
        async with copy:
            await copy.sample_one("t")

    async def test_clients_of_one_loop_that_share_a_connection_are_told_apart(self, server, owners):
        async with (
            ra.Client(server.address, token=owners.secrets["writer"]) as writer,
            ra.Client(server.address, token=owners.secrets["reader"]) as reader,
        ):
            await writer.insert({"x": 1.0}, {"t": 1.0})
            with pytest.raises(ra.PermissionDenied, match="the token 'reader' has read"):
                await reader.insert({"x": 1.0}, {"t": 1.0})
            await writer.insert({"x": 1.0}, {"t": 1.0})

    @pytest.mark.parametrize("token", ["", "two words", "späß", "a\nb", 5, b"x"])
    def test_what_is_no_token_is_refused_and_not_shown(self, token):
        with pytest.raises(ra.InvalidArgument, match="token") as error:
            ra.Client("127.0.0.1:8000", token=token)
        assert not isinstance(token, str) or len(token) < 4 or token not in str(error.value)

    @pytest.mark.parametrize("address", ["replay.example:8000", "10.0.0.7:8000", "[2001:db8::1]:8000"])
    def test_a_token_is_not_sent_in_the_clear_to_another_machine(self, address):
        with pytest.raises(ra.InvalidArgument, match=r"could read the token: add tls=True or ClientTLS"):
            ra.Client(address, token="x")
        ra.Client(address, token="x", insecure=True)
        ra.Client(address, token="x", tls=True)
        ra.Client(address)

    @pytest.mark.parametrize("address", ["127.0.0.1:8000", "[::1]:8000", "localhost:8000", "unix:///run/replay.sock"])
    def test_within_this_machine_it_is(self, address):
        ra.Client(address, token="x")

    def test_what_cannot_go_together_is_refused(self):
        for address, options, message in (
            ("reverb://h:1", {"token": "x"}, "know neither TLS nor tokens"),
            ("reverb://h:1", {"tls": True}, "know neither TLS nor tokens"),
            ("unix:///x", {"tls": True}, "drop tls"),
            ("h:1", {"tls": "yes"}, "tls is True"),
            ("h:1", {"insecure": 1}, "insecure is True or False"),
        ):
            with pytest.raises(ra.InvalidArgument, match=message):
                ra.Client(address, **options)


class TestServers:
    async def test_a_unix_socket_asks_for_tokens_too(self, owners, tmp_path):
        async with ra.Server([make_table()], port=None, unix_path=tmp_path / "s", tokens=owners.path) as server:
            async with ra.Client(server.address, token=owners.secrets["writer"]) as client:
                await client.insert({"x": 1.0}, {"t": 1.0})
            async with ra.Client(server.address) as client:
                with pytest.raises(ra.PermissionDenied):
                    await client.server_info()

    def test_other_machines_need_tls_with_tokens_as_well(self, owners):
        with pytest.raises(ra.InvalidArgument, match=r"nothing is encrypted: .* tls=ServerTLS"):
            ra.Server([make_table()], host="0.0.0.0", tokens=owners.path)

    def test_a_file_of_tokens_that_cannot_be_used_is_refused_at_once(self, tmp_path):
        with pytest.raises(ra.InvalidArgument, match="cannot be read"):
            ra.Server([make_table()], tokens=tmp_path / "none")


class TestDeepMindsDoor:
    async def test_it_is_closed_where_tokens_are_asked_for(self, server, owners):
        assert server.reverb_address is None
        token = ("authorization", f"Bearer {owners.secrets['operator']}")
        for headers in ([], [token]):
            assert await call(server, *headers, path=DEEPMIND) is Status.UNIMPLEMENTED

    async def test_it_can_be_opened_on_a_port_of_its_own_where_nothing_else_is_served(self, owners):
        async with ra.Server([make_table()], tokens=owners.path, reverb_compat_insecure=True) as server:
            assert server.reverb_address.startswith("127.0.0.1:")
            assert server.reverb_address != server.address
            assert await call(server, path=DEEPMIND, address=server.reverb_address) is Status.OK
            assert await call(server, path=SERVER_INFO, address=server.reverb_address) is Status.UNIMPLEMENTED
            assert await call(server, path=DEEPMIND) is Status.UNIMPLEMENTED
            port = int(server.reverb_address.rsplit(":", 1)[1])
        async with ra.Server([make_table()], tokens=owners.path, reverb_compat_insecure=port) as server:
            assert server.reverb_address == f"127.0.0.1:{port}"

    async def test_without_tls_and_tokens_it_is_where_it_was(self):
        async with ra.Server([make_table()]) as server:
            assert server.reverb_address == server.address
        async with ra.Server([make_table()], reverb_compat=False) as server:
            assert server.reverb_address is None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"reverb_compat_insecure": True}, "they are anyway without tls and tokens: drop one"),
            ({"reverb_compat_insecure": True, "reverb_compat": False, "tokens": 1}, "reverb_compat=False does not"),
            ({"reverb_compat_insecure": 70000, "tokens": 1}, r"True \(any free port\), a port, or False, got 70000"),
            ({"reverb_compat_insecure": "8000", "tokens": 1}, "got '8000'"),
        ],
    )
    def test_what_cannot_go_together_is_refused(self, owners, options, message):
        with pytest.raises(ra.InvalidArgument, match=message):
            ra.Server([make_table()], **{**options, **({"tokens": owners.path} if "tokens" in options else {})})
