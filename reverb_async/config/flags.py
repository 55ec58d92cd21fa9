"""Flags of the server program that come in groups."""

from __future__ import annotations

import argparse

CHECKPOINT_KEYS = ("checkpoint_dir", "checkpoint_every", "checkpoint_keep", "on_corrupt", "restore", "durability")


def as_number(text: str) -> object:
    """Read a number; what is none stays text, and the configuration says what is wrong with it."""
    try:
        return float(text)
    except ValueError:
        return text


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Add what `ServerConfig` has for checkpoints."""
    group = parser.add_argument_group("checkpoints")
    group.add_argument("--checkpoint-dir", metavar="PATH", help="keep checkpoints here, and start from the newest one")
    group.add_argument(
        "--checkpoint-every",
        type=as_number,
        metavar="SECONDS",
        help="time between them (default: only when a client asks for one, and after SIGTERM or Ctrl-C)",
    )
    group.add_argument(
        "--checkpoint-keep", type=as_number, metavar="N", help="how many are kept, 2 or more (default 3)"
    )
    group.add_argument(
        "--on-corrupt",
        metavar="previous|fail",
        help="when the newest one is damaged, start from the one before it (default), or not at all",
    )
    group.add_argument(
        "--restore",
        metavar="strict|config|checkpoint",
        help="when the tables are not those of the checkpoint: do not start (default), take the configuration's "
        "definitions, or the checkpoint's",
    )
    group.add_argument(
        "--durability",
        metavar="memory|wal|wal_fsync",
        help="what is acknowledged survives a checkpoint away (default), the server's being killed, or a power cut; "
        "the latter two write a log to --checkpoint-dir",
    )
