"""A client that has never heard of this package: protoc's messages, grpcio's channel, MessagePack and NumPy."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import threading

import grpc
import msgpack
import numpy as np
import pytest

import reverb_async as ra
from reverb_async.wire.regenerate import PROTOS

SMALL = [["float32", [2]], ["int64", []]]
STRUCTURE = ra.core.nest.flatten({"obs": 0, "step": 0})[1].to_wire()


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Run protoc on the protocol; return a program's preamble that finds what it made."""
    folder = tmp_path_factory.mktemp("generated")
    for proto in ("reverb_async/v1/replay.proto", "grpc/health/v1/health.proto"):
        name = proto.rpartition("/")[2]
        (folder / f"foreign_{name}").write_text((PROTOS / proto).read_text())
    protos = [path.name for path in folder.glob("*.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--python_out={folder}"]
    subprocess.run([*command, f"--grpc_python_out={folder}", *protos], check=True)
    sys.path.insert(0, str(folder))
    import foreign_health_pb2
    import foreign_health_pb2_grpc
    import foreign_replay_pb2
    import foreign_replay_pb2_grpc

    sys.path.remove(str(folder))
    return foreign_replay_pb2, foreign_replay_pb2_grpc, foreign_health_pb2, foreign_health_pb2_grpc


class Talk:
    """A bidirectional stream of frames, driven from a thread."""

    def __init__(self, messages, method):
        self._messages = messages
        self._outgoing = queue.SimpleQueue()
        self._incoming = method(iter(self._outgoing.get, None), timeout=30)

    def say(self, header, *buffers):
        frame = self._messages.Frame(header=msgpack.packb(header), buffers=[buffer.tobytes() for buffer in buffers])
        self._outgoing.put(frame)

    def hear(self):
        frame = next(self._incoming)
        return msgpack.unpackb(frame.header), frame.buffers

    def end(self):
        self._outgoing.put(None)
        return list(self._incoming)


def in_thread(function, *arguments):
    """Run blocking code beside the event loop; a daemon thread, so that a failure cannot keep the process alive."""
    future = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def run():
        try:
            result = function(*arguments)
        except BaseException as error:
            loop.call_soon_threadsafe(future.set_exception, error)
        else:
            loop.call_soon_threadsafe(future.set_result, result)

    threading.Thread(target=run, daemon=True).start()
    return future


def insert_sample_update(generated, address):
    """Insert five items, sample four of them, change and delete some."""
    messages, services, _, _ = generated
    with grpc.insecure_channel(address) as channel:
        stub = services.ReplayStub(channel)
        hello = stub.Hello(messages.HelloRequest(protocol_version=1), timeout=10)
        keys = np.arange(5, dtype=np.uint64) + hello.key_block

        inserting = Talk(messages, stub.Insert)
        inserting.say({"session": b"s" * 16})
        assert inserting.hear()[0]["applied_through"] == 0
        inserting.say(
            {
                "groups": [[0, SMALL]],
                "layouts": [[0, STRUCTURE, [0], [[0, 0, True], [0, 1, True]]]],
                "steps": [[0, 0, 5]],
                "items": [
                    {"seq": 1, "layout": 0, "tables": ["queue"], "count": 5, "segments": [[5, False]], "timeout": None}
                ],
            },
            np.arange(10, dtype=np.float32),
            np.arange(5),
            keys,
            np.full(5, np.nan),
            np.arange(5),
            np.ones(5, np.int64),
        )
        assert inserting.hear()[0]["acks"] == [[1, 5]]
        assert inserting.end() == []

        sampling = Talk(messages, stub.Sample)
        sampling.say({"subscribe": {"table": "queue", "batch_size": 2}, "credits": 2})
        header, buffers = sampling.hear()
        assert header["batches"][0][:2] == [1, 2]
        assert np.frombuffer(buffers[0], np.uint64).tolist() == keys[:2].tolist()
        assert np.frombuffer(buffers[6], np.float32).reshape(2, 2).tolist() == [[0, 1], [2, 3]]
        assert np.frombuffer(buffers[7], np.int64).tolist() == [0, 1]
        sampling.hear()
        sampling.say({"consumed": 1, "end": True})
        assert sampling.end() == []  # The second batch was not consumed: it goes back.

        mutated = stub.MutatePriorities(
            messages.MutatePrioritiesRequest(
                table="queue", update_keys=[keys[2], 77], update_priorities=[3.0, 1.0], delete_keys=[keys[4]]
            ),
            timeout=10,
        )
        assert (mutated.updated, mutated.deleted, mutated.unknown) == (1, 1, 1)
        updating = Talk(messages, stub.Update)
        updating.say({"seq": 1, "table": "queue", "updates": 1, "deletes": 0}, keys[3:4], np.array([4.0]), keys[:0])
        assert updating.hear()[0] == {"done": [[1, 1, 0, 0]]}
        updating.say({"seq": 2, "table": "queue", "updates": 1, "deletes": 0}, keys[3:4], np.array([np.inf]), keys[:0])
        assert updating.hear()[0]["refused"][0][1]["type"] == "InvalidArgument"
        updating.end()
        (info,) = stub.ServerInfo(messages.ServerInfoRequest(), timeout=10).tables
        stub.Reset(messages.ResetRequest(table="queue"), timeout=10)
        return info


async def test_a_stock_client_inserts_samples_and_updates(generated):
    async with ra.Server([ra.Table.queue("queue", 10)]) as server:
        info = await in_thread(insert_sample_update, generated, server.address)
        assert info.current_size == 2
        assert info.num_deletes == 3
        assert info.rate_limiter_info.insert_stats.completed == 5
        assert info.rate_limiter_info.sample_stats.completed == 2
        assert server.tables["queue"].info.current_size == 0


def poison(generated, address):
    """Send items that are wrong in one way each; return what the server says to each."""
    messages, services, _, _ = generated
    with grpc.insecure_channel(address) as channel:
        talk = Talk(messages, services.ReplayStub(channel).Insert)
        talk.say({"session": b"p" * 16})
        talk.hear()
        declared = {"groups": [[0, SMALL]], "layouts": [[0, STRUCTURE, [0], [[0, 0, True], [0, 1, True]]]]}
        said = []
        wrong = [(0, -1.0, 0, "t"), (0, np.inf, 0, "t"), (0, 1.0, 7, "t"), (3, 1.0, 0, "t"), (0, 1.0, 0, "nope")]
        for at, (layout, priority, step, table) in enumerate([*wrong, (0, 1.0, 0, "t")]):
            steps = [np.zeros(2, np.float32), np.zeros(1, np.int64)]
            item = {"seq": at + 1, "layout": layout, "tables": [table], "count": 1, "segments": [[1, False]]}
            talk.say(
                {**(declared if at == 0 else {}), "steps": [[0, at, 1]], "items": [item]},
                *steps,
                np.array([at + 1], np.uint64),
                np.array([priority]),
                np.array([step]),
                np.array([1]),
            )
            said.append(talk.hear()[0])
        talk.end()
        return said


async def test_a_bad_item_harms_only_its_sender(generated):
    table = ra.Table("t", max_size=10, sampler=ra.selectors.Prioritized(0.6))
    async with ra.Server([table]) as server, ra.Client(server.address) as client:
        *refusals, accepted = await in_thread(poison, generated, server.address)
        kinds = [refusal["refused"][0][2]["type"] for refusal in refusals]
        assert kinds == ["InvalidArgument"] * 4 + ["TableNotFound"]
        assert accepted == {"acks": [[6, 1]]}
        await client.insert({"obs": np.zeros(2, np.float32), "step": 1}, {"t": 1.0})
        batch = await client.sample_batch("t", 16, timeout=5)
        assert set(batch.info.priority) == {1.0}


async def test_the_health_service_answers(generated):
    *_, messages, services = generated

    def check(address):
        with grpc.insecure_channel(address) as channel:
            stub = services.HealthStub(channel)
            return [
                stub.Check(messages.HealthCheckRequest(service=name), timeout=10).status
                for name in ("", "reverb_async.v1.Replay", "other")
            ]

    async with ra.Server([ra.Table("t", max_size=1)]) as server:
        assert await in_thread(check, server.address) == [1, 1, 3]
