"""The conformance suite over every way there is to a server."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager

import pytest

import reverb_async as ra
from reverb_async.service import lender
from reverb_async.testing import ConformanceSuite


class TestTcp(ConformanceSuite):
    @asynccontextmanager
    async def serving(self, tables):
        async with ra.Server(tables) as server, ra.Client(server.address, shared_memory=False) as client:
            assert client.transport == "tcp"
            yield server, client
            assert client.transport == "tcp"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process map another's memory")
class TestSharedMemory(ConformanceSuite):
    @pytest.fixture(autouse=True)
    def _lend_everything(self, monkeypatch):
        monkeypatch.setattr(lender, "MIN_LENT_BYTES", 1)

    @asynccontextmanager
    async def serving(self, tables):
        async with ra.Server(tables) as server, ra.Client(server.address) as client:
            await client.server_info()
            assert client.transport == "tcp + shared memory"
            yield server, client
            assert client.transport == "tcp + shared memory"


class TestTcpWithH2ForEveryFrame(TestTcp):
    @pytest.fixture(autouse=True)
    def _stock_data_path(self, monkeypatch):
        monkeypatch.setenv("REVERB_ASYNC_DATA_PATH", "stock")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")
class TestUnixSocket(ConformanceSuite):
    @pytest.fixture(autouse=True)
    def _in_directory(self, tmp_path):
        self.path = tmp_path / "replay.sock"

    @asynccontextmanager
    async def serving(self, tables):
        async with ra.Server(tables, port=None, unix_path=self.path) as server, ra.Client(server.address) as client:
            assert client.transport == "unix"
            yield server, client


class TestInProcess(ConformanceSuite):
    @asynccontextmanager
    async def serving(self, tables):
        async with ra.Server(tables, port=None) as server, server.client() as client:
            assert client.transport == "in-process"
            yield server, client
