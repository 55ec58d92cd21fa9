"""cpprb's prioritized buffer in this process: ``cpprb_buffer sample`` or ``cpprb_buffer sample_update``.

1M small items, alpha 0.6; a sample gives the five columns, the indexes and the importance weights.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from cpprb import PrioritizedReplayBuffer

from benchmarks.payloads import small
from benchmarks.rounds import work_in_rounds

BATCH = 256
ITEMS = 1_000_000
_AT_ONCE = 10_000
_BETA = 0.4


def filled() -> PrioritizedReplayBuffer:
    """Return a buffer of small items with random priorities."""
    buffer = PrioritizedReplayBuffer(
        ITEMS,
        {
            "obs": {"shape": 4, "dtype": np.float32},
            "action": {"dtype": np.int32},
            "reward": {"dtype": np.float32},
            "next_obs": {"shape": 4, "dtype": np.float32},
            "done": {"dtype": np.bool_},
        },
        alpha=0.6,
    )
    rng = np.random.default_rng(0)
    for _ in range(ITEMS // _AT_ONCE):
        buffer.add(**small(rng, _AT_ONCE), priorities=rng.random(_AT_ONCE) + 0.1)
    return buffer


def main() -> None:
    """Run."""
    path = sys.argv[1]
    buffer = filled()
    priorities = np.random.default_rng(1).random(BATCH) + 0.1

    def work(seconds: float) -> tuple[int, int, list[float]]:
        deadline, items = time.perf_counter() + seconds, 0
        while time.perf_counter() < deadline:
            batch = buffer.sample(BATCH, beta=_BETA)
            if path == "sample_update":
                buffer.update_priorities(batch["indexes"], priorities)
            items += BATCH
        return items, 0, []

    work_in_rounds(work, {"setting": {"alpha": 0.6, "beta": _BETA}})


if __name__ == "__main__":
    main()
