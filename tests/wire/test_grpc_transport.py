"""The client's way to a server."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest
from wire_services import Service, echo, hello, ignore, no_table, serving, until

from reverb_async.core.info import RateLimiterInfo, TableInfo
from reverb_async.errors import Closed, InvalidArgument, NotFound, ReplayError, TableNotFound, Unavailable
from reverb_async.protocol.hello import Hello
from reverb_async.protocol.message import Message
from reverb_async.wire.generated.reverb_async import v1
from reverb_async.wire.table_info import table_info_to_proto
from reverb_async.wire.transport import GrpcTransport, parse_address

pytestmark = pytest.mark.usefixtures("data_path")

table = TableInfo(
    name="replay",
    sampler_options={"uniform": True, "is_deterministic": False},
    remover_options={"fifo": True, "is_deterministic": True},
    max_size=10,
    max_times_sampled=0,
    rate_limiter_info=RateLimiterInfo(samples_per_insert=1.0, min_size_to_sample=1, min_diff=-1.0, max_diff=1.0),
)


async def tables(request):
    return v1.ServerInfoResponse(tables=[table_info_to_proto(table)])


async def mutate(request):
    return v1.MutatePrioritiesResponse(
        updated=len(request.update_keys), deleted=len(request.delete_keys), unknown=int(request.update_priorities[0])
    )


async def checkpoint(request):
    return v1.CheckpointResponse(path="/data/1")


async def silence(request):
    await asyncio.Event().wait()


async def nonsense(request):
    return v1.TableInfo(signature=b"x")


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000, None)),
        ("replay.example:1", ("replay.example", 1, None)),
        ("[::1]:65535", ("::1", 65535, None)),
        ("unix:///run/replay.sock", (None, None, "/run/replay.sock")),
        ("unix://replay.sock", (None, None, "replay.sock")),
    ],
)
def test_addresses_name_a_port_or_a_socket(address, target):
    assert parse_address(address) == target


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":80", "host:http", "host:0", "host:65536", "host:-1", "unix://", "h:٣"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(InvalidArgument, match="host:port"):
        GrpcTransport(address)


async def test_control_calls_carry_everything_both_ways():
    service = Service(Hello=hello, ServerInfo=tables, MutatePriorities=mutate, Checkpoint=checkpoint)
    async with serving(service) as (_, address):
        transport = GrpcTransport(address)
        assert await transport.hello(features=["a", "b"], client_name="me") == Hello(
            protocol_version=1,
            features=("a", "b"),
            server_epoch=b"me" + b"." * 14,
            key_block=5 << 20,
            max_message_bytes=64 << 20,
        )
        assert await transport.server_info() == [table]
        assert await transport.mutate("replay", [1, 2**64 - 1], [7.0, 0.5], [3]) == (2, 1, 7)
        assert await transport.checkpoint() == "/data/1"
        await transport.close()


async def test_refusals_come_as_the_errors_they_were():
    async with serving(Service(Reset=no_table)) as (_, address):
        transport = GrpcTransport(address)
        with pytest.raises(TableNotFound, match="no table named 'x'; this server has: 'a', 'b'"):
            await transport.reset("x")
        with pytest.raises(ReplayError, match="UNIMPLEMENTED"):
            await transport.checkpoint()
        with pytest.raises(InvalidArgument, match="no valid Unicode"):
            await transport.reset("\ud800")
        await transport.close()


async def test_a_huge_refusal_still_arrives():
    async def refuse(request):
        raise TableNotFound(request.table, [f"table-{number}" for number in range(10_000)])

    async with serving(Service(Reset=refuse)) as (_, address):
        transport = GrpcTransport(address)
        with pytest.raises(NotFound, match="this server has: 'table-0', 'table-1'"):
            await transport.reset("x")
        await transport.close()


async def test_a_malformed_answer_is_an_error_of_ours():
    async with serving(Service(Hello=nonsense, ServerInfo=nonsense)) as (_, address):
        transport = GrpcTransport(address)
        for call in (transport.server_info, transport.hello):
            with contextlib.suppress(ReplayError):
                await call()
        await transport.close()


async def test_inserts_samples_and_the_rest_have_a_connection_each():
    async with serving(Service(Insert=echo, Sample=echo, Update=echo, Hello=hello)) as (server, address):
        transport = GrpcTransport(address)
        assert server.num_connections == 0
        expected = {"insert": 1, "sample": 2, "update": 3}
        for kind, connections in expected.items():
            for _ in range(2):
                duplex = await transport.open(kind)
                await duplex.send(Message({"kind": kind}))
                assert (await duplex.receive()).header == {"kind": kind}
                assert server.num_connections == connections
                duplex.abort()
        await transport.hello()
        assert server.num_connections == 3
        await transport.close()


async def test_an_unreachable_server_is_named_with_the_cause(tmp_path):
    async with serving(Service()) as (_, gone):
        pass
    for address, cause in (
        (gone, "refused|failed"),
        (f"unix://{tmp_path}/none", "No such file"),
        ("host.invalid:1", ""),
    ):
        transport = GrpcTransport(address)
        for call in (transport.hello, lambda transport=transport: transport.open("sample")):
            with pytest.raises(Unavailable, match=rf"cannot reach .*({cause})") as caught:
                await call()
            assert address in str(caught.value)
        await transport.close()


async def test_a_server_that_vanishes_in_a_call_is_unavailable():
    async with serving(Service(Hello=silence)) as (server, address):
        transport = GrpcTransport(address)
        calls = [asyncio.create_task(transport.hello()) for _ in range(3)]
        await until(lambda: server.num_connections == 1)
        server.abort_all()
        for call in calls:
            with pytest.raises(Unavailable, match=address):
                await call
    with pytest.raises(Unavailable, match=address):
        await transport.hello()
    await transport.close()


async def test_a_lost_connection_is_made_again(tmp_path):
    path = str(tmp_path / "socket")
    transport = GrpcTransport(f"unix://{path}")
    for _ in range(3):
        async with serving(Service(Hello=hello), path=path):
            assert (await transport.hello()).protocol_version == 1
        with pytest.raises(Unavailable):
            await transport.hello()
    await transport.close()


async def test_a_cancelled_call_ends_at_the_server_too():
    service = Service(Hello=silence, Insert=ignore)
    async with serving(service) as (server, address):
        transport = GrpcTransport(address)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await transport.hello()
        (connection,) = server._endpoint.connections
        await until(lambda: not connection.processor.streams)
        await transport.close()


async def test_a_server_that_is_no_grpc_server_is_unavailable():
    async def answer(reader, writer):
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    transport = GrpcTransport(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(Unavailable):
        await transport.hello()
    await transport.close()
    server.close()
    await server.wait_closed()


async def test_closing_is_idempotent_and_final():
    async with serving(Service(Hello=hello, Insert=ignore)) as (server, address):
        transport = GrpcTransport(address)
        await transport.hello()
        duplex = await transport.open("insert")
        receiving = asyncio.create_task(duplex.receive())
        await asyncio.sleep(0)
        await transport.close()
        await transport.close()
        with pytest.raises(Unavailable):
            await receiving
        with pytest.raises(Closed, match=address):
            await transport.hello()
        await until(lambda: server.num_connections == 0)
        del transport, duplex, receiving
        gc.collect()
