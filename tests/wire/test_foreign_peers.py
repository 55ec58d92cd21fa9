"""Peers made with grpcio and protoc's own Python code."""

from __future__ import annotations

import asyncio
import importlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import grpc.aio
import numpy as np
import pytest
from wire_services import LOOPS, Service, echo, echoed, hello, no_table, serving

from reverb_async.errors import InvalidArgument, ResourceExhausted
from reverb_async.protocol.message import Message
from reverb_async.wire.codec import decode, encode, pack_map, unpack_map
from reverb_async.wire.regenerate import PROTOS
from reverb_async.wire.transport import GrpcTransport

pytestmark = pytest.mark.usefixtures("data_path")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Return protoc's own messages and grpcio's own stubs for our protocol."""
    folder = tmp_path_factory.mktemp("foreign")
    # Away from its own folder: the code for it is then a module of its own instead of one in a second `reverb_async`.
    shutil.copy(PROTOS / "reverb_async" / "v1" / "replay.proto", folder / "foreign_replay.proto")
    outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", *outputs, "foreign_replay.proto"]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(folder))
    try:
        messages = importlib.import_module("foreign_replay_pb2")
        services = importlib.import_module("foreign_replay_pb2_grpc")
    finally:
        sys.path.remove(str(folder))
    return SimpleNamespace(**vars(messages), **{k: v for k, v in vars(services).items() if "Replay" in k})


def frames(foreign, sizes):
    return [
        foreign.Frame(header=pack_map({"n": n}), buffers=[bytes(range(256)) * (n // 256), b"", b"\1" * (n % 256)])
        for n in sizes
    ]


def content(frame):
    return unpack_map(frame.header), list(frame.buffers)


SIZES = (0, 1, 255, 70_000, 3_000_000)
UNLIMITED = [("grpc.max_receive_message_length", -1)]


def talk(foreign, address):
    """Use every kind of call of a server, from a thread of its own."""
    with grpc.insecure_channel(address, UNLIMITED) as channel:
        stub = foreign.ReplayStub(channel)
        answer = stub.Hello(foreign.HelloRequest(features=["f"], client_name="grpcio"), timeout=10)
        assert (answer.server_epoch, list(answer.features)) == (b"grpcio" + b"." * 10, ["f"])
        sent = frames(foreign, SIZES)
        received = list(stub.Insert(iter(sent), timeout=20))
        assert [content(frame) for frame in received] == [content(frame) for frame in sent]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Reset(foreign.ResetRequest(table="x"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "no table named 'x'; this server has: 'a', 'b'"
        details = dict(caught.value.trailing_metadata())["reverb-async-error-bin"]
        assert unpack_map(details)["tables"] == ["a", "b"]
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Insert(iter([foreign.Frame(header=b"\xc1")]), timeout=10))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Insert(iter(frames(foreign, [1 << 23])), timeout=10))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        streams = [stub.Insert(iter(frames(foreign, [n])), timeout=10) for n in range(50)]
        assert [content(next(stream))[0]["n"] for stream in streams] == list(range(50))


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_grpcio_clients_are_served(foreign, loop_factory):
    async def scenario():
        service = Service(Hello=hello, Insert=echo, Reset=no_table)
        async with serving(service, max_message_bytes=4 << 20) as (_, address):
            with ThreadPoolExecutor(1) as thread:
                await asyncio.get_running_loop().run_in_executor(thread, talk, foreign, address)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


async def test_compressed_messages_of_grpcio_are_refused_with_words(foreign):
    def compressed(address):
        with grpc.insecure_channel(address, compression=grpc.Compression.Gzip) as channel:
            list(foreign.ReplayStub(channel).Insert(iter(frames(foreign, [70_000])), timeout=10))

    async with serving(Service(Insert=echo)) as (_, address):
        with ThreadPoolExecutor(1) as thread, pytest.raises(grpc.RpcError, match="send them uncompressed"):
            await asyncio.get_running_loop().run_in_executor(thread, compressed, address)


async def test_our_client_talks_to_a_grpcio_server(foreign):
    class Servicer(foreign.ReplayServicer):
        def Hello(self, request, context):
            return foreign.HelloResponse(protocol_version=1, server_epoch=request.client_name.encode() * 8)

        def Insert(self, requests, context):
            for frame in requests:
                header = unpack_map(frame.header)
                if header.get("fail"):
                    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such thing")
                yield foreign.Frame(header=frame.header, buffers=frame.buffers)

        def Sample(self, requests, context):
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details("no room")
            return iter(())

    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, options=UNLIMITED)
        foreign.add_ReplayServicer_to_server(Servicer(), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        async with asyncio.timeout(20):
            transport = GrpcTransport(address)
            assert (await transport.hello(client_name="me")).server_epoch == b"me" * 8
            duplex = await transport.open("insert")
            for size in (0, 1, 1000, 3_000_000, 20_000_000):
                message = Message({"size": size}, [np.resize(np.arange(251, dtype=np.uint8), size), np.arange(3)])
                await duplex.send(message)
                received = await duplex.receive()
                assert echoed(received) == echoed(message)
                assert all(buffer.flags.writeable and buffer.ctypes.data % 64 == 0 for buffer in received.buffers[1:])
            await duplex.send(Message({"fail": True}))
            with pytest.raises(InvalidArgument, match="no such thing"):
                await duplex.receive()
            duplex.abort()
            duplex = await transport.open("sample")
            with pytest.raises(ResourceExhausted, match="no room"):
                await duplex.receive()
            duplex.abort()
            duplex = await transport.open("insert")
            await duplex.end()
            assert await duplex.receive() is None
            duplex.abort()
            await transport.close()
        server.stop(None).wait()


def test_protocs_own_messages_read_ours_and_we_theirs(foreign):
    message = Message({"a": [1, "x"]}, [np.arange(100), np.empty(0), np.float32(1).reshape(())])
    frame = foreign.Frame.FromString(encode(message).join())
    assert content(frame) == echoed(message)
    assert echoed(decode(frame.SerializeToString())) == echoed(message)
