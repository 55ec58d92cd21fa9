"""The server program, as a process of its own and called from here."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator

import pytest
import trustme

import reverb_async as ra
from reverb_async import serve
from reverb_async.security.tokens import make_token

PROGRAM = [sys.executable, "-W", "error", "-m", "reverb_async.serve"]
STOPS_WITHIN_S = 2.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


class Running:
    """A server program that has said it is ready."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen([*PROGRAM, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline().rstrip("\n")

    @property
    def address(self) -> str:
        found = re.search(r"on (\S+?)(;| and )", self.ready)
        assert found, self.ready + self.process.communicate()[1]
        return found[1]

    def stop(self, number: int) -> tuple[int, float, str]:
        """Send a signal; return exit status, seconds until the end, and stderr."""
        before = time.monotonic()
        self.process.send_signal(number)
        _, log = self.process.communicate()
        return self.process.returncode, time.monotonic() - before, log


@pytest.fixture
def start() -> Iterator[type[Running]]:
    """Start server programs that end with the test."""
    started: list[Running] = []

    def run(*args: str) -> Running:
        started.append(Running(*args))
        return started[-1]

    yield run
    for running in started:
        running.process.kill()
        running.process.communicate()


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *args], capture_output=True, text=True, timeout=60)


# -- as a process ------------------------------------------------------------------------------------------------------


@pytest.fixture
def protected(tmp_path):
    """Return the flags of a server that asks for TLS and a token, what its clients need, and the file of tokens."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    secret, token = make_token("learner", ["read", "write"])
    (tmp_path / "tokens").write_text(token.to_line())
    both = str(tmp_path / "both.pem")
    flags = ["--tls-certificate", both, "--tls-key", both, "--tokens", str(tmp_path / "tokens")]
    return flags, {"tls": ra.ClientTLS(ca=tmp_path / "ca.pem"), "token": secret}, tmp_path / "tokens"


async def test_it_serves_with_tls_and_tokens_and_logs_json(start, protected):
    flags, credentials, _ = protected
    running = start("--port", "0", "--reverb-compat-insecure", "--log-format", "json", *flags)
    assert re.search(r" on 127\.0\.0\.1:\d+ and 127\.0\.0\.1:\d+ \(dm-reverb, insecure\);", running.ready)
    async with ra.Client(running.address, **credentials) as client:
        await client.insert({"x": 1.0}, {"replay": 1.0})
        assert (await client.sample_one("replay")).data == {"x": 1.0}
        with pytest.raises(ra.PermissionDenied, match="reset needs a token with the scope 'admin'"):
            await client.reset("replay")
    async with ra.Client(running.address, tls=credentials["tls"]) as client:
        with pytest.raises(ra.PermissionDenied, match="needs a token; none was shown"):
            await client.server_info()
    status, _, log = await asyncio.to_thread(running.stop, signal.SIGTERM)
    assert status == 0
    refused = [line for line in map(json.loads, log.splitlines()) if line.get("event") == "refused"]
    assert [line["token"] for line in refused] == ["learner", None]
    assert all(line["level"] == "warning" and line["peer"].startswith("127.0.0.1:") for line in refused)
    assert credentials["token"] not in log


def test_files_that_cannot_be_used_end_it_and_are_found_by_check(protected, capsys):
    flags, _, tokens = protected
    assert serve.main(["--check", *flags]) == 0
    tokens.write_text("nonsense")
    capsys.readouterr()
    for args in (["--check", *flags], ["--port", "0", *flags]):
        assert serve.main(args) == 2
        assert capsys.readouterr().err == (
            f"reverb-async: error: {tokens}: line 1: a line is: name scope[,scope] sha256:digest; "
            "`python -m reverb_async.tokens new` makes one\n"
        )


async def test_it_says_when_it_is_ready_and_where(start, tmp_path):
    path = tmp_path / "x.sock"
    running = start("--port", "0", "--unix", str(path), "--table", "replay:max_size=9", "--table", "q:kind=queue")
    version = re.escape(ra.__version__)
    assert re.fullmatch(
        rf"reverb_async {version} serving 2 tables \(replay, q\) on 127\.0\.0\.1:[1-9]\d* and unix://{path}; "
        r"stop with Ctrl-C",
        running.ready,
    )
    for address in (running.address, f"unix://{path}"):
        async with ra.Client(address) as client:
            assert (await client.server_info())["replay"].max_size == 9


def test_one_table_is_no_plural(start, tmp_path):
    ready = start("--port", "none", "--unix", str(tmp_path / "x.sock")).ready
    assert f"serving 1 table (replay) on unix://{tmp_path}/x.sock; stop" in ready


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_soon_and_tells_those_who_wait(start, number):
    running = start("--port", "0")
    async with ra.Client(running.address) as idle, ra.Client(running.address) as client:
        await idle.server_info()
        async with client.trajectory_writer(num_keep_alive_refs=1) as writer:
            writer.append({"x": 1.0})
            await writer.create_item("replay", 1.0, trajectory={"x": writer.history["x"][-1]})
            await writer.flush()
            await client.sample_one("replay")
            await client.reset("replay")
            waiting = asyncio.create_task(client.sample_one("replay"))
            while not (await idle.server_info())["replay"].waiters:
                pass
            status, seconds, log = await asyncio.to_thread(running.stop, number)
            with pytest.raises(ra.TableClosed):
                await waiting
    assert status == 0, log
    assert seconds < STOPS_WITHIN_S
    assert "Traceback" not in log


async def test_dm_reverbs_configuration_gives_its_tables(start, tmp_path):
    path = tmp_path / "server.textproto"
    path.write_text('port: 1 tables { table_name: "queue" max_size: 7 sampler { fifo: true } remover { lifo: true } }')
    running = start("--reverb-config", f"@{path}", "--port", "0")
    async with ra.Client(running.address) as client:
        info = (await client.server_info())["queue"]
    assert info.max_size == 7
    assert info.remover_options == {"lifo": True, "is_deterministic": True}


def test_a_printed_configuration_gives_the_same_server(start, tmp_path):
    flags = ["--port", "0", "--table", "replay:priority_exponent=0.6,min_size_to_sample=5", "--table", "q:kind=queue"]
    printed = run("--print-config", *flags)
    assert printed.returncode == 0, printed.stderr
    path = tmp_path / "printed.toml"
    path.write_text(printed.stdout)
    assert {table["name"] for table in tomllib.loads(printed.stdout)["table"]} == {"replay", "q"}
    assert run("--print-config", "--config", str(path)).stdout == printed.stdout
    assert "(replay, q) on 127.0.0.1:" in start("--config", str(path)).ready


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_taken_port_is_one_clear_line(loop):
    code = "import sys; from reverb_async.serve import main; sys.exit(main())"
    if loop == "asyncio":
        code = "import sys; sys.modules['uvloop'] = None; " + code
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, "--port", str(port)], capture_output=True, text=True, timeout=60
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        rf"reverb-async: error: port {port} of 127.0.0.1 is taken by another process: .*\n", done.stderr
    )


def test_a_wrong_configuration_is_one_clear_line():
    done = run("--table", "replay:max_sise=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        'reverb-async: error: --table: table "replay", key "max_sise": there is no such key; did you mean "max_size"?\n'
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_it_at_once(number, status):
    code = f"""
import signal
from reverb_async.serve import StopSignals
with StopSignals():
    signal.raise_signal({int(number)})
    print("still here", flush=True)
    signal.raise_signal({int(number)})
    print("never said")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "still here\n"), done.stderr


# -- in this process ---------------------------------------------------------------------------------------------------


class Stopped(ra.Server):
    """A server that gets SIGTERM as soon as it has started."""

    loops: list[str]

    async def start(self) -> None:
        await super().start()
        self.loops.append(type(asyncio.get_running_loop()).__module__)
        signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def stopped(monkeypatch):
    monkeypatch.setattr(Stopped, "loops", [], raising=False)
    monkeypatch.setattr(serve, "Server", Stopped)
    return Stopped


@pytest.mark.parametrize("hidden", [False, True])
def test_it_runs_on_uvloop_where_that_is_installed(stopped, monkeypatch, hidden, capsys):
    pytest.importorskip("uvloop")
    if hidden:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    before = signal.getsignal(signal.SIGTERM)
    assert serve.main(["--port", "0"]) == 0
    assert capsys.readouterr().out.startswith("reverb_async ")
    assert stopped.loops[0].startswith("asyncio" if hidden else "uvloop")
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_fails_at_the_end_is_one_clear_line(stopped, monkeypatch, capsys):
    async def save() -> None:
        raise ra.CheckpointError("no space left")

    async def start(self):
        await Stopped.start(self)
        self.last_steps.append(save)

    monkeypatch.setattr(serve, "Server", type("Saving", (stopped,), {"start": start}))
    assert serve.main(["--port", "0"]) == 1
    assert capsys.readouterr().err == "reverb-async: error: no space left\n"


def test_check_prints_a_line_per_table(capsys):
    assert serve.main(["--check", "--table", "a:max_size=3", "--table", "b:kind=stack,max_size=4"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'table "a": max_size 3, sampler Uniform(), remover Fifo(), rate_limiter MinSize(1)',
        'table "b": max_size 4, sampler Lifo(), remover Lifo(), rate_limiter Stack(4), max_times_sampled 1',
    ]


def test_a_doubtful_rate_limiter_is_logged(capsys, caplog):
    assert serve.main(["--check", "--table", "a:samples_per_insert=2,min_size_to_sample=10,error_buffer=[0, 9]"]) == 0
    assert "the upper bound 9 of error_buffer is below" in caplog.text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prot", "1"], "unrecognized arguments: --prot 1 (see --help)"),
        (["--check", "--print-config"], "argument --print-config: not allowed with argument --check (see --help)"),
        (["--config", "a", "--reverb-config", "b"], "argument --reverb-config: not allowed with argument --config"),
        (["--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
    ],
)
def test_an_unknown_flag_is_one_clear_line(args, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        serve.main(args)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"reverb-async: error: {message}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config", "missing.toml"], "missing.toml: cannot be read: No such file or directory"),
        (
            ["--port", "70000"],
            '--port: must be an integer from 0 to 65535, got 70000; 0 is any free one, "none" is no TCP',
        ),
        (["--grace", "long"], '--grace: must be a number, got "long"'),
        (["--port", "http"], '--port: must be an integer from 0 to 65535, got "http"; 0 is'),
        (["--reverb-config", "port: x"], "--reverb-config: line:column 1:7 : 'port: x': Couldn't parse integer: x"),
        (["--host", "0.0.0.0"], '--host: "0.0.0.0" can be reached from other machines'),
        (
            ["--table", "a:sampler=prioritized"],
            '--table: table "a", key "sampler": "prioritized" needs a priority_exponent',
        ),
    ],
)
def test_a_wrong_value_is_one_clear_line(args, message, capsys):
    assert serve.main(args) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"reverb-async: error: {message}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("flag", ["--insecure", "--no-insecure", "--reverb-compat", "--no-reverb-compat"])
def test_it_can_be_switched_on_and_off(flag, capsys):
    assert serve.main(["--print-config", flag]) == 0
    key = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
    assert tomllib.loads(capsys.readouterr().out)["server"][key] is ("--no-" not in flag)


def test_a_signature_that_toml_cannot_say_is_one_clear_line(capsys):
    text = (
        'tables { table_name: "t" max_size: 1 signature { tuple_value { values { tensor_spec_value { dtype: 1 } } } } }'
    )
    assert serve.main(["--reverb-config", text, "--print-config"]) == 2
    said = capsys.readouterr().err
    assert said == 'reverb-async: error: table "t": TOML has dicts and lists, but no tuple; its signature is (*,)\n'


def test_help_documents_the_default_port_and_the_version_is_the_packages(capsys):
    for flag, expected in (
        ("--help", "default 8000"),
        ("--help", 'shape = ["any", 4]'),
        ("--version", f"reverb_async {ra.__version__}\n"),
    ):
        with pytest.raises(SystemExit) as exit_:
            serve.main([flag])
        assert exit_.value.code == 0
        assert expected in capsys.readouterr().out


def test_the_example_in_the_help_is_a_sound_configuration(tmp_path, capsys):
    with pytest.raises(SystemExit):
        serve.main(["--help"])
    example = re.search(r"    \[server\].*?(?=\n  sampler)", capsys.readouterr().out, re.DOTALL)
    path = tmp_path / "example.toml"
    path.write_text(example[0])
    assert serve.main(["--check", "--config", str(path)]) == 0


def test_dm_reverbs_configuration_in_the_help_is_sound(capsys):
    with pytest.raises(SystemExit):
        serve.main(["--help"])
    example = re.search(r"--reverb-config '([^']*)'", capsys.readouterr().out)
    assert serve.main(["--check", "--reverb-config", example[1]]) == 0
    said = capsys.readouterr()
    assert said.out.startswith('table "replay": max_size 1000000, sampler Uniform(), remover Fifo()')
    assert not said.err


@pytest.mark.parametrize("flags", [[], ["--no-reverb-compat"]])
def test_dm_reverbs_clients_are_served_unless_switched_off(stopped, monkeypatch: pytest.MonkeyPatch, flags):
    seen = []

    class Noted(stopped):
        def __init__(self, *args: object, **settings: object) -> None:
            seen.append(settings["reverb_compat"])
            super().__init__(*args, **settings)

    monkeypatch.setattr(serve, "Server", Noted)
    assert serve.main(["--port", "0", *flags]) == 0
    assert seen == [not flags]


def test_the_garbage_collector_seldom_looks_at_everything_while_the_server_runs(monkeypatch: pytest.MonkeyPatch):
    seen = []

    async def look(*_: object) -> int:
        seen.append((gc.get_freeze_count() > 1000, gc.get_threshold()))
        return 0

    monkeypatch.setattr(serve, "_serve", look)
    young, middle, old = gc.get_threshold()
    assert serve.main(["--port", "0"]) == 0
    assert seen == [(True, (young, middle, max(50, old)))]
    assert gc.get_threshold() == (young, middle, old)
    assert gc.get_freeze_count() == 0
