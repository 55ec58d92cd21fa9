"""dm-reverb's server with the tables that its clients in `dm_reverb_client` use; prints its port.

It binds every address and has no way not to: ``--bring-up-loopback`` is for a network namespace of its own, where the
loopback interface is all there is, and down.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import struct
import sys

import reverb
import tensorflow as tf

_SIZE = 1_000_000

SMALL = {
    "obs": tf.TensorSpec([4], tf.float32),
    "action": tf.TensorSpec([], tf.int32),
    "reward": tf.TensorSpec([], tf.float32),
    "next_obs": tf.TensorSpec([4], tf.float32),
    "done": tf.TensorSpec([], tf.bool),
}
RAGGED = {name: tf.TensorSpec([None, *spec.shape], spec.dtype) for name, spec in SMALL.items()}
FRAMES = {"frame": tf.TensorSpec([84, 84, 4], tf.uint8)}
STACKS = {"frame": tf.TensorSpec([4, 84, 84], tf.uint8)}
LARGE = {"data": tf.TensorSpec([16 << 20], tf.uint8)}


def table(name: str, sampler: reverb.selectors.SelectorType, signature: object, max_size: int = _SIZE) -> reverb.Table:
    """Return a table like the ones our subjects use."""
    return reverb.Table(
        name=name,
        sampler=sampler,
        remover=reverb.selectors.Fifo(),
        max_size=max_size,
        rate_limiter=reverb.rate_limiters.MinSize(1),
        signature=signature,
    )


def all_tables() -> list[reverb.Table]:
    """Return all tables; a subject uses one."""
    uniform = reverb.selectors.Uniform
    return [
        table("uniform", uniform(), SMALL),
        table("prioritized", reverb.selectors.Prioritized(0.6), SMALL),
        table("ragged", uniform(), RAGGED),
        table("insert", uniform(), None),
        table("frames", uniform(), FRAMES),
        table("stacks", uniform(), STACKS),
        table("stacks_written", uniform(), STACKS, max_size=20_000),
        table("large", uniform(), LARGE, max_size=24),
    ]


def bring_up_loopback() -> None:
    """Do what ``ip link set lo up`` does."""
    get_flags, set_flags, is_up = 0x8913, 0x8914, 0x1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(control, get_flags, request))[1]
        fcntl.ioctl(control, set_flags, struct.pack("16sh", b"lo", flags | is_up))


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bring-up-loopback", action="store_true")
    if parser.parse_args().bring_up_loopback:
        bring_up_loopback()
    server = reverb.Server(all_tables())
    print(json.dumps({"ready": True, "port": server.port, "pid": os.getpid()}), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
