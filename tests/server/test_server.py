"""How servers begin and end."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.testing import until


def make_table(name: str = "t") -> ra.Table:
    return ra.Table(name, max_size=10)


class TestTables:
    def test_a_server_needs_tables_of_distinct_names(self):
        with pytest.raises(ra.InvalidArgument, match="at least one table"):
            ra.Server([])
        with pytest.raises(ra.InvalidArgument, match="two tables are named 't'"):
            ra.Server([make_table(), make_table()])
        with pytest.raises(ra.InvalidArgument, match="tables is a list: put the table into one"):
            ra.Server(make_table())
        with pytest.raises(ra.InvalidArgument, match=r"must be reverb_async\.Table objects, got 'replay'"):
            ra.Server(["replay"])

    async def test_a_table_serves_one_server_at_a_time(self):
        table, other = make_table(), make_table("other")
        async with ra.Server([table], port=None) as server:
            with pytest.raises(ra.InvalidArgument, match="table 't' belongs to a running server"):
                await ra.Server([other, table], port=None).start()
            async with server.client() as client:  # The table is still open, and the other one free.
                await client.insert({"x": 1}, {"t": 1.0})
            async with ra.Server([other], port=None):
                pass

    async def test_a_table_keeps_its_items_for_the_next_server(self):
        table = make_table()
        for count in range(1, 3):
            async with ra.Server([table], port=None) as server, server.client() as client:
                await client.insert({"x": count}, {"t": 1.0})
                assert (await client.server_info())["t"].current_size == count


class TestAddresses:
    async def test_the_port_is_the_real_one(self):
        async with ra.Server([make_table()], port=0) as server:
            assert server.port is not None
            assert server.port > 0
            assert server.address == f"127.0.0.1:{server.port}"

    async def test_a_taken_port_is_named(self):
        async with ra.Server([make_table()]) as server:
            with pytest.raises(
                ra.InvalidArgument, match=f"port {server.port} of 127.0.0.1 is taken by another process"
            ):
                await ra.Server([make_table()], port=server.port).start()

    def test_other_machines_need_insecure(self):
        with pytest.raises(ra.InvalidArgument, match=r"host='0.0.0.0' can be reached from other machines"):
            ra.Server([make_table()], host="0.0.0.0")
        ra.Server([make_table()], host="0.0.0.0", insecure=True)

    async def test_a_server_without_any_address_says_so(self):
        async with ra.Server([make_table()], port=None) as server:
            with pytest.raises(ra.InvalidArgument, match=r"listens nowhere: use server\.client\(\)"):
                _ = server.address

    async def test_tcp_and_a_unix_socket_at_once(self, tmp_path):
        path = tmp_path / "replay.sock"
        async with (
            ra.Server([make_table()], unix_path=path) as server,
            ra.Client(server.address) as one,
            ra.Client(server.unix_address) as other,
        ):
            keys = await one.insert({"x": 1}, {"t": 1.0})
            assert (await other.sample_one("t")).info.key == keys["t"]
        assert not path.exists()

    async def test_a_socket_file_left_by_a_killed_server_is_replaced_a_living_one_is_not(self, tmp_path):
        path = tmp_path / "replay.sock"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        async with ra.Server([make_table()], port=None, unix_path=path):
            with pytest.raises(ra.InvalidArgument, match="another server listens on"):
                await ra.Server([make_table()], port=None, unix_path=path).start()
        path.write_text("not a socket")
        with pytest.raises(ra.InvalidArgument, match="is not a socket"):
            await ra.Server([make_table()], port=None, unix_path=path).start()


class TestEnds:
    async def test_a_server_starts_once_and_closes_as_often_as_one_likes(self):
        server = ra.Server([make_table()])
        with pytest.raises(ra.Closed, match="not running"):
            server.client()
        await server.start()
        with pytest.raises(ra.Closed, match="started before"):
            await server.start()
        waiting = asyncio.create_task(server.wait())
        await server.close()
        await server.close()
        await asyncio.wait_for(waiting, 5)

    async def test_idle_streams_of_other_processes_end_with_the_reason(self):
        async with ra.Server([make_table()]) as server, ra.Client(server.address, connect_timeout=0.2) as client:
            await client.insert({"x": 1}, {"t": 1.0})
            async with client.sample_batches("t", 4, prefetch=0) as batches:
                await anext(batches)
                await server.close()
                with pytest.raises(ra.Unavailable):
                    await anext(batches)

    async def test_a_server_that_cannot_start_leaves_its_tables_to_others(self):
        table = make_table()
        async with ra.Server([make_table("blocker")]) as blocker:
            with pytest.raises(ra.InvalidArgument, match="is taken"):
                await ra.Server([table], port=blocker.port).start()
        async with ra.Server([table], port=None) as server, server.client() as client:
            await client.insert({"x": 1}, {"t": 1.0})

    async def test_memory_of_deleted_rows_goes_back_while_serving(self):
        table = ra.Table("t", max_size=100)
        async with ra.Server([table], port=None) as server, server.client() as client:
            await client.insert_batch({"x": np.zeros((64, 1 << 17), np.uint8)}, {"t": 1.0})
            storage = server._replay.storage
            full = storage.usage().resident_bytes
            assert full > 8 << 20
            await client.reset("t")
            await until(lambda: storage.usage().resident_bytes < full / 4)


class TestWaiters:
    async def test_server_info_says_who_waits_for_what_since_when(self, tmp_path):
        queue, empty = ra.Table.queue("q", 1), make_table("empty")
        before = time.time()
        async with (
            ra.Server([queue, empty], unix_path=tmp_path / "s") as server,
            ra.Client(server.address) as over_tcp,
            ra.Client(server.unix_address) as over_unix,
            server.client() as within,
        ):
            await within.insert({"x": 0}, {"q": 1.0})
            waiting = []
            for call in (
                over_tcp.insert({"x": 1}, {"q": 1.0}),
                within.insert({"x": 2}, {"q": 1.0}),
                over_unix.sample_one("empty"),
            ):
                waiting.append(asyncio.create_task(call))
                await until(lambda: len(waiting) == sum(w.count for t in (queue, empty) for w in t.info.waiters))
            described = await over_tcp.server_info()
            (inserts,), (samples,) = described["q"].waiters, described["empty"].waiters
            assert (inserts.kind, inserts.count, samples.kind, samples.count) == ("insert", 2, "sample", 1)
            assert inserts.peers[0].startswith("127.0.0.1:")
            assert inserts.peers[1:] == ("the server's process",)
            if sys.platform == "linux":
                assert samples.peers == (f"process {os.getpid()}",)
            assert before <= inserts.since <= time.time()
            assert "max_diff" in inserts.reason
            assert samples.reason.startswith("table 'empty' needs 1 more insert")
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            assert not (await over_tcp.server_info())["q"].waiters
