"""What is measured. "small" is 41 bytes in 5 columns: two float32[4], int32, float32, bool."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

import reverb_async as ra
from benchmarks.harness import Subject, Work, repeat

ITEMS = 100_000
BATCH = 256


def small(rng: np.random.Generator, n: int) -> dict[str, Any]:
    """Return `n` small transitions."""
    return {
        "obs": rng.random((n, 4), np.float32),
        "action": rng.integers(0, 4, n, np.int32),
        "reward": rng.random(n, np.float32),
        "next_obs": rng.random((n, 4), np.float32),
        "done": rng.random(n) < 0.01,
    }


async def fill(client: ra.Client, n: int = ITEMS) -> None:
    """Insert `n` small transitions with random priorities."""
    rng = np.random.default_rng(0)
    for start in range(0, n, 1000):
        count = min(1000, n - start)
        await client.insert_batch(small(rng, count), {"replay": rng.random(count) + 0.1})


async def sample_for(client: ra.Client, seconds: float, priorities: NDArray[np.float64] | None = None) -> int:
    """Sample batches for a while, giving every item a new priority if there are any; return how many items came."""
    deadline, items = time.perf_counter() + seconds, 0
    async with client.sample_batches("replay", BATCH) as batches:
        async for batch in batches:
            if priorities is not None:
                await batch.update_priorities(priorities)
            items += len(batch.info.key)
            if time.perf_counter() > deadline:
                break
    return items


async def sampling(client: ra.Client) -> Work:
    """Sample batches."""
    await fill(client)
    return lambda seconds: sample_for(client, seconds)


async def sampling_and_updating(client: ra.Client) -> Work:
    """Sample batches and update the priorities of each."""
    await fill(client)
    priorities = np.random.default_rng(1).random(BATCH) + 0.1
    return lambda seconds: sample_for(client, seconds, priorities)


async def sampling_frames(client: ra.Client) -> Work:
    """Sample batches of frames, 28 KB each."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        await client.insert_batch({"frame": rng.integers(0, 256, (100, 84, 84, 4), np.uint8)}, {"replay": 1.0})
    return lambda seconds: sample_for(client, seconds)


async def inserting_batches(client: ra.Client) -> Work:
    """Insert batches, four calls in flight."""
    data = small(np.random.default_rng(0), BATCH)

    async def step() -> int:
        await client.insert_batch(data, {"replay": 1.0})
        return BATCH

    return lambda seconds: repeat(seconds, step, parallel=4)


async def writing_steps(client: ra.Client) -> Work:
    """Append a step and create an item of it, step by step, with one writer."""
    rows = small(np.random.default_rng(0), 1000)
    steps = [{name: column[at] for name, column in rows.items()} for at in range(1000)]

    async def work(seconds: float) -> int:
        deadline, items = time.perf_counter() + seconds, 0
        async with client.trajectory_writer(num_keep_alive_refs=1) as writer:
            while time.perf_counter() < deadline:
                for step in steps:
                    writer.append(step)
                    history = writer.history
                    await writer.create_item("replay", 1.0, trajectory={name: history[name][-1] for name in step})
                items += len(steps)
                await writer.end_episode()
        return items

    return work


async def inserting_singles(client: ra.Client) -> Work:
    """Insert single items, 64 coroutines at once."""
    rows = small(np.random.default_rng(0), 1)
    step_data = {name: column[0] for name, column in rows.items()}

    async def step() -> int:
        await client.insert(step_data, {"replay": 1.0})
        return 1

    return lambda seconds: repeat(seconds, step, parallel=64)


async def mutating(client: ra.Client) -> Work:
    """Update 256 random priorities per call, eight calls in flight."""
    await fill(client)
    batch = await client.sample_batch("replay", 4096)
    rng = np.random.default_rng(2)
    blocks = [(rng.choice(batch.info.key, BATCH, replace=False), rng.random(BATCH) + 0.1) for _ in range(64)]
    turn = iter(range(10**12))

    async def step() -> int:
        await client.mutate_priorities("replay", blocks[next(turn) % len(blocks)])
        return BATCH

    return lambda seconds: repeat(seconds, step, parallel=8)


_UNIFORM = "replay:max_size=1000000"
_PRIORITIZED = "replay:sampler=prioritized,priority_exponent=0.6,max_size=1000000"

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        Subject(
            "sample-uniform", "sample_batches(256), small, Uniform, one learner, TCP", (_UNIFORM,), sampling, 250_000
        ),
        Subject(
            "sample-prioritized",
            "sample_batches(256), small, Prioritized(0.6), one learner, TCP",
            (_PRIORITIZED,),
            sampling,
            250_000,
        ),
        Subject(
            "sample-update",
            "sample_batches(256) + update_priorities of every batch, small, Prioritized(0.6), TCP",
            (_PRIORITIZED,),
            sampling_and_updating,
            250_000,
        ),
        Subject(
            "sample-frames",
            "sample_batches(256), 84x84x4 uint8 frames, Uniform, TCP",
            (_UNIFORM,),
            sampling_frames,
            0,
            shared_memory=False,
        ),
        Subject(
            "sample-frames-shared",
            "sample_batches(256), 84x84x4 uint8 frames, Uniform, shared memory",
            (_UNIFORM,),
            sampling_frames,
            212_600,  # 6 GB/s
        ),
        Subject(
            "insert-batch", "insert_batch(256), small, 4 calls in flight, TCP", (_UNIFORM,), inserting_batches, 300_000
        ),
        Subject(
            "writer", "trajectory writer, one item per step, small, one client, TCP", (_UNIFORM,), writing_steps, 15_000
        ),
        Subject("insert-single", "insert of single items, small, 64 at once, TCP", (_UNIFORM,), inserting_singles, 0),
        Subject(
            "mutate", "mutate_priorities of 256 keys, 8 calls in flight, TCP", (_PRIORITIZED,), mutating, 0, "keys/s"
        ),
    )
}
