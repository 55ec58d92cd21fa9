"""Whether a client uses the memory of its server, and what it says about that."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

import reverb_async as ra
from reverb_async.client.shared_memory import SharedMemory
from reverb_async.protocol import control_page, same_host
from reverb_async.protocol.lending import LentStore
from reverb_async.service import lender
from reverb_async.service.leases import SWITCH, Leases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process map another's memory")

FRAMES = {"frame": np.arange(32 * 8192, dtype=np.int64).reshape(32, 8192)}


@pytest.fixture
def leases():
    return Leases.of_this_process()


def described(offer, *, enabled=True):
    memory = SharedMemory(enabled)
    memory.learn(offer)
    assert (memory.page is None) or memory.why_not is None
    return memory.describe("tcp")


class TestWhatAClientSays:
    def test_before_it_has_met_a_server(self):
        assert SharedMemory(True).describe("unix") == "unix"

    def test_when_memory_is_shared(self, leases):
        assert described(leases.offer()) == "tcp + shared memory"

    def test_when_it_was_switched_off(self, leases):
        assert described(leases.offer(), enabled=False) == "tcp"

    def test_when_the_server_offers_nothing(self):
        assert described(None) == "tcp (no shared memory: the server does not share its memory)"

    def test_when_the_server_is_on_another_host(self, leases):
        offer = dataclasses.replace(leases.offer(), host=bytes(16))
        assert described(offer) == "tcp (no shared memory: the server is on another host)"

    @pytest.mark.parametrize("size", [0, 15, 65, 1000])
    def test_when_the_offer_makes_no_sense(self, leases, size):
        offer = dataclasses.replace(leases.offer(), token=bytes(size))
        assert described(offer) == (
            f"tcp (no shared memory: the server's offer has a token of {size} bytes instead of 16)"
        )

    def test_when_there_is_no_such_process_or_descriptor(self, leases):
        for change in ({"pid": 1 << 40}, {"fd": 1 << 20}):
            offer = dataclasses.replace(leases.offer(), **change)
            assert described(offer) == (
                "tcp (no shared memory: the server's memory cannot be opened: No such file or directory)"
            )

    def test_when_proc_does_not_let_it(self, leases, monkeypatch):
        def refuse(*args):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(same_host.os, "open", refuse)
        assert described(leases.offer()) == (
            "tcp (no shared memory: the server's memory cannot be opened: Permission denied)"
        )

    def test_when_another_memory_file_stands_there(self, leases):
        other = control_page.ControlPage()
        offer = dataclasses.replace(leases.offer(), fd=other.fd)
        assert described(offer) == ("tcp (no shared memory: what is in the place of the server's memory is not it)")

    def test_when_a_store_cannot_be_mapped(self, leases, caplog):
        memory = SharedMemory(True)
        memory.learn(leases.offer())
        fd = leases._page.fd
        page = memory.page
        assert memory.map(LentStore(0, fd, os.fstat(fd).st_ino, 64), page) is not None
        assert memory.map(LentStore(0, fd, os.fstat(fd).st_ino, 1 << 62), page) is None
        assert "cannot be mapped: that descriptor now stands for something else" in memory.describe("tcp")
        assert "over the wire from now on" in caplog.text
        memory.learn(leases.offer())
        assert memory.page is None, "the same server is not tried again"
        another = Leases.of_this_process()
        memory.learn(another.offer())
        assert memory.describe("tcp") == "tcp + shared memory"

    @pytest.mark.parametrize("offers", [True, False])
    def test_a_store_of_a_server_that_was_replaced_does_not_end_sharing_with_its_successor(self, leases, offers):
        memory = SharedMemory(True)
        memory.learn(leases.offer())
        page, fd = memory.page, leases._page.fd
        another = Leases.of_this_process()
        memory.learn(another.offer() if offers else None)
        said = memory.describe("tcp")
        assert memory.map(LentStore(0, fd, os.fstat(fd).st_ino + 1, 64), page) is None
        assert memory.describe("tcp") == said

    def test_it_keeps_the_page_of_a_server_that_says_hello_again(self, leases):
        memory = SharedMemory(True)
        memory.learn(leases.offer())
        page = memory.page
        memory.learn(leases.offer())
        assert memory.page is page
        memory.learn(None)
        assert memory.page is None


async def sample_from(server: ra.Server, **options) -> tuple[str, np.ndarray]:
    async with ra.Client(server.address, **options) as client:
        batch = await client.sample_batch("t", 32)
        return client.transport, batch.data["frame"]


class TestAcrossTheWire:
    async def test_it_is_used_by_default(self):
        async with ra.Server([ra.Table("t", max_size=100, sampler=ra.selectors.Fifo())]) as server:
            async with ra.Client(server.address) as client:
                assert client.transport == "tcp"
                await client.insert_batch(FRAMES, {"t": 1.0})
                assert client.transport == "tcp + shared memory"
            for options, transport in (
                ({}, "tcp + shared memory"),
                ({"shared_memory": "auto"}, "tcp + shared memory"),
                ({"shared_memory": False}, "tcp"),
            ):
                before = server._service.leases.num_granted
                told, frames = await sample_from(server, **options)
                assert told == transport
                assert (frames == FRAMES["frame"][0]).all()
                assert server._service.leases.num_granted - before == ("shared" in transport)

    async def test_the_server_can_switch_it_off(self, monkeypatch):
        monkeypatch.setenv(SWITCH, "off")
        async with ra.Server([ra.Table("t", max_size=100)]) as server:
            async with ra.Client(server.address) as client:
                await client.insert_batch(FRAMES, {"t": 1.0})
            told, _ = await sample_from(server)
            assert told == "tcp (no shared memory: the server does not share its memory)"

    async def test_a_server_that_seems_to_be_elsewhere_is_reached_over_the_wire(self, monkeypatch, tmp_path):
        async with ra.Server([ra.Table("t", max_size=100)]) as server:
            offer = server._service.leases.offer()
            monkeypatch.setattr(server._service.leases, "offer", lambda: offer)
            other = tmp_path / "boot_id"
            other.write_text("another host's\n")
            monkeypatch.setattr(same_host, "_BOOT_ID", other)
            async with ra.Client(server.address) as client:
                await client.insert_batch(FRAMES, {"t": 1.0})
            told, frames = await sample_from(server)
            assert told == "tcp (no shared memory: the server is on another host)"
            assert frames.shape == (32, 8192)
            assert server._service.leases.num_granted == 0

    def test_on_other_platforms_everything_goes_over_the_wire(self):
        program = """
import asyncio, sys
import numpy as np
import uvloop, dateutil.tz, grpclib.client, grpclib.server  # What looks at the platform while it is imported.
sys.platform = "darwin"
import reverb_async as ra

async def main():
    async with ra.Server([ra.Table("t", max_size=100)]) as server, ra.Client(server.address) as client:
        await client.insert_batch({"x": np.zeros((10, 1 << 16))}, {"t": 1.0})
        assert (await client.sample_batch("t", 10)).data["x"].shape == (10, 1 << 16)
        print(client.transport)

asyncio.run(main())
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout == "tcp (no shared memory: darwin cannot map the memory of another process)\n", done.stderr

    async def test_over_a_unix_socket_too(self, tmp_path):
        async with (
            ra.Server([ra.Table("t", max_size=100)], port=None, unix_path=tmp_path / "s") as server,
            ra.Client(server.address) as client,
        ):
            await client.insert_batch(FRAMES, {"t": 1.0})
            assert client.transport == "unix + shared memory"

    async def test_small_batches_travel_in_messages(self):
        async with ra.Server([ra.Table("t", max_size=100)]) as server, ra.Client(server.address) as client:
            await client.insert_batch({"x": np.arange(100)}, {"t": 1.0})
            rows = lender.MIN_LENT_BYTES // 8
            await client.sample_batch("t", rows - 1)
            assert server._service.leases.num_granted == 0
            await client.sample_batch("t", rows)
            assert server._service.leases.num_granted == 1


PRETENDED = """
import asyncio, {modules}
{before}
import numpy as np
import reverb_async as ra

async def main():
    async with ra.Server([ra.Table("t", max_size=100, sampler=ra.selectors.Fifo())], port=0) as server:
        async with ra.Client(server.address) as client:
            frames = np.arange(32 * 8192).reshape(32, 8192)
            await client.insert_batch({{"frame": frames}}, {{"t": 1.0}})
            batch = await client.sample_batch("t", 32)
            assert (batch.data["frame"] == frames[0]).all()
            print(client.transport)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("modules", "before", "why"),
    [
        ("os", "del os.memfd_create", "the server does not share its memory"),
        (
            "fcntl",
            "for name in [name for name in dir(fcntl) if 'SEAL' in name]: delattr(fcntl, name)",
            "this Python was built for a Linux without memory files",
        ),
    ],
    ids=["no memory files", "no seals"],
)
def test_a_python_that_was_built_for_an_older_linux_uses_the_wire(modules, before, why):
    code = PRETENDED.format(modules=modules, before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"tcp (no shared memory: {why})"
