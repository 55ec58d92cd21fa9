"""The server program: ``python -m reverb_async.serve``, installed as ``reverb-async``."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import logging
import mmap
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import reverb_async
from reverb_async import logs
from reverb_async.config import Config, ServerConfig, load
from reverb_async.config.flags import add_checkpoint_flags, as_number
from reverb_async.config.limits import LIMIT_FLAGS
from reverb_async.config.load import DEFAULT_GRACE_S, DEFAULT_PORT
from reverb_async.config.settings import parse_value
from reverb_async.errors import CheckpointError, InvalidArgument, ReplayError
from reverb_async.server import Server
from reverb_async.table import Table

logger = logging.getLogger("reverb_async")

_OLD_COLLECTIONS = 50
"""Collections of the middle generation before a full one; Python's default is 10."""

_TRIM_S = 5.0
_TRIM_BYTES = 4 << 20
"""The heap is trimmed when it has grown by so much, or the server holds so much less; looked at so often."""

_USAGE_ERROR = 2
_FAILED = 1
_CANNOT_RESTORE = 3

_TABLES = f"""\
tables:
  --table replay:sampler=prioritized,priority_exponent=0.6,max_size=1e6,min_size_to_sample=1000
  --table trajectories:kind=queue,max_size=100

  The same in a file for --config:

    [server]
    port = {DEFAULT_PORT}

    [limits]
    max_bytes = "8GiB"

    [[table]]
    name = "replay"
    sampler = {{kind = "prioritized", priority_exponent = 0.6}}
    max_size = 1_000_000
    min_size_to_sample = 1000
    signature = {{obs = {{shape = [84, 84, 4], dtype = "uint8"}}, action = {{dtype = "int64"}}}}

    [[table]]
    name = "trajectories"
    kind = "queue"
    max_size = 100

  sampler, remover    uniform, prioritized (with priority_exponent), fifo, lifo, min_heap, max_heap
  rate_limiter        min_size: min_size_to_sample
                      sample_to_insert_ratio: samples_per_insert, error_buffer (number or [low, high]),
                      min_size_to_sample; queue, stack: size; custom: samples_per_insert,
                      min_size_to_sample, min_diff, max_diff. The parameters given imply it.
  kind                queue or stack: every item is handed out once, inserts wait while it is full
  more                max_size (default 1_000_000), max_times_sampled, max_bytes, seed, signature
                      ("any" is an open extent in a signature's shape: shape = ["any", 4])

  What --table says about a table of the file changes only that. Without any table there is one: "replay",
  uniform. --print-config shows everything as it will be.

dm-reverb's configuration:
  --reverb-config takes the same text as dm-reverb's reverb_server --config, protobuf's text format of a
  ReverbServerConfig, or @ and a file that has it (needs pip install 'reverb_async[reverb-config]'):

  --reverb-config 'port: 8000 tables {{ table_name: "replay" max_size: 1000000 sampler {{ uniform: true }}
    remover {{ fifo: true }} rate_limiter {{ samples_per_insert: 1 min_size_to_sample: 1000
    min_diff: -1e300 max_diff: 1e300 }} }}'

  What dm-reverb cannot start with is refused by name, or has a default: no sampler is uniform, no remover
  fifo, no rate_limiter min_size 1, no port (or 0) {DEFAULT_PORT}. --table, --port and the other flags come on
  top; --print-config shows the same as TOML.

stopping: after SIGTERM or Ctrl-C clients are told (GOAWAY), new calls are refused, whoever waits for a rate
  limiter gets TableClosed, and what runs has --grace seconds to come to its end. Then a last checkpoint is written.

exit status: 0 after SIGTERM or Ctrl-C (143 or 130 after the second one), {_FAILED} if it cannot listen, or something
failed at the end, {_USAGE_ERROR} if the configuration is wrong, {_CANNOT_RESTORE} if no checkpoint can be restored.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until a signal ends it; return the exit status.

    Must be called in the main thread, which receives the signals.
    """
    parser = _make_parser()
    args = parser.parse_args(argv)
    logs.set_up(args.log_level, args.log_format)
    keys = {field.name for field in fields(ServerConfig)}
    flags = {key: value for key, value in vars(args).items() if key in keys and value is not None}
    limits = {key: parse_value(getattr(args, key)) for key in LIMIT_FLAGS if getattr(args, key) is not None}
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            config = load(args.config, args.table, flags, args.reverb_config, limits)
            tables = config.build_tables()
            if args.check:
                config.server.check_files()
            printed = config.to_toml() if args.print_config else ""
    except InvalidArgument as error:
        return _fail(_USAGE_ERROR, error)
    for warning in warned:
        logger.warning("%s", warning.message)
    if args.print_config:
        print(printed, end="")
        return 0
    if args.check:
        print(*(table.summary() for table in config.tables), sep="\n")
        return 0
    _allow_many_files()
    with StopSignals() as stop, rare_full_collections(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_serve(config, tables, stop))


async def _serve(config: Config, tables: Sequence[Table], stop: StopSignals) -> int:
    where = config.server
    try:
        server = Server(
            tables,
            host=where.host,
            port=where.port,
            unix_path=where.unix,
            insecure=where.insecure,
            tls=where.tls,
            tokens=where.tokens,
            reverb_compat=where.reverb_compat,
            reverb_compat_insecure=where.reverb_compat_insecure,
            limits=config.limits,
            checkpointer=where.build_checkpointer(),
            durability=where.durability,
        )
    except InvalidArgument as error:  # A certificate or the tokens.
        return _fail(_USAGE_ERROR, error)
    try:
        await server.start()
    except InvalidArgument as error:
        return _fail(_FAILED, error)
    except CheckpointError as error:
        return _fail(_CANNOT_RESTORE, error)
    print(_ready_line(server), flush=True)
    trimming = asyncio.create_task(_trim_heap(server))
    await stop.wait()
    trimming.cancel()
    logger.info("stopping, within %g s; a second signal ends it at once", where.grace)
    try:
        await server.close(grace=where.grace)
    except ReplayError as error:
        return _fail(_FAILED, error)
    return 0


async def _trim_heap(server: Server) -> None:
    """Give memory back that Python and NumPy have freed in the midst of the heap, where the C library keeps it.

    Long messages come and go beside small objects that stay; without this a server never shrinks after a rush.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:  # another system, or another C library
        return
    after = before = 0
    while True:
        await asyncio.sleep(_TRIM_S)
        held = server._replay.memory.used
        if _heap_bytes() > after + _TRIM_BYTES or held < before - _TRIM_BYTES:
            await asyncio.to_thread(trim, 0)
            after, before = _heap_bytes(), held
        before = max(before, held)


def _heap_bytes() -> int:
    """Return the resident memory of this process that is its own."""
    _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * mmap.PAGESIZE


def _ready_line(server: Server) -> str:
    names = list(server.tables)
    tables = f"{len(names)} table{'s' if len(names) > 1 else ''} ({', '.join(names)})"
    addresses = [] if server.port is None else [server.address]
    addresses += [] if server.unix_address is None else [server.unix_address]
    if server.reverb_address not in (None, *addresses):
        addresses.append(f"{server.reverb_address} (dm-reverb, insecure)")
    version = reverb_async.__version__
    return f"reverb_async {version} serving {tables} on {' and '.join(addresses)}; stop with Ctrl-C"


class StopSignals:
    """SIGTERM and SIGINT while it is entered: the first ends `wait`, the second the process.

    Handlers of Python's, not of the event loop, so that the second one works however busy the loop is.
    """

    def __init__(self) -> None:
        self._received = False
        self._wake: Callable[[], object] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    async def wait(self) -> None:
        """Wait for the first signal; it may have come before."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(stop.set)
        if not self._received:
            await stop.wait()
        self._wake = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            os._exit(128 + number)
        self._received = True
        if self._wake is not None:
            self._wake()


@contextmanager
def rare_full_collections() -> Iterator[None]:
    """Have Python's cyclic garbage collector look at everything seldom, and never at what exists now.

    A full collection stops the server: 25 ms for the program itself, 60 ms beside 1,000 connections. Hardly anything
    that lives long becomes cyclic garbage; the collections of young objects, a millisecond at most, go on as they were.
    """
    young, middle, old = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(young, middle, max(old, _OLD_COLLECTIONS))
    try:
        yield
    finally:
        gc.set_threshold(young, middle, old)
        gc.unfreeze()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's where it is installed, else None: asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _allow_many_files() -> None:
    """Raise the limit on open files as far as allowed: every store and every connection is one or two."""
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(_USAGE_ERROR, f"{message} (see --help)"))


def _fail(status: int, error: object) -> int:
    print(f"reverb-async: error: {error}", file=sys.stderr)
    return status


def _port(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return text  # Wrong, or "none": the configuration knows.


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="reverb-async",
        description="Serve replay tables to the clients of reverb_async.",
        epilog=_TABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--config", metavar="FILE", type=Path, help="TOML file with tables and addresses")
    files.add_argument(
        "--reverb-config", metavar="TEXT|@FILE", help="what dm-reverb's reverb_server takes as --config, see below"
    )
    parser.add_argument(
        "--table", metavar="NAME[:KEY=VALUE,...]", action="append", default=[], help="a table, see below; repeatable"
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--port", type=_port, help=f"TCP port (default {DEFAULT_PORT}); 0 is any free one, none is no TCP"
    )
    parser.add_argument("--unix", metavar="PATH", help="Unix socket to listen on as well")
    parser.add_argument(
        "--insecure",
        action=argparse.BooleanOptionalAction,
        help="allow a host that other machines reach without TLS",
    )
    parser.add_argument(
        "--tls-certificate", metavar="FILE", help="PEM: encrypt TCP with this certificate and --tls-key"
    )
    parser.add_argument("--tls-key", metavar="FILE", help="PEM: its private key")
    parser.add_argument("--tls-client-ca", metavar="FILE", help="PEM: clients must have a certificate signed by these")
    parser.add_argument(
        "--tokens",
        metavar="FILE",
        help="calls must show a token of this file; see python -m reverb_async.tokens new -h",
    )
    parser.add_argument(
        "--reverb-compat",
        action=argparse.BooleanOptionalAction,
        help="serve dm-reverb's clients too, on the same port (default yes; with TLS or tokens they are not served)",
    )
    parser.add_argument(
        "--reverb-compat-insecure",
        metavar="PORT",
        nargs="?",
        const=True,
        type=_port,
        help="with TLS or tokens, serve dm-reverb's clients on this port of 127.0.0.1 (default any), unencrypted and "
        "whoever they are",
    )
    limits = parser.add_argument_group("limits")
    for name, text in LIMIT_FLAGS.items():
        limits.add_argument(f"--{name.replace('_', '-')}", metavar="SIZE" if "bytes" in name else "N", help=text)
    parser.add_argument(
        "--grace",
        type=as_number,
        metavar="SECONDS",
        help=f"what running calls have after SIGTERM or Ctrl-C (default {DEFAULT_GRACE_S:g})",
    )
    add_checkpoint_flags(parser)
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default info; to stderr"
    )
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="default text")
    parser.add_argument("--version", action="version", version=f"reverb_async {reverb_async.__version__}")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--check", action="store_true", help="check the configuration, print a line per table and exit")
    modes.add_argument("--print-config", action="store_true", help="print the whole configuration as TOML and exit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
