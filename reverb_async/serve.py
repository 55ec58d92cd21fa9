"""The server program: ``python -m reverb_async.serve``, installed as ``reverb-async``."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import reverb_async
from reverb_async.config import Config, load
from reverb_async.config.flags import CHECKPOINT_KEYS, add_checkpoint_flags, as_number
from reverb_async.config.load import DEFAULT_GRACE_S, DEFAULT_PORT
from reverb_async.errors import CheckpointError, InvalidArgument, ReplayError
from reverb_async.server import Server
from reverb_async.table import Table

logger = logging.getLogger("reverb_async")

_OLD_COLLECTIONS = 50
"""Collections of the middle generation before a full one; Python's default is 10."""

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
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(args.log_level.upper())  # Ours only: grpclib has a line for every stream that a client drops.
    keys = ("host", "port", "unix", "insecure", "reverb_compat", "grace", *CHECKPOINT_KEYS)
    flags = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            config = load(args.config, args.table, flags, args.reverb_config)
            tables = config.build_tables()
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
    server = Server(
        tables,
        host=where.host,
        port=where.port,
        unix_path=where.unix,
        insecure=where.insecure,
        reverb_compat=where.reverb_compat,
        checkpointer=where.build_checkpointer(),
        durability=where.durability,
    )
    try:
        await server.start()
    except InvalidArgument as error:
        return _fail(_FAILED, error)
    except CheckpointError as error:
        return _fail(_CANNOT_RESTORE, error)
    print(_ready_line(server), flush=True)
    await stop.wait()
    logger.info("stopping, within %g s; a second signal ends it at once", where.grace)
    try:
        await server.close(grace=where.grace)
    except ReplayError as error:
        return _fail(_FAILED, error)
    return 0


def _ready_line(server: Server) -> str:
    names = list(server.tables)
    tables = f"{len(names)} table{'s' if len(names) > 1 else ''} ({', '.join(names)})"
    addresses = [] if server.port is None else [server.address]
    addresses += [] if server.unix_address is None else [server.unix_address]
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
        help="allow a host that other machines reach: nothing is encrypted, nobody is asked who they are",
    )
    parser.add_argument(
        "--reverb-compat",
        action=argparse.BooleanOptionalAction,
        help="serve dm-reverb's clients too, on the same port (default yes)",
    )
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
    parser.add_argument("--version", action="version", version=f"reverb_async {reverb_async.__version__}")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--check", action="store_true", help="check the configuration, print a line per table and exit")
    modes.add_argument("--print-config", action="store_true", help="print the whole configuration as TOML and exit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
