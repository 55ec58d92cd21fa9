"""Finding the memory of another process, and not mistaking anything else for it."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reverb_async.core.storage.backing import PAGE, PlatformBacking, PrivateBacking
from reverb_async.protocol import same_host
from reverb_async.protocol.control_page import LEASE_SLOTS, PAGE_BYTES, ControlPage, ControlView
from reverb_async.protocol.hello import MemoryOffer
from reverb_async.protocol.same_host import host_mark, map_memory, obstacle, pid_namespace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process map another's memory")

TOKEN = bytes(range(16))


def an_offer(**changes) -> MemoryOffer:
    offer = MemoryOffer(os.getpid(), pid_namespace(), os.geteuid(), host_mark(TOKEN), 3, TOKEN)
    return dataclasses.replace(offer, **changes)


def num_mapped() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:reverb_async")


class TestObstacles:
    def test_nothing_speaks_against_a_server_on_the_same_host(self):
        assert obstacle(an_offer()) is None

    def test_a_server_that_offers_nothing(self):
        assert obstacle(None) == "the server does not share its memory"

    def test_a_server_on_another_host(self, monkeypatch, tmp_path):
        offer = an_offer()
        other = tmp_path / "boot_id"
        other.write_text("another host's\n")
        monkeypatch.setattr(same_host, "_BOOT_ID", other)
        assert obstacle(offer) == "the server is on another host"

    def test_a_server_in_another_container(self):
        assert "in another container" in str(obstacle(an_offer(pid_namespace=1)))

    def test_a_server_of_another_user(self):
        assert obstacle(an_offer(uid=os.geteuid() + 1)) == "the server runs as another user"

    def test_a_host_that_does_not_tell_who_it_is(self, monkeypatch, tmp_path):
        offer = an_offer()
        monkeypatch.setattr(same_host, "_BOOT_ID", tmp_path / "missing")
        assert "does not tell its boot id: No such file" in str(obstacle(offer))

    def test_a_host_without_namespaces_has_number_0(self, monkeypatch, tmp_path):
        monkeypatch.setattr(same_host, "_PID_NAMESPACE", tmp_path / "missing")
        assert pid_namespace() == 0

    @pytest.mark.parametrize("platform", ["darwin", "win32"])
    def test_other_platforms(self, monkeypatch, platform):
        offer = an_offer()
        monkeypatch.setattr(sys, "platform", platform)
        assert obstacle(offer) == f"{platform} cannot map the memory of another process"

    def test_what_tells_hosts_apart_does_not_disclose_the_boot_id(self):
        assert host_mark(TOKEN) == host_mark(TOKEN) != host_mark(bytes(16))
        assert len(host_mark(TOKEN)) == 16


class TestMapping:
    def test_a_mapping_shows_what_the_owner_writes_and_cannot_be_written(self):
        backing = PlatformBacking(3 * PAGE)
        memory = map_memory(os.getpid(), backing.fd, 3 * PAGE, os.fstat(backing.fd).st_ino)
        backing.array[PAGE] = 7
        assert memory[PAGE] == 7
        assert not memory.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            memory[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            memory.flags.writeable = True

    def test_it_ends_with_the_last_view(self):
        gc.collect()
        before, descriptors = num_mapped(), len(os.listdir("/proc/self/fd"))
        backing = PlatformBacking(PAGE)
        view = map_memory(os.getpid(), backing.fd, PAGE)[3:5]
        assert num_mapped() == before + 2
        del view
        assert num_mapped() == before + 1
        del backing
        assert num_mapped() == before
        assert len(os.listdir("/proc/self/fd")) == descriptors

    def test_pages_that_were_given_back_read_as_zeros(self):
        backing = PlatformBacking(2 * PAGE)
        backing.array[:] = 9
        memory = map_memory(os.getpid(), backing.fd, 2 * PAGE)
        backing.release(0, PAGE)
        assert not memory[:PAGE].any()
        assert (memory[PAGE:] == 9).all()

    def test_what_is_something_else_is_refused(self, tmp_path):
        backing = PlatformBacking(PAGE)
        inode = os.fstat(backing.fd).st_ino
        for nbytes, number in ((2 * PAGE, inode), (PAGE, inode + 1)):
            with pytest.raises(OSError, match="something else"):
                map_memory(os.getpid(), backing.fd, nbytes, number)
        path = tmp_path / "file"
        path.write_bytes(bytes(PAGE))
        with path.open("rb") as file, pytest.raises(OSError, match="something else"):
            map_memory(os.getpid(), file.fileno(), PAGE)

    def test_a_file_that_could_shrink_is_refused(self):
        fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, PAGE)
            with pytest.raises(OSError, match="something else"):
                map_memory(os.getpid(), fd, PAGE)
        finally:
            os.close(fd)

    def test_a_pipe_without_a_writer_does_not_make_it_wait(self):
        reading, writing = os.pipe()
        os.close(writing)
        try:
            with pytest.raises(OSError, match="something else"):
                map_memory(os.getpid(), reading, PAGE)
        finally:
            os.close(reading)

    def test_a_process_or_a_descriptor_that_does_not_exist(self):
        with subprocess.Popen(["true"]) as gone:
            gone.wait()
        for pid, fd in ((gone.pid, 3), (os.getpid(), 1 << 20), (1 << 40, 3)):
            with pytest.raises(FileNotFoundError):
                map_memory(pid, fd, PAGE)


class TestControlPage:
    def test_clients_see_which_leases_hold(self):
        page = ControlPage()
        view = ControlView(map_memory(os.getpid(), page.fd, PAGE_BYTES))
        assert (view.token, view.secret) == (page.token, page.secret)
        for slot in (0, 5, LEASE_SLOTS - 1):
            assert not view.holds(slot, 8)
            page.set(slot, 8)
            assert view.holds(slot, 8)
            assert not view.holds(slot, 7)
            page.clear(slot)
            assert not view.holds(slot, 8)

    def test_ids_use_all_64_bits(self):
        page = ControlPage()
        view = ControlView(page._backing.array)
        page.set(1, 2**63 - 1)
        assert view.holds(1, 2**63 - 1)
        assert not view.holds(1, 2**63 - 2)

    def test_tokens_and_secrets_differ_from_page_to_page(self):
        pages = [ControlPage() for _ in range(8)]
        assert len({page.token for page in pages} | {page.secret for page in pages}) == 16

    def test_private_memory_has_nothing_to_map(self):
        page = ControlPage(PrivateBacking)
        page.set(3, 1)
        assert page.fd is None
        assert np.count_nonzero(page._words) == 1
