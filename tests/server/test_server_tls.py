"""Servers that speak TLS, on both event loops."""

from __future__ import annotations

import asyncio
import gc
import pickle
import socket
import sys
import weakref

import grpc
import numpy as np
import pytest
import trustme

import reverb_async as ra
from reverb_async.security import Credentials
from reverb_async.security.tokens import make_token
from reverb_async.testing import until
from reverb_async.wire.http2 import server as listening
from reverb_async.wire.transport import GrpcTransport

LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if sys.platform != "win32":
    import uvloop

    LOOPS.append(pytest.param(uvloop.new_event_loop, id="uvloop"))

BIG = 1_100_000
"""Items: more than one part of a message, and than any window."""


class Files:
    """An authority, and what it has signed, in a folder."""

    def __init__(self, folder):
        self.folder, self.authority = folder, trustme.CA()
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        self.issue("server", "localhost", "127.0.0.1")
        self.issue("client", "me@here.example")
        self.issue("stranger", "me@here.example", authority=trustme.CA())

    def issue(self, name, *identities, authority=None):
        issued = (authority or self.authority).issue_cert(*identities)
        issued.private_key_and_cert_chain_pem.write_to_path(self.folder / f"{name}.pem")

    def server(self, *, mutual=False):
        both = self.folder / "server.pem"
        return ra.ServerTLS(both, both, client_ca=self.folder / "ca.pem" if mutual else None)

    def client(self, name=None, **more):
        certificate = None if name is None else self.folder / f"{name}.pem"
        return ra.ClientTLS(ca=self.folder / "ca.pem", certificate=certificate, **more)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture(params=LOOPS)
def run(request):
    """Return a function that runs a scenario on an event loop."""

    def run(scenario):
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(scenario)

    return run


def make_table():
    return ra.Table("t", max_size=100)


async def attempt(server, tls, refusal):
    """Make one attempt to connect, which a client would repeat for a while, and expect it to be refused."""
    transport = GrpcTransport(server.address, 10.0, Credentials(tls))
    try:
        with pytest.raises(ra.Unavailable, match=refusal):
            await transport.hello()
    finally:
        await transport.close()


def test_big_items_travel_both_ways_and_calls_can_be_left(run, files):
    values = np.arange(BIG, dtype=np.float64)

    async def scenario():
        table = make_table()
        async with (
            ra.Server([table], tls=files.server()) as server,
            ra.Client(server.address, tls=files.client(), shared_memory=False) as client,
        ):
            await asyncio.gather(*(client.insert({"x": values, "n": n}, {"t": 1.0}) for n in range(2)))
            async for sample in client.sample("t", num_samples=3, prefetch=2):
                assert np.array_equal(sample.data["x"], values)
            for delay in (0.0, 0.01, 0.03):  # Cancelled while the items, or the samples, are on their way.
                calls = {
                    asyncio.ensure_future(client.insert({"x": values, "n": 9}, {"t": 1.0})),
                    asyncio.ensure_future(client.sample_batch("t", 4)),
                }
                await asyncio.wait(calls, timeout=delay)
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)
            batches = client.sample_batches("t", 2, prefetch=4)
            await anext(batches)
            await batches.aclose()
            assert np.array_equal((await client.sample_one("t")).data["x"], values)
            assert client.transport == "tls"
            assert not table.info.waiters

    run(scenario())


def test_memory_is_shared_with_tls_too(files):
    async def scenario():
        async with (
            ra.Server([make_table()], tls=files.server()) as server,
            ra.Client(server.address, tls=files.client()) as client,
        ):
            await client.insert({"x": np.arange(BIG)}, {"t": 1.0})
            assert np.array_equal((await client.sample_one("t")).data["x"], np.arange(BIG))
            assert client.transport == ("tls + shared memory" if sys.platform == "linux" else client.transport)

    asyncio.run(scenario())


def test_servers_that_are_not_trusted_are_refused_at_once_and_a_wrong_choice_is_named(run, files):
    async def scenario():
        async with ra.Server([make_table()], tls=files.server()) as server:
            for tls, why in (
                (True, "certificate of 127.0.0.1:.* is not trusted: .*local issuer"),
                (files.client(server_name="elsewhere"), "Hostname mismatch"),
            ):
                async with ra.Client(server.address, tls=tls) as client:
                    with pytest.raises(ra.PermissionDenied, match=why):
                        async with asyncio.timeout(5):
                            await client.server_info()
            await attempt(server, None, "before the server said anything: it may want TLS")
        async with ra.Server([make_table()]) as server:
            await attempt(server, files.client(), r"does not speak TLS, which Client\(tls=\) asks for")

    run(scenario())


async def test_files_of_a_client_that_cannot_be_used_are_named_when_it_connects(files):
    async with (
        ra.Server([make_table()], tls=files.server()) as server,
        ra.Client(server.address, tls=ra.ClientTLS(ca="none.pem")) as client,
    ):
        for call in (client.server_info(), client.insert({"x": 1}, {"t": 1.0}), client.sample_one("t")):
            with pytest.raises(ra.InvalidArgument, match=r"ClientTLS\(ca=\): none.pem cannot be read: No such file"):
                await call


def test_clients_need_a_certificate_that_the_authority_has_signed(run, files):
    async def scenario():
        async with ra.Server([make_table()], tls=files.server(mutual=True)) as server:
            async with ra.Client(server.address, tls=files.client("client")) as client:
                await client.insert({"x": 1}, {"t": 1.0})
                copy = pickle.loads(pickle.dumps(client))
            async with copy:
                assert (await copy.sample_one("t")).data["x"] == 1
            for tls in (files.client(), files.client("stranger")):
                await attempt(server, tls, "or to see a certificate")

    run(scenario())


def test_a_certificate_is_replaced_while_the_server_runs(run, files):
    async def scenario():
        async with (
            ra.Server([make_table()], tls=files.server()) as server,
            ra.Client(server.address, tls=files.client()) as early,
        ):
            await early.server_info()
            other = trustme.CA()
            files.issue("server", "127.0.0.1", authority=other)
            other.cert_pem.write_to_path(files.folder / "other.pem")
            async with ra.Client(server.address, tls=ra.ClientTLS(ca=files.folder / "other.pem")) as late:
                async with asyncio.timeout(5):
                    while True:
                        try:
                            await late.server_info()
                            break
                        except ra.PermissionDenied:  # It is still the old one.
                            await asyncio.sleep(0.05)
            await early.server_info()  # Its connection stays.

    run(scenario())


def test_good_clients_are_served_beside_stalled_handshakes_which_end_and_leave_nothing(run, files, monkeypatch):
    monkeypatch.setattr(listening, "HANDSHAKE_S", 0.5)

    async def scenario():
        table = make_table()
        async with ra.Server([table], tls=files.server()) as server:
            (replay,) = server._listening
            stalled = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(50)]
            for number, (_, writer) in enumerate(stalled):
                if number % 2:
                    writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # the beginning of a hello
            async with ra.Client(server.address, tls=files.client()) as client, asyncio.timeout(5):
                await client.insert({"x": 1}, {"t": 1.0})
            async with asyncio.timeout(5):
                for reader, writer in stalled:
                    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                        await reader.readexactly(1 << 20)
                    writer.close()
            await until(lambda: not replay.num_connections)
            async with ra.Client(server.address, tls=files.client()) as client:
                await client.server_info()
                assert len(replay._handlers) < 10  # Not those of the 50.

    run(scenario())


def test_garbage_instead_of_a_handshake_harms_nobody(run, files, caplog):
    async def scenario():
        async with ra.Server([make_table()], tls=files.server()) as server:
            for garbage in (
                b"",
                b"\0" * 100,
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"GET / HTTP/1.1\r\n\r\n",
                b"\x16" * 9000,
            ):
                with socket.create_connection(("127.0.0.1", server.port)) as peer:
                    peer.sendall(garbage)
            async with ra.Client(server.address, tls=files.client()) as client, asyncio.timeout(5):
                await client.insert({"x": 1}, {"t": 1.0})

    run(scenario())
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_closing_does_not_wait_for_peers_that_do_not_say_goodbye(run, files):
    async def scenario():
        server = ra.Server([make_table()], tls=files.server())
        await server.start()
        context = files.client().load()
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=context, server_hostname="localhost"
        )
        writer.transport.pause_reading()
        loop = asyncio.get_running_loop()
        before = loop.time()
        await server.close()
        assert loop.time() - before < 5
        writer.transport.abort()
        del reader

    run(scenario())


def test_nothing_of_a_closed_server_stays(files):
    async def scenario():
        async with ra.Server([make_table()], tls=files.server()) as server:
            async with ra.Client(server.address, tls=files.client()) as client:
                await client.server_info()
            return weakref.ref(server._listening[0])

    gone = asyncio.run(scenario())
    gc.collect()
    assert gone() is None


def test_with_tls_other_machines_may_connect(files):
    ra.Server([make_table()], host="0.0.0.0", tls=files.server())
    with pytest.raises(ra.InvalidArgument, match="tls is a ServerTLS"):
        ra.Server([make_table()], tls=True)
    with pytest.raises(ra.InvalidArgument, match="cannot be read"):
        ra.Server([make_table()], tls=ra.ServerTLS("no.pem", "no.pem"))


async def test_a_unix_socket_beside_it_is_not_encrypted(files, tmp_path):
    async with ra.Server([make_table()], tls=files.server(), unix_path=tmp_path / "s") as server:
        async with ra.Client(server.unix_address) as client:
            await client.insert({"x": 1}, {"t": 1.0})
        assert server.reverb_address is None


async def test_stock_grpc_clients_come_in_with_tls_a_certificate_and_a_token(files, tmp_path):
    secret, token = make_token("probe", ["read"])
    (tmp_path / "tokens").write_text(token.to_line())
    mine = (tmp_path / "client.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes(), mine, mine)
    method = "/reverb_async.v1.Replay/"
    tables = [make_table()]
    async with (
        ra.Server(tables, tls=files.server(mutual=True), tokens=tmp_path / "tokens") as server,
        grpc.aio.secure_channel(server.address, credentials) as channel,
    ):
        info, reset = channel.unary_unary(f"{method}ServerInfo"), channel.unary_unary(f"{method}Reset")
        assert b"t" in await info(b"", metadata=[("authorization", f"Bearer {secret}")])
        for call, metadata, code in (
            (info, [], grpc.StatusCode.UNAUTHENTICATED),
            (info, [("authorization", "Bearer x")], grpc.StatusCode.UNAUTHENTICATED),
            (reset, [("authorization", f"Bearer {secret}")], grpc.StatusCode.PERMISSION_DENIED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call(b"", metadata=metadata)
            assert error.value.code() is code
