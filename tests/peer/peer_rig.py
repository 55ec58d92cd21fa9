"""Genuine clients and servers of dm-reverb in processes of their own, and a server of ours."""

from __future__ import annotations

import ast
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = Path(__file__).parent / "drivers"
_PATIENCE_S = 100.0  # Less than what a test may last.


class PeerError(AssertionError):
    """A call failed in the peer's process; the text is the traceback there."""


class Peer:
    """A process of the peer's interpreter that runs functions of `drivers`; `close` ends it.

    `inside` is a command that enters a network namespace.
    """

    def __init__(self, python: Path, inside: Sequence[str] = ()) -> None:
        self._command = [*inside, str(python), str(DRIVERS / "main.py")]
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the process

    def call(self, module: str, name: str, /, **arguments: Any) -> Any:
        """Call a function there; return what it returns.

        Raises:
            PeerError: it failed, or there was no answer for so long that the process was ended.
        """
        __tracebackhide__ = True
        process = self._running()
        self._log.seek(0)
        self._log.truncate()
        try:
            answer = self._exchange(process, json.dumps({"module": module, "name": name, "arguments": arguments}))
        except BaseException:
            self._stop(process)  # An answer that comes later must not be taken for the next one.
            raise
        if "error" in answer:
            raise PeerError(f"{answer['error']}\n{self._logged()}")
        return answer["result"]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process for a while, as a machine that is too busy does."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._stop(self._process)
        self._log.close()

    def _exchange(self, process: subprocess.Popen[str], call: str) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(call + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], _PATIENCE_S)[0]:
            process.send_signal(signal.SIGABRT)  # Its threads' stacks go to the log.
            process.wait()
            raise PeerError(f"it hangs: {call}\n{self._logged()}")
        line = process.stdout.readline()
        if not line:
            raise PeerError(f"the process ended with {process.wait()}: {call}\n{self._logged()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _stop(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()
        self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
            self._process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        return self._process

    def _logged(self) -> str:
        self._log.seek(0)
        return self._log.read()[-6000:]


class OurServer:
    """``python -m reverb_async.serve``, with tables from a dm-reverb configuration; a context manager."""

    def __init__(self, config: str) -> None:
        command = [sys.executable, "-m", "reverb_async.serve", "--port", "0", "--reverb-config", config]
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT)

    def __enter__(self) -> OurServer:
        assert self._process.stdout is not None
        found = re.search(r" on 127\.0\.0\.1:(\d+)", self._process.stdout.readline())
        if found is None:
            self._process.kill()
            self._process.communicate()
            log = self.log()
            self._log.close()
            raise AssertionError(f"the server did not start: {log}")
        self.address = f"localhost:{found[1]}"
        return self

    def __exit__(self, *error: object) -> None:
        alive = self._process.poll() is None
        self._process.terminate()
        self._process.communicate()
        log = self.log()
        self._log.close()
        assert alive, f"the server ended with {self._process.returncode}: {log}"
        assert "Traceback" not in log, log

    def log(self) -> str:
        """Return what the server has logged."""
        self._log.seek(0)
        return self._log.read()


class Relay:
    """Passes connections on to a server in another network namespace, which `inside` is a command to enter.

    Attributes:
        address: what clients of this namespace use instead of the server's.
    """

    def __init__(self, inside: Sequence[str], server: str) -> None:
        self._inside = inside
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._process = self._pointing_at(server)

    def point_at(self, server: str) -> None:
        """Cut all connections; pass the next ones on to that server."""
        self._stop()
        self._process = self._pointing_at(server)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        self._listening.close()

    def _pointing_at(self, server: str) -> subprocess.Popen[bytes]:
        number, port = self._listening.fileno(), server.rpartition(":")[2]
        command = [*self._inside, sys.executable, str(DRIVERS / "relay.py"), str(number), port]
        return subprocess.Popen(command, pass_fds=[number])

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()


class GenuineServers:
    """A network namespace with genuine servers, one after the other, and a client; `close` ends both processes."""

    def __init__(self, python: Path) -> None:
        self._server = Peer(python, ["unshare", "-rn"])
        pid = self._server.call("genuine_server", "enter")
        self._enter = ["nsenter", "--preserve-credentials", "--user", "--net", "--target", str(pid), "--"]
        self.client = Peer(python, self._enter)

    @staticmethod
    def are_possible() -> bool:
        """Whether such a namespace can be made here. Without one they would listen on every address."""
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            return False
        return subprocess.run(["unshare", "-rn", "true"], stderr=subprocess.DEVNULL).returncode == 0

    def serve(self, config: str) -> str:
        """Start a server instead of the one before; return its address."""
        address: str = self._server.call("genuine_server", "serve", config=config)
        return address

    def stop(self) -> None:
        """Stop the server."""
        self._server.call("genuine_server", "stop")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Have the server's process do nothing for a while."""
        with self._server.frozen():
            yield

    def reachable(self, address: str) -> Relay:
        """Let clients outside of the namespace reach a server; a context manager."""
        return Relay(self._enter, address)

    def close(self) -> None:
        """End all."""
        self.client.close()
        self._server.close()


class Named(NamedTuple):
    """A scenario, by its name."""

    module: str
    name: str
    needs_ours: bool


def scenarios() -> list[Named]:
    """Return all scenarios, read from the sources: only the peer's interpreter can import them."""
    found = []
    for path in sorted(DRIVERS.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                for decorator in node.decorator_list:
                    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "on":
                        ours = any(keyword.arg == "needs_ours" for keyword in decorator.keywords)
                        found.append(Named(path.stem, node.name, ours))
    return found
