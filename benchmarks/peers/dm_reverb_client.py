"""Work on dm-reverb's server, by its fastest official paths: ``dm_reverb_client PATH ADDRESS``.

`PATHS` are the names of `PeerWork.path`. Where a setting matters, several are tried for a moment each, and the fastest
is kept: the peer runs tuned for this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import reverb

from benchmarks.peers.dm_reverb_idle import (
    info_latency,
    latency_insert,
    latency_sample,
    latency_update,
    memory,
    memory_atari,
)
from benchmarks.peers.dm_reverb_sampling import (
    fill_only,
    sampling,
    sampling_frames,
    sampling_large,
    sampling_stacks,
    tuned,
    with_defaults,
)
from benchmarks.peers.dm_reverb_work import Prepared
from benchmarks.peers.dm_reverb_writing import (
    client_insert,
    large_insert,
    legacy_writer,
    mutate,
    mutate_in,
    stack_writer,
    structured_writer,
    trajectory_writer,
)
from benchmarks.rounds import work_in_rounds

PATHS: dict[str, Callable[[reverb.Client], Prepared]] = {
    "dataset_uniform": sampling("uniform", tuned),
    "dataset_uniform_defaults": sampling("uniform", with_defaults),
    "dataset_prioritized": sampling("prioritized", tuned),
    "dataset_prioritized_defaults": sampling("prioritized", with_defaults),
    "dataset_update": sampling("prioritized", tuned, update=True),
    "dataset_update_defaults": sampling("prioritized", with_defaults, update=True),
    "dataset_frames": sampling_frames,
    "dataset_large": sampling_large,
    "dataset_stacks": sampling_stacks,
    "fill_one_step": fill_only("uniform"),
    "fill_ragged": fill_only("ragged"),
    "structured_writer": structured_writer,
    "writer": legacy_writer,
    "trajectory_writer": trajectory_writer,
    "client_insert": client_insert,
    "large_insert": large_insert,
    "mutate": mutate,
    "mutate_1_thread": mutate_in(1),
    "mutate_4_threads": mutate_in(4),
    "stack_writer": stack_writer,
    "latency_insert": latency_insert,
    "latency_sample": latency_sample,
    "latency_update": latency_update,
    "info_latency": info_latency,
    "memory": memory,
    "memory_atari": memory_atari,
}


def main() -> None:
    """Run."""
    path, address = sys.argv[1:]
    client = reverb.Client(address)
    work, setting = PATHS[path](client)
    work_in_rounds(work, {"setting": setting})


if __name__ == "__main__":
    main()
