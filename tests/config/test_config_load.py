"""Whole configurations: files, command lines, defaults, and what is said when they are wrong."""

from __future__ import annotations

import pytest

from reverb_async.config import Config, ServerConfig, TableConfig, load
from reverb_async.core import selectors
from reverb_async.core.rate_limiters import MinSize, Queue
from reverb_async.errors import InvalidArgument
from reverb_async.security import ServerTLS


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Write `run.toml` into the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.toml"

    def write(text: str):
        path.write_text(text, encoding="utf-8")
        return path.relative_to(tmp_path)

    return write


def test_nothing_said_is_one_uniform_table_on_the_loopback():
    assert load() == Config(server=ServerConfig(host="127.0.0.1", port=8000), tables=(TableConfig(name="replay"),))


def test_a_file_has_a_server_section_and_tables(file):
    path = file("""
        [server]
        host = "::1"
        port = 9000
        unix = "replay.sock"

        [[table]]
        name = "replay"
        max_size = 1e5
        sampler = {kind = "prioritized", priority_exponent = 0.6}
        min_size_to_sample = 1_000

        [[table]]
        name = "queue"
        kind = "queue"
        max_size = 100
    """)
    assert load(path) == Config(
        server=ServerConfig(host="::1", port=9000, unix="replay.sock"),
        tables=(
            TableConfig(
                name="replay", max_size=100_000, sampler=selectors.Prioritized(0.6), rate_limiter=MinSize(1000)
            ),
            TableConfig(
                name="queue",
                max_size=100,
                sampler=selectors.Fifo(),
                remover=selectors.Fifo(),
                rate_limiter=Queue(100),
                max_times_sampled=1,
            ),
        ),
    )


def test_a_file_without_tables_gets_the_default_one(file):
    assert load(file("[server]\nport = 1")).tables == (TableConfig(name="replay"),)


def test_the_command_line_overrides_the_file(file):
    path = file('[server]\nport = 9000\nhost = "::1"\n[[table]]\nname = "a"')
    config = load(path, ["b:max_size=3"], {"port": 0, "unix": "x.sock"})
    assert config.server == ServerConfig(host="::1", port=0, unix="x.sock")
    assert config.tables == (TableConfig(name="a"), TableConfig(name="b", max_size=3))


def test_a_server_can_do_without_tcp():
    assert load(server_flags={"port": "none", "unix": "x.sock"}).server.port is None


def test_the_tables_are_built():
    tables = load(table_flags=["a:max_size=3", "b"]).build_tables()
    assert [(table.name, table.info.max_size) for table in tables] == [("a", 3), ("b", 1_000_000)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 3", 'run.toml: key "port": there is no such key; known are limits, server, table'),
        ("[[tables]]", 'run.toml: key "tables": there is no such key; did you mean "table"?'),
        ("[table]\nname = 'a'", r"run.toml: each table begins with a line \[\[table\]\], with two brackets"),
        ("[table.a]", r"run.toml: each table begins with a line \[\[table\]\]"),
        ("server = 3", r"run.toml: server must be a section that begins with \[server\], got 3"),
        ("[server]\nprt = 3", r'run.toml: \[server\], key "prt": there is no such key; did you mean "port"?'),
        (
            "[server]\nport = 'x'",
            r'run.toml: \[server\], key "port": must be an integer from 0 to 65535, got "x"; 0 is',
        ),
        ("[server]\nport = 'none'", r'run.toml: \[server\], key "port": without TCP there must be a Unix socket'),
        (
            "[server]\nhost = '0.0.0.0'",
            r'run.toml: \[server\], key "host": "0.0.0.0" can be reached from other machines',
        ),
        ("[server]\ninsecure = 1", r'run.toml: \[server\], key "insecure": must be true or false, got 1'),
        ("[server]\ngrace = -1", r'run.toml: \[server\], key "grace": must be a finite number >= 0, got -1'),
        ("[[table]]\nmax_size = 3", r"run.toml: \[\[table\]\] number 1 has no name: add name = "),
        ("[[table]]\nname = 3", r'run.toml: \[\[table\]\] number 1, key "name": must be a non-empty text, got 3'),
        ("[[table]]\nname = 'a'\n[[table]]\nname = 'a'", 'run.toml: table "a", given twice: names must be distinct'),
        ("[[table]]\nname = 'a'\nmax_sise = 3", 'run.toml: table "a", key "max_sise": there is no such key; did'),
        ("[server]\nport = x", r"run.toml: is not TOML: .*line 2"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(file, text, message):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        load(file(text))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InvalidArgument, match=r"missing.toml: cannot be read: No such file or directory"):
        load(tmp_path / "missing.toml")
    with pytest.raises(InvalidArgument, match=r"cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(InvalidArgument, match=r"latin.toml: is not UTF-8 text, see byte 5"):
        load(tmp_path / "latin.toml")


def test_a_table_is_changed_once_on_the_command_line():
    with pytest.raises(InvalidArgument, match=r'^--table: table "a", given twice: put everything into one --table a:'):
        load(table_flags=["a:max_size=3", "b", "a:seed=3"])


def test_tls_takes_a_certificate_and_a_key_and_opens_other_hosts(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        '[server]\nhost = "0.0.0.0"\ntls_certificate = "c.pem"\ntokens = "t"\nreverb_compat_insecure = 8001'
    )
    with pytest.raises(InvalidArgument, match=r'run.toml: \[server\], key "tls_certificate": TLS takes both'):
        load(path)
    with pytest.raises(InvalidArgument, match="--tls-client-ca: TLS takes both `tls_certificate` and `tls_key`"):
        load(server_flags={"tls_client_ca": "ca.pem"})
    server = load(path, server_flags={"tls_key": "k.pem"}).server
    assert server.tls == ServerTLS("c.pem", "k.pem")
    assert (server.tokens, server.reverb_compat_insecure) == ("t", 8001)
    assert load().server.tls is None


@pytest.mark.parametrize(("host", "insecure"), [("192.0.2.1", True), ("localhost", False), ("127.0.0.2", False)])
def test_hosts_that_others_reach_need_insecure(host, insecure):
    if insecure:
        with pytest.raises(InvalidArgument, match=r"^--host: .* or `insecure = true` \(--insecure\) if everybody"):
            load(server_flags={"host": host})
    assert load(server_flags={"host": host, "insecure": insecure}).server.host == host


def test_checkpoints_are_kept_where_a_directory_is_named(file, tmp_path):
    path = file("""
        [server]
        checkpoint_dir = "kept"
        checkpoint_every = 600
        restore = "config"
    """)
    config = load(path, server_flags={"checkpoint_keep": 5.0, "on_corrupt": "fail", "durability": "wal"})
    assert config.server == ServerConfig(
        checkpoint_dir="kept",
        checkpoint_every=600.0,
        checkpoint_keep=5,
        on_corrupt="fail",
        restore="config",
        durability="wal",
    )
    checkpointer = config.server.build_checkpointer()
    assert checkpointer is not None
    assert str(checkpointer.path) == "kept"
    assert not (tmp_path / "kept").exists()
    assert load(file(config.to_toml())) == config
    assert load().server.build_checkpointer() is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"checkpoint_every": 5.0}, "--checkpoint-every: it is for servers that keep checkpoints: add a directory"),
        ({"restore": "config"}, "--restore: it is for servers that keep checkpoints"),
        ({"checkpoint_dir": "x", "checkpoint_every": 0.0}, "--checkpoint-every: must be a finite number > 0"),
        ({"checkpoint_dir": "x", "checkpoint_keep": 1.0}, "--checkpoint-keep: must be an integer >= 2, got 1.0"),
        ({"checkpoint_dir": "x", "checkpoint_keep": "many"}, "--checkpoint-keep: must be an integer"),
        ({"durability": "wal"}, "--durability: it is for servers that keep checkpoints"),
        (
            {"checkpoint_dir": "x", "durability": "disk"},
            '--durability: must be one of "memory", "wal", "wal_fsync", got "disk"',
        ),
        ({"checkpoint_dir": "x", "on_corrupt": "ignore"}, '--on-corrupt: must be one of "previous", "fail"'),
        ({"checkpoint_dir": "x", "restore": "strikt"}, 'did you mean "strict"?'),
    ],
)
def test_what_is_wrong_with_checkpoints_is_said(flags, message):
    with pytest.raises(InvalidArgument) as caught:
        load(server_flags=flags)
    assert message in str(caught.value)
