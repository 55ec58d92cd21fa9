"""What the server program serves: addresses and tables, read from a TOML file and the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reverb_async.checkpoint import Checkpointer, Durability
from reverb_async.checkpoint.loading import OnCorrupt
from reverb_async.checkpoint.policy import RestorePolicy
from reverb_async.checkpoint.write_ahead import DURABILITIES
from reverb_async.config.choices import Settings, expand, overlay
from reverb_async.config.flags import CHECKPOINT_KEYS
from reverb_async.config.limits import LIMIT_FLAGS, limits_to_toml, read_limits
from reverb_async.config.reverb_config import read_reverb_config
from reverb_async.config.settings import Setting, check_keys, parse_flag, read_text, shown, table_place, to_toml
from reverb_async.config.tables import TableConfig, read_table
from reverb_async.errors import InvalidArgument
from reverb_async.hosts import is_loopback
from reverb_async.limits import Limits
from reverb_async.security import ServerTLS, Tokens
from reverb_async.table import Table

DEFAULT_PORT = 8000
DEFAULT_GRACE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the server listens; ``[server]`` of the TOML file.

    Attributes:
        host: address to listen on.
        port: 0 is any free one; None (in TOML ``"none"``) is no TCP.
        unix: path of a Unix socket to listen on as well.
        insecure: whether the host may be another than the loopback without TLS.
        tls_certificate, tls_key, tls_client_ca: files, see `ServerTLS`.
        tokens: file of the tokens that calls must show.
        reverb_compat: whether dm-reverb's clients are served too.
        reverb_compat_insecure: whether that is so with TLS or tokens, too, or on which port of the loopback.
        grace: seconds that running calls have to end once the server is told to stop.
        checkpoint_dir: where checkpoints are kept; None: nowhere.
        checkpoint_every: seconds between them; None: only when asked for, and at the end.
        checkpoint_keep: how many are kept.
        on_corrupt: what to do when the newest is damaged.
        restore: what to do when the tables are not those of the checkpoint.
        durability: whether a log is kept as well, see `Server`.
    """

    host: str = "127.0.0.1"
    port: int | None = DEFAULT_PORT
    unix: str | None = None
    insecure: bool = False
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    tokens: str | None = None
    reverb_compat: bool = True
    reverb_compat_insecure: bool | int = False
    grace: float = DEFAULT_GRACE_S
    checkpoint_dir: str | None = None
    checkpoint_every: float | None = None
    checkpoint_keep: int = 3
    on_corrupt: OnCorrupt = "previous"
    restore: RestorePolicy = "strict"
    durability: Durability = "memory"

    @property
    def tls(self) -> ServerTLS | None:
        """What the three files are for, if there are any."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return ServerTLS(self.tls_certificate, self.tls_key, self.tls_client_ca)

    def check_files(self) -> None:
        """Raise `InvalidArgument` if a certificate or the tokens cannot be used."""
        if self.tls is not None:
            self.tls.load()
        if self.tokens is not None:
            Tokens(self.tokens)

    def build_checkpointer(self) -> Checkpointer | None:
        """Make the checkpointer, if there is a directory for it."""
        if self.checkpoint_dir is None:
            return None
        return Checkpointer(
            self.checkpoint_dir,
            keep=self.checkpoint_keep,
            every=self.checkpoint_every,
            restore=self.restore,
            on_corrupt=self.on_corrupt,
        )

    def to_toml(self) -> str:
        """Return the ``[server]`` section."""
        lines = ["[server]", f"host = {to_toml(self.host)}"]
        lines.append(f"port = {to_toml('none' if self.port is None else self.port)}")
        for key in ("unix", "insecure", *_TLS_KEYS, "tokens", "reverb_compat", "reverb_compat_insecure"):
            value = getattr(self, key)
            lines.append(f"# {key}: not set" if value is None else f"{key} = {to_toml(value)}")
        lines.append(f"grace = {to_toml(self.grace)}")
        for key in CHECKPOINT_KEYS[: 1 if self.checkpoint_dir is None else None]:
            value = getattr(self, key)
            lines.append(f"# {key}: not set" if value is None else f"{key} = {to_toml(value)}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the server program is told."""

    server: ServerConfig
    tables: tuple[TableConfig, ...]
    limits: Limits = field(default_factory=Limits)

    def build_tables(self) -> list[Table]:
        """Make the tables.

        Raises:
            InvalidArgument: one is too large for this machine.
        """
        return [table.build() for table in self.tables]

    def to_toml(self) -> str:
        """Return the whole configuration, defaults included, as a file that `load` reads back."""
        return "\n".join(
            [self.server.to_toml(), limits_to_toml(self.limits), *(table.to_toml() for table in self.tables)]
        )


def load(
    path: Path | None = None,
    table_flags: Sequence[str] = (),
    server_flags: Mapping[str, object] | None = None,
    reverb_config: str | None = None,
    limit_flags: Mapping[str, object] | None = None,
) -> Config:
    """Read and check a configuration.

    Args:
        path: a TOML file.
        table_flags: what ``--table`` was given: changes to tables of the file, or further tables.
        server_flags: fields of `ServerConfig` from the command line; they come before the file.
        reverb_config: instead of a TOML file, what `read_reverb_config` reads.
        limit_flags: fields of `Limits` from the command line; they override the file.

    Returns:
        The configuration; with the one table "replay" if neither names any.

    Raises:
        InvalidArgument: naming file, table, key, value and what would work.
    """
    document: Mapping[str, object] = {} if path is None else _read_toml(path)
    check_keys(document, ("server", "limits", "table"), f"{path}: ")
    settings = _section(document, "server", _SERVER_READERS, path)
    limits = _section(document, "limits", LIMIT_FLAGS, path)
    tables = {} if path is None else _file_tables(document.get("table", []), str(path))
    if reverb_config is not None:
        tables, port = read_reverb_config(reverb_config)
        settings |= {} if port is None else {"port": port}
    for key, value in (server_flags or {}).items():
        settings[key] = Setting(value, f"--{key.replace('_', '-')}")
    server = _read_server(settings)
    for key, value in (limit_flags or {}).items():
        limits[key] = Setting(value, f"--{key.replace('_', '-')}")
    read = read_limits(limits)

    changed = set()
    for flag in table_flags:
        name, entry = parse_flag(flag)
        place = table_place("--table", name)
        if name in changed:
            raise InvalidArgument(f"{place}given twice: put everything into one --table {name}:...")
        if "name" in entry:
            raise InvalidArgument(f'{place}key "name": the name stands before the colon, drop the key')
        changed.add(name)
        _, so_far = tables.get(name, ("", {}))
        tables[name] = place, overlay(so_far, expand(entry, place))
    if not tables:
        return Config(server=server, tables=(TableConfig(name="replay"),), limits=read)
    made = tuple(read_table(name, settings, place) for name, (place, settings) in tables.items())
    return Config(server=server, tables=made, limits=read)


def _section(document: Mapping[str, object], name: str, known: Iterable[str], path: Path | None) -> dict[str, Setting]:
    """Return the settings of a section, by key."""
    section = document.get(name, {})
    if not isinstance(section, Mapping):
        raise InvalidArgument(f"{path}: {name} must be a section that begins with [{name}], got {shown(section)}")
    check_keys(section, known, f"{path}: [{name}], ")
    return {key: Setting(value, f'{path}: [{name}], key "{key}"') for key, value in section.items()}


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{path}: is not TOML: {error}") from error


def _file_tables(entries: object, file: str) -> dict[str, tuple[str, Settings]]:
    """Return place and settings of each ``[[table]]``, by name."""
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InvalidArgument(
            f'{file}: each table begins with a line [[table]], with two brackets, and has name = "..." below it'
        )
    tables: dict[str, tuple[str, Settings]] = {}
    for number, entry in enumerate(entries, 1):
        if "name" not in entry:
            raise InvalidArgument(f'{file}: [[table]] number {number} has no name: add name = "replay"')
        name = Setting(entry["name"], f'{file}: [[table]] number {number}, key "name"').text()
        place = table_place(file, name)
        if name in tables:
            raise InvalidArgument(f"{place}given twice: names must be distinct")
        rest = {key: value for key, value in entry.items() if key != "name"}
        tables[name] = place, overlay({}, expand(rest, place))
    return tables


def _read_server(settings: Mapping[str, Setting]) -> ServerConfig:
    fields: dict[str, Any] = {key: _SERVER_READERS[key](setting) for key, setting in settings.items()}
    server = ServerConfig(**fields)
    if server.port is None and server.unix is None:
        raise settings["port"].refuse("without TCP there must be a Unix socket: add a path as `unix` (--unix PATH)")
    given = [key for key in _TLS_KEYS if key in settings]
    if given and not (server.tls_certificate and server.tls_key):
        raise settings[given[0]].refuse("TLS takes both `tls_certificate` and `tls_key` (--tls-certificate, --tls-key)")
    if server.port is not None and not server.insecure and server.tls is None and not is_loopback(server.host):
        raise settings["host"].refuse(
            f"{shown(server.host)} can be reached from other machines, and nothing is encrypted: use 127.0.0.1, or "
            f"`tls_certificate` and `tls_key` (--tls-certificate, --tls-key), or `insecure = true` (--insecure) if "
            f"everybody on that network may read and change the tables"
        )
    if server.checkpoint_dir is None:
        for key in CHECKPOINT_KEYS[1:]:
            if key in settings:
                raise settings[key].refuse(
                    "it is for servers that keep checkpoints: add a directory as `checkpoint_dir` "
                    "(--checkpoint-dir PATH)"
                )
    return server


def _read_port(setting: Setting) -> int | None:
    if setting.value == "none":
        return None
    try:
        return setting.integer(0, 65535)
    except InvalidArgument as error:
        raise InvalidArgument(f'{error}; 0 is any free one, "none" is no TCP') from None


def _read_reverb_port(setting: Setting) -> bool | int:
    return setting.value if isinstance(setting.value, bool) else setting.integer(0, 65535)


_TLS_KEYS = ("tls_certificate", "tls_key", "tls_client_ca")

_SERVER_READERS: dict[str, Callable[[Setting], Any]] = {
    "host": Setting.text,
    "port": _read_port,
    "unix": Setting.text,
    "insecure": Setting.boolean,
    **dict.fromkeys((*_TLS_KEYS, "tokens"), Setting.text),
    "reverb_compat": Setting.boolean,
    "reverb_compat_insecure": _read_reverb_port,
    "grace": lambda setting: setting.finite(zero=True),
    "checkpoint_dir": Setting.text,
    "checkpoint_every": Setting.finite,
    "checkpoint_keep": lambda setting: setting.integer(2),
    "on_corrupt": lambda setting: setting.choice(("previous", "fail")),
    "restore": lambda setting: setting.choice(("strict", "config", "checkpoint")),
    "durability": lambda setting: setting.choice(DURABILITIES),
}
